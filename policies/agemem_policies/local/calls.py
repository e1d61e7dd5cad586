"""What a local model is asked, from the event loop's side and the worker thread's: no torch yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agemem_mcp.errors import AgeMemError
    from agemem_policies.policy import Completion, OnText, Prompt


@dataclass(frozen=True, slots=True)
class Options:
    """How a local model generates; ``LocalPolicy`` explains them."""

    max_tokens: int
    temperature: float
    top_p: float
    device: str
    dtype: str
    seed: int | None
    window: int | None
    max_rows: int


@dataclass(slots=True)
class Call:
    """One turn that somebody waits for.

    The worker thread tells pieces of text and then one answer; the caller takes them up on its event loop, so that
    ``on_text`` runs there, in order, and what it raises reaches the caller.
    """

    prompt: Prompt
    streams: bool
    """Whether anybody listens to the pieces."""
    abandoned: bool = False
    """Nobody waits any longer. Written by either side, read by the worker between two tokens."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _told: asyncio.Queue[str | Completion | AgeMemError] = field(
        default_factory=asyncio.Queue["str | Completion | AgeMemError"]
    )

    async def outcome(self, on_text: OnText | None) -> Completion:
        """Wait for the answer, passing on pieces of text until then."""
        try:
            while isinstance(told := await self._told.get(), str):
                if on_text is not None:
                    on_text(told)
        finally:
            self.abandoned = True
        if isinstance(told, Exception):
            raise told
        return told

    def tell(self, piece: str) -> None:
        """Pass on a piece of text (worker thread)."""
        if piece and self.streams:
            self._put(piece)

    def answer(self, completion: Completion) -> None:
        """Give the answer (worker thread)."""
        self._put(completion)

    def fail(self, error: AgeMemError) -> None:
        """Say why there is none (worker thread)."""
        own = type(error)(str(error))  # calls that fail together must not share one: raising an error changes it
        own.__cause__ = error.__cause__
        self._put(own)

    def _put(self, told: str | Completion | AgeMemError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._told.put_nowait, told)
        except RuntimeError:  # the loop is closed: whoever waited is gone
            self.abandoned = True
