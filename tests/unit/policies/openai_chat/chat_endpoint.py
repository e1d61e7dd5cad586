"""An HTTP server that answers as a test's script says, byte by byte, and a policy that asks it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import httpx

from agemem_policies.openai_chat import Endpoint, OpenAIChatPolicy, Patience, Sampling
from agemem_policies.policy import ChatMessage, Prompt

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from agemem_policies.policy import Completion

TLS = httpx.create_ssl_context()
"""Made once: it reads every certificate of the machine."""
HELLO = Prompt((ChatMessage("user", "Hello"),))
MODEL = "qwen2.5:7b"


@dataclass
class Asked:
    """One request as the server received it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Line:
    """The server's side of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes) -> None:
        """Write pieces."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def hung_up(self) -> None:
        """Wait until the client closes the connection."""
        with suppress(ConnectionError):
            await self.reader.read()


Scripted: TypeAlias = "bytes | Callable[[Line], Awaitable[None]]"


@dataclass
class ChatEndpoint:
    """Answers the first request by the first part of its script and so on, and all later ones by the last part."""

    script: tuple[Scripted, ...]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was asked for."""
        return [asked.body for asked in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request on a connection, and close it."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in rest)}
            body = json.loads(await reader.readexactly(int(headers["content-length"])))
            self.asked.append(Asked(first.split()[1], headers, body))
            part = self.script[min(len(self.asked), len(self.script)) - 1]
            if isinstance(part, bytes):
                writer.write(part)
            else:
                await part(Line(reader, writer))
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def endpoint(*script: Scripted) -> AsyncGenerator[ChatEndpoint]:
    """A server on this machine; what still goes on with it at the end is cut off."""
    chat = ChatEndpoint(script)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(task := asyncio.ensure_future(chat.serve(reader, writer)))
        with suppress(asyncio.CancelledError):
            await task
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        chat.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield chat
        finally:
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)


@dataclass
class Waits:
    """Stands in for sleeping: notes how long it would have been."""

    waited: list[float] = field(default_factory=list)

    async def __call__(self, wait_s: float) -> None:
        """Sleep not at all."""
        self.waited.append(wait_s)


@asynccontextmanager
async def asking(
    url: str,
    *,
    api_key: str | None = None,
    native: bool = False,
    sampling: Sampling | None = None,
    patience: Patience | None = None,
) -> AsyncGenerator[OpenAIChatPolicy]:
    """A policy that asks an endpoint and waits for nothing between two attempts."""
    async with httpx.AsyncClient(verify=TLS) as client:
        yield OpenAIChatPolicy(
            Endpoint(url, MODEL, api_key),
            native=native,
            sampling=sampling,
            patience=patience or Patience(sleep=Waits(), random=lambda: 0.0),
            client=client,
        )


async def completed(*script: Scripted, prompt: Prompt = HELLO, told: list[str] | None = None) -> Completion:
    """What a policy makes of one answer; asked for as a stream where a list is given to be told."""
    async with endpoint(*script) as chat, asking(chat.url) as policy:
        return await policy.act(prompt, None if told is None else told.append)


def http(body: object, *, status: int = 200, headers: str = "") -> bytes:
    """A whole answer: bytes as they are, anything else as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    kind = "text/plain" if isinstance(body, bytes) else "application/json"
    head = f"HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n{headers}\r\n"
    return head.encode() + content


def says(content: object, **message: Any) -> bytes:
    """A whole answer with one message."""
    return http({"choices": [{"index": 0, "message": {"content": content, **message}, "finish_reason": "stop"}]})


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Bytes as one piece of a stream."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def streamed(*pieces: bytes) -> bytes:
    """A whole stream, in pieces that a client receives as such."""
    return STREAM_HEAD + b"".join(chunk(piece) for piece in pieces if piece) + STREAM_END


DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """JSON as an event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(finish_reason: str | None = None, **message: Any) -> bytes:
    """A piece of a message as an event."""
    return event({"choices": [{"index": 0, "delta": message, "finish_reason": finish_reason}]})
