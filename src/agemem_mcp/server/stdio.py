"""Serving over stdin and stdout, one client per process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from mcp.server.stdio import stdio_server

from agemem_mcp.server.tools import MemoryServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agemem_mcp.domain.memory import Scope
    from agemem_mcp.server.tools import ToolOffer
    from agemem_mcp.service.gate import ServiceGate


async def serve_stdio(gate: ServiceGate, *, scope: Scope, offer: ToolOffer) -> None:
    """Serve until stdin ends or a signal comes; operations that have begun are finished first."""
    server = MemoryServer(gate, scope_of=lambda _: scope, offer=offer)

    async def shut_down() -> None:
        await server.drain()
        await gate.close()

    _on_signal(shut_down)
    async with stdio_server() as (read_stream, write_stream):
        await server.mcp.run(read_stream, write_stream, server.mcp.create_initialization_options())
    await shut_down()


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
