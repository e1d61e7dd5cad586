"""A policy behind any OpenAI-compatible ``/chat/completions``: vLLM, SGLang, Ollama, llama.cpp, hosted ones."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from agemem_mcp.errors import ProviderError
from agemem_policies.openai_chat.answers import Answer
from agemem_policies.openai_chat.connection import Connection, Endpoint, Patience, address
from agemem_policies.openai_chat.failures import EndpointError
from agemem_policies.openai_chat.messages import rendered
from agemem_policies.openai_chat.reading import json_object
from agemem_policies.openai_chat.sse import EventReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agemem_policies.policy import Completion, OnText, Prompt

_LINGERING_S = 0.05


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model chooses its words."""

    temperature: float | None = None
    """None leaves it to the endpoint."""
    max_tokens: int = 2048
    return_token_ids: bool = False
    """Ask for the tokens and their log-probabilities: vLLM 0.10.2 or newer, SGLang."""


class OpenAIChatPolicy:
    """Asks a chat model for each turn.

    Args:
        endpoint: where the model is.
        native: whether tools are given as functions.
        sampling: how the model chooses its words.
        patience: how long and how often it is asked.
        client: connections to use; they stay open when the policy is closed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        native: bool = False,
        sampling: Sampling | None = None,
        patience: Patience | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._url = endpoint.chat_url()
        self._native = native
        self._sampling = sampling or Sampling()
        self._patience = patience or Patience()
        self._connection = Connection(endpoint, self._patience, client)
        self._refused: frozenset[str] = frozenset()
        """Fields that the endpoint does not take."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._endpoint.model

    @property
    def native(self) -> bool:
        """Whether tools are given as functions."""
        return self._native

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """Take one turn; see :class:`agemem_policies.policy.Policy`.

        A failure that may pass is tried again, as long as nothing was told to ``on_text``.

        Raises:
            ProviderError: the endpoint cannot be reached, refused, or gave no usable answer.
        """
        refused = self._refused
        attempt = 1
        while True:
            answer = Answer(on_text, tokens=self._sampling.return_token_ids)
            body = self._body(prompt, refused, stream=on_text is not None)
            try:
                await self._ask(body, answer)
            except EndpointError as failure:
                if answer.told:
                    raise
                if dropped := failure.refused & body.keys():
                    refused |= dropped
                    continue
                await self._patience.outwait(failure, attempt, self.name)
                attempt += 1
            else:
                # Kept only now: a refusal can name a field that is not to blame.
                self._refused |= refused
                return answer.finish()

    async def close(self) -> None:
        """Release the connections, unless they were given."""
        await self._connection.close()

    def _body(self, prompt: Prompt, refused: frozenset[str], *, stream: bool) -> dict[str, Any]:
        sampling = self._sampling
        body: dict[str, Any] = {"model": self._endpoint.model, **rendered(prompt, native=self._native)}
        body["max_completion_tokens" if "max_tokens" in refused else "max_tokens"] = sampling.max_tokens
        if sampling.temperature is not None and "temperature" not in refused:
            body["temperature"] = sampling.temperature
        if sampling.return_token_ids:
            body |= {"return_token_ids": True, "logprobs": True}
        if stream:
            body["stream"] = True
            if "stream_options" not in refused:
                body["stream_options"] = {"include_usage": True}
        return body

    async def _ask(self, body: dict[str, Any], answer: Answer) -> None:
        """Send one request and gather what is answered.

        Raises:
            ProviderError: what came is unusable; an ``EndpointError`` where another request may help.
        """
        async with self._connection.post(self._url, body) as response:
            if "stream" in body and not response.headers.get("content-type", "").startswith("application/json"):
                await self._read_stream(response, answer)
            else:
                answer.add(self._connection.read_choices(self._url, await response.aread()))

    async def _read_stream(self, response: httpx.Response, answer: Answer) -> None:
        reader = EventReader()
        chunks = response.aiter_bytes()
        async for chunk in chunks:
            if self._read_events(reader.feed(chunk), answer):
                await _read_out(chunks)
                return
        if self._read_events(reader.end(), answer):
            return
        if not (answer.ended or answer.begun):
            msg = f"{address(self._url)} ended its stream without an answer. Check the URL, and the endpoint's own log."
            raise ProviderError(msg)

    def _read_events(self, events: list[str], answer: Answer) -> bool:
        """Take events; tells whether the last one came."""
        for event in events:
            if event.strip() == "[DONE]":
                return True
            piece = json_object(event, "an event of its stream")
            self._connection.check(self._url, piece, event)
            answer.add(piece)
        return False


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """Read a stream whose last event has come to its end: the connection can then be used again."""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_LINGERING_S):
            async for _ in chunks:
                pass
