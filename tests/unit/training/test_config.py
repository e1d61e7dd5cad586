"""Configurations: what is shipped loads, what is wrong is named, what differs is shown."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.errors import ConfigurationError
from agemem_training.config import (
    RewardConfig,
    RunConfig,
    as_toml,
    changed,
    differences,
    load_config,
    load_preset,
    preset_names,
)
from agemem_training.rewards import RewardSettings
from agemem_training.settings_of import pay_of
from agemem_training.tasks.choosing import parse_source

if TYPE_CHECKING:
    from pathlib import Path


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as failure:
        load_config(written(folder, text))
    return str(failure.value)


def test_the_presets_that_are_shipped_have_the_names_people_are_told() -> None:
    assert preset_names() == ["mini", "qwen2.5-7b-hotpotqa", "qwen3-4b-hotpotqa", "smoke"]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_comes_back_from_the_file_a_run_writes(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    assert config.preset == name
    assert [parse_source(one) for one in config.tasks.sources]
    again = load_config(written(tmp_path, as_toml(config)))
    assert again == config
    assert differences(config, again) == []


def test_a_resolved_configuration_says_everything_that_is_set(tmp_path: Path) -> None:
    told = tomllib.loads(as_toml(RunConfig(seed=3)))
    assert told["seed"] == 3
    assert told["grpo"] == json.loads(RunConfig().grpo.model_dump_json(exclude_none=True))
    assert "warm_start" not in told


def test_the_weights_of_the_reward_can_be_set_and_go_through_the_file_into_what_is_paid(tmp_path: Path) -> None:
    text = 'seed = 2\n[reward]\nvariant = "paper"\n[reward.weights]\ntask = 0.5\nno_effect_cost = 0.0\nclip = 1.0\n'
    config = load_config(written(tmp_path, text))
    assert pay_of(config) == RewardSettings("paper", w_task=0.5, no_effect_cost=0.0, clip=1.0)
    told = as_toml(config)
    assert "\n[reward.weights]\ntask = 0.5\n" in told
    assert load_config(written(tmp_path, told)) == config
    assert differences(RunConfig(seed=2, reward=RewardConfig(variant="paper")), config) == [
        "reward.weights.task: 0.3333333333333333 → 0.5",
        "reward.weights.no_effect_cost: 0.02 → 0.0",
        "reward.weights.clip: None → 1.0",
    ]


def test_what_is_paid_where_nothing_is_set_is_the_default_of_rewards() -> None:
    assert pay_of(RunConfig()) == RewardSettings()


def test_texts_survive_the_file_whatever_is_in_them(tmp_path: Path) -> None:
    system = 'You "manage"\nmemory \\ 記憶 \U0001f642'
    config = RunConfig.model_validate({"environment": {"system": system}})
    assert load_config(written(tmp_path, as_toml(config))).environment.system == system


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sede = 1", "sede: Extra inputs"),
        ("[grpo]\nlearning_rat = 1", "grpo.learning_rat: Extra inputs"),
        ('seed = "x"', "seed: Input should be a valid integer"),
        ("[grpo]\ntrajectories = 1", "grpo.trajectories: Input should be greater"),
        ('[reward]\nvariant = "kind"', "reward.variant: Input should be 'paper', 'strict'"),
        ("[reward.weights]\nw_task = 1", "reward.weights.w_task: Extra inputs"),
        ("[reward.weights]\noverflow_penalty = -0.5", "reward.weights.overflow_penalty: Input should be greater"),
        ('[environment]\nkit = "nope"', "environment.kit: Value error, there is no kit 'nope'; there are agemem"),
        ("[model]\nhidden_size = 30\nheads = 4", "model: Value error, hidden_size 30 is no multiple of heads 4"),
        ("[model]\nhidden_size = 30\nheads = 2", "model: Value error, a head's share of hidden_size 30 is 15: it must"),
        ("[environment]\nbudget_tokens = 1024", "environment: Value error, answer_tokens 1024 leave nothing of budget"),
        ('[tasks]\nsources = ["a:b"]\nweights = [1, 2]', "tasks: Value error, 2 weights for 1 sources"),
        ('[tasks]\nsources = ["a:b", "a:b"]', "tasks: Value error, a source is named twice"),
        ('[tasks]\nsources = ["a:b"]\nweights = [0]', "tasks: Value error, weights are 0 or more"),
        ("[tasks]\nsources = []", "tasks.sources: Tuple should have at least 1 item"),
        ('[reward]\njudge_model = "m"', "reward: Value error, judge_url and judge_model are given together"),
        ("model = 3", "model: Input should be a valid dictionary"),
        ("seed = ", "is no TOML"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(text: str, named: str, tmp_path: Path) -> None:
    said = complaint(tmp_path, text)
    assert named in said
    assert str(tmp_path / "run.toml") in said


def test_several_mistakes_are_told_at_once(tmp_path: Path) -> None:
    said = complaint(tmp_path, "sede = 1\n[grpo]\ntasks = 0")
    assert "sede" in said
    assert "grpo.tasks" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"absent\.toml cannot be read"):
        load_config(tmp_path / "absent.toml")
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"run\.toml cannot be read"):
        load_config(tmp_path / "run.toml")


def test_a_preset_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match=r"There are mini, qwen2\.5-7b-hotpotqa"):
        load_preset("maxi")


def test_differences_name_each_field_with_both_values() -> None:
    before = load_preset("mini")
    assert differences(before, changed(before, run={"seed": 4}, grpo={"beta": 0.5})) == [
        "seed: 0 → 4",
        "grpo.beta: 0.01 → 0.5",
    ]
    without = changed(before, run={"warm_start": None})
    assert "warm_start.gate: 0.9 → None" in differences(before, without)


@pytest.mark.parametrize(
    ("tables", "named"),
    [({"grpo": {"iterations": -1}}, "grpo.iterations"), ({"tasks": {"sources": ("a:b",)}}, "tasks: Value error")],
)
def test_options_are_checked_as_files_are(tables: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        changed(load_preset("mini"), **tables)
