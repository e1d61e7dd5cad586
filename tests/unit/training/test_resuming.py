"""Runs that go on: from where they were stopped, under another configuration, after what went wrong."""

from __future__ import annotations

import json
import math
import re
import shutil
from typing import TYPE_CHECKING

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

from safetensors.torch import save_file  # noqa: E402  after the skip
from tests.unit.training.running import assert_same, evaluations, run, totals  # noqa: E402  as above
from tests.unit.training.tiny_policy import tiny_run, weights_of  # noqa: E402  as above

from agemem_mcp.errors import ConfigurationError  # noqa: E402  as above
from agemem_training.checkpoints import load_checkpoint_state  # noqa: E402  as above
from agemem_training.config import as_toml, changed, load_config  # noqa: E402  as above
from agemem_training.loss import NotFinite  # noqa: E402  as above
from agemem_training.reporting.metrics import Cost, Iteration, MetricsFile, Update  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_resume_is_bit_for_bit_what_the_run_would_have_been(whole: Path, tiny_start: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    shutil.copytree(whole, out)
    for name in ("model.safetensors", "report.json", "report.md"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoints" / "iteration-00004")
    wall_s = json.loads((whole / "report.json").read_text())["run"]["wall_s"]
    run(tiny_run(tiny_start), out, resume=True)
    assert_same(weights_of(out), weights_of(whole))
    assert totals(out) == totals(whole)
    assert evaluations(out) == evaluations(whole)
    state, _, _ = load_checkpoint_state(out / "checkpoints" / "iteration-00002")
    assert 0 < state.seconds < wall_s
    assert json.loads((out / "report.json").read_text())["run"]["wall_s"] > state.seconds


def test_a_resume_with_another_configuration_shows_the_difference_and_wants_force(
    whole: Path, tiny_start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    other = changed(tiny_run(tiny_start), grpo={"iterations": 5, "beta": 0.02})
    with pytest.raises(ConfigurationError) as refused:
        run(other, out, resume=True)
    assert "--force" in str(refused.value)
    assert "grpo.iterations: 4 → 5\n  grpo.beta: 0.01 → 0.02" in str(refused.value)
    assert load_config(out / "config.toml") == tiny_run(tiny_start)
    run(other, out, resume=True, force=True)
    assert [one for one, _, _ in totals(out)] == [1, 2, 3, 4, 5]
    assert load_config(out / "config.toml") == other


def test_a_resume_under_other_conditions_measures_anew(whole: Path, tiny_start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    other = changed(
        tiny_run(tiny_start),
        run={"seed": 1},
        tasks={"sources": ("synthetic:L2", "synthetic:L1")},
        grpo={"iterations": 5},
        evaluation={"final_episodes": 3},
    )
    # What a person changed in the folder's own file is another configuration as well.
    (out / "config.toml").write_text(as_toml(other))
    with pytest.raises(ConfigurationError, match=r"evaluation\.final_episodes: 2 → 3"):
        run(other, out, resume=True)
    run(other, out, resume=True, force=True)
    measured = MetricsFile(out / "metrics.jsonl").read().evaluations
    assert {(one.name, one.seed, len(one.episodes)) for one in measured} == {
        ("before", 1, 3),
        ("during", 1, 2),
        ("after", 1, 3),
    }
    assert "| L2, greedy, seed 1 | 3 |" in (out / "report.md").read_text(encoding="utf-8")
    state, _, _ = load_checkpoint_state(out / "checkpoints" / "iteration-00005")
    assert state.drawn == {"synthetic:L2": 1, "synthetic:L1": 9}
    run(other, out, resume=True)


def test_a_resume_from_another_start_is_refused_also_by_force(whole: Path, tiny_start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    other = changed(tiny_run(tiny_start), model={"path": str(whole)})
    with pytest.raises(ConfigurationError, match=r"is made already\. Begin another run, with --out:\n  model"):
        run(other, out, resume=True, force=True)
    assert load_config(out / "config.toml") == tiny_run(tiny_start)


def test_a_resume_with_weights_of_another_shape_is_refused(whole: Path, tiny_start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    other = changed(tiny_run(tiny_start), model={"lora_rank": 2, "lora_targets": ("q_proj",)}, grpo={"iterations": 5})
    with pytest.raises(ConfigurationError, match="another model"):
        run(other, out, resume=True, force=True)


def test_a_run_that_was_killed_in_its_warm_start_begins_it_anew(whole: Path, tiny_start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / ".start").mkdir(parents=True)
    (out / ".start" / "config.json").write_text("{")
    (out / "config.toml").write_text(as_toml(tiny_run(tiny_start)))
    left = Iteration(
        iteration=1,
        phase="warm start",
        update=Update(loss=1.0, gradient_norm=1.0, learning_rate=1.0),
        cost=Cost(tokens_trained_on=1, update_s=1.0),
    )
    MetricsFile(out / "metrics.jsonl").append(left)
    run(tiny_run(tiny_start), out, resume=True)
    assert_same(weights_of(out), weights_of(whole))
    assert totals(out) == totals(whole)
    assert not MetricsFile(out / "metrics.jsonl").read().of_phase("warm start")


def poison(out: Path) -> None:
    """Make a weight of the newest checkpoint NaN, as an update gone wrong would."""
    newest = max((out / "checkpoints").iterdir())
    _, weights, _ = load_checkpoint_state(newest)
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, newest / "weights.safetensors")


def test_nan_stops_a_run_names_the_step_and_the_checkpoint_to_go_on_from(
    whole: Path, tiny_start: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "iteration-00004")
    poison(out)
    with pytest.raises(NotFinite) as stopped:
        run(tiny_run(tiny_start), out, resume=True)
    assert re.search(r"In step \d+ of trajectory \d+ \(L1-train-", str(stopped.value))
    assert "of iteration 3, " in str(stopped.value)
    assert f"The last good checkpoint is iteration-00002: go on from it by --resume {out}." in str(stopped.value)
