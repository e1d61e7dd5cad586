"""Replacing a shard by an optimised copy of it while it is in use.

1. Changes are held back for as long as the shard's files are copied; searches go on.
2. A child process optimises the copy. Which points have changed since is kept.
3. The copy is loaded, gets those points from the shard, and becomes current by one replaced manifest.

Whatever fails before that, the copy is removed and nothing has changed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.adapters import qdrant_payload as shared
from agemem_mcp.adapters.data_folder import MIN_FREE_BYTES
from agemem_mcp.adapters.qdrant_shard import PAGE, Shard
from agemem_mcp.errors import StoreError
from agemem_mcp.service.completion import completed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.adapters.qdrant_store import CurrentStore
    from agemem_mcp.adapters.qdrant_worker import Worker

MIN_UNOPTIMISED = 10_000
"""Entries that a search may have to scan: 10,000 vectors of 384 dimensions take 2 ms, in a graph half a millisecond."""
_PROGRAM = Path(__file__).with_name("qdrant_optimise.py")
_SHOWN_OUTPUT = 300

log = structlog.get_logger(__name__)


def is_needed(store: CurrentStore) -> bool:
    """Whether a search may have to scan many entries that no graph covers.

    The work grows with the index, so that it has to wait for more entries where there are many.
    """
    needed = max(MIN_UNOPTIMISED, store.manifest.points // 5, store.optimise_at)
    if store.manifest.dimensions is None or store.unoptimised < needed:
        return False
    if store.shard.largest_scope() >= MIN_UNOPTIMISED:
        return True
    store.optimise_at = store.unoptimised + MIN_UNOPTIMISED // 2
    return False


async def optimise(store: CurrentStore, worker: Worker) -> None:
    """Replace the current shard by an optimised copy; a failure is only logged, and tried again after some growth."""
    copy = _Copy(store)
    started = time.monotonic()
    try:
        async with worker.changes_held():
            await worker.run(copy.begin)
            await completed(asyncio.to_thread(copy.fill))
        await _run_program(copy.path)
        await worker.run(copy.load)
        changed = await worker.run(copy.take_changes)
        while len(changed) > PAGE:
            for batch in shared.batches(changed, PAGE):
                await worker.run(lambda batch=batch: copy.follow(batch))
            changed = await worker.run(copy.take_changes)
        old = await worker.run(lambda: copy.become_current(changed))
    except (StoreError, OSError) as error:
        store.optimise_at = store.unoptimised + MIN_UNOPTIMISED // 2
        log.warning("memory_index_not_optimised", error=str(error))
    else:
        log.info("memory_index_optimised", entries=store.manifest.points, seconds=round(time.monotonic() - started, 1))
        await completed(asyncio.to_thread(store.folder.remove_shard, old))
    finally:
        await worker.run(copy.end)


class _Copy:
    """A copy of the current shard on its way to take its place; all but :meth:`fill` is for the worker thread."""

    def __init__(self, store: CurrentStore) -> None:
        self._store = store
        self._source = store.shard
        self._dimensions = store.manifest.dimensions
        self._shard: Shard | None = None
        self._unoptimised_before = 0
        self.path = store.folder.new_shard()

    def begin(self) -> None:
        """Bring the files up to date, and keep account of what changes from here on."""
        self._source.flush()
        self._unoptimised_before = self._store.unoptimised
        self._store.changed_points = set()

    def fill(self) -> None:
        """Copy the files.

        A full disk is not risked: the system kills a process that writes into a file it has mapped there.
        """
        needed = 2 * sum(path.stat().st_size for path in self._source.path.rglob("*")) + MIN_FREE_BYTES
        free = shutil.disk_usage(self._source.path).free
        if free < needed:
            msg = f"{needed // 1_000_000:,} MB are needed beside it, and {free // 1_000_000:,} MB are free"
            raise StoreError(msg)
        shutil.copytree(self._source.path, self.path)

    def load(self) -> None:
        """Open the copy after it was optimised."""
        self._shard = Shard.load(self.path, self._dimensions)

    def take_changes(self) -> list[str]:
        """The points changed since this was last asked."""
        changed, self._store.changed_points = self._store.changed_points, set()
        if changed is None:
            msg = "too much has changed meanwhile"
            raise StoreError(msg)
        return list(changed)

    def follow(self, points: Sequence[str]) -> None:
        """Give the copy the present state of points."""
        assert self._shard is not None  # noqa: S101  loaded before
        self._shard.copy_points(points, self._source)

    def become_current(self, changed: Sequence[str]) -> Path:
        """Follow the last points that changed, and take the shard's place; gives the folder no longer needed."""
        assert self._shard is not None  # noqa: S101  loaded before
        self.follow([*changed, *self.take_changes()])
        self._shard.flush()
        points = self._shard.points
        if points != self._source.points:
            msg = f"the copy holds {points} entries instead of {self._source.points}"
            raise StoreError(msg)
        update = {
            "shard": self.path.name,
            "points": points,
            "unoptimised": self._store.unoptimised - self._unoptimised_before,
        }
        return self._store.become(self._shard, self._store.manifest.model_copy(update=update))

    def end(self) -> None:
        """Clear up; a copy that did not become current is removed."""
        self._store.changed_points = None
        if self._store.shard.path == self.path:
            return
        if self._shard is not None:
            with suppress(StoreError):
                self._shard.close()
        self._store.folder.remove_shard(self.path)


async def _run_program(folder: Path) -> None:
    # -P: nothing that happens to lie where the server was started is imported.
    command = (sys.executable, "-P", str(_PROGRAM), str(folder), str(os.getpid()))
    flags = 0
    if sys.platform == "win32":
        flags = subprocess.BELOW_NORMAL_PRIORITY_CLASS | subprocess.CREATE_NO_WINDOW
    # Its output must not mix with the protocol on ours.
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        creationflags=flags,
    )
    try:
        _, output = await process.communicate()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        shown = output.decode(errors="replace").strip()[-_SHOWN_OUTPUT:]
        msg = f"the optimising process ended with status {process.returncode}: {shown or 'no output'}"
        raise StoreError(msg)
