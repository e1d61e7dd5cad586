"""A run's report: ``report.md`` for people, ``report.json`` for machines, ``curves.png`` beside both.

``report.json`` holds summaries; the figures of each single episode stand in ``metrics.jsonl``.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from agemem_training.reporting.comparing import compare, interval_of
from agemem_training.reporting.curves import draw_curves
from agemem_training.reporting.markdown import report_markdown
from agemem_training.reporting.metrics import PHASES, total_cost
from agemem_training.reporting.results import AFTER
from agemem_training.reporting.writing import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.reporting.figures import EpisodeFigures
    from agemem_training.reporting.metrics import Evaluation, Iteration
    from agemem_training.reporting.results import Results, Setting

SCHEMA_VERSION = 1


def write_report(results: Results, folder: Path) -> None:
    """Write the three files, each of them whole or not at all.

    Raises:
        InvalidOperation: evaluations that are to be compared were made on different tasks.
        OSError: a file cannot be written.
    """
    draw_curves(results.metrics, folder / "curves.png")
    data = to_json(report_data(results), indent=2, inf_nan_mode="null")
    write_atomically(folder / "report.json", data + b"\n")
    write_atomically(folder / "report.md", report_markdown(results))


def report_data(results: Results) -> dict[str, Any]:
    """What ``report.json`` holds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": asdict(results.run),
        "gates": [asdict(gate) | {"passed": gate.passed} for gate in results.gates],
        "evaluations": [_evaluation(one) for one in results.metrics.evaluations],
        "before_after": [_setting(setting) | _differences(before, after) for setting, before, after in results.pairs()],
        "compared_with": [one for setting in results.settings() for one in _compared(results, setting)],
        "speed": {phase: _speed(results.metrics.of_phase(phase)) for phase in PHASES},
        "iterations": [asdict(one) for one in results.metrics.iterations],
    }


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    episodes = evaluation.episodes
    return {
        "name": evaluation.name,
        "iteration": evaluation.iteration,
        "level": evaluation.level,
        "greedy": evaluation.greedy,
        "seed": evaluation.seed,
        **_success(episodes),
        "figures": {
            name: asdict(interval_of(episodes, name)) | {"std": episodes.std(name)} for name in episodes.columns
        },
        "kinds": {kind: _success(episodes.of_kind(kind)) for kind in sorted(set(episodes.kinds) - {""})},
    }


def _success(episodes: EpisodeFigures) -> dict[str, Any]:
    return {"n": len(episodes), "successes": episodes.successes, "success": asdict(interval_of(episodes))}


def _setting(setting: Setting) -> dict[str, Any]:
    return setting._asdict()


def _differences(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    return {
        "differences": {
            name: asdict(one.difference) | {"before": one.before, "after": one.after, "verdict": one.verdict}
            for name, one in compare(before, after).items()
        }
    }


def _compared(results: Results, setting: Setting) -> list[dict[str, Any]]:
    after = results.named(AFTER, setting)
    found = [(name, results.named(name, setting)) for name in results.others()]
    return [
        {"name": name} | _setting(setting) | _differences(other, after)
        for name, other in found
        if other is not None and after is not None
    ]


def _speed(iterations: tuple[Iteration, ...]) -> dict[str, Any]:
    cost = total_cost([one.cost for one in iterations])
    return asdict(cost) | {
        "rollout_tokens_per_s": cost.rollout_tokens_per_s,
        "update_tokens_per_s": cost.update_tokens_per_s,
        "environment_share": cost.environment_share,
    }
