"""The ledger of long-term memory on SQLite: every change, and the present state of every entry."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text, func, insert, select
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from agemem_mcp.adapters.sql import (
    GroupCommitter,
    check_schema,
    create_engine,
    from_micros,
    prepare_schema,
    to_micros,
    translated,
)
from agemem_mcp.domain.memory import Actor, MemoryEvent, MemoryEventKind, MemoryRecord, Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable
    from pathlib import Path

    from sqlalchemy import ColumnElement, Row, Select
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from agemem_mcp.domain.ports import Clock, LedgerTransaction

T = TypeVar("T")

SCHEMA_VERSION = 1
MIGRATIONS: dict[int, tuple[str, ...]] = {}
_IDS_PER_QUERY = 500

_metadata = MetaData()


def _state_columns() -> list[Column[Any]]:
    """The columns of an entry's state, the same in both tables."""
    return [
        Column("version", Integer, nullable=False),
        Column("content", Text, nullable=False),
        Column("memory_type", String),
        Column("metadata", Text, nullable=False),
        Column("created_at", BigInteger, nullable=False),
        Column("updated_at", BigInteger, nullable=False),
        Column("expires_at", BigInteger),
        Column("deleted", Boolean, nullable=False),
    ]


operations = Table(
    "operations",
    _metadata,
    # Integer, not BigInteger: only then does SQLite number the rows itself (64 bits all the same).
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("principal", String, nullable=False),
    Column("namespace", String, nullable=False),
    Column("memory_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("session_id", String),
    Column("at", BigInteger, nullable=False),
    *_state_columns(),
    Index("operations_by_memory", "principal", "namespace", "memory_id", "seq"),
    sqlite_autoincrement=True,
)
memories = Table(
    "memories",
    _metadata,
    Column("principal", String, primary_key=True),
    Column("namespace", String, primary_key=True),
    Column("memory_id", String, primary_key=True),
    Column("seq", Integer, nullable=False, index=True),
    Column("digest", String, nullable=False),
    *_state_columns(),
    Index("memories_by_digest", "principal", "namespace", "digest"),
    Index("memories_by_change", "principal", "namespace", "seq"),
)
scopes = Table(
    "scopes",
    _metadata,
    Column("principal", String, primary_key=True),
    Column("namespace", String, primary_key=True),
    Column("created", Integer, nullable=False),
)
properties = Table("properties", _metadata, Column("name", String, primary_key=True), Column("value", Text))


class SqliteLedger:
    """Implements :class:`agemem_mcp.domain.ports.Ledger` on a SQLite file."""

    def __init__(self, path: Path, reader: AsyncEngine, writer: AsyncEngine | None, clock: Clock) -> None:
        self._path = path
        self._reader = reader
        self._writer = writer
        self._committer = GroupCommitter(writer, path) if writer is not None else None
        self._clock = clock

    @classmethod
    async def open(cls, path: Path, *, clock: Clock, read_only: bool = False) -> SqliteLedger:
        """Open the file, creating or migrating it.

        Args:
            path: the database file; its folder must exist.
            clock: decides which entries have expired when duplicates are looked for.
            read_only: open beside a process that writes; nothing is created or changed.

        Raises:
            StoreError: the file is damaged, locked, read-only or missing.
            ConfigurationError: the file was made by a newer release.
        """
        writer = None
        if not read_only:
            writer = create_engine(path, synchronous="FULL", connections=1)
            try:
                await prepare_schema(writer, path, metadata=_metadata, version=SCHEMA_VERSION, migrations=MIGRATIONS)
            except BaseException:
                await writer.dispose()
                raise
        reader = create_engine(path, synchronous="FULL", connections=2, read_only=True)
        if read_only:
            try:
                await check_schema(reader, path, version=SCHEMA_VERSION)
            except BaseException:
                await reader.dispose()
                raise
        return cls(path, reader, writer, clock)

    async def close(self) -> None:
        """Finish waiting commits and release the connections."""
        if self._committer is not None:
            await self._committer.close()
        # The writer last: only it can fold the write-ahead log into the file, which is then whole by itself.
        await self._reader.dispose()
        if self._writer is not None:
            await self._writer.dispose()

    async def ledger_id(self) -> str:
        """A random id made with the ledger; an index remembers whose entries it holds."""

        async def work(connection: AsyncConnection) -> str:
            await connection.execute(
                sqlite_insert(properties).values(name="ledger_id", value=uuid.uuid4().hex).on_conflict_do_nothing()
            )
            return str(
                (await connection.execute(select(properties.c.value).where(properties.c.name == "ledger_id"))).scalar()
            )

        return await self._commit(work)

    async def write(self, work: Callable[[LedgerTransaction], Awaitable[T]]) -> T:
        """See :meth:`agemem_mcp.domain.ports.Ledger.write`."""
        return await self._commit(lambda connection: work(_Transaction(connection, self._clock)))

    async def _commit(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        if self._committer is None:
            msg = "the ledger was opened read-only"
            raise RuntimeError(msg)
        return await self._committer.run(work)

    async def heads(self, scope: Scope, memory_ids: Collection[str]) -> dict[str, MemoryRecord]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.heads`."""
        found: dict[str, MemoryRecord] = {}
        wanted = list(memory_ids)
        for start in range(0, len(wanted), _IDS_PER_QUERY):
            chunk = wanted[start : start + _IDS_PER_QUERY]
            query = select(memories).where(*_in_scope(memories, scope), memories.c.memory_id.in_(chunk))
            found.update({row.memory_id: _record(row) for row in await self._read(query)})
        return found

    async def list_heads(self, scope: Scope, *, limit: int | None, include_deleted: bool) -> list[MemoryRecord]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.list_heads`."""
        query = select(memories).where(*_in_scope(memories, scope)).order_by(memories.c.seq.desc()).limit(limit)
        if not include_deleted:
            query = query.where(memories.c.deleted.is_(False))
        return [_record(row) for row in await self._read(query)]

    async def history(self, scope: Scope, memory_id: str) -> list[MemoryEvent]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.history`."""
        query = (
            select(operations)
            .where(*_in_scope(operations, scope), operations.c.memory_id == memory_id)
            .order_by(operations.c.seq)
        )
        return [_event(row) for row in await self._read(query)]

    async def last_seq(self) -> int:
        """See :meth:`agemem_mcp.domain.ports.Ledger.last_seq`."""
        rows = await self._read(select(func.coalesce(func.max(operations.c.seq), 0)))
        return int(next(iter(rows))[0])

    async def changed_since(self, seq: int, *, limit: int) -> tuple[list[MemoryRecord], int]:
        """See :meth:`agemem_mcp.domain.ports.Ledger.changed_since`."""
        query = select(memories).where(memories.c.seq > seq).order_by(memories.c.seq).limit(limit)
        rows = list(await self._read(query))
        return [_record(row) for row in rows], int(rows[-1].seq) if rows else seq

    async def count(self) -> int:
        """Number of entries over all scopes that are not deleted."""
        query = select(func.count()).select_from(memories).where(memories.c.deleted.is_(False))
        return int(next(iter(await self._read(query)))[0])

    async def integrity_problems(self) -> list[str]:
        """What SQLite's own check finds; reads the whole file."""
        with translated(self._path):
            async with self._reader.connect() as connection:
                rows = (await connection.exec_driver_sql("PRAGMA integrity_check")).all()
        return [str(row[0]) for row in rows if row[0] != "ok"]

    async def _read(self, query: Select[Any]) -> Iterable[Row[Any]]:
        with translated(self._path):
            async with self._reader.connect() as connection:
                return (await connection.execute(query)).all()


class _Transaction:
    """Implements :class:`agemem_mcp.domain.ports.LedgerTransaction`."""

    def __init__(self, connection: AsyncConnection, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock

    async def head(self, scope: Scope, memory_id: str) -> MemoryRecord | None:
        query = select(memories).where(*_in_scope(memories, scope), memories.c.memory_id == memory_id)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _record(row)

    async def head_by_digest(self, scope: Scope, digest: str) -> MemoryRecord | None:
        now = to_micros(self._clock.now())
        query = (
            select(memories)
            .where(
                *_in_scope(memories, scope),
                memories.c.digest == digest,
                memories.c.deleted.is_(False),
                memories.c.expires_at.is_(None) | (memories.c.expires_at > now),
            )
            .order_by(memories.c.seq)
            .limit(1)
        )
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _record(row)

    async def created_in_scope(self, scope: Scope) -> int:
        query = select(scopes.c.created).where(*_in_scope(scopes, scope))
        return int((await self._connection.execute(query)).scalar() or 0)

    async def append(
        self, kind: MemoryEventKind, record: MemoryRecord, *, digest: str, actor: Actor, session_id: str | None
    ) -> MemoryEvent:
        key = {
            "principal": record.scope.principal,
            "namespace": record.scope.namespace,
            "memory_id": record.memory_id,
        }
        state = {
            "version": record.version,
            "content": record.content,
            "memory_type": record.memory_type,
            "metadata": json.dumps(record.metadata, ensure_ascii=False, separators=(",", ":")),
            "created_at": to_micros(record.created_at),
            "updated_at": to_micros(record.updated_at),
            "expires_at": None if record.expires_at is None else to_micros(record.expires_at),
            "deleted": record.deleted,
        }
        at = self._clock.now()
        result = await self._connection.execute(
            insert(operations).values(
                **key, **state, kind=kind.value, actor=actor.value, session_id=session_id, at=to_micros(at)
            )
        )
        primary_key = result.inserted_primary_key
        seq = int(primary_key[0]) if primary_key is not None else 0
        head = {"seq": seq, "digest": digest, **state}
        await self._connection.execute(
            sqlite_insert(memories)
            .values(**key, **head)
            .on_conflict_do_update(index_elements=["principal", "namespace", "memory_id"], set_=head)
        )
        if record.version == 1:
            await self._connection.execute(
                sqlite_insert(scopes)
                .values(principal=key["principal"], namespace=key["namespace"], created=1)
                .on_conflict_do_update(
                    index_elements=["principal", "namespace"], set_={"created": scopes.c.created + 1}
                )
            )
        return MemoryEvent(seq=seq, kind=kind, actor=actor, session_id=session_id, at=at, record=record)


def _in_scope(table: Table, scope: Scope) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (table.c.principal == scope.principal, table.c.namespace == scope.namespace)


def _record(row: Row[Any]) -> MemoryRecord:
    return MemoryRecord(
        scope=Scope(row.principal, row.namespace),
        memory_id=row.memory_id,
        version=row.version,
        content=row.content,
        memory_type=row.memory_type,
        metadata=json.loads(row.metadata),
        created_at=from_micros(row.created_at),
        updated_at=from_micros(row.updated_at),
        expires_at=None if row.expires_at is None else from_micros(row.expires_at),
        deleted=bool(row.deleted),
    )


def _event(row: Row[Any]) -> MemoryEvent:
    return MemoryEvent(
        seq=row.seq,
        kind=MemoryEventKind(row.kind),
        actor=Actor(row.actor),
        session_id=row.session_id,
        at=from_micros(row.at),
        record=_record(row),
    )
