"""The comparison of runs: what each changes, and what is told of those that are there."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest
from tests.unit.training.reporting.runs import metrics

from ablations import LADDER, VARIANTS, _configured, _figure, _told
from agemem_training.config import as_toml, differences, load_config, load_preset

if TYPE_CHECKING:
    from pathlib import Path

WANTED = argparse.Namespace(iterations=None, episodes=200, start="warm-start", threads=2, sampled=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_is_the_preset_but_for_what_it_is_named_for(name: str, tmp_path: Path) -> None:
    config = _configured(VARIANTS[name], WANTED)
    (tmp_path / "run.toml").write_text(as_toml(config))
    assert load_config(tmp_path / "run.toml") == config
    assert config.model.path == "warm-start"
    changed = {line.partition(":")[0] for line in differences(_configured(VARIANTS["strict"], WANTED), config)}
    named = tuple(
        key if table == "run" else f"{table}.{key}" for table, keys in VARIANTS[name].tables.items() for key in keys
    )
    assert all(field.startswith(named) for field in changed)
    assert bool(changed) == bool(named)
    learnt = config.grpo.iterations
    assert learnt in {0, load_preset("mini").grpo.iterations}
    assert (learnt == 0) == (name in {"supervised", "no-memory"})


def test_the_table_tells_of_each_run_its_success_and_what_it_gained() -> None:
    first, _, ladder = _told({"strict": metrics()}).partition("\n\n")
    (row,) = [line for line in first.splitlines() if line.startswith("| strict reward")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 7
    assert all(cell.count("[") == 1 for cell in cells[1:] if cell != "—")
    rungs = [line.split("|")[1].strip() for line in ladder.splitlines() if line.startswith("| LTM")]
    assert rungs == [rung for rung, run, _ in LADDER if run == "strict"]


def test_the_strict_reward_is_compared_story_by_story_with_the_other_runs_of_its_seed() -> None:
    told = _told({"strict": metrics(), "strict-1": metrics(), "supervised": metrics()})
    _, lead, _, _ = told.split("\n\n")
    (row,) = lead.splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == VARIANTS["supervised"].what
    assert all(cell.startswith("0.000 [") for cell in cells[1:] if cell != "—")
    assert any(cell != "—" for cell in cells[1:])


def test_runs_are_drawn_in_their_own_colours() -> None:
    figure = _figure({"strict": metrics(), "paper": metrics()})
    colours = {line.get_color() for line in figure.axes[0].get_lines()}
    assert colours == {VARIANTS["strict"].colour, VARIANTS["paper"].colour}
    [legend] = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {"strict reward", "paper's reward"}
