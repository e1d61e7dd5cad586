"""The embedding model that is loaded, and exchanging it for another."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from agemem_mcp.adapters.embedding import FastEmbedEmbedder

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from agemem_mcp.adapters.embedding import VectorCache

NO_MODEL = "none"


class Models:
    """Makes embedding models, and releases those that are no longer used."""

    def __init__(self, default_folder: Path, *, threads: int | None, vectors: VectorCache | None = None) -> None:
        """No model is made yet.

        Args:
            default_folder: where the files of the default model are.
            threads: see :class:`FastEmbedEmbedder`.
            vectors: remembers vectors of all models; None for one each.
        """
        self._default_folder = default_folder
        self._threads = threads
        self._vectors = vectors
        self.present: FastEmbedEmbedder | None = None
        self.in_use: Callable[[], object] = lambda: self.present
        """Tells which model is embedded with; set by whoever exchanges them."""

    def make(self, name: str, folder: str | None) -> FastEmbedEmbedder | None:
        """A model by name, from a folder or from where the default one's files are; None for ``none``."""
        if name == NO_MODEL:
            return None
        return FastEmbedEmbedder(
            self._default_folder if folder is None else Path(folder),
            model_name=name,
            cache=self._vectors,
            threads=self._threads,
        )

    @asynccontextmanager
    async def exchanged(self, name: str, folder: str | None) -> AsyncGenerator[FastEmbedEmbedder | None]:
        """Another model. If it is in use when the context ends, however it ends, it takes the present one's place."""
        model = self.make(name, folder)
        try:
            yield model
        finally:
            unused = model
            if self.in_use() is model:
                self.present, unused = model, self.present
            if unused is not None:
                await unused.close()

    async def close(self) -> None:
        """Release the present model."""
        if self.present is not None:
            await self.present.close()
