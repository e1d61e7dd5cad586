"""How well the messages of a context match what a filter's criteria describe.

``Filter_context`` removes every message whose score reaches a threshold (AgeMem, section 3.2). The
paper scores with one cosine of the whole criteria against the whole message; a small encoder seldom
reaches its 0.6 that way. ``FilterMode.HYBRID`` instead

1. splits the criteria into topics, reading "Simon and Garfunkel" as one or two, whichever the
   context answers better;
2. takes, per topic and message, the share of the topic's words found in the message (rare words
   count more) and the cosine by which the message stands out from its context;
3. weighs the two by what the topic is. A name that occurs in the context is meant literally, so
   words must agree; a description is meant by its sense, so the cosine decides alone.

Weights come from HotpotQA's training sample and the even items of
``benchmarks/filter_no_shared_words.json``; ``benchmarks/filter_context.md`` has the figures.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import log1p
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np
from py_rust_stemmers import SnowballStemmer  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]

from agemem_mcp.domain.modes import FilterMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from agemem_mcp.domain.ports import Embedder

    MatrixKN: TypeAlias = NDArray[np.float64]
    """One value per topic and text."""


DEFAULT_THETA: Final[Mapping[FilterMode, float]] = MappingProxyType(
    {FilterMode.HYBRID: 0.6, FilterMode.PAPER: 0.6, FilterMode.LEXICAL: 0.85}
)
"""From this score on a message is removed.

Hybrid scores are probabilities. 0.5 has the best F1 on HotpotQA's training sample, but losing what is needed costs more
than keeping what is not: 0.6 is the first step at which every phrasing removes at most 2 % of the supporting paragraphs
there. The paper's 0.6 (section 3.2) is a cosine.
"""

_NAME_WORDS: Final = 6.5
_NAME_COSINE: Final = 14.0
_NAME_BIAS: Final = -10.9
_SENSE_COSINE: Final = 15.0
_SENSE_BIAS: Final = -1.3
"""Log-odds that a message is meant: per unit of word coverage, per unit of cosine above the context's, and at 0."""

_NOTHING: Final = -20.0
"""Log-odds of a topic without words, or of a reading that no message supports."""

_COVERED_LOW: Final = 0.3
_COVERED_FULL: Final = 0.6
"""Best coverage in the context below which a topic is not taken literally, and from which it is."""

_PRIOR_COSINE: Final = 0.1
_PRIOR_TEXTS: Final = 3
_BASELINE_MAX: Final = 0.5
"""A context's usual cosine, as if three more unrelated messages were in it, and no more than this: where
every message is on the topic, none stands out, and all must still be found."""

_PARENTHESISED_WEIGHT: Final = 0.1
"""A disambiguation such as "(film)" tells little, and the message often does not repeat it."""

_MAX_PIECES: Final = 16
"""Parts of one message embedded at most, so that a long log costs no more than a page of prose."""

_MAX_JOINED: Final = 3
"""Listed items read as one name at most, as in "Bosnia, Serbia and Montenegro"."""

_JOINED_COVERAGE: Final = 0.85
"""Listed items are one name only where some message holds so much of their words."""

_CJK: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD: Final = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
"""A word; scripts without spaces count each character."""

_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_PARENTHESES: Final = re.compile(r"\(([^()]*)\)")
_POSSESSIVE: Final = re.compile(r"['\u2019]s\b")

_HARD_SEPARATOR: Final = re.compile(r"\s*(?:[;\n]|\s[•|/]\s)\s*(?:[-*•]\s+|\d{1,2}[.)]\s+)?")
_SOFT_SEPARATOR: Final = re.compile(
    r"\s*,\s+(?:and|or|as well as)\s+(?:about\s+)?|\s*,\s+|\s+(?:and|or|as well as|&)\s+(?:about\s+)?", re.IGNORECASE
)
_LEAD: Final = re.compile(
    r"""^\W*(?:(?:please|remove|delete|drop|discard|filter|out|forget|all|any|every|the|those|other|irrelevant
        |unrelated|useless|outdated|anything|everything|something|stuff|content|context|text|info|information|details?
        |facts?|messages?|paragraphs?|passages?|articles?|distractors?|parts?|chat|talk|discussions?|mentions?|references?
        |that|which|is|are|was|were|has|have|to|do)\s+)*?
        (?:about|regarding|concerning|describing|discussing|mentioning
        |(?:related|relating|pertaining|referring|unrelated)\s+to|having\s+to\s+do\s+with
        |(?<=\s)(?:on|of|to|with|describes?|discuss(?:es)?|mentions?))(?:\s+|$)""",
    re.IGNORECASE | re.VERBOSE,
)
"""The wrapping of a request ("any messages about ..."), which says nothing of the topic."""

_TAIL: Final = re.compile(
    r",?\s+(?:that|which|as they|because they|since they)\s+(?:is|are|do|does|have|has|did|were|was|will)"
    r"(?:n['\u2019]t|\s+(?:not?|all|now|no longer|irrelevant|unrelated|off-topic|useless|outdated))\b.*$"
    r"|,?\s+(?:except|excluding|other than|apart from|but not|but keep|unless)\b.*$",
    re.IGNORECASE | re.MULTILINE,
)
"""Reasons, which describe no message, and exceptions, which must not be read as what to remove."""

_GENERIC_WORDS: Final = """
all any anything content context everything info information message messages something stuff topic topics user users
"""
"""Words for messages as such: alone they describe none in particular, and remove none."""

_STOP_WORDS: Final = """
a about an and are as at be been but by for from had has have how i if in into is it its my no not of off on or our over
s such t than that the their them these they this those to under was we were what when which who whose with you your
"""
"""Words that name no topic, used only when a topic has no others ("The Who")."""

# The package has no stubs.
_stem_english: Final = cast("Callable[[str], str]", SnowballStemmer("english").stem_word)


async def similarities(
    criteria: str, texts: Sequence[str], *, mode: FilterMode, embedder: Embedder | None
) -> list[float]:
    """Score how well each text matches ``criteria``; compare with ``DEFAULT_THETA[mode]``.

    A text's score depends on the other texts: what all of them share sets none of them apart.

    Args:
        criteria: what to remove, in any words.
        texts: the contents of the context's messages.
        mode: how to compare.
        embedder: None for words alone, whatever the mode. The scores then suit the threshold of
            ``FilterMode.LEXICAL``.

    Returns:
        One finite score per text, in [0, 1] (a cosine, in [-1, 1], for ``FilterMode.PAPER``).

    Raises:
        AssetsMissing: the embedding model's files are not on this machine.
        EmbeddingError: the embedding model failed.
    """
    if not texts:
        return []
    clean = [_clean(text) for text in texts]
    if mode is FilterMode.PAPER and embedder is not None:
        vectors = await embedder.embed([_clean(criteria), *clean])
        return [float(score) for score in vectors[1:] @ vectors[0]]
    lists = list(topic_lists(_clean(criteria)))
    topics = [topic for one in lists for topic in one]
    if not topics:
        return [0.0] * len(texts)
    context = _Context.of(clean)
    coverage_KN = np.array([context.coverage(topic) for topic in topics])
    possible_K = np.array(
        [
            bool(topic.weights) and (topic.length == 1 or row.max() >= _JOINED_COVERAGE)
            for topic, row in zip(topics, coverage_KN, strict=True)
        ]
    )
    if mode is FilterMode.LEXICAL or embedder is None:
        coverage_KN[~possible_K] = 0.0
        chosen = _best_reading(lists, coverage_KN)
        return [float(score) for score in coverage_KN[chosen].max(axis=0)]
    cosine_KN = await _cosines([topic.text for topic in topics], clean, embedder)
    literal_K = np.array(
        [context.literalness(topic, float(row.max())) for topic, row in zip(topics, coverage_KN, strict=True)]
    )
    odds_KN = _log_odds(coverage_KN, cosine_KN, literal_K)
    # The usual encoder knows English alone: of other scripts only the words can be trusted.
    unread_K = np.array([topic.unreadable for topic in topics])
    odds_KN[unread_K] = _NAME_COSINE * (coverage_KN[unread_K] - DEFAULT_THETA[FilterMode.LEXICAL])
    odds_KN[~possible_K] = _NOTHING
    chosen = _best_reading(lists, odds_KN)
    return [float(score) for score in 1 / (1 + np.exp(-odds_KN[chosen].max(axis=0)))]


def _log_odds(coverage_KN: MatrixKN, cosine_KN: MatrixKN, literal_K: NDArray[np.float64]) -> MatrixKN:
    """Log-odds that each text is meant by each topic."""
    texts = cosine_KN.shape[1]
    usual_K = (cosine_KN.sum(axis=1) + _PRIOR_TEXTS * _PRIOR_COSINE) / (texts + _PRIOR_TEXTS)
    above_KN = cosine_KN - np.minimum(usual_K, _BASELINE_MAX)[:, None]
    name_KN = _NAME_WORDS * coverage_KN + _NAME_COSINE * above_KN + _NAME_BIAS
    sense_KN = _SENSE_COSINE * above_KN + _SENSE_BIAS
    return literal_K[:, None] * name_KN + (1 - literal_K[:, None]) * sense_KN


async def _cosines(topics: Sequence[str], texts: Sequence[str], embedder: Embedder) -> MatrixKN:
    """Cosine of each topic with each text: the mean of the whole text's and of its best sentence's."""
    pieces = [_pieces(text) for text in texts]
    flat = [piece for one in pieces for piece in one]
    # One call over distinct texts: a message of one sentence is its own best sentence.
    distinct = list(dict.fromkeys([*topics, *texts, *flat]))
    row = {text: number for number, text in enumerate(distinct)}
    vectors = np.asarray(await embedder.embed(distinct), dtype=np.float64)
    topics_KD = vectors[[row[topic] for topic in topics]]
    whole_KN = topics_KD @ vectors[[row[text] for text in texts]].T
    piece_KP = topics_KD @ vectors[[row[piece] for piece in flat]].T
    starts = np.cumsum([0, *(len(one) for one in pieces[:-1])])
    return (whole_KN + np.maximum.reduceat(piece_KP, starts, axis=1)) / 2


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing that the criteria may name: ``length`` items of a list, from ``start`` on, read as one."""

    text: str
    start: int
    length: int
    weights: Mapping[str, float]
    """How much each stem counts before its rarity."""
    capitalised: frozenset[str]
    """Stems written with a capital or digit; a first capital may be the sentence's, not the name's."""

    @property
    def unreadable(self) -> bool:
        """Whether no word is in a script that an English model reads."""
        return not any("a" <= character <= "z" or character.isdigit() for word in self.weights for character in word)


def topic_lists(criteria: str) -> Iterator[list[Topic]]:
    """The lists that criteria are made of, each as all its readings' topics.

    A semicolon or line break always separates; a comma, "and" or "or" may, or may belong to a name.
    """
    # Single spaces keep the separators' patterns linear in the length of the criteria.
    body = _TAIL.sub("", "\n" + "\n".join(" ".join(line.split()) for line in criteria.splitlines()))
    for part in _HARD_SEPARATOR.split(body):
        items, separators = _soft_split(_LEAD.sub("", part.strip(" \t.:-*•")))
        topics: list[Topic] = []
        for start in range(len(items)):
            joined = ""
            for length in range(1, min(_MAX_JOINED, len(items) - start) + 1):
                end = start + length - 1
                joined += (separators[end - 1] if length > 1 else "") + items[end]
                topics.append(_topic(joined, start, length))
        # The items that name nothing stay in a list that names something, for its readings to add up.
        if any(topic.weights for topic in topics):
            yield topics


def _soft_split(part: str) -> tuple[list[str], list[str]]:
    """The items of a list and what stood between them; parentheses are not split."""
    guarded = [match.span() for match in _PARENTHESES.finditer(part)]
    cuts = [
        match.span()
        for match in _SOFT_SEPARATOR.finditer(part)
        if not any(low <= match.start() < high for low, high in guarded)
    ]
    borders = [(0, 0), *cuts, (len(part), len(part))]
    items = [part[left[1] : right[0]].strip() for left, right in pairwise(borders)]
    return items, [part[low:high] for low, high in cuts]


def _topic(text: str, start: int, length: int) -> Topic:
    main = [token for token in _tokens(_PARENTHESES.sub(" ", text)) if token.stem not in _GENERIC_STEMS]
    aside = [token for token in _tokens(" ".join(_PARENTHESES.findall(text))) if token.stem not in _STOP_STEMS]
    # Stop words alone are a name or nothing.
    telling = [token for token in main if token.stem not in _STOP_STEMS] or [token for token in main if token.capital]
    weights = (
        {token.stem: _PARENTHESISED_WEIGHT for token in aside}
        if telling
        else dict.fromkeys((token.stem for token in aside), 1.0)
    )
    weights.update({token.stem: 1.0 for token in telling})
    return Topic(text, start, length, weights, frozenset(token.stem for token in telling if token.capital))


def _best_reading(lists: Sequence[Sequence[Topic]], score_KN: MatrixKN) -> list[int]:
    """Rows of the topics that the context answers best, covering each list's items once."""
    chosen: list[int] = []
    offset = 0
    for topics in lists:
        best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
        for number, topic in sorted(enumerate(topics, offset), key=lambda one: (one[1].start, -one[1].length)):
            before, rows = best[topic.start]
            total = before + topic.length * float(score_KN[number].max())
            end = topic.start + topic.length
            # On a tie the longer name stays: it is the narrower reading, and removes less.
            if end not in best or total > best[end][0]:
                best[end] = (total, [*rows, number])
        chosen += best[max(best)][1]
        offset += len(topics)
    return chosen


@dataclass(frozen=True, slots=True)
class _Token:
    stem: str
    capital: bool
    """Starts with a capital or holds a digit or underscore, as names and identifiers do."""
    first: bool
    """Opens a sentence, where a capital tells nothing."""


@dataclass(frozen=True, slots=True)
class _Context:
    """The words of the texts being compared."""

    words: tuple[frozenset[str], ...]
    document_counts: Counter[str]
    capital_counts: Counter[str]
    """Occurrences within a sentence, written as a name."""
    plain_counts: Counter[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> _Context:
        tokens = [_tokens(text) for text in texts]
        words = tuple(frozenset(token.stem for token in one) for one in tokens)
        inner = [token for one in tokens for token in one if not token.first]
        return cls(
            words,
            Counter(stem for one in words for stem in one),
            Counter(token.stem for token in inner if token.capital),
            Counter(token.stem for token in inner if not token.capital),
        )

    def coverage(self, topic: Topic) -> list[float]:
        """Per text, the share of the topic's words in it, each weighted by its rarity in the context."""
        # A disambiguation that occurs nowhere tells no text from another.
        weights = {
            stem: weight * self._rarity(stem)
            for stem, weight in topic.weights.items()
            if weight == 1.0 or self.document_counts[stem]
        }
        whole = sum(weights.values()) or 1.0
        return [sum(weight for stem, weight in weights.items() if stem in one) / whole for one in self.words]

    def _rarity(self, stem: str) -> float:
        """Inverse document frequency, as BM25 smooths it."""
        count = self.document_counts[stem]
        return log1p((len(self.words) - count + 0.5) / (count + 0.5))

    def literalness(self, topic: Topic, best_coverage: float) -> float:
        """How far a topic is a name that occurs in the context, 0 to 1.

        Texts tell more than the criteria, whose writer may not use capitals.
        """
        main = [stem for stem, weight in topic.weights.items() if weight == 1.0]
        if not main:
            return 0.0
        named = sum(self._named(stem, capital=stem in topic.capitalised) for stem in main) / len(main)
        covered = (best_coverage - _COVERED_LOW) / (_COVERED_FULL - _COVERED_LOW)
        # A name may hold common words ("1986 football team"): a quarter of its words suffices.
        return min(max(covered, 0.0), 1.0) * min(4 * named, 1.0)

    def _named(self, stem: str, *, capital: bool) -> float:
        inner = self.capital_counts[stem] + self.plain_counts[stem]
        if inner:
            return self.capital_counts[stem] / inner
        return float(capital and self.document_counts[stem] > 0)


def _clean(text: str) -> str:
    """Without lone surrogates and NULs, which tokenizers refuse or cut at."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def _pieces(text: str) -> list[str]:
    """The sentences or lines of a text, packed into at most ``_MAX_PIECES``."""
    sentences = [piece for piece in _SENTENCE_END.split(text) if piece.strip()] or [text]
    per_piece = -(-len(sentences) // _MAX_PIECES)
    return [" ".join(sentences[start : start + per_piece]) for start in range(0, len(sentences), per_piece)]


def _tokens(text: str) -> list[_Token]:
    return [
        _Token(_stem(word), word[0].isupper() or any(c.isdigit() or c == "_" for c in word), number == 0)
        for sentence in _SENTENCE_END.split(text)
        for number, word in enumerate(_WORD.findall(_POSSESSIVE.sub("", sentence)))
    ]


@lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    """Word without case, accents and English endings."""
    folded = "".join(c for c in unicodedata.normalize("NFKD", word.casefold()) if not unicodedata.combining(c))
    return _stem_english(folded)


_GENERIC_STEMS: Final = frozenset(_stem(word) for word in _GENERIC_WORDS.split())
_STOP_STEMS: Final = frozenset(_stem(word) for word in _STOP_WORDS.split())
