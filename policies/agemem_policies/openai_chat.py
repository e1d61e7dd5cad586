"""A policy behind any OpenAI-compatible ``/chat/completions``: vLLM, SGLang, Ollama, llama.cpp, hosted ones."""

from __future__ import annotations

import asyncio
import json
import random as random_numbers
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import structlog

from agemem_mcp.errors import ConfigurationError, ProviderError
from agemem_policies.openai_answers import Answer
from agemem_policies.openai_failures import EndpointError, complaint_of, refusal
from agemem_policies.openai_json import as_object, json_object
from agemem_policies.openai_messages import rendered
from agemem_policies.sse import EventReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agemem_policies.policy import Completion, OnText, Prompt

log = structlog.get_logger(__name__)

_LONGEST_CONNECT_S = 10.0
_MOST_DOUBLINGS = 16
_LONGEST_COMPLAINT = 500
_ERROR_STATUSES = range(400, 600)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is, and as whom it is asked.

    Raises:
        ConfigurationError: the address or the key cannot be used.
    """

    base_url: str
    """As for OpenAI's own client: usually ends in ``/v1``."""
    model: str
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.chat_url()
        # Found only when it is sent, a bad key would stand in the error message.
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable() and " " not in self.api_key):
            msg = "The API key holds characters that no key has, perhaps a space or a line's end. Copy the key alone."
            raise ConfigurationError(msg)

    def chat_url(self) -> httpx.URL:
        """The address that is asked."""
        try:
            url = httpx.URL(self.base_url.rstrip("/") + "/chat/completions")
            url.host.encode("idna")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigurationError(_no_address(self.base_url)) from error
        if url.scheme not in ("http", "https") or not url.host or not (url.port is None or 0 < url.port < 1 << 16):
            raise ConfigurationError(_no_address(self.base_url))
        return url


def _no_address(base_url: str) -> str:
    # The part before an @ may be a password.
    shown = base_url.rpartition("@")[2]
    return f"No model can be asked at {shown!r}. Write its address like http://localhost:8000/v1."


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model chooses its words."""

    temperature: float | None = None
    """None leaves it to the endpoint."""
    max_tokens: int = 2048
    return_token_ids: bool = False
    """Ask for the tokens and their log-probabilities: vLLM 0.10.2 or newer, SGLang."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an endpoint is waited for, and how often it is asked again."""

    timeout_s: float = 120.0
    """Longest silence; of it, connecting may take 10 s. Without streaming an answer comes after one long silence."""
    attempts: int = 4
    first_wait_s: float = 0.5
    """Doubled from one attempt to the next, shortened by up to half by chance."""
    longest_wait_s: float = 60.0
    """Also where the endpoint asks for more."""
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    random: Callable[[], float] = random_numbers.random
    """A number from 0 to 1."""

    def wait_s(self, attempt: int, asked_s: float | None) -> float:
        """How long to wait after an attempt, the first being 1."""
        if asked_s is not None:
            return min(asked_s, self.longest_wait_s)
        longest = min(self.first_wait_s * 2 ** min(attempt - 1, _MOST_DOUBLINGS), self.longest_wait_s)
        return longest * (1 - self.random() / 2)


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
        self._where = f"{self._url.scheme}://{self._url.netloc.decode('ascii')}{self._url.path}"
        """What errors call it: without a password or a query."""
        self._native = native
        self._sampling = sampling or Sampling()
        self._patience = patience or Patience()
        self._client = client or httpx.AsyncClient()
        self._owned = client is None
        self._headers = {"Content-Type": "application/json"}
        if endpoint.api_key:
            self._headers["Authorization"] = f"Bearer {endpoint.api_key}"
        # Waiting for a connection of ours is no silence of the endpoint's.
        silence_s = self._patience.timeout_s
        self._timeout = httpx.Timeout(silence_s, connect=min(silence_s, _LONGEST_CONNECT_S), pool=None)
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
                if not failure.passing or attempt >= self._patience.attempts:
                    raise
                wait_s = self._patience.wait_s(attempt, failure.wait_s)
                log.info("the model is asked again", model=self.name, status=failure.status, wait_s=wait_s)
                await self._patience.sleep(wait_s)
                attempt += 1
            else:
                # Kept only now: a refusal can name a field that is not to blame.
                self._refused |= refused
                return answer.finish()

    async def close(self) -> None:
        """Release the connections, unless they were given."""
        if self._owned:
            await self._client.aclose()

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
        sent = json.dumps(body).encode()
        try:
            async with self._client.stream(
                "POST", self._url, content=sent, headers=self._headers, timeout=self._timeout
            ) as response:
                if not response.is_success:
                    retry_after = response.headers.get("retry-after")
                    raise self._refusal(response.status_code, await response.aread(), retry_after)
                if "stream" in body and not response.headers.get("content-type", "").startswith("application/json"):
                    await self._read_stream(response, answer)
                else:
                    self._read_body(await response.aread(), answer)
        except httpx.ConnectTimeout as error:
            msg = f"{self._where} took no connection in time. Check that it runs and that the URL is right."
            raise EndpointError(msg, passing=True) from error
        except httpx.TimeoutException as error:
            msg = (
                f"{self._where} was silent for {self._patience.timeout_s:g} s. See whether it is overloaded; "
                "raise the timeout or ask for fewer tokens."
            )
            raise EndpointError(msg, passing=True) from error
        except httpx.HTTPError as error:
            msg = (
                f"{self._where} could not be reached or broke off ({type(error).__name__}). "
                "Check that it runs and that the URL is right."
            )
            raise EndpointError(msg, passing=isinstance(error, httpx.TransportError)) from error

    async def _read_stream(self, response: httpx.Response, answer: Answer) -> None:
        reader = EventReader()
        async for chunk in response.aiter_bytes():
            if self._read_events(reader.feed(chunk), answer):
                return
        if self._read_events(reader.end(), answer):
            return
        if not (answer.ended or answer.begun):
            msg = f"{self._where} ended its stream without an answer. Check the URL, and the endpoint's own log."
            raise ProviderError(msg)

    def _read_events(self, events: list[str], answer: Answer) -> bool:
        """Take events; tells whether the last one came."""
        for event in events:
            if event.strip() == "[DONE]":
                return True
            piece = json_object(event, "an event of its stream")
            self._check(piece, event)
            answer.add(piece)
        return False

    def _read_body(self, content: bytes, answer: Answer) -> None:
        body = json_object(content, "its answer")
        self._check(body, content.decode("utf-8", "replace"))
        if "choices" not in body:
            msg = f"{self._where} answered without choices. Check that the URL is an OpenAI-compatible one."
            raise ProviderError(msg)
        answer.add(body)

    def _check(self, piece: dict[str, Any], text: str) -> None:
        """Raise the error that stands where an answer should, as gateways write it under a status of 200."""
        if not (error := piece.get("error")):
            return
        code = as_object(error).get("code")
        complaint = self._fit(complaint_of(piece, text))
        if isinstance(code, int) and code in _ERROR_STATUSES:
            raise refusal(self._where, code, complaint)
        msg = f"{self._where} failed: {complaint}. See the endpoint's own log, or try again."
        raise EndpointError(msg)

    def _refusal(self, status: int, content: bytes, retry_after: str | None) -> EndpointError:
        try:
            body = json_object(content, "its complaint")
        except ProviderError:
            body = {}
        complaint = complaint_of(body, content.decode("utf-8", "replace"))
        return refusal(self._where, status, self._fit(complaint), retry_after=retry_after)

    def _fit(self, complaint: str) -> str:
        """A complaint as it may be shown: some endpoints repeat the key in it, others send a page."""
        key = self._endpoint.api_key
        shown = complaint.replace(key, "[the key]") if key else complaint
        return shown if len(shown) <= _LONGEST_COMPLAINT else f"{shown[:_LONGEST_COMPLAINT]}…"
