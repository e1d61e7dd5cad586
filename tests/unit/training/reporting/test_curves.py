"""The picture of a run, of whatever length and with whatever phases."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from tests.unit.training.reporting.runs import evaluation, grpo, metrics, warm_start

from agemem_training.reporting import Metrics
from agemem_training.reporting.axes import running_mean, spread
from agemem_training.reporting.curves import draw_curves

if TYPE_CHECKING:
    from pathlib import Path

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


def test_two_runs_make_two_pictures(tmp_path: Path) -> None:
    for name in ("three iterations", "nothing"):
        draw_curves(RUNS[name], tmp_path / f"{name}.png")
    assert (tmp_path / "three iterations.png").read_bytes() != (tmp_path / "nothing.png").read_bytes()


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
