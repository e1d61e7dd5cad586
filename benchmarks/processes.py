"""The processes that work on a folder: their memory, and their end.

A process is taken to work on a folder when its command line or its environment names it. That is read from
``/proc``; on a system without one, memory is not measured and only what a client started is ended, by the client.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a group of processes, in MB of 2^20 bytes."""

    processes: int
    rss_mb: float
    """Pages shared between them are counted in each."""
    pss_mb: float
    """Pages shared between processes are counted in parts: what would be free without them."""


def working_on(folder: Path) -> list[int]:
    """The processes whose command line or environment names a folder, without this one."""
    if not _PROC.is_dir():
        return []
    needle = os.fsencode(folder)
    entries = (entry for entry in _PROC.iterdir() if entry.name.isdigit() and int(entry.name) != os.getpid())
    return sorted(int(entry.name) for entry in entries if _names(entry, needle))


def memory(folder: Path) -> Memory | None:
    """What the processes on a folder take together; None where that cannot be read."""
    rollups = [rollup for pid in working_on(folder) if (rollup := _rollup(pid))]
    if not rollups:
        return None
    rss_kb = sum(rollup.get("Rss", 0) for rollup in rollups)
    pss_kb = sum(rollup.get("Pss", 0) for rollup in rollups)
    return Memory(processes=len(rollups), rss_mb=round(rss_kb / 1024, 1), pss_mb=round(pss_kb / 1024, 1))


def end_all(folder: Path) -> None:
    """End whatever works on a folder: asked first, then told."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in working_on(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + _PATIENCE_S
        while (pids := working_on(folder)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not pids:
            return


def _names(entry: Path, needle: bytes) -> bool:
    for name in ("cmdline", "environ"):
        # It may end while we look, and other users' environments are not ours to read.
        with suppress(OSError):
            if needle in (entry / name).read_bytes():
                return True
    return False


def _rollup(pid: int) -> dict[str, int]:
    """``smaps_rollup`` of a process, in kB."""
    values: dict[str, int] = {}
    with suppress(OSError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if rest.endswith(" kB"):
                values[name] = int(rest.split()[0])
    return values
