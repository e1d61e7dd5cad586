"""Whole runs: what they leave behind, how several processes make one, what they refuse."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

import torch  # noqa: E402  after the skip
from tests.unit.policies.local.tiny_checkpoint import write_random  # noqa: E402  as above
from tests.unit.training import one_of_several  # noqa: E402  as above
from tests.unit.training.processes import in_two_processes  # noqa: E402  as above
from tests.unit.training.running import assert_same, evaluations, run, totals  # noqa: E402  as above
from tests.unit.training.tiny_policy import SYSTEM, hotpotqa_file, tiny_run, weights_of  # noqa: E402  as above

from agemem_mcp.errors import ConfigurationError  # noqa: E402  as above
from agemem_policies.local import LocalPolicy  # noqa: E402  as above
from agemem_policies.policy import ChatMessage, Prompt  # noqa: E402  as above
from agemem_training.checkpoints import load_checkpoint_state, load_weights  # noqa: E402  as above
from agemem_training.config import SHIPPED, as_toml, changed, load_config  # noqa: E402  as above
from agemem_training.reporting.metrics import MetricsFile  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_leaves_a_policy_that_loads_and_a_report_of_it(whole: Path, tiny_start: Path) -> None:
    assert {one.name for one in whole.iterdir()} >= {
        "README.md", "agent.json", "checkpoints", "config.json", "config.toml", "curves.png", "metrics.jsonl",
        "model.safetensors", "report.json", "report.md", "start", "tokenizer.json",
    }  # fmt: skip
    assert load_config(whole / "config.toml") == tiny_run(tiny_start)
    assert_same(weights_of(whole / "start"), weights_of(tiny_start))
    before, after = weights_of(tiny_start), weights_of(whole)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [one for one, _, _ in totals(whole)] == [1, 2, 3, 4]
    assert evaluations(whole) == [("before", 0, "L1"), ("during", 2, "L1"), ("after", 4, "L1")]
    assert json.loads((whole / "agent.json").read_text())["system"] == SYSTEM


def test_a_run_starts_its_other_processes_itself(whole: Path, tiny_start: Path, tmp_path: Path) -> None:
    before = dict(os.environ)
    out = run(tiny_run(tiny_start, run={"processes": 2}, grpo={"tasks": 3, "iterations": 3}), tmp_path / "out")
    assert_one_run_of_two(out)
    # Who measures does not matter to what is found.
    alone, together = (MetricsFile(path / "metrics.jsonl").read().evaluations[0] for path in (whole, out))
    assert alone.name == together.name == "before"
    assert alone.episodes == together.episodes
    assert dict(os.environ) == before
    assert multiprocessing.active_children() == []


def assert_one_run_of_two(out: Path) -> None:
    """Three iterations with three tasks, two trajectories of each, by two processes."""
    rolled = [one.rollouts for one in MetricsFile(out / "metrics.jsonl").read().of_phase("grpo")]
    assert [one.episodes for one in rolled if one is not None] == [6, 6, 6]
    assert [one for one, _, _ in totals(out)] == [1, 2, 3]
    assert evaluations(out) == [("before", 0, "L1"), ("during", 2, "L1"), ("after", 3, "L1")]


def test_the_same_seed_gives_the_same_iterations_and_another_one_others(
    whole: Path, tiny_start: Path, tmp_path: Path
) -> None:
    config = changed(tiny_run(tiny_start), grpo={"iterations": 2}, evaluation={"final_episodes": 1})
    again = run(config, tmp_path / "again")
    assert totals(again) == totals(whole)[:2]
    other = run(changed(config, run={"seed": 1}), tmp_path / "other")
    assert totals(other)[0] != totals(whole)[0]


def test_layers_that_an_adapter_would_leave_out_are_named(tiny_start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no LoRA adapter: target_parameters=.*Check model\.lora_targets"):
        run(changed(tiny_run(tiny_start), model={"lora_rank": 2}), tmp_path / "run")


def test_a_second_run_in_a_folder_is_refused_before_anything_is_done(whole: Path, tiny_start: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigurationError, match=f"There is a run in {whole} already. Go on with it by --resume"):
        run(tiny_run(tiny_start), whole)
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"tasks": {"sources": ["hotpotqa:absent.json"]}}, "absent.json cannot be read"),
        ({"tasks": {"sources": ["synthetic:L9"]}}, "There is no level 'L9'"),
        ({"model": {"path": "absent/model"}}, "The model 'absent/model' cannot be loaded"),
        ({"run": {"processes": 3}}, "lower processes to 2"),
    ],
)
def test_what_cannot_be_trained_leaves_no_folder(
    tables: dict[str, Any], said: str, tiny_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match=said):
        run(tiny_run(tiny_start, **tables), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nobody_demonstrates_hotpotqa(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, tasks={"sources": [f"hotpotqa:{hotpotqa_file(tmp_path)}"]}, warm_start={})
    with pytest.raises(ConfigurationError, match=r"Nobody demonstrates hotpotqa:.* --model"):
        run(changed(config, model={"path": None}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = write_random(tmp_path / "model", template=None)
    with pytest.raises(ConfigurationError, match="has no chat template"):
        run(tiny_run(model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_policy_that_never_ends_a_turn_is_data(tmp_path: Path) -> None:
    # Its turns are all cut off: episodes end, are paid for what they are, and are learnt from.
    model = write_random(tmp_path / "model")
    environment = {"tokenizer": "estimate", "budget_tokens": 4000, "max_rounds": 2}
    grpo = {"iterations": 1, "turn_tokens": 3}
    config = tiny_run(model, environment=environment, grpo=grpo, evaluation={"final_episodes": 1})
    out = run(config, tmp_path / "run")
    [(_, figures, _)] = totals(out)
    assert figures["success"] == 0
    assert figures["steps"] >= 1


def test_early_stop_ends_with_the_weights_of_the_best_evaluation(tiny_start: Path, tmp_path: Path) -> None:
    # No evaluation is better than the first one, whose success is 0 as theirs is.
    config = tiny_run(tiny_start, grpo={"iterations": 9, "patience": 2}, evaluation={"every": 1, "final_episodes": 1})
    out = run(config, tmp_path / "run")
    assert [one for one, _, _ in totals(out)] == [1, 2, 3]
    assert_same(weights_of(out), load_weights(out / "best"))
    state, last, _ = load_checkpoint_state(out / "checkpoints" / "iteration-00003")
    assert (state.best_iteration, state.worse) == (1, 2)
    assert any(not torch.equal(last[name], one) for name, one in weights_of(out).items())
    run(config, out, resume=True)  # a run that is over goes no further
    assert [one for one, _, _ in totals(out)] == [1, 2, 3]


def test_an_adapter_is_trained_on_hotpotqa_and_merged_into_a_checkpoint_that_chats(tmp_path: Path) -> None:
    model = write_random(tmp_path / "qwen2", max_position_embeddings=8192)
    config = tiny_run(
        model,
        model={"lora_rank": 2, "dtype": "bfloat16", "gradient_checkpointing": True},
        tasks={"sources": [f"hotpotqa:{hotpotqa_file(tmp_path)}"]},
        environment={"tokenizer": "estimate", "budget_tokens": 8000, "max_rounds": 2, "system": None},
        grpo={"iterations": 1, "turn_tokens": 4, "tasks": 1, "beta": 0.1},
        reward={"variant": "paper"},
        evaluation={"final_episodes": 1},
    )
    out = run(config, tmp_path / "run")
    assert weights_of(out).keys() == weights_of(model).keys()
    assert all(one.dtype == torch.bfloat16 for one in weights_of(out).values())
    _, trained, _ = load_checkpoint_state(out / "checkpoints" / "iteration-00001")
    assert all("lora_" in name for name in trained)
    assert evaluations(out) == [("before", 0, "hotpotqa hotpot.json"), ("after", 1, "hotpotqa hotpot.json")]
    assert "trained from" in (out / "README.md").read_text()


async def test_the_trained_checkpoint_is_a_policy(whole: Path) -> None:
    policy = LocalPolicy(whole, max_tokens=12)
    said = await policy.act(Prompt((ChatMessage("system", SYSTEM), ChatMessage("user", "ok"))))
    await policy.close()
    assert said.action_ids
    assert policy.manner.system == SYSTEM


def test_all_weights_are_kept_in_float32_while_the_arithmetic_is_bfloat16(tiny_start: Path, tmp_path: Path) -> None:
    # A step of 1e-5 is lost in bfloat16, whose numbers near .02 are 1e-4 apart.
    config = tiny_run(
        tiny_start, model={"dtype": "bfloat16"}, grpo={"iterations": 2, "learning_rate": 1e-5, "beta": 1.0}
    )
    out = run(config, tmp_path / "run")
    _, trained, _ = load_checkpoint_state(out / "checkpoints" / "iteration-00002")
    assert {one.dtype for one in trained.values()} == {torch.float32}
    start = weights_of(out / "start")
    moved = sum(int((start[name].float() != one).sum()) for name, one in trained.items())
    assert moved > 100
    assert {one.dtype for one in weights_of(out).values()} == {torch.bfloat16}
    ratios = [one.update.ratio_max for one in MetricsFile(out / "metrics.jsonl").read().of_phase("grpo")]
    assert max(one or 0 for one in ratios) < 1.2


def test_a_warm_start_that_lacks_skills_is_not_gone_on_with_unless_forced(tmp_path: Path) -> None:
    config = changed(
        tiny_run(tmp_path, warm_start={"repeat_steps": 1, "drill_steps": 1, "episode_steps": 1, "episodes": 1}),
        model={"path": None, "hidden_size": 8, "layers": 1, "heads": 1},
        warm_start={"skill_drills": 60, "gate": 0.5},
        grpo={"iterations": 1, "tasks": 1},
        evaluation={"final_episodes": 1},
    )
    out = tmp_path / "run"
    with pytest.raises(ConfigurationError, match=r"lacks skills .*names 0\.00.*--resume .*run --force"):
        run(config, out)
    assert totals(out) == []
    run(config, out, resume=True, force=True)
    metrics = MetricsFile(out / "metrics.jsonl").read()
    assert [one.phase for one in metrics.iterations] == ["warm start", "grpo"]
    assert evaluations(out) == [("before", 1, "L1"), ("after", 2, "L1")]
    gates = json.loads((out / "report.json").read_text())["gates"]
    assert not all(gate["passed"] for gate in gates)
    # So few drills cannot show forty turns of each skill.
    assert {gate["least"] for gate in gates} == {4}


def test_supervised_training_goes_on_from_a_policy_that_is_named_beside_its_demonstrator(
    tiny_start: Path, tmp_path: Path
) -> None:
    config = tiny_run(
        tiny_start,
        warm_start={"repeat_steps": 0, "drill_steps": 0, "episode_steps": 2, "drill_share": 0, "episodes": 1, "gate": 0}
        | {"skill_drills": 60, "learning_rate": 1e-4, "muon_learning_rate": 1e-4},
        grpo={"iterations": 0},
        evaluation={"demonstrator": "expert"},
    )
    # It says "ok" to everything, so no drill measures a skill of it, and a gate of 0 asks for none.
    out = run(config, tmp_path / "run")
    before, after = weights_of(tiny_start), weights_of(out / "start")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(float((before[name] - after[name]).abs().max()) < 0.01 for name in before)
    assert evaluations(out) == [("before", 1, "L1"), ("expert demonstrator", 1, "L1"), ("after", 1, "L1")]
    compared = (out / "report.md").read_text().partition("## Compared with")[2].partition("\n## ")[0]
    assert re.search(r"L1, greedy, seed 0 \| expert demonstrator \| 2 \| 1\.000", compared), compared


def test_a_run_from_the_warm_start_that_is_shipped_says_so(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, model={"path": SHIPPED}, grpo={"iterations": 0}, evaluation={"final_episodes": 1})
    out = run(config, tmp_path / "run")
    assert "trained from the warm start that agemem-mcp ships" in (out / "README.md").read_text()
    assert json.loads((out / "report.json").read_text())["run"]["base_model"] == SHIPPED


def test_supervised_training_does_not_go_on_from_a_model_that_spells_names_otherwise(tmp_path: Path) -> None:
    config = tiny_run(write_random(tmp_path / "other", chat_template="{{ messages }}"), warm_start={"episodes": 1})
    with pytest.raises(ConfigurationError, match="has another tokenizer"):
        run(config, tmp_path / "run")


def test_two_processes_of_a_launcher_make_one_run(tiny_start: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = tiny_run(
        tiny_start, run={"processes": 2}, grpo={"tasks": 3, "iterations": 3}, evaluation={"final_episodes": 1}
    )
    (tmp_path / "config.toml").write_text(as_toml(config))
    in_two_processes(one_of_several.SCRIPT, str(tmp_path / "config.toml"), str(out))
    assert_one_run_of_two(out)
    # The second process named another folder, as one does whose clock has moved on by a second.
    assert sorted(one.name for one in tmp_path.iterdir()) == ["config.toml", "run"]
