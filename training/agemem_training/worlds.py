"""The memory that episodes work on: this repository's own server, in this process or at a URL.

Every trajectory has a scope of its own. Calls go through an MCP client in both cases; what was done is read from the
ledger, or, where a server's ledger is out of reach, put together from the server's own results.
"""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agemem_mcp.adapters.system import RandomIds, SequentialIds, SteppingClock
from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope
from agemem_mcp.settings import load_settings
from agemem_policies.memory import tools_in_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_mcp.service.gate import ServiceGate
    from agemem_policies.memory import MemoryTools

_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_DAYS = 2000
"""Episodes happen within so many days of that, so that no date is learnt by heart."""


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """How the server of an episode is configured."""

    budget_tokens: int = 8192
    """T_max: of a context, as the server counts."""
    tokenizer: str = "o200k_base"
    """What it counts with: a name, or the path of the policy's own ``tokenizer.json``."""
    ids: str = "random"
    """``random`` or ``sequential``."""
    threads: int | None = None
    """For embedding."""
    folder: Path | None = None
    """Where the data folders are made; None for the system's place for passing files."""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further settings of the server, by their names."""


class World(Protocol):
    """A memory server that is open."""

    def tools(self, namespace: str) -> AbstractAsyncContextManager[MemoryTools]:
        """The tools of one scope."""
        ...

    async def events(self, namespace: str) -> tuple[MemoryEvent, ...]:
        """Everything that the ledger says of the scope, oldest first."""
        ...


class InProcessWorld:
    """The server in this process, over an empty data folder."""

    def __init__(self, gate: ServiceGate) -> None:
        """Use a service; :func:`in_process` opens one."""
        self._gate = gate

    def tools(self, namespace: str) -> AbstractAsyncContextManager[MemoryTools]:
        """See :meth:`World.tools`."""
        return tools_in_process(self._gate, _scope(namespace))

    async def events(self, namespace: str) -> tuple[MemoryEvent, ...]:
        """See :meth:`World.events`."""
        service = await self._gate.service()
        return tuple(await service.long_term.events(_scope(namespace)))


@asynccontextmanager
async def in_process(settings: WorldSettings, *, seed: int) -> AsyncGenerator[InProcessWorld]:
    """Open an empty memory; it vanishes at the end.

    Args:
        settings: of the server.
        seed: of ids and time.

    Raises:
        AgeMemError: it cannot be opened.
    """
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="agemem-episodes-", dir=settings.folder))
        configured = load_settings(
            data_dir=Path(folder),
            context={"budget_tokens": settings.budget_tokens, "tokenizer": settings.tokenizer},
            embedding_threads=settings.threads,
            **settings.extra,
        )
        ids = SequentialIds(seed) if settings.ids == "sequential" else RandomIds(seed)
        clock = SteppingClock(_EPOCH + timedelta(days=seed * 7919 % _DAYS))
        gate = service_gate(configured, clock=clock, ids=ids)
        stack.push_async_callback(gate.close)
        await gate.service()
        yield InProcessWorld(gate)


def _scope(namespace: str) -> Scope:
    return Scope(principal="training", namespace=namespace)
