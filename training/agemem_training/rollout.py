"""Rollouts: a policy in many episodes at once.

Episodes go in cohorts. Those of a cohort take their turns together: once each of them waits for its policy, one batch
is sampled for all. So what a batch holds does not depend on how fast anything was, and the same seed gives the same
trajectories, bit by bit on one machine. While one cohort's batch is sampled in a thread, the memory server works for
the other. A server that samples makes its own batches, and its episodes do not wait for each other.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from agemem_mcp.errors import AgeMemError, ProviderError
from agemem_training.environment import run_episode
from agemem_training.sampling import Asked, TurnSampler

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from agemem_policies.policy import Completion, OnText, Prompt
    from agemem_training.engines import ServerSampler
    from agemem_training.environment import Rules
    from agemem_training.record import Episode
    from agemem_training.tasks.task import Task
    from agemem_training.worlds import World


@dataclass(slots=True)
class Rollouts:
    """Episodes, and what they took."""

    episodes: list[Episode]
    """In the order of the tasks; with several for each task, those of a task follow one another."""
    seconds: float
    sampling_s: float
    """Of these the model wrote; what is more was waiting for the memory server."""
    read_tokens: int
    written_tokens: int


async def roll_out(  # noqa: PLR0913  what rollouts are made of
    tasks: Sequence[Task],
    sampler: TurnSampler | ServerSampler,
    world: World,
    rules: Rules,
    *,
    per_task: int = 1,
    seed: int = 0,
    cohorts: int = 2,
    name: str = "rollout",
) -> Rollouts:
    """Let a policy live through episodes.

    Args:
        tasks: what they are about.
        sampler: writes the turns; a server's weights are renewed before.
        world: a memory in which no namespace of this ``name`` was used before.
        rules: of the episodes.
        per_task: K, how many trajectories each task gets.
        seed: of what is sampled.
        cohorts: how many groups of episodes take turns in sampling; a server makes groups of its own.
        name: begins each namespace.

    Raises:
        ExceptionGroup: of AgeMemErrors; the memory server or the sampler failed, and the other episodes were given up.
    """
    began = time.perf_counter()
    jobs = [task for task in tasks for _ in range(per_task)]
    before = sampler.work.seconds, sampler.work.read_tokens, sampler.work.written_tokens
    with _seats(sampler, len(jobs), seed, cohorts) as seats:

        async def live(number: int) -> Episode:
            try:
                namespace = f"{name}-{number}"
                return await run_episode(jobs[number], seats[number], world, rules, namespace=namespace, seed=seed)
            finally:
                seats[number].leave()

        async with asyncio.TaskGroup() as episodes:
            running = [episodes.create_task(live(number)) for number in range(len(jobs))]
    work = sampler.work
    return Rollouts(
        [one.result() for one in running],
        time.perf_counter() - began,
        work.seconds - before[0],
        work.read_tokens - before[1],
        work.written_tokens - before[2],
    )


@contextmanager
def _seats(
    sampler: TurnSampler | ServerSampler, count: int, seed: int, cohorts: int
) -> Generator[Sequence[Member | ServerSampler]]:
    """The policies of so many episodes."""
    if not isinstance(sampler, TurnSampler):
        yield [sampler] * count
        return
    sampler.forget()
    with ThreadPoolExecutor(1, thread_name_prefix="sampling") as thread:
        groups = [Cohort(sampler, thread) for _ in range(min(cohorts, count))]
        yield [groups[number * len(groups) // count].join(number, seed) for number in range(count)]
    sampler.forget()


@dataclass(slots=True)
class _Waiting:
    """A turn that was asked for."""

    asked: Asked
    answer: asyncio.Future[Completion]


@dataclass(slots=True)
class Cohort:
    """Episodes that take their turns together."""

    sampler: TurnSampler
    thread: ThreadPoolExecutor
    _alive: int = 0
    _waiting: list[_Waiting] = field(default_factory=list["_Waiting"])
    _sampling: set[asyncio.Task[None]] = field(default_factory=set["asyncio.Task[None]"])

    def join(self, number: int, seed: int) -> Member:
        """The policy of one more episode.

        Args:
            number: of the episode, among all.
            seed: of all.
        """
        self._alive += 1
        return Member(self, number, np.random.default_rng([seed, number]))

    def leave(self, number: int) -> None:
        """An episode has ended."""
        self._alive -= 1
        self.sampler.forget(number)
        self._go_on()

    async def turn(self, asked: Asked) -> Completion:
        """The next turn of an episode, once all of the cohort want theirs."""
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(asked, answer))
        self._go_on()
        return await answer

    def _go_on(self) -> None:
        # Where an episode failed the others are cancelled: nobody waits for their turns any more.
        self._waiting = [one for one in self._waiting if not one.answer.done()]
        if not self._waiting or len(self._waiting) < self._alive:
            return
        waiting = sorted(self._waiting, key=lambda one: one.asked.number)
        self._waiting = []
        task = asyncio.create_task(self._sample(waiting))
        self._sampling.add(task)
        task.add_done_callback(self._sampling.discard)

    async def _sample(self, waiting: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            turns = await loop.run_in_executor(self.thread, self.sampler.sample, [one.asked for one in waiting])
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must hear of it
            for one in waiting:
                if not one.answer.done():
                    one.answer.set_exception(_of_ours(error))
            return
        for one, turn in zip(waiting, turns, strict=True):
            if not one.answer.done():
                one.answer.set_result(turn)


def _of_ours(error: Exception) -> AgeMemError:
    """An error for one of those who wait: raising an error changes it, so each has its own."""
    own = type(error)(str(error)) if isinstance(error, AgeMemError) else ProviderError(f"The model failed: {error}.")
    own.__cause__ = error
    return own


@dataclass(slots=True)
class Member:
    """Implements ``Policy`` for one episode of a cohort."""

    cohort: Cohort
    number: int
    chance: np.random.Generator
    native: bool = False
    name: str = "rollout"

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """See :meth:`agemem_policies.policy.Policy.act`."""
        completion = await self.cohort.turn(Asked(self.number, prompt, self.chance))
        if on_text is not None:
            on_text(completion.text)
        return completion

    def leave(self) -> None:
        """The episode has ended."""
        self.cohort.leave(self.number)

    async def close(self) -> None:
        """Nothing to release."""
