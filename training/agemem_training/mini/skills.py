"""What a policy must be able to copy before reinforcement learning can teach it when to: each skill measured apart.

Measured are greedy turns in drills about names that were never trained on, in wording that never was. A turn that does
something else than the drill's, such as an addition where an update was due, is another decision. Demonstrations leave
those open on purpose, and reinforcement learning teaches them: it counts for no skill. What cannot be read is wrong.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agemem_policies.policy import Prompt
from agemem_policies.protocol import ProtocolViolation, parse
from agemem_training.mini.drills import drill
from agemem_training.sampling import Asked
from agemem_training.tasks.synthetic.language import RELATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agemem_policies.protocol import Turn
    from agemem_training.mini.scene import Exchange
    from agemem_training.sampling import TurnSampler
    from agemem_training.tasks.source import Split

SKILLS = ("names", "numbers", "closed lists", "ids", "first query", "second query", "answers")
_BATCH = 64


@dataclass(frozen=True, slots=True)
class SkillResult:
    """How often a skill was shown."""

    skill: str
    right: int
    tried: int


def measure_skills(
    sampler: TurnSampler, *, system: str, drills: int = 300, split: Split = "test", seed: int = 0
) -> list[SkillResult]:
    """Measure each skill.

    Args:
        sampler: of the policy, at temperature 0.
        system: the policy's system prompt.
        drills: how many; each shows one to three skills.
        split: whose names and wording they use.
        seed: of the drills.
    """
    rng = random.Random(f"skills {seed}")  # noqa: S311  drills, no secrets
    exchanges = [one for _ in range(drills) for one in drill(rng, system=system, split=split)]
    wanted = [(exchange, list(_skills_of(parse(exchange.turn)))) for exchange in exchanges]
    wanted = [(exchange, skills) for exchange, skills in wanted if skills]
    right, tried = Counter[str](), Counter[str]()
    turns = turns_written(sampler, [exchange for exchange, _ in wanted])
    for (exchange, skills), turn in zip(wanted, turns, strict=True):
        if turn is not None and _decision(turn) != _decision(parse(exchange.turn)):
            continue
        written = dict(_skills_of(turn))
        for skill, value in skills:
            tried[skill] += 1
            right[skill] += written.get(skill) == value
    return [SkillResult(skill, right[skill], tried[skill]) for skill in SKILLS]


def turns_written(sampler: TurnSampler, exchanges: Sequence[Exchange]) -> Iterator[Turn | None]:
    """What a policy writes in each of some exchanges of drills; None where that cannot be read.

    Args:
        sampler: of the policy.
        exchanges: that it is shown, each by itself.
    """
    for start in range(0, len(exchanges), _BATCH):
        asked = [
            Asked(number, Prompt(one.shown), np.random.default_rng(number))
            for number, one in enumerate(exchanges[start : start + _BATCH])
        ]
        sampler.forget()
        yield from (_turn(completion.text) for completion in sampler.sample(asked))
    sampler.forget()


def _turn(text: str) -> Turn | None:
    try:
        return parse(text, strict=True)
    except ProtocolViolation:
        return None


def _decision(turn: Turn) -> str:
    """What a turn does, whatever it copies."""
    if turn.calls:
        return turn.calls[0].name
    return "ok" if turn.answer == "ok" else "answer"


def _skills_of(turn: Turn | None) -> Iterator[tuple[str, str]]:
    """Which skills a turn shows, and what it copied."""
    if turn is None:
        return
    if turn.answer is not None:
        if turn.answer != "ok":
            yield "answers", turn.answer
        return
    call = turn.calls[0]
    if "content" in call.arguments:
        content = str(call.arguments["content"])
        yield _kind_of(content), content
    if "memory_id" in call.arguments:
        yield "ids", str(call.arguments["memory_id"])
    if "query" in call.arguments:
        yield ("first query" if turn.think == "look up" else "second query"), str(call.arguments["query"])


def _kind_of(content: str) -> str:
    value = next((one.value for one in RELATIONS.values() if f" {one.mark} " in f" {content} "), None)
    return {"food": "closed lists", "code": "numbers", "date": "numbers"}.get(value or "", "names")
