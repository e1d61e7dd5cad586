"""How a run went, as one picture of 1600 x 1000 points.

Above task success beside the reward, never one without the other; in the middle every component in both variants; below
what the update did and what it all took.
"""

from __future__ import annotations

import io
import itertools
from math import isfinite
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from agemem_training.reporting.axes import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    SMALL_PT,
    TEXT_PT,
    VERMILLION,
    Series,
    dress,
    empty,
    label_ends,
    line,
    running_mean,
)
from agemem_training.reporting.comparing import interval_of
from agemem_training.reporting.figures import TOOLS
from agemem_training.reporting.results import AFTER, BEFORE, DURING
from agemem_training.reporting.writing import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.gridspec import GridSpec

    from agemem_training.reporting.axes import Style
    from agemem_training.reporting.metrics import Evaluation, Iteration, Metrics, Phase

_WIDTH_IN, _HEIGHT_IN, _DPI = 16, 10, 100
_COLUMNS = 6
_COMPONENTS = (
    ("task", "compression", "preventive", "preservation", "context", "penalty_rounds"),
    ("no_effect_calls", "storage", "maintenance", "relevance", "memory", "penalty_overflow"),
)
"""The penalty for calls without effect is their number times a constant."""
TITLES = {
    "task": "task",
    "context": "context (mean of the three)",
    "memory": "memory (mean of the three)",
    "penalty_rounds": "penalty: rounds",
    "penalty_overflow": "penalty: overflow",
    "no_effect_calls": "calls without effect",
}
_VARIANTS: dict[str, tuple[str, Style]] = {"strict": (BLUE, "-"), "paper": (ORANGE, "--")}
_DODGE = 0.006
"""Between held-out points of the same iteration, of the run's length."""
_TOOL_COLOURS = dict(zip(TOOLS, (BLUE, ORANGE, VERMILLION, GREEN, PURPLE, SKY), strict=True))
_LEVEL_COLOURS = (GREEN, PURPLE, VERMILLION, SKY)
_PHASES: dict[Phase, str] = {"warm start": "warm start", "grpo": "GRPO"}
_NO_ROLLOUTS = "no rollouts"


def draw_curves(metrics: Metrics, path: Path) -> None:
    """Write the picture, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    picture = io.BytesIO()
    FigureCanvasAgg(curves(metrics)).print_png(picture)
    write_atomically(path, picture.getvalue())


def curves(metrics: Metrics) -> Figure:
    """The picture, not drawn yet."""
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(4, _COLUMNS, height_ratios=[1.75, 1, 1, 1])
    own = [one for one in metrics.evaluations if one.name in {BEFORE, DURING, AFTER}]
    _success(figure.add_subplot(grid[0, 0:2]), metrics, own)
    _rewards(figure.add_subplot(grid[0, 2:4]), metrics, own)
    _tools(figure.add_subplot(grid[0, 4:6]), metrics)
    for row, names in enumerate(_COMPONENTS, start=1):
        for column, name in enumerate(names):
            _component(figure.add_subplot(grid[row, column]), metrics, name)
    _update_and_cost(figure, grid, metrics)
    figure.supxlabel(_axis(metrics), fontsize=TEXT_PT + 1, color="#444444")
    return figure


def _axis(metrics: Metrics) -> str:
    """What the iterations are."""
    spans = [
        f"{said} {found[0].iteration} to {found[-1].iteration}"
        for phase, said in _PHASES.items()
        if (found := metrics.of_phase(phase))
    ]
    return f"iteration ({', '.join(spans)})" if spans else "iteration"


def _success(ax: Axes, metrics: Metrics, evaluations: list[Evaluation]) -> None:
    dress(ax, "Task success")
    rollouts = _of_rollouts(metrics, "success")
    if not rollouts and not evaluations:
        empty(ax, _NO_ROLLOUTS)
        return
    if rollouts:
        line(ax, rollouts, BLACK)
    _held_out(ax, evaluations, "success")
    ax.set_ylim(-0.03, 1.03)
    _legend(ax, _keys(evaluations, {"training rollouts": BLACK} if rollouts else {}), 3)


def _rewards(ax: Axes, metrics: Metrics, evaluations: list[Evaluation]) -> None:
    dress(ax, "Total reward")
    totals = {
        "strict": (_of_rollouts(metrics, "strict/total"), BLUE),
        "paper": (_of_rollouts(metrics, "paper/total"), ORANGE),
    }
    trained_on = _of_rollouts(metrics, "total")
    if trained_on not in [series for series, _ in totals.values()]:
        totals["trained on"] = (trained_on, BLACK)
    drawn = {name: colour for name, (series, colour) in totals.items() if series}
    if not drawn and not evaluations:
        empty(ax, _NO_ROLLOUTS)
        return
    for series, colour in totals.values():
        if series:
            line(ax, series, colour)
    _held_out(ax, evaluations, "strict/total")
    keys = _keys([], drawn)
    if evaluations:
        keys.append(Line2D([], [], color=GREY, marker="o", linewidth=1.0, label="strict, held-out"))
    _legend(ax, keys, 2)


def _held_out(ax: Axes, evaluations: list[Evaluation], name: str) -> None:
    """Draw what a policy reached on held-out tasks: one line for each level, greedy filled and sampled hollow."""
    colours = _level_colours(evaluations)
    # Drawn a little apart: intervals at the same iteration would hide one another.
    apart = max((one.iteration for one in evaluations), default=0) * _DODGE
    for place, (level, greedy) in enumerate(sorted({(one.level, one.greedy) for one in evaluations})):
        chosen = sorted(
            (one for one in evaluations if (one.level, one.greedy) == (level, greedy)), key=lambda one: one.iteration
        )
        intervals = [interval_of(one.episodes, name) for one in chosen]
        ax.errorbar(
            [one.iteration + place * apart for one in chosen],
            [one.estimate for one in intervals],
            yerr=[
                [_reach(one.estimate - one.low) for one in intervals],
                [_reach(one.high - one.estimate) for one in intervals],
            ],
            color=colours[level],
            markerfacecolor=colours[level] if greedy else "white",
            fmt="o-" if greedy else "o--",
            markersize=6,
            linewidth=1.0,
            elinewidth=1.2,
            capsize=2.5,
        )


def _reach(length: float) -> float:
    """Of an interval's arm: none where a single episode says nothing, nor below 0 by rounding."""
    return max(0.0, length) if isfinite(length) else 0.0


def _keys(evaluations: list[Evaluation], lines: dict[str, str]) -> list[Line2D]:
    keys = [Line2D([], [], color=colour, linewidth=1.9, label=name) for name, colour in lines.items()]
    keys += [
        Line2D([], [], color=colour, marker="o", linewidth=1.0, label=f"held-out {level}")
        for level, colour in _level_colours(evaluations).items()
    ]
    if {one.greedy for one in evaluations} == {True, False}:
        keys += [
            Line2D([], [], color=GREY, marker="o", linewidth=1.0, label="greedy"),
            Line2D([], [], color=GREY, marker="o", linewidth=1.0, ls="--", markerfacecolor="white", label="sampled"),
        ]
    return keys


def _level_colours(evaluations: list[Evaluation]) -> dict[str, str]:
    levels = sorted({one.level for one in evaluations})
    return dict(zip(levels, itertools.cycle(_LEVEL_COLOURS)))


def _legend(ax: Axes, keys: list[Line2D], columns: int) -> None:
    """Put a legend above a panel, beside its title: inside it would hide something."""
    ax.legend(
        handles=keys,
        ncols=columns,
        fontsize=SMALL_PT,
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        labelspacing=0.25,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        borderaxespad=0.2,
    )


def _tools(ax: Axes, metrics: Metrics) -> None:
    dress(ax, "Tool calls per episode")
    ends: list[tuple[float, str, str]] = []
    for tool, colour in _TOOL_COLOURS.items():
        if series := _of_rollouts(metrics, f"calls/{tool}"):
            ends.append((line(ax, series, colour), tool, colour))
    if not ends:
        empty(ax, _NO_ROLLOUTS)
        return
    ax.set_ylim(bottom=0)
    label_ends(ax, ends)


def _component(ax: Axes, metrics: Metrics, name: str) -> None:
    dress(ax, TITLES.get(name, name), small=True)
    drawn = [
        line(ax, series, colour, style=style)
        for variant, (colour, style) in _VARIANTS.items()
        if (series := _of_rollouts(metrics, f"{variant}/{name}"))
    ]
    if not drawn:
        empty(ax, _NO_ROLLOUTS)
        return
    if name == _COMPONENTS[0][0]:
        keys = [Line2D([], [], color=colour, linestyle=style, label=one) for one, (colour, style) in _VARIANTS.items()]
        _legend(ax, keys, 2)
    if name == "no_effect_calls":
        ax.set_ylim(bottom=0)
    elif name.startswith("penalty"):
        ax.set_ylim(top=max(0.005, ax.get_ylim()[1]))
    else:
        ax.set_ylim(min(-0.04, ax.get_ylim()[0]), 1.04)


def _update_and_cost(figure: Figure, grid: GridSpec, metrics: Metrics) -> None:
    warm_start, grpo = metrics.of_phase("warm start"), metrics.of_phase("grpo")
    panels: tuple[tuple[str, str, Series], ...] = (
        ("loss of the warm start", "no warm start", _series(warm_start, lambda one: one.update.loss)),
        ("KL to the reference", "no GRPO", _series(grpo, lambda one: one.update.kl)),
        ("entropy per token", "no GRPO", _series(grpo, lambda one: one.update.entropy)),
        ("prompt tokens per episode", _NO_ROLLOUTS, _of_rollouts(metrics, "prompt_tokens")),
        ("steps per episode", _NO_ROLLOUTS, _of_rollouts(metrics, "steps")),
    )
    for column, (title, why, series) in enumerate(panels):
        ax = figure.add_subplot(grid[3, column])
        dress(ax, title, small=True)
        if series:
            line(ax, series, BLACK)
        else:
            empty(ax, why)
    _seconds(figure.add_subplot(grid[3, 5]), metrics)


def _seconds(ax: Axes, metrics: Metrics) -> None:
    dress(ax, "seconds per iteration", small=True)
    if not metrics.iterations:
        empty(ax, "no iterations")
        return
    ends: list[tuple[float, str, str]] = []
    for phase in _PHASES:
        if iterations := metrics.of_phase(phase):
            ends = _stack(ax, iterations)
    ax.set_ylim(bottom=0)
    label_ends(ax, ends, small=True)


def _stack(ax: Axes, iterations: tuple[Iteration, ...]) -> list[tuple[float, str, str]]:
    """Draw where the time of one phase went.

    Returns:
        The middle of each layer at the end, its name and its colour.
    """
    costs = [one.cost for one in iterations]
    layers = [
        ("policy", BLUE, [one.rollout_s - one.environment_s for one in costs]),
        ("environment", SKY, [one.environment_s for one in costs]),
        ("reward", ORANGE, [one.reward_s for one in costs]),
        ("update", GREY, [one.update_s for one in costs]),
    ]
    # The running mean: a stack of many raw times is a comb.
    smooth = [running_mean(seconds) for _, _, seconds in layers]
    ax.stackplot([one.iteration for one in iterations], *smooth, colors=[colour for _, colour, _ in layers])
    tops = list(itertools.accumulate(seconds[-1] for seconds in smooth))
    return [
        (top - seconds[-1] / 2, name, colour)
        for top, seconds, (name, colour, _) in zip(tops, smooth, layers, strict=True)
        if seconds[-1]
    ]


def _of_rollouts(metrics: Metrics, name: str) -> Series:
    return _series(metrics.iterations, lambda one: None if one.rollouts is None else one.rollouts.figures[name])


def _series(iterations: tuple[Iteration, ...], figure: Callable[[Iteration], float | None]) -> Series:
    """A figure over the iterations that have it."""
    found = [(one.iteration, value) for one in iterations if (value := figure(one)) is not None and isfinite(value)]
    return Series([at for at, _ in found], [value for _, value in found])
