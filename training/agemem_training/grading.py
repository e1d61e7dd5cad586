"""The rewards of many episodes: by words and gold facts, or with a model that judges.

A reply without a score is asked for again; where none comes, words grade instead, and that is counted: a resumed run
would come to the same reply, so that ending for the sake of one grade would end it for good. A judge that cannot be
asked, or whose replies mostly hold no score, ends the run: rewards of two kinds are no scale to learn from.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.errors import ProviderError
from agemem_training.judges import LLMJudge
from agemem_training.rewards import judged, reward
from agemem_training.stopping import single_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_training.judges import JudgeSettings
    from agemem_training.record import Episode
    from agemem_training.rewards import JudgeScores, Reward, RewardSettings

log = structlog.get_logger(__name__)

_FEW = 8
"""Below so many questions the share that went unanswered says nothing."""


async def graded(
    episodes: Sequence[Episode], settings: RewardSettings, judge: JudgeSettings | None = None
) -> list[Reward]:
    """The rewards of episodes.

    Args:
        episodes: that ended.
        settings: what they are paid for.
        judge: a model that grades as well; None for words alone.

    Raises:
        ProviderError: the judge cannot be asked, or grades hardly anything.
    """
    if judge is None:
        return [reward(one, settings) for one in episodes]
    scores = await _scores(episodes, judge)
    asked = sum(one.asked for one in scores)
    missing = [why for one in scores for why in one.missing]
    if asked >= _FEW and 2 * len(missing) > asked:
        msg = f"The judge graded {asked - len(missing)} of {asked}. {missing[-1]}"
        raise ProviderError(msg)
    if missing:
        log.warning("the judge gave no score, words graded instead", missing=len(missing), asked=asked)
    return [reward(one, settings, given) for one, given in zip(episodes, scores, strict=True)]


async def _scores(episodes: Sequence[Episode], judge: JudgeSettings) -> list[JudgeScores]:
    try:
        with single_errors():
            async with LLMJudge(judge.endpoint) as model, asyncio.TaskGroup() as group:
                memories = model if judge.memories else None
                asked = [group.create_task(judged(one, answers=model, memories=memories)) for one in episodes]
    except ProviderError as error:
        msg = f"The judge cannot be asked. {error}"
        raise ProviderError(msg) from error
    return [one.result() for one in asked]
