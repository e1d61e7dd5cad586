"""What the ledger and the session store share: SQLite engines, times, errors, schema versions."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import structlog
from sqlalchemy import URL, Engine, MetaData, event
from sqlalchemy import create_engine as create_sql_engine
from sqlalchemy.exc import SQLAlchemyError

from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_TIMEOUT_MS = 10_000
Synchronous = Literal["FULL", "NORMAL"]


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970, UTC: exact and ordered, in SQLite and PostgreSQL alike."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_micros(micros: int) -> datetime:
    """The inverse of :func:`to_micros`."""
    return _EPOCH + timedelta(microseconds=micros)


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Turn database errors into :class:`StoreError` that say what to do."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise StoreError(_explain(path, str(error))) from error


def _explain(path: Path, text: str) -> str:
    lowered = text.lower()
    if "malformed" in lowered or "not a database" in lowered:
        return (
            f"The database {path} is damaged. It was left as it is: move it away and restore a backup, or recover it "
            f"with `sqlite3 {path.name} .recover`."
        )
    if "disk is full" in lowered or "disk i/o error" in lowered:
        return f"The disk that holds {path} is full or failing. Nothing was changed. Free some space and try again."
    if "readonly" in lowered or "unable to open" in lowered:
        return f"{path} cannot be opened or written. Check its folder and permissions, or choose another --data-dir."
    if "locked" in lowered:
        return f"{path} is locked by another program. Close that program and try again."
    return f"The database {path} failed: {text.splitlines()[0]}"


def create_engine(path: Path, *, synchronous: Synchronous, connections: int, read_only: bool = False) -> Engine:
    """An engine on a SQLite file in WAL mode.

    The driver's own transaction control is off: connections of a writing engine begin with
    ``BEGIN IMMEDIATE``, so a transaction never fails half-way because another one came first.
    """
    url = (
        URL.create("sqlite+pysqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
        if read_only
        else URL.create("sqlite+pysqlite", database=str(path))
    )
    engine = create_sql_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401  the driver's own wrapper
        connection.isolation_level = None
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:  # noqa: ANN401  as above
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def check_schema(engine: Engine, path: Path, *, version: int) -> None:
    """Make sure that a file to be read has the present schema.

    Raises:
        ConfigurationError: it has an older or a newer one.
        StoreError: the file cannot be read.
    """
    with translated(path), engine.connect() as connection:
        found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if found > version:
        raise _newer(path, found, version)
    if found < version:
        msg = f"{path} was written by an older release. Start `agemem-mcp serve` once: it brings it up to date."
        raise ConfigurationError(msg)


def _newer(path: Path, found: int, version: int) -> ConfigurationError:
    return ConfigurationError(
        f"{path} was written by a newer release (schema {found}; this one knows {version}). "
        f"Nothing was changed. Upgrade agemem-mcp."
    )


def prepare_schema(
    engine: Engine,
    path: Path,
    *,
    metadata: MetaData,
    version: int,
    migrations: Mapping[int, Sequence[str]],
) -> None:
    """Create the tables, or bring an older schema up to date after a backup.

    Args:
        engine: a writing engine on ``path``.
        path: the database file.
        metadata: the tables of the present version.
        version: the present version, kept in ``PRAGMA user_version``.
        migrations: statements that lead from each older version to the next.

    Raises:
        ConfigurationError: the file was made by a newer release.
        StoreError: the file cannot be read or written.
    """
    with translated(path):
        with engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
        if found > version:
            raise _newer(path, found, version)
        if tables and found < version:
            if found not in migrations:
                msg = f"{path} was not made by agemem-mcp. It was left as it is: move it, or choose another --data-dir."
                raise ConfigurationError(msg)
            backup = _back_up(engine, path, found)
            log.info("migrating", database=str(path), schema=found, to=version, backup=str(backup))
        with engine.begin() as connection:
            if tables:
                for step in range(found, version):
                    for statement in migrations[step]:
                        connection.exec_driver_sql(statement)
            else:
                metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")


def _back_up(engine: Engine, path: Path, found: int) -> Path:
    """Copy the whole database, whatever is still in its write-ahead log included."""
    backup = path.with_name(f"{path.name}.backup-schema-{found}")
    serial = 1
    while backup.exists():
        serial += 1
        backup = path.with_name(f"{path.name}.backup-schema-{found}.{serial}")
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("VACUUM INTO ?", (str(backup),))
        connection.exec_driver_sql("BEGIN")
    return backup
