"""The ledger: every change kept, scopes apart, the present state of each entry at hand."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from agemem_mcp.adapters.ledger import _CHANGED_SINCE, _EXPIRED, _HEAD_BY_DIGEST, _LAST_ADDED, SqliteLedger
from agemem_mcp.adapters.system import SteppingClock
from agemem_mcp.domain.memory import Actor, MemoryEventKind, MemoryRecord, Scope
from agemem_mcp.domain.text import digest
from agemem_mcp.errors import ConfigurationError, InvalidOperation, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

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
    *,
    writer: str | None = None,
) -> MemoryEvent:
    """Write one event."""
    return await ledger.write(
        lambda transaction: transaction.append(
            kind, entry, digest=digest(entry.content), actor=actor, session_id=session_id, writer=writer
        )
    )


@asynccontextmanager
async def opened(path: Path, *, read_only: bool = False) -> AsyncGenerator[SqliteLedger]:
    """The ledger at ``path``."""
    ledger = await SqliteLedger.open(path, clock=SteppingClock(NOW), read_only=read_only)
    try:
        yield ledger
    finally:
        await ledger.close()


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncGenerator[SqliteLedger]:
    """An empty ledger."""
    async with opened(tmp_path / "ledger.db") as ledger:
        yield ledger


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (_HEAD_BY_DIGEST, "memories_by_digest (principal=? AND namespace=? AND digest=?)"),
        (_LAST_ADDED, "operations_by_writer (principal=? AND namespace=? AND writer=?)"),
        (_EXPIRED, "memories_by_expiry (principal=? AND namespace=? AND deleted=? AND expires_at<?)"),
        (_CHANGED_SINCE, "ix_memories_seq (seq>?)"),
    ],
    ids=["text", "writer", "expiry", "change"],
)
async def test_what_each_call_asks_is_looked_up_however_large_a_scope_is(
    ledger: SqliteLedger, statement: Any, index: str
) -> None:
    text = str(statement.compile(dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True}))

    def work(connection: Any) -> list[str]:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", tuple("1" * text.count("?")))
        return [row[3] for row in rows]

    plan = await ledger._database.read(work)
    assert any(step.startswith("SEARCH") and step.endswith(index) for step in plan), plan


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


async def test_the_events_of_a_scope_are_all_of_its_own_oldest_first(ledger: SqliteLedger) -> None:
    assert await ledger.events(SCOPE) == []
    written = [
        await append(ledger, record("mem_1")),
        await append(ledger, record("mem_2"), session_id="ctx_1"),
        await append(ledger, record("mem_1", version=2, deleted=True), MemoryEventKind.DELETE, Actor.ENVIRONMENT),
    ]
    other = await append(ledger, record("mem_1", scope=OTHER))
    written.append(await append(ledger, record("mem_2", version=2), MemoryEventKind.UPDATE, Actor.USER))
    assert await ledger.events(SCOPE) == written
    assert await ledger.events(OTHER) == [other]


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
    def work(transaction: LedgerTransaction) -> tuple[MemoryRecord | None, MemoryRecord | None]:
        before = transaction.head(SCOPE, "mem_1")
        transaction.append(MemoryEventKind.ADD, record(), digest=digest("x"), actor=Actor.POLICY, session_id=None)
        return before, transaction.head(SCOPE, "mem_1")

    assert await ledger.write(work) == (None, record())


async def test_concurrent_writes_get_positions_of_their_own(ledger: SqliteLedger) -> None:
    events = await asyncio.gather(*(append(ledger, record(f"mem_{number}")) for number in range(40)))
    assert sorted(one.seq for one in events) == list(range(1, 41))
    assert await ledger.last_seq() == 40


async def test_the_ledger_keeps_its_id_and_no_other_has_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db") as ledger:
        first = await ledger.ledger_id()
        assert await ledger.ledger_id() == first
    async with opened(tmp_path / "ledger.db") as again, opened(tmp_path / "other.db") as other:
        assert await again.ledger_id() == first
        assert await other.ledger_id() != first


async def test_writing_is_on_stable_storage_before_it_returns(ledger: SqliteLedger) -> None:
    def pragma(name: str) -> Awaitable[object]:
        return ledger._database.write(lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar())

    assert (await pragma("synchronous"), await pragma("journal_mode")) == (2, "wal")


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


async def test_the_end_moves_with_what_is_committed_alone_also_when_its_caller_is_gone(ledger: SqliteLedger) -> None:
    def fails(transaction: LedgerTransaction) -> None:
        transaction.append(MemoryEventKind.ADD, record(), digest="d", actor=Actor.POLICY, session_id=None)
        raise InvalidOperation

    with pytest.raises(InvalidOperation):
        await ledger.write(fails)
    assert await ledger.last_seq() == 0
    caller = asyncio.create_task(append(ledger, record()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await ledger.write(lambda _: None)
    assert await ledger.last_seq() == 1


async def test_a_reader_beside_the_writer_sees_the_end_move(ledger: SqliteLedger, tmp_path: Path) -> None:
    async with opened(tmp_path / "ledger.db", read_only=True) as reader:
        assert await reader.last_seq() == 0
        await append(ledger, record())
        assert await reader.last_seq() == 1


async def test_the_entry_a_writer_added_last_is_known_in_its_scope(ledger: SqliteLedger) -> None:
    async def last(writer: str, scope: Scope = SCOPE) -> tuple[str, datetime] | None:
        return await ledger.write(lambda transaction: transaction.last_added(scope, writer))

    assert await last("w1") is None
    await append(ledger, record("mem_1"), writer="w1")
    later = NOW + timedelta(minutes=1)
    await append(ledger, record("mem_2", created_at=later), writer="w1")
    await append(ledger, record("mem_3"), writer="w2")
    await append(ledger, record("mem_4"))
    await append(ledger, record("mem_1", version=2), MemoryEventKind.UPDATE, writer="w1")
    await append(ledger, record("mem_5", scope=OTHER), writer="w1")
    assert await last("w1") == ("mem_2", later)
    assert await last("w2") == ("mem_3", NOW)
    assert await last("w1", OTHER) == ("mem_5", NOW)
    assert await last("w2", OTHER) is None


async def test_neighbours_are_what_was_stored_just_before_and_after_live_or_not(ledger: SqliteLedger) -> None:
    for number in range(1, 5):
        await append(ledger, record(f"mem_{number}", follows=f"mem_{number - 1}" if number > 1 else None))
    await append(ledger, record("mem_9"))
    await append(ledger, record("mem_3", scope=OTHER, follows="mem_1"))
    await append(ledger, record("mem_2", version=2, deleted=True, follows="mem_1"), MemoryEventKind.DELETE)
    assert await ledger.read(lambda view: view.neighbours(SCOPE, ["mem_1", "mem_2", "mem_4", "mem_9", "mem_none"])) == {
        "mem_1": (None, "mem_2"),
        "mem_2": ("mem_1", "mem_3"),
        "mem_4": ("mem_3", None),
        "mem_9": (None, None),
    }
    assert await ledger.read(lambda view: view.neighbours(SCOPE, [])) == {}
    many = [f"mem_x{number}" for number in range(1200)]
    assert await ledger.read(lambda view: view.neighbours(OTHER, [*many, "mem_3"])) == {"mem_3": ("mem_1", None)}
    assert (await ledger.heads(SCOPE, ["mem_2"]))["mem_2"].follows == "mem_1"
    assert [one.record.follows for one in await ledger.history(SCOPE, "mem_2")] == ["mem_1", "mem_1"]


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["mem_1", "mem_2", "mem_3"]),
        st.sampled_from([SCOPE, OTHER]),
        st.text(max_size=5),
        st.booleans(),
        st.sampled_from([None, NOW - timedelta(days=1), NOW + timedelta(days=1)]),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(changes=CHANGES)
def test_usage_is_what_the_entries_neither_deleted_nor_expired_take_up(changes: list[Any]) -> None:
    async def run(path: Path) -> None:
        heads: dict[tuple[Scope, str], MemoryRecord] = {}
        async with opened(path) as ledger:
            for memory_id, scope, content, deleted, expires_at in changes:
                before = heads.get((scope, memory_id))
                entry = record(
                    memory_id,
                    scope=scope,
                    content=content,
                    metadata={"é": content},
                    version=1 if before is None else before.version + 1,
                    deleted=deleted,
                    expires_at=expires_at,
                )
                heads[scope, memory_id] = entry
                await append(ledger, entry)
            for scope in (SCOPE, OTHER):
                live = [one for (of, _), one in heads.items() if of == scope and one.is_live(NOW)]
                sizes = [
                    len(one.content.encode()) + len(f'{{"é":{json.dumps(one.content, ensure_ascii=False)}}}'.encode())
                    for one in live
                ]
                assert await ledger.usage(scope) == (len(live), sum(sizes))
                assert await ledger.write(lambda transaction, of=scope: transaction.usage(of, NOW)) == (
                    len(live),
                    sum(sizes),
                )

    with tempfile.TemporaryDirectory(prefix="agemem-usage-") as folder:
        asyncio.run(run(Path(folder) / "ledger.db"))


async def test_expired_entries_are_counted_from_an_index_alone(ledger: SqliteLedger) -> None:
    query = _EXPIRED.compile(dialect=sqlite.dialect(paramstyle="named"))
    key = {**query.params, "principal": "local", "namespace": "default", "now": 1}
    plan = await ledger._database.read(
        lambda connection: connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", key).all()
    )
    assert ["USING COVERING INDEX memories_by_expiry" in row[3] for row in plan] == [True]


def old_ledger(path: Path) -> None:
    """A ledger as version 1 of the schema left it: two scopes, changed, deleted and expiring entries."""
    connection = sqlite3.connect(path)
    connection.executescript(Path(__file__).with_name("ledger_schema_1.sql").read_text(encoding="utf-8"))
    connection.close()


def shape(path: Path) -> dict[str, Any]:
    """Columns and indexes of a database, whatever their order."""
    connection = sqlite3.connect(path)
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    found: dict[str, Any] = {
        table: {row[1:] for row in connection.execute(f"PRAGMA table_info({table})")} for table in sorted(tables)
    }
    indexes = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    found["indexes"] = {(name, " ".join(sql.split())) for name, sql in indexes}
    connection.close()
    return found


async def test_a_ledger_of_the_first_schema_is_brought_up_to_date_and_kept_as_a_backup(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    old_ledger(path)
    with pytest.raises(ConfigurationError, match="written by an older release"):
        async with opened(path, read_only=True):
            pytest.fail("it was opened")
    async with opened(path) as ledger:
        assert await ledger.ledger_id() == "aabcab8009f443e0a8f6ce04f8ea0b7d"
        heads = await ledger.heads(SCOPE, ["mem_1", "mem_2", "mem_3"])
        assert [(one.content, one.version, one.deleted, one.follows) for one in heads.values()] == [
            ("Ana likes green tea.", 2, False, None),
            ("Bo drives.", 2, True, None),
            ("Parcel comes.", 1, False, None),
        ]
        assert [one.record.content for one in await ledger.history(SCOPE, "mem_1")] == [
            "Ana likes tea.",
            "Ana likes green tea.",
        ]
        assert await ledger.last_seq() == 6
        sizes = [len(text.encode()) for text in ("Ana likes green tea.", '{"title":"Ünïcödé ☕"}')]
        # The parcel has not yet come at NOW, half a day after the beginning of the year.
        sizes += [len("Parcel comes."), len('{"expires_at":"2026-01-02T00:00:00Z"}')]
        assert await ledger.usage(SCOPE) == (2, sum(sizes))
        assert await ledger.usage(Scope("ana", "other")) == (1, len("It's another's; with a quote{}"))
        await append(ledger, record("mem_4", follows="mem_3"), writer="w")
        assert await ledger.read(lambda view: view.neighbours(SCOPE, ["mem_3"])) == {"mem_3": (None, "mem_4")}
        await append(ledger, replace(heads["mem_1"], version=3, deleted=True), MemoryEventKind.DELETE)
        assert (await ledger.usage(SCOPE)).entries == 2
        assert await ledger.integrity_problems() == []
    backup = tmp_path / "ledger.db.backup-schema-1"
    assert shape(backup)["scopes"] == {(name, kind, 1, None, key) for name, kind, key in OLD_SCOPES}
    async with opened(tmp_path / "new.db"):
        pass
    assert shape(path) == shape(tmp_path / "new.db")


OLD_SCOPES = [("principal", "VARCHAR", 1), ("namespace", "VARCHAR", 2), ("created", "INTEGER", 0)]
