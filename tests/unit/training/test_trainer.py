"""The tasks of an iteration, and what each of several processes does of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

from accelerate import Accelerator  # noqa: E402  after the skip
from tests.unit.training.building import LIVES  # noqa: E402  as above
from tests.unit.training.tiny_policy import tiny_run  # noqa: E402  as above

from agemem_training.checkpoints import RunState  # noqa: E402  as above
from agemem_training.config import changed  # noqa: E402  as above
from agemem_training.learner import Learner  # noqa: E402  as above
from agemem_training.loading import load_trainable  # noqa: E402  as above
from agemem_training.rewards import RewardSettings, reward  # noqa: E402  as above
from agemem_training.settings_of import rules_of, world_of  # noqa: E402  as above
from agemem_training.tasks.synthetic import LEVELS, Stories  # noqa: E402  as above
from agemem_training.trainer import Draws, Setting, Share, Trainer  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.trainer import Iterated

SOURCES = {level: Stories(level) for level in LEVELS}
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
    assert total == draws.drawn
    for level, share in zip(LEVELS, (0.3, 0.4, 0.3), strict=True):
        assert total[level] / 1200 == pytest.approx(share, abs=0.03)


def test_a_source_without_weight_is_not_drawn_from() -> None:
    draws = Draws(SOURCES, (0, 2, 0), seed=3)
    assert sum((levels(draws, iteration) for iteration in range(50)), Counter[str]()) == {"L2": 300}


def test_draws_go_on_where_they_stood() -> None:
    whole, first = Draws(SOURCES, (1, 1, 1), seed=3), Draws(SOURCES, (1, 1, 1), seed=3)
    drawn = [whole.draw(6, iteration=iteration) for iteration in range(4)]
    assert [first.draw(6, iteration=iteration) for iteration in range(2)] == drawn[:2]
    second = Draws(SOURCES, (1, 1, 1), seed=3, drawn=dict(first.drawn))
    assert [second.draw(6, iteration=iteration) for iteration in range(2, 4)] == drawn[2:]


def iterated(start: Path, seed: int, **grpo: Any) -> Iterated:
    """A run's first iteration."""
    config = changed(tiny_run(start), run={"seed": seed}, grpo={"tasks": 4, "trajectories": 3, **grpo})
    trainable = load_trainable(config.model)
    learner = Learner(trainable.model, Accelerator(cpu=True), config.grpo)
    setting = Setting(rules_of(config), world_of(config, start))

    async def first() -> Iterated:
        trainer = Trainer(config, learner, trainable, setting, Draws({"L1": Stories("L1")}, (1,), seed))
        try:
            return await trainer.iterate(RunState())
        finally:
            await trainer.close()

    return asyncio.run(first())


def said(done: Iterated, task: int) -> list[list[str]]:
    """What the trajectories of a task wrote."""
    return [[step.completion.text for step in one.steps] for one in done.rollouts.episodes[task * 3 : task * 3 + 3]]


def alike(done: Iterated) -> set[int]:
    """Tasks whose trajectories were all paid the same."""
    return {task for task in range(4) if len({one.total for one in done.rewards[task * 3 : task * 3 + 3]}) == 1}


def test_groups_without_variance_are_counted_and_drawn_anew_and_the_others_stay(tiny_start: Path) -> None:
    seen = 0
    for seed in range(4):
        once, again = iterated(tiny_start, seed), iterated(tiny_start, seed, resample=1)
        flat = alike(once)
        assert (once.groups, once.zero_variance_groups, once.resampled_groups) == (4, len(flat), 0)
        assert (again.groups, again.zero_variance_groups, again.resampled_groups) == (4, len(alike(again)), len(flat))
        tasks = [one.task.task_id for one in once.rollouts.episodes]
        assert [one.task.task_id for one in again.rollouts.episodes] == tasks
        assert again.rewards == [reward(one, RewardSettings()) for one in again.rollouts.episodes]
        assert {task for task in range(4) if said(once, task) != said(again, task)} == flat
        assert (again.rollouts.written_tokens > once.rollouts.written_tokens) == bool(flat)
        seen += 0 < len(flat) < 4
    assert seen, "no iteration had groups of both kinds"
