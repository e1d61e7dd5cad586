"""The backends that the contract tests run against."""

from __future__ import annotations

import os
import uuid
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from qdrant_client import AsyncQdrantClient

from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
from agemem_mcp.adapters.qdrant_remote import QdrantRemoteIndex

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agemem_mcp.domain.ports import MemoryIndex

DIMENSIONS = 8


class IndexBackend(Protocol):
    """One place for one index, which can be opened again after it was closed."""

    async def open(self, **changed: Any) -> MemoryIndex:
        """Open the index; ``changed`` overrides what it is opened with."""
        ...


def _settings(changed: dict[str, Any]) -> dict[str, Any]:
    return {"embedding": "test-model", "dimensions": DIMENSIONS, "ledger_id": "ledger-1", **changed}


@dataclass
class EdgeBackend:
    """The embedded index in a temporary folder."""

    directory: Path
    opened: list[MemoryIndex] = field(default_factory=list["MemoryIndex"])

    async def open(self, **changed: Any) -> MemoryIndex:
        """Open the folder."""
        index = await QdrantEdgeIndex.open(self.directory, **_settings(changed))
        self.opened.append(index)
        return index


@dataclass
class RemoteBackend:
    """A collection of its own, in local mode or on a server."""

    client: AsyncQdrantClient
    collection: str = field(default_factory=lambda: f"agemem-test-{uuid.uuid4().hex}")
    opened: list[MemoryIndex] = field(default_factory=list["MemoryIndex"])

    async def open(self, **changed: Any) -> MemoryIndex:
        """Open the collection."""
        with warnings.catch_warnings():
            # Local mode says that payload indexes have no effect in it.
            warnings.simplefilter("ignore", UserWarning)
            index = await QdrantRemoteIndex.open(self.client, collection=self.collection, **_settings(changed))
        self.opened.append(index)
        return index


@pytest.fixture(params=["edge", "remote_local_mode", "remote_server"])
async def index_backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IndexBackend]:
    """Each place an index can be in."""
    if request.param == "edge":
        edge = EdgeBackend(tmp_path / "index")
        yield edge
        for index in edge.opened:
            await index.close()
        return
    if request.param == "remote_local_mode":
        client = AsyncQdrantClient(location=":memory:")
    elif "QDRANT_URL" in os.environ:
        client = AsyncQdrantClient(url=os.environ["QDRANT_URL"], api_key=os.environ.get("QDRANT_API_KEY"))
    else:
        pytest.skip("QDRANT_URL names no live Qdrant server")
    remote = RemoteBackend(client)
    yield remote
    await client.delete_collection(remote.collection)
    await client.close()


@pytest.fixture
async def index(index_backend: IndexBackend) -> MemoryIndex:
    """An empty index with vectors."""
    return await index_backend.open()
