"""SQLite as the ledger and the session store use it: durability, group commit, schema versions, damage."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table, event

from agemem_mcp.adapters.sql import create_engine, from_micros, prepare_schema, to_micros, translated
from agemem_mcp.adapters.sql_threads import Database, Schema, Writer
from agemem_mcp.errors import ConfigurationError, InvalidOperation, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from pathlib import Path

    from sqlalchemy import Connection, Engine

NOTES = MetaData()
Table("notes", NOTES, Column("id", Integer, primary_key=True), Column("text", String, nullable=False))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "notes.db"


@contextmanager
def opened(path: Path, version: int = 1, **migrations: tuple[str, ...]) -> Generator[Engine]:
    """The notes, with migrations given as ``from_1=(statement, …)``."""
    engine = create_engine(path, synchronous="FULL", connections=1)
    try:
        steps = {int(name.removeprefix("from_")): statements for name, statements in migrations.items()}
        prepare_schema(engine, path, metadata=NOTES, version=version, migrations=steps)
        yield engine
    finally:
        engine.dispose()


@asynccontextmanager
async def writing(path: Path) -> AsyncGenerator[tuple[Engine, Writer]]:
    """The notes with the thread that writes them."""
    with opened(path) as engine:
        writer = Writer(engine, path)
        try:
            yield engine, writer
        finally:
            await writer.close()


def store(path: Path, text: str, version: int = 1) -> None:
    """Make the notes, with one in them."""
    with opened(path, version) as engine, engine.begin() as connection:
        note(text)(connection)


def rows(path: Path, query: str = "SELECT text FROM notes ORDER BY id") -> list[str]:
    """What another program reads from the file."""
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute(query)]
    finally:
        connection.close()


def note(text: str | None) -> Callable[[Connection], str | None]:
    """Work that stores a note."""

    def work(connection: Connection) -> str | None:
        connection.exec_driver_sql("INSERT INTO notes (text) VALUES (?)", (text,))
        return text

    return work


class Held:
    """Work that stores a note, but not before it is let go on."""

    def __init__(self, text: str) -> None:
        """Hold this note back."""
        self._begun, self._go_on = threading.Event(), threading.Event()
        self._text = text

    def __call__(self, connection: Connection) -> str | None:
        """The work."""
        self._begun.set()
        self._go_on.wait(10)
        return note(self._text)(connection)

    async def begun(self) -> None:
        """Wait until the writing thread is at it."""
        assert await asyncio.to_thread(self._begun.wait, 10)

    def go_on(self) -> None:
        """Let it go on."""
        self._go_on.set()


def commits_of(engine: Engine) -> list[object]:
    """A list that grows with each commit to come."""
    commits: list[object] = []
    event.listen(engine, "commit", commits.append)
    return commits


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_survive_the_way_through_the_database(moment: datetime) -> None:
    assert from_micros(to_micros(moment)) == moment


@pytest.mark.parametrize(("wanted", "number"), [("FULL", 2), ("NORMAL", 1)])
def test_a_writing_engine_commits_as_durably_as_asked(path: Path, wanted: str, number: int) -> None:
    engine = create_engine(path, synchronous=wanted, connections=1)  # type: ignore[arg-type]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == number
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()


async def test_a_read_only_engine_reads_beside_a_writer_and_cannot_write(path: Path) -> None:
    async with writing(path) as (_, writer):
        reader = create_engine(path, synchronous="FULL", connections=1, read_only=True)
        await writer.run(note("one"))
        with reader.connect() as connection:
            assert connection.exec_driver_sql("SELECT text FROM notes").scalar() == "one"
        with (
            pytest.raises(StoreError, match="cannot be opened or written"),
            translated(path),
            reader.begin() as connection,
        ):
            note("two")(connection)
        reader.dispose()


async def test_writes_that_come_together_share_a_commit(path: Path) -> None:
    async with writing(path) as (engine, writer):
        held = Held("first")
        first = asyncio.create_task(writer.run(held))
        await held.begun()
        commits = commits_of(engine)
        texts = [f"note {number}" for number in range(50)]
        others = [asyncio.create_task(writer.run(note(text))) for text in texts]
        await asyncio.sleep(0)
        held.go_on()
        assert await asyncio.gather(first, *others) == ["first", *texts]
        assert len(commits) == 2
        await writer.run(note("late"))
        assert len(commits) == 3
    assert rows(path) == ["first", *texts, "late"]


async def test_a_result_is_there_only_after_its_commit(path: Path) -> None:
    async with writing(path) as (_, writer):
        await writer.run(note("one"))
        assert rows(path) == ["one"]


class Crash(Exception):  # noqa: N818  stands for any fault of the code
    """A fault nobody foresaw."""


def failing(error: Exception) -> Callable[[Connection], str]:
    """Work that stores a note and then fails."""

    def fails(connection: Connection) -> str:
        note("undone")(connection)
        raise error

    return fails


async def together(writer: Writer, *pieces: Callable[[Connection], Any]) -> list[Any]:
    """Outcomes of pieces of work that share one transaction."""
    held = Held("before")
    first = asyncio.create_task(writer.run(held))
    await held.begun()
    tasks = [asyncio.create_task(writer.run(piece)) for piece in pieces]
    await asyncio.sleep(0)
    held.go_on()
    _, *outcomes = await asyncio.gather(first, *tasks, return_exceptions=True)
    return outcomes


@pytest.mark.parametrize("error", [InvalidOperation("no"), Crash("no")], ids=["expected", "unexpected"])
async def test_an_error_of_one_write_undoes_that_one_alone(path: Path, error: Exception) -> None:
    async with writing(path) as (_, writer):
        outcomes = await together(writer, note("one"), failing(error), note("two"))
        assert outcomes == ["one", error, "two"]
        with pytest.raises(type(error)):
            await writer.run(failing(error))
        await writer.run(note("three"))
    assert rows(path) == ["before", "one", "two", "three"]


async def test_work_whose_iterator_ends_too_early_is_told_so_and_keeps_nobody_waiting(path: Path) -> None:
    async with writing(path) as (_, writer):
        one, failed, two = await together(writer, note("one"), lambda _: next(iter(())), note("two"))
        assert (one, two) == ("one", "two")
        assert isinstance(failed, RuntimeError)


async def test_a_statement_the_database_refuses_undoes_that_write_alone(path: Path) -> None:
    async with writing(path) as (_, writer):
        one, refused, two = await together(writer, note("one"), note(None), note("two"))
        assert (one, two) == ("one", "two")
        assert isinstance(refused, StoreError)
    assert rows(path) == ["before", "one", "two"]


async def test_a_write_whose_caller_goes_away_is_done_wholly_and_counted(path: Path) -> None:
    counted: list[str | None] = []
    async with writing(path) as (_, writer):
        held = Held("kept")
        caller = asyncio.create_task(writer.run(held, counted.append))
        await held.begun()
        waiting = asyncio.create_task(writer.run(note("kept too"), counted.append))
        await asyncio.sleep(0)
        for task in (caller, waiting):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        held.go_on()
    assert rows(path) == ["kept", "kept too"]
    assert counted == ["kept", "kept too"]


async def test_closing_finishes_what_waits_and_refuses_what_comes_later(path: Path) -> None:
    with opened(path) as engine:
        writer, held = Writer(engine, path), Held("one")
        first = asyncio.create_task(writer.run(held))
        await held.begun()
        second = asyncio.create_task(writer.run(note("two")))
        await asyncio.sleep(0)
        closing = asyncio.create_task(writer.close())
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match=r"has been closed. Nothing was changed"):
            await writer.run(note("three"))
        held.go_on()
        assert await asyncio.gather(first, second, closing) == ["one", "two", None]
        assert not any(thread.name == f"write {path.name}" for thread in threading.enumerate())
    assert rows(path) == ["one", "two"]


def test_a_write_outlives_the_event_loop_it_came_from(path: Path) -> None:
    async def leave_without_closing() -> tuple[Held, Writer]:
        writer, held = Writer(engine, path), Held("kept")
        task = asyncio.create_task(writer.run(held))
        await held.begun()
        task.cancel()
        return held, writer

    with opened(path) as engine:
        held, writer = asyncio.run(leave_without_closing())
        held.go_on()
        asyncio.run(writer.close())
    assert rows(path) == ["kept"]


async def test_a_full_disk_is_reported_to_all_who_share_the_commit_and_what_was_stored_stays(path: Path) -> None:
    def limit(connection: Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    async with writing(path) as (_, writer):
        await writer.run(note("one"))
        await writer.run(limit)
        with pytest.raises(StoreError, match=r"is full or failing. Nothing was changed"):
            await writer.run(note("x" * 1_000_000))
        outcomes = await together(writer, note("small"), note("x" * 1_000_000))
        assert all(isinstance(outcome, StoreError) for outcome in outcomes)
        assert rows(path) == ["one", "before"]
        await writer.run(lambda connection: connection.exec_driver_sql("PRAGMA max_page_count=100000").all())
        await writer.run(note("two"))
    assert rows(path) == ["one", "before", "two"]


async def test_a_read_sees_one_state_of_the_database_while_others_write(path: Path) -> None:
    database = await Database.open(path, Schema(NOTES, 1, {}), synchronous="NORMAL", read_only=False)
    begun, go_on = threading.Event(), threading.Event()

    def count_twice(connection: Connection) -> tuple[int, int]:
        first = connection.exec_driver_sql("SELECT count(*) FROM notes").scalar_one()
        begun.set()
        go_on.wait(10)
        return first, connection.exec_driver_sql("SELECT count(*) FROM notes").scalar_one()

    reading = asyncio.create_task(database.read(count_twice))
    assert await asyncio.to_thread(begun.wait, 10)
    await database.write(note("one"))
    go_on.set()
    assert await reading == (0, 0)
    assert (
        await database.read(lambda connection: connection.exec_driver_sql("SELECT text FROM notes").scalar()) == "one"
    )
    await database.close()


def test_a_new_file_gets_the_present_schema_without_a_backup(path: Path) -> None:
    with opened(path, version=3):
        pass
    assert rows(path, "PRAGMA user_version") == [3]
    assert not list(path.parent.glob("*backup*"))


def test_an_older_schema_is_migrated_step_by_step_after_a_backup(path: Path) -> None:
    store(path, "one")
    steps = {
        "from_1": ("ALTER TABLE notes ADD COLUMN mark TEXT", "UPDATE notes SET mark = 'a'"),
        "from_2": ("UPDATE notes SET text = text || mark",),
    }
    with opened(path, version=3, **steps):
        pass
    assert rows(path) == ["onea"]
    assert rows(path, "PRAGMA user_version") == [3]
    backup = path.with_name("notes.db.backup-schema-1")
    assert rows(backup) == ["one"]
    assert rows(backup, "PRAGMA user_version") == [1]
    with opened(path, version=3, **steps):
        pass
    assert rows(path) == ["onea"]


def test_a_migration_that_fails_leaves_the_older_schema_and_its_backups(path: Path) -> None:
    store(path, "one")
    for _ in range(2):
        with pytest.raises(StoreError), opened(path, version=2, from_1=("DELETE FROM notes", "no such statement")):
            pass
        assert rows(path) == ["one"]
        assert rows(path, "PRAGMA user_version") == [1]
    assert len(list(path.parent.glob("*backup*"))) == 2


def test_a_newer_schema_is_refused_and_left(path: Path) -> None:
    store(path, "one", version=7)
    said = r"newer release \(schema 7; this one knows 1\).*Upgrade"
    with pytest.raises(ConfigurationError, match=said), opened(path):
        pass
    assert rows(path) == ["one"]
    assert rows(path, "PRAGMA user_version") == [7]


def test_another_programs_database_is_refused_and_left(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE accounts (id INTEGER)")
    connection.close()
    with pytest.raises(ConfigurationError, match="was not made by agemem-mcp"), opened(path):
        pass
    assert rows(path, "SELECT name FROM sqlite_master") == ["accounts"]


@pytest.mark.parametrize("content", [b"This is no database at all. " * 100, b"SQLite format 3\x00" + b"\xff" * 8000])
def test_a_damaged_file_is_reported_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged. It was left as it is: .*restore a backup"), opened(path):
        pass
    assert path.read_bytes() == content


def test_a_file_in_a_missing_folder_is_reported(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "notes.db"
    with pytest.raises(StoreError, match="Check its folder and permissions"), opened(missing):
        pass


async def test_a_locked_database_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agemem_mcp.adapters.sql._BUSY_TIMEOUT_MS", 1)
    async with writing(path) as (_, writer):
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another program"):
            await writer.run(note("one"))
        other.close()
        await writer.run(note("two"))
    assert rows(path) == ["two"]
