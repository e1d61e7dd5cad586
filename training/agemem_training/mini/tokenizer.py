"""A word tokenizer for policies of a million parameters.

What costs such a policy most is copying, and copying is learnt as soon as a word is the same token wherever it stands.
So spaces are no part of tokens: they are dropped when a text is read, and put back by rule when one is written. A name
is its head and its tail, a number its pairs of digits, a memory id one token if it is sequential, and so are the fixed
parts of a turn (``</think><tool_call>[{"name": "Add_memory", "arguments": {"content": "``). Other words, and ids, are
spelled letter by letter.
"""

# torch and transformers are extras: where they are installed their types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agemem_policies.protocol import Call, Turn, render
from agemem_training.mini.dates import YEARS
from agemem_training.tasks.synthetic.names import FOODS, MONTHS, PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable

PAD, END, UNKNOWN_WORD = "<|pad|>", "<|end|>", "<|unknown|>"
_ROLES = ("system", "user", "assistant", "tool")
_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_MEMORY_IDS = 100
_HOLE = "\0"
_PIECE = r"mem_[a-z\d]+|\d{4}-|\d\d-|[A-Za-z]+|\d+|\n|[^\sA-Za-z\d]"
"""What is never split by anything but the vocabulary; dates as they stand before a memory."""


def fixed_parts() -> list[str]:
    """What never varies in a turn, and in the frames of what a policy is shown; each is one token."""
    calls = [
        Call("Add_memory", {"content": _HOLE, "memory_type": "fact"}),
        Call("Update_memory", {"memory_id": _HOLE, "content": _HOLE}),
        Call("Delete_memory", {"memory_id": _HOLE, "confirmation": True}),
        Call("Retrieve_memory", {"query": _HOLE}),
        Call("Filter_context", {"criteria": _HOLE}),
        Call("Summary_context", {"span": "all", "summary": _HOLE}),
    ]
    hole = "\\u0000"
    turns = [render(Turn(_HOLE, (call,))).replace(hole, _HOLE) for call in calls] + [render(Turn(_HOLE, answer=_HOLE))]
    parts = dict.fromkeys(part for turn in turns for part in turn.split(_HOLE) if part)
    frames = [
        f"{before}{mark}{after}"
        for tag in ("tool_response", "retrieved_memories", "summary")
        for before, mark, after in (
            ("", f"<{tag}>", "\n"), ("\n\n", f"<{tag}>", "\n"), ("\n", f"</{tag}>", ""),
            *((("", f"<{tag}>", "\n["), ("\n\n", f"<{tag}>", "\n[")) if tag == "retrieved_memories" else ()),
        )
    ]  # fmt: skip
    return [*parts, *frames, "\n[", "] (", ", fact)"]


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that knows the words of some texts.

    Args:
        texts: prompts and turns; the parts of made-up names are known without being in them.
    """
    fixed = fixed_parts()
    words = _words(texts, fixed)
    heads = {head for heads, _ in PARTS.values() for head in heads}
    tails = {f"##{tail}" for _, tails in PARTS.values() for tail in tails}
    pairs = [f"{number:02d}" for number in range(100)]
    known = [
        PAD, END, UNKNOWN_WORD, *(f"<|{role}|>" for role in _ROLES),
        *(sign for sign in string.printable if not sign.isspace()), "\n",
        *(f"##{sign}" for sign in string.ascii_letters + string.digits),
        *pairs, *(f"##{pair}" for pair in pairs),
        *(f"mem_{number}" for number in range(1, _MEMORY_IDS)), "mem_",
        *(f"{year}-" for year in YEARS), *(f"{pair}-" for pair in pairs[1:32]),
        *sorted(heads | tails | words | set(FOODS) | set(MONTHS)),
    ]  # fmt: skip
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(known))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN_WORD, continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split(Regex(_PIECE), "isolated")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece("##", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(r'(?<=[>"\n\[(]|\d-) '), ""),
            decoders.Replace(Regex(r' (?=[<\n\]).,:;?!]|"[,}])'), ""),
        ]
    )
    tokenizer.add_special_tokens([PAD, END, UNKNOWN_WORD, *(f"<|{role}|>" for role in _ROLES)])
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in fixed])
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN_WORD
    )
    fast.chat_template = _TEMPLATE
    return fast


def _words(texts: Iterable[str], fixed: list[str]) -> set[str]:
    """The words of texts, made-up names aside: those of practice as well, whose tail belongs to another kind."""
    whole = re.compile("|".join(map(re.escape, sorted(fixed, key=len, reverse=True))))
    heads, tails = ({part for one in PARTS.values() for part in one[place]} for place in (0, 1))
    names = {head + tail for head in heads for tail in tails}
    found: set[str] = set()
    for text in texts:
        found |= set(re.findall("[A-Za-z]+", whole.sub(" ", text)))
    return found - names
