"""Turns of models that call tools natively: the same calls and answers, written by the API instead of in tags."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from agemem_policies.protocol import Call, ProtocolViolation, Turn, parse, understood

if TYPE_CHECKING:
    from agemem_policies.policy import Completion


def read_native(completion: Completion) -> Turn:
    """The turn of a completion with native calls; text without calls is the answer.

    Raises:
        ProtocolViolation: there is neither, or the arguments of a call are no JSON object.
    """
    if not completion.calls:
        if "<tool_call>" in completion.text or "<answer>" in completion.text:
            # Some models write what they saw in their training instead.
            return parse(completion.text, cut_off=completion.cut_off)
        if not completion.text.strip():
            reason = "it has neither calls nor text"
            raise ProtocolViolation(reason)
        return Turn(answer=completion.text)
    calls: list[Call] = []
    for one in completion.calls:
        try:
            arguments: Any = json.loads(one.arguments) if one.arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            reason = f"the arguments of {one.name} are not valid JSON"
            raise ProtocolViolation(reason) from error
        if not isinstance(arguments, dict):
            reason = f"the arguments of {one.name} are not a JSON object"
            raise ProtocolViolation(reason)
        calls.append(understood(Call(one.name, cast("dict[str, Any]", arguments))))
    return Turn(completion.text, tuple(calls))
