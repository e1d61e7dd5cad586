"""Short-term contexts on SQLite: sessions, their messages, and what was done to them.

A database of its own beside the ledger: its commits need not wait for the disk (``synchronous=
NORMAL`` is safe against a kill, and a context lost in a power cut can be appended again).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

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
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from agemem_mcp.adapters.sql import from_micros, to_micros
from agemem_mcp.adapters.sql_threads import Database, Schema
from agemem_mcp.domain.context import Message, MessageKind, MessageState, Role, Session, Tally
from agemem_mcp.domain.memory import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from sqlalchemy import ColumnElement, Connection, Row

    from agemem_mcp.domain.memory import Actor
    from agemem_mcp.domain.ports import SessionTransaction

T = TypeVar("T")

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
SCHEMA = Schema(_metadata, version=1, migrations={})


def _of_scope() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (sessions.c.principal == bindparam("in_principal"), sessions.c.namespace == bindparam("in_namespace"))


# Built once: building a statement costs more than running it.
_SESSION = select(sessions).where(*_of_scope(), sessions.c.session_id == bindparam("wanted"))
_LISTED = (
    select(sessions).where(*_of_scope(), sessions.c.expires_at > bindparam("now")).order_by(sessions.c.used_at.desc())
)
_ADD = sqlite_insert(sessions).on_conflict_do_nothing()
_KEEP = (
    update(sessions)
    .where(*_of_scope(), sessions.c.session_id == bindparam("wanted"))
    .values({name: bindparam(name) for name in ("used_at", "named", "expires_at")})
)
_ALL_MESSAGES = (
    select(messages)
    .where(messages.c.session_id == bindparam("wanted"))
    # A summary shares the position of the first message it replaced, and comes after it when that one is back.
    .order_by(messages.c.position, messages.c.created_at)
)
_active = messages.c.state == MessageState.ACTIVE.value
_ACTIVE_MESSAGES = _ALL_MESSAGES.where(_active)
_put = sqlite_insert(messages)
_PUT_MESSAGES = _put.on_conflict_do_update(
    index_elements=["session_id", "message_id"],
    set_={name: _put.excluded[name] for name in ("position", "tokens", "tokenizer", "state", "replaced_by")},
)
_TALLY = select(
    func.count(),
    func.count(case((_active, 1))),
    func.coalesce(func.sum(case((_active, messages.c.tokens))), 0),
    func.count(case((_active & (messages.c.tokenizer != bindparam("tokenizer")), 1))),
).where(messages.c.session_id == bindparam("wanted"))
_LOG = insert(operations)
_LOGGED = select(operations).where(operations.c.session_id == bindparam("wanted")).order_by(operations.c.seq)


class SqliteSessionStore:
    """Implements :class:`agemem_mcp.domain.ports.SessionStore` on a SQLite file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path, *, read_only: bool = False) -> SqliteSessionStore:
        """Open the file, creating or migrating it unless ``read_only``.

        Raises:
            StoreError: the file is damaged, locked, read-only or missing.
            ConfigurationError: the file was made by a newer release.
        """
        return cls(await Database.open(path, SCHEMA, synchronous="NORMAL", read_only=read_only))

    async def close(self) -> None:
        """Finish waiting commits and release the connections."""
        await self._database.close()

    async def write(self, work: Callable[[SessionTransaction], T]) -> T:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.write`."""
        return await self._database.write(lambda connection: work(_Transaction(connection)))

    async def read(self, work: Callable[[SessionTransaction], T]) -> T:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.read`."""
        return await self._database.read(lambda connection: work(_Transaction(connection)))

    async def list_sessions(self, scope: Scope, *, now: datetime, limit: int | None) -> list[Session]:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.list_sessions`."""
        key = {**_key(scope), "now": to_micros(now)}
        return await self._database.read(
            lambda connection: [_session(row) for row in connection.execute(_LISTED.limit(limit), key)]
        )

    async def operations(self, session_id: str) -> list[dict[str, Any]]:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.operations`."""
        rows = await self._database.read(lambda connection: connection.execute(_LOGGED, {"wanted": session_id}).all())
        return [
            {
                "operation": row.operation,
                "actor": row.actor,
                "at": from_micros(row.at),
                "arguments": json.loads(row.arguments),
                "effect": json.loads(row.effect),
            }
            for row in rows
        ]

    async def purge_expired(self, now: datetime) -> int:
        """See :meth:`agemem_mcp.domain.ports.SessionStore.purge_expired`."""
        expired = select(sessions.c.session_id).where(sessions.c.expires_at <= to_micros(now)).scalar_subquery()

        def work(connection: Connection) -> int:
            for table in (messages, operations):
                connection.execute(delete(table).where(table.c.session_id.in_(expired)))
            return connection.execute(delete(sessions).where(sessions.c.expires_at <= to_micros(now))).rowcount

        return await self._database.write(work)

    async def integrity_problems(self) -> list[str]:
        """What SQLite's own check finds; reads the whole file."""
        return await self._database.integrity_problems()


class _Transaction:
    """Implements :class:`agemem_mcp.domain.ports.SessionTransaction`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def session(self, scope: Scope, session_id: str) -> Session | None:
        row = self._connection.execute(_SESSION, {**_key(scope), "wanted": session_id}).one_or_none()
        return None if row is None else _session(row)

    def add_session(self, session: Session) -> bool:
        result = self._connection.execute(
            _ADD,
            {
                "session_id": session.session_id,
                "principal": session.scope.principal,
                "namespace": session.scope.namespace,
                "created_at": to_micros(session.created_at),
                "used_at": to_micros(session.used_at),
                "named": session.named,
                "expires_at": to_micros(session.expires_at),
            },
        )
        return result.rowcount == 1

    def keep_session(self, session: Session) -> None:
        kept = {"used_at": to_micros(session.used_at), "expires_at": to_micros(session.expires_at)}
        key = {**_key(session.scope), "wanted": session.session_id}
        self._connection.execute(_KEEP, {**key, **kept, "named": session.named})

    def messages(self, session_id: str, *, active_only: bool = True) -> list[Message]:
        query = _ACTIVE_MESSAGES if active_only else _ALL_MESSAGES
        return [_message(row) for row in self._connection.execute(query, {"wanted": session_id})]

    def put_messages(self, session_id: str, messages_: Sequence[Message], /) -> None:
        if not messages_:
            return
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
        self._connection.execute(_PUT_MESSAGES, rows)

    def tally(self, session_id: str, tokenizer: str) -> Tally:
        return Tally(*self._connection.execute(_TALLY, {"wanted": session_id, "tokenizer": tokenizer}).one())

    def log(  # noqa: PLR0913  one per column
        self,
        session_id: str,
        *,
        operation: str,
        actor: Actor,
        at: datetime,
        arguments: Mapping[str, Any],
        effect: Mapping[str, Any],
    ) -> None:
        row = {
            "session_id": session_id,
            "operation": operation,
            "actor": actor.value,
            "at": to_micros(at),
            "arguments": json.dumps(arguments, ensure_ascii=False),
            "effect": json.dumps(effect, ensure_ascii=False),
        }
        self._connection.execute(_LOG, row)


def _key(scope: Scope) -> dict[str, Any]:
    return {"in_principal": scope.principal, "in_namespace": scope.namespace}


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
