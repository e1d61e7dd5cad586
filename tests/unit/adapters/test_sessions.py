"""The session store: sessions, their messages, what was done to them, and their end."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.sessions import SqliteSessionStore
from agemem_mcp.domain.context import Message, MessageKind, MessageState, Role, Session, Tally
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.errors import InvalidOperation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable
    from pathlib import Path

    from agemem_mcp.domain.ports import SessionTransaction

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCOPE = Scope()
HOUR = timedelta(hours=1)


def session(session_id: str = "ctx_1", **changed: Any) -> Session:
    """A session."""
    given = Session(SCOPE, session_id, created_at=NOW, used_at=NOW, named=False, expires_at=NOW + HOUR)
    return replace(given, **changed)


def message(number: int, **changed: Any) -> Message:
    """The message with this number."""
    return replace(Message(f"msg_{number}", Role.USER, f"text {number}", NOW, number, 3, "test"), **changed)


@asynccontextmanager
async def opened(path: Path, *, read_only: bool = False) -> AsyncGenerator[SqliteSessionStore]:
    """The store at ``path``."""
    store = await SqliteSessionStore.open(path, read_only=read_only)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[SqliteSessionStore]:
    """An empty store."""
    async with opened(tmp_path / "sessions.db") as store:
        yield store


async def put(store: SqliteSessionStore, one: Session, *messages: Message) -> None:
    """Write a session and messages of it."""

    def work(transaction: SessionTransaction) -> None:
        transaction.add_session(one)
        transaction.put_messages(one.session_id, messages)

    await store.write(work)


async def stored(store: SqliteSessionStore, session_id: str = "ctx_1", *, active_only: bool = True) -> list[Message]:
    """The messages of a session."""
    return await store.read(lambda transaction: transaction.messages(session_id, active_only=active_only))


async def found(store: SqliteSessionStore, session_id: str = "ctx_1", scope: Scope = SCOPE) -> Session | None:
    """A session."""
    return await store.read(lambda transaction: transaction.session(scope, session_id))


async def test_session_and_messages_come_back_as_they_were_written(tmp_path: Path) -> None:
    one = session(named=True, used_at=NOW + timedelta(microseconds=1))
    summary = message(2, role=Role.TOOL, kind=MessageKind.SUMMARY, content="☕\n", replaced_by="msg_9")
    async with opened(tmp_path / "sessions.db") as store:
        await put(store, one, message(1), summary)
    async with opened(tmp_path / "sessions.db", read_only=True) as store:
        assert await stored(store) == [message(1), summary]
        assert await found(store) == one


async def test_a_session_is_found_in_its_own_scope_alone(store: SqliteSessionStore) -> None:
    await put(store, session())
    assert await found(store) is not None
    assert await found(store, scope=Scope(namespace="other")) is None
    assert await found(store, scope=Scope(principal="ana")) is None
    assert await found(store, "ctx_2") is None


async def test_messages_stand_by_position_and_only_active_ones_are_in_the_context(store: SqliteSessionStore) -> None:
    gone = message(1, state=MessageState.FILTERED)
    await put(store, session(), message(3), message(2, position=5), gone)
    assert [one.message_id for one in await stored(store)] == ["msg_3", "msg_2"]
    assert [one.message_id for one in await stored(store, active_only=False)] == ["msg_1", "msg_3", "msg_2"]


async def test_writing_a_message_again_changes_its_place_and_state_but_never_its_text(
    store: SqliteSessionStore,
) -> None:
    await put(store, session(), message(1))
    changed = message(1, position=4, tokens=9, tokenizer="new", state=MessageState.SUMMARISED, replaced_by="msg_2")
    await put(store, session(), replace(changed, content="forged", role=Role.SYSTEM))
    assert await stored(store, active_only=False) == [changed]


async def test_a_tally_counts_what_left_too_and_what_another_tokenizer_counted(store: SqliteSessionStore) -> None:
    gone = message(2, state=MessageState.FILTERED, tokenizer="old", tokens=50)
    await put(store, session(), message(1), gone, message(3, tokenizer="old", tokens=4))
    await put(store, session("ctx_2"), message(1))
    assert await store.read(lambda one: one.tally("ctx_1", "test")) == Tally(ever=3, active=2, tokens=7, stale=1)
    assert await store.read(lambda one: one.tally("ctx_3", "test")) == Tally(ever=0, active=0, tokens=0)


def test_a_tally_grows_with_what_is_added() -> None:
    assert Tally(5, 2, 7).plus([message(6), message(7)]) == Tally(7, 4, 13)


async def test_an_error_undoes_the_whole_transaction(store: SqliteSessionStore) -> None:
    def fails(transaction: SessionTransaction) -> None:
        transaction.add_session(session())
        transaction.put_messages("ctx_1", [message(1)])
        raise InvalidOperation

    with pytest.raises(InvalidOperation):
        await store.write(fails)
    assert await found(store) is None
    assert await stored(store) == []


async def test_concurrent_transactions_run_one_after_the_other(store: SqliteSessionStore) -> None:
    def add(transaction: SessionTransaction) -> None:
        transaction.put_messages("ctx_1", [message(transaction.tally("ctx_1", "test").ever + 1)])

    await asyncio.gather(*(store.write(add) for _ in range(20)))
    assert [one.position for one in await stored(store)] == list(range(1, 21))


async def test_what_was_done_is_recorded_in_order(store: SqliteSessionStore) -> None:
    def work(transaction: SessionTransaction) -> None:
        for number, actor in enumerate((Actor.POLICY, Actor.ENVIRONMENT)):
            transaction.log(
                "ctx_1", operation=f"op{number}", actor=actor, at=NOW, arguments={"é": [1]}, effect={"removed": []}
            )

    await store.write(work)
    first = {"operation": "op0", "actor": "policy", "at": NOW, "arguments": {"é": [1]}, "effect": {"removed": []}}
    assert await store.operations("ctx_1") == [first, {**first, "operation": "op1", "actor": "environment"}]
    assert await store.operations("ctx_2") == []


async def test_live_sessions_are_listed_last_used_first_up_to_a_limit(store: SqliteSessionStore) -> None:
    for number in (1, 2, 3):
        await put(store, session(f"ctx_{number}", used_at=NOW + number * HOUR, expires_at=NOW + 5 * HOUR))
    await put(store, session("ctx_old", expires_at=NOW + HOUR))
    await put(store, session("ctx_foreign", scope=Scope("ana"), expires_at=NOW + 5 * HOUR))

    async def listed(limit: int | None) -> list[str]:
        return [one.session_id for one in await store.list_sessions(SCOPE, now=NOW + HOUR, limit=limit)]

    assert await listed(None) == ["ctx_3", "ctx_2", "ctx_1"]
    assert await listed(2) == ["ctx_3", "ctx_2"]


async def test_purging_destroys_expired_sessions_with_all_that_is_theirs(store: SqliteSessionStore) -> None:
    def log(transaction: SessionTransaction) -> None:
        for session_id in ("ctx_1", "ctx_2"):
            transaction.log(session_id, operation="o", actor=Actor.USER, at=NOW, arguments={}, effect={})

    for one in (session("ctx_1"), session("ctx_2", expires_at=NOW + 2 * HOUR)):
        await put(store, one, message(1))
    await store.write(log)
    assert await store.purge_expired(NOW + HOUR - timedelta(microseconds=1)) == 0
    assert await store.purge_expired(NOW + HOUR) == 1
    assert await stored(store, "ctx_1", active_only=False) == []
    assert await store.operations("ctx_1") == []
    assert len(await stored(store, "ctx_2")) == len(await store.operations("ctx_2")) == 1
    assert await store.integrity_problems() == []


async def test_contexts_are_written_safe_against_a_kill_without_waiting_for_the_disk(store: SqliteSessionStore) -> None:
    def pragma(name: str) -> Awaitable[object]:
        return store._database.write(lambda connection: connection.exec_driver_sql(f"PRAGMA {name}").scalar())

    assert (await pragma("synchronous"), await pragma("journal_mode")) == (1, "wal")


async def test_a_read_only_store_refuses_to_write(store: SqliteSessionStore, tmp_path: Path) -> None:
    async with opened(tmp_path / "sessions.db", read_only=True) as reader:
        with pytest.raises(RuntimeError, match="read-only"):
            await put(reader, session())
