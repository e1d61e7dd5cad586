"""Which state of a conversation a list of messages is, and how messages of a client become those of a context.

A state is a hash over everything said so far, one message hashed onto the state before. Clients resend their whole
history with each request, so the longest prefix whose state is known tells the session, and what follows is new.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, cast

from agemem_mcp.domain.context import Role
from agemem_mcp.errors import InvalidOperation
from agemem_policies.endpoint.failures import bad_request
from agemem_policies.protocol import Call, Turn, render
from agemem_policies.rendering import harmless
from agemem_policies.session import NewMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.endpoint.asking import ClientCall, Said

_NO_OUTPUT = "(no output)"
"""The result of a tool that returned nothing: a context holds no blank messages."""


def first_state(key: str) -> bytes:
    """The state before anything was said.

    Args:
        key: what keeps conversations apart that read the same: the scope and the kit.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def next_state(state: bytes, message: Said) -> bytes:
    """The state after one more message.

    What clients change when they send an answer back makes no difference: blanks around an assistant's text, no
    text or an empty one, how the arguments of its calls are written.
    """
    text = message.text.strip() if message.role == "assistant" else message.text
    calls = [[call.call_id, call.name, _plain(call.arguments)] for call in message.calls]
    said = json.dumps([message.role, text, calls, message.call_id])
    return hashlib.sha256(state + said.encode()).digest()


def states_of(key: str, messages: Sequence[Said]) -> list[bytes]:
    """The states before the first message and after each."""
    states = [first_state(key)]
    for message in messages:
        states.append(next_state(states[-1], message))
    return states


def unanswered_tail(messages: Sequence[Said]) -> int:
    """Where the messages after the last one of the assistant begin."""
    return next((number + 1 for number in reversed(range(len(messages))) if messages[number].role == "assistant"), 0)


def as_context(
    messages: Sequence[Said],
    waiting: tuple[ClientCall, ...],
    *,
    native: bool,
    first: int = 0,
    told: frozenset[str] = frozenset(),
) -> list[NewMessage]:
    """The messages as they are to stand in a context, results of tools in the order of their calls.

    Args:
        messages: those that are new to the session.
        waiting: calls of the session whose results have not come yet.
        native: what the assistant said stands as such; else in the form in which the policy is to write its turns.
        first: position of the first one in the request, for error messages.
        told: system messages that stand in the session already.

    Raises:
        Failure: results are missing, or belong to no call.
    """
    new: list[NewMessage] = []
    results: dict[str, str] = {}
    for number, message in enumerate(messages, first):
        if message.role == "tool":
            _take(message, waiting, results, f"messages[{number}]")
            if len(results) == len(waiting):
                new += [NewMessage(Role.TOOL, results[call.call_id]) for call in waiting]
                waiting, results = (), {}
            continue
        _check_complete(waiting, results)
        if message.role == "assistant":
            new += _assistants(message, native=native)
            waiting = message.calls
        elif message.text.strip() and not (message.role == "system" and message.text in told):
            new.append(NewMessage(Role(message.role), message.text))
    _check_complete(waiting, results)
    return new


def _take(message: Said, waiting: tuple[ClientCall, ...], results: dict[str, str], param: str) -> None:
    call_id = str(message.call_id)
    if call_id in results:
        msg = f"{param} is a second result of {call_id[:80]!r}. Send one for each call."
        raise bad_request(msg, f"{param}.tool_call_id")
    if all(call.call_id != call_id for call in waiting):
        ids = ", ".join(call.call_id for call in waiting)
        which = f"Results are awaited of {ids}." if ids else "No call waits for a result."
        msg = f"{param} is the result of {call_id[:80]!r}, which was not called just before. {which}"
        raise bad_request(msg, f"{param}.tool_call_id")
    results[call_id] = message.text if message.text.strip() else _NO_OUTPUT


def _check_complete(waiting: tuple[ClientCall, ...], results: dict[str, str]) -> None:
    if missing := [call.call_id for call in waiting if call.call_id not in results]:
        msg = (
            f"Results of tool calls are missing: {', '.join(missing)}. After the assistant's message send one message "
            "of role 'tool' for each of them, with its tool_call_id."
        )
        raise bad_request(msg, "messages")


def _assistants(message: Said, *, native: bool) -> list[NewMessage]:
    if message.calls:
        calls = tuple(Call(call.name, _object(call.arguments)) for call in message.calls)
        try:
            written = render(Turn(harmless(message.text), calls))
        except RecursionError:
            # What could just be read may be nested too deeply to be written.
            calls = tuple(Call(call.name, {"arguments": call.arguments}) for call in message.calls)
            written = render(Turn(harmless(message.text), calls))
        return [NewMessage(Role.ASSISTANT, written)]
    if not message.text.strip():
        return []
    if native:
        return [NewMessage(Role.ASSISTANT, message.text)]
    try:
        return [NewMessage(Role.ASSISTANT, render(Turn(answer=message.text)))]
    except InvalidOperation:
        return [NewMessage(Role.ASSISTANT, render(Turn(answer=harmless(message.text))))]


def _object(arguments: str) -> dict[str, Any]:
    """Arguments as an object; those that are none are kept as they were written."""
    try:
        found: object = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        found = None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {"arguments": arguments}


def _plain(arguments: str) -> str:
    """Arguments in one way of writing them."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True) if arguments.strip() else "{}"
    except (ValueError, RecursionError):
        return arguments
