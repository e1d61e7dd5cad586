"""The file of a run: what is written, read back, torn and resumed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.unit.training.reporting.runs import evaluation, grpo, warm_start

from agemem_mcp.errors import ConfigurationError
from agemem_training.reporting import DURING, Cost, Metrics, MetricsFile
from agemem_training.reporting.metrics import total_cost

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def recorded(path: Path) -> tuple[MetricsFile, Metrics]:
    metrics = Metrics((*warm_start(2), *grpo(3, 3)), (evaluation(iteration=2), evaluation(DURING, 0.5, iteration=4)))
    file = MetricsFile(path)
    for record in sorted((*metrics.iterations, *metrics.evaluations), key=lambda one: one.iteration):
        file.append(record)
    return file, metrics


def test_what_was_appended_is_read_back(path: Path) -> None:
    _, metrics = recorded(path)
    assert MetricsFile(path).read() == metrics


def test_every_line_is_json_that_names_its_kind(path: Path) -> None:
    recorded(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["record"] for line in lines].count("iteration") == 5
    assert lines[-1]["rollouts"]["figures"]["strict/storage"] > 0
    assert lines[-1]["update"]["kl"] > 0


def test_a_file_that_is_not_there_yet_is_empty(path: Path) -> None:
    assert MetricsFile(path).read() == Metrics()


@pytest.mark.parametrize("left", [b"{", b'{"record": "iteration", "iteration": 6', b'{"record": "iteration"}'])
def test_a_line_that_a_killed_run_left_unfinished_is_not_read(path: Path, left: bytes) -> None:
    file, metrics = recorded(path)
    with path.open("ab") as torn:
        torn.write(left)
    assert file.read() == metrics


def test_the_next_line_takes_the_place_of_one_that_was_left_unfinished(path: Path) -> None:
    file, metrics = recorded(path)
    with path.open("ab") as torn:
        torn.write(b'{"record": "iter')
    file.append(grpo(1, 6)[0])
    assert file.read().iterations == (*metrics.iterations, grpo(1, 6)[0])


def test_a_whole_line_that_is_no_record_is_refused_by_its_number_and_field(path: Path) -> None:
    file, _ = recorded(path)
    lines = path.read_text().splitlines()
    broken = json.loads(lines[1])
    broken["cost"]["update_s"] = "long"
    path.write_text("\n".join([lines[0], json.dumps(broken), *lines[2:]]) + "\n")
    with pytest.raises(ConfigurationError, match=r"metrics\.jsonl, line 2: iteration\.cost\.update_s"):
        file.read()


def test_a_resume_drops_what_came_after_its_checkpoint(path: Path) -> None:
    file, metrics = recorded(path)
    file.truncate(3)
    assert file.read() == Metrics(metrics.iterations[:3], metrics.evaluations[:1])
    file.append(grpo(1, 4)[0])
    assert [one.iteration for one in file.read().iterations] == [1, 2, 3, 4]


def test_a_number_that_is_not_finite_is_null_in_the_file(path: Path) -> None:
    iteration = grpo(1)[0]
    wild = replace(iteration, update=replace(iteration.update, gradient_norm=math.inf))
    MetricsFile(path).append(wild)
    assert json.loads(path.read_text())["update"]["gradient_norm"] is None
    assert math.isnan(MetricsFile(path).read().iterations[0].update.gradient_norm)


def test_the_warm_start_has_neither_rollouts_nor_kl(path: Path) -> None:
    file, metrics = recorded(path)
    first = file.read().of_phase("warm start")[0]
    assert first == metrics.iterations[0]
    assert first.rollouts is None
    assert first.update.kl is None


def test_speed_is_tokens_over_seconds_of_all_iterations_together() -> None:
    cost = Cost(tokens_rolled_out=100, tokens_trained_on=400, rollout_s=2, environment_s=0.5, reward_s=0.1, update_s=4)
    both = total_cost([cost, replace(cost, tokens_rolled_out=300)])
    assert both.rollout_tokens_per_s == 100
    assert both.update_tokens_per_s == 100
    assert both.environment_share == 0.25


def test_without_rollouts_there_is_no_speed_and_no_division_by_zero() -> None:
    cost = total_cost([])
    assert (cost.rollout_tokens_per_s, cost.update_tokens_per_s, cost.environment_share) == (0, 0, 0)
