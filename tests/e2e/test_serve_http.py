"""The server over HTTP: one process for many clients, with hosts, tokens and namespaces."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from typing import Any

import httpx2
import pytest

from agemem_mcp.adapters.data_folder import DataFolder

BOTH_ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"])
EIGHT = {
    "Add_memory",
    "Update_memory",
    "Delete_memory",
    "Retrieve_memory",
    "Summary_context",
    "Filter_context",
    "Append_context",
    "Show_context",
}
TOKEN = "correct-horse-battery-staple"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
ACCEPTED = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(new_place: Any) -> Any:
    """One open server that the tests share, each in a namespace of its own."""
    return new_place().serve_http().ready()


@pytest.fixture(scope="module")
def guarded(new_place: Any) -> Any:
    """One server with a token."""
    return new_place().serve_http(AGEMEM_TOKEN=TOKEN).ready()


@BOTH_ERAS
async def test_all_eight_tools_carry_a_story_through(server: Any, tools_of: Any, mode: str) -> None:
    async with server.client(mode=mode, X_Agemem_Namespace=f"story-{mode}") as client:
        call = tools_of(client)
        assert {tool.name for tool in (await client.list_tools()).tools} == EIGHT
        plan = await call(
            "Add_memory", content="The team meets on Monday.", memory_type="fact", metadata={"team": "red"}
        )
        other = await call("Add_memory", content="The printer is on floor two.")
        updated = await call("Update_memory", memory_id=plan["memory_id"], content="The team meets on Tuesday.")
        assert updated["version"] == 2
        found = await call(
            "Retrieve_memory", query="When does the team meet?", metadata_filter={"team": ["red", "blue"]}
        )
        assert [hit["content"] for hit in found["memories"]] == ["The team meets on Tuesday."]
        session = found["session_id"]
        await call(
            "Append_context",
            session_id=session,
            messages=[{"role": "user", "content": "Where is the coffee machine and how is it descaled?"}],
        )
        filtered = await call("Filter_context", criteria="coffee machine", session_id=session)
        assert len(filtered["removed"]) == 1
        assert (await call("Summary_context", span="1", summary="Tuesday.", session_id=session))["method"] != ""
        shown = await call("Show_context", session_id=session)
        assert [one["content"] for one in shown["messages"]] == ["Tuesday."]
        gone = await call("Delete_memory", memory_id=other["memory_id"], confirmation=True)
        assert gone == {"memory_id": other["memory_id"], "deleted": True}


async def test_the_namespace_header_keeps_memories_and_sessions_apart(server: Any, tools_of: Any) -> None:
    async with (
        server.client(X_Agemem_Namespace="anna") as for_anna,
        server.client(X_Agemem_Namespace="bert", mode="legacy") as for_bert,
        server.client() as for_all,
    ):
        anna, bert, default = tools_of(for_anna), tools_of(for_bert), tools_of(for_all)
        secret = await anna("Add_memory", content="Anna's locker code is 4711.")
        session = (await anna("Append_context", messages="Locker code 4711."))["session_id"]
        for stranger in (bert, default):
            assert (await stranger("Retrieve_memory", query="locker code 4711"))["memories"] == []
            for tool, arguments in (
                ("Update_memory", {"memory_id": secret["memory_id"], "content": "x"}),
                ("Delete_memory", {"memory_id": secret["memory_id"], "confirmation": True}),
                ("Show_context", {"session_id": session}),
                ("Append_context", {"session_id": session, "messages": "x"}),
                ("Filter_context", {"session_id": session, "criteria": "locker"}),
                ("Summary_context", {"session_id": session, "span": "all"}),
                ("Retrieve_memory", {"session_id": session, "query": "locker"}),
            ):
                said = await stranger.error(tool, **arguments)
                assert "There is no" in said
                assert "4711" not in said
        assert [hit["content"] for hit in (await anna("Retrieve_memory", query="locker code"))["memories"]] == [
            "Anna's locker code is 4711."
        ]


async def test_a_namespace_that_is_none_is_refused_with_the_rule(server: Any, tools_of: Any) -> None:
    async with server.client(X_Agemem_Namespace="../other") as client:
        said = await tools_of(client).error("Add_memory", content="x")
        assert "'../other' is no namespace" in said


async def test_many_clients_at_once_lose_nothing(server: Any, tools_of: Any) -> None:
    async def write(number: int) -> str:
        async with server.client(X_Agemem_Namespace="crowd", mode="legacy" if number % 2 else "auto") as client:
            return str((await tools_of(client)("Add_memory", content=f"crowd member {number}"))["memory_id"])

    made = await asyncio.gather(*(write(number) for number in range(12)))
    async with server.client(X_Agemem_Namespace="crowd") as client:
        found = await tools_of(client)("Retrieve_memory", query="crowd member", top_k=100)
    assert sorted(hit["memory_id"] for hit in found["memories"]) == sorted(made)
    assert len(set(made)) == 12


def test_health_and_readiness_are_answered(server: Any) -> None:
    health = server.get("/healthz")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    ready = server.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("header", [{"Host": "evil.example"}, {"Host": "evil.example:80"}])
def test_a_foreign_host_is_refused(server: Any, header: dict[str, str]) -> None:
    answer = httpx2.post(f"{server.url}/mcp", json=LIST, headers={**ACCEPTED, **header})
    assert answer.status_code == 421


def test_a_foreign_origin_is_refused(server: Any) -> None:
    answer = httpx2.post(f"{server.url}/mcp", json=LIST, headers={**ACCEPTED, "Origin": "https://evil.example"})
    assert answer.status_code == 403


def test_an_allowed_host_is_let_in(place: Any) -> None:
    server = place.serve_http("--allowed-host", "memory.example")
    for host in ("memory.example", "memory.example:8443"):
        answer = httpx2.post(f"{server.url}/mcp", json=LIST, headers={**ACCEPTED, "Host": host})
        assert answer.status_code not in (403, 421), answer.text
    assert httpx2.post(f"{server.url}/mcp", json=LIST, headers={**ACCEPTED, "Host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("given", [None, "Bearer wrong", f"bearer-{TOKEN}", TOKEN, "Basic abc", "Bearer"])
def test_without_the_right_token_nothing_but_health_is_answered(guarded: Any, given: str | None) -> None:
    headers = {**ACCEPTED, **({} if given is None else {"Authorization": given})}
    answer = httpx2.post(f"{guarded.url}/mcp", json=LIST, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "AGEMEM_TOKEN" in answer.json()["error"]
    assert TOKEN not in answer.text
    assert guarded.get("/healthz").status_code == 200


@BOTH_ERAS
async def test_with_the_token_tools_work(guarded: Any, tools_of: Any, mode: str) -> None:
    async with guarded.client(mode=mode, Authorization=f"Bearer {TOKEN}") as client:
        assert (await tools_of(client)("Add_memory", content=f"let in, {mode}"))["duplicate"] is False


def test_the_token_is_nowhere_in_what_the_server_says(guarded: Any) -> None:
    assert "Authorization: Bearer $AGEMEM_TOKEN" in guarded.process.log
    assert TOKEN not in guarded.process.log


@BOTH_ERAS
async def test_what_was_acknowledged_survives_sigterm_and_kill(place: Any, tools_of: Any, mode: str) -> None:
    number = signal.SIGKILL if mode == "auto" else signal.SIGTERM
    server = place.serve_http()
    async with server.client(mode=mode) as client:
        call = tools_of(client)
        made = await asyncio.gather(*(call("Add_memory", content=f"acknowledged {n}") for n in range(25)))
        session = (await call("Append_context", messages=["first", "second"]))["session_id"]
        server.process.end(number)
    if number is signal.SIGTERM:
        assert server.process.status in (0, -signal.SIGTERM)
        assert "Traceback" not in server.process.log
        assert not (place.data / "lock.pid").exists()
        manifest = json.loads((place.data / "index" / "manifest.json").read_text(encoding="utf-8"))
        assert manifest["flushed_seq"] == 25
    async with place.serve_http().client(mode=mode) as client:
        call = tools_of(client)
        found = await call("Retrieve_memory", query="acknowledged", top_k=100)
        assert {hit["memory_id"] for hit in found["memories"]} == {one["memory_id"] for one in made}
        assert [one["content"] for one in (await call("Show_context", session_id=session))["messages"]] == [
            "first",
            "second",
        ]


async def test_a_server_whose_folder_is_held_is_alive_but_not_ready(place: Any, tools_of: Any, wait_until: Any) -> None:
    place.data.mkdir(mode=0o700)
    held = DataFolder(place.data).lock()
    server = place.serve_http()
    wait_until(lambda: server.get("/readyz").json() == {"status": "failed"}, "the server gave up")
    assert server.get("/readyz").status_code == 503
    assert server.get("/healthz").status_code == 200
    async with server.client() as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == EIGHT
        said = await tools_of(client).error("Add_memory", content="x")
        assert f"process id {os.getpid()}" in said
        held.release()
        assert (await tools_of(client)("Add_memory", content="x"))["duplicate"] is False
    assert server.get("/readyz").status_code == 200


@pytest.mark.parametrize("owner", ["daemon", "http"])
async def test_http_is_served_by_whoever_owns_the_folder(
    place: Any, tools_of: Any, wait_until: Any, owner: str
) -> None:
    first = place.serve_http() if owner == "http" else None
    async with place.stdio() as client:
        added = await tools_of(client)("Add_memory", content="Stored over stdio.")
        second = place.serve_http("--tools", "six")
        assert f"Process {place.holder()} owns this memory already" in second.process.log
        async with second.client() as other:
            assert len((await other.list_tools()).tools) == 6
            found = await tools_of(other)("Retrieve_memory", query="stored over stdio")
            assert [hit["memory_id"] for hit in found["memories"]] == [added["memory_id"]]
        status = place.run("daemon", "status", "--json").json()
        assert status["pid"] == place.holder()
        assert second.url in status["http"]
        second.process.end()
        wait_until(lambda: _refuses(second), "the owner stopped listening for it")
        assert (await tools_of(client)("Add_memory", content="Still served."))["duplicate"] is False
    if first is not None:
        assert first.get("/healthz").status_code == 200


def _refuses(server: Any) -> bool:
    try:
        server.get("/healthz")
    except httpx2.ConnectError:
        return True
    return False


def test_a_port_in_use_is_a_clear_error(place: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = place.run("serve", "--transport", "http", "--port", str(port)).error()
    assert f"Cannot listen on 127.0.0.1:{port}" in said
    assert "--port" in said


def test_listening_beyond_loopback_without_a_token_is_refused(place: Any) -> None:
    said = place.run("serve", "--transport", "http", "--host", "0.0.0.0", "--port", "0").error()
    assert "AGEMEM_TOKEN" in said
    assert "--insecure" in said


def test_a_chosen_port_is_the_one_listened_on(place: Any, free_port: int) -> None:
    server = place.serve_http("--port", str(free_port))
    assert server.url == f"http://127.0.0.1:{free_port}"
    assert server.get("/healthz").status_code == 200
