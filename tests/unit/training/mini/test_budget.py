"""How long stories are, as the mini policy counts: L3 does not fit into its window, and what came before does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

pytest.importorskip("transformers", reason="the extra `local` is not installed")

from tests.unit.training.mini.stories_told import mini_tokenizer, told

from agemem_policies.protocol import Turn, render
from agemem_training.config import load_preset

if TYPE_CHECKING:
    from agemem_training.tasks import Task

ENVIRONMENT = load_preset("mini").environment
BUDGET = ENVIRONMENT.budget_tokens
PASSED_OVER = render(Turn("small talk", answer="ok"))
"""The shortest turn there is."""


def tokens(*texts: str) -> int:
    return sum(len(mini_tokenizer().encode(text)) for text in texts)


def until_the_answer(task: Task) -> int:
    """What stands in the window when the question comes, if nothing is ever taken out of it."""
    turns = [PASSED_OVER] * len(task.distractors)
    return tokens(ENVIRONMENT.system or "", *task.distractors, *turns, task.query)


def test_l3_overflows_the_window_unless_something_is_taken_out_of_it() -> None:
    needed = [until_the_answer(task) for task in told("L3", 300)]
    assert sum(one > BUDGET for one in needed) / len(needed) >= 0.95
    # Those few that fit leave no room for looking anything up.
    assert min(needed) > 0.9 * BUDGET


@pytest.mark.parametrize("level", ["L1", "L2"])
def test_the_other_levels_fit(level: str) -> None:
    assert max(until_the_answer(task) for task in told(level, 300)) < 0.5 * BUDGET


@pytest.mark.parametrize("level", ["L1", "L2", "L3"])
def test_the_messages_of_every_level_are_far_from_it(level: str) -> None:
    assert max(tokens(*task.messages) for task in told(level, 300)) < 0.25 * BUDGET
