"""The form of what a policy is shown: roles, tags and order, with names, numbers and wording left out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from agemem_mcp.server.render import ADVICE_ON_SIMILAR
from agemem_policies.protocol import ProtocolViolation, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.policy import ChatMessage
    from agemem_policies.protocol import Turn

Form: TypeAlias = tuple[tuple[str, str], ...]
"""Role and kind of each message, from the last one that the user wrote."""

_LINE = r"\[mem_\d+\] \(\d{4}-\d\d-\d\d, fact\) [^\n\[\]]+\."
_CLOSE = r"- mem_\d+ \(0\.\d\d\) [^\n\[\]]+\."
_SHOWN = {
    "hits": rf"<retrieved_memories>\n{_LINE}(\n{_LINE})*\n</retrieved_memories>",
    "stored": rf"<tool_response>\nStored as mem_\d+\.(\n{ADVICE_ON_SIMILAR}(\n{_CLOSE})+)?\n</tool_response>",
    "updated": r"<tool_response>\nUpdated mem_\d+ \(version \d\)\. Before: [^\n]+\.\n</tool_response>",
    "deleted": r"<tool_response>\nDeleted mem_\d+\.\n</tool_response>",
    "said": r"[^<\n]+",
}


def form_of(messages: Sequence[ChatMessage]) -> Form:
    """What the policy is shown of the message that it works on."""
    kinds = [(one.role, _kind(one)) for one in messages]
    last = max(place for place, kind in enumerate(kinds) if kind == ("user", "said"))
    return tuple(kinds[last:])


def turn_form(text: str) -> str:
    """What a turn does."""
    turn: Turn = parse(text, strict=True)
    if turn.answer is not None:
        return "ok" if turn.answer == "ok" else "answer"
    (call,) = turn.calls
    return f"{call.name}({', '.join(call.arguments)})"


def _kind(message: ChatMessage) -> str:
    if message.role == "system":
        return "system"
    if message.role == "assistant":
        try:
            return turn_form(message.content)
        except ProtocolViolation:
            return f"unreadable: {message.content}"
    return next((kind for kind, form in _SHOWN.items() if re.fullmatch(form, message.content)), message.content)
