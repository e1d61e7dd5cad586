"""Runs of a tiny policy, and what they leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from agemem_training.progress import Progress
from agemem_training.reporting.metrics import MetricsFile
from agemem_training.run import Wishes, train

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.config import RunConfig
    from agemem_training.tasks.recorded import Survey


def run(config: RunConfig, out: Path, **wishes: Any) -> Path:
    def show(survey: Survey) -> None:
        pytest.fail("nothing is recorded")

    with Progress(silent=True) as progress:
        return train(config, Wishes(out, "agemem-mcp train", **wishes), progress, show)


def totals(out: Path) -> list[tuple[int, dict[str, float], float | None]]:
    """What iterations came to, seconds aside."""
    metrics = MetricsFile(out / "metrics.jsonl").read()
    return [
        (one.iteration, one.rollouts.figures, one.update.kl)
        for one in metrics.of_phase("grpo")
        if one.rollouts is not None
    ]


def evaluations(out: Path) -> list[tuple[str, int, str]]:
    metrics = MetricsFile(out / "metrics.jsonl").read()
    return [(one.name, one.iteration, one.level) for one in metrics.evaluations]


def assert_same(mine: dict[str, torch.Tensor], yours: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == yours.keys()
    assert [name for name in mine if not torch.equal(mine[name], yours[name])] == []
