"""What the reward, the tools and reinforcement learning itself are worth: runs of the mini preset, side by side.

    python benchmarks/ablations.py --out runs/ablations [--only NAME ...] [--iterations N] [--episodes N] [--start DIR]
                                   [--threads N] [--sampled]

Every run begins with the shipped warm start, or with --start, is measured greedily, with --sampled both ways, and has
the same number of iterations, tasks and trajectories; "supervised" has about the time of a run's rollouts and updates
instead. A run whose report is in the folder already is not repeated, so they may be made one after the other, in
several processes too (--only). What is there is told in the end as a table, ablations.md, and a picture, ablations.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agemem_training.config import SHIPPED, RunConfig, WarmStartConfig, as_toml, changed, load_preset
from agemem_training.reporting.axes import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Series,
    dress,
    line,
)
from agemem_training.reporting.comparing import compare, interval_of
from agemem_training.reporting.metrics import MetricsFile
from agemem_training.reporting.results import AFTER, BEFORE
from agemem_training.reporting.tables import LEGEND, MISSING, signed, table, with_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agemem_training.reporting.metrics import Evaluation, Metrics

LEVELS = ("L1", "L2", "L3")
_SUPERVISED_STEPS = 3600
"""Rollouts and updates of the preset's 50 iterations took 492 s, a step .135 s, in the run that is shipped."""
_L3 = {"sources": ("synthetic:L3",), "weights": None}
_NO_CONTEXT_TOOLS = {"overflow": "truncate_oldest"}
"""Who cannot make room is shown the newest of a context; else a story that fills it ends there, as for all others."""


@dataclass(frozen=True)
class Variant:
    """A run, as it differs from the others."""

    what: str
    colour: str
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])


_MORE_DEMONSTRATIONS = WarmStartConfig(repeat_steps=0, drill_steps=0, episode_steps=_SUPERVISED_STEPS, drill_share=0.5)
VARIANTS = {
    "strict": Variant("strict reward", BLUE),
    "strict-1": Variant("strict reward, seed 1", SKY, {"run": {"seed": 1}}),
    "strict-2": Variant("strict reward, seed 2", GREEN, {"run": {"seed": 2}}),
    "paper": Variant("paper's reward", ORANGE, {"reward": {"variant": "paper"}}),
    "answer": Variant("answer alone", VERMILLION, {"reward": {"variant": "answer"}}),
    "supervised": Variant(
        "supervised training continued", BLACK, {"run": {"warm_start": _MORE_DEMONSTRATIONS}, "grpo": {"iterations": 0}}
    ),
    "ltm": Variant(
        "tools of long-term memory alone", PURPLE, {"environment": {"kit": "agemem_ltm", **_NO_CONTEXT_TOOLS}}
    ),
    "ltm-hard": Variant("the same, a full context ends a story", BLACK, {"environment": {"kit": "agemem_ltm"}}),
    "ltm-rag": Variant(
        "long-term memory alone, retrieval by itself", GREY, {"environment": {"kit": "agemem_rag", **_NO_CONTEXT_TOOLS}}
    ),
    "no-memory": Variant(
        "no tools",
        BLACK,
        {"environment": {"kit": "no_memory", **_NO_CONTEXT_TOOLS}, "grpo": {"iterations": 0}, "tasks": _L3},
    ),
}
SAME_STORIES = ("paper", "answer", "supervised", "ltm", "ltm-hard", "ltm-rag")
"""What the strict reward is compared with, story by story: runs of the same seed, measured at every level."""
LADDER = (
    ("no memory", "no-memory", BEFORE),
    ("LTM tools, retrieval by itself", "ltm-rag", BEFORE),
    ("LTM tools, retrieval by itself + RL", "ltm-rag", AFTER),
    ("LTM tools, a full context ends a story", "ltm-hard", BEFORE),
    ("LTM tools, a full context ends a story + RL", "ltm-hard", AFTER),
    ("LTM tools", "ltm", BEFORE),
    ("LTM tools + RL", "ltm", AFTER),
    ("LTM + STM tools", "strict", BEFORE),
    ("LTM + STM tools + RL", "strict", AFTER),
)


def main() -> None:
    """Make the runs that are wanted and not there; then tell of all that are."""
    wanted = _wanted()
    wanted.out.mkdir(parents=True, exist_ok=True)
    for name in wanted.only or VARIANTS:
        folder = wanted.out / name
        if (folder / "report.json").is_file():
            continue
        file = wanted.out / f"{name}.toml"
        file.write_text(as_toml(_configured(VARIANTS[name], wanted)), encoding="utf-8")
        command = [sys.executable, "-m", "agemem_mcp", "train", "--config", str(file), "--out", str(folder), "--force"]
        subprocess.run(command, check=True)
    found = {name: MetricsFile(wanted.out / name / "metrics.jsonl").read() for name in VARIANTS}
    found = {name: metrics for name, metrics in found.items() if metrics.evaluations}
    text = _told(found)
    (wanted.out / "ablations.md").write_text(text, encoding="utf-8")
    FigureCanvasAgg(_figure(found)).print_png(str(wanted.out / "ablations.png"))
    print(text)


def _wanted() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS))
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--start", default=SHIPPED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sampled", action="store_true")
    return parser.parse_args()


def _configured(variant: Variant, wanted: argparse.Namespace) -> RunConfig:
    mini = load_preset("mini")
    iterations = mini.grpo.iterations if wanted.iterations is None else wanted.iterations
    config = changed(
        mini,
        run={"warm_start": None, "threads": wanted.threads, "processes": wanted.threads, "preset": "custom"},
        model={"path": wanted.start},
        grpo={"iterations": iterations},
        evaluation={"final_episodes": wanted.episodes, "sampled": wanted.sampled},
    )
    return changed(config, **variant.tables)


def _told(found: Mapping[str, Metrics]) -> str:
    """Task success of every run at every level, how much more the strict reward reaches, and the ladder at L3."""
    success = [
        [VARIANTS[name].what, *(cell for level in LEVELS for cell in _cells(metrics, level))]
        for name, metrics in found.items()
    ]
    header = ["run", *(one for level in LEVELS for one in (level, "difference to its start"))]
    lead = [[VARIANTS[name].what, *_lead(found, name)] for name in SAME_STORIES if {name, "strict"} <= found.keys()]
    ahead = ["strict reward, less", *(f"{level}, {what}" for level in LEVELS for what in ("success", "strict total"))]
    rungs: list[list[str]] = []
    for rung, name, when in LADDER:
        one = _evaluation(found[name], when, "L3") if name in found else None
        if one is not None:
            strict = one.episodes.mean("strict/total")
            rungs.append([rung, with_interval(interval_of(one.episodes)), f"{strict:.3f}", _calls(one)])
    ladder = table(["at L3", "task success", "strict total", "calls in an episode"], rungs)
    return "\n\n".join([table(header, success), *([table(ahead, lead)] if lead else []), ladder, LEGEND]) + "\n"


def _cells(metrics: Metrics, level: str) -> tuple[str, str]:
    """Task success at the end, and how it differs from what it was before reinforcement learning."""
    before, after, last = _evaluation(metrics, BEFORE, level), _evaluation(metrics, AFTER, level), _last(metrics, level)
    if last is None:
        return MISSING, MISSING
    difference = MISSING
    if before and after and metrics.of_phase("grpo"):
        difference = signed(compare(before, after)["success"])
    return with_interval(interval_of(last.episodes)), difference


def _lead(found: Mapping[str, Metrics], name: str) -> list[str]:
    """What the strict reward has reached in the end, at each level, less what this run has."""
    cells: list[str] = []
    for level in LEVELS:
        other, strict = _last(found[name], level), _last(found["strict"], level)
        differences = compare(other, strict) if other and strict else None
        cells += [signed(differences[one]) if differences else MISSING for one in ("success", "strict/total")]
    return cells


def _last(metrics: Metrics, level: str) -> Evaluation | None:
    """The end of a run, also of one without reinforcement learning."""
    return _evaluation(metrics, AFTER, level) or _evaluation(metrics, BEFORE, level)


def _evaluation(metrics: Metrics, name: str, level: str) -> Evaluation | None:
    wanted = (name, level, True)
    return next((one for one in metrics.evaluations if (one.name, one.level, one.greedy) == wanted), None)


def _calls(one: Evaluation) -> str:
    names = [name for name in one.episodes.columns if name.startswith("calls/")]
    return ", ".join(f"{name.removeprefix('calls/').split('_')[0]} {one.episodes.mean(name):.1f}" for name in names)


def _figure(found: Mapping[str, Metrics]) -> Figure:
    """Task success and both totals of the rollouts, iteration by iteration."""
    figure = Figure(figsize=(15, 5.5), dpi=100, layout="constrained", facecolor="white")
    panels = {"success": "Task success", "strict/total": "Strict total", "paper/total": "Paper's total"}
    for ax, (column, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        dress(ax, f"{title}, training rollouts")
        for name, metrics in found.items():
            series = _series(metrics, column)
            if series.values:
                line(ax, series, VARIANTS[name].colour)
                ax.plot([], [], color=VARIANTS[name].colour, label=VARIANTS[name].what)
        ax.set_xlabel("iteration of GRPO")
    # Each panel has the same lines.
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _series(metrics: Metrics, column: str) -> Series:
    rolled: Sequence[Any] = [one for one in metrics.of_phase("grpo") if one.rollouts is not None]
    return Series(list(range(1, len(rolled) + 1)), [one.rollouts.figures[column] for one in rolled])


if __name__ == "__main__":
    main()
