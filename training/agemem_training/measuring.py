"""``agemem-mcp train --evaluate``: any checkpoint on fresh held-out tasks."""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import typer
from transformers.utils import logging as transformers_logging

from agemem_mcp.cli.output import print_json
from agemem_training.evaluating import evaluate
from agemem_training.loading import own_device
from agemem_training.measuring_apart import Apart, Measured, measure_apart, policy_at
from agemem_training.reporting.intervals import wilson
from agemem_training.stopping import Interrupted, single_errors
from agemem_training.tasks.choosing import open_source, parse_source
from agemem_training.vectors import VectorBoard, remembered_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agemem_training.config import RunConfig
    from agemem_training.measuring_apart import OnMeasured
    from agemem_training.reporting.figures import EpisodeFigures
    from agemem_training.tasks.recorded import Survey
    from agemem_training.tasks.source import TaskSource


@dataclass(frozen=True, slots=True)
class Measuring:
    """How a checkpoint is measured."""

    episodes: int = 200
    """Of each source."""
    greedy: bool = True
    """Take the most probable token; else sample."""
    as_json: bool = False


def measure(config: RunConfig, checkpoint: Path, wanted: Measuring, *, show: Callable[[Survey], None]) -> None:
    """Measure a checkpoint and tell the figures.

    Args:
        config: how it was trained: sources, server, rules, reward; its seed draws the tasks.
        checkpoint: a folder.
        wanted: how.
        show: shown what is taken of recorded tasks; raises to refuse.

    Raises:
        Interrupted: a person ended it.
        AgeMemError: it cannot be loaded, or the tasks cannot.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        with single_errors():
            asyncio.run(_measure(config, checkpoint, wanted, show))
    except KeyboardInterrupt:
        msg = "Ended; nothing was changed."
        raise Interrupted(msg) from None


async def _measure(config: RunConfig, checkpoint: Path, wanted: Measuring, show: Callable[[Survey], None]) -> None:
    sources = {text: await open_source(parse_source(text), show=show) for text in config.tasks.sources}
    told: list[dict[str, Any]] = []

    def tell(one: Measured, figures: EpisodeFigures) -> None:
        told.append(_summary(one.source, figures, config.seed, greedy=one.greedy))
        if not wanted.as_json:
            typer.echo(_line(told[-1]))

    ways = [Measured(text, wanted.greedy) for text in sources]
    processes = config.processes
    if processes > 1 and own_device(config).type == "cpu":
        what = Apart(config, checkpoint, sources, "test", wanted.episodes)
        await measure_apart(what, ways, processes=processes, on_measured=tell, board=VectorBoard())
    else:
        await _measure_here(config, checkpoint, sources, wanted, tell)
    if wanted.as_json:
        print_json(told)


async def _measure_here(
    config: RunConfig, checkpoint: Path, sources: Mapping[str, TaskSource], wanted: Measuring, tell: OnMeasured
) -> None:
    policy, place = policy_at(config, checkpoint, remembered_vectors())
    policy.model.to(own_device(config))
    for text, source in sources.items():
        figures = await evaluate(
            policy, source, place, split="test", seed=config.seed, episodes=wanted.episodes, greedy=wanted.greedy
        )
        tell(Measured(text, wanted.greedy), figures)


def _summary(source: str, figures: EpisodeFigures, seed: int, *, greedy: bool) -> dict[str, Any]:
    interval = wilson(figures.successes, len(figures))
    return {
        "tasks": source,
        "greedy": greedy,
        "seed": seed,
        "n": len(figures),
        "success": figures.mean("success"),
        "success_95": [interval.low, interval.high],
        "kinds": {kind: figures.of_kind(kind).mean("success") for kind in sorted(set(figures.kinds))},
        "figures": figures.means(),
    }


def _line(summary: dict[str, Any]) -> str:
    low, high = summary["success_95"]
    figures = summary["figures"]
    kinds = ", ".join(f"{kind} {share:.2f}" for kind, share in summary["kinds"].items() if kind)
    return (
        f"{summary['tasks']}: task success {summary['success']:.3f} [{low:.3f}, {high:.3f}] of {summary['n']} "
        f"({'greedy' if summary['greedy'] else 'sampled'}, seed {summary['seed']}); reward {figures['total']:+.3f}"
        + (f"; {kinds}" if kinds else "")
    )
