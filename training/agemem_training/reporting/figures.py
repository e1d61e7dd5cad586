"""What episodes came to, as figures by name: for training and evaluation alike.

.. code-block:: text

    total, success, tools, strict/…, paper/…    what Reward.figures() tells
    calls/Add_memory, … (all six)               calls of the policy in an episode, failed ones included
    steps                                       turns of the policy in an episode
    prompt_tokens                               what the policy read in an episode, all its prompts together
    ungraded                                    grades that a judge did not give in an episode; without a judge none

All six tools always have a figure: a tool that dies out is a line that falls to 0, not one that ends.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from agemem_mcp.domain.operations import SIX, tool_name
from agemem_mcp.errors import InvalidOperation
from agemem_training.rewards.calls import policy_calls

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_policies.steps import Step
    from agemem_training.record import Episode
    from agemem_training.rewards import Reward

TOOLS = tuple(tool_name(one) for one in SIX)


@dataclass(frozen=True, slots=True)
class EpisodeFigures:
    """The figures of N episodes, one for each in every column."""

    task_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    """What their tasks' label ``kind`` says; empty where there is none."""
    columns: dict[str, tuple[float, ...]]

    def __len__(self) -> int:
        return len(self.task_ids)

    @property
    def successes(self) -> int:
        """How many answers are right."""
        return round(sum(self.columns["success"]))

    def mean(self, name: str) -> float:
        """Of a column."""
        return fmean(self.columns[name])

    def means(self) -> dict[str, float]:
        """Of all columns."""
        return {name: self.mean(name) for name in self.columns}

    def std(self, name: str) -> float:
        """Of a column, with N - 1; 0 for one episode."""
        return stdev(self.columns[name]) if len(self) > 1 else 0.0

    def of_kind(self, kind: str) -> EpisodeFigures:
        """Those of the episodes whose tasks are of one kind."""
        chosen = [number for number, one in enumerate(self.kinds) if one == kind]
        return EpisodeFigures(
            tuple(self.task_ids[number] for number in chosen),
            (kind,) * len(chosen),
            {name: tuple(column[number] for number in chosen) for name, column in self.columns.items()},
        )


def evaluate_figures(episodes: Sequence[Episode], rewards: Sequence[Reward]) -> EpisodeFigures:
    """Compute the figures of episodes from their records and rewards alone.

    Raises:
        InvalidOperation: there are no episodes.
        ValueError: not as many rewards as episodes.
    """
    if not episodes:
        msg = "There are no figures without episodes."
        raise InvalidOperation(msg)
    rows = [reward.figures() | _behaviour(episode) for episode, reward in zip(episodes, rewards, strict=True)]
    return EpisodeFigures(
        tuple(episode.task.task_id for episode in episodes),
        tuple(episode.task.labels.get("kind", "") for episode in episodes),
        {name: tuple(row[name] for row in rows) for name in rows[0]},
    )


def joined_figures(parts: Sequence[EpisodeFigures]) -> EpisodeFigures:
    """The figures of all episodes of all parts.

    Raises:
        InvalidOperation: there are no parts.
    """
    if not parts:
        msg = "There are no figures without episodes."
        raise InvalidOperation(msg)
    return EpisodeFigures(
        tuple(chain.from_iterable(one.task_ids for one in parts)),
        tuple(chain.from_iterable(one.kinds for one in parts)),
        {name: tuple(chain.from_iterable(one.columns[name] for one in parts)) for name in parts[0].columns},
    )


def _behaviour(episode: Episode) -> dict[str, float]:
    called = Counter(call.call.name for call in policy_calls(episode))
    return {f"calls/{tool}": float(called[tool]) for tool in TOOLS} | {
        "steps": float(len(episode.steps)),
        "prompt_tokens": float(sum(_prompt_tokens(step) for step in episode.steps) + episode.summary_tokens),
    }


def _prompt_tokens(step: Step) -> int:
    """As the model counts; of a policy without a model, such as a demonstrator, as the server does."""
    told = step.completion.prompt_tokens
    return step.context_tokens if told is None else told
