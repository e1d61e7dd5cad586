"""The server over stdio: one process per client, nothing but the protocol on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from mcp.shared.exceptions import MCPError
from tests.e2e.raw_client import HANDSHAKE, lines, tool_call

from agemem_mcp.adapters.data_folder import DataFolder

if TYPE_CHECKING:
    from collections.abc import Generator

BOTH_ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"])
SIX = {"Add_memory", "Update_memory", "Delete_memory", "Retrieve_memory", "Summary_context", "Filter_context"}
EIGHT = SIX | {"Append_context", "Show_context"}


@BOTH_ERAS
async def test_all_eight_tools_carry_a_story_through(place: Any, tools_of: Any, mode: str) -> None:
    async with place.stdio(mode=mode) as client:
        call = tools_of(client)
        assert {tool.name for tool in (await client.list_tools()).tools} == EIGHT
        added = await call(
            "Add_memory", content="Maya's flight to Lisbon leaves on 3 May.", metadata={"title": "Lisbon trip"}
        )
        assert set(added) == {"memory_id", "content", "created_at", "duplicate", "similar"}
        trip = added["memory_id"]
        assert (await call("Add_memory", content="Maya's flight to Lisbon leaves on 3 May."))["duplicate"] is True
        wrong = (await call("Add_memory", content="Maya loves peanuts."))["memory_id"]

        updated = await call("Update_memory", memory_id=trip, content="Maya's flight to Lisbon leaves on 4 May.")
        assert updated["version"] == 2
        assert updated["previous_content"] == "Maya's flight to Lisbon leaves on 3 May."
        assert "confirmation" in await call.error("Delete_memory", memory_id=wrong, confirmation=False)
        assert await call("Delete_memory", memory_id=wrong, confirmation=True) == {"memory_id": wrong, "deleted": True}

        found = await call("Retrieve_memory", query="flight to Lisbon", metadata_filter={"title": "Lisbon trip"})
        assert [hit["memory_id"] for hit in found["memories"]] == [trip]
        assert found["memories"][0]["content"] == "Maya's flight to Lisbon leaves on 4 May."
        assert found["context"]["message_count"] == 1
        session = found["session_id"]

        messages = [
            {"role": "user", "content": "Please book a table in Lisbon for the evening."},
            {"role": "assistant", "content": "Booked at Tasca do Miguel for 20:00."},
            {"role": "user", "content": "How do I descale a coffee machine?"},
        ]
        appended = await call("Append_context", messages=messages, session_id=session)
        assert len(appended["message_ids"]) == 3
        assert appended["context"]["message_count"] == 4
        filtered = await call("Filter_context", criteria="coffee machine", session_id=session)
        assert [one["message_id"] for one in filtered["removed"]] == [appended["message_ids"][2]]
        summed = await call("Summary_context", span="all", summary="Lisbon 4 May, table 20:00.", session_id=session)
        assert len(summed["replaced"]) == 3
        shown = await call("Show_context", session_id=session)
        assert [one["content"] for one in shown["messages"]] == ["Lisbon 4 May, table 20:00."]
        assert shown["context"]["tokens"] < appended["context"]["tokens"]


async def test_the_real_model_finds_a_memory_that_shares_no_word_with_the_query(full_place: Any, tools_of: Any) -> None:
    async with full_place.stdio() as client:
        call = tools_of(client)
        await call("Add_memory", content="The dentist moved to 12 Oak Street.")
        trip = await call("Add_memory", content="Maya's plane to Lisbon departs on Tuesday.")
        found = await call("Retrieve_memory", query="When is the flight?", top_k=1)
        assert [hit["memory_id"] for hit in found["memories"]] == [trip["memory_id"]]
        assert found["search"] == "hybrid"
        assert found["context"]["tokenizer"] == "o200k_base"
        assert found["context"]["approximate"] is False


@BOTH_ERAS
async def test_six_tools_leave_the_helpers_out(place: Any, tools_of: Any, mode: str) -> None:
    async with place.stdio("--tools", "six", mode=mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == SIX
        assert "There is no tool 'Show_context'" in await tools_of(client).error("Show_context", session_id="ctx_1")


async def test_memories_and_sessions_survive_a_restart(place: Any, tools_of: Any) -> None:
    async with place.stdio() as client:
        call = tools_of(client)
        added = await call("Add_memory", content="The spare key is under the blue pot.")
        session = (await call("Append_context", messages="Remember the blue pot."))["session_id"]
    place.end_daemon()
    async with place.stdio(mode="legacy") as client:
        call = tools_of(client)
        found = await call("Retrieve_memory", query="Where is the spare key?")
        assert [hit["memory_id"] for hit in found["memories"]] == [added["memory_id"]]
        shown = await call("Show_context", session_id=session)
        assert [one["content"] for one in shown["messages"]] == ["Remember the blue pot."]


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(place: Any, tools_of: Any) -> None:
    kept: dict[str, str] = {}
    async with place.stdio() as client:
        call = tools_of(client)
        for number in range(20):
            text = f"Parcel {number} stands in shelf {number * 7}."
            kept[(await call("Add_memory", content=text))["memory_id"]] = text
        first = next(iter(kept))
        kept[first] = "Parcel 0 was collected."
        await call("Update_memory", memory_id=first, content=kept[first])
        session = (await call("Append_context", messages=["one", "two", "three"]))["session_id"]
        place.end_daemon(signal.SIGKILL)
        with pytest.raises(MCPError):
            await call("Show_context", session_id=session)
    async with place.stdio() as client:
        call = tools_of(client)
        found = await call("Retrieve_memory", query="parcel shelf collected", top_k=100)
        assert {hit["memory_id"]: hit["content"] for hit in found["memories"]} == kept
        shown = await call("Show_context", session_id=session)
        assert [one["content"] for one in shown["messages"]] == ["one", "two", "three"]


@BOTH_ERAS
async def test_a_folder_held_by_a_process_that_serves_nobody_is_told_until_it_is_free(
    place: Any, tools_of: Any, mode: str
) -> None:
    place.data.mkdir(mode=0o700)
    held = DataFolder(place.data).lock()
    try:
        async with place.stdio(mode=mode) as client:
            call = tools_of(client)
            assert {tool.name for tool in (await client.list_tools()).tools} == EIGHT
            said = await call.error("Add_memory", content="Too early.")
            assert str(place.data) in said
            assert f"process id {os.getpid()}" in said
            assert "--data-dir" in said
            held.release()
            assert (await call("Add_memory", content="Now it is free."))["duplicate"] is False
    finally:
        held.release()


def test_stdout_carries_the_protocol_alone_however_much_is_logged(place: Any) -> None:
    process = place.start("serve", env={"AGEMEM_LOG_LEVEL": "debug"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    sent = [
        *HANDSHAKE,
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
        tool_call(3, "Add_memory", content="Grüße 🌍\nzweite Zeile"),
        tool_call(4, "No_tool"),
    ]
    answers: dict[int, Any] = {}
    process.stdin.write(lines(sent))
    process.stdin.flush()
    while len(answers) < 4:
        line = process.stdout.readline()
        assert line, process.log
        answer = json.loads(line)
        assert answer["jsonrpc"] == "2.0"
        if "id" in answer:
            answers[answer["id"]] = answer["result"]
    assert answers[3]["structuredContent"]["content"] == "Grüße 🌍\nzweite Zeile"
    assert answers[4]["isError"] is True
    process.stdin.close()
    assert process.stdout.read() == b""
    assert process.wait() == 0


@pytest.mark.parametrize("options", [(), ("--no-daemon",)])
def test_sigterm_ends_the_server_cleanly_and_one_without_a_daemon_frees_the_folder(
    place: Any, wait_until: Any, options: tuple[str, ...]
) -> None:
    process = place.start("serve", *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(lines([*HANDSHAKE, tool_call(2, "Add_memory", content="x y")]))
    process.stdin.flush()
    wait_until(lambda: b'"id":2' in process.stdout.readline().replace(b" ", b""), "the memory was stored")
    assert process.end(signal.SIGTERM) == 0
    assert (place.data / "lock.pid").exists() is (options == ())
    assert [one["content"] for one in place.run("memories", "list", "--json").json()] == ["x y"]


@pytest.mark.parametrize("options", [(), ("--no-daemon",)])
def test_calls_that_have_begun_are_answered_before_the_end_of_stdin_ends_the_server(
    place: Any, options: tuple[str, ...]
) -> None:
    process = place.start("serve", *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    calls = [tool_call(number, "Add_memory", content=f"Memory number {number}.") for number in range(1, 51)]
    process.stdin.write(lines([*HANDSHAKE, *calls]))
    process.stdin.close()
    answers = [json.loads(line) for line in process.stdout]
    stored = {one["id"] for one in answers if "structuredContent" in one.get("result", {})}
    assert stored == set(range(1, 51))
    assert process.wait() == 0


@contextmanager
def slow_hub() -> Generator[str]:
    """A hub whose files come at a few bytes a second; gives its address."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):
                while not over.wait(0.2):
                    self.wfile.write(b"x" * 100)
                    begun.set()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            """Say nothing."""

    over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    begun.clear()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


begun = threading.Event()


@pytest.mark.parametrize("options", [(), ("--no-daemon",)])
@pytest.mark.parametrize("ending", ["end of stdin", "SIGTERM"])
def test_a_server_that_is_still_fetching_files_ends_when_it_is_told_to(
    place: Any, ending: str, options: tuple[str, ...]
) -> None:
    with slow_hub() as address:
        fetching = {"AGEMEM_EMBEDDING": "", "AGEMEM_HUB_URL": address}
        process = place.start("serve", *options, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=fetching)
        process.stdin.write(lines([*HANDSHAKE, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}]))
        process.stdin.flush()
        assert begun.wait(60), process.log
        if ending == "SIGTERM":
            assert process.end(signal.SIGTERM) == 0
        else:
            process.stdin.close()
            assert process.wait() == 0
        if not options:
            place.end_daemon()
