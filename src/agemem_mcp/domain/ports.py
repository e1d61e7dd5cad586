"""What the service needs from the outside world, as protocols.

Adapters implement these; the service knows nothing else of stores, models, clocks or chance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from agemem_mcp.domain.context import Message, Session, Tally
    from agemem_mcp.domain.memory import (
        Actor,
        IndexedVersion,
        IndexEntry,
        MatrixND,
        MemoryEvent,
        MemoryEventKind,
        MemoryQuery,
        MemoryRecord,
        Scope,
        ScoreLists,
        Usage,
    )

T = TypeVar("T")


class Clock(Protocol):
    """Where the time comes from; fixed in tests and training. Read from several threads."""

    def now(self) -> datetime:
        """The present, with time zone UTC."""
        ...


class IdSource(Protocol):
    """Where ids and handles come from; reproducible under a seed. Asked from several threads."""

    def memory_id(self, scope: Scope, created_in_scope: int, attempt: int) -> str:
        """A new memory id.

        Args:
            scope: of the new entry.
            created_in_scope: how many entries the scope ever held, deleted ones included.
            attempt: 0 at first, one more each time the id proved taken.
        """
        ...

    def session_id(self) -> str:
        """A new session handle with at least 128 random bits."""
        ...


class Embedder(Protocol):
    """Texts to vectors."""

    @property
    def name(self) -> str:
        """The model's name; an index remembers which one it was made with."""
        ...

    @property
    def dimensions(self) -> int:
        """D."""
        ...

    async def embed(self, texts: Sequence[str]) -> MatrixND:
        """Embed texts; rows have unit length, in the order given.

        Raises:
            AssetsMissing: the model's files are not on this machine.
            EmbeddingError: the model failed.
        """
        ...


class TokenCounter(Protocol):
    """Counts tokens as one tokenizer does."""

    @property
    def name(self) -> str:
        """The tokenizer's name, shown in results."""
        ...

    @property
    def approximate(self) -> bool:
        """Whether the count is an estimate."""
        ...

    def count(self, text: str) -> int:
        """Number of tokens in ``text``, special tokens read as plain text."""
        ...


class Summarizer(Protocol):
    """Turns messages into one text."""

    @property
    def method(self) -> str:
        """How it works, shown in results."""
        ...

    async def summarise(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """Summarise messages in at most about ``max_tokens`` tokens.

        Raises:
            ProviderError: an external model failed.
        """
        ...


class MemoryIndex(Protocol):
    """Finds memories; holds nothing that the ledger could not rebuild."""

    async def apply(self, upserts: Sequence[IndexEntry], deletes: Sequence[MemoryRecord]) -> None:
        """Put the present state of entries in; applying the same twice changes nothing."""
        ...

    async def search(self, query: MemoryQuery) -> ScoreLists:
        """Find candidates within the query's scope."""
        ...

    async def flushed_seq(self) -> int:
        """The ledger position up to which everything is known to be on stable storage."""
        ...

    async def flush(self, seq: int) -> None:
        """Make everything applied so far durable and remember that it reaches ``seq``."""
        ...

    async def count(self) -> int:
        """Number of entries over all scopes."""
        ...

    def entries(self) -> AsyncIterator[list[IndexedVersion]]:
        """Which version of which entry it holds, page by page, in no particular order.

        What is put in or removed meanwhile may be among them or not.
        """
        ...

    async def clear(self) -> None:
        """Drop every entry, to be filled anew."""
        ...

    async def optimise_if_needed(self) -> None:
        """Prepare for searching what has become much; may take minutes, in which everything else goes on.

        A failure is logged; nothing is lost by it but speed.
        """
        ...

    async def successor(self, *, embedding: str, dimensions: int | None) -> MemoryIndex:
        """A new, empty index of the same ledger beside this one; closing it removes it.

        Args:
            embedding: name of the embedding model, or of its absence.
            dimensions: length of its vectors; ``None`` for an index of words alone.

        Raises:
            ConfigurationError: there is no room for one beside this index; the text says what to do.
            StoreError: there is one already.
        """
        ...

    async def replace_by(self, successor: MemoryIndex) -> None:
        """Hold from now on, durably, what the successor holds, up to where that was flushed; it counts as closed.

        Raises:
            StoreError: it could not be done, and nothing has changed.
        """
        ...

    async def close(self) -> None:
        """Release files and connections."""
        ...


class LedgerTransaction(Protocol):
    """Reads and appends within one transaction; sees what was appended before it.

    Synchronous: the work that is given it runs in the store's writing thread, off the event loop.
    """

    def head(self, scope: Scope, memory_id: str) -> MemoryRecord | None:
        """The latest state of an entry, deleted or not."""
        ...

    def head_by_digest(self, scope: Scope, digest: str) -> MemoryRecord | None:
        """The entry that is not deleted and whose content has this digest."""
        ...

    def created_in_scope(self, scope: Scope) -> int:
        """How many entries the scope ever held."""
        ...

    def last_added(self, scope: Scope, writer: str) -> tuple[str, datetime] | None:
        """The id of the entry that this writer added last, and when; None if it never added one."""
        ...

    def usage(self, scope: Scope, now: datetime) -> Usage:
        """What the scope's entries take up that are neither deleted nor expired at ``now``."""
        ...

    def append(  # noqa: PLR0913  one per column
        self,
        kind: MemoryEventKind,
        record: MemoryRecord,
        *,
        digest: str,
        actor: Actor,
        session_id: str | None,
        writer: str | None = None,
    ) -> MemoryEvent:
        """Append one event; its record becomes the head.

        Args:
            kind: what was done.
            record: the entry's state after it.
            digest: of the record's content.
            actor: who did it.
            session_id: on whose behalf.
            writer: whose successive entries belong together.
        """
        ...


class LedgerView(Protocol):
    """Reads of one state of the ledger; synchronous, as :class:`LedgerTransaction`."""

    def heads(self, scope: Scope, memory_ids: Collection[str]) -> dict[str, MemoryRecord]:
        """The latest states of entries, deleted ones included; unknown ids are left out."""
        ...

    def neighbours(self, scope: Scope, memory_ids: Collection[str]) -> dict[str, tuple[str | None, str | None]]:
        """What the same writer stored just before and just after each entry, live or not; unknown ids are left out."""
        ...


class Ledger(Protocol):
    """The append-only truth about long-term memory."""

    async def write(self, work: Callable[[LedgerTransaction], T]) -> T:
        """Run ``work`` in a transaction; when this returns, it is on stable storage.

        ``work`` runs in another thread and must not touch the event loop. Concurrent calls run one
        after the other and may share one commit. An error of one call undoes that call alone.
        """
        ...

    async def read(self, work: Callable[[LedgerView], T]) -> T:
        """Run ``work`` on one state of the ledger, in another thread, beside whoever writes.

        Handing work over costs more than a statement does: what belongs together is handed over at once.
        """
        ...

    async def heads(self, scope: Scope, memory_ids: Collection[str]) -> dict[str, MemoryRecord]:
        """See :meth:`LedgerView.heads`."""
        ...

    async def usage(self, scope: Scope) -> Usage:
        """What the scope's entries take up that are neither deleted nor expired."""
        ...

    async def list_heads(self, scope: Scope, *, limit: int | None, include_deleted: bool) -> list[MemoryRecord]:
        """Entries of a scope, newest change first."""
        ...

    async def history(self, scope: Scope, memory_id: str) -> list[MemoryEvent]:
        """All events of an entry, oldest first."""
        ...

    async def events(self, scope: Scope) -> list[MemoryEvent]:
        """All events of a scope, oldest first."""
        ...

    async def last_seq(self) -> int:
        """The position of the newest event, 0 when there is none."""
        ...

    async def changed_since(self, seq: int, *, limit: int) -> tuple[list[MemoryRecord], int]:
        """Heads of entries changed after ``seq`` and the position the batch reaches."""
        ...


class SessionTransaction(Protocol):
    """Reads and writes of one session within one transaction; synchronous, as :class:`LedgerTransaction`."""

    def session(self, scope: Scope, session_id: str) -> Session | None:
        """The scope's session with this handle, expired or not."""
        ...

    def add_session(self, session: Session) -> bool:
        """Store a new session; False, and nothing done, if its handle is taken in any scope."""
        ...

    def keep_session(self, session: Session) -> None:
        """Store when a session was last used and when it expires."""
        ...

    def messages(self, session_id: str, *, active_only: bool = True) -> list[Message]:
        """Messages by position."""
        ...

    def put_messages(self, session_id: str, messages: Sequence[Message], /) -> None:
        """Insert messages, or replace those with the same id."""
        ...

    def tally(self, session_id: str, tokenizer: str) -> Tally:
        """How much the session holds, read without its texts."""
        ...

    def log(  # noqa: PLR0913  one per column
        self,
        session_id: str,
        *,
        operation: str,
        actor: Actor,
        at: datetime,
        arguments: Mapping[str, Any],
        effect: Mapping[str, Any],
    ) -> None:
        """Record a context operation: what was asked, by whom, and what it did."""
        ...


class SessionStore(Protocol):
    """Short-term contexts: sessions, their messages, and what was done to them."""

    async def write(self, work: Callable[[SessionTransaction], T]) -> T:
        """Run ``work`` in a transaction, undone on an error.

        ``work`` runs in another thread and must not touch the event loop; concurrent calls run one
        after the other.
        """
        ...

    async def read(self, work: Callable[[SessionTransaction], T]) -> T:
        """Run ``work`` that only reads, on one state of the store, beside whoever writes."""
        ...

    async def list_sessions(self, scope: Scope, *, now: datetime, limit: int | None) -> list[Session]:
        """Sessions that have not expired, last used first."""
        ...

    async def operations(self, session_id: str) -> list[dict[str, Any]]:
        """The recorded context operations of a session, oldest first."""
        ...

    async def purge_expired(self, now: datetime) -> int:
        """Delete expired sessions with their messages; returns how many."""
        ...
