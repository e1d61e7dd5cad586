"""How fast turns are sampled: `TurnSampler` beside transformers' ``generate``, same model, same batch, same prompts.

    python benchmarks/rollouts.py [--rows 32] [--context 300] [--write 32] [--rounds 5] [--threads 1] [--json OUT]

The model is of the mini preset's size, with random weights. Both write as many tokens for every row, drawn at
temperature 1, so that nobody gains by ending early. "the first turn" reads whole prompts. "a later turn" comes after
another one, with 30 new tokens: the sampler has kept what it read, `generate` reads all of it again. With
"log-probabilities" those of the written tokens are known afterwards, as they always are from the sampler.
The three are timed in turn, and the medians given.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from agemem_policies.policy import ChatMessage, Prompt
from agemem_training.config import ModelConfig
from agemem_training.mini.drills import drill
from agemem_training.mini.model import build_model
from agemem_training.mini.tokenizer import build_tokenizer
from agemem_training.sampling import Asked, TurnSampler
from timing import Journal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SYSTEM = "You manage memory."
_NEW_WORDS = 30
_NO_END = -1


class Bench:
    """A model, and prompts of one turn and of the next."""

    def __init__(self, rows: int, context: int, write: int) -> None:
        self.write = write
        rng = random.Random(0)
        exchanges = [one for _ in range(400) for one in drill(rng, system=SYSTEM)]
        texts = sorted({text for one in exchanges for text in (one.turn, *(said.content for said in one.shown))})
        self.tokenizer: Any = build_tokenizer(texts)
        self.model = build_model(ModelConfig(), self.tokenizer, seed=0).eval()
        words = [word for word in self.tokenizer.get_vocab() if word.isalpha() and word.islower()]
        # Rows differ in length by up to a quarter, as trajectories do.
        lengths = [rng.randint(context * 7 // 8, context * 9 // 8) for _ in range(rows)]
        self.first = [_prompt(" ".join(rng.choices(words, k=length))) for length in lengths]
        self.later = [
            _prompt(one.messages[1].content, " ".join(rng.choices(words, k=_NEW_WORDS))) for one in self.first
        ]

    def sampler(self) -> TurnSampler:
        """One that has kept nothing yet, and whose turns never end early."""
        return TurnSampler(self.model, self.tokenizer, frozenset({_NO_END}), max_tokens=self.write)

    def sample(self, sampler: TurnSampler, prompts: Sequence[Prompt], seed: int) -> list[tuple[int, ...]]:
        """Let the sampler write a turn for each; gives what was read."""
        asked = [Asked(number, one, np.random.default_rng([seed, number])) for number, one in enumerate(prompts)]
        return [one.prompt_ids for one in sampler.sample(asked)]

    def generate(self, ids: Sequence[Sequence[int]], *, scores: bool) -> None:
        """Let transformers write as many tokens after the same prompts."""
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(one)) + list(one) for one in ids])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in ids])
        made: Any = self.model.generate(
            padded,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=self.write,
            max_new_tokens=self.write,
            eos_token_id=None,
            pad_token_id=0,
            output_scores=scores,
            return_dict_in_generate=scores,
        )
        if scores:
            written = made.sequences[:, width:]
            torch.stack(made.scores, 1).log_softmax(-1).gather(2, written[:, :, None])


def _prompt(*texts: str) -> Prompt:
    return Prompt((ChatMessage("system", SYSTEM), *(ChatMessage("user", text) for text in texts)))


def timed_s(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(bench: Bench, rounds: int, journal: Journal) -> list[dict[str, Any]]:
    ids = {turn: bench.sample(bench.sampler(), prompts, 0) for turn, prompts in _turns(bench).items()}
    times: dict[tuple[str, str], list[float]] = {}
    read: dict[tuple[str, str], int] = {}
    for number in range(rounds):
        journal.note(f"round {number + 1} of {rounds}")
        sampler = bench.sampler()
        for turn, prompts in _turns(bench).items():
            before = sampler.work.read_tokens
            key = (turn, "TurnSampler")
            times.setdefault(key, []).append(timed_s(lambda: bench.sample(sampler, prompts, number)))  # noqa: B023  done at once
            read[key] = sampler.work.read_tokens - before
            for name, scores in (("generate", False), ("generate, log-probabilities", True)):
                key = (turn, name)
                times.setdefault(key, []).append(timed_s(lambda: bench.generate(ids[turn], scores=scores)))  # noqa: B023  as above
                read[key] = sum(map(len, ids[turn]))
    written = len(bench.first) * bench.write
    return [
        {
            "turn": turn,
            "by": name,
            "median_s": round(statistics.median(took), 3),
            "min_s": round(min(took), 3),
            "max_s": round(max(took), 3),
            "read_tokens": read[turn, name],
            "context_tokens": sum(map(len, ids[turn])),
            "written_tokens": written,
            "written_per_s": round(written / statistics.median(took)),
            "context_and_written_per_s": round((sum(map(len, ids[turn])) + written) / statistics.median(took)),
        }
        for (turn, name), took in times.items()
    ]


def _turns(bench: Bench) -> dict[str, list[Prompt]]:
    return {"the first turn": bench.first, "a later turn": bench.later}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--context", type=int, default=300, help="tokens of a prompt, about")
    parser.add_argument("--write", type=int, default=32, help="tokens of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    journal = Journal()
    journal.note("building the model")
    figures = measure(Bench(arguments.rows, arguments.context, arguments.write), arguments.rounds, journal)
    print(f"{arguments.rows} rows, about {arguments.context} tokens of context, {arguments.write} written each")
    print(f"{'':<16}{'':<30}{'s':>8}{'read':>8}{'written/s':>11}{'context + written/s':>21}")
    for one in figures:
        print(
            f"{one['turn']:<16}{one['by']:<30}{one['median_s']:>8.3f}{one['read_tokens']:>8}"
            f"{one['written_per_s']:>11,}{one['context_and_written_per_s']:>21,}"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {"rows": arguments.rows, "context": arguments.context, "write": arguments.write}
        whole = {"machine": journal.machine() | {"torch_threads": arguments.threads}, **settings, "figures": figures}
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
