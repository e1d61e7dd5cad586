"""A policy of a few thousand parameters that has just learnt to say "ok", and runs of it that take a second."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from agemem_policies.local.chat_ids import ChatEncoder
from agemem_policies.policy import ChatMessage
from agemem_policies.protocol import Turn, render
from agemem_training.config import ModelConfig, RunConfig
from agemem_training.mini.model import build_model
from agemem_training.mini.tokenizer import build_tokenizer
from agemem_training.rows import Row
from agemem_training.supervised import Supervised
from agemem_training.tasks.synthetic import Stories

if TYPE_CHECKING:
    from pathlib import Path

    import torch

SYSTEM = "You manage memory."
_STEPS = 80


def write_tiny_policy(folder: Path) -> Path:
    """Write it: its turns are sometimes in form and sometimes not, so that rewards differ."""
    stories = Stories("L1")
    tasks = [stories.task("train", seed=0, number=number) for number in range(8)]
    said = [text for task in tasks for text in (*task.messages, *task.distractors, task.query)]
    turn = render(Turn("nothing new", answer="ok"))
    tokenizer: Any = build_tokenizer([SYSTEM, turn, *said])
    model = build_model(ModelConfig(hidden_size=16, layers=1, heads=2), tokenizer, seed=0)
    encoder = ChatEncoder(tokenizer, {tokenizer.eos_token_id})
    rng = random.Random(0)
    learning = Supervised(model, learning_rate=1e-2, muon_learning_rate=2e-2, steps=_STEPS)
    for _ in range(_STEPS):
        learning.step([_row(encoder, tokenizer, rng.choice(said), turn) for _ in range(4)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _row(encoder: ChatEncoder, tokenizer: Any, said: str, turn: str) -> Row:
    ids = tokenizer(turn, add_special_tokens=False)["input_ids"]
    row = Row()
    row.read(encoder.encode([ChatMessage("system", SYSTEM), ChatMessage("user", said)]))
    row.ids_T += ids
    row.steps_T += [0] * len(ids)
    row.logprobs_T += [0.0] * len(ids)
    row.weights_T += [1.0] * len(ids)
    return row


def tiny_run(start: Path, **tables: dict[str, Any]) -> RunConfig:
    """A configuration whose iterations take a fraction of a second; needs no files of the server's.

    Args:
        start: what is trained.
        tables: what is otherwise; the table ``run`` is the top level.
    """
    data: dict[str, Any] = {
        "preset": "tiny",
        "threads": 1,
        "save_every": 2,
        "model": {"path": str(start)},
        "tasks": {"sources": ["synthetic:L1"]},
        "environment": {
            "budget_tokens": 640,
            "tokenizer": "policy",
            "ids": "sequential",
            "max_rounds": 20,
            "recalled": 1,
            "answer_tokens": 0,
            "frame_tokens": 0,
            "system": SYSTEM,
            "own_summaries": False,
            "embedding": "none",
        },
        "grpo": {
            "iterations": 4,
            "tasks": 2,
            "trajectories": 2,
            "learning_rate": 1e-2,
            "warmup": 2,
            "beta": 0.01,
            "turn_tokens": 12,
            "micro_batch_tokens": 2000,
        },
        "evaluation": {"every": 2, "episodes": 2, "final_episodes": 2, "sampled": False},
    }
    for name, table in tables.items():
        data |= table if name == "run" else {name: data.get(name, {}) | table}
    return RunConfig.model_validate(data)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """What a folder's model.safetensors holds."""
    return load_file(folder / "model.safetensors")


def hotpotqa_file(folder: Path) -> Path:
    """Questions in HotpotQA's official layout, some for each split."""
    questions = [
        {
            "_id": f"question-{number}",
            "question": f"In which year was the mayor of town {number} born?",
            "answer": str(1900 + number),
            "type": "bridge",
            "level": "hard",
            "supporting_facts": [[f"Town {number}", 1], [f"Mayor {number}", 0]],
            "context": [
                [f"Town {number}", ["It is a town.", f" Its mayor is mayor {number}."]],
                [f"Mayor {number}", [f"Mayor {number} was born in {1900 + number}."]],
                ["Elsewhere", ["Elsewhere is a town."]],
            ],
        }
        for number in range(40)
    ]
    path = folder / "hotpot.json"
    path.write_text(json.dumps(questions), encoding="utf-8")
    return path
