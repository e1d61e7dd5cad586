"""What rose, what fell, and what cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.training.reporting.runs import NAMES, evaluation

from agemem_mcp.errors import InvalidOperation
from agemem_training.reporting import AFTER, BEFORE, Evaluation
from agemem_training.reporting.comparing import COMPONENTS, Difference, compare, interval_of
from agemem_training.reporting.intervals import Interval


def difference(name: str, low: float, high: float) -> Difference:
    return Difference(name, 0, 0, Interval((low + high) / 2, low, high))


def pair() -> tuple[Evaluation, Evaluation]:
    return evaluation(BEFORE, 0.0), evaluation(AFTER, 1.0)


def test_every_figure_is_compared() -> None:
    differences = compare(*pair())
    assert set(differences) == set(NAMES)
    success = differences["success"]
    assert success.difference.estimate == pytest.approx(success.after - success.before)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 0.3, "rose"), (-0.3, -0.1, "fell"), (-0.2, 0.1, "fell within the interval"), (-0.1, 0.2, "same")],
)
def test_a_component_rose_or_fell_by_where_its_interval_lies(low: float, high: float, verdict: str) -> None:
    assert difference("strict/storage", low, high).verdict == verdict


def test_a_penalty_that_grows_has_fallen() -> None:
    assert difference("strict/penalty_overflow", -0.3, -0.1).verdict == "fell"


@pytest.mark.parametrize("name", ["calls/Add_memory", "steps", "prompt_tokens", "strict/no_effect_calls"])
def test_counts_neither_rise_for_the_better_nor_fall_for_the_worse(name: str) -> None:
    assert difference(name, -3, -1).verdict is None


def test_a_difference_that_a_report_rounds_to_nothing_is_none() -> None:
    assert difference("strict/task", -4e-4, -3e-4).verdict == "same"
    assert difference("strict/task", -7e-4, -6e-4).verdict == "fell"
    assert difference("strict/task", -2e-17, 1e-17).verdict == "same"
    assert difference("strict/task", 1e-17, 2e-17).verdict == "same"


def test_measurements_on_different_tasks_are_not_compared() -> None:
    before, after = pair()
    ids = (*after.episodes.task_ids[:-1], "another")
    with pytest.raises(InvalidOperation, match="different tasks"):
        compare(before, replace(after, episodes=replace(after.episodes, task_ids=ids)))


def test_success_has_wilsons_interval_and_a_component_the_bootstraps() -> None:
    episodes = evaluation(BEFORE, 0.0, level="L3").episodes
    assert episodes.successes == 0
    assert interval_of(episodes).high > 0
    task = interval_of(episodes, "strict/task")
    assert task.low < episodes.mean("strict/task") < task.high


def test_components_are_those_of_a_reward() -> None:
    assert {"task", "storage", "maintenance", "relevance", "total"} <= set(COMPONENTS)
