"""What a run holds of the machine: threads and memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from agemem_training.config import RunConfig

_LOOK_EVERY_S = 0.5


def threads_of(config: RunConfig) -> int | None:
    """A process' share of the threads, where ``accelerate launch`` started several on this machine.

    Two processes with two threads each take ten times as long on two cores: threads that wait for each other spin.
    """
    if config.threads is None:
        return None
    return max(1, config.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def peak_memory() -> float:
    """The most that this process has held so far, in bytes."""
    if sys.platform == "win32":
        import psutil  # noqa: PLC0415  an extra

        return float(psutil.Process().memory_info().peak_wset)
    import resource  # noqa: PLC0415  Windows has no such module

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def held_memory() -> float:
    """What this process holds now, in bytes."""
    import psutil  # noqa: PLC0415  an extra

    return float(psutil.Process().memory_info().rss)


@dataclass(slots=True)
class MemoryWatch:
    """What this process and those that it started were seen to hold."""

    seen: float = 0.0
    """In bytes, at most, all together."""

    @property
    def peak(self) -> float:
        """The same, but no less than this process alone held at any time."""
        return max(self.seen, peak_memory())

    def look(self) -> None:
        """Look now."""
        import psutil  # noqa: PLC0415  an extra

        held = held_memory()
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended
                held += one.memory_info().rss
        self.seen = max(self.seen, held)


@contextmanager
def watched_memory() -> Generator[MemoryWatch]:
    """Look at what is held, twice a second: processes that peak one after the other do not hold the sum."""
    watch, ended = MemoryWatch(), threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            watch.look()

    looking = threading.Thread(target=look, name="memory watch", daemon=True)
    looking.start()
    try:
        yield watch
    finally:
        ended.set()
        looking.join()


def return_memory() -> None:
    """Give back what is free: glibc keeps it, by the gigabyte, from many short lists of large tensors."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
