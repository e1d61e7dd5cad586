"""Sessions that requests can go on in: in which state each one is, and who works on it.

It is kept in memory and bounded. After a restart, or when a session was not used for long, a resent history opens a
new one that holds the whole of it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agemem_policies.endpoint.failures import Failure

if TYPE_CHECKING:
    from agemem_mcp.domain.memory import Scope
    from agemem_policies.endpoint.asking import ClientCall

_MOST_SESSIONS = 10_000
_MOST_WAITING = 16


@dataclass(frozen=True, slots=True)
class Known:
    """A session as the last request left it."""

    session_id: str
    scope: Scope
    state: bytes | None
    """After all that was said in it; None if a request was cut off at a point that is not known."""
    waiting: tuple[ClientCall, ...] = ()
    """Calls that the client was asked to make."""
    tools: str = ""
    """Which of the client's tools the policy was told of."""
    instructions: frozenset[str] = frozenset()
    """System messages of the client that stand in it."""


class KnownSessions:
    """The sessions used last."""

    def __init__(self, most: int = _MOST_SESSIONS) -> None:
        """Remember at most so many."""
        self._most = most
        self._sessions: OrderedDict[str, Known] = OrderedDict()
        self._at: dict[bytes, list[str]] = {}
        """Sessions in each state, the one used last at the end: two conversations can begin with the same words."""

    def of(self, scope: Scope, session_id: str) -> Known | None:
        """A session by its id, within a scope."""
        known = self._sessions.get(session_id)
        return known if known is not None and known.scope == scope else None

    def in_state(self, state: bytes) -> Known | None:
        """The session used last among those that are in this state."""
        ids = self._at.get(state)
        return self._sessions[ids[-1]] if ids else None

    def note(self, known: Known) -> None:
        """Remember a session as it is now."""
        self.forget(known.session_id)
        self._sessions[known.session_id] = known
        if known.state is not None:
            self._at.setdefault(known.state, []).append(known.session_id)
        if len(self._sessions) > self._most:
            self.forget(next(iter(self._sessions)))

    def forget(self, session_id: str) -> None:
        """Forget a session."""
        known = self._sessions.pop(session_id, None)
        if known is None or known.state is None:
            return
        ids = self._at[known.state]
        ids.remove(session_id)
        if not ids:
            del self._at[known.state]


class OneAtATime:
    """Lets one request work on a session; the others wait in the order in which they came."""

    def __init__(self, most_waiting: int = _MOST_WAITING) -> None:
        """Let so many wait."""
        self._most_waiting = most_waiting
        self._busy: dict[str, deque[asyncio.Future[None]]] = {}

    def claim(self, session_id: str) -> None:
        """Begin with a session that nobody else can know yet."""
        self._busy[session_id] = deque()

    async def begin(self, session_id: str) -> None:
        """Wait for a session.

        Raises:
            Failure: too many wait for it.
        """
        waiting = self._busy.get(session_id)
        if waiting is None:
            self.claim(session_id)
            return
        if len(waiting) >= self._most_waiting:
            msg = f"{len(waiting)} requests wait for session {session_id} already. Wait for their answers."
            raise Failure(429, msg, code="rate_limit_exceeded", session=session_id)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.end(session_id)  # it came in the same moment
            raise

    def end(self, session_id: str) -> None:
        """Leave a session to the next one."""
        waiting = self._busy[session_id]
        while waiting:
            turn = waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                return
        del self._busy[session_id]
