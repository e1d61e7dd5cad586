"""What other packages add to the HTTP server, and what holds for it whoever made it."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi import APIRouter
from starlette.responses import PlainTextResponse

from agemem_mcp.app import service_gate
from agemem_mcp.owner import listening
from agemem_mcp.server.extensions import Extension
from agemem_mcp.server.http import _MAX_BODY_BYTES, HttpOptions, build_app

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from agemem_mcp.settings import Settings

BASE = "http://127.0.0.1:8000"


async def length(request: Request) -> PlainTextResponse:
    """How long the body is."""
    return PlainTextResponse(str(len(await request.body())))


async def close() -> None:
    """Nothing to close."""


def counting(*_: Any) -> Extension:
    """An extension that tells how long a body is."""
    router = APIRouter()
    router.add_route("/v1/length", length, methods=["POST"])
    return Extension(router, close)


def client(settings: Settings, **options: Any) -> httpx2.AsyncClient:
    """A client of a server with that extension."""
    app = build_app(HttpOptions(**options), service_gate(settings), extend=[counting])
    transport = httpx2.ASGITransport(app)  # pyright: ignore[reportArgumentType]  its scope type is wider
    return httpx2.AsyncClient(transport=transport, base_url=BASE)


async def pieces(count: int) -> AsyncGenerator[bytes]:
    """A body of so many bytes whose length is not told beforehand."""
    for _ in range(count // 1024):
        yield b"x" * 1024


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1024, 413)])
async def test_a_body_is_counted_as_it_comes(lexical_settings: Settings, more: int, status: int) -> None:
    async with client(lexical_settings) as http:
        answer = await http.post("/v1/length", content=pieces(_MAX_BODY_BYTES + more))
    assert answer.status_code == status
    assert status == 413 or answer.text == str(_MAX_BODY_BYTES)


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        ({}, {}, 200),
        ({}, {"Host": "evil.example"}, 421),
        ({}, {"Origin": "http://evil.example"}, 403),
        ({"token": "a long token"}, {}, 401),
        ({"token": "a long token"}, {"Authorization": "Bearer a long token"}, 200),
    ],
)
async def test_an_extension_is_guarded_like_mcp(
    lexical_settings: Settings, options: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    async with client(lexical_settings, **options) as http:
        answer = await http.post("/v1/length", headers=headers)
    assert answer.status_code == status
    assert status == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_server_without_extensions_answers_no_such_path(lexical_settings: Settings) -> None:
    app = build_app(HttpOptions(), service_gate(lexical_settings))
    transport = httpx2.ASGITransport(app)  # pyright: ignore[reportArgumentType]  its scope type is wider
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as http:
        assert (await http.post("/v1/length")).status_code == 404


def test_extensions_are_found_by_their_entry_points_and_given_the_settings(
    lexical_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("counting", f"{__name__}:counting", listening.ENTRY_POINT_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _: counting)
    monkeypatch.setattr(listening, "entry_points", lambda group: [point] if group == "agemem_mcp.http" else [])
    (make,) = listening._offered(lexical_settings, HttpOptions())
    assert isinstance(make(service_gate(lexical_settings), None), Extension)  # pyright: ignore[reportArgumentType]
