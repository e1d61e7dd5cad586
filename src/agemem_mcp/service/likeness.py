"""All pairs of similar texts among many, by meaning or by words."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from agemem_mcp.domain.memory import MatrixND

    IndicesK: TypeAlias = NDArray[np.int64]
    ScoresK: TypeAlias = NDArray[np.float64]
    PairsOf: TypeAlias = Callable[[IndicesK, float], Iterator[tuple[int, IndicesK, ScoresK]]]
    """Rows to compare (ascending) and a floor → each row with the later rows at least as similar, and how similar."""

_WORD = re.compile(r"\w+")
_TRIFLE = 1e-9
_ROWS = 64
"""Rows compared at a time: few enough that a block over 100,000 others stays at 25 MB."""


def by_meaning(vectors_ND: MatrixND) -> PairsOf:
    """Pairs by the cosine of their vectors, all of unit length; exact, every row against every later one."""

    def pairs(rows_K: IndicesK, floor: float) -> Iterator[tuple[int, IndicesK, ScoresK]]:
        for start in range(0, len(rows_K), _ROWS):
            later_K = rows_K[start:]
            scores_RK = vectors_ND[later_K[:_ROWS]] @ vectors_ND[later_K].T
            first, second = np.nonzero(np.triu(scores_RK >= floor, k=1))
            for row in np.unique(first).tolist():
                columns = second[first == row]
                # Rounding may leave a cosine just above 1.
                yield int(later_K[row]), later_K[columns], np.minimum(scores_RK[row, columns], 1.0).astype(np.float64)

    return pairs


def by_words(texts: Sequence[str]) -> PairsOf:
    """Pairs by the share of words they have in common (Jaccard); exact.

    Two sets can only reach a share of ``t`` if they have a word in common among the rarest
    ``n - ceil(t * n) + 1`` of their n words (prefix filtering: Chaudhuri et al., ICDE 2006). So few
    of all pairs are looked at.
    """
    words = [frozenset(_WORD.findall(text.lower())) for text in texts]
    frequency = Counter(word for one in words for word in one)
    # The order of equally rare words must be the same everywhere.
    ranked = [sorted(one, key=lambda word: (frequency[word], word)) for one in words]

    def pairs(rows_K: IndicesK, floor: float) -> Iterator[tuple[int, IndicesK, ScoresK]]:
        rows: list[int] = rows_K.tolist()
        earlier: dict[str, list[int]] = {}
        found: dict[int, list[tuple[int, float]]] = {row: [] for row in rows}
        for row in rows:
            # Less a trifle: a product that rounding left just above a whole number must not cut the prefix short.
            prefix = ranked[row][: len(ranked[row]) - math.ceil(floor * len(ranked[row]) - _TRIFLE) + 1]
            for other in {other for word in prefix for other in earlier.get(word, ())}:
                score = len(words[row] & words[other]) / len(words[row] | words[other])
                if score >= floor:
                    found[other].append((row, score))
            for word in prefix:
                earlier.setdefault(word, []).append(row)
        for row in rows:
            if found[row]:
                others, scores = zip(*found[row], strict=True)
                yield row, np.array(others), np.array(scores)

    return pairs
