"""Where a chat's memory is: a data folder, a running server, or a folder that vanishes with the chat."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agemem_mcp.adapters.data_folder import DataFolder
from agemem_mcp.app import open_archive, service_gate
from agemem_mcp.cli.asking import NoOwner, ask, reach
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.errors import InvalidOperation, NotFound
from agemem_policies.memory import tools_at, tools_in_process, tools_of_folder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection
    from contextlib import AbstractAsyncContextManager

    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_mcp.settings import Settings
    from agemem_policies.memory import MemoryTools

_HISTORY = "chat_history"
_LISTING = "Memories cannot be listed"
_SEARCHING = "Memories cannot be searched"
_UNDOING = "Changes cannot be taken back"


@dataclass(frozen=True, slots=True)
class Shown:
    """A memory as a chat lists it."""

    memory_id: str
    content: str
    memory_type: str | None = None


class Place(Protocol):
    """A memory, and what a chat does there beside its policy."""

    @property
    def title(self) -> str:
        """What a person is told about where it is."""
        ...

    @property
    def history(self) -> Path | None:
        """Where lines that were typed are kept; None for nowhere."""
        ...

    def tools(self) -> AbstractAsyncContextManager[MemoryTools]:
        """Its tools.

        Raises:
            ConfigurationError: it cannot be used.
        """
        ...

    async def listed(self, limit: int) -> list[Shown]:
        """Its memories, last changed first.

        Raises:
            AgeMemError: they cannot be listed here.
        """
        ...

    async def search(self, query: str, limit: int) -> list[Shown]:
        """What is found there, best first.

        Raises:
            AgeMemError: it cannot be searched.
        """
        ...

    async def history_of(self, memory_ids: Collection[str]) -> list[list[MemoryEvent]]:
        """What was ever done to these memories.

        Raises:
            AgeMemError: that cannot be seen here.
        """
        ...

    async def restore(self, memory_id: str, version: int) -> dict[str, Any]:
        """Bring back an earlier version, and give the memory as it is then.

        Raises:
            AgeMemError: it cannot be brought back.
        """
        ...

    async def delete(self, memory_id: str) -> None:
        """Delete a memory.

        Raises:
            AgeMemError: it cannot be deleted.
        """
        ...


class FolderPlace:
    """A data folder, through the process that owns it, which is started if need be."""

    def __init__(self, settings: Settings) -> None:
        """Of the settings' folder and namespace."""
        self._settings = settings
        self._scope = Scope(namespace=settings.namespace)
        self.title = f"{settings.data_dir}, namespace {settings.namespace}"
        self.history: Path | None = settings.data_dir / _HISTORY

    @asynccontextmanager
    async def tools(self) -> AsyncGenerator[MemoryTools]:
        """See :class:`Place`."""
        await asyncio.to_thread(self._check)
        async with tools_of_folder(self._settings.data_dir, self._settings.namespace) as tools:
            yield tools

    def _check(self) -> None:
        """Ask first as a command does: that is told in full why the folder, or whoever owns it, cannot be used."""
        DataFolder(self._settings.data_dir).check()
        with suppress(NoOwner):
            reach(self._settings, start=False).connection.close()

    async def listed(self, limit: int) -> list[Shown]:
        """See :class:`Place`."""
        async with open_archive(self._settings) as archive:
            records = await archive.memories.list_memories(self._scope, limit=limit)
        return [Shown(one.memory_id, one.content, one.memory_type) for one in records]

    async def search(self, query: str, limit: int) -> list[Shown]:
        """See :class:`Place`."""
        hits = await asyncio.to_thread(ask, self._settings, "search", query=query, limit=limit)
        return [Shown(hit["memory_id"], hit["content"], hit["memory_type"]) for hit in hits]

    async def history_of(self, memory_ids: Collection[str]) -> list[list[MemoryEvent]]:
        """See :class:`Place`."""
        found: list[list[MemoryEvent]] = []
        async with open_archive(self._settings) as archive:
            for memory_id in memory_ids:
                try:
                    found.append(await archive.memories.history(self._scope, memory_id))
                except NotFound:
                    continue
        return found

    async def restore(self, memory_id: str, version: int) -> dict[str, Any]:
        """See :class:`Place`."""
        record: dict[str, Any] = await asyncio.to_thread(
            ask, self._settings, "restore", memory_id=memory_id, version=version
        )
        return record

    async def delete(self, memory_id: str) -> None:
        """See :class:`Place`."""
        await asyncio.to_thread(ask, self._settings, "delete", memory_id=memory_id)


class _WithoutAnOwner:
    """What needs the process that owns the memory, where a chat does not reach it."""

    history: Path | None = None
    _why = ""

    async def listed(self, limit: int) -> list[Shown]:
        """See :class:`Place`."""
        raise self._refused(_LISTING, limit)

    async def search(self, query: str, limit: int) -> list[Shown]:
        """See :class:`Place`."""
        raise self._refused(_SEARCHING, query, limit)

    async def history_of(self, memory_ids: Collection[str]) -> list[list[MemoryEvent]]:
        """See :class:`Place`."""
        raise self._refused(_UNDOING, memory_ids)

    async def restore(self, memory_id: str, version: int) -> dict[str, Any]:
        """See :class:`Place`."""
        raise self._refused(_UNDOING, memory_id, version)

    async def delete(self, memory_id: str) -> None:
        """See :class:`Place`."""
        raise self._refused(_UNDOING, memory_id)

    def _refused(self, what: str, *_: object) -> InvalidOperation:
        return InvalidOperation(f"{what} here: {self._why}")


class ServerPlace(_WithoutAnOwner):
    """A server that runs somewhere, over HTTP."""

    _why = (
        "this chat reaches the memory over HTTP. Where the server runs, `agemem-mcp memories` lists them and "
        "restores earlier versions. /memories QUERY searches."
    )

    def __init__(self, settings: Settings, url: str) -> None:
        """At a URL such as ``http://127.0.0.1:8000/mcp``."""
        self._settings = settings
        self._url = url
        self._tools: MemoryTools | None = None
        self.title = f"{url}, namespace {settings.namespace}"

    @asynccontextmanager
    async def tools(self) -> AsyncGenerator[MemoryTools]:
        """See :class:`Place`."""
        token = self._settings.token
        secret = None if token is None else token.get_secret_value()
        async with tools_at(self._url, token=secret, namespace=self._settings.namespace) as tools:
            self._tools = tools
            yield tools

    async def search(self, query: str, limit: int) -> list[Shown]:
        """See :class:`Place`; by a session of its own, so that the hits do not enter the conversation."""
        if self._tools is None:
            return await super().search(query, limit)
        found = await self._tools.require(
            "Retrieve_memory", {"query": query, "top_k": limit}, session_id=None, actor=Actor.USER
        )
        return [Shown(one["memory_id"], one["content"], one["memory_type"]) for one in found["memories"]]


class PassingPlace(_WithoutAnOwner):
    """A memory of this process, gone when the chat ends."""

    _why = "this memory is gone when the chat ends. Name a --data-dir to keep one."
    title = "a temporary folder"

    def __init__(self, settings: Settings) -> None:
        """With these settings, in a folder of its own."""
        self._settings = settings

    @asynccontextmanager
    async def tools(self) -> AsyncGenerator[MemoryTools]:
        """See :class:`Place`."""
        with tempfile.TemporaryDirectory(prefix="agemem-chat-") as folder:
            # Nothing stays: not in the configured folder, and not in a Qdrant server.
            here = {"data_dir": Path(folder) / "data", "qdrant_url": None}
            gate = service_gate(self._settings.model_copy(update=here))
            try:
                async with tools_in_process(gate, Scope(namespace=self._settings.namespace)) as tools:
                    yield tools
            finally:
                await gate.close()
