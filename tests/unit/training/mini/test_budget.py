"""How long stories are, as the mini policy counts: L3 does not fit into its window, and what came before does."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the extra `local` is not installed")

from tests.unit.training.mini.stories_told import mini_tokenizer, told

BUDGET = 640


def tokens(texts: tuple[str, ...]) -> int:
    return sum(len(mini_tokenizer().encode(text)) for text in texts)


def test_the_distractors_of_l3_alone_overflow_the_window_and_the_messages_are_far_from_it() -> None:
    for task in told("L3", 100):
        assert tokens(task.distractors) > 0.6 * BUDGET
        assert tokens(task.messages) < 0.25 * BUDGET


@pytest.mark.parametrize("level", ["L1", "L2"])
def test_the_other_levels_fit(level: str) -> None:
    for task in told(level, 100):
        assert tokens((*task.messages, *task.distractors)) < 0.5 * BUDGET
