"""Opening and naming sessions, and measuring how full their contexts are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agemem_mcp.domain.context import WARNING_SHARE, ContextWindow, Session, SessionLives, in_words
from agemem_mcp.domain.results import ContextInfo
from agemem_mcp.domain.text import preview
from agemem_mcp.errors import NotFound

if TYPE_CHECKING:
    from agemem_mcp.domain.context import Tally
    from agemem_mcp.domain.memory import Scope
    from agemem_mcp.domain.ports import Clock, IdSource, SessionTransaction, TokenCounter

_LONG_TEXT = 4_000
"""Characters from which on tokens are counted off the event loop."""


@dataclass(frozen=True, slots=True)
class SessionRules:
    """The numbers sessions live by."""

    budget_tokens: int
    lives: SessionLives


class Sessions:
    """Sessions within a transaction of the session store."""

    def __init__(self, *, tokens: TokenCounter, clock: Clock, ids: IdSource, rules: SessionRules) -> None:
        self._tokens = tokens
        self._clock = clock
        self._ids = ids
        self._rules = rules

    @property
    def tokenizer(self) -> str:
        """What tokens are counted with."""
        return self._tokens.name

    def mint(self, store: SessionTransaction, scope: Scope) -> str:
        """Open a session; returns its handle."""
        now = self._clock.now()
        while True:
            session = Session(
                scope=scope,
                session_id=self._ids.session_id(),
                created_at=now,
                used_at=now,
                named=False,
                expires_at=now + self._rules.lives.unnamed,
            )
            # Under a seed the handles of an earlier run come again, and some of them are in use.
            if store.add_session(session):
                return session.session_id

    def use(self, store: SessionTransaction, scope: Scope, session_id: str) -> None:
        """Make sure that the session is the caller's, and prolong its life: naming it shows that it is in use.

        Raises:
            NotFound: unknown, expired or another caller's session; the text is the same for all three.
        """
        now = self._clock.now()
        session = store.session(scope, session_id)
        if session is None or session.expires_at <= now:
            lives = self._rules.lives
            msg = (
                f"There is no session {preview(session_id, 60)!r}, or it has expired (after {in_words(lives.used)} "
                f"without use, {in_words(lives.unnamed)} if it was never named). Call Retrieve_memory "
                f"without session_id for a new one."
            )
            raise NotFound(msg)
        store.keep_session(replace(session, used_at=now, named=True, expires_at=now + self._rules.lives.used))

    def window(self, store: SessionTransaction, session_id: str) -> ContextWindow:
        """The messages now in the context, all counted with one tokenizer."""
        messages = store.messages(session_id)
        # Another tokenizer may have been configured since they were counted.
        stale = [message for message in messages if message.tokenizer != self._tokens.name]
        if stale:
            recounted = {
                one.message_id: one.counted(self._tokens.count(one.content), self._tokens.name) for one in stale
            }
            store.put_messages(session_id, list(recounted.values()))
            messages = [recounted.get(message.message_id, message) for message in messages]
        return ContextWindow(tuple(messages))

    async def count(self, text: str) -> int:
        """Tokens of a text."""
        if len(text) < _LONG_TEXT:
            return self._tokens.count(text)
        return await asyncio.to_thread(self._tokens.count, text)

    def measure(self, store: SessionTransaction, session_id: str) -> Tally:
        """How much the session holds, counted with the present tokenizer."""
        tally = store.tally(session_id, self._tokens.name)
        if tally.stale:
            self.window(store, session_id)
            tally = store.tally(session_id, self._tokens.name)
        return tally

    def info(self, context: ContextWindow | Tally) -> ContextInfo:
        """How full a context is, with a warning from 80 % of the budget on."""
        share = context.tokens / self._rules.budget_tokens
        warning = None
        if share >= WARNING_SHARE:
            warning = (
                f"The context holds {share:.0%} of its budget of {self._rules.budget_tokens:,} tokens. "
                f"Call Summary_context or Filter_context."
            )
        return ContextInfo(
            message_count=context.active,
            tokens=context.tokens,
            budget_tokens=self._rules.budget_tokens,
            tokenizer=self._tokens.name,
            approximate=self._tokens.approximate,
            warning=warning,
        )
