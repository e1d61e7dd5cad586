"""Builds the search graphs of one shard, as a program: ``python -P qdrant_optimise.py FOLDER PARENT``.

The library holds the interpreter lock while it optimises: 45 s and more at 100,000 entries, in which
a server would answer nobody. So the server copies its shard and starts this program on the copy.
Nothing but the standard library and ``qdrant_edge`` is imported here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import qdrant_edge

_NICENESS = 10
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def optimise(folder: Path) -> None:
    """Optimise the shard in a folder that no other process uses, durably."""
    shard = qdrant_edge.EdgeShard.load(str(folder))  # with the settings that the server gave it
    shard.optimize()
    shard.flush()
    shard.close()
    # Files that were only copied are not yet on stable storage.
    for path in [folder, *folder.rglob("*")]:
        _synchronise(path)


def _synchronise(path: Path) -> None:
    if os.name == "nt":  # where only what is open for writing can be synchronised, and no folder
        if path.is_dir():
            return
        flags = os.O_RDWR
    else:
        flags = os.O_RDONLY
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _step_back(parent: int) -> None:
    """Leave the processor to others, and end with the server where the system offers that."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            sys.exit("the server has ended")


if __name__ == "__main__":
    _step_back(int(sys.argv[2]))
    optimise(Path(sys.argv[1]))
