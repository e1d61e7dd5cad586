"""What is sent to an OpenAI-compatible endpoint: a prompt as messages and functions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agemem_policies.policy import ChatMessage, FunctionCall, Prompt


def rendered(prompt: Prompt, *, native: bool) -> dict[str, Any]:
    """Write a prompt as the fields of a request.

    Args:
        prompt: what the model is shown.
        native: whether tools are functions, calls are ``tool_calls`` and answers have the role ``tool``.

    Returns:
        ``messages``, and ``tools`` where there are some and they are functions.
    """
    if not native:
        return {"messages": _merged(prompt.messages)}
    fields: dict[str, Any] = {"messages": [_native(message) for message in prompt.messages]}
    if prompt.tools:
        fields["tools"] = [{"type": "function", "function": tool} for tool in prompt.tools]
    return fields


def _merged(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """Messages whose roles alternate, which some chat templates demand."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        # Without a call before it an endpoint refuses a message of the role `tool`.
        role = "user" if message.role == "tool" else message.role
        if merged and merged[-1]["role"] == role:
            merged[-1]["content"] = "\n\n".join(filter(None, (merged[-1]["content"], message.content)))
        else:
            merged.append({"role": role, "content": message.content})
    return merged


def _native(message: ChatMessage) -> dict[str, Any]:
    if message.role == "tool":
        if message.call_id is None:
            return {"role": "user", "content": message.content}
        return {"role": "tool", "tool_call_id": message.call_id, "content": message.content}
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        fields["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.calls
        ]
    return fields


def _arguments(call: FunctionCall) -> str:
    """A call's arguments as a JSON object.

    Chat templates read them, and an endpoint would refuse the whole conversation for one call that
    the model wrote badly. What it wrote stays to be seen by it, in one string.
    """
    try:
        if isinstance(json.loads(call.arguments), dict):
            return call.arguments
    except (ValueError, RecursionError):
        pass
    return json.dumps({"unreadable": call.arguments} if call.arguments.strip() else {})
