"""Sessions: who may use one, how long it lives, and how its budget is counted."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.adapters.tokens import load_token_counter
from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.domain.operations import (
    AppendContext,
    FilterContext,
    NewMessage,
    RetrieveMemory,
    ShowContext,
    SummaryContext,
)
from agemem_mcp.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.domain.results import AppendResult
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

SCOPE = Scope()
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TALK = [("user", "qzxvjkwqq xzzkkvj pqjxwzzq"), ("assistant", "zzzxqj 9x8y7z jqqkv")]


class Context:
    """Short-term context with short calls."""

    def __init__(self, service: MemoryService) -> None:
        """Work on a service."""
        self.apply = lambda operation: service.apply(SCOPE, operation)
        self.short_term = service.short_term

    async def append(
        self, *messages: tuple[Any, str], session_id: str | None = None, scope: Scope = SCOPE
    ) -> AppendResult:
        """Append messages."""
        new = [NewMessage(role=role, content=content) for role, content in messages]
        return await self.short_term.append(scope, AppendContext(messages=new, session_id=session_id), Actor.POLICY)

    async def shown(self, session_id: str, scope: Scope = SCOPE) -> list[str]:
        """The ids of the messages in the context."""
        result = await self.short_term.show(scope, ShowContext(session_id=session_id))
        return [one.message_id for one in result.messages]


def ids(*numbers: int) -> list[str]:
    """Message ids."""
    return [f"msg_{number}" for number in numbers]


@pytest.fixture
def context(lexical_service: MemoryService) -> Context:
    """Contexts without a model."""
    return Context(lexical_service)


@asynccontextmanager
async def opened(settings: Settings, clock: SteppingClock, **changed: Any) -> AsyncGenerator[Context]:
    """Contexts with other settings."""
    async with open_service(settings.model_copy(update=changed), clock=clock, ids=RandomIds(3)) as service:
        yield Context(service)


async def test_appending_without_a_session_opens_one_of_its_own(context: Context) -> None:
    first = await context.append(("user", "Hello"), ("assistant", "Hi"))
    second = await context.append(("user", "Hello"))
    assert first.session_id != second.session_id
    assert first.session_id.startswith("ctx_")
    assert (first.message_ids, second.message_ids) == (ids(1, 2), ids(1))
    assert (first.context.message_count, first.context.tokenizer, first.context.approximate) == (2, "estimate", True)


async def test_a_named_session_goes_on(context: Context) -> None:
    first = await context.append(("user", "Hello"))
    second = await context.append(("assistant", "Hi"), session_id=first.session_id)
    assert second.session_id == first.session_id
    assert await context.shown(first.session_id) == ids(1, 2)
    assert second.context.tokens > first.context.tokens > 0


async def test_a_session_never_named_again_lives_an_hour_and_a_named_one_thirty_days(
    context: Context, clock: SteppingClock
) -> None:
    unnamed = (await context.append(("user", "Hello"))).session_id
    named = (await context.append(("user", "Hello"))).session_id
    await context.shown(named)
    clock.advance(HOUR - timedelta(seconds=1))
    other = (await context.append(("user", "Hello"))).session_id
    clock.advance(timedelta(seconds=1))
    with pytest.raises(NotFound):
        await context.shown(unnamed)
    assert await context.shown(other) == ids(1)
    clock.advance(30 * DAY - HOUR - timedelta(seconds=1))
    assert await context.shown(named) == ids(1)
    clock.advance(30 * DAY - timedelta(seconds=1))
    assert await context.shown(named) == ids(1)
    clock.advance(30 * DAY)
    with pytest.raises(NotFound, match="after 30 days without use, 1 hour if it was never named"):
        await context.shown(named)
    assert await context.short_term.purge_expired() == 3


async def test_unknown_foreign_and_expired_sessions_are_refused_with_the_same_text(
    context: Context, clock: SteppingClock
) -> None:
    foreign = (await context.append(("user", "secret"), scope=Scope(namespace="other"))).session_id
    expired = (await context.append(("user", "old"))).session_id
    clock.advance(HOUR)
    foreign_again = (await context.append(("user", "secret"), scope=Scope("ana"))).session_id
    texts: set[str] = set()
    for session_id in ("ctx_none", foreign, foreign_again, expired):
        calls: Sequence[Any] = (
            context.append(("user", "x"), session_id=session_id),
            context.shown(session_id),
            context.short_term.restore(SCOPE, session_id, None, Actor.USER),
            context.apply(RetrieveMemory(query="x", metadata_filter={}, session_id=session_id)),
            context.apply(SummaryContext(span="all", summary="x", session_id=session_id)),
            context.apply(FilterContext(criteria="x", session_id=session_id)),
        )
        for call in calls:
            with pytest.raises(NotFound) as caught:
                await call
            texts.add(str(caught.value).replace(session_id, "ID"))
    assert len(texts) == 1
    assert "Call Retrieve_memory without session_id" in texts.pop()
    assert await context.shown(foreign_again, Scope("ana")) == ids(1)


async def test_a_context_warns_from_four_fifths_of_its_budget_on(
    lexical_settings: Settings, clock: SteppingClock
) -> None:
    limits = lexical_settings.context.model_copy(update={"budget_tokens": 100})
    async with opened(lexical_settings, clock, context=limits) as context:
        appended = await context.append(("user", "tea"))
        seen: dict[int, str | None] = {}
        while appended.context.tokens < 120:
            seen[appended.context.tokens] = appended.context.warning
            appended = await context.append(("user", "tea"), session_id=appended.session_id)
    assert [warning for tokens, warning in seen.items() if tokens < 80] == [None] * sum(one < 80 for one in seen)
    warnings = {tokens: warning for tokens, warning in seen.items() if tokens >= 80}
    assert 80 in warnings
    assert all(warning is not None and f"{tokens}%" in warning for tokens, warning in warnings.items())


async def test_a_context_counted_by_another_tokenizer_is_counted_anew(
    lexical_settings: Settings, full_settings: Settings, clock: SteppingClock
) -> None:
    exactly = full_settings.context
    async with opened(lexical_settings, clock) as context:
        session_id = (await context.append(*TALK)).session_id
        estimated = (await context.short_term.show(SCOPE, ShowContext(session_id=session_id))).context
    async with opened(full_settings, clock, embedding="none", context=exactly) as context:
        appended = await context.append(("user", "Hello"), session_id=session_id)
        tokens = load_token_counter("o200k_base", full_settings.assets_dir / "tiktoken")
        counted = sum(tokens.count(text) for _, text in [*TALK, ("user", "Hello")])
    assert (appended.context.tokenizer, appended.context.approximate) == ("o200k_base", False)
    assert appended.context.tokens == counted != estimated.tokens


async def test_handles_that_come_again_under_a_seed_open_sessions_of_their_own(
    lexical_settings: Settings, clock: SteppingClock
) -> None:
    other = Scope(namespace="other")
    async with opened(lexical_settings, clock) as context:
        first = await context.append(("user", "The secret of one namespace."))
    async with opened(lexical_settings, clock) as context:
        second = await context.append(("user", "Hello"), scope=other)
        assert second.session_id != first.session_id
        assert await context.shown(second.session_id, scope=other) == ids(1)
        assert await context.shown(first.session_id) == ids(1)
