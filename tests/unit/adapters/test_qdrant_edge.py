"""What only the embedded index has: a lock, a manifest, damage, and death in the middle of a write."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
from agemem_mcp.domain.memory import IndexEntry, MemoryQuery, MemoryRecord, Scope
from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

NOW = datetime(2026, 5, 1, tzinfo=UTC)
SCOPE = Scope()

# Opens the index, says "ready", and obeys lines: "apply N" stores entries up to N, "flush N" flushes.
CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_qdrant_edge import entries, opened

async def main():
    index = await opened(Path(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        command, number = line.split()
        if command == "flush":
            await index.flush(int(number))
        else:
            for item in entries(int(number)):
                await index.apply([item], [])
                print(item.record.memory_id, flush=True)
        print("done", flush=True)

asyncio.run(main())
"""


def entries(count: int) -> list[IndexEntry]:
    """Entries m0, m1, … that all hold the word note."""
    made: list[IndexEntry] = []
    for number in range(count):
        record = MemoryRecord(SCOPE, f"m{number}", 1, f"note {number}", None, {"n": number}, NOW, NOW)
        vector_D = np.eye(8, dtype=np.float32)[number % 8]
        made.append(IndexEntry(record, record.content, vector_D))
    return made


async def opened(directory: Path, **changed: Any) -> QdrantEdgeIndex:
    """The index in ``directory``, opened as usual but for ``changed``."""
    settings: dict[str, Any] = {"embedding": "test-model", "dimensions": 8, "ledger_id": "ledger-1", **changed}
    return await QdrantEdgeIndex.open(directory, **settings)


async def found(index: QdrantEdgeIndex) -> set[str]:
    """Ids of all entries, which both lists must hold."""
    vector_D = np.ones(8, dtype=np.float32) / np.sqrt(np.float32(8))
    lists = await index.search(MemoryQuery(SCOPE, "note", vector_D, 1000, NOW))
    dense, sparse = ({item.memory_id for item in items} for items in (lists.dense, lists.sparse))
    assert dense == sparse
    return dense


@contextmanager
def child(directory: Path) -> Generator[subprocess.Popen[str]]:
    """A real process that has the index open; killed at the end."""
    command = [sys.executable, "-c", CHILD, str(directory), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], command: str) -> None:
    """Send a command without waiting for its end."""
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()


def read_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """The lines before ``wanted``."""
    assert process.stdout is not None
    lines: list[str] = []
    while (line := process.stdout.readline().strip()) != wanted:
        assert line, "the process ended"
        lines.append(line)
    return lines


def damaged_copies(directory: Path) -> list[Path]:
    """Folders that were set aside."""
    return list(directory.parent.glob(f"{directory.name}.damaged-*"))


def shard(directory: Path) -> Path:
    """The folder of the current shard."""
    return directory / json.loads((directory / "manifest.json").read_text())["shard"]


def contents(directory: Path) -> set[str]:
    """What lies in the folder, but for the lock."""
    return {path.name for path in directory.iterdir() if not path.name.startswith("lock")}


async def filled(directory: Path, count: int = 20) -> None:
    """Make an index of ``count`` entries, flushed at position ``count``, and close it."""
    index = await opened(directory)
    for item in entries(count):  # one by one: the log keeps the last change, and can restore that much
        await index.apply([item], [])
    await index.flush(count)
    await index.close()


async def test_a_second_process_is_told_who_holds_the_index_and_does_no_harm(tmp_path: Path) -> None:
    with child(tmp_path / "index") as holder:
        tell(holder, "apply 5")
        read_until(holder, "done")
        with pytest.raises(StoreError, match=rf"process id {holder.pid}\).*end that one, .*or choose another"):
            await opened(tmp_path / "index")
        tell(holder, "flush 5")
        read_until(holder, "done")
    index = await opened(tmp_path / "index")
    assert await index.flushed_seq() == 5
    assert await found(index) == {f"m{number}" for number in range(5)}
    assert damaged_copies(tmp_path / "index") == []
    await index.close()


async def test_the_lock_is_free_again_after_close_and_after_a_refusal(tmp_path: Path) -> None:
    index = await opened(tmp_path / "index")
    with pytest.raises(StoreError, match=f"process id {os.getpid()}"):
        await opened(tmp_path / "index")
    await index.close()
    with pytest.raises(ConfigurationError):
        await opened(tmp_path / "index", embedding="other-model")
    await (await opened(tmp_path / "index")).close()


async def test_an_opening_that_is_cancelled_gives_the_lock_back(tmp_path: Path) -> None:
    await filled(tmp_path / "index")
    opening = asyncio.create_task(opened(tmp_path / "index"))
    while not (tmp_path / "index" / "lock.pid").exists():  # noqa: ASYNC110  another thread writes it
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    index = None
    while index is None:
        try:
            index = await opened(tmp_path / "index")
        except StoreError as error:
            assert "process id" in str(error)  # noqa: PT017  the worker is still letting go
    assert await index.count() == 20
    await index.close()


async def test_a_change_whose_caller_gives_up_is_applied_all_the_same(tmp_path: Path) -> None:
    index = await opened(tmp_path / "index")
    applying = asyncio.create_task(index.apply(entries(50), []))
    following = asyncio.create_task(index.apply(entries(60), []))
    await asyncio.sleep(0)
    applying.cancel()
    following.cancel()
    await asyncio.gather(applying, following, return_exceptions=True)
    assert await index.count() == 60
    await index.close()


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    await filled(tmp_path / "index")
    manifest = tmp_path / "index" / "manifest.json"
    manifest.write_text(json.dumps({"schema_version": 99, "what": "ever"}))
    with pytest.raises(ConfigurationError, match=r"newer version of agemem-mcp.*Update agemem-mcp"):
        await opened(tmp_path / "index")
    assert json.loads(manifest.read_text())["schema_version"] == 99
    assert damaged_copies(tmp_path / "index") == []


def _broken_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_bytes(b'{"schema_version": 1, "embed')


def _no_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def _no_shard(directory: Path) -> None:
    shutil.rmtree(shard(directory))


def _no_segments(directory: Path) -> None:
    shutil.rmtree(shard(directory) / "segments")


def _segment_file(name: str) -> Callable[[Path], Path]:
    return lambda directory: next((shard(directory) / "segments").glob(f"*/{name}"))


def _overwritten(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = _segment_file(name)(directory)
        path.write_bytes(b"\xfe\x13garbage" * 50)

    return damage


def _truncated(name: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = _segment_file(name)(directory)
        os.truncate(path, path.stat().st_size // 2)

    return damage


def _removed(name: str) -> Callable[[Path], None]:
    return lambda directory: _segment_file(name)(directory).unlink()


def _made_by_an_older_program(directory: Path) -> None:
    raw = json.loads((directory / "manifest.json").read_text())
    shard(directory).rename(directory / "shard")
    del raw["shard"], raw["unoptimised"]
    (directory / "manifest.json").write_text(json.dumps({**raw, "schema_version": 1}))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "manifest cut off": _broken_manifest,
    "manifest gone": _no_manifest,
    "shard gone": _no_shard,
    "segments gone": _no_segments,
    "segment.json overwritten": _overwritten("segment.json"),
    "payload overwritten": _overwritten("payload_storage/page_0.dat"),
    "vector bookkeeping truncated, which panics": _truncated("vector_storage-dense/vectors/status.dat"),
    "ids truncated, which loads with fewer entries": _truncated("mutable_id_tracker.mappings"),
    "words truncated, which loads with as many": _truncated("vector_storage-sparse/store/tracker_journal.dat"),
    "version gone, which loads without the segment": _removed("version.info"),
}


@pytest.mark.parametrize("name", DAMAGE)
async def test_a_damaged_index_is_set_aside_and_a_new_one_can_be_filled(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    (directory / "a file of somebody else").write_text("stays")
    DAMAGE[name](directory)
    index = await opened(directory)
    assert await index.flushed_seq() == 0
    assert await index.count() == 0
    assert len(damaged_copies(directory)) == 1
    assert (directory / "a file of somebody else").read_text() == "stays"
    with pytest.raises(StoreError, match="process id"):
        await opened(directory)
    await index.apply(entries(20), [])
    await index.flush(20)
    await index.close()
    index = await opened(directory)
    assert await found(index) == {f"m{number}" for number in range(20)}
    assert len(damaged_copies(directory)) == 1
    await index.close()


async def test_an_index_of_an_older_schema_is_replaced_by_an_empty_one(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    _made_by_an_older_program(directory)
    index = await opened(directory)
    assert (await index.flushed_seq(), await index.count()) == (0, 0)
    await index.close()
    assert damaged_copies(directory) == []
    assert contents(directory) == {"manifest.json", "shard-1"}


async def test_an_index_with_another_embedding_is_replaced_when_asked(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    index = await opened(directory, embedding="other-model", dimensions=4, rebuild=True)
    assert (await index.flushed_seq(), await index.count()) == (0, 0)
    await index.close()
    assert contents(directory) == {"manifest.json", "shard-2"}
    await (await opened(directory, embedding="other-model", dimensions=4)).close()


async def test_asking_for_another_embedding_keeps_an_index_that_has_it(tmp_path: Path) -> None:
    await filled(tmp_path / "index")
    index = await opened(tmp_path / "index", rebuild=True)
    assert (await index.flushed_seq(), await index.count()) == (20, 20)
    await index.close()


@pytest.mark.parametrize("crashed", ["before the manifest", "while it was written", "after it"])
async def test_a_crash_between_two_generations_leaves_one_of_them(tmp_path: Path, crashed: str) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    old, new = shard(directory), directory / "shard-7"
    shutil.copytree(old, new)
    manifest = json.loads((directory / "manifest.json").read_text())
    replacement = json.dumps({**manifest, "shard": new.name, "flushed_seq": 33})
    if crashed == "while it was written":
        (directory / "manifest.json.new").write_text(replacement[:50])
    elif crashed == "after it":
        (directory / "manifest.json").write_text(replacement)
    index = await opened(directory)
    assert await index.flushed_seq() == (33 if crashed == "after it" else 20)
    assert await found(index) == {f"m{number}" for number in range(20)}
    await index.flush(34)
    await index.close()
    current = new if crashed == "after it" else old
    assert contents(directory) == {"manifest.json", current.name}
    assert damaged_copies(directory) == []


async def test_a_manifest_that_points_elsewhere_is_damage(tmp_path: Path) -> None:
    directory = tmp_path / "index"
    await filled(directory)
    (tmp_path / "shard-1").mkdir()
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "shard": "../shard-1"}))
    index = await opened(directory)
    assert await index.count() == 0
    assert len(damaged_copies(directory)) == 1
    assert (tmp_path / "shard-1").exists()
    await index.close()


async def test_an_index_of_another_ledger_is_set_aside(tmp_path: Path) -> None:
    await filled(tmp_path / "index")
    index = await opened(tmp_path / "index", ledger_id="ledger-2", embedding="other-model", dimensions=4)
    assert (await index.flushed_seq(), await index.count()) == (0, 0)
    assert len(damaged_copies(tmp_path / "index")) == 1
    await index.close()


@pytest.mark.skipif(sys.platform == "win32" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
async def test_a_folder_that_cannot_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)  # noqa: ASYNC240  nothing else is waiting
    with pytest.raises(ConfigurationError, match="writable"):
        await opened(tmp_path / "index")


async def test_a_file_in_the_way_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("not a folder")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await opened(tmp_path / "index")


async def test_closing_does_not_flush_yet_loses_nothing_applied(tmp_path: Path) -> None:
    await filled(tmp_path / "index", 3)
    index = await opened(tmp_path / "index")
    await index.apply(entries(9)[3:], [entries(1)[0].record])
    await index.close()
    index = await opened(tmp_path / "index")
    assert await index.flushed_seq() == 3
    assert await found(index) == {f"m{number}" for number in range(1, 9)}
    await index.close()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("acknowledged", [1, 40, 300])
async def test_killed_in_the_middle_of_writes_nothing_acknowledged_is_lost(tmp_path: Path, acknowledged: int) -> None:
    directory = tmp_path / "index"
    with child(directory) as writer:
        tell(writer, "apply 20")
        read_until(writer, "done")
        tell(writer, "flush 20")
        read_until(writer, "done")
        tell(writer, "apply 100000")
        seen = read_until(writer, f"m{acknowledged}")
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    index = await opened(directory)
    assert await index.flushed_seq() == 20
    assert await found(index) >= {f"m{number}" for number in range(20)} | set(seen) | {f"m{acknowledged}"}
    assert damaged_copies(directory) == []
    await index.apply(entries(500), [])
    await index.flush(500)
    assert await found(index) >= {f"m{number}" for number in range(500)}
    await index.close()


async def test_a_flush_records_what_the_index_was_made_with_and_leaves_no_other_files(tmp_path: Path) -> None:
    await filled(tmp_path / "index")
    raw = json.loads((tmp_path / "index" / "manifest.json").read_text())
    sizes = raw.pop("sizes")
    assert sizes
    assert all((shard(tmp_path / "index") / name).stat().st_size == size for name, size in sizes.items())
    assert raw == {
        "schema_version": 2,
        "embedding": "test-model",
        "dimensions": 8,
        "ledger_id": "ledger-1",
        "shard": "shard-1",
        "flushed_seq": 20,
        "points": 20,
        "unoptimised": 20,
    }
    assert contents(tmp_path / "index") == {"manifest.json", "shard-1"}
