"""What the report of a run tells, and what it does without some of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.training.reporting.runs import NAMES, evaluation, grpo, metrics, results

from agemem_mcp.errors import InvalidOperation
from agemem_training.reporting import AFTER, BEFORE, DURING, Metrics, SkillGate, installed_versions, write_report
from agemem_training.reporting.comparing import COMPONENTS, VARIANTS
from agemem_training.reporting.figures import TOOLS
from agemem_training.reporting.markdown import report_markdown
from agemem_training.reporting.report import report_data

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def text() -> str:
    return report_markdown(results())


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return report_data(results())


def section_of(text: str, heading: str) -> str:
    return text.partition(f"## {heading}")[2].partition("\n## ")[0]


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_three_files_are_written_and_the_report_shows_the_curves(tmp_path: Path) -> None:
    write_report(results(metrics(2, 3)), tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["curves.png", "report.json", "report.md"]
    assert "![curves](curves.png)" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text())["schema_version"] == 1


def test_the_report_tells_what_was_run(text: str) -> None:
    assert "agemem-mcp train --preset mini --seed 3" in text
    assert line_of(text, "| seed") == "| seed | 3 |"
    assert "55 min 12 s" in text
    assert "torch 2.13.0" in text
    assert "20 warm start, 75 grpo" in text


def test_a_gate_that_was_missed_stands_out(text: str) -> None:
    assert line_of(text, "| names").endswith("| yes |")
    assert line_of(text, "| second query").endswith("| **no** |")


def test_a_skill_that_was_measured_by_too_few_turns_has_not_passed_and_says_why() -> None:
    gate = SkillGate(skill="ids", right=1, n=1, required=0.9, least=40)
    enough = replace(gate, right=36, n=40)
    assert (gate.passed, enough.passed, replace(enough, right=35).passed) == (False, True, False)
    assert str(gate) == "ids 1.00 of 1 turns, too few to tell: at least 40"
    assert str(replace(enough, right=35)) == "ids 0.88"
    text = report_markdown(replace(results(), gates=(gate, enough)))
    assert [line.rpartition("| ≥ 0.9 |")[2] for line in text.splitlines() if "| ids" in line[:6]] == [
        " **no**, n < 40 |",
        " yes |",
    ]


@pytest.mark.parametrize("level", ["L1", "L2", "L3"])
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_each_level_has_success_before_and_after_with_interval_n_and_seed(text: str, level: str, mode: str) -> None:
    cells = line_of(text, f"| {level}, {mode}, seed 7 | 40 |").split("|")
    assert all("[" in cell for cell in cells[3:6])
    assert cells[5].strip().endswith("▲")
    assert f"## {level}, {mode}, seed 7 (n = 40)" in text


def test_every_component_of_both_variants_and_every_tool_has_a_row(text: str) -> None:
    section = section_of(text, "L3, greedy")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if re.match(r"\| [^-]", line)]
    components, behaviour = rows[1 : 1 + len(COMPONENTS)], rows[2 + len(COMPONENTS) :]
    assert components == list(COMPONENTS)
    assert [one for one in behaviour if one in TOOLS] == list(TOOLS)
    assert {"task success", "reward trained on", "steps", "prompt tokens"} <= set(behaviour)
    header = line_of(section, "| component")
    assert [f"{variant}: {side}" for variant in VARIANTS for side in ("before", "after", "difference")] == [
        cell.strip() for cell in header.split("|")[2:-1]
    ]


def test_a_component_that_fell_is_marked_in_its_row_and_listed_under_the_result(text: str) -> None:
    section = section_of(text, "L2, greedy")
    assert line_of(section, "| storage").count("**▼ fell**") == 2
    assert "- L2, greedy, seed 7: " in text
    assert "strict/storage (-0." in line_of(text, "- L2, greedy")


def test_if_nothing_fell_the_report_says_so() -> None:
    before, after = evaluation(BEFORE, 0.5), evaluation(AFTER, 0.5)
    same = replace(after, episodes=before.episodes)
    assert "Nothing fell outside its interval." in report_markdown(results(Metrics((), (before, same))))


def test_grades_that_a_judge_did_not_give_are_counted() -> None:
    done = grpo(3)
    for at, one in enumerate(done):
        assert one.rollouts is not None
        figures = one.rollouts.figures | {"ungraded": 0.25}
        done[at] = replace(one, rollouts=replace(one.rollouts, figures=figures))
    text = report_markdown(results(Metrics(tuple(done))))
    assert "| grades by words, as the judge gave none | 24 in 96 episodes |" in text
    assert "as the judge gave none" not in report_markdown(results())


def test_others_are_compared_with_what_came_after(text: str, data: dict[str, Any]) -> None:
    row = line_of(text, "| L2, greedy, seed 7 | demonstrator")
    assert row.count("[") == 4
    [compared] = data["compared_with"]
    assert (compared["name"], compared["level"], compared["greedy"]) == ("demonstrator", "L2", True)
    after = next(
        one for one in data["evaluations"] if (one["name"], one["level"], one["greedy"]) == (AFTER, "L2", True)
    )
    assert compared["differences"]["success"]["after"] == after["success"]["estimate"]


def test_success_is_broken_down_by_kind_of_task(text: str, data: dict[str, Any]) -> None:
    assert "| L1, greedy, seed 7 | unknown | 13 |" in text
    assert data["evaluations"][0]["kinds"]["unknown"]["n"] == 13


def test_speed_is_told_by_phase(text: str) -> None:
    section = section_of(text, "Speed")
    assert line_of(section, "| warm start | — |")
    assert "%" in line_of(section, "| grpo")


def test_the_json_holds_mean_spread_and_interval_of_every_figure(data: dict[str, Any]) -> None:
    for one in data["evaluations"]:
        assert set(one["figures"]) == set(NAMES)
        assert set(one["figures"]["strict/total"]) == {"estimate", "low", "high", "std"}
        assert one["n"] == 40
    assert len(data["before_after"]) == 6
    assert data["before_after"][0]["differences"]["strict/storage"]["verdict"] == "fell"
    assert data["gates"][1]["passed"] is False
    assert data["speed"]["grpo"]["environment_share"] == pytest.approx(0.2, abs=0.02)
    assert len(data["iterations"]) == 95


@pytest.mark.parametrize(
    ("right", "n", "required", "passed"),
    [(9, 10, 0.9, True), (8, 10, 0.9, False), (0, 0, 0.9, False), (0, 0, 0.0, True), (0, 1, 0.0, True)],
)
def test_a_skill_that_nobody_tried_passes_where_nothing_is_required_alone(
    right: int, n: int, required: float, *, passed: bool
) -> None:
    assert SkillGate(skill="names", right=right, n=n, required=required).passed is passed


def test_an_interval_without_end_is_null_in_the_json(tmp_path: Path) -> None:
    write_report(results(Metrics((), (evaluation(n=1),))), tmp_path)
    [only] = json.loads((tmp_path / "report.json").read_text())["evaluations"]
    assert only["figures"]["total"]["low"] is None


def test_a_run_that_measured_nothing_still_has_a_report() -> None:
    text = report_markdown(replace(results(Metrics(tuple(grpo(2)))), gates=()))
    assert "## Before and after" not in text
    assert "## Skills" not in text
    assert "## Speed" in text


def test_a_checkpoint_measured_alone_is_told_without_differences() -> None:
    text = report_markdown(results(Metrics((), (evaluation("runs/mini", 1.0),))))
    assert "| L1, greedy, seed 7 | runs/mini | 40 |" in text
    assert "| — |" in line_of(text, "| L1, greedy, seed 7 | runs/mini")


def test_measurements_during_training_are_no_rows() -> None:
    assert "L1" not in report_markdown(results(Metrics((), (evaluation(DURING, 0.5),))))


def test_the_last_of_several_measurements_of_a_name_counts() -> None:
    first, last = evaluation(BEFORE, 0.0), evaluation(BEFORE, 0.7)
    data = report_data(results(Metrics((), (first, last, evaluation(AFTER, 1.0)))))
    assert data["before_after"][0]["differences"]["success"]["before"] == last.episodes.mean("success")


def test_before_and_after_on_different_tasks_are_refused() -> None:
    after = evaluation(AFTER, 1.0, n=20)
    with pytest.raises(InvalidOperation, match="different tasks"):
        report_markdown(results(Metrics((), (evaluation(BEFORE, 0.0), after))))


def test_versions_are_those_installed() -> None:
    versions = installed_versions()
    assert versions["python"].startswith("3.")
    assert "numpy" in versions
