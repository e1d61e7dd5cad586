"""What processes that meet the same texts tell each other of their embeddings, so that each text is embedded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from agemem_mcp.adapters.embedding import VectorCache

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import VectorD

Vectors: TypeAlias = "dict[bytes, VectorD]"
"""As a :class:`VectorCache` knows them, by hash of model and text."""
_REMEMBERED = 40_000
"""Some 60 MB: three levels of 200 stories have half as many different texts."""


def remembered_vectors() -> VectorCache:
    """What a run remembers of what it embedded: its policies meet the same stories before, during and after."""
    return VectorCache(_REMEMBERED)


class NotingCache(VectorCache):
    """Remembers as much, and tells what was embedded since it was asked last."""

    def __init__(self) -> None:
        """It is empty."""
        super().__init__(_REMEMBERED)
        self._news: Vectors = {}

    def put(self, vectors: Vectors) -> None:
        """Remember vectors that were embedded here."""
        super().put(vectors)
        with self._lock:
            self._news |= vectors

    def hear(self, vectors: Vectors) -> None:
        """Remember vectors that were embedded elsewhere."""
        super().put(vectors)

    def news(self) -> Vectors:
        """What was embedded here since the last time."""
        with self._lock:
            news, self._news = self._news, {}
        return news


@dataclass(slots=True)
class VectorBoard:
    """What was embedded anywhere; each reader is told once what others have put up.

    It forgets nothing: a run's held-out stories are as many before as after.
    """

    _notes: list[tuple[int, Vectors]] = field(default_factory=list["tuple[int, Vectors]"])
    _read: list[int] = field(default_factory=list[int])
    """How many notes each reader has seen."""

    def join(self) -> int:
        """A new reader's number."""
        self._read.append(0)
        return len(self._read) - 1

    def put_up(self, reader: int, vectors: Vectors) -> None:
        """Note what a reader has embedded."""
        if vectors:
            self._notes.append((reader, vectors))

    def news_for(self, reader: int) -> Vectors:
        """What others have put up since the reader was told last."""
        unread = self._notes[self._read[reader] :]
        self._read[reader] = len(self._notes)
        return {key: vector for who, vectors in unread if who != reader for key, vector in vectors.items()}
