"""A prompt's messages as token ids, such that no message can forge what stands between messages.

The ids are those of ``tokenizer.apply_chat_template``. Only where a message spells a control token (``<|im_end|>``)
do they differ: it is tokenised as the plain text that it is. To know the template's control tokens from a message's,
a character that no text may hold (``BREAK``) is put into every spelling of one inside a message before the template
is rendered. So whatever the template does with contents (Llama's trims them, Qwen3's cuts out old thoughts), each
control token that is still whole afterwards is the template's own. The text itself is not changed: the character is
taken out before anything is tokenised.
"""

# jinja2 comes with torch, which is an extra
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import TemplateError

from agemem_mcp.errors import ProviderError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from agemem_policies.policy import ChatMessage

BREAK = "\ufdd0"
"""A noncharacter: Unicode keeps it for use inside programs, never for text."""
MARKUP = frozenset(
    f"<{slash}{name}>" for slash in ("", "/") for name in ("think", "tool_call", "tool_response", "answer")
)
"""What the agent's protocol is written with. Text to us, also where a tokenizer has a special token for it."""


class AddedToken(Protocol):
    """A token that a tokenizer finds before it looks at words."""

    content: str
    special: bool


class ChatTokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    unk_token_id: int | None

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """All added tokens by id."""
        ...

    def __call__(self, text: str, **options: Any) -> Mapping[str, list[int]]:  # noqa: ANN401  the library's own
        """Tokenise."""
        ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:  # noqa: ANN401  as above
        """Turn ids into text."""
        ...

    def apply_chat_template(self, conversation: Sequence[Mapping[str, str]], **options: Any) -> Any:  # noqa: ANN401  as above
        """Render messages."""
        ...


class ChatEncoder:
    """Turns messages into ids; used by one thread at a time."""

    def __init__(self, tokenizer: ChatTokenizer, eos_ids: Container[int]) -> None:
        """Learn which tokens are control tokens.

        Args:
            tokenizer: has a chat template.
            eos_ids: tokens that end a turn; control tokens, also where the tokenizer does not call them special.
        """
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special_ids = {one.content: number for number, one in added.items() if one.special or number in eos_ids}
        control = {spelling: number for spelling, number in self._special_ids.items() if spelling not in MARKUP}
        # unknown words give the unknown token by right; where it ends turns as well (GPT-2) nothing is unknown
        self.control_ids = frozenset(
            number for number in control.values() if number != tokenizer.unk_token_id or number in eos_ids
        )
        """Tokens that are no text: what stands between turns, padding, and the like."""
        self._special = _any_of(self._special_ids)
        # at each place where one begins, for they may overlap
        self._spelled = re.compile(f"(?s)(?={_any_of(control).pattern})(?P<first>.)")
        self._forbidden = dict.fromkeys(map(ord, (BREAK, *(spelling for spelling in control if len(spelling) == 1))))

    def encode(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Tokenise a whole prompt, with the template's opening of the model's turn.

        Consecutive messages of one role are merged with a blank line, and tool messages are shown as the user's:
        many templates take nothing else.

        Raises:
            ProviderError: the template takes no such messages.
        """
        guarded = self._rendered(_merged(messages))
        if BREAK not in guarded:
            ids = self._tokenised(guarded, split=False)
            own = [self._special_ids[spelling] for spelling in self._special.findall(guarded)]
            # a normaliser may have made a control token of what did not look like one
            if self._only_control(ids) == self._only_control(own):
                return ids
        return self._in_runs(guarded)

    def _only_control(self, ids: Iterable[int]) -> list[int]:
        return [one for one in ids if one in self.control_ids]

    def _guarded(self, content: str) -> str:
        # the tokenizer takes no lone surrogates, which JSON input can contain
        clean = content.encode("utf-8", "replace").decode("utf-8").translate(self._forbidden)
        return self._spelled.sub(rf"\g<first>{BREAK}", clean)

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        if not messages:
            message = "The prompt has no messages: give at least one."
            raise ProviderError(message)
        guarded = [one | {"content": self._guarded(one["content"])} for one in messages]
        try:
            return str(self._tokenizer.apply_chat_template(guarded, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            if messages[0]["role"] == "system":  # some templates (Gemma's) refuse the role
                return self._rendered(_without_system(messages))
            message = f"The model's chat template does not take this conversation: {error}."
            raise ProviderError(message) from error

    def _in_runs(self, guarded: str) -> list[int]:
        """Tokenise what lies between special tokens apart from them, so that nothing in it can become one.

        Tokenizers cut at special tokens first. So with those that do not treat the beginning of a text differently
        (byte-level ones: Qwen, Llama 3) everything else is tokenised as in a prompt without forged tokens.
        """
        ids: list[int] = []
        for place, part in enumerate(self._special.split(guarded)):
            if place % 2:
                ids.append(self._special_ids[part])
                continue
            run = self._tokenised(part.replace(BREAK, ""), split=True)
            if not self.control_ids.isdisjoint(run):
                # the model below the special tokens knows the spelling as a word
                run = [one for half in part.split(BREAK) for one in self._tokenised(half, split=True)]
            ids += [one for one in run if one not in self.control_ids]
        return ids

    def _tokenised(self, text: str, *, split: bool) -> list[int]:
        if not text:
            return []
        options = {"split_special_tokens": split, "add_special_tokens": False, "return_attention_mask": False}
        return list(self._tokenizer(text, verbose=False, **options)["input_ids"])


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """A pattern of one group; the longest spelling wins, as with tokenizers. Matches nothing if there are none."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(spellings, key=len, reverse=True))) or '(?!)'})")


def _merged(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    merged: list[dict[str, str]] = []
    for message in messages:
        role = "user" if message.role == "tool" else message.role
        content = message.content
        if merged and merged[-1]["role"] == role:
            content = f"{merged.pop()['content']}\n\n{content}"
        merged.append({"role": role, "content": content})
    return merged


def _without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The system message's text at the head of the first message of the user."""
    system, *others = messages
    if others and others[0]["role"] == "user":
        others[0] = {"role": "user", "content": f"{system['content']}\n\n{others[0]['content']}"}
        return others
    return [{"role": "user", "content": system["content"]}, *others]
