"""Results as a model reads them: short, with the ids it needs to go on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agemem_mcp.domain.context import MessageKind
from agemem_mcp.domain.results import (
    AddResult,
    AppendResult,
    ContextInfo,
    DeleteResult,
    FilterResult,
    RemovedMessage,
    RetrievedMemory,
    RetrieveResult,
    ShownMessage,
    ShowResult,
    SimilarMemory,
    SummaryResult,
    UpdateResult,
)
from agemem_mcp.server.render import as_text

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG = "word " * 100


def info(**changed: Any) -> ContextInfo:
    """How full a context is."""
    given = ContextInfo(message_count=2, tokens=1234, budget_tokens=8192, tokenizer="o200k_base", approximate=False)
    return given.model_copy(update=changed)


CONTEXT = "Session ctx_1: 2 messages, 1,234 of 8,192 tokens."


def hit(memory_id: str, content: str, score: float) -> RetrievedMemory:
    """A retrieved memory."""
    return RetrievedMemory(
        memory_id=memory_id,
        content=content,
        memory_type=None,
        metadata={},
        score=score,
        found_by=["dense"],
        created_at=NOW,
        updated_at=NOW,
    )


def removed(number: int) -> RemovedMessage:
    """A removed message."""
    return RemovedMessage(message_id=f"msg_{number}", role="tool", preview="Weather", similarity=0.9)


CASES: dict[str, tuple[Any, str]] = {
    "add": (
        AddResult(memory_id="mem_1", content=LONG, created_at=NOW, duplicate=False, similar=[]),
        "Stored as mem_1.",
    ),
    "add a duplicate": (
        AddResult(memory_id="mem_1", content="x", created_at=NOW, duplicate=True, similar=[]),
        "Already stored as mem_1.",
    ),
    "add beside a close one": (
        AddResult(
            memory_id="mem_2",
            content="x",
            created_at=NOW,
            duplicate=False,
            similar=[SimilarMemory(memory_id="mem_1", content="Ana\nlikes tea", score=0.756)],
        ),
        (
            "Stored as mem_2.\n"
            "Close to existing memories; update one of them instead if this replaces it:\n"
            "- mem_1 (0.76) Ana likes tea"
        ),
    ),
    "update": (
        UpdateResult(memory_id="mem_1", version=3, previous_content="Ana likes tea", updated_at=NOW),
        "Updated mem_1 (version 3). Before: Ana likes tea",
    ),
    "delete": (DeleteResult(memory_id="mem_1", deleted=True), "Deleted mem_1."),
    "retrieve": (
        RetrieveResult(
            session_id="ctx_1",
            message_id="msg_1",
            memories=[hit("mem_1", "Ana likes tea", 0.5), hit("mem_2", "Bo\ndrives", 0.123)],
            search="hybrid",
            context=info(),
        ),
        f"2 memories found:\n[mem_1] (2026-01-01) Ana likes tea\n[mem_2] (2026-01-01) Bo\ndrives\n{CONTEXT}",
    ),
    "retrieve by words": (
        RetrieveResult(
            session_id="ctx_1", message_id="msg_1", memories=[hit("mem_1", "tea", 1)], search="lexical", context=info()
        ),
        "1 memory found (by words alone: no embedding model is configured):\n" + f"[mem_1] (2026-01-01) tea\n{CONTEXT}",
    ),
    "retrieve nothing": (
        RetrieveResult(session_id="ctx_1", message_id=None, memories=[], search="hybrid", context=info()),
        f"0 memories found.\n{CONTEXT}",
    ),
    "summary": (
        SummaryResult(
            session_id="ctx_1", message_id="msg_2", summary="Tea.", method="caller", replaced=["msg_1"], context=info()
        ),
        f"Replaced 1 message by your summary.\n{CONTEXT}",
    ),
    "filter": (
        FilterResult(session_id="ctx_1", removed=[removed(1), removed(2)], mode="hybrid", context=info()),
        f"Removed 2 messages:\n- msg_1 (tool) Weather\n- msg_2 (tool) Weather\n{CONTEXT}",
    ),
    "filter nothing": (
        FilterResult(session_id="ctx_1", removed=[], mode="hybrid", context=info()),
        f"Removed 0 messages: none is about that.\n{CONTEXT}",
    ),
    "append": (
        AppendResult(session_id="ctx_1", message_ids=["msg_1"], tokens=[9], context=info()),
        f"Appended 1 message. {CONTEXT}",
    ),
    "show": (
        ShowResult(
            session_id="ctx_1",
            messages=[
                ShownMessage(
                    message_id="msg_1", role="user", kind=MessageKind.MESSAGE, content=LONG, tokens=9, created_at=NOW
                )
            ],
            context=info(),
        ),
        f"[msg_1] user: {LONG}\n{CONTEXT}",
    ),
}


@pytest.mark.parametrize(("result", "text"), CASES.values(), ids=CASES)
def test_a_result_reads(result: Any, text: str) -> None:
    assert as_text(result) == text


def test_a_warning_and_an_estimate_are_told() -> None:
    result = AppendResult(
        session_id="ctx_1",
        message_ids=[],
        tokens=[],
        context=info(message_count=1, approximate=True, warning="It is full."),
    )
    assert as_text(result) == (
        "Appended 0 messages. Session ctx_1: 1 message, about 1,234 of 8,192 tokens. It is full."
    )


def test_texts_that_are_only_told_of_are_shortened() -> None:
    update = UpdateResult(memory_id="mem_1", version=2, previous_content=LONG, updated_at=NOW)
    assert len(as_text(update)) < 130
    assert as_text(update).endswith("…")
