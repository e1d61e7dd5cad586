"""A context as a model is shown it.

What tools returned, what was retrieved and what was summarised is data: it is shown within tags, and nothing in it can
close those tags, write one of the protocol's, or begin a message of its own in a chat template.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING

from agemem_mcp.domain.context import MessageKind, Role
from agemem_policies.policy import ChatMessage, FunctionCall
from agemem_policies.protocol import ProtocolViolation, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.session import ContextMessage

_TAGS = {
    MessageKind.MESSAGE: "tool_response",
    MessageKind.RETRIEVED: "retrieved_memories",
    MessageKind.SUMMARY: "summary",
}
_NAMES = ("think", "tool_call", "answer", *_TAGS.values(), "system", "user", "assistant", "tool")
_MEANT = re.compile(rf"<(?=\s*/?\s*(?:{'|'.join(_NAMES)})\b|\|)|\[(?=/?(?:INST|SYS)\])|<(?=s>|/s>|<SYS)", re.IGNORECASE)


def harmless(text: str) -> str:
    """The text with everything escaped that could end its tags, or be taken for the frame of a chat."""
    return _MEANT.sub(lambda found: "&lt;" if found[0] == "<" else "&#91;", text)


@lru_cache(maxsize=4096)
def escapes(text: str) -> int:
    """How many characters :func:`harmless` escapes."""
    return len(_MEANT.findall(text))


def chat_messages(messages: Sequence[ContextMessage], *, native: bool) -> tuple[ChatMessage, ...]:
    """The messages for a model, oldest first.

    Args:
        messages: of the context.
        native: show calls as such, each with the message that answers it. Where one of the two has left the context,
            and always without ``native``, they are shown as text.
    """
    shown: list[ChatMessage] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        answered = _answered(messages, position) if native and message.role is Role.ASSISTANT else []
        if answered:
            shown += answered
            position += len(answered)
            continue
        if message.role is Role.TOOL:
            shown.append(ChatMessage("user", _as_data(message)))
        else:
            shown.append(ChatMessage(message.role.value, message.content))
        position += 1
    return tuple(shown)


def _as_data(message: ContextMessage) -> str:
    tag = _TAGS[message.kind]
    return f"<{tag}>\n{harmless(message.content)}\n</{tag}>"


def _answered(messages: Sequence[ContextMessage], position: int) -> list[ChatMessage]:
    """A message with calls and those that answer them; nothing if it has none, or an answer is missing."""
    message = messages[position]
    try:
        turn = parse(message.content, strict=True)
    except ProtocolViolation:
        return []
    answers = messages[position + 1 : position + 1 + len(turn.calls)]
    following = messages[position + 1 + len(turn.calls) : position + 2 + len(turn.calls)]
    complete = len(answers) == len(turn.calls) and all(
        one.role is Role.TOOL and one.kind is not MessageKind.SUMMARY for one in answers
    )
    if not turn.calls or not complete or any(one.role is Role.TOOL for one in following):
        return []
    calls = tuple(
        FunctionCall(call_id(message, number), call.name, json.dumps(call.arguments, ensure_ascii=False))
        for number, call in enumerate(turn.calls)
    )
    return [
        ChatMessage("assistant", turn.think, calls=calls),
        *(
            ChatMessage("tool", harmless(answer.content), call_id=call.call_id)
            for answer, call in zip(answers, calls, strict=True)
        ),
    ]


def call_id(message: ContextMessage, number: int) -> str:
    """A name for a call of a message, the same each time it is shown."""
    return f"call_{message.message_id}_{number}"
