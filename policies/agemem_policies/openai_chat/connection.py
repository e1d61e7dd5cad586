"""Requests to one OpenAI-compatible endpoint: where it is, how patiently it is asked, and what its failures mean."""

from __future__ import annotations

import asyncio
import json
import random as random_numbers
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import structlog

from agemem_mcp.errors import ConfigurationError, ProviderError
from agemem_policies.openai_chat.failures import EndpointError, complaint_of, refusal
from agemem_policies.openai_chat.reading import as_object, json_object

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

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
        """The address that is asked for a turn of a chat."""
        return self.url("/chat/completions")

    def url(self, path: str) -> httpx.URL:
        """An address below the base URL."""
        try:
            url = httpx.URL(self.base_url.rstrip("/") + path)
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

    async def outwait(self, failure: EndpointError, attempt: int, model: str) -> None:
        """Wait until a request may be sent again.

        Args:
            failure: what became of it.
            attempt: how often it was sent.
            model: what was asked, for the log.

        Raises:
            EndpointError: the failure, where sending it again is of no use or was tried often enough.
        """
        if not failure.passing or attempt >= self.attempts:
            raise failure
        wait_s = self.wait_s(attempt, failure.wait_s)
        log.info("the model is asked again", model=model, status=failure.status, wait_s=wait_s)
        await self.sleep(wait_s)


class Connection:
    """Sends requests to an endpoint, one attempt each, and turns what fails into a ``ProviderError``.

    Args:
        endpoint: whom to ask.
        patience: how long it is waited for.
        client: connections to use; they stay open when this is closed.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience, client: httpx.AsyncClient | None = None) -> None:
        self._key = endpoint.api_key
        self._patience = patience
        self._client = client or httpx.AsyncClient()
        self._owned = client is None
        self._headers = {"Content-Type": "application/json"}
        if self._key:
            self._headers["Authorization"] = f"Bearer {self._key}"
        # Waiting for a connection of ours is no silence of the endpoint's.
        silence_s = patience.timeout_s
        self._timeout = httpx.Timeout(silence_s, connect=min(silence_s, _LONGEST_CONNECT_S), pool=None)

    @asynccontextmanager
    async def post(self, url: httpx.URL, body: dict[str, Any]) -> AsyncGenerator[httpx.Response]:
        """Send JSON; the answer is one of success, and still to be read, in which what fails is translated too.

        Raises:
            EndpointError: the endpoint cannot be reached, breaks off, or refuses.
        """
        where = address(url)
        sent = json.dumps(body).encode()
        try:
            async with self._client.stream(
                "POST", url, content=sent, headers=self._headers, timeout=self._timeout
            ) as response:
                if not response.is_success:
                    retry_after = response.headers.get("retry-after")
                    raise self._refusal(where, response.status_code, await response.aread(), retry_after)
                yield response
        except httpx.ConnectTimeout as error:
            msg = f"{where} took no connection in time. Check that it runs and that the URL is right."
            raise EndpointError(msg, passing=True) from error
        except httpx.TimeoutException as error:
            msg = (
                f"{where} was silent for {self._patience.timeout_s:g} s. See whether it is overloaded; "
                "raise the timeout or ask for fewer tokens."
            )
            raise EndpointError(msg, passing=True) from error
        except httpx.HTTPError as error:
            msg = (
                f"{where} could not be reached or broke off ({type(error).__name__}). "
                "Check that it runs and that the URL is right."
            )
            raise EndpointError(msg, passing=isinstance(error, httpx.TransportError)) from error

    def read_choices(self, url: httpx.URL, content: bytes) -> dict[str, Any]:
        """A whole answer that holds choices.

        Raises:
            ProviderError: it is none; an ``EndpointError`` where another request may help.
        """
        body = json_object(content, "its answer")
        self.check(url, body, content.decode("utf-8", "replace"))
        if "choices" not in body:
            msg = f"{address(url)} answered without choices. Check that the URL is an OpenAI-compatible one."
            raise ProviderError(msg)
        return body

    def check(self, url: httpx.URL, piece: dict[str, Any], text: str) -> None:
        """Raise the error that stands where an answer should, as gateways write it under a status of 200.

        Raises:
            EndpointError: there is one.
        """
        if not (error := piece.get("error")):
            return
        code = as_object(error).get("code")
        complaint = self._fit(complaint_of(piece, text))
        if isinstance(code, int) and code in _ERROR_STATUSES:
            raise refusal(address(url), code, complaint)
        msg = f"{address(url)} failed: {complaint}. See the endpoint's own log, or try again."
        raise EndpointError(msg)

    async def close(self) -> None:
        """Release the connections, unless they were given."""
        if self._owned:
            await self._client.aclose()

    def _refusal(self, where: str, status: int, content: bytes, retry_after: str | None) -> EndpointError:
        try:
            body = json_object(content, "its complaint")
        except ProviderError:
            body = {}
        complaint = complaint_of(body, content.decode("utf-8", "replace"))
        return refusal(where, status, self._fit(complaint), retry_after=retry_after)

    def _fit(self, complaint: str) -> str:
        """A complaint as it may be shown: some endpoints repeat the key in it, others send a page."""
        shown = complaint.replace(self._key, "[the key]") if self._key else complaint
        return shown if len(shown) <= _LONGEST_COMPLAINT else f"{shown[:_LONGEST_COMPLAINT]}…"


def address(url: httpx.URL) -> str:
    """What errors call it: without a password or a query."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"
