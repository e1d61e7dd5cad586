"""Measuring a policy in several processes at once.

A small policy and its server are much Python and little arithmetic: more threads measure it no faster, more processes
do. Which stories are told together does not depend on how many processes there are, so neither do the figures.
"""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging as transformers_logging

from agemem_mcp.errors import AgeMemError, ConfigurationError
from agemem_training.costs import return_memory
from agemem_training.evaluating import Place, Policy, demonstrated_part, evaluate_part, part_starts
from agemem_training.loading import load_trainable
from agemem_training.reporting.figures import joined_figures
from agemem_training.settings_of import judge_of, pay_of, rules_of, world_of
from agemem_training.stopping import single_errors
from agemem_training.tasks.synthetic import Stories
from agemem_training.vectors import NotingCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from pathlib import Path

    from agemem_mcp.adapters.embedding import VectorCache
    from agemem_training.config import RunConfig
    from agemem_training.reporting.figures import EpisodeFigures
    from agemem_training.tasks.source import Split, TaskSource
    from agemem_training.vectors import VectorBoard, Vectors

    OnMeasured = Callable[["Measured", EpisodeFigures], None]
    _Answer = EpisodeFigures | AgeMemError | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: on which source, and how the policy draws its tokens."""

    source: str
    greedy: bool
    demonstrator: str | None = None
    """Habits of a demonstrator that is measured instead of the policy, on stories."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The stories of a measurement that are told together."""

    of: Measured
    start: int


@dataclass(frozen=True, slots=True)
class Apart:
    """What the processes measure."""

    config: RunConfig
    checkpoint: Path
    """The policy, saved with its tokenizer."""
    sources: Mapping[str, TaskSource]
    split: Split
    episodes: int
    """Of each source."""


async def measure_apart(
    what: Apart, wanted: Sequence[Measured], *, processes: int, on_measured: OnMeasured, board: VectorBoard
) -> None:
    """Measure a policy.

    Args:
        what: the policy, and on what.
        wanted: the measurements.
        processes: how many.
        on_measured: told of each measurement once it is complete.
        board: where the processes tell each other what they embedded; keep it for measuring the same stories again.

    Raises:
        AgeMemError: a measurement failed, or a process ended.
    """
    parts = deque(_Part(one, start) for one in wanted for start in part_starts(what.episodes))
    done: dict[Measured, dict[int, EpisodeFigures | None]] = {one: {} for one in wanted}
    return_memory()

    def note(part: _Part, figures: EpisodeFigures | None) -> None:
        found = done[part.of]
        found[part.start] = figures
        if len(found) == len(part_starts(what.episodes)):
            ordered = [found[start] for start in sorted(found)]
            on_measured(part.of, joined_figures([one for one in ordered if one is not None]))

    workers = [_Worker(what, board) for _ in range(min(processes, len(parts)))]
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.work(parts, note))
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One of the processes."""

    def __init__(self, what: Apart, board: VectorBoard) -> None:
        self._board, self._reader = board, board.join()
        # A copy of this process would have its threads' locks, but not the threads.
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process: SpawnProcess = context.Process(target=_measure_parts, args=(there, what), daemon=True)
        self._process.start()
        # So that reading ends when the process does.
        there.close()

    async def work(self, parts: deque[_Part], note: Callable[[_Part, EpisodeFigures | None], None]) -> None:
        """Let it measure one part after the other, while there are any."""
        while parts:
            part = parts.popleft()
            try:
                answer, embedded = await asyncio.to_thread(self._exchange, part, self._board.news_for(self._reader))
            except (EOFError, OSError) as error:
                self._process.join()
                msg = (
                    f"A process that measured the policy ended (exit code {self._process.exitcode}). If memory ran "
                    "out, set processes = 1."
                )
                raise ConfigurationError(msg) from error
            if isinstance(answer, AgeMemError):
                raise answer
            self._board.put_up(self._reader, embedded)
            note(part, answer)

    def _exchange(self, part: _Part, heard: Vectors) -> tuple[_Answer, Vectors]:
        self._here.send((part, heard))
        return self._here.recv()

    def end(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._here.close()


def _measure_parts(connection: Connection, what: Apart) -> None:
    """The life of a process: measure what is asked for, until it is ended."""
    # Ctrl-C is for the process that started this one, which then ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    config = what.config.model_copy(update={"threads": 1})
    ready: tuple[Policy, Place] | None = None
    vectors = NotingCache()
    part: _Part
    heard: Vectors
    while True:
        part, heard = connection.recv()
        vectors.hear(heard)
        try:
            with single_errors():
                ready = ready or policy_at(config, what.checkpoint, vectors)
                answer: _Answer = asyncio.run(_measured(what, *ready, part))
        except AgeMemError as error:
            answer = error
        connection.send((answer, vectors.news()))
        return_memory()


def policy_at(config: RunConfig, checkpoint: Path, vectors: VectorCache) -> tuple[Policy, Place]:
    """A saved policy, and the memory it is measured with.

    Args:
        config: how it was trained: server, rules, reward.
        checkpoint: a folder.
        vectors: remembers what was embedded.

    Raises:
        AgeMemError: it cannot be loaded.
    """
    trainable = load_trainable(config.model.model_copy(update={"path": str(checkpoint), "lora_rank": None}))
    policy = Policy(trainable.model, trainable.tokenizer, trainable.eos_ids, config.grpo.turn_tokens)
    world = world_of(config, checkpoint, vectors)
    return policy, Place(rules_of(config), world, judge_of(config), pay_of(config))


async def _measured(what: Apart, policy: Policy, place: Place, part: _Part) -> EpisodeFigures | None:
    source = what.sources[part.of.source]
    if part.of.demonstrator is not None and isinstance(source, Stories):
        return await demonstrated_part(
            part.of.demonstrator,
            source,
            place,
            split=what.split,
            seed=what.config.seed,
            episodes=what.episodes,
            start=part.start,
        )
    return await evaluate_part(
        policy,
        source,
        place,
        split=what.split,
        seed=what.config.seed,
        episodes=what.episodes,
        greedy=part.of.greedy,
        start=part.start,
    )
