"""SQLite as the ledger and the session store use it: durability, group commit, schema versions, damage."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table, event

from agemem_mcp.adapters.sql import GroupCommitter, create_engine, from_micros, prepare_schema, to_micros, translated
from agemem_mcp.errors import ConfigurationError, InvalidOperation, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

NOTES = MetaData()
Table("notes", NOTES, Column("id", Integer, primary_key=True), Column("text", String, nullable=False))


@pytest.fixture(autouse=True)
async def threads_end() -> AsyncGenerator[None]:
    """Wait for the driver's threads: one whose file could not be opened outlives its connection by a moment."""
    yield
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "notes.db"


@asynccontextmanager
async def opened(path: Path, version: int = 1, **migrations: tuple[str, ...]) -> AsyncGenerator[AsyncEngine]:
    """The notes, with migrations given as ``from_1=(statement, …)``."""
    engine = create_engine(path, synchronous="FULL", connections=1)
    try:
        steps = {int(name.removeprefix("from_")): statements for name, statements in migrations.items()}
        await prepare_schema(engine, path, metadata=NOTES, version=version, migrations=steps)
        yield engine
    finally:
        await engine.dispose()


def rows(path: Path, query: str = "SELECT text FROM notes ORDER BY id") -> list[str]:
    """What another program reads from the file."""
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute(query)]
    finally:
        connection.close()


def note(text: str | None) -> Callable[[AsyncConnection], Awaitable[str | None]]:
    """Work that stores a note."""

    async def work(connection: AsyncConnection) -> str | None:
        await connection.exec_driver_sql("INSERT INTO notes (text) VALUES (?)", (text,))
        return text

    return work


def commits_of(engine: AsyncEngine) -> list[object]:
    """A list that grows with each commit to come."""
    commits: list[object] = []
    event.listen(engine.sync_engine, "commit", commits.append)
    return commits


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_the_way_through_the_database(moment: datetime) -> None:
    assert from_micros(to_micros(moment)) == moment


@pytest.mark.parametrize(("wanted", "number"), [("FULL", 2), ("NORMAL", 1)])
async def test_a_writing_engine_commits_as_durably_as_asked(path: Path, wanted: str, number: int) -> None:
    engine = create_engine(path, synchronous=wanted, connections=1)  # type: ignore[arg-type]
    async with engine.connect() as connection:
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar() == number
        assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar() == "wal"
        assert (await connection.exec_driver_sql("PRAGMA foreign_keys")).scalar() == 1
    await engine.dispose()


async def test_a_read_only_engine_reads_beside_a_writer_and_cannot_write(path: Path) -> None:
    async with opened(path) as writer:
        reader = create_engine(path, synchronous="FULL", connections=1, read_only=True)
        await GroupCommitter(writer, path).run(note("one"))
        async with reader.connect() as connection:
            assert (await connection.exec_driver_sql("SELECT text FROM notes")).scalar() == "one"
        with pytest.raises(StoreError, match="cannot be opened or written"), translated(path):
            async with reader.begin() as connection:
                await note("two")(connection)
        await reader.dispose()


async def test_writes_that_come_together_share_a_commit(path: Path) -> None:
    async with opened(path) as engine:
        committer = GroupCommitter(engine, path)
        commits = commits_of(engine)
        texts = [f"note {number}" for number in range(50)]
        assert await asyncio.gather(*(committer.run(note(text)) for text in texts)) == texts
        assert len(commits) == 1
        await committer.run(note("late"))
        assert len(commits) == 2
    assert rows(path) == [*texts, "late"]


async def test_writes_that_come_during_a_commit_share_the_next_one(path: Path) -> None:
    async with opened(path) as engine:
        committer = GroupCommitter(engine, path)
        commits = commits_of(engine)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(connection: AsyncConnection) -> None:
            begun.set()
            await go_on.wait()

        first = asyncio.create_task(committer.run(slow))
        await begun.wait()
        others = [asyncio.create_task(committer.run(note(str(number)))) for number in range(10)]
        await asyncio.gather(*(asyncio.to_thread(str) for _ in range(2)))
        go_on.set()
        await asyncio.gather(first, *others)
        assert len(commits) == 2


async def test_a_result_is_there_only_after_its_commit(path: Path) -> None:
    async with opened(path) as engine:
        await GroupCommitter(engine, path).run(note("one"))
        assert rows(path) == ["one"]


class Crash(Exception):  # noqa: N818  stands for any fault of the code
    """A fault nobody foresaw."""


@pytest.mark.parametrize("error", [InvalidOperation("no"), Crash("no")], ids=["expected", "unexpected"])
async def test_an_error_of_one_write_undoes_that_one_alone(path: Path, error: Exception) -> None:
    async def fails(connection: AsyncConnection) -> None:
        await note("undone")(connection)
        raise error

    async with opened(path) as engine:
        committer = GroupCommitter(engine, path)
        outcomes = await asyncio.gather(
            committer.run(note("one")), committer.run(fails), committer.run(note("two")), return_exceptions=True
        )
        assert outcomes == ["one", error, "two"]
        await committer.run(note("three"))
    assert rows(path) == ["one", "two", "three"]


async def test_a_statement_the_database_refuses_undoes_that_write_alone(path: Path) -> None:
    async with opened(path) as engine:
        committer = GroupCommitter(engine, path)
        one, refused, two = await asyncio.gather(
            committer.run(note("one")), committer.run(note(None)), committer.run(note("two")), return_exceptions=True
        )
        assert (one, two) == ("one", "two")
        assert isinstance(refused, StoreError)
    assert rows(path) == ["one", "two"]


async def test_a_write_whose_caller_goes_away_is_done_wholly(path: Path) -> None:
    async with opened(path) as engine:
        committer = GroupCommitter(engine, path)
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(connection: AsyncConnection) -> None:
            begun.set()
            await go_on.wait()
            await note("kept")(connection)

        caller = asyncio.create_task(committer.run(slow))
        await begun.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        go_on.set()
        await committer.close()
    assert rows(path) == ["kept"]


async def test_a_full_disk_is_reported_and_what_was_stored_stays(path: Path) -> None:
    async with opened(path) as engine:
        committer = GroupCommitter(engine, path)
        await committer.run(note("one"))
        async with engine.connect() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar()
            await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StoreError, match=r"is full or failing. Nothing was changed"):
            await committer.run(note("x" * 1_000_000))
        assert rows(path) == ["one"]
        async with engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count=100000")
        await committer.run(note("two"))
    assert rows(path) == ["one", "two"]


async def test_a_new_file_gets_the_present_schema_without_a_backup(path: Path) -> None:
    async with opened(path, version=3):
        pass
    assert rows(path, "PRAGMA user_version") == [3]
    assert not list(path.parent.glob("*backup*"))


async def test_an_older_schema_is_migrated_step_by_step_after_a_backup(path: Path) -> None:
    async with opened(path) as engine:
        await GroupCommitter(engine, path).run(note("one"))
    steps = {
        "from_1": ("ALTER TABLE notes ADD COLUMN mark TEXT", "UPDATE notes SET mark = 'a'"),
        "from_2": ("UPDATE notes SET text = text || mark",),
    }
    async with opened(path, version=3, **steps):
        pass
    assert rows(path) == ["onea"]
    assert rows(path, "PRAGMA user_version") == [3]
    backup = path.with_name("notes.db.backup-schema-1")
    assert rows(backup) == ["one"]
    assert rows(backup, "PRAGMA user_version") == [1]
    async with opened(path, version=3, **steps):
        pass
    assert rows(path) == ["onea"]


async def test_a_migration_that_fails_leaves_the_older_schema_and_its_backups(path: Path) -> None:
    async with opened(path) as engine:
        await GroupCommitter(engine, path).run(note("one"))
    for _ in range(2):
        with pytest.raises(StoreError):
            async with opened(path, version=2, from_1=("DELETE FROM notes", "no such statement")):
                pass
        assert rows(path) == ["one"]
        assert rows(path, "PRAGMA user_version") == [1]
    assert len(list(path.parent.glob("*backup*"))) == 2


async def test_a_newer_schema_is_refused_and_left(path: Path) -> None:
    async with opened(path, version=7) as engine:
        await GroupCommitter(engine, path).run(note("one"))
    with pytest.raises(ConfigurationError, match=r"newer release \(schema 7; this one knows 1\).*Upgrade"):
        async with opened(path):
            pass
    assert rows(path) == ["one"]
    assert rows(path, "PRAGMA user_version") == [7]


async def test_another_programs_database_is_refused_and_left(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE accounts (id INTEGER)")
    connection.close()
    with pytest.raises(ConfigurationError, match="was not made by agemem-mcp"):
        async with opened(path):
            pass
    assert rows(path, "SELECT name FROM sqlite_master") == ["accounts"]


@pytest.mark.parametrize("content", [b"This is no database at all. " * 100, b"SQLite format 3\x00" + b"\xff" * 8000])
async def test_a_damaged_file_is_reported_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)  # noqa: ASYNC240  nothing else runs
    with pytest.raises(StoreError, match=r"is damaged. It was left as it is: .*restore a backup"):
        async with opened(path):
            pass
    assert path.read_bytes() == content  # noqa: ASYNC240  as above


async def test_a_file_in_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Check its folder and permissions"):
        async with opened(tmp_path / "missing" / "notes.db"):
            pass


async def test_a_locked_database_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agemem_mcp.adapters.sql._BUSY_TIMEOUT_MS", 1)
    async with opened(path) as engine:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another program"):
            await GroupCommitter(engine, path).run(note("one"))
        other.close()
        await GroupCommitter(engine, path).run(note("two"))
    assert rows(path) == ["two"]
