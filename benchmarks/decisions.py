"""How often a mini policy decides rightly in drills, whatever it then copies.

    python benchmarks/decisions.py DIR [--drills N]

Copying skills leave decisions out, and task success mixes them with copying. Here each turn of a drill that adds,
updates, deletes or answers is written greedily, and its kind compared with the drill's: by split of names and wording,
so that what was not learnt can be told from what was learnt by heart.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from agemem_policies.protocol import parse
from agemem_training.config import load_preset
from agemem_training.loading import load_trainable
from agemem_training.mini.drills import drill
from agemem_training.mini.skills import turns_written
from agemem_training.reporting.tables import table
from agemem_training.sampling import TurnSampler
from agemem_training.tasks.synthetic.language import UNKNOWN

if TYPE_CHECKING:
    from agemem_policies.protocol import Turn
    from agemem_training.mini.drills import Skill
    from agemem_training.mini.scene import Exchange
    from agemem_training.tasks.source import Split

_SPLITS: tuple[Split, ...] = ("train", "test")
_SKILLS: tuple[Skill, ...] = ("add", "update", "delete", "answer", "unknown")
_KINDS = ("Add_memory", "Update_memory", "Delete_memory", "answer", UNKNOWN)


def main() -> None:
    """Measure, and print a row for each split and kind of decision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--drills", type=int, default=200, help="of each skill")
    wanted = parser.parse_args()
    mini = load_preset("mini")
    policy = load_trainable(mini.model.model_copy(update={"path": str(wanted.checkpoint)}))
    policy.model.eval()
    sampler = TurnSampler(
        policy.model, policy.tokenizer, policy.eos_ids, temperature=0.0, max_tokens=mini.grpo.turn_tokens
    )
    rows: list[list[str]] = []
    for split in _SPLITS:
        decided = decisions(sampler, mini.environment.system or "", split, wanted.drills)
        for kind in _KINDS:
            made = {other: count for (due, other), count in decided.items() if due == kind}
            others = ", ".join(f"{other} {count}" for other, count in sorted(made.items()) if other != kind)
            n = sum(made.values())
            rows.append([split, kind, f"{made.get(kind, 0) / max(n, 1):.3f}", str(n), others])
    print(table(["split", "due", "right", "n", "instead"], rows))


def decisions(sampler: TurnSampler, system: str, split: Split, drills: int) -> Counter[tuple[str, str]]:
    """How often each kind of turn was due and which kind was written.

    Args:
        sampler: of the policy, at temperature 0.
        system: the policy's system prompt.
        split: whose names and wording the drills use.
        drills: how many of each skill.
    """
    decided = Counter[tuple[str, str]]()
    due: list[tuple[Exchange, str]] = []
    for skill in _SKILLS:
        rng = random.Random(f"decisions {skill}")
        exchanges = [one for _ in range(drills) for one in drill(rng, system=system, split=split, skill=skill)]
        due += [(one, kind) for one in exchanges if (kind := _kind(parse(one.turn))) in _KINDS]
    turns = turns_written(sampler, [exchange for exchange, _ in due])
    for (_, kind), turn in zip(due, turns, strict=True):
        decided[kind, "unreadable" if turn is None else _kind(turn)] += 1
    return decided


def _kind(turn: Turn) -> str:
    if turn.calls:
        return turn.calls[0].name
    return turn.answer if turn.answer in {"ok", UNKNOWN} else "answer"


if __name__ == "__main__":
    main()
