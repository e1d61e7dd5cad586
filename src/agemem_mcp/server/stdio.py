"""Serving over stdin and stdout, one client per process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from typing import TYPE_CHECKING, Self

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

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")
_ID = re.compile(r'"id"\s*:\s*(?:(\d{1,15})|"([^"\\]{1,100})")')


async def serve_stdio(gate: ServiceGate, *, scope: Scope, offer: ToolOffer) -> None:
    """Serve until stdin ends or a signal comes; operations that have begun are finished first."""
    server = MemoryServer(gate, scope_of=lambda _: scope, offer=offer)

    async def shut_down() -> None:
        await server.drain()
        await gate.close()

    _on_signal(shut_down)
    async with stdio_server() as (read_stream, write_stream):
        incoming = _Answering(read_stream, write_stream)
        await server.mcp.run(incoming, write_stream, server.mcp.create_initialization_options())
    await shut_down()


class _Answering:
    """The incoming messages; a line that is none is answered with a protocol error.

    The SDK passes such a line over in silence, and whoever sent it waits forever. Clients do send
    them: one that cuts a text within an emoji writes half a surrogate pair, which is not JSON.
    """

    def __init__(
        self,
        incoming: ContextReceiveStream[SessionMessage | Exception],
        outgoing: ContextSendStream[SessionMessage],
    ) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    @property
    def last_context(self) -> object:
        """What the SDK restores around each message."""
        return self._incoming.last_context

    async def receive(self) -> SessionMessage | Exception:
        """The next message; raises :class:`anyio.EndOfStream` when there is none."""
        item = await self._incoming.receive()
        while isinstance(item, ValidationError):
            await self._outgoing.send(SessionMessage(_refusal(item)))
            item = await self._incoming.receive()
        return item

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
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose()


def _refusal(error: ValidationError) -> types.JSONRPCError:
    """The answer to a line that is no message, with its id as far as it can be made out."""
    problem = error.errors(include_url=False)[0]
    line = problem["input"] if isinstance(problem["input"], str) else ""
    found = _ID.search(line)
    request_id: int | str | None = None if found is None else int(found[1]) if found[1] else found[2]
    if problem["type"] == "json_invalid":
        code, text = types.PARSE_ERROR, f"This line cannot be read: {problem['msg']}."
        if _HALF_CHARACTER.search(line):
            text += " It may hold half of a surrogate pair: send whole characters."
    else:
        code, text = types.INVALID_REQUEST, "This line is not a JSON-RPC 2.0 message."
    return types.JSONRPCError(jsonrpc="2.0", id=request_id, error=types.ErrorData(code=code, message=text))


def _on_signal(shut_down: Callable[[], Awaitable[None]]) -> None:
    """End on SIGTERM and SIGINT after finishing what has begun."""
    if sys.platform == "win32":
        return  # the event loop has no signal handlers there; a kill is safe, the ledger being committed first
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        await shut_down()
        # A thread is still blocked reading stdin, and would keep the interpreter from ending.
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: ending.append(loop.create_task(end())))
