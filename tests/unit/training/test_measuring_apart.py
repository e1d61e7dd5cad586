"""Measuring in several processes: the same figures, and no process is left behind."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from typing import TYPE_CHECKING

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft"):
    pytest.importorskip(extra, reason=WHY)

from tests.unit.training.tiny_policy import tiny_run  # noqa: E402  after the skip

from agemem_mcp.errors import AgeMemError, ConfigurationError  # noqa: E402  as above
from agemem_training.measuring_apart import Apart, Measured, measure_apart  # noqa: E402  as above
from agemem_training.tasks.synthetic import Stories  # noqa: E402  as above
from agemem_training.vectors import VectorBoard  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.reporting.figures import EpisodeFigures

LEVELS = ("L1", "L2")
SOURCES = tuple(f"synthetic:{level}" for level in LEVELS)
EPISODES = 52
"""More than are told at once."""
WANTED = [Measured(source, greedy) for source in SOURCES for greedy in (True, False)]


async def measured(
    checkpoint: Path,
    processes: int,
    episodes: int = EPISODES,
    *,
    board: VectorBoard | None = None,
    embedding: str | None = "none",
) -> dict[Measured, EpisodeFigures]:
    config = tiny_run(checkpoint, tasks={"sources": SOURCES}, environment={"embedding": embedding})
    sources = {f"synthetic:{level}": Stories(level) for level in LEVELS}
    found: dict[Measured, EpisodeFigures] = {}
    await measure_apart(
        Apart(config, checkpoint, sources, "test", episodes),
        WANTED,
        processes=processes,
        on_measured=found.__setitem__,
        board=VectorBoard() if board is None else board,
    )
    return found


async def test_the_figures_are_the_same_with_any_number_of_processes(tiny_start: Path) -> None:
    one, three = await measured(tiny_start, 1), await measured(tiny_start, 3)
    assert list(one) == WANTED
    assert one == three
    assert {len(figures) for figures in one.values()} == {EPISODES}
    assert len(set(one[WANTED[0]].task_ids)) == EPISODES
    greedy, sampled = (one[Measured(SOURCES[0], way)] for way in (True, False))
    assert greedy.task_ids == sampled.task_ids
    assert greedy.columns != sampled.columns
    assert not multiprocessing.active_children()


async def test_what_a_process_cannot_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await measured(tmp_path, 2)
    assert all(isinstance(one, AgeMemError) and str(tmp_path) in str(one) for one in caught.value.exceptions)
    assert not multiprocessing.active_children()


async def test_a_process_that_is_killed_is_noticed_and_the_other_one_ended(tiny_start: Path) -> None:
    measuring = asyncio.create_task(measured(tiny_start, 2, episodes=2000))
    await asyncio.sleep(0)  # long enough to start them
    victim, _ = multiprocessing.active_children()
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(ExceptionGroup) as caught:
        await measuring
    (error,) = caught.value.exceptions
    assert isinstance(error, ConfigurationError)
    assert "exit code -9" in str(error)
    assert not multiprocessing.active_children()


async def test_who_gives_up_leaves_no_process_behind(tiny_start: Path) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(measured(tiny_start, 2, episodes=2000), 3)
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("assets_dir")
async def test_what_was_embedded_is_not_embedded_again_by_whom_it_is_measured_next(tiny_start: Path) -> None:
    board = VectorBoard()
    before = await measured(tiny_start, 2, episodes=6, board=board, embedding=None)
    onlooker = board.join()
    # Each story is told something in stage 1, and asked.
    assert len(board.news_for(onlooker)) > 6 * len(LEVELS)
    after = await measured(tiny_start, 1, episodes=6, board=board, embedding=None)
    assert after == before
    assert board.news_for(onlooker) == {}
