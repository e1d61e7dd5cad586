"""The embedding model in use, which can be exchanged while others embed with it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from agemem_mcp.domain.memory import MatrixND
    from agemem_mcp.domain.ports import Embedder


class CurrentEmbedder:
    """An :class:`~agemem_mcp.domain.ports.Embedder` that passes on to the present one.

    A query's vector must meet the index that was made with the same model. So an exchange waits for
    what is being embedded, and what comes after waits for the exchange. For that to be enough, a
    search must reach the index without awaiting anything else once its query is embedded.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()

    @property
    def present(self) -> Embedder:
        """The model itself."""
        return self._embedder

    @property
    def name(self) -> str:
        """The present model's name."""
        return self._embedder.name

    @property
    def dimensions(self) -> int:
        """The present model's D."""
        return self._embedder.dimensions

    async def embed(self, texts: Sequence[str]) -> MatrixND:
        """Embed texts with the present model.

        Raises:
            AssetsMissing: the model's files are not on this machine.
            EmbeddingError: the model failed.
        """
        while not self._open.is_set():
            await self._open.wait()
        self._under_way += 1
        self._idle.clear()
        try:
            return await self._embedder.embed(texts)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    @asynccontextmanager
    async def exchanged_for(self, embedder: Embedder) -> AsyncGenerator[None]:
        """Use another model from the end of the block on, unless that fails; nothing is embedded within it."""
        self._open.clear()
        try:
            await self._idle.wait()
            yield
            self._embedder = embedder
        finally:
            self._open.set()
