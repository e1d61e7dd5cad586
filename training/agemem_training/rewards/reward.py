"""The terms put together; what they are stands at the top of the package."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

from agemem_policies.steps import StopReason
from agemem_training.facts import coverage
from agemem_training.judges import NoScore, answer_score, success
from agemem_training.rewards.calls import found_it_unknown, had_effect, policy_calls, retrieved
from agemem_training.rewards.context import (
    answered,
    compression,
    paper_preservation,
    paper_preventive,
    strict_preservation,
    strict_preventive,
    went_over,
)
from agemem_training.rewards.store import (
    added_in_stage_1,
    paper_maintenance,
    paper_storage,
    strict_maintenance,
    strict_storage,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agemem_training.judges import AnswerJudge, MemoryJudge
    from agemem_training.record import Episode

Variant: TypeAlias = Literal["paper", "strict", "released", "answer"]

_RAN_OUT = (StopReason.MAX_ROUNDS, StopReason.MAX_CALLS, StopReason.REPEATED_CALLS)
_RELEASED_TASK, _RELEASED_TOOLS, _RELEASED_CONTEXT, _RELEASED_MEMORY = 0.5, 0.2, 0.15, 0.15


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """What an episode is paid for."""

    variant: Variant = "strict"
    """Which total a policy is trained on; the others are computed as well."""
    w_task: float = 1 / 3
    w_context: float = 1 / 3
    w_memory: float = 1 / 3
    rounds_penalty: float = 1.0
    overflow_penalty: float = 0.5
    no_effect_cost: float = 0.02
    """For each call without effect, in the strict variant."""
    clip: float | None = None
    """Largest size of the total, either way; the released code's is 1 in any case."""


@dataclass(frozen=True, slots=True)
class JudgeScores:
    """What judges said, from 0 to 1; None leaves a term to words and gold facts."""

    answer: float | None = None
    storage: float | None = None
    """Of the entries added in stage 1 (paper)."""
    relevance: float | None = None
    """Of what was retrieved in stage 3."""
    asked: int = 0
    """So many grades were asked for."""
    missing: tuple[str, ...] = ()
    """Why some of those were not given."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Every component of one variant; penalties are 0 or negative."""

    task: float
    compression: float
    preventive: float
    preservation: float
    context: float
    storage: float
    maintenance: float
    relevance: float
    memory: float
    penalty_rounds: float
    penalty_overflow: float
    penalty_no_effect: float
    no_effect_calls: int
    total: float


@dataclass(frozen=True, slots=True)
class Reward:
    """What an episode is worth."""

    total: float
    """Of the variant that was asked for: the terminal reward r_T."""
    success: bool
    """Whether the answer is right, apart from all rewards."""
    paper: Terms
    strict: Terms
    tools: float
    """Share of the policy's calls that had an effect (released)."""
    ungraded: int | None = None
    """Grades that a judge was asked for and did not give, so that words gave them; None where there is no judge."""

    def figures(self) -> dict[str, float]:
        """Everything by name, such as ``strict/storage``, for logs and reports."""
        named = {"total": self.total, "success": float(self.success), "tools": self.tools}
        for variant, terms in (("paper", self.paper), ("strict", self.strict)):
            named |= {f"{variant}/{one.name}": float(getattr(terms, one.name)) for one in fields(terms)}
        return named if self.ungraded is None else named | {"ungraded": float(self.ungraded)}


def reward(episode: Episode, settings: RewardSettings = RewardSettings(), scores: JudgeScores | None = None) -> Reward:
    """The reward of an episode.

    Args:
        episode: that ended.
        settings: which variant, and how its terms weigh.
        scores: of judges; None where there are none. See :func:`judged`.
    """
    ungraded = None if scores is None else len(scores.missing)
    scores = scores or JudgeScores()
    task = _task(episode, scores)
    calls = policy_calls(episode)
    idle = sum(not had_effect(call, episode) for call in calls)
    tools = (len(calls) - idle) / max(1, len(calls))
    relevance = _relevance(episode) if scores.relevance is None else scores.relevance
    paper = _terms(
        episode,
        settings,
        task=task,
        preventive=paper_preventive(episode),
        preservation=paper_preservation(episode),
        storage=paper_storage(episode) if scores.storage is None else scores.storage,
        maintenance=paper_maintenance(episode),
        relevance=relevance,
        no_effect_calls=idle,
        no_effect_cost=0.0,
    )
    strict = _terms(
        episode,
        settings,
        task=task,
        preventive=strict_preventive(episode),
        preservation=strict_preservation(episode),
        storage=strict_storage(episode),
        maintenance=strict_maintenance(episode),
        relevance=relevance,
        no_effect_calls=idle,
        no_effect_cost=settings.no_effect_cost,
    )
    totals = {"paper": paper.total, "strict": strict.total, "released": _released(paper, tools), "answer": task}
    total = _clipped(totals[settings.variant], settings.clip)
    return Reward(total, _succeeded(episode), paper, strict, tools, ungraded)


async def judged(
    episode: Episode, *, answers: AnswerJudge | None = None, memories: MemoryJudge | None = None
) -> JudgeScores:
    """Ask judges about an episode, all questions at once.

    What no judge is given for, or gives no grade for, stays with words and gold facts; so do the memories of a task
    without gold facts, for which there is nothing to be useful.

    Raises:
        ExceptionGroup: of ``ProviderError``: a judge cannot be asked.
    """
    task = episode.task
    questions: dict[str, Coroutine[None, None, float]] = {}
    if answers and answered(episode):
        questions["answer"] = answers.grade_answer(episode.answer or "", task)
    if memories and task.gold:
        shown = {"storage": added_in_stage_1(episode), "relevance": retrieved(episode)}
        # None at all are worth nothing, by words as well.
        questions |= {name: memories.grade_memories(texts, task) for name, texts in shown.items() if texts}
    async with asyncio.TaskGroup() as group:
        asked = {name: group.create_task(_grade(one)) for name, one in questions.items()}
    grades = {name: one.result() for name, one in asked.items()}
    given = {name: grade for name, grade in grades.items() if not isinstance(grade, str)}
    missing = tuple(grade for grade in grades.values() if isinstance(grade, str))
    return JudgeScores(**given, asked=len(questions), missing=missing)


async def _grade(question: Coroutine[None, None, float]) -> float | str:
    """A grade, or why there is none."""
    try:
        return await question
    except NoScore as error:
        return str(error)


def _terms(  # noqa: PLR0913  one per component
    episode: Episode,
    settings: RewardSettings,
    *,
    task: float,
    preventive: float,
    preservation: float,
    storage: float,
    maintenance: float,
    relevance: float,
    no_effect_calls: int,
    no_effect_cost: float,
) -> Terms:
    small = compression(episode)
    context = (small + preventive + preservation) / 3
    memory = (storage + maintenance + relevance) / 3
    rounds = -settings.rounds_penalty * (episode.stop_reason in _RAN_OUT)
    overflow = -settings.overflow_penalty * went_over(episode)
    no_effect = -no_effect_cost * no_effect_calls
    weighed = settings.w_task * task + settings.w_context * context + settings.w_memory * memory
    return Terms(
        task=task,
        compression=small,
        preventive=preventive,
        preservation=preservation,
        context=context,
        storage=storage,
        maintenance=maintenance,
        relevance=relevance,
        memory=memory,
        penalty_rounds=rounds,
        penalty_overflow=overflow,
        penalty_no_effect=no_effect,
        no_effect_calls=no_effect_calls,
        total=weighed + rounds + overflow + no_effect,
    )


def _task(episode: Episode, scores: JudgeScores) -> float:
    if not answered(episode):
        return -1.0
    return answer_score(episode.answer or "", episode.task) if scores.answer is None else scores.answer


def _succeeded(episode: Episode) -> bool:
    return answered(episode) and success(episode.answer, episode.task)


def _relevance(episode: Episode) -> float:
    if not episode.task.gold:
        return float(found_it_unknown(episode))
    return coverage(episode.task.gold, retrieved(episode) or [])


def _released(paper: Terms, tools: float) -> float:
    weighed = (
        _RELEASED_TASK * paper.task
        + _RELEASED_TOOLS * tools
        + _RELEASED_CONTEXT * paper.context
        + _RELEASED_MEMORY * paper.memory
    )
    return _clipped(weighed + paper.penalty_rounds + paper.penalty_overflow, 1.0)


def _clipped(total: float, size: float | None) -> float:
    return total if size is None else max(-size, min(size, total))
