"""``agemem-mcp train --evaluate``: any checkpoint on fresh held-out tasks."""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false, reportUnknownVariableType=false

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
import typer

from agemem_training.evaluating import Place, Policy, evaluate
from agemem_training.loading import load_trainable
from agemem_training.reporting.intervals import wilson
from agemem_training.rewards import RewardSettings
from agemem_training.settings_of import judge_of, rules_of, world_of
from agemem_training.tasks.choosing import open_source, parse_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agemem_training.config import RunConfig
    from agemem_training.reporting.figures import EpisodeFigures
    from agemem_training.tasks.recorded import Survey


async def measure(  # noqa: PLR0913  one per option
    config: RunConfig,
    checkpoint: Path,
    *,
    episodes: int,
    greedy: bool,
    as_json: bool,
    show: Callable[[Survey], None],
) -> None:
    """Measure a checkpoint and tell the figures.

    Args:
        config: how it was trained: sources, server, rules, reward; its seed draws the tasks.
        checkpoint: a folder.
        episodes: of each source.
        greedy: take the most probable token.
        as_json: tell them as JSON.
        show: shown what is taken of recorded tasks.

    Raises:
        AgeMemError: it cannot be loaded, or the tasks cannot.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    plain = config.model.model_copy(update={"path": str(checkpoint), "lora_rank": None})
    trainable = load_trainable(plain)
    policy = Policy(trainable.model, trainable.tokenizer, trainable.eos_ids, config.grpo.turn_tokens)
    pay = RewardSettings(variant=config.reward.variant)
    place = Place(rules_of(config), world_of(config, checkpoint), judge_of(config), pay)
    told: list[dict[str, Any]] = []
    for text in config.tasks.sources:
        source = await open_source(parse_source(text), show=show)
        figures = await evaluate(
            policy, source, place, split="test", seed=config.seed, episodes=episodes, greedy=greedy
        )
        told.append(_summary(text, figures, config.seed, greedy=greedy))
        if not as_json:
            typer.echo(_line(told[-1]))
    if as_json:
        typer.echo(json.dumps(told, indent=2))


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
