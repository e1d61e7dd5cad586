"""Two measurements on the same tasks, figure by figure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

from agemem_mcp.errors import InvalidOperation
from agemem_training.reporting.intervals import Interval, difference_interval, mean_interval, wilson
from agemem_training.rewards import Terms

if TYPE_CHECKING:
    from agemem_training.reporting.figures import EpisodeFigures
    from agemem_training.reporting.metrics import Evaluation

Verdict: TypeAlias = Literal["rose", "fell", "fell within the interval", "same"]

COMPONENTS = tuple(one.name for one in fields(Terms))
"""Of each variant, in the order of reports."""
VARIANTS = ("strict", "paper")
_SMALLEST = 5e-4
"""That is seen of a difference in a report, which rounds to a thousandth."""
_NEITHER_GOOD_NOR_BAD = ("steps", "prompt_tokens", "ungraded")


def interval_of(episodes: EpisodeFigures, name: str = "success") -> Interval:
    """A figure of some episodes and how sure it is."""
    if name == "success":
        return wilson(episodes.successes, len(episodes))
    return mean_interval(episodes.columns[name])


@dataclass(frozen=True, slots=True)
class Difference:
    """How one figure changed."""

    name: str
    before: float
    after: float
    difference: Interval
    """After minus before, paired by task."""

    @property
    def verdict(self) -> Verdict | None:
        """What became of something that is better the higher it is; None for what is not, such as counts of calls."""
        if self.name in _NEITHER_GOOD_NOR_BAD or self.name.startswith("calls/") or self.name.endswith("_calls"):
            return None
        if abs(self.difference.estimate) < _SMALLEST:
            return "same"
        if self.difference.above_zero:
            return "rose"
        if self.difference.below_zero:
            return "fell"
        return "fell within the interval" if self.difference.negative else "same"


def compare(before: Evaluation, after: Evaluation) -> dict[str, Difference]:
    """Compare all figures that both have: without a judge there are no grades to miss.

    Raises:
        InvalidOperation: they were measured on different tasks, so that nothing can be paired.
    """
    if before.episodes.task_ids != after.episodes.task_ids:
        msg = (
            f"{before.name!r} and {after.name!r} at {after.level} were measured on different tasks. "
            "Measure both with the same seed and number of episodes."
        )
        raise InvalidOperation(msg)
    return {
        name: Difference(
            name,
            before.episodes.mean(name),
            after.episodes.mean(name),
            difference_interval(before.episodes.columns[name], column),
        )
        for name, column in after.episodes.columns.items()
        if name in before.episodes.columns
    }
