"""What a source of tasks promises, and how tasks that were read are divided so that nothing leaks. No torch."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from agemem_mcp.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agemem_training.tasks.task import Task

Split: TypeAlias = Literal["train", "validation", "test"]

_VALIDATION_FROM, _TEST_FROM = 0.8, 0.9


class TaskSource(Protocol):
    """Gives tasks, the same ones for the same split and seed."""

    def tasks(self, split: Split, *, seed: int) -> Iterator[Task]:
        """The tasks of one split.

        Args:
            split: no task of one is in another. ``train`` never ends: what was read comes again in another order, what
                is generated is new. The others end where tasks were read from somewhere.
            seed: of the order, and of what is generated.

        Raises:
            ConfigurationError: the split has no task.
        """
        ...


def split_of(key: str) -> Split:
    """Which split a record belongs to, by a hash of its name: 80 % train, 10 % validation, 10 % test.

    Neither other records nor their order have a say, so a file that grows moves no record to another split.
    """
    place = int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8], "big") / 2**64
    return "train" if place < _VALIDATION_FROM else "validation" if place < _TEST_FROM else "test"


def in_order(tasks: Sequence[Task], split: Split, *, seed: int, where: str) -> Iterator[Task]:
    """Tasks that were read, as :meth:`TaskSource.tasks` gives them.

    Args:
        tasks: all of the split.
        split: which one it is.
        seed: each epoch has an order of its own by it.
        where: what they were read from, for the message.

    Raises:
        ConfigurationError: there are none.
    """
    if not tasks:
        msg = (
            f"None of the tasks in {where} falls into the {split} split (by a hash of their names, 80 % train, 10 % "
            "validation, 10 % test). Name a source with more of them."
        )
        raise ConfigurationError(msg)
    return _epochs(tasks, seed, endless=split == "train")


def _epochs(tasks: Sequence[Task], seed: int, *, endless: bool) -> Iterator[Task]:
    epoch = 0
    while endless or epoch == 0:
        yield from random.Random(f"{seed}/{epoch}").sample(tasks, len(tasks))  # noqa: S311  an order, no secret
        epoch += 1
