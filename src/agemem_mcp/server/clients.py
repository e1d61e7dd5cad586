"""MCP clients of a memory server: of one in this process, or at a URL."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

from mcp.client.client import Client

from agemem_mcp.server.tools import NAMESPACE_HEADER, MemoryServer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agemem_mcp.domain.memory import Scope
    from agemem_mcp.server.turns import Turns
    from agemem_mcp.service.gate import ServiceGate

_TIMEOUT_S = 120


@asynccontextmanager
async def client_in_process(gate: ServiceGate, scope: Scope, *, turns: Turns | None = None) -> AsyncGenerator[Client]:
    """A client of a server of its own over a memory of this process.

    Args:
        gate: where the service comes from.
        scope: all that can be reached.
        turns: whose operation is next, where others work on the same service.
    """
    server = MemoryServer(gate, scope_of=lambda _: scope, turns=turns)
    try:
        async with Client(server.mcp) as client:
            yield client
    finally:
        await server.drain()


@asynccontextmanager
async def client_at(url: str, *, token: str | None, namespace: str) -> AsyncGenerator[Client]:
    """A client of a server such as ``http://127.0.0.1:8000/mcp``; what fails may come in groups (:func:`cause_of`)."""
    import httpx2  # noqa: PLC0415  the SDK's own HTTP client; a memory of this process does not need it
    from mcp.client.streamable_http import streamable_http_client  # noqa: PLC0415  as above

    headers = {NAMESPACE_HEADER: namespace}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    async with (
        httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT_S) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def cause_of(error: BaseException) -> BaseException:
    """What lies within the groups that a client's task groups wrap around whatever happens within them."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error
