"""Scores of messages against filter criteria."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agemem_mcp.service.relevance import DEFAULT_THETA, FilterMode, similarities, topic_lists

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ANY_TEXT = st.text(st.characters(), max_size=80)
"""Every code point, lone surrogates included."""

DUO = [
    "Simon and Garfunkel recorded Bridge over Troubled Water in 1969.",
    "The baker Simon Miller sells bread on Tuesdays.",
    "Garfunkel acted in the film Catch-22 after the duo broke up.",
    "The ferry leaves at nine.",
]


class LetterEmbedder:
    """Plumbing only: a text's vector counts its letters, so that equal texts have a cosine of 1."""

    name = "letters"
    dimensions = 27

    def __init__(self) -> None:
        """Remember every call."""
        self.calls: list[list[str]] = []

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Letter counts, unit length."""
        self.calls.append(list(texts))
        rows = np.array(
            [[1, *(text.lower().count(chr(code)) for code in range(97, 123))] for text in texts], np.float32
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


async def removed(criteria: str, texts: Sequence[str]) -> set[int]:
    """What the filter takes out by words alone."""
    scores = await similarities(criteria, texts, mode=FilterMode.LEXICAL, embedder=None)
    return {number for number, score in enumerate(scores) if score >= DEFAULT_THETA[FilterMode.LEXICAL]}


async def test_a_message_that_holds_the_named_words_is_removed_and_others_stay() -> None:
    assert await removed("Simon Miller", DUO) == {1}


@pytest.mark.parametrize(
    "criteria",
    [
        "Catch-22; ferry",
        "Catch-22, the ferry",
        "Catch-22 and the ferry",
        "anything about Catch-22 or the ferry",
        "Please remove all messages about Catch-22 and about the ferry",
        "Irrelevant messages about the ferry and Catch-22 that do not help with the question.",
        "Remove messages about:\n- Catch-22\n- the ferry",
        "1. Catch-22\n2. the ferry",
    ],
)
async def test_topics_are_found_however_the_list_is_written(criteria: str) -> None:
    assert await removed(criteria, DUO) == {2, 3}


async def test_and_within_a_name_that_occurs_does_not_split_it() -> None:
    assert await removed("Simon and Garfunkel", DUO) == {0}


async def test_and_between_names_that_never_occur_together_splits_them() -> None:
    assert await removed("Simon and Garfunkel", DUO[1:]) == {0, 1}


async def test_a_comma_within_a_place_name_does_not_remove_all_of_the_state() -> None:
    texts = ["Leland is a town in North Carolina.", "A storm hit North Carolina.", "North Carolina elected a governor."]
    assert await removed("Leland, North Carolina", texts) == {0}


async def test_a_disambiguation_in_parentheses_need_not_occur() -> None:
    texts = ["Chicago is a musical about two murderesses.", "The hotel has a pool."]
    assert await removed("Chicago (film)", texts) == {0}


@pytest.mark.parametrize(
    ("criteria", "text"), [("cats", "My cat sleeps."), ("José", "I met JOSE."), ("Ann's", "Ann left")]
)
async def test_endings_accents_and_case_do_not_matter(criteria: str, text: str) -> None:
    assert await removed(criteria, [text, "It rains."]) == {0}


@pytest.mark.parametrize("criteria", ["天气", "погода", "天气; 旅行"])
async def test_words_of_other_scripts_are_compared(criteria: str) -> None:
    texts = ["今天天气很好", "Завтра хорошая погода", "你好", "Привет"]
    assert await removed(criteria, texts) == ({1} if criteria == "погода" else {0})


async def test_a_name_made_of_stop_words_is_found_among_texts_without_them() -> None:
    assert await removed("The Who", ["Who wrote the song for The Who?", "It rains in Oslo."]) == {0}


@pytest.mark.parametrize(
    "criteria", ["", "  \n;;,", "\0", "🙂", "the of", "everything", "everything except the recipe", "()"]
)
@pytest.mark.parametrize("mode", FilterMode)
async def test_criteria_that_name_nothing_remove_nothing(criteria: str, mode: FilterMode) -> None:
    texts = ["the recipe for bread of the day 🙂", "Everything is fine."]
    embedder = None if mode is FilterMode.PAPER else LetterEmbedder()
    scores = await similarities(criteria, texts, mode=mode, embedder=embedder)
    assert max(scores) < DEFAULT_THETA[mode]


async def test_an_exception_is_not_read_as_a_thing_to_remove() -> None:
    assert await removed("the ferry, but keep Simon Miller", DUO) == {3}


async def test_no_texts_have_no_scores() -> None:
    assert await similarities("weather", [], mode=FilterMode.HYBRID, embedder=LetterEmbedder()) == []


async def test_hybrid_asks_the_model_once_and_for_no_text_twice() -> None:
    embedder = LetterEmbedder()
    await similarities("ferry; Catch-22", [*DUO, *DUO], mode=FilterMode.HYBRID, embedder=embedder)
    (texts,) = embedder.calls
    assert len(texts) == len(set(texts))


async def test_a_long_log_costs_a_bounded_number_of_embeddings() -> None:
    embedder = LetterEmbedder()
    log = "\n".join(f"line {number} failed" for number in range(5_000))
    await similarities("failures", [log], mode=FilterMode.HYBRID, embedder=embedder)
    assert len(embedder.calls[0]) < 20


async def test_paper_mode_is_the_cosine_of_the_whole_criteria_and_the_whole_message() -> None:
    scores = await similarities("abc", ["abc", "xyz"], mode=FilterMode.PAPER, embedder=LetterEmbedder())
    assert scores == pytest.approx([1.0, 0.25])


@pytest.mark.parametrize("mode", FilterMode)
async def test_without_a_model_every_mode_compares_words(mode: FilterMode) -> None:
    words = await similarities("ferry", DUO, mode=FilterMode.LEXICAL, embedder=LetterEmbedder())
    assert await similarities("ferry", DUO, mode=mode, embedder=None) == words


def test_every_reading_of_a_list_covers_its_items() -> None:
    (topics,) = topic_lists("Ann, Bob and Cleo")
    assert [topic.text for topic in topics] == ["Ann", "Ann, Bob", "Ann, Bob and Cleo", "Bob", "Bob and Cleo", "Cleo"]


@given(criteria=ANY_TEXT, texts=st.lists(ANY_TEXT, max_size=4), mode=st.sampled_from(FilterMode), model=st.booleans())
@settings(deadline=None)
async def test_any_text_gets_a_finite_score(criteria: str, texts: list[str], mode: FilterMode, model: bool) -> None:
    scores = await similarities(criteria, texts, mode=mode, embedder=LetterEmbedder() if model else None)
    assert len(scores) == len(texts)
    assert all(math.isfinite(score) and -1e-6 <= score <= 1 + 1e-6 for score in scores)


@given(
    words=st.lists(
        st.sampled_from(["a", "A", ",", ";", "and", "or", "(", ")", "except", "about", "\n", " "]), max_size=30
    )
)
async def test_any_arrangement_of_separators_is_read(words: list[str]) -> None:
    await similarities(" ".join(words), DUO, mode=FilterMode.LEXICAL, embedder=None)


class AssetsEmbedder:
    """The real model, from a folder of its files."""

    name = "sentence-transformers/all-MiniLM-L6-v2"
    dimensions = 384

    def __init__(self, folder: Path) -> None:
        """Load the model."""
        fastembed = pytest.importorskip("fastembed")
        self._model = fastembed.TextEmbedding(self.name, specific_model_path=str(folder), threads=1)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts."""
        return np.stack(list(self._model.embed(list(texts)))).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> AssetsEmbedder:
    """MiniLM, where the machine has it."""
    root = os.environ.get("AGEMEM_ASSETS_DIR")
    found = sorted(Path(root).rglob("model.onnx")) if root else []
    if not found:
        pytest.skip("AGEMEM_ASSETS_DIR names no folder that holds a model.onnx")
    return AssetsEmbedder(found[0].parent)


async def test_meaning_alone_removes_what_shares_no_word_with_the_criteria(model: AssetsEmbedder) -> None:
    texts = [
        "My cat Whiskers had her shots on Tuesday.",
        "The build failed because the linker could not find libssl.",
        "Expect light rain in Oslo on Thursday afternoon.",
    ]
    scores = await similarities("animals kept at home", texts, mode=FilterMode.HYBRID, embedder=model)
    assert [score >= DEFAULT_THETA[FilterMode.HYBRID] for score in scores] == [True, False, False]


async def test_a_message_that_only_resembles_a_named_one_stays(model: AssetsEmbedder) -> None:
    texts = [
        "Watertown International Airport is a public airport in Jefferson County, New York.",
        "Vancouver International Airport is an airport on Sea Island in Richmond, British Columbia.",
        "Chiang Rai International Airport serves the north of Thailand.",
    ]
    scores = await similarities("Vancouver International Airport", texts, mode=FilterMode.HYBRID, embedder=model)
    assert [score >= DEFAULT_THETA[FilterMode.HYBRID] for score in scores] == [False, True, False]
