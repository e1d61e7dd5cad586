"""Summaries by a real endpoint on this machine, and from the text itself."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.adapters.summarizers import EndpointSummarizer, ExtractiveSummarizer
from agemem_mcp.adapters.tokens import ApproximateTokenCounter
from agemem_mcp.domain.context import Message, Role
from agemem_mcp.errors import ProviderError

if TYPE_CHECKING:
    from collections.abc import Generator

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TOKENS = ApproximateTokenCounter()


def messages(*texts: str) -> list[Message]:
    """Messages with these texts, user and assistant by turns."""
    return [
        Message(f"msg_{number}", (Role.USER, Role.ASSISTANT)[number % 2], text, NOW, number)
        for number, text in enumerate(texts)
    ]


@contextmanager
def endpoint(status: int, answer: bytes) -> Generator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server that answers every request alike; gives its base URL and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "authorization": self.headers["Authorization"], **body})
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", asked
        finally:
            server.shutdown()
            thread.join()


def completion(content: object) -> bytes:
    """An answer in OpenAI's form."""
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


async def ask(url: str, api_key: str | None = None) -> str:
    """What the summarizer makes of an endpoint's answer."""
    summarizer = EndpointSummarizer(url=url, model="small", api_key=api_key)
    try:
        return await summarizer.summarise(messages("I moved to Oslo.", "Noted."), max_tokens=33)
    finally:
        await summarizer.close()


@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_endpoint_is_given_the_messages_the_limit_and_the_key(slash: str) -> None:
    with endpoint(200, completion("They live in Oslo.")) as (url, asked):
        assert await ask(url + slash, "secret") == "They live in Oslo."
    (one,) = asked
    assert (one["path"], one["authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (one["model"], one["temperature"]) == ("small", 0)
    system, user = one["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert "at most 33 tokens" in system["content"]
    assert user["content"] == "[user]\nI moved to Oslo.\n\n[assistant]\nNoted."


async def test_no_key_is_sent_where_none_is_configured() -> None:
    with endpoint(200, completion("x")) as (url, asked):
        await ask(url)
    assert asked[0]["authorization"] is None


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (500, b"", "answered 500"),
        (401, b"{}", "answered 401"),
        (200, b"<html>", "no usable answer"),
        (200, b"{}", "no usable answer"),
        (200, b'{"choices": []}', "no usable answer"),
        (200, b"[1]", "no usable answer"),
        (200, b"\xff\xfe", "no usable answer"),
        (200, completion(None), "without text"),
        (200, completion(["x"]), "without text"),
    ],
)
async def test_an_unusable_answer_is_a_providers_error(status: int, answer: bytes, said: str) -> None:
    with endpoint(status, answer) as (url, _), pytest.raises(ProviderError, match=said):
        await ask(url)


@pytest.mark.parametrize("url", ["http://[::1", "no url", "ftp://127.0.0.1/v1", ""])
async def test_an_address_that_is_none_is_a_providers_error(url: str) -> None:
    with pytest.raises(ProviderError, match="AGEMEM_SUMMARY__URL"):
        await ask(url)


async def test_an_endpoint_that_is_not_there_is_a_providers_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ProviderError, match="ConnectError"):
        await ask(f"http://127.0.0.1:{port}/v1")


async def extract(*texts: str, max_tokens: int) -> str:
    """The extractive summary of texts."""
    return await ExtractiveSummarizer(TOKENS).summarise(messages(*texts), max_tokens=max_tokens)


TALK = (
    "Hello there! I am planning a trip to Norway. We fly to Oslo on 3 May 2026 with Ana.",
    "That sounds nice. Anything else?",
    "The hotel in Oslo costs 900 crowns a night. It is nice. The trip to Norway ends on 10 May 2026.",
)


@pytest.mark.parametrize("max_tokens", [24, 40, 60, 1000])
async def test_an_extract_holds_sentences_of_the_text_in_order_within_the_limit(max_tokens: int) -> None:
    summary = await extract(*TALK, max_tokens=max_tokens)
    assert TOKENS.count(summary) <= max_tokens
    text = " ".join(TALK)
    rest = summary
    position = 0
    while rest:
        length = max(n for n in range(1, len(rest) + 1) if rest[:n] in text[position:])
        assert length > 5
        position = text.index(rest[:length], position) + length
        rest = rest[length:].lstrip()


async def test_sentences_with_names_and_numbers_are_kept_before_small_talk() -> None:
    summary = await extract(*TALK, max_tokens=30)
    assert "3 May 2026" in summary
    assert "10 May 2026" in summary
    assert "nice" not in summary
    assert "else" not in summary


async def test_what_was_said_twice_is_kept_once() -> None:
    assert await extract("Ana lives in Oslo.", "Ana lives in Oslo.", max_tokens=1000) == "Ana lives in Oslo."


async def test_the_same_text_gives_the_same_extract() -> None:
    assert await extract(*TALK, max_tokens=40) == await extract(*TALK, max_tokens=40)


@pytest.mark.parametrize(
    "text",
    [
        "word " * 500,
        json.dumps({f"key{number}": number for number in range(300)}),
        "x" * 4000,
        "😀" * 400,
        "?! " * 400,
        "日本語のとても長い文" * 200,
    ],
    ids=["one sentence", "json", "one word", "emoji", "punctuation", "no spaces"],
)
async def test_a_text_without_short_sentences_is_cut_to_the_limit(text: str) -> None:
    summary = await extract(text, max_tokens=30)
    assert summary
    assert summary.removesuffix("…") in text
    assert TOKENS.count(summary) <= 30


async def test_a_very_long_text_is_summarised_from_all_over() -> None:
    summary = await extract(*(f"Fact number {n} is about Topic{n}." for n in range(3000)), max_tokens=200)
    assert 0 < TOKENS.count(summary) <= 200


async def test_nothing_gives_nothing() -> None:
    assert await extract(max_tokens=30) == ""
