"""Measuring a policy on tasks that were held out."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from agemem_training.grading import graded
from agemem_training.mini.warm_start import demonstrate
from agemem_training.reporting.figures import EpisodeFigures, evaluate_figures, joined_figures
from agemem_training.rewards import RewardSettings
from agemem_training.rollout import roll_out
from agemem_training.sampling import TurnSampler
from agemem_training.worlds import opened

if TYPE_CHECKING:
    from agemem_training.environment import Rules
    from agemem_training.judges import JudgeSettings
    from agemem_training.tasks.source import Split, TaskSource
    from agemem_training.tasks.synthetic import Stories
    from agemem_training.worlds import WorldSettings

_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Policy:
    """What is measured."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]
    turn_tokens: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where it is measured, and how it is graded."""

    rules: Rules
    world: WorldSettings
    judge: JudgeSettings | None = None
    pay: RewardSettings = field(default_factory=RewardSettings)


async def evaluate(  # noqa: PLR0913  what a measurement is made of
    policy: Policy, source: TaskSource, place: Place, *, split: Split, seed: int, episodes: int, greedy: bool
) -> EpisodeFigures:
    """Measure a policy on one source's tasks.

    Args:
        policy: what is measured.
        source: of the tasks.
        place: where.
        split: of the source.
        seed: of the tasks and of what is sampled.
        episodes: how many; fewer where the split has no more.
        greedy: take the most probable token; else sample at temperature 1.
    """
    parts = [
        await evaluate_part(
            policy, source, place, split=split, seed=seed, episodes=episodes, greedy=greedy, start=start
        )
        for start in part_starts(episodes)
    ]
    return joined_figures([one for one in parts if one is not None])


def part_starts(episodes: int) -> range:
    """Where the parts of a measurement begin: so many stories are told at once."""
    return range(0, episodes, _AT_ONCE)


async def evaluate_part(  # noqa: PLR0913  as above
    policy: Policy,
    source: TaskSource,
    place: Place,
    *,
    split: Split,
    seed: int,
    episodes: int,
    greedy: bool,
    start: int,
) -> EpisodeFigures | None:
    """A part of :func:`evaluate`: the tasks from one number on; None where the split has no such task."""
    tasks = list(islice(source.tasks(split, seed=seed), start, min(start + _AT_ONCE, episodes)))
    if not tasks:
        return None
    sampler = TurnSampler(
        policy.model,
        policy.tokenizer,
        policy.eos_ids,
        temperature=0.0 if greedy else 1.0,
        max_tokens=policy.turn_tokens,
    )
    policy.model.eval()
    async with opened(place.world, seed=seed + start) as world:
        rollouts = await roll_out(tasks, sampler, world, place.rules, seed=seed + start, name="evaluation")
    return evaluate_figures(rollouts.episodes, await graded(rollouts.episodes, place.pay, place.judge))


async def evaluate_demonstrator(  # noqa: PLR0913  as above
    habits: str, stories: Stories, place: Place, *, split: Split, seed: int, episodes: int
) -> EpisodeFigures:
    """The same with the demonstrator of these habits as the policy."""
    return joined_figures(
        [
            await demonstrated_part(habits, stories, place, split=split, seed=seed, episodes=episodes, start=start)
            for start in part_starts(episodes)
        ]
    )


async def demonstrated_part(  # noqa: PLR0913  as above
    habits: str, stories: Stories, place: Place, *, split: Split, seed: int, episodes: int, start: int
) -> EpisodeFigures:
    """A part of :func:`evaluate_demonstrator`."""
    count = min(_AT_ONCE, episodes - start)
    shown = await demonstrate(
        stories, count, place.world, place.rules, habits=habits, seed=seed, split=split, first=start
    )
    return evaluate_figures(shown, await graded(shown, place.pay, place.judge))
