"""The preset for a 7B, by the command itself and as it is set, sizes aside: a policy that condenses its own context."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

from tests.unit.policies.local.tiny_checkpoint import BARE, token_ids, write_script  # noqa: E402  after the skip
from tests.unit.training.tiny_policy import hotpotqa_file, weights_of  # noqa: E402  as above
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402  as above

from agemem_policies.protocol import Call, Turn, render  # noqa: E402  as above
from agemem_training.checkpoints import load_checkpoint_state  # noqa: E402  as above
from agemem_training.command import app  # noqa: E402  as above
from agemem_training.config import as_toml, changed, load_config, load_preset  # noqa: E402  as above
from agemem_training.reporting.metrics import MetricsFile  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

PRESET = "qwen2.5-7b-hotpotqa"
CONDENSE = render(Turn("make room", (Call("Summary_context", {"span": "all"}),)))
OK = render(Turn("nothing new", answer="ok"))
SUMMARY = "A town."
SUMMARISES = BARE + "{% if messages[0].content.startswith('You condense') %}<|eot|>{% endif %}"
"""What is asked for as a summary ends otherwise than a conversation."""


def write_summariser(folder: Path) -> Path:
    """A Qwen2 that condenses its context after half of all paragraphs, answers everything else, and writes summaries.

    A paragraph ends with a full stop, what a call was answered with a tag, and the query with a question mark.
    """
    write_script(folder, [".", CONDENSE], [">", OK], ["?", OK], ["<|eot|>", SUMMARY], window=16_384)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = SUMMARISES
    tokenizer.save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    [after] = token_ids(tokenizer, ".")
    [condense], [ok] = token_ids(tokenizer, CONDENSE), token_ids(tokenizer, OK)
    weights = model.lm_head.weight.data
    weights[ok, after] = weights[condense, after]
    model.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("assets_dir")
def test_a_model_is_trained_by_the_preset_for_7b_and_writes_its_own_summaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agemem_training.command.start_logging", lambda _level: None)
    model = write_summariser(tmp_path / "model")
    preset = load_preset(PRESET)
    config = changed(
        preset,
        grpo={"tasks": 1, "trajectories": 2, "turn_tokens": 8},
        evaluation={"final_episodes": 1, "sampled": False},
    )
    (tmp_path / "small.toml").write_text(as_toml(config), encoding="utf-8")
    tasks, out = f"hotpotqa:{hotpotqa_file(tmp_path)}", tmp_path / "run"
    options = ["--config", str(tmp_path / "small.toml"), "--model", str(model), "--tasks", tasks, "--iterations", "1"]
    # By this seed one trajectory condenses the distractor and the other does not, so that their rewards differ.
    options += ["--seed", "1", "--out", str(out)]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output

    ran = load_config(out / "config.toml")
    assert (ran.environment, ran.reward) == (preset.environment, preset.reward)
    assert ran.environment.own_summaries
    assert ran.model == preset.model.model_copy(update={"path": str(model)})
    [iteration] = MetricsFile(out / "metrics.jsonl").read().of_phase("grpo")
    assert iteration.rollouts is not None
    figures, episodes = iteration.rollouts.figures, iteration.rollouts.episodes
    summaries = round(figures["calls/Summary_context"] * episodes)
    turns = round(figures["steps"] * episodes)
    assert summaries > 0
    # A turn is a word that ends itself. A summary is a word and an end: the policy wrote one for each call.
    assert iteration.cost.tokens_rolled_out == turns + 2 * summaries
    assert iteration.rollouts.zero_variance_share == 0
    _, trained, _ = load_checkpoint_state(out / "checkpoints" / "iteration-00001")
    assert any(bool(one.any()) for name, one in trained.items() if "lora_B" in name)
    assert weights_of(out).keys() == weights_of(model).keys()
    assert json.loads((out / "agent.json").read_text())["own_summaries"] is True
