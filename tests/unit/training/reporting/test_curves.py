"""The picture of a run, of whatever length and with whatever phases."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.unit.training.reporting.runs import evaluation, grpo, metrics, warm_start

from agemem_training.reporting import DURING, Metrics
from agemem_training.reporting.axes import BLACK, BLUE, ORANGE, running_mean, spread
from agemem_training.reporting.comparing import COMPONENTS
from agemem_training.reporting.curves import TITLES, curves, draw_curves
from agemem_training.reporting.figures import TOOLS

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

RUNS = {
    "a whole run": metrics(warm=5, trained=30),
    "three iterations": metrics(warm=0, trained=3),
    "one iteration": Metrics(tuple(grpo(1)), (evaluation(n=1),)),
    "no GRPO": Metrics(tuple(warm_start(8))),
    "no training": Metrics((), (evaluation(),)),
    "nothing": Metrics(),
}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_of_any_length_is_drawn_at_1600_by_1000(run: str, tmp_path: Path) -> None:
    draw_curves(RUNS[run], tmp_path / "curves.png")
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (1600, 1000)


def panels(run: Metrics) -> dict[str, Axes]:
    return {ax.get_title(loc="left"): ax for ax in curves(run).axes}


def drawn(ax: Axes) -> list[tuple[str, list[tuple[float, float]]]]:
    """Colour and points of each line, those of intervals aside."""
    lines = [one for one in ax.get_lines() if one.get_linestyle() != "None"]
    points = [np.asarray(one.get_xydata(), dtype=float).tolist() for one in lines]
    return [(str(one.get_color()), [(x, y) for x, y in each]) for one, each in zip(lines, points, strict=True) if each]


def recorded(run: Metrics, name: str) -> list[tuple[float, float]]:
    return [(one.iteration, one.rollouts.figures[name]) for one in run.iterations if one.rollouts is not None]


SHORT = Metrics((*warm_start(4), *grpo(6, 5)))
"""So short that lines are drawn as they are, not smoothed."""


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_a_panel_with_a_line_for_each_variant(component: str) -> None:
    # The cost of calls without effect is their number times a constant; the totals stand beside task success.
    titles = {"penalty_no_effect": "calls without effect", "total": "Total reward"}
    figure = "no_effect_calls" if component == "penalty_no_effect" else component
    ax = panels(SHORT)[titles.get(component) or TITLES.get(component, component)]
    assert drawn(ax) == [
        (BLUE, recorded(SHORT, f"strict/{figure}")),
        (ORANGE, recorded(SHORT, f"paper/{figure}")),
    ] + [(BLACK, recorded(SHORT, "total"))] * (component == "total")


def test_task_success_of_rollouts_and_of_every_level_stands_beside_the_reward() -> None:
    measured = [
        evaluation(DURING, progress, level=level, iteration=at)
        for level in ("L1", "L3")
        for at, progress in ((4, 0.0), (10, 1.0))
    ]
    ax = panels(replace(SHORT, evaluations=tuple(measured)))["Task success"]
    rollouts, *levels = drawn(ax)
    assert rollouts == (BLACK, recorded(SHORT, "success"))
    assert [[y for _, y in points] for _, points in levels] == [
        [one.episodes.mean("success") for one in measured if one.level == level] for level in ("L1", "L3")
    ]
    legend = ax.get_legend()
    assert legend is not None
    assert [one.get_text() for one in legend.get_texts()] == ["training rollouts", "held-out L1", "held-out L3"]


def test_every_tool_has_a_line_that_bears_its_name() -> None:
    ax = panels(SHORT)["Tool calls per episode"]
    assert [points for _, points in drawn(ax)] == [recorded(SHORT, f"calls/{tool}") for tool in TOOLS]
    colours = [colour for colour, _ in drawn(ax)]
    assert {one.get_text(): one.get_color() for one in ax.texts} == dict(zip(TOOLS, colours, strict=True))


def test_what_the_update_did_is_drawn_for_its_phase() -> None:
    found = panels(SHORT)
    trained, warm = SHORT.of_phase("grpo"), SHORT.of_phase("warm start")
    for title, points in {
        "KL to the reference": [(one.iteration, one.update.kl) for one in trained],
        "entropy per token": [(one.iteration, one.update.entropy) for one in trained],
        "loss of the warm start": [(one.iteration, one.update.loss) for one in warm],
    }.items():
        assert drawn(found[title]) == [(BLACK, points)], title


def test_a_panel_without_figures_says_so() -> None:
    found = panels(RUNS["no GRPO"])
    assert [one.get_text() for one in found["KL to the reference"].texts] == ["no GRPO"]
    assert [one.get_text() for one in found["Task success"].texts] == ["no rollouts"]
    assert not drawn(found["Task success"])


def test_a_demonstrator_is_no_point_of_the_curves(tmp_path: Path) -> None:
    run = Metrics(tuple(grpo(3)), (evaluation(),))
    draw_curves(run, tmp_path / "alone.png")
    more = replace(run, evaluations=(*run.evaluations, evaluation("demonstrator", 0.5, level="L2")))
    draw_curves(more, tmp_path / "beside.png")
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "beside.png").read_bytes()


def test_a_gap_in_a_figure_is_left_out(tmp_path: Path) -> None:
    iterations = grpo(20)
    iterations[3] = replace(iterations[3], update=replace(iterations[3].update, kl=float("nan")))
    draw_curves(Metrics(tuple(iterations)), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
    _, smooth = drawn(panels(Metrics(tuple(iterations)))["KL to the reference"])
    assert [at for at, _ in smooth[1]] == [
        one.iteration for one in iterations if one.iteration != iterations[3].iteration
    ]


def test_few_values_are_not_smoothed() -> None:
    assert running_mean([1.0, 5.0, 2.0]) == [1.0, 5.0, 2.0]


def test_many_values_are_smoothed_without_moving_a_straight_line() -> None:
    assert running_mean([2.0] * 60) == [2.0] * 60
    zigzag = running_mean([float(at % 2) for at in range(60)])
    assert max(zigzag) - min(zigzag) < 0.6


def test_labels_of_lines_that_end_close_together_are_pushed_apart_within_the_panel() -> None:
    places = spread([0.0, 0.01, 0.02, 0.98, 0.99], 0.1)
    assert all(after - before >= 0.1 - 1e-9 for before, after in pairwise(places))
    assert max(places) <= 1
    assert places[0] == 0
