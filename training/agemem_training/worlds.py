"""The memory that episodes work on: this repository's own server, in this process or at a URL.

Every trajectory has a scope of its own. Calls go through an MCP client in both cases; what was done is read from the
ledger, or, where a server's ledger is out of reach, put together from the server's own results.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agemem_mcp.adapters.system import RandomIds, SequentialIds, SteppingClock
from agemem_mcp.app import service_gate
from agemem_mcp.domain.memory import Scope, check_namespace
from agemem_mcp.errors import InvalidOperation
from agemem_mcp.settings import load_settings, setting_rows
from agemem_policies.memory import tools_at, tools_in_process
from agemem_training.results_ledger import NotedTools, ResultsLedger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from agemem_mcp.adapters.embedding import VectorCache
    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_mcp.service.gate import ServiceGate
    from agemem_policies.memory import MemoryTools

NAMESPACE_PREFIX = "agemem-episodes"
"""Of what episodes leave on a server at a URL."""

_OF_FILES = {"AGEMEM_ASSETS_DIR", "AGEMEM_HUB_URL", "AGEMEM_EMBEDDING_PATH"}
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_DAYS = 2000
"""Episodes happen within so many days of that, so that no date is learnt by heart."""
_DAYS_APART = 7919
"""From one seed to the next: a prime, so that no date comes again before all of them did."""


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
    vectors: VectorCache | None = None
    """Remembers what was embedded from one world to the next; None for nothing."""
    folder: Path | None = None
    """Where the data folders are made; None for the system's place for passing files."""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further settings of the server, by their names."""
    url: str | None = None
    """Of a server that runs already; all else is then as it is configured."""
    token: str | None = None
    """That it wants."""


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


class UrlWorld:
    """A server at a URL.

    What episodes store stays there, in namespaces ``agemem-episodes.RUN.NAMESPACE`` that no other run has: RUN is drawn
    anew for each. Its settings are the server's own, the budget of contexts included.
    """

    def __init__(self, url: str, token: str | None) -> None:
        """Use a server; :func:`at_url` makes sure that there is one."""
        self._url = url
        self._token = token
        self._run = secrets.token_hex(8)
        self._ledgers: dict[str, ResultsLedger] = {}

    def namespace_of(self, namespace: str) -> str:
        """Where the server keeps what an episode stores."""
        return check_namespace(f"{NAMESPACE_PREFIX}.{self._run}.{namespace}")

    @asynccontextmanager
    async def tools(self, namespace: str) -> AsyncGenerator[MemoryTools]:
        """See :meth:`World.tools`.

        Raises:
            ConfigurationError: the server cannot be reached, or wants another token.
            InvalidOperation: the namespace was used before, or can be none.
        """
        if namespace in self._ledgers:
            msg = f"The namespace {namespace!r} was used before: each episode needs one of its own."
            raise InvalidOperation(msg)
        there = self.namespace_of(namespace)
        ledger = self._ledgers[namespace] = ResultsLedger(Scope(namespace=there))
        async with tools_at(self._url, token=self._token, namespace=there) as tools:
            yield NotedTools(tools.client, ledger)

    async def events(self, namespace: str) -> tuple[MemoryEvent, ...]:
        """See :meth:`World.events`."""
        return tuple(self._ledgers[namespace].events)


def opened(settings: WorldSettings, *, seed: int) -> AbstractAsyncContextManager[World]:
    """Open the memory that episodes work on, where the settings say.

    Args:
        settings: a URL, or how the server in this process is configured.
        seed: of ids and time in this process.

    Raises:
        AgeMemError: it cannot be opened.
    """
    if settings.url is not None:
        return at_url(settings.url, token=settings.token)
    return in_process(settings, seed=seed)


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
            environment=_environment(),
            data_dir=Path(folder),
            context={"budget_tokens": settings.budget_tokens, "tokenizer": settings.tokenizer},
            embedding_threads=settings.threads,
            **settings.extra,
        )
        ids = SequentialIds(seed) if settings.ids == "sequential" else RandomIds(seed)
        clock = SteppingClock(_EPOCH + timedelta(days=seed * _DAYS_APART % _DAYS))
        gate = service_gate(configured, clock=clock, ids=ids, vectors=settings.vectors)
        stack.push_async_callback(gate.close)
        await gate.service()
        yield InProcessWorld(gate)


@asynccontextmanager
async def at_url(url: str, *, token: str | None = None) -> AsyncGenerator[UrlWorld]:
    """Use a server that runs already, such as ``http://127.0.0.1:8000/mcp``; see :class:`UrlWorld`.

    Args:
        url: of its MCP endpoint. It has to offer all tools (``--tools all``).
        token: that it wants.

    Raises:
        ConfigurationError: there is none, or it wants another token.
    """
    world = UrlWorld(url, token)
    # Connected to once, so that a wrong address ends a run before it begins.
    async with tools_at(url, token=token, namespace=world.namespace_of("hello")):
        pass
    yield world


def _environment() -> dict[str, str]:
    """The process's own, but of what concerns a person's memory only where files are.

    An index elsewhere, quotas or a filter's mode would make a run another one than its configuration tells.
    """
    theirs = {name for name, _, _ in setting_rows()} - _OF_FILES
    return {name: value for name, value in os.environ.items() if name not in theirs}


def _scope(namespace: str) -> Scope:
    return Scope(principal="training", namespace=namespace)
