"""The one thread that a shard is used from."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from agemem_mcp.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

T = TypeVar("T")


class Worker:
    """Does one thing after the other, in the order asked for; changes can be held back meanwhile."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="memory-index")
        self._held: asyncio.Future[None] | None = None
        self.closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do something without waiting for it.

        Raises:
            StoreError: closed.
        """
        if self.closed:
            msg = "The memory index is closed."
            raise StoreError(msg)
        return self._thread.submit(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Do something; once begun it is done even if the caller gives up.

        A queued change that was taken back would be counted as applied by a later flush.

        Raises:
            StoreError: closed.
        """
        return await asyncio.shield(asyncio.wrap_future(self.submit(work)))

    async def change(self, work: Callable[[], T]) -> T:
        """Like :meth:`run`, for what changes the shard's files.

        Raises:
            StoreError: closed.
        """
        while self._held is not None:
            await asyncio.shield(self._held)
        return await self.run(work)

    @asynccontextmanager
    async def changes_held(self) -> AsyncGenerator[None]:
        """Let searches go on, but no change begin."""
        while self._held is not None:
            await asyncio.shield(self._held)
        held = self._held = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            self._held = None
            held.set_result(None)

    async def close(self, last: Callable[[], None]) -> None:
        """Do what was asked for so far, then ``last``, then nothing more. Closing twice is allowed."""
        if self.closed:
            return
        closing = self.submit(last)
        self.closed = True
        self._thread.shutdown(wait=False)
        await asyncio.wrap_future(closing)

    def stop(self) -> None:
        """Take no more work."""
        self.closed = True
        self._thread.shutdown(wait=False)
