"""What a run holds of the machine: threads and memory."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agemem_training.config import RunConfig


def threads_of(config: RunConfig) -> int | None:
    """A process' share of the threads, where ``accelerate launch`` started several on this machine.

    Two processes with two threads each take ten times as long on two cores: threads that wait for each other spin.
    """
    if config.threads is None:
        return None
    return max(1, config.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def peak_memory() -> float:
    """The most that this process has held so far, in bytes."""
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def held_memory() -> float:
    """What this process holds now, in bytes."""
    import psutil  # noqa: PLC0415  an extra

    return float(psutil.Process().memory_info().rss)


def return_memory() -> None:
    """Give back what is free: glibc keeps it, by the gigabyte, from many short lists of large tensors."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
