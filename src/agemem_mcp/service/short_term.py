"""Short-term context: open, append, insert retrieved, summarise, filter, show, restore."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agemem_mcp.domain.context import (
    Message,
    MessageKind,
    MessageState,
    Role,
    Tally,
)
from agemem_mcp.domain.memory import Actor
from agemem_mcp.domain.results import (
    AppendResult,
    ContextInfo,
    FilterResult,
    RemovedMessage,
    ShownMessage,
    ShowResult,
    SummaryResult,
)
from agemem_mcp.domain.text import preview
from agemem_mcp.errors import InvalidOperation, NotFound
from agemem_mcp.service.relevance import similarities

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agemem_mcp.domain.context import ContextWindow
    from agemem_mcp.domain.memory import Scope
    from agemem_mcp.domain.modes import FilterMode
    from agemem_mcp.domain.operations import AppendContext, FilterContext, ShowContext, SummaryContext
    from agemem_mcp.domain.ports import Clock, Embedder, SessionStore, SessionTransaction
    from agemem_mcp.service.sessions import Sessions
    from agemem_mcp.service.summarising import SummarizerChain


class ShortTermMemory:
    """The rules of short-term context over the session store."""

    def __init__(  # noqa: PLR0913  the ports it stands on
        self,
        *,
        store: SessionStore,
        sessions: Sessions,
        embedder: Embedder | None,
        summarizers: SummarizerChain,
        clock: Clock,
        filter_mode: FilterMode,
        filter_theta: float,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._embedder = embedder
        self._summarizers = summarizers
        self._clock = clock
        self._filter_mode = filter_mode
        self._filter_theta = filter_theta

    async def append(self, scope: Scope, operation: AppendContext, actor: Actor) -> AppendResult:
        """Append messages, opening a session if none is named.

        Raises:
            NotFound: unknown, expired or another caller's session.
            InvalidOperation: a policy wants to write a system message, which nothing could remove again.
        """
        if actor is Actor.POLICY and any(message.role == Role.SYSTEM for message in operation.messages):
            msg = f"{operation.name}: the role of a message must be 'user', 'assistant' or 'tool'."
            raise InvalidOperation(msg)
        new = [(Role(message.role), message.content, MessageKind.MESSAGE) for message in operation.messages]
        session_id, added, info = await self._extend(
            scope, operation.session_id, new, operation=operation.name, actor=actor, arguments={}
        )
        return AppendResult(
            session_id=session_id,
            message_ids=[message.message_id for message in added],
            tokens=[message.tokens for message in added],
            context=info,
        )

    async def insert_retrieved(  # noqa: PLR0913  one row of the record of what was done
        self,
        scope: Scope,
        session_id: str | None,
        *,
        text: str | None,
        actor: Actor,
        query: str,
        memory_ids: Sequence[str],
    ) -> tuple[str, str | None, ContextInfo]:
        """Put retrieved memories into the context as one message; nothing found adds no message.

        Returns:
            The session, the message if there is one, and how full the context is.

        Raises:
            NotFound: unknown, expired or another caller's session.
        """
        new = [] if text is None else [(Role.TOOL, text, MessageKind.RETRIEVED)]
        arguments = {"query": query, "memory_ids": list(memory_ids)}
        session_id, added, info = await self._extend(
            scope, session_id, new, operation="Retrieve_memory", actor=actor, arguments=arguments
        )
        return session_id, added[0].message_id if added else None, info

    async def summarise(self, scope: Scope, operation: SummaryContext, actor: Actor) -> SummaryResult:
        """Replace a span of the context by one summary.

        Raises:
            NotFound: unknown, expired or another caller's session.
            InvalidOperation: no session named, nothing to summarise, a summary that saves nothing, or
                messages that changed meanwhile.
        """
        session_id = _named(operation.session_id, operation.name)
        replaced = (await self._window(scope, session_id)).span(operation.span)
        summary = await self._summarizers.summarise(replaced, given=operation.summary)
        ids = [one.message_id for one in replaced]

        def work(store: SessionTransaction) -> tuple[str, ContextInfo]:
            present = self._sessions.window(store, session_id)
            if not set(ids) <= {one.message_id for one in present.messages}:
                msg = "The context changed while it was being summarised. Nothing was changed; call again."
                raise InvalidOperation(msg)
            message = Message(
                message_id=f"msg_{self._sessions.measure(store, session_id).ever + 1}",
                role=Role.TOOL,
                content=summary.text,
                created_at=self._clock.now(),
                position=replaced[0].position,
                tokens=summary.tokens,
                tokenizer=self._sessions.tokenizer,
                kind=MessageKind.SUMMARY,
            )
            gone = [replace(one, state=MessageState.SUMMARISED, replaced_by=message.message_id) for one in replaced]
            store.put_messages(session_id, [*gone, message])
            store.log(
                session_id,
                operation=operation.name,
                actor=actor,
                at=self._clock.now(),
                arguments={"span": operation.span, "method": summary.method},
                effect={
                    "replaced": ids,
                    "summary": message.message_id,
                    "tokens_before": sum(one.tokens for one in replaced),
                    "tokens_after": summary.tokens,
                },
            )
            return message.message_id, self._sessions.info(self._sessions.measure(store, session_id))

        message_id, info = await self._store.write(work)
        return SummaryResult(
            session_id=session_id,
            message_id=message_id,
            summary=summary.text,
            method=summary.method,
            replaced=ids,
            context=info,
        )

    async def filter(self, scope: Scope, operation: FilterContext, actor: Actor) -> FilterResult:
        """Take out the messages that the criteria describe; system messages stay.

        Raises:
            NotFound: unknown, expired or another caller's session.
            InvalidOperation: no session named.
            EmbeddingError: the messages could not be embedded; nothing was changed.
        """
        session_id = _named(operation.session_id, operation.name)
        window = await self._window(scope, session_id)
        candidates = [message for message in window.messages if message.role is not Role.SYSTEM]
        scores = await similarities(
            operation.criteria,
            [message.content for message in candidates],
            mode=self._filter_mode,
            embedder=self._embedder,
        )
        matched = {
            message.message_id: score
            for message, score in zip(candidates, scores, strict=True)
            if score >= self._filter_theta
        }

        def work(store: SessionTransaction) -> tuple[list[Message], ContextInfo]:
            # Those that left the context meanwhile have left it already.
            present = self._sessions.window(store, session_id)
            gone = [
                replace(message, state=MessageState.FILTERED)
                for message in present.messages
                if message.message_id in matched
            ]
            store.put_messages(session_id, gone)
            remaining = self._sessions.measure(store, session_id)
            store.log(
                session_id,
                operation=operation.name,
                actor=actor,
                at=self._clock.now(),
                arguments={"criteria": operation.criteria, "mode": self._filter_mode.value},
                effect={
                    "removed": [message.message_id for message in gone],
                    "tokens_before": present.tokens,
                    "tokens_after": remaining.tokens,
                },
            )
            return gone, self._sessions.info(remaining)

        gone, info = await self._store.write(work)
        removed = [
            RemovedMessage(
                message_id=message.message_id,
                role=message.role.value,
                preview=preview(message.content),
                similarity=round(matched[message.message_id], 4),
            )
            for message in gone
        ]
        return FilterResult(session_id=session_id, removed=removed, mode=self._filter_mode.value, context=info)

    async def show(self, scope: Scope, operation: ShowContext) -> ShowResult:
        """The messages now in the context.

        Raises:
            NotFound: unknown, expired or another caller's session.
        """
        window = await self._window(scope, operation.session_id)
        shown = [
            ShownMessage(
                message_id=message.message_id,
                role=message.role.value,
                kind=message.kind,
                content=message.content,
                tokens=message.tokens,
                created_at=message.created_at,
            )
            for message in window.messages
        ]
        return ShowResult(session_id=operation.session_id, messages=shown, context=self._sessions.info(window))

    async def restore(
        self, scope: Scope, session_id: str, message_ids: Sequence[str] | None, actor: Actor
    ) -> list[str]:
        """Bring summarised and filtered messages back, all of them or those named.

        A summary leaves the context when everything it stood for is back.

        Raises:
            NotFound: unknown, expired or another caller's session, or no such message in it.
        """

        def work(store: SessionTransaction) -> list[str]:
            self._sessions.use(store, scope, session_id)
            everything = store.messages(session_id, active_only=False)
            by_id = {message.message_id: message for message in everything}
            unknown = [one for one in message_ids or () if one not in by_id]
            if unknown:
                msg = f"Session {session_id} has no message {', '.join(unknown)}. `sessions show --all` lists them."
                raise NotFound(msg)
            wanted = message_ids or [one.message_id for one in everything if one.kind is not MessageKind.SUMMARY]
            back = [one for one in wanted if by_id[one].state is not MessageState.ACTIVE]
            for one in back:
                by_id[one] = replace(by_id[one], state=MessageState.ACTIVE)
            _retire_summaries(by_id)
            back = [one for one in back if by_id[one].state is MessageState.ACTIVE]
            store.put_messages(session_id, list(by_id.values()))
            store.log(
                session_id,
                operation="restore",
                actor=actor,
                at=self._clock.now(),
                arguments={"message_ids": list(message_ids or ())},
                effect={"restored": back},
            )
            return back

        return await self._store.write(work)

    async def purge_expired(self) -> int:
        """Forget sessions whose time has run out; returns how many."""
        return await self._store.purge_expired(self._clock.now())

    async def _extend(  # noqa: PLR0913  one row of the record of what was done
        self,
        scope: Scope,
        session_id: str | None,
        new: Sequence[tuple[Role, str, MessageKind]],
        *,
        operation: str,
        actor: Actor,
        arguments: Mapping[str, object],
    ) -> tuple[str, list[Message], ContextInfo]:
        counts = [await self._sessions.count(content) for _, content, _ in new]

        def work(store: SessionTransaction) -> tuple[str, list[Message], ContextInfo]:
            if session_id is None:
                session, before = self._sessions.mint(store, scope), Tally(0, 0, 0)
            else:
                self._sessions.use(store, scope, session := session_id)
                before = self._sessions.measure(store, session)
            now = self._clock.now()
            added = [
                Message(
                    message_id=f"msg_{ordinal}",
                    role=role,
                    content=content,
                    created_at=now,
                    position=ordinal,
                    tokens=tokens,
                    tokenizer=self._sessions.tokenizer,
                    kind=kind,
                )
                for ordinal, ((role, content, kind), tokens) in enumerate(
                    zip(new, counts, strict=True), before.ever + 1
                )
            ]
            store.put_messages(session, added)
            ids = [message.message_id for message in added]
            store.log(session, operation=operation, actor=actor, at=now, arguments=arguments, effect={"added": ids})
            return session, added, self._sessions.info(before.plus(added))

        return await self._store.write(work)

    async def _window(self, scope: Scope, session_id: str) -> ContextWindow:
        """The messages now in the context of a session, whose life this prolongs."""

        def work(store: SessionTransaction) -> ContextWindow:
            self._sessions.use(store, scope, session_id)
            return self._sessions.window(store, session_id)

        return await self._store.write(work)


def _retire_summaries(by_id: dict[str, Message]) -> None:
    """Take summaries out whose originals are all back; repeated, because summaries are summarised too."""
    settled = False
    while not settled:
        settled = True
        for summary in [one for one in by_id.values() if one.kind is MessageKind.SUMMARY]:
            originals = [one for one in by_id.values() if one.replaced_by == summary.message_id]
            back = all(one.state in (MessageState.ACTIVE, MessageState.REPLACED) for one in originals)
            if back and summary.state is not MessageState.REPLACED:
                by_id[summary.message_id] = replace(summary, state=MessageState.REPLACED)
                settled = False


def _named(session_id: str | None, operation: str) -> str:
    if session_id is None:
        msg = f"{operation} needs a session_id. Retrieve_memory opens a session and returns its id: pass that one on."
        raise InvalidOperation(msg)
    return session_id
