"""Whose operation is next: a client that asks for much waits for its own, not the others for it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable


class Turns:
    """Lets a number of operations run at once, and takes the next from each waiting caller in rotation."""

    def __init__(self, width: int = 16) -> None:
        """Set it up.

        Args:
            width: operations that run at once; they share batches of embedding and commits to disk.
        """
        self._free = width
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    async def begin(self, caller: Hashable) -> None:
        """Wait for a turn; it lasts until :meth:`end` is called."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.end()  # it came in the same moment
            raise

    def end(self) -> None:
        """Give a turn back."""
        while self._waiting:
            caller, queue = self._waiting.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._waiting[caller] = queue
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
