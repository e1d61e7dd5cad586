"""Agents on a real memory without a model, through the MCP server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope
from agemem_policies.memory import MemoryTools, tools_in_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agemem_mcp.service.gate import ServiceGate
    from agemem_mcp.settings import Settings


@asynccontextmanager
async def opened_gate(settings: Settings) -> AsyncGenerator[ServiceGate]:
    """A memory, closed at the end."""
    gate = service_gate(settings)
    try:
        yield gate
    finally:
        await gate.close()


@pytest.fixture
async def gate(lexical_settings: Settings) -> AsyncGenerator[ServiceGate]:
    """A memory that finds by words and estimates tokens."""
    async with opened_gate(lexical_settings) as gate:
        yield gate


@pytest.fixture
async def tools(gate: ServiceGate) -> AsyncGenerator[MemoryTools]:
    """Its tools, in the default namespace."""
    opened: asyncio.Future[MemoryTools] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        async with tools_in_process(gate, Scope()) as tools:
            opened.set_result(tools)
            await over.wait()

    # In a task of its own: the client must be left in the task that it was entered in.
    holding = asyncio.create_task(hold())
    yield await opened
    over.set()
    await holding
