"""A client that speaks to the daemon's socket itself, to do what no well-behaved client does."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Self

from agemem_mcp.link.connecting import connect, greeting

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from types import TracebackType

START = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
HANDSHAKE: list[dict[str, Any]] = [
    {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": START},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]


def tool_call(number: int | str, tool: str, **arguments: Any) -> dict[str, Any]:
    """A tool call as it goes over the wire."""
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def lines(messages: Iterable[dict[str, Any]]) -> bytes:
    """Messages as they go over the wire."""
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


class RawClient:
    """An MCP connection to the daemon of a place, which must run."""

    def __init__(self, place: Any) -> None:
        hello = {**greeting("mcp"), "settings": dict(place.env)}
        self.socket: socket.socket = connect(str(place.data), hello, start=False).connection
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(sock=self.socket, limit=2**24)
        self.writer.write(lines(HANDSHAKE))
        assert (await self.answer())["id"] == 0
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        # Not closed in order: what the daemon does not take in would be waited for.
        self.writer.transport.abort()

    async def answer(self) -> dict[str, Any]:
        """The next answer; raises :class:`EOFError` when the daemon is gone."""
        try:
            line = await self.reader.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)

    async def call(self, number: int | str, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed, with nothing else under way."""
        self.writer.write(lines([tool_call(number, tool, **arguments)]))
        answer = await self.answer()
        assert answer["id"] == number, answer
        result: dict[str, Any] = answer["result"]
        assert not result.get("isError"), result
        return result["structuredContent"]
