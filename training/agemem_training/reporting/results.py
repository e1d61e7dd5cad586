"""What a run was and what came of it, as data."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from platform import python_version
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agemem_training.reporting.metrics import Evaluation, Metrics

BEFORE, DURING, AFTER = "before", "during", "after"
"""Names of a run's own evaluations: a report puts the first and the last side by side, and curves draw all three."""

_PACKAGES = ("agemem-mcp", "torch", "transformers", "accelerate", "peft", "tokenizers", "numpy")


def installed_versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on, where they are installed."""
    found = {"python": python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was run."""

    name: str
    """Of the preset."""
    command: str
    seed: int
    parameters: int
    """Of the policy."""
    base_model: str | None
    """What it was trained from, as ``model.path`` names it; None from scratch."""
    versions: dict[str, str]
    wall_s: float
    peak_memory_gb: float
    config: dict[str, Any]
    """Everything that was set, defaults included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillGate:
    """A copying skill, measured apart before GRPO starts."""

    skill: str
    right: int
    n: int
    required: float
    least: int = 1
    """Turns that the skill must be measured by at least: one right of one says nothing."""

    @property
    def passed(self) -> bool:
        """Whether GRPO may start, as far as this skill goes: in any case where nothing is required."""
        return self.required <= 0 or (self.n >= self.least and self.right >= self.required * self.n)

    def __str__(self) -> str:
        """For people: what it came to, and whether that is measured by too few turns."""
        share = f"{self.skill} {self.right / max(self.n, 1):.2f}"
        return share if self.n >= self.least else f"{share} of {self.n} turns, too few to tell: at least {self.least}"


class Setting(NamedTuple):
    """What two evaluations must share to be compared."""

    level: str
    greedy: bool
    seed: int

    @property
    def mode(self) -> str:
        """How tokens were chosen."""
        return "greedy" if self.greedy else "sampled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that a report tells."""

    run: Run
    metrics: Metrics
    """Evaluations of other names than the run's own, such as ``noisy demonstrator``, are compared with *after*."""
    gates: tuple[SkillGate, ...] = ()

    def settings(self) -> list[Setting]:
        """Every setting that something was measured in, not *during* alone, by level, greedy first."""
        found = {Setting(one.level, one.greedy, one.seed) for one in self.metrics.evaluations if one.name != DURING}
        return sorted(found, key=lambda one: (one.level, not one.greedy, one.seed))

    def named(self, name: str, setting: Setting) -> Evaluation | None:
        """One evaluation, if it was made; the last one of several."""
        found = [
            one for one in self.metrics.evaluations if (one.name, one.level, one.greedy, one.seed) == (name, *setting)
        ]
        return found[-1] if found else None

    def pairs(self) -> Iterator[tuple[Setting, Evaluation, Evaluation]]:
        """Before and after, for every setting that has both."""
        for setting in self.settings():
            before, after = self.named(BEFORE, setting), self.named(AFTER, setting)
            if before is not None and after is not None:
                yield setting, before, after

    def others(self) -> list[str]:
        """The names that are none of the run's own, in the order they came."""
        names = dict.fromkeys(one.name for one in self.metrics.evaluations)
        return [name for name in names if name not in {BEFORE, DURING, AFTER}]
