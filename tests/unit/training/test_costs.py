"""Threads and memory of a run."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

for extra in ("torch", "psutil"):
    pytest.importorskip(extra, reason="training needs `pip install 'agemem-mcp[train]'`")

from agemem_training.config import RunConfig  # noqa: E402  after the skip
from agemem_training.costs import (  # noqa: E402  as above
    held_memory,
    return_memory,
    threads_of,
    watched_memory,
)

MEGABYTE = 2**20
# Not bytearray(b"1" * ...), which holds both for a moment, and the watch may look just then.
HOLDING = f"block = b'1' * {200 * MEGABYTE}; print('held', flush=True); input()"
FILLING = """
from agemem_training.costs import held_memory, peak_memory
before = held_memory()
block = bytearray(b"\\1" * (64 * 2**20))
print(before, held_memory(), peak_memory())
"""
WATCHING = f"""
import subprocess, sys
from agemem_training.costs import held_memory, watched_memory

with watched_memory() as memory:
    for _ in range(2):
        alone = held_memory()
        with subprocess.Popen(
            [sys.executable, "-c", {HOLDING!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            other.stdout.readline()
            memory.look()
            other.communicate(b"\\n")
print(alone, memory.seen, memory.peak)
"""


@pytest.mark.parametrize(
    ("threads", "processes", "share"),
    [(None, None, None), (None, "2", None), (4, None, 4), (4, "1", 4), (4, "2", 2), (2, "4", 1), (3, "2", 1)],
)
def test_processes_of_one_machine_share_its_threads(
    threads: int | None, processes: str | None, share: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert threads_of(RunConfig(threads=threads)) == share


def test_memory_is_counted_in_bytes() -> None:
    # In a process of its own: one that ran other tests gives memory back meanwhile.
    ran = subprocess.run([sys.executable, "-c", FILLING], capture_output=True, text=True, check=True)
    before, held, peak = map(float, ran.stdout.split())
    assert 48 * MEGABYTE < held - before < 200 * MEGABYTE
    assert peak > held * 0.9


def test_memory_of_processes_that_are_started_is_counted_as_long_as_they_run() -> None:
    # In a process of its own: beside the gigabytes of one that ran other tests these would be lost.
    ran = subprocess.run([sys.executable, "-c", WATCHING], capture_output=True, text=True, check=True)
    alone, seen, peak = map(float, ran.stdout.split())
    # One after the other, so never both at once.
    assert alone + 190 * MEGABYTE < seen < alone + 350 * MEGABYTE
    assert peak >= seen


def test_memory_is_looked_at_by_itself() -> None:
    with watched_memory() as memory:
        deadline = time.monotonic() + 60
        while not memory.seen and time.monotonic() < deadline:
            time.sleep(0.05)
    assert memory.seen > MEGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps it")
def test_memory_that_is_free_is_given_back() -> None:
    # Small enough that glibc does not map each by itself, with one at the top that is not freed.
    blocks = [bytearray(b"\1" * 100_000) for _ in range(2000)]
    last = bytearray(b"\1" * 100_000)
    full = held_memory()
    blocks.clear()
    return_memory()
    assert full - held_memory() > 100 * MEGABYTE
    del last
