"""Which summarizer's text is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.domain.context import Message, Role
from agemem_mcp.errors import InvalidOperation, ProviderError
from agemem_mcp.service.summarising import SummarizerChain

if TYPE_CHECKING:
    from collections.abc import Sequence


def messages_of(tokens: int) -> list[Message]:
    """One message of so many tokens."""
    return [Message("msg_1", Role.USER, "text", datetime(2026, 1, 1, tzinfo=UTC), 1, tokens, "words")]


async def words(text: str) -> int:
    """A word counts as a token here."""
    return len(text.split())


@dataclass
class Says:
    """A summarizer that says one thing, or fails."""

    text: str | Exception
    method: str = "first"
    limits: list[int] = field(default_factory=list[int])

    async def summarise(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """Say it."""
        assert [message.content for message in messages] == ["text"]
        self.limits.append(max_tokens)
        if isinstance(self.text, Exception):
            raise self.text
        return self.text


async def summary(*summarizers: Says, given: str | None = None, tokens: int = 1000) -> tuple[str, str]:
    """What a chain of these makes."""
    made = await SummarizerChain(summarizers, count=words).summarise(messages_of(tokens), given=given)
    assert made.tokens == await words(made.text)
    return made.text, made.method


async def test_the_callers_own_summary_comes_first_and_nobody_is_asked() -> None:
    unasked = Says("machine")
    assert await summary(unasked, given=" mine\n") == ("mine", "caller")
    assert unasked.limits == []


async def test_the_first_that_succeeds_is_taken() -> None:
    unasked = Says("two", "second")
    assert await summary(Says(" one "), unasked) == ("one", "first")
    assert unasked.limits == []


@pytest.mark.parametrize("failure", [ProviderError("down"), "", " \n", "half \ud83c", "long " * 1000], ids=repr)
async def test_the_next_one_stands_in_for_one_that_fails_or_says_nothing(failure: str | Exception) -> None:
    assert await summary(Says(failure), Says("two", "second")) == ("two", "second")


async def test_a_fault_of_the_code_is_not_taken_for_a_failing_endpoint() -> None:
    with pytest.raises(ZeroDivisionError):
        await summary(Says(ZeroDivisionError()), Says("two"))


async def test_where_nobody_can_the_caller_is_asked_to_write_it() -> None:
    with pytest.raises(InvalidOperation, match="write a summary yourself and pass it as `summary`"):
        await summary(Says(""))


@pytest.mark.parametrize(("tokens", "limit"), [(1000, 300), (100, 30), (10, 24)])
async def test_the_limit_is_a_share_of_what_is_replaced(tokens: int, limit: int) -> None:
    asked = Says("one")
    await summary(asked, tokens=tokens)
    assert asked.limits == [limit]
