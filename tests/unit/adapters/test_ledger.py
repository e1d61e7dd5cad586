"""The ledger: every change kept, scopes apart, the present state of each entry at hand."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from agemem_mcp.adapters.ledger import SqliteLedger
from agemem_mcp.adapters.system import SteppingClock
from agemem_mcp.domain.memory import Actor, MemoryEventKind, MemoryRecord, Scope
from agemem_mcp.domain.text import digest
from agemem_mcp.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from agemem_mcp.domain.memory import MemoryEvent
    from agemem_mcp.domain.ports import LedgerTransaction

NOW = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
SCOPE = Scope()
OTHER = Scope(namespace="other")


def record(memory_id: str = "mem_1", **changed: Any) -> MemoryRecord:
    """An entry."""
    given = MemoryRecord(SCOPE, memory_id, 1, f"text of {memory_id}", None, {}, NOW, NOW)
    return replace(given, **changed)


async def append(
    ledger: SqliteLedger,
    entry: MemoryRecord,
    kind: MemoryEventKind = MemoryEventKind.ADD,
    actor: Actor = Actor.POLICY,
    session_id: str | None = None,
) -> MemoryEvent:
    """Write one event."""

    async def work(transaction: LedgerTransaction) -> MemoryEvent:
        return await transaction.append(kind, entry, digest=digest(entry.content), actor=actor, session_id=session_id)

    return await ledger.write(work)


@asynccontextmanager
async def opened(path: Path, *, read_only: bool = False) -> AsyncGenerator[SqliteLedger]:
    """The ledger at ``path``."""
    ledger = await SqliteLedger.open(path, clock=SteppingClock(NOW), read_only=read_only)
    try:
        yield ledger
    finally:
        await ledger.close()


@pytest.fixture(autouse=True)
async def threads_end() -> AsyncGenerator[None]:
    """Wait for the driver's threads: one whose file could not be opened outlives its connection by a moment."""
    yield
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 10)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncGenerator[SqliteLedger]:
    """An empty ledger."""
    async with opened(tmp_path / "ledger.db") as ledger:
        yield ledger


async def test_an_entry_comes_back_as_it_was_written_also_after_a_start(tmp_path: Path) -> None:
    entry = record(
        memory_type="fact",
        metadata={"title": "Ünïcödé ☕", "n": [1, 2.5, None, True], "deep": {"a": {"b": "c"}}},
        expires_at=NOW + timedelta(days=3),
    )
    async with opened(tmp_path / "ledger.db") as ledger:
        await append(ledger, entry)
        assert await ledger.heads(SCOPE, ["mem_1"]) == {"mem_1": entry}
    async with opened(tmp_path / "ledger.db") as ledger:
        assert await ledger.heads(SCOPE, ["mem_1"]) == {"mem_1": entry}


async def test_history_keeps_every_version_with_who_made_it_and_for_which_session(ledger: SqliteLedger) -> None:
    versions = [record(version=number, content=f"text {number}") for number in (1, 2, 3)]
    await append(ledger, versions[0], MemoryEventKind.ADD, Actor.POLICY, "ctx_1")
    await append(ledger, record("mem_2"))
    await append(ledger, versions[1], MemoryEventKind.UPDATE, Actor.USER)
    await append(ledger, versions[2], MemoryEventKind.DELETE, Actor.ENVIRONMENT, "ctx_2")
    events = await ledger.history(SCOPE, "mem_1")
    assert [one.record for one in events] == versions
    assert [(one.kind, one.actor, one.session_id) for one in events] == [
        ("add", "policy", "ctx_1"),
        ("update", "user", None),
        ("delete", "environment", "ctx_2"),
    ]
    assert [one.seq for one in events] == [1, 3, 4]
    assert [one.at for one in events] == sorted(one.at for one in events)


async def test_the_same_id_in_two_scopes_is_two_entries(ledger: SqliteLedger) -> None:
    for scope in (SCOPE, OTHER, Scope(principal="ana")):
        await append(ledger, record(scope=scope, content=f"of {scope.key}"))
    assert (await ledger.heads(OTHER, ["mem_1"]))["mem_1"].content == f"of {OTHER.key}"
    assert [one.scope for one in await ledger.list_heads(OTHER, limit=None, include_deleted=True)] == [OTHER]
    assert len(await ledger.history(SCOPE, "mem_1")) == 1
    assert await ledger.heads(Scope("ana", "other"), ["mem_1"]) == {}


async def test_unknown_ids_are_left_out_also_among_very_many(ledger: SqliteLedger) -> None:
    await append(ledger, record())
    wanted = [*(f"mem_x{number}" for number in range(1200)), "mem_1"]
    assert list(await ledger.heads(SCOPE, wanted)) == ["mem_1"]
    assert await ledger.heads(SCOPE, []) == {}
    assert await ledger.history(SCOPE, "mem_9") == []


async def test_entries_are_listed_last_change_first_up_to_a_limit(ledger: SqliteLedger) -> None:
    for number in (1, 2, 3):
        await append(ledger, record(f"mem_{number}"))
    await append(ledger, record("mem_1", version=2), MemoryEventKind.UPDATE)
    await append(ledger, record("mem_2", version=2, deleted=True), MemoryEventKind.DELETE)

    async def listed(limit: int | None, *, include_deleted: bool) -> list[str]:
        heads = await ledger.list_heads(SCOPE, limit=limit, include_deleted=include_deleted)
        return [head.memory_id for head in heads]

    assert await listed(None, include_deleted=True) == ["mem_2", "mem_1", "mem_3"]
    assert await listed(None, include_deleted=False) == ["mem_1", "mem_3"]
    assert await listed(1, include_deleted=False) == ["mem_1"]
    assert await ledger.count() == 2


async def test_the_digest_finds_the_live_entry_with_that_text(ledger: SqliteLedger) -> None:
    async def found(content: str, scope: Scope = SCOPE) -> str | None:
        head = await ledger.write(lambda transaction: transaction.head_by_digest(scope, digest(content)))
        return None if head is None else head.memory_id

    await append(ledger, record("mem_1", content="tea"))
    await append(ledger, record("mem_2", content="gone", deleted=True))
    await append(ledger, record("mem_3", content="past", expires_at=NOW))
    await append(ledger, record("mem_4", content="soon", expires_at=NOW + timedelta(days=1)))
    assert [await found(one) for one in ("tea", " tea\n", "gone", "past", "soon", "new")] == [
        "mem_1",
        "mem_1",
        None,
        None,
        "mem_4",
        None,
    ]
    assert await found("tea", OTHER) is None
    await append(ledger, record("mem_1", content="coffee", version=2), MemoryEventKind.UPDATE)
    assert await found("tea") is None


async def test_a_scope_remembers_how_many_entries_it_ever_held(ledger: SqliteLedger) -> None:
    async def created(scope: Scope) -> int:
        return await ledger.write(lambda transaction: transaction.created_in_scope(scope))

    assert await created(SCOPE) == 0
    for number in (1, 2):
        await append(ledger, record(f"mem_{number}"))
    await append(ledger, record("mem_1", version=2, deleted=True), MemoryEventKind.DELETE)
    await append(ledger, record(scope=OTHER))
    assert (await created(SCOPE), await created(OTHER)) == (2, 1)


async def test_changes_are_read_in_batches_up_to_the_end(ledger: SqliteLedger) -> None:
    assert await ledger.last_seq() == 0
    for number in range(1, 6):
        await append(ledger, record(f"mem_{number}"))
    await append(ledger, record("mem_1", version=2), MemoryEventKind.UPDATE)
    seen: list[tuple[list[str], int]] = []
    reached = 1
    while True:
        heads, reached = await ledger.changed_since(reached, limit=2)
        if not heads:
            break
        seen.append(([head.memory_id for head in heads], reached))
    assert seen == [(["mem_2", "mem_3"], 3), (["mem_4", "mem_5"], 5), (["mem_1"], 6)]
    assert await ledger.last_seq() == reached == 6


async def test_work_sees_what_it_appended_before(ledger: SqliteLedger) -> None:
    async def work(transaction: LedgerTransaction) -> tuple[MemoryRecord | None, MemoryRecord | None]:
        before = await transaction.head(SCOPE, "mem_1")
        await transaction.append(MemoryEventKind.ADD, record(), digest=digest("x"), actor=Actor.POLICY, session_id=None)
        return before, await transaction.head(SCOPE, "mem_1")

    assert await ledger.write(work) == (None, record())


async def test_concurrent_writes_share_commits_and_get_positions_of_their_own(ledger: SqliteLedger) -> None:
    assert ledger._writer is not None
    commits: list[object] = []
    event.listen(ledger._writer.sync_engine, "commit", commits.append)
    events = await asyncio.gather(*(append(ledger, record(f"mem_{number}")) for number in range(40)))
    assert sorted(one.seq for one in events) == list(range(1, 41))
    assert len(commits) == 1


async def test_the_ledger_keeps_its_id_and_no_other_has_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db") as ledger:
        first = await ledger.ledger_id()
        assert await ledger.ledger_id() == first
    async with opened(tmp_path / "ledger.db") as again, opened(tmp_path / "other.db") as other:
        assert await again.ledger_id() == first
        assert await other.ledger_id() != first


async def test_writing_is_on_stable_storage_before_it_returns(ledger: SqliteLedger) -> None:
    assert ledger._writer is not None
    async with ledger._writer.connect() as connection:
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar() == 2
        assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar() == "wal"


async def test_a_read_only_ledger_reads_beside_the_writer_and_refuses_to_write(
    ledger: SqliteLedger, tmp_path: Path
) -> None:
    await append(ledger, record())
    async with opened(tmp_path / "ledger.db", read_only=True) as reader:
        assert list(await reader.heads(SCOPE, ["mem_1"])) == ["mem_1"]
        with pytest.raises(RuntimeError, match="read-only"):
            await append(reader, record("mem_2"))
        assert await reader.integrity_problems() == []


async def test_a_closed_ledger_is_one_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db") as ledger:
        await append(ledger, record())
        await ledger.last_seq()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.db"]  # noqa: ASYNC240  nothing else runs


async def test_a_missing_ledger_cannot_be_read_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        async with opened(tmp_path / "ledger.db", read_only=True):
            pytest.fail("it was opened")
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240  nothing else runs


async def test_rows_that_break_the_schema_are_found_by_the_check(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with opened(path) as ledger:
        await append(ledger, record())
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute(
        "UPDATE sqlite_master SET sql = replace(sql, 'session_id VARCHAR', 'session_id VARCHAR NOT NULL')"
    )
    connection.commit()
    connection.close()
    async with opened(path, read_only=True) as reader:
        assert await reader.integrity_problems() == ["NULL value in operations.session_id"]
