"""What stands in a checkpoint's README.md."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml
from tests.unit.training.reporting.runs import results

from agemem_training.reporting import Metrics, Results, write_model_card

if TYPE_CHECKING:
    from pathlib import Path


def written(made: Results, folder: Path) -> tuple[dict[str, Any], str]:
    write_model_card(made, folder)
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    front, _ = written(results(), tmp_path)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "text-generation"
    assert front["license"] == "apache-2.0"
    assert "agemem" in front["tags"]
    assert "base_model" not in front


def test_a_model_that_was_trained_further_names_its_base(tmp_path: Path) -> None:
    made = results()
    front, text = written(replace(made, run=replace(made.run, base_model="Qwen/Qwen2.5-7B-Instruct")), tmp_path)
    assert front["base_model"] == "Qwen/Qwen2.5-7B-Instruct"
    assert "license" not in front  # it is that model's
    assert "trained from Qwen/Qwen2.5-7B-Instruct" in text
    assert "from scratch" not in text


def test_the_card_tells_how_to_use_it_what_it_does_and_what_it_does_not(tmp_path: Path) -> None:
    _, text = written(results(), tmp_path)
    assert "agemem-mcp chat --policy hf:DIR" in text
    assert "| L3, greedy, seed 7 | 40 |" in text
    assert "## Limits" in text
    assert "is no assistant" in text


def test_a_model_from_the_shipped_warm_start_is_told_as_such(tmp_path: Path) -> None:
    made = results()
    front, text = written(replace(made, run=replace(made.run, base_model="warm-start")), tmp_path)
    assert "base_model" not in front  # the hub knows no such model
    assert "trained from the warm start that agemem-mcp ships with step-wise GRPO" in text
    assert "from scratch" not in text
    assert "is no assistant" in text


def test_a_model_that_knows_counted_ids_alone_has_its_server_give_such(tmp_path: Path) -> None:
    made = results()

    def use(ids: str) -> str:
        config = {"environment": {"ids": ids}}
        _, text = written(replace(made, run=replace(made.run, config=config)), tmp_path)
        return text.split("## How to use it")[1].split("\n## ")[0]

    counted, random = use("sequential"), use("random")
    assert "\nAGEMEM_IDS=sequential agemem-mcp chat --policy hf:DIR --data-dir DIR/memory " in counted
    assert "\nAGEMEM_IDS=sequential AGEMEM_POLICY__NAME=hf:DIR agemem-mcp serve " in counted
    assert "it was trained with no others." in counted
    assert "\nagemem-mcp chat --policy hf:DIR " in random
    assert "AGEMEM_IDS" not in random
    assert "--data-dir" not in random


def test_a_model_that_learnt_from_demonstrations_alone_says_so(tmp_path: Path) -> None:
    made = results()
    _, text = written(replace(made, run=replace(made.run, config={"grpo": {"iterations": 0}})), tmp_path)
    assert "trained from scratch on demonstrations alone after AgeMem" in text


def test_the_card_holds_the_resolved_configuration(tmp_path: Path) -> None:
    made = results()
    _, text = written(made, tmp_path)
    assert json.loads(text.split("```json\n")[1].split("```")[0]) == made.run.config


def test_a_model_that_was_not_measured_has_a_card_without_a_table(tmp_path: Path) -> None:
    _, text = written(results(Metrics()), tmp_path)
    assert "Before and after" not in text
    assert "\n\n\n" not in text
