"""The event loop in a thread of its own, so that the main thread can read lines and be interrupted."""

from __future__ import annotations

import asyncio
from concurrent.futures import wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from anyio.from_thread import BlockingPortal

T = TypeVar("T")


class Background:
    """Has work done in the loop's thread while this one waits."""

    def __init__(self, portal: BlockingPortal) -> None:
        """Use a loop that runs already."""
        self._portal = portal

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work and give its result.

        Raises:
            KeyboardInterrupt: pressed meanwhile. The work was cancelled and has ended.
        """
        begun: list[asyncio.Task[T]] = []

        async def carried_out() -> asyncio.Task[T]:
            # A task of asyncio's, cancelled once: what an agent does before it ends must not be cancelled again.
            begun.append(asyncio.ensure_future(work()))
            await asyncio.wait(begun)
            return begun[0]

        future = self._portal.start_task_soon(carried_out)
        try:
            return future.result().result()
        except KeyboardInterrupt:
            self._portal.call(lambda: [task.cancel() for task in begun])
            wait([future])
            raise
