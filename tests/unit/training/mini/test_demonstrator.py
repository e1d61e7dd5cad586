"""The demonstrator on a real server: what it shows is worth learning, and leaves something to be learnt."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("transformers", reason="the extra `local` is not installed")

from tests.unit.training.mini.stories_told import saved_tokenizer
from tests.unit.training.playing import LEXICAL

from agemem_policies.steps import StopReason
from agemem_training.environment import Rules, run_episode
from agemem_training.mini.demonstrator import EXPERT, NOISY, Demonstrator, Habits
from agemem_training.record import CONSTRUCTION, DISTRACTION, REASONING
from agemem_training.rewards import reward
from agemem_training.tasks.synthetic import Stories
from agemem_training.worlds import WorldSettings, in_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from agemem_training.record import Episode
    from agemem_training.worlds import InProcessWorld

BUDGET = 512
RULES = Rules(system="You manage memory.", max_rounds=40, recalled=2, own_summaries=False)


@asynccontextmanager
async def mini_world(folder: Path, **extra: object) -> AsyncGenerator[InProcessWorld]:
    """A server as the mini preset configures it."""
    settings = WorldSettings(BUDGET, saved_tokenizer(folder), ids="sequential", folder=folder, extra=extra)
    async with in_process(settings, seed=1) as world:
        yield world


async def shown(world: InProcessWorld, level: str, habits: Habits, count: int, *, name: str = "") -> list[Episode]:
    """Episodes that a demonstrator lives through."""

    async def one(number: int) -> Episode:
        task = Stories(level).task("test", seed=5, number=number)
        policy = Demonstrator(task, habits, random.Random(number), budget_tokens=BUDGET)
        return await run_episode(task, policy, world, RULES, namespace=f"{name}{level}-{number}")

    return await asyncio.gather(*map(one, range(count)))


def solved(episodes: Sequence[Episode]) -> float:
    return sum(reward(episode).success for episode in episodes) / len(episodes)


def well_kept(episodes: Sequence[Episode]) -> bool:
    """Whether memory was kept as the strict reward wants it, where the query was answered."""
    ended = [reward(episode).strict for episode in episodes if episode.stop_reason is StopReason.ANSWER]
    return all(sum(getattr(one, term) for one in ended) > 0.9 * len(ended) for term in ("storage", "maintenance"))


@pytest.mark.parametrize("level", ["L1", "L2"])
async def test_an_expert_solves_nine_of_ten_and_a_noisy_demonstrator_fewer_but_some(level: str, tmp_path: Path) -> None:
    async with mini_world(tmp_path, **LEXICAL) as world:
        expert, noisy = await shown(world, level, EXPERT, 15), await shown(world, level, NOISY, 15, name="noisy-")
    assert solved(expert) >= 0.9
    assert 0.2 < solved(noisy) < solved(expert)
    assert well_kept(expert)


async def test_an_expert_solves_nine_of_ten_of_l3_where_texts_are_found_by_meaning(
    tmp_path: Path, assets_dir: Path
) -> None:
    async with mini_world(tmp_path, assets_dir=assets_dir) as world:
        episodes = await shown(world, "L3", EXPERT, 10)
    assert solved(episodes) >= 0.9
    assert well_kept(episodes)


async def test_the_distractors_of_l3_overflow_the_window_of_whoever_does_not_clear_it(tmp_path: Path) -> None:
    async with mini_world(tmp_path, **LEXICAL) as world:
        episodes = await shown(world, "L3", replace(EXPERT, clears=0.0), 10)
    assert {episode.stop_reason for episode in episodes} == {StopReason.CONTEXT_OVERFLOW}
    # At the latest when the query comes.
    assert {episode.steps[-1].stage for episode in episodes} <= {DISTRACTION, REASONING}
    assert max(step.context_tokens for one in episodes for step in one.steps if step.stage == CONSTRUCTION) < BUDGET


async def test_what_it_does_depends_on_its_random_numbers_alone(tmp_path: Path) -> None:
    async with mini_world(tmp_path, **LEXICAL) as world:
        first, second = [await shown(world, "L2", NOISY, 3, name=name) for name in ("a", "b")]
    assert [[step.completion for step in one.steps] for one in first] == [
        [step.completion for step in one.steps] for one in second
    ]


async def test_every_one_of_its_turns_keeps_the_strict_form(tmp_path: Path) -> None:
    async with mini_world(tmp_path, **LEXICAL) as world:
        episodes = await shown(world, "L2", Habits(junk=0.5), 10)
    assert all(step.turn is not None for one in episodes for step in one.steps)
    assert not [seen.text for one in episodes for step in one.steps for seen in step.observations if seen.is_error]
