"""The threads that statements run in: one that writes, with group commit, and a few that read.

A statement costs less than handing it to a thread does, so a whole piece of work is handed over at once.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from agemem_mcp.adapters.sql import check_schema, create_engine, prepare_schema, translated
from agemem_mcp.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy import Connection, Engine, MetaData

    from agemem_mcp.adapters.sql import Synchronous

T = TypeVar("T")

_READERS = 2


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of a database, and the way there from older versions of them."""

    metadata: MetaData
    version: int
    migrations: Mapping[int, Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One caller's work."""

    work: Callable[[Connection], Any]
    committed: Callable[[Any], None] | None
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a piece."""

    piece: _Piece
    result: Any = None
    error: BaseException | None = None


class Writer:
    """A thread that runs pieces of work one after the other, and commits those that wait together at once.

    One full commit costs milliseconds, so under load many callers share it. Each piece has its own
    savepoint: an error of one undoes that one alone.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        """Start the thread; the running event loop is the one that callers wait in."""
        self._engine = engine
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[_Piece | None] = SimpleQueue()
        self._closed = False
        # A daemon: whoever leaves without closing must not hang, and a commit that is cut off is undone at the start.
        self._thread = Thread(target=self._serve, name=f"write {path.name}", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """Run ``work`` on the writing connection; returns when its commit is on stable storage.

        A caller that is cancelled while waiting leaves its work in the queue: it is done wholly.

        Args:
            work: runs in the writing thread.
            committed: called in the event loop with the result once it is committed, also when the caller is gone.

        Raises:
            StoreError: the database failed, or was closed before.
        """
        if self._closed:
            msg = f"The database {self._path} has been closed. Nothing was changed."
            raise StoreError(msg)
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(_Piece(work, committed, future))
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Finish what waits and end the thread."""
        self._closed = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        last = False
        while not last:
            batch, last = self._next_batch()
            if batch:
                self._report(self._carry_out(batch))

    def _next_batch(self) -> tuple[list[_Piece], bool]:
        """Everything that waits, and whether it is the last."""
        batch: list[_Piece] = []
        piece = self._waiting.get()
        while piece is not None:
            batch.append(piece)
            try:
                piece = self._waiting.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _carry_out(self, batch: list[_Piece]) -> list[_Outcome]:
        try:
            with translated(self._path), self._engine.begin() as connection:
                if len(batch) == 1:
                    # Alone it needs no savepoint: its error undoes the whole transaction, which is its own.
                    return [_Outcome(batch[0], batch[0].work(connection))]
                return [self._attempt(connection, piece) for piece in batch]
        except BaseException as error:  # noqa: BLE001  a thread that ended would leave its callers waiting for ever
            return [_Outcome(piece, error=error) for piece in batch]

    def _attempt(self, connection: Connection, piece: _Piece) -> _Outcome:
        savepoint = connection.begin_nested()
        try:
            with translated(self._path):
                result = piece.work(connection)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the caller's to hear of, and nobody else's
            try:
                savepoint.rollback()
            except SQLAlchemyError:
                # SQLite gave the whole transaction up (a full disk): then nobody's work was done.
                raise error from None
            return _Outcome(piece, error=error)
        savepoint.commit()
        return _Outcome(piece, result)

    def _report(self, outcomes: list[_Outcome]) -> None:
        try:
            self._loop.call_soon_threadsafe(_settle, outcomes)
        except RuntimeError:
            # The loop has ended, and with it everyone who waited; what was committed stays.
            self._closed = True


def _settle(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        future, error = outcome.piece.future, outcome.error
        if error is None and outcome.piece.committed is not None:
            outcome.piece.committed(outcome.result)
        if future.cancelled():
            continue
        if error is None:
            future.set_result(outcome.result)
            continue
        # A future takes no StopIteration: an iterator of the work's that ended too early.
        future.set_exception(RuntimeError(str(error)) if isinstance(error, StopIteration) else error)
        # A cancelled caller never looks at it; that is no fault to report.
        future.exception()


class Database:
    """A SQLite file with its threads."""

    def __init__(self, path: Path, reader: Engine, writer: Engine | None) -> None:
        self._path = path
        self._engines = [reader] if writer is None else [reader, writer]
        self._reader = reader
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix=f"read {path.name}")
        self._writer = None if writer is None else Writer(writer, path)

    @classmethod
    async def open(cls, path: Path, schema: Schema, *, synchronous: Synchronous, read_only: bool) -> Database:
        """Open the file, creating or migrating it unless ``read_only``.

        Raises:
            StoreError: the file is damaged, locked, read-only or missing.
            ConfigurationError: the file was made by a newer release.
        """
        return cls(path, *await asyncio.to_thread(_engines, path, schema, synchronous, read_only=read_only))

    async def close(self) -> None:
        """Finish waiting commits and release threads and connections."""
        if self._writer is not None:
            await self._writer.close()
        await asyncio.to_thread(self._readers.shutdown)
        # The writer last: only it can fold the write-ahead log into the file, which is then whole by itself.
        for engine in self._engines:
            await asyncio.to_thread(engine.dispose)

    async def write(self, work: Callable[[Connection], T], committed: Callable[[T], None] | None = None) -> T:
        """See :meth:`Writer.run`."""
        if self._writer is None:
            msg = f"{self._path.name} was opened read-only"
            raise RuntimeError(msg)
        return await self._writer.run(work, committed)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a reading thread, on one state of the database."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def integrity_problems(self) -> list[str]:
        """What SQLite's own check finds; reads the whole file."""
        found = await self.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalars().all())
        return [str(problem) for problem in found if problem != "ok"]

    def _read(self, work: Callable[[Connection], T]) -> T:
        with translated(self._path), self._reader.connect() as connection:
            return work(connection)


def _engines(path: Path, schema: Schema, synchronous: Synchronous, *, read_only: bool) -> tuple[Engine, Engine | None]:
    reader = create_engine(path, synchronous=synchronous, connections=_READERS, read_only=True)
    if read_only:
        try:
            check_schema(reader, path, version=schema.version)
        except BaseException:
            reader.dispose()
            raise
        return reader, None
    writer = create_engine(path, synchronous=synchronous, connections=1)
    try:
        prepare_schema(writer, path, metadata=schema.metadata, version=schema.version, migrations=schema.migrations)
    except BaseException:
        writer.dispose()
        raise
    return reader, writer
