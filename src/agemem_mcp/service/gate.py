"""A service that is opened in the background, and awaited by those who need it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.errors import AgeMemError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from agemem_mcp.service.memory_service import MemoryService

log = structlog.get_logger(__name__)

_PROGRESS_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far opening the service has come, for those who wait."""

    text: str
    done: float = 0.0
    total: float | None = None


class ServiceGate:
    """Opens the service when first needed, and once.

    The handshake and the list of tools never wait. A call that comes too early waits here and is
    told how far things are; if opening failed, the next call tries again.
    """

    def __init__(
        self,
        open_service: Callable[[Callable[[Progress], None]], AbstractAsyncContextManager[MemoryService]],
        *,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the gate up without opening anything.

        Args:
            open_service: opens the service; is given a function to report progress to.
            prepare: slow work to do first, in a thread (imports).
        """
        self._open = open_service
        self._prepare = prepare
        self._opening: asyncio.Future[MemoryService] | None = None
        self._holder: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._opened = asyncio.Event()
        self._progress = Progress("opening the memory")

    @property
    def ready(self) -> bool:
        """Whether the service is open."""
        return (
            self._opening is not None
            and self._opening.done()
            and self._opening.exception() is None
            and not self._closing.is_set()
        )

    @property
    def failed(self) -> bool:
        """Whether the last attempt to open it failed."""
        return self._opening is not None and self._opening.done() and self._opening.exception() is not None

    @property
    def state(self) -> str:
        """``ready``, ``failed`` or what it is doing."""
        if self.failed:
            return "failed"
        return "ready" if self.ready else self._progress.text

    def start(self) -> None:
        """Begin opening, unless it is open or under way."""
        if not self._closing.is_set() and (self._opening is None or self.failed):
            self._opening = asyncio.get_running_loop().create_future()
            # One task enters and leaves the service's context, as exit stacks want.
            self._holder = asyncio.create_task(self._hold(self._opening))

    async def service(self, report: Callable[[Progress], Awaitable[None]] | None = None) -> MemoryService:
        """The open service; tells ``report`` now and then what is being waited for.

        Raises:
            AgeMemError: it could not be opened.
        """
        self.start()
        opening = self._opening
        if opening is None or self._closing.is_set():
            msg = "The server is shutting down."
            raise ConfigurationError(msg)
        while not opening.done():
            if report is not None:
                await report(self._progress)
            await asyncio.wait({opening}, timeout=_PROGRESS_INTERVAL_S)
        return opening.result()

    async def until_open(self) -> None:
        """Wait until somebody has opened the service; does not open it."""
        await self._opened.wait()

    async def close(self) -> None:
        """Close the service if it was opened."""
        self._closing.set()
        if self._holder is not None:
            await asyncio.gather(self._holder, return_exceptions=True)

    def _note(self, progress: Progress) -> None:
        """Keep what those who wait are told; ends long work (a download, a replay) once nobody waits any more.

        Raises:
            ConfigurationError: the gate is closing.
        """
        if self._closing.is_set():
            msg = "The server is shutting down."
            raise ConfigurationError(msg)
        self._progress = progress

    async def _hold(self, opening: asyncio.Future[MemoryService]) -> None:
        try:
            await asyncio.to_thread(self._prepare)
            async with self._open(self._note) as service:
                opening.set_result(service)
                self._opened.set()
                await self._closing.wait()
        except AgeMemError as error:
            log.warning("the memory could not be opened", error=str(error))
            _fail(opening, error)
        except Exception as error:  # whatever it is, those who wait must hear of it
            log.exception("the memory could not be opened")
            _fail(opening, error)


def _fail(opening: asyncio.Future[MemoryService], error: Exception) -> None:
    if not opening.done():
        opening.set_exception(error)
        opening.exception()  # looked at here, as nobody may be waiting
