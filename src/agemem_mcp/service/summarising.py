"""Where a summary comes from: the caller, a configured endpoint, or the text itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agemem_mcp.domain.text import check_text
from agemem_mcp.errors import InvalidOperation, ProviderError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agemem_mcp.domain.context import Message
    from agemem_mcp.domain.ports import Summarizer

log = structlog.get_logger(__name__)

_SHARE = 0.3
_FEWEST_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary that saves tokens, and how it was made."""

    text: str
    method: str
    tokens: int


class SummarizerChain:
    """Takes the caller's summary if there is one, else asks each summarizer until one succeeds."""

    def __init__(self, summarizers: Sequence[Summarizer], *, count: Callable[[str], Awaitable[int]]) -> None:
        """Set the chain up.

        Args:
            summarizers: in the order in which they are asked.
            count: tokens of a text.
        """
        self._summarizers = tuple(summarizers)
        self._count = count

    async def summarise(self, messages: Sequence[Message], *, given: str | None) -> Summary:
        """Summarise messages in fewer tokens than they have.

        Raises:
            InvalidOperation: the summary given saves nothing, or none could be made.
        """
        before = sum(message.tokens for message in messages)
        if given is not None:
            return await self._checked(given, "caller", before)
        limit = max(_FEWEST_TOKENS, int(before * _SHARE))
        for summarizer in self._summarizers:
            try:
                text = await summarizer.summarise(messages, max_tokens=limit)
                return await self._checked(text, summarizer.method, before)
            except (ProviderError, InvalidOperation) as error:
                log.warning("no usable summary, trying the next way", method=summarizer.method, error=str(error))
        msg = (
            f"No summary shorter than the {before} tokens it would replace could be made. Nothing was changed. "
            f"Choose a wider span, or write a summary yourself and pass it as `summary`."
        )
        raise InvalidOperation(msg)

    async def _checked(self, text: str, method: str, before: int) -> Summary:
        text = check_text(text.strip(), "The summary")
        tokens = await self._count(text)
        if tokens >= before:
            msg = (
                f"The summary ({tokens} tokens) is not shorter than what it would replace ({before} tokens). "
                f"Nothing was changed. Give a shorter summary or a wider span."
            )
            raise InvalidOperation(msg)
        return Summary(text, method, tokens)
