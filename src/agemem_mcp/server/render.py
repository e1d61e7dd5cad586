"""Results as short text for a model to read; the structured part of a tool result is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agemem_mcp.domain.results import (
    AddResult,
    AppendResult,
    ContextInfo,
    DeleteResult,
    FilterResult,
    OperationResult,
    RetrieveResult,
    ShowResult,
    SummaryResult,
    UpdateResult,
)
from agemem_mcp.domain.text import preview
from agemem_mcp.service.memory_service import retrieved_text

if TYPE_CHECKING:
    from datetime import datetime

    from agemem_mcp.domain.memory import MemoryRecord

ADVICE_ON_SIMILAR = "Close to existing memories; update one of them instead if this replaces it:"


def as_text(result: OperationResult) -> str:  # noqa: PLR0911  one return per result
    """What a model needs to go on: ids, what was found or changed, and how full the context is."""
    match result:
        case AddResult():
            return _added(result)
        case UpdateResult():
            return f"Updated {result.memory_id} (version {result.version}). Before: {preview(result.previous_content)}"
        case DeleteResult():
            return f"Deleted {result.memory_id}."
        case RetrieveResult():
            return _retrieved(result)
        case SummaryResult():
            # A caller knows its own summary.
            text = "your summary." if result.method == "caller" else f"a summary ({result.method}):\n{result.summary}"
            return (
                f"Replaced {_count(len(result.replaced), 'message')} by {text}\n"
                f"{_context(result.session_id, result.context)}"
            )
        case FilterResult():
            lines = [f"- {one.message_id} ({one.role}) {one.preview}" for one in result.removed]
            head = f"Removed {_count(len(result.removed), 'message')}" + (":" if lines else ": none is about that.")
            return "\n".join([head, *lines, _context(result.session_id, result.context)])
        case AppendResult():
            return (
                f"Appended {_count(len(result.message_ids), 'message')}. {_context(result.session_id, result.context)}"
            )
        case ShowResult():
            lines = [f"[{one.message_id}] {one.role}: {one.content}" for one in result.messages]
            return "\n".join([*lines, _context(result.session_id, result.context)])


def record_fields(record: MemoryRecord) -> dict[str, Any]:
    """A memory in its present state as JSON."""
    return {
        "memory_id": record.memory_id,
        "content": record.content,
        "memory_type": record.memory_type,
        "metadata": record.metadata,
        "version": record.version,
        "created_at": iso(record.created_at),
        "updated_at": iso(record.updated_at),
        "expires_at": None if record.expires_at is None else iso(record.expires_at),
        "deleted": record.deleted,
    }


def iso(moment: datetime) -> str:
    """A time as the tools write it."""
    return moment.isoformat().replace("+00:00", "Z")


def _added(result: AddResult) -> str:
    head = f"Already stored as {result.memory_id}." if result.duplicate else f"Stored as {result.memory_id}."
    if not result.similar:
        return head
    lines = [f"- {one.memory_id} ({one.score:.2f}) {preview(one.content, 160)}" for one in result.similar]
    return "\n".join([head, ADVICE_ON_SIMILAR, *lines])


def _retrieved(result: RetrieveResult) -> str:
    how = " (by words alone: no embedding model is configured)" if result.search == "lexical" else ""
    head = f"{_count(len(result.memories), 'memory', 'memories')} found{how}" + (":" if result.memories else ".")
    found = [retrieved_text(result.memories)] if result.memories else []
    return "\n".join([head, *found, _context(result.session_id, result.context)])


def _context(session_id: str, info: ContextInfo) -> str:
    about = "about " if info.approximate else ""
    text = (
        f"Session {session_id}: {_count(info.message_count, 'message')}, "
        f"{about}{info.tokens:,} of {info.budget_tokens:,} tokens."
    )
    return f"{text} {info.warning}" if info.warning else text


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
