"""Optimising the embedded index beside its work: what it finds stays the same, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from agemem_mcp.adapters import qdrant_optimisation, qdrant_store
from agemem_mcp.domain.facets import conditions_from
from agemem_mcp.domain.memory import IndexEntry, MemoryQuery, Scope

from .test_qdrant_edge import NOW, contents, damaged_copies, entries, found, opened, shard

if TYPE_CHECKING:
    from agemem_mcp.adapters.qdrant_edge import QdrantEdgeIndex
    from agemem_mcp.domain.memory import Condition, MatrixND

# Takes the real program's place: says that it runs, waits until it is told to go on, and is the real one from there.
PATIENT = """
import importlib.util, os, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("real", {real!r})
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
real._step_back(int(sys.argv[2]))
Path({folder!r}, "running.new").write_text(str(os.getpid()))
Path({folder!r}, "running.new").rename(Path({folder!r}, "running"))
while not Path({folder!r}, "go").exists():
    time.sleep(0.01)
real.optimise(Path(sys.argv[1]))
"""

# A server that optimises, to be killed.
SERVER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from agemem_mcp.adapters import qdrant_optimisation
from unit.adapters.test_qdrant_edge import entries, opened

async def main():
    qdrant_optimisation.MIN_UNOPTIMISED = 10
    qdrant_optimisation._PROGRAM = Path(sys.argv[3])
    index = await opened(Path(sys.argv[1]))
    await index.apply(entries(50), [])
    await index.optimise_if_needed()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred entries are many."""
    monkeypatch.setattr(qdrant_optimisation, "MIN_UNOPTIMISED", 100)


class Program:
    """The optimising program, which waits until it is told to go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "patient.py"
        real = str(qdrant_optimisation._PROGRAM)
        self.path.write_text(PATIENT.format(real=real, folder=str(folder)))

    async def running(self) -> int:
        """Wait until it runs; its process id."""
        while not (self.folder / "running").exists():  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.01)
        return int((self.folder / "running").read_text())

    def go_on(self) -> None:
        """Let it do its work."""
        (self.folder / "go").touch()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """In the place of the program."""
    made = Program(tmp_path)
    monkeypatch.setattr(qdrant_optimisation, "_PROGRAM", made.path)
    return made


def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Put another program in the place of the program."""
    (tmp_path / "program.py").write_text(text)
    monkeypatch.setattr(qdrant_optimisation, "_PROGRAM", tmp_path / "program.py")


def names(numbers: range) -> set[str]:
    """Ids of the entries that ``entries`` makes."""
    return {f"m{number}" for number in numbers}


def is_running(process_id: int) -> bool:
    """Whether a process is there, and not only its remains."""
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def many(directory: Path, count: int = 150) -> QdrantEdgeIndex:
    """An index with enough entries, flushed."""
    index = await opened(directory)
    await index.apply(entries(count), [])
    await index.flush(count)
    return index


async def test_an_optimised_copy_takes_the_place_of_the_shard(tmp_path: Path) -> None:
    index = await many(tmp_path / "index")
    await index.optimise_if_needed()
    assert await found(index) == names(range(150))
    assert await index.flushed_seq() == 150
    await index.apply(entries(160)[150:], [])
    await index.close()
    assert contents(tmp_path / "index") == {"manifest.json", "changed", "shard-2"}
    index = await opened(tmp_path / "index")
    assert await found(index) == names(range(160))
    await index.optimise_if_needed()
    await index.close()
    assert shard(tmp_path / "index").name == "shard-2"


async def best(index: QdrantEdgeIndex, vectors_ND: MatrixND, conditions: tuple[Condition, ...]) -> list[set[str]]:
    """The ids of the ten nearest entries of each vector."""
    found: list[set[str]] = []
    for vector_D in vectors_ND:
        lists = await index.search(MemoryQuery(Scope(), "", vector_D, 10, NOW, conditions))
        found.append({one.memory_id for one in lists.dense})
    return found


async def test_a_graph_is_built_for_a_large_scope_and_finds_the_same(tmp_path: Path) -> None:
    # Long vectors, so that few entries are much; all but 8 components are 0, so that they have neighbours.
    rng = np.random.default_rng(1)
    vectors_ND = np.zeros((2820, 4096), dtype=np.float32)
    vectors_ND[:, :8] = rng.standard_normal((2820, 8))
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    index = await opened(tmp_path / "index", dimensions=4096)
    for number, one in enumerate(entries(2800)):
        record = replace(one.record, metadata={"quarter": number % 4})
        await index.apply([IndexEntry(record, one.text, vectors_ND[number])], [])
    questions_ND, quarter = vectors_ND[2800:], tuple(conditions_from({"quarter": 1}))
    expected = [await best(index, questions_ND, conditions) for conditions in ((), quarter)]
    await index.optimise_if_needed()
    segments = [json.loads(path.read_text()) for path in shard(tmp_path / "index").glob("segments/*/segment.json")]
    kinds = {segment["config"]["vector_data"]["dense"]["index"]["type"] for segment in segments}
    assert "hnsw" in kinds
    for exact, conditions in zip(expected, ((), quarter), strict=True):
        assert all(len(ids) == 10 for ids in exact)
        found = await best(index, questions_ND, conditions)
        assert np.mean([len(one & other) / 10 for one, other in zip(exact, found, strict=True)]) > 0.97
    await index.close()


async def test_what_changes_while_it_is_under_way_is_not_lost(tmp_path: Path, program: Program) -> None:
    index = await many(tmp_path / "index", 600)
    optimising = asyncio.create_task(index.optimise_if_needed())
    await program.running()
    assert await found(index) == names(range(600))
    await index.apply(entries(1000)[600:], [item.record for item in entries(100)])
    await index.apply(entries(20)[10:], [])
    await index.flush(1000)
    assert await found(index) == names(range(100, 1000)) | names(range(10, 20))
    program.go_on()
    await optimising
    assert shard(tmp_path / "index").name == "shard-2"
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["unoptimised"] == 410
    for _ in range(2):
        assert await found(index) == names(range(100, 1000)) | names(range(10, 20))
        assert await index.flushed_seq() == 1000
        await index.close()
        index = await opened(tmp_path / "index")
    await index.close()
    assert damaged_copies(tmp_path / "index") == []


@pytest.mark.parametrize("changed", [3, 300], ids=["few changes", "many changes"])
async def test_entries_that_change_while_it_is_under_way_are_found_as_they_are_then(
    tmp_path: Path, program: Program, changed: int
) -> None:
    index = await many(tmp_path / "index", 400)
    optimising = asyncio.create_task(index.optimise_if_needed())
    await program.running()
    later = [replace(one, record=replace(one.record, version=2)) for one in entries(changed)]
    await index.apply(later, [])
    program.go_on()
    await optimising
    assert shard(tmp_path / "index").name == "shard-2"
    versions = {one.memory_id: one.version async for page in index.entries() for one in page}
    assert versions == {**dict.fromkeys(names(range(400)), 1), **dict.fromkeys(names(range(changed)), 2)}
    await index.close()


async def test_a_second_request_while_it_is_under_way_does_nothing(tmp_path: Path, program: Program) -> None:
    index = await many(tmp_path / "index")
    optimising = asyncio.create_task(index.optimise_if_needed())
    await program.running()
    await index.optimise_if_needed()
    assert not optimising.done()
    program.go_on()
    await optimising
    await index.close()


@pytest.mark.parametrize(
    "ending",
    [
        "raise SystemExit('no way')",
        "import os; os.kill(os.getpid(), 9)",
        "import shutil, sys; shutil.rmtree(sys.argv[1])",
    ],
)
async def test_a_program_that_fails_changes_nothing_and_is_tried_again_after_some_growth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    index = await many(tmp_path / "index")
    with monkeypatch.context() as patch:
        script(tmp_path, patch, ending)
        await index.optimise_if_needed()
    assert contents(tmp_path / "index") == {"manifest.json", "shard-1"}
    assert await found(index) == names(range(150))
    await index.optimise_if_needed()
    assert shard(tmp_path / "index").name == "shard-1"
    await index.apply(entries(300), [])
    await index.optimise_if_needed()
    assert await found(index) == names(range(300))
    assert contents(tmp_path / "index") == {"manifest.json", shard(tmp_path / "index").name}
    assert shard(tmp_path / "index").name != "shard-1"
    await index.close()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("end", ["close", "cancel", "clear"])
async def test_ending_it_ends_the_program_and_leaves_nothing_behind(tmp_path: Path, program: Program, end: str) -> None:
    index = await many(tmp_path / "index")
    optimising = asyncio.create_task(index.optimise_if_needed())
    process_id = await program.running()
    if end == "cancel":
        optimising.cancel()
        with pytest.raises(asyncio.CancelledError):
            await optimising
    else:
        await (index.close() if end == "close" else index.clear())
        await optimising
    assert not is_running(process_id)
    assert contents(tmp_path / "index") == {"manifest.json", "shard-1"}
    await index.close()
    index = await opened(tmp_path / "index")
    assert await index.count() == (0 if end == "clear" else 150)
    await index.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent has ended")
async def test_the_program_ends_with_a_server_that_is_killed(tmp_path: Path, program: Program) -> None:
    command = [sys.executable, "-c", SERVER, str(tmp_path / "index"), str(Path(__file__).parents[2]), str(program.path)]
    with subprocess.Popen(command) as server:  # noqa: ASYNC220  nothing else is waiting
        process_id = await program.running()
        server.kill()
    while is_running(process_id):  # noqa: ASYNC110  another process
        await asyncio.sleep(0.01)
    assert "shard-2" in contents(tmp_path / "index")
    index = await opened(tmp_path / "index")
    assert await found(index) == names(range(50))
    assert contents(tmp_path / "index") >= {"shard-1"}
    assert "shard-2" not in contents(tmp_path / "index")
    await index.close()


async def test_it_is_given_up_when_too_much_changes_meanwhile(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qdrant_store, "MAX_CHANGED_POINTS", 40)
    index = await many(tmp_path / "index")
    optimising = asyncio.create_task(index.optimise_if_needed())
    await program.running()
    await index.apply(entries(41), [])
    program.go_on()
    await optimising
    assert contents(tmp_path / "index") == {"manifest.json", "changed", "shard-1"}
    assert await found(index) == names(range(150))
    await index.close()


async def test_it_is_not_begun_on_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_optimisation, "MIN_FREE_BYTES", 1 << 60)
    index = await many(tmp_path / "index")
    await index.optimise_if_needed()
    assert contents(tmp_path / "index") == {"manifest.json", "shard-1"}
    await index.close()


async def test_many_small_scopes_and_an_index_of_words_need_none(tmp_path: Path) -> None:
    scopes = [Scope("local", f"s{number}") for number in range(3)]
    small = [
        replace(one, record=replace(one.record, scope=scopes[number % 3])) for number, one in enumerate(entries(150))
    ]
    index = await opened(tmp_path / "small")
    await index.apply(small, [])
    await index.optimise_if_needed()
    assert shard(tmp_path / "small").name == "shard-1"
    await index.close()
    index = await opened(tmp_path / "words", embedding="none", dimensions=None)
    await index.apply([replace(one, vector_D=None) for one in entries(150)], [])
    await index.optimise_if_needed()
    assert shard(tmp_path / "words").name == "shard-1"
    await index.close()
