"""Reading a request: what of OpenAI's chat completions is understood, and what is refused with a sentence.

Unknown fields are passed over, as clients send ever new ones. ``temperature`` and the like are the policy's own
business, and so is a largest number of tokens: a turn also holds a thought and calls, which no client asked to cap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agemem_policies.endpoint.failures import Failure, bad_request
from agemem_policies.protocol import Call, understood

RoleName: TypeAlias = Literal["system", "user", "assistant", "tool"]
_LONGEST_MESSAGE_SHOWN = 300


@dataclass(frozen=True, slots=True)
class ClientCall:
    """A call of a function that the client runs."""

    call_id: str
    name: str
    arguments: str
    """JSON, perhaps not valid where a client sends it."""


@dataclass(frozen=True, slots=True)
class Said:
    """One message of a client's history."""

    role: RoleName
    text: str
    calls: tuple[ClientCall, ...] = ()
    """Of an assistant message."""
    call_id: str | None = None
    """Of a tool message: the call that it answers."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood."""

    model: str | None
    messages: tuple[Said, ...]
    stream: bool = False
    include_usage: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that the client runs: ``{"name", "description", "parameters"}``."""
    user: str | None = None
    session_id: str | None = None
    """As the client named it."""


class _Tolerant(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Part(_Tolerant):
    type: str
    text: str | None = None


class _Function(_Tolerant):
    name: str = Field(min_length=1)
    arguments: str = ""


class _ToolCall(_Tolerant):
    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: _Function


class _Message(_Tolerant):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _Offered(_Tolerant):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(_Tolerant):
    type: Literal["function"] = "function"
    function: _Offered


class _StreamOptions(_Tolerant):
    include_usage: bool | None = None


class _Request(_Tolerant):
    model: str | None = None
    messages: list[_Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)


def read_request(body: bytes) -> Asked:
    """Read the body of a request.

    Raises:
        Failure: it cannot be understood or carried out; the text says which part of it.
    """
    try:
        request = _Request.model_validate_json(body)
    except ValidationError as error:
        raise _unreadable(error) from error
    if request.n not in (None, 1):
        msg = "n must be 1: a session goes on in one way. Send further requests for further answers."
        raise bad_request(msg, "n")
    messages = tuple(_said(message, number) for number, message in enumerate(request.messages))
    if messages[-1].role == "assistant":
        msg = "The last message must be a user's or the result of a tool, as there is nothing to answer else."
        raise bad_request(msg, "messages")
    if messages[-1].role != "tool" and not messages[-1].text.strip():
        msg = "The last message says nothing. Give it a content."
        raise bad_request(msg, f"messages[{len(messages) - 1}].content")
    named = (request.metadata or {}).get("session_id")
    return Asked(
        model=request.model or None,
        messages=messages,
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        tools=() if request.tool_choice == "none" else _tools(request.tools or []),
        user=request.user or None,
        session_id=named if isinstance(named, str) and named else None,
    )


def _said(message: _Message, number: int) -> Said:
    param = f"messages[{number}]"
    text = _text(message.content, param)
    if message.role == "tool":
        if not message.tool_call_id:
            msg = f"{param} is the result of a tool, but names no tool_call_id."
            raise bad_request(msg, f"{param}.tool_call_id")
        return Said("tool", text, call_id=message.tool_call_id)
    calls: tuple[ClientCall, ...] = ()
    if message.role == "assistant" and message.tool_calls:
        calls = tuple(ClientCall(one.id, one.function.name, one.function.arguments) for one in message.tool_calls)
        if len({call.call_id for call in calls}) != len(calls):
            msg = f"{param} has several tool calls of one id."
            raise bad_request(msg, f"{param}.tool_calls")
    return Said("system" if message.role == "developer" else message.role, text, calls)


def _text(content: str | list[_Part] | None, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for number, part in enumerate(content):
        if part.type != "text" or part.text is None:
            where = f"{param}.content[{number}]"
            msg = f"{where} is of type {part.type[:60]!r}: memory holds text alone. Send parts of type 'text'."
            raise bad_request(msg, where)
        texts.append(part.text)
    return "\n".join(texts)


def _tools(tools: list[_Tool]) -> tuple[dict[str, Any], ...]:
    found: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools):
        function = tool.function
        if function.name in found:
            msg = f"tools[{number}] has the name of another tool, {function.name!r}."
            raise bad_request(msg, f"tools[{number}]")
        found[function.name] = {
            "name": function.name,
            "description": function.description or "",
            "parameters": function.parameters or {"type": "object", "properties": {}},
        }
    return tuple(found.values())


def check_names(tools: tuple[dict[str, Any], ...], taken: set[str]) -> None:
    """Refuse tools that cannot be told from those of the memory.

    Args:
        tools: the client's.
        taken: names of the memory's tools.

    Raises:
        Failure: a name, or one that models write for it, is taken.
    """
    for number, tool in enumerate(tools):
        if understood(Call(tool["name"])).name in taken:
            msg = f"tools[{number}]: {tool['name']!r} cannot be told from a tool of the memory. Give it another name."
            raise bad_request(msg, f"tools[{number}]")


def _unreadable(error: ValidationError) -> Failure:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # The branches of a union are no fields.
    place = [part for part in first["loc"] if not (isinstance(part, str) and ("[" in part or part in {"str", "dict"}))]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    said = first["msg"][:_LONGEST_MESSAGE_SHOWN]
    return bad_request(f"{param}: {said}." if param else f"The request cannot be read: {said}.", param or None)
