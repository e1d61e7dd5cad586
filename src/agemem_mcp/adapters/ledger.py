"""The ledger of long-term memory on SQLite: every change, and the present state of every entry."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Table, bindparam, false, func, insert, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from agemem_mcp.adapters.ledger_schema import SCHEMA, memories, operations, properties, scopes
from agemem_mcp.adapters.sql import from_micros, to_micros
from agemem_mcp.adapters.sql_threads import Database
from agemem_mcp.domain.memory import Actor, MemoryEvent, MemoryEventKind, MemoryRecord, Scope, Usage, metadata_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import ColumnElement, Connection

    from agemem_mcp.domain.ports import Clock, LedgerTransaction, LedgerView

T = TypeVar("T")

_IDS_PER_QUERY = 500


def _of_scope(table: Table) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (table.c.principal == bindparam("principal"), table.c.namespace == bindparam("namespace"))


def _record_columns(table: Table) -> list[ColumnElement[Any]]:
    """What :func:`_record` reads, in its order."""
    names = ("principal", "namespace", "memory_id", "version", "content", "memory_type", "metadata", "created_at")
    return [table.c[name] for name in (*names, "updated_at", "expires_at", "deleted", "follows")]


# Built once: building a statement costs more than running it.
_wanted = memories.c.memory_id.in_(bindparam("memory_ids", expanding=True))
_HEADS = select(*_record_columns(memories)).where(*_of_scope(memories), _wanted)
_HEAD = select(*_record_columns(memories)).where(*_of_scope(memories), memories.c.memory_id == bindparam("memory_id"))
_HEAD_SIZE = select(memories.c.deleted, memories.c.bytes).where(
    *_of_scope(memories), memories.c.memory_id == bindparam("memory_id")
)
_HEAD_BY_DIGEST = (
    select(*_record_columns(memories))
    .where(
        *_of_scope(memories),
        memories.c.digest == bindparam("digest"),
        memories.c.deleted == false(),
        memories.c.expires_at.is_(None) | (memories.c.expires_at > bindparam("now")),
    )
    # An expression: by the bare column SQLite would walk the whole scope in its order instead of looking the text up.
    .order_by(memories.c.seq + 0)
    .limit(1)
)
_later = memories.alias("later")
_NEIGHBOURS = select(
    memories.c.memory_id,
    memories.c.follows,
    select(_later.c.memory_id)
    .where(
        _later.c.principal == memories.c.principal,
        _later.c.namespace == memories.c.namespace,
        _later.c.follows == memories.c.memory_id,
    )
    .limit(1)
    .scalar_subquery(),
).where(*_of_scope(memories), _wanted)
_LISTED = select(*_record_columns(memories)).where(*_of_scope(memories)).order_by(memories.c.seq.desc())
_EVENTS = (
    select(
        operations.c.seq,
        operations.c.kind,
        operations.c.actor,
        operations.c.session_id,
        operations.c.at,
        *_record_columns(operations),
    )
    .where(*_of_scope(operations))
    .order_by(operations.c.seq)
)
_HISTORY = _EVENTS.where(operations.c.memory_id == bindparam("memory_id"))
_CHANGED_SINCE = (
    select(memories.c.seq, *_record_columns(memories))
    .where(memories.c.seq > bindparam("after"))
    .order_by(memories.c.seq)
    .limit(bindparam("most"))
)
_LAST_SEQ = select(func.coalesce(func.max(operations.c.seq), 0))
_LAST_ADDED = (
    select(operations.c.memory_id, operations.c.created_at)
    .where(
        *_of_scope(operations),
        operations.c.writer == bindparam("writer"),
        operations.c.kind == MemoryEventKind.ADD.value,
    )
    .order_by(operations.c.seq.desc())
    .limit(1)
)
_CREATED = select(scopes.c.created).where(*_of_scope(scopes))
_STORED = select(scopes.c.entries, scopes.c.bytes).where(*_of_scope(scopes))
_EXPIRED = select(func.count(), func.coalesce(func.sum(memories.c.bytes), 0)).where(
    *_of_scope(memories), memories.c.deleted == false(), memories.c.expires_at <= bindparam("now")
)
_COUNT = select(func.count()).select_from(memories).where(memories.c.deleted == false())
_LOG = insert(operations)
_put = sqlite_insert(memories)
_PUT_HEAD = _put.on_conflict_do_update(
    index_elements=["principal", "namespace", "memory_id"],
    set_={column.name: _put.excluded[column.name] for column in memories.columns if not column.primary_key},
)
_more = sqlite_insert(scopes)
_COUNT_UP = _more.on_conflict_do_update(
    index_elements=["principal", "namespace"],
    set_={name: scopes.c[name] + _more.excluded[name] for name in ("created", "entries", "bytes")},
)


class SqliteLedger:
    """Implements :class:`agemem_mcp.domain.ports.Ledger` on a SQLite file."""

    def __init__(self, database: Database, clock: Clock, last_seq: int | None) -> None:
        self._database = database
        self._clock = clock
        # The one process that writes knows the end; one that only reads must look each time.
        self._last_seq = last_seq

    @classmethod
    async def open(cls, path: Path, *, clock: Clock, read_only: bool = False) -> SqliteLedger:
        """Open the file, creating or migrating it.

        Args:
            path: the database file; its folder must exist.
            clock: decides which entries have expired.
            read_only: open beside a process that writes; nothing is created or changed.

        Raises:
            StoreError: the file is damaged, locked, read-only or missing.
            ConfigurationError: the file was made by a newer release.
        """
        database = await Database.open(path, SCHEMA, synchronous="FULL", read_only=read_only)
        try:
            return cls(database, clock, None if read_only else await database.read(_read_last_seq))
        except BaseException:
            await database.close()
            raise

    async def close(self) -> None:
        """Finish waiting commits and release the connections."""
        await self._database.close()

    async def ledger_id(self) -> str:
        """A random id made with the ledger; an index remembers whose entries it holds."""

        def work(connection: Connection) -> str:
            connection.execute(
                sqlite_insert(properties).values(name="ledger_id", value=uuid.uuid4().hex).on_conflict_do_nothing()
            )
            return str(connection.scalar(select(properties.c.value).where(properties.c.name == "ledger_id")))

        return await self._database.write(work)

    async def write(self, work: Callable[[LedgerTransaction], T]) -> T:
        """See :meth:`agemem_mcp.domain.ports.Ledger.write`."""

        def piece(connection: Connection) -> tuple[T, int]:
            transaction = _Transaction(connection, self._clock)
            return work(transaction), transaction.last_seq

        def committed(outcome: tuple[T, int]) -> None:
            self._last_seq = max(self._last_seq or 0, outcome[1])

        result, _ = await self._database.write(piece, committed)
        return result

    async def read(self, work: Callable[[LedgerView], T]) -> T:
        """See :meth:`agemem_mcp.domain.ports.Ledger.read`."""
        return await self._database.read(lambda connection: work(_View(connection)))

    async def heads(self, scope: Scope, memory_ids: Collection[str]) -> dict[str, MemoryRecord]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.heads`."""
        return await self.read(lambda view: view.heads(scope, memory_ids)) if memory_ids else {}

    async def usage(self, scope: Scope) -> Usage:
        """See :meth:`agemem_mcp.domain.ports.Ledger.usage`."""
        now = self._clock.now()
        return await self._database.read(lambda connection: _usage(connection, scope, now))

    async def list_heads(self, scope: Scope, *, limit: int | None, include_deleted: bool) -> list[MemoryRecord]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.list_heads`."""
        query = (_LISTED if include_deleted else _LISTED.where(memories.c.deleted == false())).limit(limit)
        return await self._database.read(
            lambda connection: [_record(row) for row in connection.execute(query, _key(scope))]
        )

    async def history(self, scope: Scope, memory_id: str) -> list[MemoryEvent]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.history`."""
        key = {**_key(scope), "memory_id": memory_id}
        return await self._database.read(lambda connection: [_event(row) for row in connection.execute(_HISTORY, key)])

    async def events(self, scope: Scope) -> list[MemoryEvent]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.events`."""
        key = _key(scope)
        return await self._database.read(lambda connection: [_event(row) for row in connection.execute(_EVENTS, key)])

    async def last_seq(self) -> int:
        """See :meth:`agemem_mcp.domain.ports.Ledger.last_seq`."""
        return await self._database.read(_read_last_seq) if self._last_seq is None else self._last_seq

    async def changed_since(self, seq: int, *, limit: int) -> tuple[list[MemoryRecord], int]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.changed_since`."""

        def work(connection: Connection) -> tuple[list[MemoryRecord], int]:
            rows = connection.execute(_CHANGED_SINCE, {"after": seq, "most": limit}).all()
            return [_record(row[1:]) for row in rows], int(rows[-1].seq) if rows else seq

        return await self._database.read(work)

    async def count(self) -> int:
        """Number of entries over all scopes that are not deleted."""
        return await self._database.read(lambda connection: connection.execute(_COUNT).scalar_one())

    async def integrity_problems(self) -> list[str]:
        """What SQLite's own check finds; reads the whole file."""
        return await self._database.integrity_problems()


class _View:
    """Implements :class:`agemem_mcp.domain.ports.LedgerView`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def heads(self, scope: Scope, memory_ids: Collection[str]) -> dict[str, MemoryRecord]:
        return {
            row.memory_id: _record(row)
            for chunk in _chunks(memory_ids)
            for row in self._connection.execute(_HEADS, {**_key(scope), "memory_ids": chunk}).all()
        }

    def neighbours(self, scope: Scope, memory_ids: Collection[str]) -> dict[str, tuple[str | None, str | None]]:
        return {
            memory_id: (before, after)
            for chunk in _chunks(memory_ids)
            for memory_id, before, after in self._connection.execute(_NEIGHBOURS, {**_key(scope), "memory_ids": chunk})
        }


class _Transaction:
    """Implements :class:`agemem_mcp.domain.ports.LedgerTransaction`."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self.last_seq = 0

    def head(self, scope: Scope, memory_id: str) -> MemoryRecord | None:
        row = self._connection.execute(_HEAD, {**_key(scope), "memory_id": memory_id}).one_or_none()
        return None if row is None else _record(row)

    def head_by_digest(self, scope: Scope, digest: str) -> MemoryRecord | None:
        key = {**_key(scope), "digest": digest, "now": to_micros(self._clock.now())}
        row = self._connection.execute(_HEAD_BY_DIGEST, key).one_or_none()
        return None if row is None else _record(row)

    def created_in_scope(self, scope: Scope) -> int:
        return self._connection.execute(_CREATED, _key(scope)).scalar() or 0

    def last_added(self, scope: Scope, writer: str) -> tuple[str, datetime] | None:
        row = self._connection.execute(_LAST_ADDED, {**_key(scope), "writer": writer}).one_or_none()
        return None if row is None else (row.memory_id, from_micros(row.created_at))

    def usage(self, scope: Scope, now: datetime) -> Usage:
        return _usage(self._connection, scope, now)

    def append(  # noqa: PLR0913  one per column
        self,
        kind: MemoryEventKind,
        record: MemoryRecord,
        *,
        digest: str,
        actor: Actor,
        session_id: str | None,
        writer: str | None = None,
    ) -> MemoryEvent:
        key = {**_key(record.scope), "memory_id": record.memory_id}
        state = _state(record)
        at = self._clock.now()
        logged = {**key, **state, "kind": kind.value, "actor": actor.value}
        result = self._connection.execute(
            _LOG, {**logged, "session_id": session_id, "writer": writer, "at": to_micros(at)}
        )
        seq = int(result.lastrowid)
        size = len(record.content.encode()) + len(state["metadata"].encode())
        self._count(record, size)
        self._connection.execute(_PUT_HEAD, {**key, **state, "seq": seq, "digest": digest, "bytes": size})
        self.last_seq = seq
        return MemoryEvent(seq=seq, kind=kind, actor=actor, session_id=session_id, at=at, record=record)

    def _count(self, record: MemoryRecord, size: int) -> None:
        """Keep the scope's counters, from the head before to the record that replaces it."""
        entries, bytes_ = (0, 0) if record.deleted else (1, size)
        if record.version > 1:
            before = self._connection.execute(
                _HEAD_SIZE, {**_key(record.scope), "memory_id": record.memory_id}
            ).one_or_none()
            if before is not None and not before.deleted:
                entries, bytes_ = entries - 1, bytes_ - before.bytes
        change = {"created": int(record.version == 1), "entries": entries, "bytes": bytes_}
        if any(change.values()):
            self._connection.execute(_COUNT_UP, {**_key(record.scope), **change})


def _key(scope: Scope) -> dict[str, Any]:
    return {"principal": scope.principal, "namespace": scope.namespace}


def _chunks(memory_ids: Collection[str]) -> Iterator[list[str]]:
    wanted = list(memory_ids)
    return (wanted[start : start + _IDS_PER_QUERY] for start in range(0, len(wanted), _IDS_PER_QUERY))


def _read_last_seq(connection: Connection) -> int:
    return int(connection.execute(_LAST_SEQ).scalar_one())


def _usage(connection: Connection, scope: Scope, now: datetime) -> Usage:
    stored = connection.execute(_STORED, _key(scope)).one_or_none()
    if stored is None:
        return Usage(0, 0)
    # Time alone changes what has expired: so that is looked up, and not kept in the counters.
    expired = connection.execute(_EXPIRED, {**_key(scope), "now": to_micros(now)}).one()
    return Usage(stored[0] - expired[0], stored[1] - expired[1])


def _state(record: MemoryRecord) -> dict[str, Any]:
    return {
        "version": record.version,
        "content": record.content,
        "memory_type": record.memory_type,
        "metadata": metadata_text(record.metadata),
        "created_at": to_micros(record.created_at),
        "updated_at": to_micros(record.updated_at),
        "expires_at": None if record.expires_at is None else to_micros(record.expires_at),
        "deleted": record.deleted,
        "follows": record.follows,
    }


def _record(row: Sequence[Any]) -> MemoryRecord:
    principal, namespace, memory_id, version, content, memory_type, metadata, created, updated, expires, *rest = row
    deleted, follows = rest
    return MemoryRecord(
        scope=Scope(principal, namespace),
        memory_id=memory_id,
        version=version,
        content=content,
        memory_type=memory_type,
        metadata=json.loads(metadata),
        created_at=from_micros(created),
        updated_at=from_micros(updated),
        expires_at=None if expires is None else from_micros(expires),
        deleted=deleted,
        follows=follows,
    )


def _event(row: Sequence[Any]) -> MemoryEvent:
    seq, kind, actor, session_id, at, *state = row
    return MemoryEvent(
        seq=seq,
        kind=MemoryEventKind(kind),
        actor=Actor(actor),
        session_id=session_id,
        at=from_micros(at),
        record=_record(state),
    )
