"""The mini policy's checkpoint: read by transformers as it was, and driving a chat."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.unit.training.untrained import SYSTEM, mini_tokenizer, prompt_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from agemem_policies.agent import Agent
from agemem_policies.local import LocalPolicy
from agemem_policies.manner import Manner
from agemem_policies.steps import StopReason
from agemem_training.config import ModelConfig
from agemem_training.mini.drills import drill
from agemem_training.mini.model import build_model
from agemem_training.mini.warm_start import Teacher
from agemem_training.rows import Row
from agemem_training.supervised import Supervised
from agemem_training.worlds import WorldSettings, in_process

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ModelConfig(hidden_size=32, layers=2, heads=4)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    mini_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(build_model(SMALL, mini_tokenizer(), seed=1), tmp_path_factory.mktemp("mini"))


def test_the_tokenizer_that_is_loaded_reads_and_writes_as_the_one_that_was_saved(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    own = mini_tokenizer()
    rng = random.Random(2)
    exchanges = [one for _ in range(60) for one in drill(rng, system=SYSTEM)]
    texts = [text for one in exchanges for text in (one.turn, *(message.content for message in one.shown))]
    for text in [*texts, "A word that nobody knows: Zwölf-Uhr mittags, <|end|> \n\n  4711."]:
        ids = own(text, add_special_tokens=False)["input_ids"]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert tokenizer.decode(ids) == own.decode(ids)
    assert tokenizer.get_vocab() == own.get_vocab()
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (own.eos_token_id, own.pad_token_id)
    messages = [{"role": one.role, "content": one.content} for one in exchanges[0].shown]
    assert tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    ) == own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_the_turns_of_drills_are_read_back_as_they_were_written() -> None:
    own = mini_tokenizer()
    rng = random.Random(3)
    for exchange in [one for _ in range(100) for one in drill(rng, system=SYSTEM, split="test")]:
        assert own.decode(own(exchange.turn, add_special_tokens=False)["input_ids"]) == exchange.turn


def test_the_model_that_is_loaded_computes_what_the_saved_one_did(folder: Path) -> None:
    own = build_model(SMALL, mini_tokenizer(), seed=1).eval()
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([mini_tokenizer()("Tom likes tea.")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, own(ids).logits, atol=0, rtol=0)
    assert model.generation_config.eos_token_id == mini_tokenizer().eos_token_id
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_the_seed_decides_the_weights_and_the_config_the_size() -> None:
    one, same, other = [build_model(SMALL, mini_tokenizer(), seed=seed) for seed in (1, 1, 2)]
    pairs = zip(one.parameters(), same.parameters(), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)
    preset = build_model(ModelConfig(), mini_tokenizer(), seed=0)
    assert 0.8e6 < sum(weights.numel() for weights in preset.parameters()) < 1.4e6


async def test_a_checkpoint_that_learnt_to_say_ok_drives_a_turn_of_an_agent(tmp_path: Path) -> None:
    tokenizer = mini_tokenizer()
    model = build_model(SMALL, tokenizer, seed=1)
    learning = Supervised(model, learning_rate=1e-2, muon_learning_rate=2e-2, steps=80)
    teacher = Teacher(tokenizer, SYSTEM)
    row = _row_of(teacher, "Hello, how are you today?", "<think>nothing new</think><answer>ok</answer>")
    fits = [learning.step([row]) for _ in range(80)]
    assert fits[-1].accuracy == 1
    Manner(system=SYSTEM, answer_tokens=0, frame_tokens=0).save(saved(model, tmp_path))
    policy = LocalPolicy(tmp_path, max_tokens=16)
    server = WorldSettings(tokenizer="estimate", extra={"embedding": "none"})
    async with in_process(server, seed=0) as world, world.tools("chat") as tools:
        trajectory = await Agent(policy, tools).run("Hello, how are you today?")
    await policy.close()
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWER, "ok")
    (step,) = trajectory.steps
    assert list(step.completion.prompt_ids) == row.ids_T[: len(step.completion.prompt_ids)]
    assert [*step.completion.prompt_ids, *step.completion.action_ids] == row.ids_T


def _row_of(teacher: Teacher, said: str, turn: str) -> Row:
    row = Row()
    template = teacher.tokenizer.apply_chat_template(
        [{"role": one.role, "content": one.content} for one in prompt_of(said).messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    row.read(teacher.tokenizer(template, add_special_tokens=False)["input_ids"])
    teacher._write(row, teacher._ids(turn), 0)
    return row
