"""Embedding of texts that are longer than what a model reads.

A sentence encoder cuts off what goes beyond its 256 tokens, so that the rest of a long memory is found
by its words alone. Here such a text is embedded in pieces, and its vector is their mean: still one vector
per memory.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.memory import VectorD
    from agemem_mcp.domain.ports import Embedder

_WHOLE_CHARS = 1000
"""Up to this length a text is left whole: some 170 words of English, 256 tokens."""

_PIECE_CHARS = 700

_PIECES = 16
"""More of a text is left to its words: each piece costs as much as a short memory."""

_BREAKS = (re.compile(r"\n+|(?<=[.!?])\s+|(?<=[。！？])"), re.compile(r"\s+"))  # noqa: RUF001  full stops of Chinese
"""Where to cut: after a sentence or line, else between words, else anywhere."""


async def embed_whole(embedder: Embedder, texts: Sequence[str]) -> list[VectorD]:
    """Embed texts of any length; vectors have unit length, in the order given.

    Raises:
        EmbeddingError: the model failed.
    """
    pieces = [pieces_of(text) for text in texts]
    matrix = await embedder.embed([piece for own in pieces for piece in own])
    vectors: list[VectorD] = []
    start = 0
    for own in pieces:
        rows = matrix[start : start + len(own)]
        start += len(own)
        if len(own) == 1:
            vectors.append(rows[0])
            continue
        mean = rows.mean(axis=0)
        # Not numpy's own: it takes 90 ms to import, and a server that has yet to answer its handshake imports this.
        length = math.sqrt(float(mean @ mean))
        # Pieces that cancel each other out have no mean direction.
        vectors.append(mean / length if length > 0 else rows[0])
    return vectors


def pieces_of(text: str) -> list[str]:
    """Cut a long text where sentences end; a short one is its only piece."""
    pieces: list[str] = []
    rest = text
    while len(rest) > _WHOLE_CHARS and len(pieces) < _PIECES - 1:
        cut = _cut(rest)
        pieces.append(rest[:cut])
        rest = rest[cut:]
    # The last piece may be longer than the model reads.
    return [*pieces, rest]


def _cut(text: str) -> int:
    """Where the first piece ends: the last break within it, if that leaves it half its length."""
    for pattern in _BREAKS:
        ends = [match.end() for match in pattern.finditer(text, 0, _PIECE_CHARS)]
        if ends and ends[-1] >= _PIECE_CHARS // 2:
            return ends[-1]
    return _PIECE_CHARS
