"""The endpoint in this process, with policies written for a test."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2

from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service
from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import ShowContext
from agemem_mcp.server.http import HttpOptions, build_app
from agemem_mcp.server.turns import Turns
from agemem_mcp.service.gate import ServiceGate
from agemem_mcp.service.long_term import Origin
from agemem_policies.endpoint.router import extension
from agemem_policies.endpoint.serving import ServedPolicy
from agemem_policies.policy import Completion
from agemem_policies.protocol import Turn, render
from agemem_policies.scripted import ScriptedPolicy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from fastapi import FastAPI

    from agemem_mcp.domain.ports import Clock
    from agemem_mcp.settings import Settings
    from agemem_policies.policy import OnText, Policy, Prompt
    from agemem_policies.scripted import Line

BASE = "http://127.0.0.1:8000"
CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def user(text: Any) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> dict[str, Any]:
    """An assistant's message."""
    return {"role": "assistant", "content": text, **more}


def result(call_id: str, text: str) -> dict[str, Any]:
    """What a tool of the client's returned."""
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def said(answer: httpx2.Response) -> dict[str, Any]:
    """The assistant's message of an answer, as a client sends it back."""
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]


def error(answer: httpx2.Response) -> str:
    """What a refusal says."""
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return answer.json()["error"]["message"]


def session(answer: httpx2.Response) -> str:
    """Which session was answered in."""
    return answer.headers["X-Agemem-Session"]


class CountingPolicy:
    """Answers with how many prompts it has seen; the first waits while it is told to."""

    name = "counting"
    native = False

    def __init__(self) -> None:
        self.seen: list[Prompt] = []
        self.let = asyncio.Event()
        self.let.set()
        self.asked = asyncio.Event()
        self.closed = False

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        self.seen.append(prompt)
        number = len(self.seen)
        self.asked.set()
        await self.let.wait()
        text = render(Turn(answer=f"answer {number}"))
        if on_text is not None:
            on_text(text)
        return Completion(text, prompt_tokens=10, completion_tokens=2)

    async def until_asked(self, times: int) -> None:
        """Wait for so many prompts."""
        while len(self.seen) < times:
            self.asked.clear()
            await self.asked.wait()

    async def close(self) -> None:
        self.closed = True


@dataclass
class Chat:
    """The running endpoint."""

    app: FastAPI
    http: httpx2.AsyncClient
    gate: ServiceGate
    headers: dict[str, str] = field(default_factory=dict[str, str])

    async def ask(self, *messages: dict[str, Any], headers: dict[str, str] | None = None, **more: Any) -> Any:
        """Send a conversation."""
        return await self.http.post(CHAT, json={"messages": list(messages), **more}, headers=headers or {})

    async def events(self, *messages: dict[str, Any], **more: Any) -> list[str]:
        """The blocks of a streamed answer."""
        answer = await self.ask(*messages, stream=True, **more)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.text.endswith("\n\n")
        return answer.text[:-2].split("\n\n")

    async def context(self, session_id: str, namespace: str = "default") -> list[tuple[str, str]]:
        """Role and text of what a session holds, without the agent's own instructions."""
        service = await self.gate.service()
        shown = await service.apply(Scope(namespace=namespace), ShowContext(session_id=session_id), Origin())
        messages = shown.model_dump(mode="json")["messages"]
        return [(one["role"], one["content"]) for one in messages[1:]]


def data_of(events: Sequence[str]) -> list[Any]:
    """What the events hold, comments and the last mark left out."""
    return [json.loads(one.removeprefix("data: ")) for one in events if one.startswith("data: {")]


@asynccontextmanager
async def serving(
    settings: Settings,
    make: Callable[[], Policy],
    *,
    scripted: bool = False,
    clock: Clock | None = None,
    **options: Any,
) -> AsyncGenerator[Chat]:
    """The endpoint with a policy of one's own."""
    gate = ServiceGate(lambda _: open_service(settings, clock=clock, ids=RandomIds(seed=7)))
    http_options = HttpOptions(**options)
    policy = ServedPolicy(make, "fake-model", scripted=scripted)
    extend = [partial(extension, policy, http_options.namespace)]
    app = build_app(http_options, gate, Turns(), extend)
    transport = httpx2.ASGITransport(app)  # pyright: ignore[reportArgumentType]  its scope type is wider
    try:
        async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=BASE) as http:
            yield Chat(app, http, gate)
    finally:
        await gate.close()


def script(*lines: Line) -> Callable[[], Policy]:
    """Makes policies that say these lines."""
    return lambda: ScriptedPolicy(lines)


async def bare(app: Any, body: dict[str, Any], gone: asyncio.Event, send: Callable[[Any], None]) -> None:
    """Ask without a client between: see each message as it is sent, and go away when the event is set."""
    received = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if received:
            return received.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def sending(message: Any) -> None:
        send(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "raw_path": CHAT.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"host", b"127.0.0.1:8000")],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 1),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }
    await app(scope, receive, sending)
