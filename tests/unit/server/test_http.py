"""The HTTP application: who is let in, what health and readiness say, which namespace a request works in."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from agemem_mcp._version import __version__
from agemem_mcp.adapters.system import RandomIds
from agemem_mcp.app import open_service
from agemem_mcp.errors import ConfigurationError, StoreError
from agemem_mcp.server.http import HttpOptions, _listen, build_app
from agemem_mcp.server.tools import ToolOffer
from agemem_mcp.service.gate import Progress, ServiceGate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from agemem_mcp.adapters.system import SteppingClock
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings

BASE = "http://127.0.0.1:8000"
TOKEN = "a long random text"
LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


class Web:
    """The application, and what holds up or brings down the memory behind it."""

    def __init__(self, settings: Settings, clock: SteppingClock) -> None:
        """Serve these settings."""
        self.settings = settings
        self.clock = clock
        self.let = asyncio.Event()
        self.let.set()
        self.failures: list[Exception] = []
        self.gate = ServiceGate(self._open)

    @asynccontextmanager
    async def _open(self, note: Callable[[Progress], None]) -> AsyncGenerator[MemoryService]:
        note(Progress("model: downloading"))
        await self.let.wait()
        if self.failures:
            raise self.failures.pop(0)
        async with open_service(self.settings, clock=self.clock, ids=RandomIds(seed=7)) as service:
            yield service

    @asynccontextmanager
    async def http(self, base: str = BASE, **options: Any) -> AsyncGenerator[httpx2.AsyncClient]:
        """A client of the running application."""
        app = build_app(HttpOptions(**options), self.gate)
        transport = httpx2.ASGITransport(app)  # pyright: ignore[reportArgumentType]  its scope type is wider
        try:
            async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url=base) as http:
                yield http
        finally:
            await self.gate.close()


@asynccontextmanager
async def mcp(http: httpx2.AsyncClient, *, mode: str = "auto", **headers: str) -> AsyncGenerator[Client]:
    """An MCP client over the application."""
    http.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    url = str(http.base_url.join("/mcp"))
    async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
        yield client


async def found(client: Client) -> list[str]:
    """What a search finds."""
    result = await client.call_tool("Retrieve_memory", {"query": "tea"})
    assert result.structured_content is not None
    return [one["content"] for one in result.structured_content["memories"]]


@pytest.fixture
def web(lexical_settings: Settings, clock: SteppingClock) -> Web:
    """An application without a model."""
    return Web(lexical_settings, clock)


async def test_health_is_told_before_the_memory_is_open_and_readiness_after(web: Web) -> None:
    web.let.clear()
    async with web.http() as http:
        health, ready = await http.get("/healthz"), await http.get("/readyz")
        assert (health.status_code, health.json()) == (200, {"status": "ok", "version": __version__})
        assert (ready.status_code, ready.json()["status"]) in [(503, "opening the memory"), (503, "model: downloading")]
        web.let.set()
        await web.gate.service()
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_a_memory_that_failed_to_open_is_not_ready_and_nobody_is_told_why(web: Web) -> None:
    web.failures = [StoreError("/home/ana/ledger.db is damaged")]
    async with web.http() as http:
        with pytest.raises(StoreError):
            await web.gate.service()
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "failed"})


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_stores_and_finds_over_http(web: Web, mode: str) -> None:
    async with web.http() as http, mcp(http, mode=mode) as client:
        assert len((await client.list_tools()).tools) == 8
        assert not (await client.call_tool("Add_memory", {"content": "Ana likes tea."})).is_error
        assert await found(client) == ["Ana likes tea."]


async def test_the_six_alone_are_offered_when_asked_for(web: Web) -> None:
    async with web.http(offer=ToolOffer(tools="six")) as http, mcp(http) as client:
        assert len((await client.list_tools()).tools) == 6


@pytest.mark.parametrize(
    "given", [None, "", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", f"Basic {TOKEN}", "Bearer é"]
)
async def test_a_request_without_the_token_is_turned_away(web: Web, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    async with web.http(token=TOKEN) as http:
        for path in ("/mcp", "/docs", "/openapi.json", "/healthz/", "//readyz"):
            answer = await http.post(path, json=LIST_TOOLS, headers=headers)  # pyright: ignore[reportArgumentType]
            assert answer.status_code == 401, path
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert "AGEMEM_TOKEN" in answer.json()["error"]
            assert TOKEN not in answer.text


async def test_health_needs_no_token_and_the_token_lets_in(web: Web) -> None:
    async with web.http(token=TOKEN) as http:
        await web.gate.service()
        assert [(await http.get(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]
        async with mcp(http, Authorization=f"Bearer {TOKEN}") as client:
            assert await found(client) == []


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("127.0.0.1:8000", {}),
        ("localhost:1234", {}),
        ("localhost", {}),
        ("[::1]:8000", {}),
        ("memory.example", {"allowed_hosts": ("memory.example",)}),
        ("memory.example:8443", {"allowed_hosts": ("memory.example",)}),
        ("10.0.0.5:8000", {"host": "10.0.0.5", "token": TOKEN}),
        ("anything.example", {"allowed_hosts": ("*",)}),
    ],
)
async def test_a_host_name_that_is_ours_is_let_in(web: Web, host: str, options: dict[str, Any]) -> None:
    async with web.http(f"http://{host}", **options) as http, mcp(http, Authorization=f"Bearer {TOKEN}") as client:
        assert await found(client) == []


@pytest.mark.parametrize(
    ("headers", "options", "status"),
    [
        ({"Host": "evil.example"}, {}, 421),
        ({"Host": "127.0.0.1.evil.example"}, {}, 421),
        ({"Host": "evil.example"}, {"allowed_hosts": ("memory.example",)}, 421),
        ({"Host": "evil.example"}, {"host": "0.0.0.0", "token": TOKEN}, 421),
        ({"Origin": "http://evil.example"}, {}, 403),
        ({"Origin": "null"}, {}, 403),
    ],
)
async def test_another_sites_page_is_turned_away(
    web: Web, headers: dict[str, str], options: dict[str, Any], status: int
) -> None:
    accept = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {TOKEN}"}
    async with web.http(**options) as http:
        answer = await http.post("/mcp", json=LIST_TOOLS, headers={**accept, **headers})
    assert answer.status_code == status


async def test_a_page_of_our_own_is_let_in(web: Web) -> None:
    async with web.http() as http, mcp(http, Origin="http://localhost:8000") as client:
        assert await found(client) == []


async def test_the_header_chooses_a_namespace_within_the_principal(web: Web) -> None:
    async with web.http(namespace="team") as http:
        async with mcp(http) as client:
            await client.call_tool("Add_memory", {"content": "tea for the team"})
        async with mcp(http, X_Agemem_Namespace="ana") as client:
            assert await found(client) == []
            await client.call_tool("Add_memory", {"content": "tea for Ana"})
            assert await found(client) == ["tea for Ana"]
        async with mcp(http, X_Agemem_Namespace="team") as client:
            assert await found(client) == ["tea for the team"]


@pytest.mark.parametrize("namespace", ["a b", "../x", "", "x" * 129])
async def test_a_header_that_is_no_namespace_is_a_tool_error(web: Web, namespace: str) -> None:
    async with web.http() as http, mcp(http, X_Agemem_Namespace=namespace) as client:
        result = await client.call_tool("Retrieve_memory", {"query": "tea"})
    assert result.is_error
    assert "is no namespace" in str(result.content)


async def test_a_body_beyond_the_limit_is_refused(web: Web) -> None:
    async with web.http() as http:
        answer = await http.post(
            "/mcp",
            content=b'"' + b"x" * 5_000_000 + b'"',
            headers={"Content-Type": "application/json", "Accept": "application/json, text/event-stream"},
        )
    assert answer.status_code == 413


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "memory.example"])
def test_listening_beyond_this_machine_wants_a_token_or_an_express_wish(web: Web, host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"without a token.*AGEMEM_TOKEN.*--insecure"):
        build_app(HttpOptions(host=host), web.gate)
    build_app(HttpOptions(host=host, token=TOKEN), web.gate)
    build_app(HttpOptions(host=host, insecure=True), web.gate)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_listening_on_this_machine_wants_no_token(web: Web, host: str) -> None:
    build_app(HttpOptions(host=host), web.gate)


def test_an_address_in_use_is_reported_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"Cannot listen on 127.0.0.1:{port}: .*--port"):
            _listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_reported() -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot listen on 192\.0\.2\.1"):
        _listen("192.0.2.1", 0)


async def test_the_application_can_be_left_and_the_memory_opened_again(web: Web) -> None:
    async with web.http() as http, mcp(http) as client:
        await client.call_tool("Add_memory", {"content": "tea"})
    again = Web(web.settings, web.clock)
    async with again.http() as http, mcp(http) as client:
        assert await found(client) == ["tea"]
