"""Ctrl-C, and errors that come in bundles: how a run ends before its end."""

# torch is an extra: where it is installed its types are checked, elsewhere the rest still is
# pyright: reportMissingImports=false

from __future__ import annotations

import errno
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from agemem_mcp.errors import AgeMemError, ConfigurationError
from agemem_policies.local.checkpoint import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import FrameType


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Interrupted(AgeMemError):  # noqa: N818  the tree's names follow the HTTP vocabulary
    """A person ended the run; the text says what is saved and how to go on."""


@contextmanager
def interrupts(asked: Callable[[], bool]) -> Generator[None]:
    """While this holds, Ctrl-C asks.

    Args:
        asked: told of each one; whether the run will end by itself soon. If not, it ends at once.

    Raises:
        KeyboardInterrupt: it is to end at once.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        if not asked():
            signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def single_errors() -> Generator[None]:
    """Of errors of several episodes at once, raise the first that says what to do; name settings if memory ran out.

    Raises:
        AgeMemError: one of them.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        if any(is_out_of_memory(one) or is_out_of_memory(one.__cause__ or one) for one in errors):
            msg = (
                "Memory ran out in rollouts. Lower grpo.tasks, grpo.trajectories, grpo.turn_tokens or "
                "environment.budget_tokens."
            )
            raise ConfigurationError(msg) from group
        expected = next((one for one in errors if isinstance(one, AgeMemError)), None)
        if expected is None:
            raise
        raise expected from group


@contextmanager
def full_disks(kept: Callable[[], str]) -> Generator[None]:
    """Where a disk is full, say so, and what is kept.

    Args:
        kept: tells what a run can go on from.

    Raises:
        ConfigurationError: a file could not be written for want of room.
    """
    try:
        yield
    except Exception as error:
        # tokenizers and safetensors have no class for it.
        if getattr(error, "errno", None) not in _NO_ROOM and f"(os error {errno.ENOSPC})" not in str(error):
            raise
        msg = f"There is no more room on the disk ({error}). {kept()} Make room first."
        raise ConfigurationError(msg) from error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(one)
    else:
        yield error
