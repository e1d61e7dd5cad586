"""Serving this process's own stdin and stdout, as one more client."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from agemem_mcp.link.pipe import from_client, to_client

if TYPE_CHECKING:
    from agemem_mcp.owner.owner import Owner

_FLUSHING_S = 5.0


async def serve_standard_streams(owner: Owner) -> None:
    """Serve until stdin ends or the owner does.

    Two threads pass the bytes on, as a pipe's do: event loops cannot read every kind of stdin.
    """
    ours, theirs = socket.socketpair()
    writing = threading.Thread(target=_write, args=(theirs,), daemon=True)
    writing.start()
    threading.Thread(target=_read, args=(theirs,), daemon=True).start()
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        await owner.serve_stream(reader, writer)
    finally:
        writer.close()
        # The last answers are still on their way to stdout.
        await asyncio.to_thread(writing.join, _FLUSHING_S)


def _read(connection: socket.socket) -> None:
    with suppress(OSError):
        from_client(connection)
        connection.shutdown(socket.SHUT_WR)


def _write(connection: socket.socket) -> None:
    # Whoever closed stdout is gone; the end of stdin follows.
    with suppress(OSError):
        to_client(connection)
