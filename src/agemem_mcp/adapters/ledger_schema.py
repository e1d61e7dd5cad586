"""The ledger's tables, and the way there from those of older releases."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text, text

from agemem_mcp.adapters.sql_threads import Schema

_metadata = MetaData()
_EXPIRING = "expires_at IS NOT NULL"


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
        Column("follows", String),
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
    Column("writer", String),
    Column("at", BigInteger, nullable=False),
    *_state_columns(),
    Index("operations_by_memory", "principal", "namespace", "memory_id", "seq"),
    Index("operations_by_writer", "principal", "namespace", "writer", "seq"),
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
    # Of text and metadata in UTF-8, so that usage is counted without reading them.
    Column("bytes", Integer, nullable=False, server_default="0"),
    *_state_columns(),
    Index("memories_by_digest", "principal", "namespace", "digest"),
    Index("memories_by_change", "principal", "namespace", "seq"),
    Index("memories_by_follows", "principal", "namespace", "follows"),
    # Holds all that counting expired entries needs.
    Index(
        "memories_by_expiry",
        "principal",
        "namespace",
        "deleted",
        "expires_at",
        "bytes",
        sqlite_where=text(_EXPIRING),
    ),
)
scopes = Table(
    "scopes",
    _metadata,
    Column("principal", String, primary_key=True),
    Column("namespace", String, primary_key=True),
    # How many entries it ever held.
    Column("created", Integer, nullable=False),
    # Those not deleted, expired ones included, and their bytes.
    Column("entries", Integer, nullable=False, server_default="0"),
    Column("bytes", Integer, nullable=False, server_default="0"),
)
properties = Table("properties", _metadata, Column("name", String, primary_key=True), Column("value", Text))

_LIVE = "FROM memories m WHERE m.principal = scopes.principal AND m.namespace = scopes.namespace AND m.deleted = 0"
_FROM_1 = (
    "ALTER TABLE operations ADD COLUMN follows VARCHAR",
    "ALTER TABLE operations ADD COLUMN writer VARCHAR",
    "ALTER TABLE memories ADD COLUMN follows VARCHAR",
    "ALTER TABLE memories ADD COLUMN bytes INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE scopes ADD COLUMN entries INTEGER DEFAULT '0' NOT NULL",
    "ALTER TABLE scopes ADD COLUMN bytes INTEGER DEFAULT '0' NOT NULL",
    "UPDATE memories SET bytes = length(CAST(content AS BLOB)) + length(CAST(metadata AS BLOB))",
    f"UPDATE scopes SET entries = (SELECT count(*) {_LIVE}), bytes = (SELECT coalesce(sum(m.bytes), 0) {_LIVE})",  # noqa: S608  nothing from outside
    "CREATE INDEX operations_by_writer ON operations (principal, namespace, writer, seq)",
    "CREATE INDEX memories_by_follows ON memories (principal, namespace, follows)",
    f"CREATE INDEX memories_by_expiry ON memories (principal, namespace, deleted, expires_at, bytes) WHERE {_EXPIRING}",
)
SCHEMA = Schema(_metadata, version=2, migrations={1: _FROM_1})
