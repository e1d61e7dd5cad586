"""Summaries by an OpenAI-compatible endpoint, and from the text itself when there is none."""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from importlib import resources
from typing import TYPE_CHECKING

import httpx

from agemem_mcp.errors import ProviderError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.context import Message
    from agemem_mcp.domain.ports import TokenCounter

_TIMEOUT_S = 60.0
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_WORD = re.compile(r"\w+")
_TELLING = re.compile(r"\d|[A-Z][a-z]")
"""Numbers and capitalised words: names, dates, amounts."""


class EndpointSummarizer:
    """Asks a chat model behind an OpenAI-compatible endpoint."""

    method = "endpoint"

    def __init__(self, *, url: str, model: str, api_key: str | None, client: httpx.AsyncClient | None = None) -> None:
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client or httpx.AsyncClient(timeout=_TIMEOUT_S)
        self._prompt = resources.files("agemem_mcp.prompts").joinpath("summarise.txt").read_text("utf-8")

    async def summarise(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """Summarise messages; see :class:`agemem_mcp.domain.ports.Summarizer`.

        Raises:
            ProviderError: the endpoint did not answer with a text.
        """
        conversation = "\n\n".join(f"[{message.role.value}]\n{message.content}" for message in messages)
        body = {
            "model": self._model,
            "temperature": 0,
            "messages": [
                {"role": "system", "content": self._prompt.format(max_tokens=max_tokens)},
                {"role": "user", "content": conversation},
            ],
        }
        try:
            response = await self._client.post(self._url, json=body, headers=self._headers)
            response.raise_for_status()
            text = response.json()["choices"][0]["message"]["content"]
        except httpx.HTTPStatusError as error:
            msg = f"The summary endpoint answered {error.response.status_code}. Check AGEMEM_SUMMARY__URL and its key."
            raise ProviderError(msg) from error
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            msg = f"The summary endpoint gave no usable answer ({type(error).__name__}). Check AGEMEM_SUMMARY__URL."
            raise ProviderError(msg) from error
        if not isinstance(text, str):
            msg = "The summary endpoint answered without text. Check AGEMEM_SUMMARY__MODEL."
            raise ProviderError(msg)
        return text

    async def close(self) -> None:
        """Release the connections."""
        await self._client.aclose()


class ExtractiveSummarizer:
    """Picks the most telling sentences, in their order. Needs no model and always works.

    A sentence counts for the words it shares with the rest of the span (SumBasic's word
    probabilities) and for the names and numbers it holds, and less for what was already said.
    """

    method = "extractive"

    def __init__(self, tokens: TokenCounter) -> None:
        self._tokens = tokens

    async def summarise(self, messages: Sequence[Message], *, max_tokens: int) -> str:
        """Summarise messages; see :class:`agemem_mcp.domain.ports.Summarizer`."""
        return await asyncio.to_thread(self._pick, [message.content for message in messages], max_tokens)

    def _pick(self, texts: Sequence[str], max_tokens: int) -> str:
        sentences = _sentences(texts)
        bags = [set(_WORD.findall(sentence.lower())) for sentence in sentences]
        weight = Counter(word for bag in bags for word in bag)
        telling = [min(len(_TELLING.findall(sentence)), 6) for sentence in sentences]
        chosen: set[int] = set()
        spent = 0
        told: Counter[str] = Counter()
        open_ = {number for number, bag in enumerate(bags) if bag}
        while open_:
            best = max(
                open_,
                key=lambda number: (
                    sum(weight[word] / (1 + 4 * told[word]) for word in bags[number]) / math.sqrt(len(bags[number]))
                    + telling[number],
                    -number,
                ),
            )
            open_.discard(best)
            cost = self._tokens.count(sentences[best]) + 1
            if spent + cost > max_tokens:
                continue
            chosen.add(best)
            spent += cost
            told.update(bags[best])
        if not chosen:
            return self._cut(max(sentences, key=len, default=""), max_tokens)
        return " ".join(sentences[number] for number in sorted(chosen))

    def _cut(self, text: str, max_tokens: int) -> str:
        """As much of the beginning as fits: for text in which no sentence is short enough, such as JSON."""
        fits, beyond = 0, len(text) + 1
        while fits + 1 < beyond:
            middle = (fits + beyond) // 2
            if self._tokens.count(f"{text[:middle]}…") <= max_tokens:
                fits = middle
            else:
                beyond = middle
        return f"{text[:fits]}…" if fits else ""


_MOST_SENTENCES = 400
"""Beyond these only every n-th is looked at: choosing is quadratic."""


def _sentences(texts: Sequence[str]) -> list[str]:
    split = [part.strip() for text in texts for part in _SENTENCE_END.split(text) if part.strip()]
    sentences = list(dict.fromkeys(split))
    return sentences[:: -(-len(sentences) // _MOST_SENTENCES)] if sentences else []
