"""What the ledger and the session store share: SQLite engines, schema versions, group commit."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

import structlog
from sqlalchemy import URL, MetaData, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from agemem_mcp.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")
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


def create_engine(path: Path, *, synchronous: Synchronous, connections: int, read_only: bool = False) -> AsyncEngine:
    """An engine on a SQLite file in WAL mode.

    The driver's own transaction control is off: connections of a writing engine begin with
    ``BEGIN IMMEDIATE``, so a transaction never fails half-way because another one came first.
    """
    url = (
        URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
        if read_only
        else URL.create("sqlite+aiosqlite", database=str(path))
    )
    engine = create_async_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": _BUSY_TIMEOUT_MS / 1000},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401  the driver's own wrapper
        connection.isolation_level = None
        cursor = connection.cursor()
        if not read_only:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:  # noqa: ANN401  as above
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


async def check_schema(engine: AsyncEngine, path: Path, *, version: int) -> None:
    """Make sure that a file to be read has the present schema.

    Raises:
        ConfigurationError: it has an older or a newer one.
        StoreError: the file cannot be read.
    """
    with translated(path):
        async with engine.connect() as connection:
            found = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
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


async def prepare_schema(
    engine: AsyncEngine,
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
        async with engine.connect() as connection:
            found = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
            tables = (await connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")).scalar_one()
        if found > version:
            raise _newer(path, found, version)
        if tables and found < version:
            if found not in migrations:
                msg = f"{path} was not made by agemem-mcp. It was left as it is: move it, or choose another --data-dir."
                raise ConfigurationError(msg)
            backup = await _back_up(engine, path, found)
            log.info("migrating", database=str(path), schema=found, to=version, backup=str(backup))
        async with engine.begin() as connection:
            if tables:
                for step in range(found, version):
                    for statement in migrations[step]:
                        await connection.exec_driver_sql(statement)
            else:
                await connection.run_sync(metadata.create_all)
            await connection.exec_driver_sql(f"PRAGMA user_version = {version}")


async def _back_up(engine: AsyncEngine, path: Path, found: int) -> Path:
    """Copy the whole database, whatever is still in its write-ahead log included."""
    backup = path.with_name(f"{path.name}.backup-schema-{found}")
    serial = 1
    while backup.exists():
        serial += 1
        backup = path.with_name(f"{path.name}.backup-schema-{found}.{serial}")
    async with engine.connect() as connection:
        await connection.exec_driver_sql("COMMIT")
        await connection.exec_driver_sql("VACUUM INTO ?", (str(backup),))
        await connection.exec_driver_sql("BEGIN")
    return backup


class GroupCommitter:
    """Runs pieces of work one after the other, and commits those that wait together at once.

    One full commit costs milliseconds, so under load many callers share it. Each piece has its own
    savepoint: an error of one undoes that one alone.
    """

    def __init__(self, engine: AsyncEngine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._waiting: list[tuple[Callable[[AsyncConnection], Awaitable[Any]], asyncio.Future[Any]]] = []
        self._drainer: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run ``work`` on the writing connection; returns when its commit is on stable storage.

        A caller that is cancelled while waiting leaves its work in the queue: it is done wholly.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Finish what waits."""
        if self._drainer is not None:
            await self._drainer

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            outcomes: list[tuple[asyncio.Future[Any], Any, Exception | None]] = []
            try:
                with translated(self._path):
                    async with self._engine.begin() as connection:
                        if len(batch) == 1:
                            # Alone it needs no savepoint: its error undoes the whole transaction, which is its own.
                            work, future = batch[0]
                            outcomes.append((future, await work(connection), None))
                        else:
                            for work, future in batch:
                                outcomes.append((future, *await self._attempt(connection, work)))
            except Exception as error:  # noqa: BLE001  as in _attempt
                outcomes = [(future, None, error) for _, future in batch]
            except BaseException:
                for _, future in batch:
                    future.cancel()
                raise
            for future, result, error in outcomes:
                if future.cancelled():
                    continue
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
                    # A cancelled caller never looks at it; that is no fault to report.
                    future.exception()

    async def _attempt(
        self, connection: AsyncConnection, work: Callable[[AsyncConnection], Awaitable[Any]]
    ) -> tuple[Any, Exception | None]:
        savepoint = await connection.begin_nested()
        try:
            with translated(self._path):
                result = await work(connection)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the caller's to hear of, and nobody else's
            try:
                await savepoint.rollback()
            except SQLAlchemyError:
                # SQLite gave the whole transaction up (a full disk): then nobody's work was done.
                raise error from None
            return None, error
        await savepoint.commit()
        return result, None
