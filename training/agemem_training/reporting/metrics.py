"""The record of a training run, iteration by iteration, in a file that survives being killed.

Every line of ``metrics.jsonl`` is an :class:`Iteration` or an :class:`Evaluation` as JSON; its field ``record`` tells
which. A number that is not finite is ``null``.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, TypeAlias, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from agemem_mcp.errors import ConfigurationError
from agemem_training.reporting.figures import EpisodeFigures  # noqa: TC001  pydantic reads the annotations
from agemem_training.reporting.writing import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Phase: TypeAlias = Literal["warm start", "grpo"]
PHASES: tuple[Phase, ...] = get_args(Phase)


def _not_finite(value: Any) -> Any:  # noqa: ANN401  whatever stands in the JSON
    return math.nan if value is None else value


Number: TypeAlias = Annotated[float, BeforeValidator(_not_finite)]
"""JSON knows no NaN: it is ``null`` there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """What the episodes of one iteration were like."""

    episodes: int
    figures: dict[str, Number]
    """The mean over the episodes of every figure; their names stand at the top of `figures.py`."""
    zero_variance_share: Number
    """Of the groups: those whose rewards are all the same, which teach nothing."""
    resampled_groups: int
    """That were rolled out anew because of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an iteration did to the weights; means over its optimizer steps, ``ratio_max`` aside."""

    loss: Number
    gradient_norm: Number
    """Before it was clipped."""
    learning_rate: Number
    entropy: float | None = None
    """Per token, in nats. This and what follows is None in the warm start."""
    kl: float | None = None
    """To the reference policy, per token."""
    clip_share: float | None = None
    ratio_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an iteration took."""

    tokens_rolled_out: int = 0
    """Sampled by the policy."""
    tokens_trained_on: int
    """All that went through the model in the update, prompts included."""
    rollout_s: Number = 0.0
    environment_s: Number = 0.0
    """Of ``rollout_s``: in the memory server."""
    reward_s: Number = 0.0
    update_s: Number

    @property
    def rollout_tokens_per_s(self) -> float:
        """Sampled tokens for each second of rollouts, the environment's included."""
        return self.tokens_rolled_out / self.rollout_s if self.rollout_s else 0.0

    @property
    def update_tokens_per_s(self) -> float:
        """Tokens trained on for each second of updates."""
        return self.tokens_trained_on / self.update_s if self.update_s else 0.0

    @property
    def environment_share(self) -> float:
        """Of the rollouts' time."""
        return self.environment_s / self.rollout_s if self.rollout_s else 0.0


def total_cost(costs: Sequence[Cost]) -> Cost:
    """What some iterations took together."""
    return Cost(
        tokens_rolled_out=sum(cost.tokens_rolled_out for cost in costs),
        tokens_trained_on=sum(cost.tokens_trained_on for cost in costs),
        rollout_s=math.fsum(cost.rollout_s for cost in costs),
        environment_s=math.fsum(cost.environment_s for cost in costs),
        reward_s=math.fsum(cost.reward_s for cost in costs),
        update_s=math.fsum(cost.update_s for cost in costs),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One iteration of training."""

    record: Literal["iteration"] = "iteration"
    iteration: int
    """From 1, on through both phases; in the warm start an iteration is the updates between two records."""
    phase: Phase
    update: Update
    cost: Cost
    rollouts: Rollouts | None = None
    """None in the warm start, which learns from demonstrations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A policy on held-out tasks of one level."""

    record: Literal["evaluation"] = "evaluation"
    iteration: int
    """After which one, those of the warm start counted too: of ``before`` it is their number."""
    name: str
    """Of the run's own policy ``before``, ``during`` or ``after``; else whose, such as ``noisy demonstrator``."""
    level: str
    greedy: bool
    """Whether every token was the likeliest one; else it was sampled."""
    seed: int
    """Of the tasks."""
    episodes: EpisodeFigures


Record: TypeAlias = Iteration | Evaluation

_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="record")])


@dataclass(frozen=True, slots=True)
class Metrics:
    """All that a run recorded, in order."""

    iterations: tuple[Iteration, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()

    def of_phase(self, phase: Phase) -> tuple[Iteration, ...]:
        """The iterations of one phase."""
        return tuple(one for one in self.iterations if one.phase == phase)


class MetricsFile:
    """``metrics.jsonl``: only ever appended to, but for a resume.

    A run that is killed while it writes leaves a line without an end. Such a line is not read, and the next one that is
    appended takes its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Add a line; when this returns it is on the disk.

        Raises:
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            _drop_torn_line(file)
            file.write(_RECORD.dump_json(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Metrics:
        """Read everything; a file that is not there yet is empty.

        Raises:
            ConfigurationError: a line is no record; the text names line and field.
        """
        records = [self._record(line, number) for number, line in enumerate(self._lines(), start=1)]
        return Metrics(
            tuple(one for one in records if isinstance(one, Iteration)),
            tuple(one for one in records if isinstance(one, Evaluation)),
        )

    def truncate(self, iteration: int) -> None:
        """Drop all that came after an iteration: a run that resumes from it records that anew.

        Raises:
            ConfigurationError: see :meth:`read`.
            OSError: the file cannot be written; the old one is whole.
        """
        lines = self._lines()
        kept = [line for number, line in enumerate(lines, start=1) if self._record(line, number).iteration <= iteration]
        write_atomically(self.path, b"".join(line + b"\n" for line in kept))

    def drop_evaluations(self) -> None:
        """Drop what was measured: a run that goes on under other conditions measures anew.

        Raises:
            ConfigurationError: see :meth:`read`.
            OSError: the file cannot be written; the old one is whole.
        """
        lines = self._lines()
        kept = [one for number, one in enumerate(lines, start=1) if isinstance(self._record(one, number), Iteration)]
        write_atomically(self.path, b"".join(line + b"\n" for line in kept))

    def _lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        return data[: _whole(data)].splitlines()

    def _record(self, line: bytes, number: int) -> Record:
        try:
            return _RECORD.validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the line"
            msg = (
                f"{self.path}, line {number}: {where}: {first['msg']}. "
                "It was not written by this version of agemem-mcp train; choose another folder."
            )
            raise ConfigurationError(msg) from error


def _drop_torn_line(file: BinaryIO) -> None:
    if not file.seek(0, os.SEEK_END):
        return
    file.seek(-1, os.SEEK_END)
    if file.read() != b"\n":
        file.seek(0)
        file.truncate(_whole(file.read()))


def _whole(data: bytes) -> int:
    """How many bytes are whole lines."""
    return data.rfind(b"\n") + 1
