"""The tasks of an iteration, and what each of several processes does of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate"):
    pytest.importorskip(extra, reason=WHY)

from tests.unit.training.building import LIVES  # noqa: E402  after the skip

from agemem_training.tasks.synthetic import LEVELS, Stories  # noqa: E402  as above
from agemem_training.trainer import Draws, Share  # noqa: E402  as above

SOURCES = [Stories(level) for level in LEVELS]
LENGTHS = (3, 14, 5, 13, 4, 12)
TASKS = [replace(LIVES, task_id=str(length), distractors=("small talk",) * (length - 1)) for length in LENGTHS]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
def test_every_task_belongs_to_one_process(processes: int) -> None:
    dealt = [task.task_id for rank in range(processes) for task in Share(rank, processes).of(TASKS)]
    assert sorted(dealt, key=int) == sorted((task.task_id for task in TASKS), key=int)


def test_no_process_gets_all_the_long_ones() -> None:
    first, second = ([int(task.task_id) for task in Share(rank, 2).of(TASKS)] for rank in (0, 1))
    assert (first, second) == ([14, 5, 4], [13, 12, 3])
    assert abs(sum(first) - sum(second)) <= 5


def levels(draws: Draws, iteration: int, count: int = 6) -> Counter[str]:
    return Counter(task.labels["level"] for task in draws.draw(count, iteration=iteration))


def test_every_iteration_has_tasks_of_every_source_that_weighs_enough() -> None:
    draws = Draws(SOURCES, (1.5, 2, 1.5), seed=3)
    each = [levels(draws, iteration) for iteration in range(200)]
    assert all(one[level] >= 1 for one in each for level in LEVELS)
    total = sum(each, Counter[str]())
    assert total == dict(zip(LEVELS, draws.drawn, strict=True))
    for level, share in zip(LEVELS, (0.3, 0.4, 0.3), strict=True):
        assert total[level] / 1200 == pytest.approx(share, abs=0.03)


def test_a_source_without_weight_is_not_drawn_from() -> None:
    draws = Draws(SOURCES, (0, 2, 0), seed=3)
    assert sum((levels(draws, iteration) for iteration in range(50)), Counter[str]()) == {"L2": 300}


def test_draws_go_on_where_they_stood() -> None:
    whole, first = Draws(SOURCES, (1, 1, 1), seed=3), Draws(SOURCES, (1, 1, 1), seed=3)
    drawn = [whole.draw(6, iteration=iteration) for iteration in range(4)]
    assert [first.draw(6, iteration=iteration) for iteration in range(2)] == drawn[:2]
    second = Draws(SOURCES, (1, 1, 1), seed=3, drawn=list(first.drawn))
    assert [second.draw(6, iteration=iteration) for iteration in range(2, 4)] == drawn[2:]
