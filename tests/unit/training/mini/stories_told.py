"""The mini policy's tokenizer, made of what stories say."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from agemem_training.mini.tokenizer import build_tokenizer
from agemem_training.tasks.synthetic import LEVELS, Stories

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_training.tasks import Task

SAID = "You manage memory. new fact nothing new done ok too much look up not there small talk unknown"
"""What is neither in stories nor in the fixed parts of turns."""


def told(level: str, count: int) -> list[Task]:
    """Stories of the training split."""
    return list(islice(Stories(level).tasks("train", seed=0), count))


@cache
def mini_tokenizer() -> Any:
    """A tokenizer that knows the words of training stories."""
    tasks = [task for level in LEVELS for task in told(level, 60)]
    texts = [text for task in tasks for text in (*task.messages, *task.distractors, *task.background, task.query)]
    return build_tokenizer([SAID, *texts])


def saved_tokenizer(folder: Path) -> str:
    """The file that a server counts with."""
    mini_tokenizer().save_pretrained(folder)
    return str(folder / "tokenizer.json")
