"""Serving over stdin and stdout, one client per process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Self, cast

import anyio
import mcp_types as types
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from agemem_mcp.server.tools import MemoryServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from mcp.shared._context_streams import ContextReceiveStream, ContextSendStream

    from agemem_mcp.domain.memory import Scope
    from agemem_mcp.server.tools import ToolOffer
    from agemem_mcp.service.gate import ServiceGate

_SETTLING_S = 10.0
"""How long calls that have begun may take to be answered once the client is gone or a signal came."""
_WRITING_S = 0.1
"""What the last answer may take from the stream to the pipe."""
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


async def serve_stdio(gate: ServiceGate, *, scope: Scope, offer: ToolOffer) -> None:
    """Serve until stdin ends or a signal comes; operations that have begun are finished and answered first."""
    server = MemoryServer(gate, scope_of=lambda _: scope, offer=offer)

    async with stdio_server() as (read_stream, write_stream):
        connection = _Connection(read_stream, write_stream)

        async def shut_down() -> None:
            await connection.settle()
            await server.drain()
            await gate.close()

        _on_signal(shut_down)
        await server.mcp.run(connection, _Answers(connection), server.mcp.create_initialization_options())
    await server.drain()
    await gate.close()


class _Connection:
    """The incoming messages, and which tool calls among them are not answered yet.

    It mends two things of the SDK's. A line that is no message is passed over in silence there, and
    whoever sent it waits forever; here it is answered with a protocol error. (Clients do send them:
    one that cuts a text within an emoji writes half a surrogate pair, which is not JSON.) And the end
    of stdin cuts off the answers to calls that have begun; here it is held back until they are out.
    """

    def __init__(
        self,
        incoming: ContextReceiveStream[SessionMessage | Exception],
        outgoing: ContextSendStream[SessionMessage],
    ) -> None:
        self._incoming = incoming
        self.outgoing = outgoing
        self._unanswered: set[object] = set()
        self._changed = asyncio.Event()

    @property
    def last_context(self) -> object:
        """What the SDK restores around each message."""
        return self._incoming.last_context

    async def receive(self) -> SessionMessage | Exception:
        """The next message; raises :class:`anyio.EndOfStream` when there is none."""
        while True:
            try:
                item = await self._incoming.receive()
            except anyio.EndOfStream:
                await self.settle()
                raise
            if isinstance(item, ValidationError):
                await self.outgoing.send(SessionMessage(_refusal(item)))
                continue
            if isinstance(item, SessionMessage):
                self._note_question(item.message)
            return item

    async def settle(self) -> None:
        """Wait until the calls that have begun are answered, or have had their time."""
        try:
            async with asyncio.timeout(_SETTLING_S):
                while self._unanswered:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    def note_answer(self, message: object) -> None:
        """A message is on its way out."""
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self._unanswered.discard(message.id)
            self._changed.set()

    def _note_question(self, message: object) -> None:
        if isinstance(message, types.JSONRPCRequest) and message.method == "tools/call":
            self._unanswered.add(message.id)
        elif isinstance(message, types.JSONRPCNotification) and message.method == "notifications/cancelled":
            self._unanswered.discard((message.params or {}).get("requestId"))

    async def aclose(self) -> None:
        """Close the incoming stream."""
        await self._incoming.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.aclose()


class _Answers:
    """The outgoing messages, noted as they leave."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    async def send(self, item: SessionMessage, /) -> None:
        """Send a message."""
        await self._connection.outgoing.send(item)
        self._connection.note_answer(item.message)

    async def aclose(self) -> None:
        """Close the outgoing stream."""
        await self._connection.outgoing.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.aclose()


def _refusal(error: ValidationError) -> types.JSONRPCError:
    """The answer to a line that is no message, with its id as far as it can be made out."""
    problem = error.errors(include_url=False)[0]
    line = problem["input"] if isinstance(problem["input"], str) else ""
    if problem["type"] == "json_invalid":
        code, text = types.PARSE_ERROR, f"This line cannot be read: {problem['msg']}."
        if _HALF_CHARACTER.search(line):
            text += " It may hold half of a surrogate pair: send whole characters."
    else:
        code, text = types.INVALID_REQUEST, "This line is not a JSON-RPC 2.0 message."
    return types.JSONRPCError(jsonrpc="2.0", id=_id_of(line), error=types.ErrorData(code=code, message=text))


def _id_of(line: str) -> int | str | None:
    """The id of a line that the SDK could not read, if Python's more lenient reader can."""
    try:
        message: object = json.loads(line)
    except (ValueError, RecursionError):
        return None
    found = cast("dict[str, object]", message).get("id") if isinstance(message, dict) else None
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None


def _on_signal(shut_down: Callable[[], Awaitable[None]]) -> None:
    """End on SIGTERM and SIGINT after finishing what has begun."""
    if sys.platform == "win32":
        return  # the event loop has no signal handlers there; a kill is safe, the ledger being committed first
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        await shut_down()
        await asyncio.sleep(_WRITING_S)
        # A thread is still blocked reading stdin, and would keep the interpreter from ending.
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: ending.append(loop.create_task(end())))
