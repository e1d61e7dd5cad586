"""What each of several processes does of an iteration."""

from __future__ import annotations

from dataclasses import replace

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate"):
    pytest.importorskip(extra, reason=WHY)

from tests.unit.training.building import LIVES  # noqa: E402  after the skip

from agemem_training.trainer import Share  # noqa: E402  as above

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
