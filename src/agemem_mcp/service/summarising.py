"""Where a summary comes from: the caller, a configured endpoint, or the text itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agemem_mcp.errors import InvalidOperation, ProviderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.context import Message
    from agemem_mcp.domain.ports import Summarizer

log = structlog.get_logger(__name__)

_SHARE = 0.3
_FEWEST_TOKENS = 24


class SummarizerChain:
    """Takes the caller's summary if there is one, else asks each summarizer until one succeeds."""

    def __init__(self, summarizers: Sequence[Summarizer]) -> None:
        self._summarizers = tuple(summarizers)

    async def summarise(self, messages: Sequence[Message], *, given: str | None, tokens: int) -> tuple[str, str]:
        """Summarise messages of ``tokens`` tokens; returns the summary and the method that made it.

        Raises:
            InvalidOperation: no summarizer could make one; the caller should write it.
        """
        if given is not None:
            return given.strip(), "caller"
        limit = max(_FEWEST_TOKENS, int(tokens * _SHARE))
        for summarizer in self._summarizers:
            try:
                summary = await summarizer.summarise(messages, max_tokens=limit)
            except ProviderError as error:
                log.warning("summarizer failed, trying the next", method=summarizer.method, error=str(error))
                continue
            if summary.strip():
                return summary.strip(), summarizer.method
        msg = "No summary could be made. Write one yourself and pass it as `summary`."
        raise InvalidOperation(msg)
