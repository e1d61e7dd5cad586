"""A tiny model, rows for it, and learners; also run by two processes at once, as a script.

accelerate launch learning.py OUT ROWS_OF_FIRST writes ``OUT/KIND-RANK.safetensors`` and ``OUT/KIND-RANK.json``.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from tests.unit.training.processes import end_when_hanging
from transformers import Qwen2Config, Qwen2ForCausalLM

from agemem_training.config import GrpoConfig
from agemem_training.learner import Learner, Updated
from agemem_training.rows import Row

VOCABULARY = 29
KINDS = ("whole", "adapter")
ITERATIONS = 3


def tiny_model(*, adapter: bool = False, fresh: bool = True) -> Any:
    """With an adapter that changes nothing yet, or one that was trained already."""
    torch.manual_seed(3)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    model: Any = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCABULARY, initializer_range=0.3, **shape))
    if not adapter:
        return model
    wanted = peft.LoraConfig(
        r=3, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=fresh
    )
    return peft.get_peft_model(model, wanted)


def rows(count: int, *, seed: int = 0) -> list[Row]:
    """Of different lengths, with prompts between what was written; their weights sum to 1."""
    rng = random.Random(seed)
    made: list[Row] = []
    for number in range(count):
        row = Row(advantage=rng.uniform(-1, 1), source=f"trajectory {number}")
        for step in range(rng.randint(1, 3)):
            row.read([rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 5))])
            written = rng.randint(1, 6)
            row.ids_T += [rng.randrange(VOCABULARY) for _ in range(written)]
            row.steps_T += [step] * written
            row.logprobs_T += [rng.uniform(-4, -2) for _ in range(written)]
            row.weights_T += [1 / written] * written
        made.append(row)
    total = sum(sum(row.weights_T) for row in made)
    for row in made:
        row.weights_T = [one / total for one in row.weights_T]
    return made


def learner(model: Any, **changes: Any) -> Learner:
    config = GrpoConfig.model_validate(
        {"learning_rate": 1e-2, "warmup": 2, "beta": 0.1, "micro_batch_tokens": 64} | changes
    )
    return Learner(model, Accelerator(cpu=True), config)


def learned(one: Learner, batches: list[list[Row]]) -> list[Updated]:
    return [one.update(batch, iteration=number) for number, batch in enumerate(batches, 1)]


def global_batches() -> list[list[Row]]:
    return [rows(14, seed=seed) for seed in range(ITERATIONS)]


def learn(kind: str, out: Path, of_first: int) -> None:
    one = learner(tiny_model(adapter=kind == "adapter", fresh=False))
    rank = Accelerator(cpu=True).process_index
    share = slice(of_first) if rank == 0 else slice(of_first, None)
    updates = learned(one, [batch[share] for batch in global_batches()])
    save_file({name: weight.detach() for name, weight in one.trained().items()}, out / f"{kind}-{rank}.safetensors")
    (out / f"{kind}-{rank}.json").write_text(json.dumps([asdict(update) for update in updates]))


def main() -> None:
    end_when_hanging()
    torch.set_num_threads(1)
    out, of_first = Path(sys.argv[1]), int(sys.argv[2])
    for kind in KINDS:
        learn(kind, out, of_first)
    # What joins the processes may wait for ever where it goes after their group.
    gc.collect()
    Accelerator(cpu=True).wait_for_everyone()
    Accelerator(cpu=True).end_training()


if __name__ == "__main__":
    main()
