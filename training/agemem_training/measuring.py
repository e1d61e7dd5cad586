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
from agemem_training.evaluating import Place, Policy, evaluate
from agemem_training.loading import load_trainable
from agemem_training.reporting.intervals import wilson
from agemem_training.rewards import RewardSettings
from agemem_training.settings_of import judge_of, remembered_vectors, rules_of, world_of
from agemem_training.stopping import Interrupted, single_errors
from agemem_training.tasks.choosing import open_source, parse_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agemem_training.config import RunConfig
    from agemem_training.reporting.figures import EpisodeFigures
    from agemem_training.tasks.recorded import Survey


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
    trainable = load_trainable(config.model.model_copy(update={"path": str(checkpoint), "lora_rank": None}))
    if torch.cuda.is_available():
        trainable.model.to("cuda")
    policy = Policy(trainable.model, trainable.tokenizer, trainable.eos_ids, config.grpo.turn_tokens)
    pay = RewardSettings(variant=config.reward.variant)
    place = Place(rules_of(config), world_of(config, checkpoint, remembered_vectors()), judge_of(config), pay)
    told: list[dict[str, Any]] = []
    for text, source in sources.items():
        figures = await evaluate(
            policy, source, place, split="test", seed=config.seed, episodes=wanted.episodes, greedy=wanted.greedy
        )
        told.append(_summary(text, figures, config.seed, greedy=wanted.greedy))
        if not wanted.as_json:
            typer.echo(_line(told[-1]))
    if wanted.as_json:
        print_json(told)


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
