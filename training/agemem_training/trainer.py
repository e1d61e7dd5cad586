"""Reinforcement learning, iteration by iteration: tasks → rollouts → rewards → advantages → update."""

from __future__ import annotations

import random
import time
from bisect import bisect_left, bisect_right
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import accumulate, cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from agemem_mcp.errors import ConfigurationError
from agemem_training.advantages import group_advantages
from agemem_training.costs import return_memory
from agemem_training.grading import graded
from agemem_training.rollout import roll_out
from agemem_training.rows import merged_rows, step_count
from agemem_training.sampling import TurnSampler
from agemem_training.settings_of import pay_of
from agemem_training.worlds import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agemem_training.checkpoints import RunState
    from agemem_training.config import RunConfig
    from agemem_training.engines import ServerSampler
    from agemem_training.environment import Rules
    from agemem_training.judges import JudgeSettings
    from agemem_training.learner import Learner, Updated
    from agemem_training.loading import Trainable
    from agemem_training.record import Episode
    from agemem_training.rewards import Reward
    from agemem_training.rollout import Rollouts
    from agemem_training.rows import Row
    from agemem_training.tasks.source import TaskSource
    from agemem_training.tasks.task import Task
    from agemem_training.worlds import World, WorldSettings

_WORLD_ITERATIONS = 10
"""A memory serves so many iterations: a new one takes half a second, and an old one grows."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where episodes happen, and how they are graded."""

    rules: Rules
    world: WorldSettings
    judge: JudgeSettings | None = None
    """Grades answers and memories; None for words alone."""
    server: ServerSampler | None = None
    """Samples rollouts; None for this process."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several processes does of each iteration."""

    rank: int = 0
    processes: int = 1
    gather: Callable[[list[int]], list[int]] = list
    """Gives the numbers of all processes for this one's."""

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """Its tasks: the longest are dealt out first, back and forth, so that no process waits long for another."""
        longest = sorted(tasks, key=lambda one: len(one.messages) + len(one.distractors), reverse=True)
        there_and_back = [*range(self.processes), *reversed(range(self.processes))]
        return [task for task, rank in zip(longest, cycle(there_and_back), strict=False) if rank == self.rank]


@dataclass(frozen=True, slots=True)
class Iterated:
    """One iteration, as far as this process did it; ``updated`` is of all."""

    iteration: int
    rewards: list[Reward]
    rollouts: Rollouts
    groups: int
    zero_variance_groups: int
    resampled_groups: int
    updated: Updated
    reward_s: float
    update_s: float


@dataclass(slots=True)
class Draws:
    """Tasks of several sources, drawn by chance; where it stands can be noted and taken up again."""

    sources: Mapping[str, TaskSource]
    weights: Sequence[float]
    seed: int
    drawn: dict[str, int] = field(default_factory=dict[str, int])
    """How many of each source; of one that has become a source since there is nothing."""
    _streams: dict[str, Iterator[Task]] = field(default_factory=dict[str, "Iterator[Task]"])

    def __post_init__(self) -> None:
        """Go on after what was drawn before."""
        self.drawn = {name: self.drawn.get(name, 0) for name in self.sources}
        self._streams = {
            name: islice(source.tasks("train", seed=self.seed), self.drawn[name], None)
            for name, source in self.sources.items()
        }

    def draw(self, count: int, *, iteration: int) -> list[Task]:
        """The tasks of an iteration: one by chance from each of so many equal parts of the weights.

        So all sources that weigh enough are in every iteration, and none can unlearn for a while what only one of
        them teaches.
        """
        rng = random.Random(f"{self.seed} {iteration}")  # noqa: S311  which tasks, no secret
        up_to, names = list(accumulate(self.weights)), list(self.sources)
        tasks: list[Task] = []
        for part in range(count):
            at = (part + rng.random()) / count * up_to[-1]
            # By rounding it may be at the very end, which belongs to no source.
            place = min(bisect_right(up_to, at), bisect_left(up_to, up_to[-1]))
            tasks.append(next(self._streams[names[place]]))
            self.drawn[names[place]] += 1
        return tasks


class Trainer:
    """Improves a policy."""

    def __init__(  # noqa: PLR0913  what training stands on
        self,
        config: RunConfig,
        learner: Learner,
        trainable: Trainable,
        setting: Setting,
        draws: Draws,
        *,
        share: Share | None = None,
    ) -> None:
        """Set it up.

        Args:
            config: of the run.
            learner: the policy and its optimizer.
            trainable: the policy's tokenizer, and what ends its turns.
            setting: of the episodes.
            draws: where tasks come from.
            share: of this process; None for all.
        """
        self._config = config
        self._learner = learner
        self._setting = setting
        self._draws = draws
        self._share = share or Share()
        self._sampler = setting.server or TurnSampler(
            learner.model,
            trainable.tokenizer,
            trainable.eos_ids,
            temperature=config.grpo.temperature,
            max_tokens=config.grpo.turn_tokens,
        )
        self._pay = pay_of(config)
        self._world: World | None = None
        self._world_of = -1
        self._stack = AsyncExitStack()

    async def close(self) -> None:
        """Let go of the memory, and of the server."""
        await self._stack.aclose()
        if self._setting.server is not None:
            await self._setting.server.close()
        self._world = None

    async def iterate(self, state: RunState) -> Iterated:
        """Take one more iteration, and note it in the state.

        Raises:
            AgeMemError: something failed; no weight was changed.
        """
        iteration = state.iteration + 1
        config = self._config.grpo
        tasks = self._draws.draw(config.tasks, iteration=iteration)
        mine = self._share.of(tasks)
        if self._setting.server is not None:
            await self._setting.server.renew(self._learner.model)
        rollouts, rewards, reward_s, resampled = await self._rolled_out(mine, iteration)
        # Rollouts leave many free pieces of memory, into which what an update needs does not fit, and the reverse.
        return_memory()
        groups = [group_advantages(one) for one in _groups(rewards, config.trajectories)]
        advantages = [float(one) for group in groups for one in group.advantages_G]
        rows = self._rows(rollouts.episodes, advantages, iteration)
        began = time.perf_counter()
        updated = self._learner.update(rows, iteration=iteration)
        update_s = time.perf_counter() - began
        return_memory()
        state.iteration, state.drawn = iteration, dict(self._draws.drawn)
        return Iterated(
            iteration=iteration,
            rewards=rewards,
            rollouts=rollouts,
            groups=len(groups),
            zero_variance_groups=sum(one.zero_variance for one in groups),
            resampled_groups=resampled,
            updated=updated,
            reward_s=reward_s,
            update_s=update_s,
        )

    async def _rolled_out(self, tasks: list[Task], iteration: int) -> tuple[Rollouts, list[Reward], float, int]:
        """Rollouts and their rewards; groups without variance are drawn anew so often as is wanted."""
        config = self._config.grpo
        world = await self._opened(iteration)
        reward_s = 0.0
        resampled = 0
        rollouts: Rollouts | None = None
        rewards: list[Reward] = []
        for attempt in range(config.resample + 1):
            redo = _without_variance(rewards, config.trajectories) if rollouts else list(range(len(tasks)))
            if rollouts and not redo:
                break
            fresh = await roll_out(
                [tasks[place] for place in redo],
                self._sampler,
                world,
                self._setting.rules,
                per_task=config.trajectories,
                seed=self._seed(iteration, attempt),
                name=f"i{iteration}-{self._share.rank}-{attempt}",
            )
            began = time.perf_counter()
            paid = await graded(fresh.episodes, self._pay, self._setting.judge)
            reward_s += time.perf_counter() - began
            if rollouts is None:
                rollouts, rewards = fresh, paid
                continue
            resampled += len(redo)
            for number, place in enumerate(redo):
                old, new = _group(place, config.trajectories), _group(number, config.trajectories)
                rollouts.episodes[old], rewards[old] = fresh.episodes[new], paid[new]
            _add_cost(rollouts, fresh)
        assert rollouts is not None  # noqa: S101  the first attempt always rolls out
        return rollouts, rewards, reward_s, resampled

    async def _opened(self, iteration: int) -> World:
        number = iteration // _WORLD_ITERATIONS
        if self._world is None or number != self._world_of:
            await self._stack.aclose()
            seed = self._config.seed * 1009 + number
            self._world = await self._stack.enter_async_context(opened(self._setting.world, seed=seed))
            self._world_of = number
        return self._world

    def _seed(self, iteration: int, attempt: int) -> int:
        parts = [self._config.seed, iteration, self._share.rank, attempt]
        return int(np.random.SeedSequence(parts).generate_state(1)[0])

    def _rows(self, episodes: list[Episode], advantages: list[float], iteration: int) -> list[Row]:
        mine = sum(step_count(one.steps) for one in episodes)
        everyone = sum(self._share.gather([mine]))
        if not everyone:
            msg = (
                f"In iteration {iteration} no episode came to a single turn: the system prompt, a message and "
                "environment.answer_tokens are more than environment.budget_tokens. Raise that."
            )
            raise ConfigurationError(msg)
        rows: list[Row] = []
        for number, (episode, advantage) in enumerate(zip(episodes, advantages, strict=True)):
            if advantage or self._config.grpo.beta:
                source = f"trajectory {number} ({episode.task.task_id}) of iteration {iteration}"
                rows += merged_rows(episode.steps, steps_in_batch=everyone, advantage=advantage, source=source)
        return rows


def _groups(rewards: list[Reward], size: int) -> list[list[float]]:
    totals = [one.total for one in rewards]
    return [totals[start : start + size] for start in range(0, len(totals), size)]


def _without_variance(rewards: list[Reward], size: int) -> list[int]:
    return [place for place, one in enumerate(_groups(rewards, size)) if group_advantages(one).zero_variance]


def _group(place: int, size: int) -> slice:
    return slice(place * size, (place + 1) * size)


def _add_cost(rollouts: Rollouts, more: Rollouts) -> None:
    rollouts.seconds += more.seconds
    rollouts.sampling_s += more.sampling_s
    rollouts.read_tokens += more.read_tokens
    rollouts.written_tokens += more.written_tokens
