"""What an OpenAI-compatible endpoint answers: one completion, gathered from the chunks of a stream or from one body.

Endpoints differ in what they leave out and in where they put things. Here it is read tolerantly; what
cannot be read without guessing at the model's words is a ``ProviderError``.
"""

from __future__ import annotations

import codecs
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from agemem_mcp.errors import ProviderError
from agemem_policies.openai_chat.reading import (
    as_count,
    as_list,
    as_logprob,
    as_object,
    as_text,
    as_token_ids,
    json_text,
)
from agemem_policies.policy import Completion, FunctionCall

if TYPE_CHECKING:
    from agemem_policies.policy import OnText

_UTF16 = codecs.getincrementaldecoder("utf-16-le")


class Answer:
    """Gathers one completion and tells its text as it comes.

    Args:
        on_text: told the text, exactly as it will stand in the completion.
        tokens: whether token ids and log-probabilities were asked for; else they are passed over.
    """

    def __init__(self, on_text: OnText | None = None, *, tokens: bool = False) -> None:
        self.ended = False
        """Whether the endpoint said that the turn is over."""
        self._on_text = on_text
        self._tokens = tokens
        self._text: list[str] = []
        self._part: Literal["nothing", "thought", "text"] = "nothing"
        # Halves of a character outside the BMP can come in two chunks; a half that stays alone is no text.
        self._halves = _UTF16("replace")
        self._calls: list[_Call] = []
        self._cut_off = False
        self._usage: dict[str, Any] = {}
        self._prompt_ids: list[int] = []
        self._action_ids: list[int] = []
        self._logprobs: list[float] = []

    @property
    def begun(self) -> bool:
        """Whether any text came."""
        return bool(self._text)

    @property
    def told(self) -> bool:
        """Whether someone was told some of the text, so that it cannot be taken back."""
        return self.begun and self._on_text is not None

    def add(self, piece: dict[str, Any]) -> None:
        """Take a chunk of a stream, or a whole body."""
        self._usage = as_object(piece.get("usage")) or self._usage
        if self._tokens:
            self._prompt_ids = as_token_ids(piece.get("prompt_token_ids")) or self._prompt_ids
        for choice in map(as_object, as_list(piece.get("choices"))):
            if choice.get("index") in (0, None):
                self._choose(choice)
                if self._tokens:
                    self._take_tokens(choice)

    def finish(self) -> Completion:
        """Tell what was held back and give the whole.

        Raises:
            ProviderError: tokens and their log-probabilities do not match.
        """
        if self._part == "thought":
            self._tell("</think>")
        self._tell("", final=True)
        if not self._action_ids:
            self._logprobs.clear()
        if self._logprobs and len(self._logprobs) != len(self._action_ids):
            msg = (
                f"The endpoint told {len(self._action_ids)} tokens but {len(self._logprobs)} log-probabilities. "
                "Ask it without streaming, or without token ids."
            )
            raise ProviderError(msg)
        return Completion(
            text="".join(self._text),
            calls=_with_ids(self._calls),
            cut_off=self._cut_off,
            prompt_tokens=as_count(self._usage.get("prompt_tokens")),
            completion_tokens=as_count(self._usage.get("completion_tokens")),
            prompt_ids=tuple(self._prompt_ids),
            action_ids=tuple(self._action_ids),
            logprobs=tuple(self._logprobs),
        )

    def _choose(self, choice: dict[str, Any]) -> None:
        message = as_object(choice.get("delta")) or as_object(choice.get("message"))
        self._write(
            as_text(message.get("reasoning_content")) or as_text(message.get("reasoning")),
            as_text(message.get("content")),
        )
        for call in map(as_object, as_list(message.get("tool_calls"))):
            self._call(call)
        if choice.get("finish_reason"):
            self.ended = True
            self._cut_off = choice["finish_reason"] == "length"

    def _take_tokens(self, choice: dict[str, Any]) -> None:
        # SGLang tells the prompt's tokens in the choice, vLLM beside it.
        self._prompt_ids = as_token_ids(choice.get("prompt_token_ids")) or self._prompt_ids
        self._action_ids += as_token_ids(choice.get("token_ids"))
        tokens = map(as_object, as_list(as_object(choice.get("logprobs")).get("content")))
        self._logprobs += [as_logprob(token.get("logprob")) for token in tokens]

    def _write(self, thought: str, text: str) -> None:
        """Thoughts that come apart go in front of the text, unless it has begun or holds some itself."""
        if thought and self._part != "text" and "<think>" not in text:
            self._tell(thought if self._part == "thought" else f"<think>{thought}")
            self._part = "thought"
        if text:
            self._tell(f"</think>{text}" if self._part == "thought" else text)
            self._part = "text"

    def _tell(self, text: str, *, final: bool = False) -> None:
        if whole := self._halves.decode(text.encode("utf-16-le", "surrogatepass"), final):
            self._text.append(whole)
            if self._on_text is not None:
                self._on_text(whole)

    def _call(self, piece: dict[str, Any]) -> None:
        function = as_object(piece.get("function"))
        index = piece.get("index")
        call_id, name = as_text(piece.get("id")), as_text(function.get("name"))
        call = self._continued(index if isinstance(index, int) else None, call_id, name)
        call.call_id = call.call_id or call_id
        if name != call.name:  # some servers repeat it in each piece
            call.name += name
        arguments: object = function.get("arguments")
        # Some servers write the arguments as an object, not as a text of one.
        call.arguments += json_text(cast("object", arguments)) if isinstance(arguments, dict) else as_text(arguments)

    def _continued(self, index: int | None, call_id: str, name: str) -> _Call:
        """The call that a piece belongs to: by its number, else by its id, else the newest one."""
        for call in reversed(self._calls):
            if index is not None:
                # Some servers number all their calls 0; another id with a name then begins another call.
                other = name and call_id and call.call_id and call_id != call.call_id
                if index == call.index and not other:
                    return call
            elif call_id and call_id == call.call_id:
                return call
        if index is None and not name and self._calls:
            return self._calls[-1]
        self._calls.append(_Call(index))
        return self._calls[-1]


@dataclass(slots=True)
class _Call:
    """A call as far as it has come."""

    index: int | None
    call_id: str = ""
    name: str = ""
    arguments: str = ""


def _with_ids(calls: list[_Call]) -> tuple[FunctionCall, ...]:
    """The calls, each with an id of its own: answers refer to them by it."""
    taken: set[str] = set()
    finished: list[FunctionCall] = []
    for call in calls:
        call_id = _whole(call.call_id)
        if not call_id or call_id in taken:
            call_id = f"call_{uuid.uuid4().hex[:24]}"
        taken.add(call_id)
        finished.append(FunctionCall(call_id, _whole(call.name), _whole(call.arguments)))
    return tuple(finished)


def _whole(text: str) -> str:
    """A text without halves of characters, which no request could carry."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
