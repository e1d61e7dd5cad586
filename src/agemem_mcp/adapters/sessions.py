"""Short-term contexts on SQLite: sessions, their messages, and what was done to them.

A database of its own beside the ledger: its commits need not wait for the disk (``synchronous=
NORMAL`` is safe against a kill, and a context lost in a power cut can be appended again).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from agemem_mcp.adapters.sql import check_schema, create_engine, from_micros, prepare_schema, to_micros, translated
from agemem_mcp.domain.context import Message, MessageKind, MessageState, Role, Session
from agemem_mcp.domain.memory import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import ColumnElement, Row
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from agemem_mcp.domain.memory import Actor
    from agemem_mcp.domain.ports import SessionTransaction

SCHEMA_VERSION = 1
MIGRATIONS: dict[int, tuple[str, ...]] = {}

_metadata = MetaData()
sessions = Table(
    "sessions",
    _metadata,
    # Handles are unguessable (130 random bits), and unique over all scopes.
    Column("session_id", String, primary_key=True),
    Column("principal", String, nullable=False),
    Column("namespace", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger, nullable=False),
    Column("named", Boolean, nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
    Index("sessions_by_scope", "principal", "namespace", "used_at"),
)
messages = Table(
    "messages",
    _metadata,
    Column("session_id", String, primary_key=True),
    Column("message_id", String, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("role", String, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("tokenizer", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("replaced_by", String),
    Index("messages_by_state", "session_id", "state", "position"),
)
operations = Table(
    "operations",
    _metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("session_id", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("effect", Text, nullable=False),
    Index("operations_by_session", "session_id", "seq"),
)


class SqliteSessionStore:
    """Implements :class:`agemem_mcp.domain.ports.SessionStore` on a SQLite file."""

    def __init__(self, path: Path, engine: AsyncEngine) -> None:
        self._path = path
        self._engine = engine
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path, *, read_only: bool = False) -> SqliteSessionStore:
        """Open the file, creating or migrating it unless ``read_only``.

        Raises:
            StoreError: the file is damaged, locked, read-only or missing.
            ConfigurationError: the file was made by a newer release.
        """
        engine = create_engine(path, synchronous="NORMAL", connections=1, read_only=read_only)
        try:
            if read_only:
                await check_schema(engine, path, version=SCHEMA_VERSION)
            else:
                await prepare_schema(engine, path, metadata=_metadata, version=SCHEMA_VERSION, migrations=MIGRATIONS)
        except BaseException:
            await engine.dispose()
            raise
        return cls(path, engine)

    async def close(self) -> None:
        """Release the connection."""
        async with self._turn:
            await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[SessionTransaction]:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.transaction`."""
        with translated(self._path):
            async with self._turn, self._engine.begin() as connection:
                yield _Transaction(connection)

    async def list_sessions(self, scope: Scope, *, now: datetime, limit: int | None) -> list[Session]:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.list_sessions`."""
        query = (
            select(sessions)
            .where(*_in_scope(scope), sessions.c.expires_at > to_micros(now))
            .order_by(sessions.c.used_at.desc())
            .limit(limit)
        )
        with translated(self._path):
            async with self._turn, self._engine.connect() as connection:
                return [_session(row) for row in await connection.execute(query)]

    async def operations(self, session_id: str) -> list[dict[str, Any]]:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.operations`."""
        query = select(operations).where(operations.c.session_id == session_id).order_by(operations.c.seq)
        with translated(self._path):
            async with self._turn, self._engine.connect() as connection:
                return [
                    {
                        "operation": row.operation,
                        "actor": row.actor,
                        "at": from_micros(row.at),
                        "arguments": json.loads(row.arguments),
                        "effect": json.loads(row.effect),
                    }
                    for row in await connection.execute(query)
                ]

    async def purge_expired(self, now: datetime) -> int:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.purge_expired`."""
        expired = select(sessions.c.session_id).where(sessions.c.expires_at <= to_micros(now)).scalar_subquery()
        with translated(self._path):
            async with self._turn, self._engine.begin() as connection:
                for table in (messages, operations):
                    await connection.execute(delete(table).where(table.c.session_id.in_(expired)))
                result = await connection.execute(delete(sessions).where(sessions.c.expires_at <= to_micros(now)))
                return result.rowcount

    async def integrity_problems(self) -> list[str]:
        """What SQLite's own check finds; reads the whole file."""
        with translated(self._path):
            async with self._turn, self._engine.connect() as connection:
                rows = (await connection.exec_driver_sql("PRAGMA integrity_check")).all()
        return [str(row[0]) for row in rows if row[0] != "ok"]


class _Transaction:
    """Implements :class:`agemem_mcp.domain.ports.SessionTransaction`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def session(self, scope: Scope, session_id: str) -> Session | None:
        query = select(sessions).where(*_in_scope(scope), sessions.c.session_id == session_id)
        row = (await self._connection.execute(query)).one_or_none()
        return None if row is None else _session(row)

    async def add_session(self, session: Session) -> bool:
        result = await self._connection.execute(
            sqlite_insert(sessions)
            .values(
                session_id=session.session_id,
                principal=session.scope.principal,
                namespace=session.scope.namespace,
                created_at=to_micros(session.created_at),
                used_at=to_micros(session.used_at),
                named=session.named,
                expires_at=to_micros(session.expires_at),
            )
            .on_conflict_do_nothing()
        )
        return result.rowcount == 1

    async def keep_session(self, session: Session) -> None:
        await self._connection.execute(
            update(sessions)
            .where(*_in_scope(session.scope), sessions.c.session_id == session.session_id)
            .values(used_at=to_micros(session.used_at), named=session.named, expires_at=to_micros(session.expires_at))
        )

    async def messages(self, session_id: str, *, active_only: bool = True) -> list[Message]:
        query = (
            select(messages)
            .where(messages.c.session_id == session_id)
            # A summary shares the position of the first message it replaced, and comes after it when that one is back.
            .order_by(messages.c.position, messages.c.created_at)
        )
        if active_only:
            query = query.where(messages.c.state == MessageState.ACTIVE.value)
        return [_message(row) for row in await self._connection.execute(query)]

    async def put_messages(self, session_id: str, messages_: Sequence[Message], /) -> None:
        if not messages_:
            return
        statement = sqlite_insert(messages)
        changing = ("position", "tokens", "tokenizer", "state", "replaced_by")
        statement = statement.on_conflict_do_update(
            index_elements=["session_id", "message_id"],
            set_={name: statement.excluded[name] for name in changing},
        )
        rows = [
            {
                "session_id": session_id,
                "message_id": message.message_id,
                "position": message.position,
                "role": message.role.value,
                "content": message.content,
                "created_at": to_micros(message.created_at),
                "tokens": message.tokens,
                "tokenizer": message.tokenizer,
                "kind": message.kind.value,
                "state": message.state.value,
                "replaced_by": message.replaced_by,
            }
            for message in messages_
        ]
        await self._connection.execute(statement, rows)

    async def next_ordinal(self, session_id: str) -> int:
        query = select(func.count()).select_from(messages).where(messages.c.session_id == session_id)
        return int((await self._connection.execute(query)).scalar_one()) + 1

    async def log(  # noqa: PLR0913  one per column
        self,
        session_id: str,
        *,
        operation: str,
        actor: Actor,
        at: datetime,
        arguments: Mapping[str, Any],
        effect: Mapping[str, Any],
    ) -> None:
        await self._connection.execute(
            insert(operations).values(
                session_id=session_id,
                operation=operation,
                actor=actor.value,
                at=to_micros(at),
                arguments=json.dumps(arguments, ensure_ascii=False),
                effect=json.dumps(effect, ensure_ascii=False),
            )
        )


def _in_scope(scope: Scope) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (sessions.c.principal == scope.principal, sessions.c.namespace == scope.namespace)


def _session(row: Row[Any]) -> Session:
    return Session(
        scope=Scope(row.principal, row.namespace),
        session_id=row.session_id,
        created_at=from_micros(row.created_at),
        used_at=from_micros(row.used_at),
        named=bool(row.named),
        expires_at=from_micros(row.expires_at),
    )


def _message(row: Row[Any]) -> Message:
    return Message(
        message_id=row.message_id,
        role=Role(row.role),
        content=row.content,
        created_at=from_micros(row.created_at),
        position=row.position,
        tokens=row.tokens,
        tokenizer=row.tokenizer,
        kind=MessageKind(row.kind),
        state=MessageState(row.state),
        replaced_by=row.replaced_by,
    )
