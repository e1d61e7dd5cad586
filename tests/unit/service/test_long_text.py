"""Texts longer than what the model reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.adapters.embedding import FastEmbedEmbedder
from agemem_mcp.service.long_text import embed_whole, pieces_of

if TYPE_CHECKING:
    from pathlib import Path

SENTENCE = "The quick brown fox jumps over the lazy dog near the river bank. "


def test_a_short_text_is_its_only_piece() -> None:
    assert pieces_of(SENTENCE) == [SENTENCE]
    assert pieces_of("x" * 1000) == ["x" * 1000]


def test_a_long_text_is_cut_where_sentences_end() -> None:
    pieces = pieces_of(SENTENCE * 30)
    assert len(pieces) == 3
    assert all(piece.endswith(". ") for piece in pieces)


def test_a_text_without_sentences_is_cut_between_words_and_one_without_words_anywhere() -> None:
    assert all(piece.endswith(" ") for piece in pieces_of("word " * 400)[:-1])
    assert [len(piece) for piece in pieces_of("x" * 2000)] == [700, 700, 600]


@given(st.text(st.sampled_from("ab .\n。"), max_size=50).map(lambda text: text * 60), st.integers(0, 200))
def test_nothing_is_lost_or_doubled(text: str, end: int) -> None:
    whole = text + "y" * end
    pieces = pieces_of(whole)
    assert "".join(pieces) == whole
    assert len(pieces) <= 16
    assert all(len(piece) <= 700 for piece in pieces[:-1])


def test_the_end_of_a_long_text_moves_its_vector(assets_dir: Path) -> None:
    beginning = SENTENCE * 30
    ending = "Melanie adopted a parrot from the shelter in Lisbon. " * 5

    async def work() -> tuple[float, float]:
        embedder = FastEmbedEmbedder(assets_dir / "models" / "all-MiniLM-L6-v2")
        query = (await embedder.embed(["Who adopted a parrot?"]))[0]
        cut_off = (await embedder.embed([beginning + ending]))[0]
        short, whole = await embed_whole(embedder, [SENTENCE, beginning + ending])
        assert np.allclose(short, (await embedder.embed([SENTENCE]))[0])
        assert float(np.linalg.norm(whole)) == pytest.approx(1, abs=1e-5)
        await embedder.close()
        return float(query @ cut_off), float(query @ whole)

    cut_off, whole = asyncio.run(work())
    assert whole > cut_off + 0.1
