"""What cannot be carried out is refused with a text that helps, and nothing stored before is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

KEPT = "The spare key is under the blue pot."
LONG = "a" * (64 * 1024 + 1)


async def _keep(place: Any, tools_of: Any) -> None:
    """Store one memory, which must be there in the end."""
    async with place.stdio() as client:
        await tools_of(client)("Add_memory", content=KEPT)
    place.end_daemon()


async def _is_kept(place: Any, tools_of: Any) -> None:
    async with place.stdio() as client:
        found = await tools_of(client)("Retrieve_memory", query="spare key blue pot")
        assert KEPT in [hit["content"] for hit in found["memories"]]


@pytest.fixture(scope="module")
def server(new_place: Any) -> Any:
    """One open server that the tests share, each in a namespace of its own."""
    return new_place().serve_http().ready()


REFUSED = [
    ("Update_memory", {"memory_id": "mem_none", "content": "x"}, ["There is no memory 'mem_none'", "Add_memory"]),
    ("Delete_memory", {"memory_id": "mem_none", "confirmation": True}, ["There is no memory 'mem_none'"]),
    ("Delete_memory", {"memory_id": "mem_none"}, ["confirmation is missing"]),
    ("Show_context", {"session_id": "ctx_none"}, ["There is no session 'ctx_none'", "Call Retrieve_memory"]),
    ("Append_context", {"session_id": "ctx_none", "messages": "x"}, ["There is no session 'ctx_none'"]),
    ("Retrieve_memory", {"session_id": "ctx_none", "query": "x"}, ["There is no session 'ctx_none'"]),
    ("Filter_context", {"criteria": "x"}, ["needs a session_id", "Retrieve_memory opens"]),
    ("Summary_context", {"span": "all"}, ["needs a session_id", "Retrieve_memory opens"]),
    ("Add_memory", {}, ["content is missing"]),
    ("Add_memory", {"content": ""}, ["content must not be empty or blank"]),
    ("Add_memory", {"content": " \n\t\u00a0"}, ["content must not be empty or blank"]),
    ("Add_memory", {"content": LONG}, ["65,537 bytes", "65,536", "Split"]),
    ("Add_memory", {"content": "é" * 40_000}, ["80,000 bytes"]),
    ("Update_memory", {"memory_id": "mem_1", "content": LONG}, ["65,537 bytes"]),
    ("Append_context", {"messages": LONG}, ["65,537 bytes"]),
    ("Add_memory", {"content": "a\x00b"}, ["NUL character"]),
    ("Retrieve_memory", {"query": "a\x00b"}, ["NUL character"]),
    ("Add_memory", {"content": "x", "metadata": {"a": "b\x00"}}, ["metadata holds a NUL character"]),
    ("Add_memory", {"content": "x", "metadata": {"a\x00": "b"}}, ["NUL character"]),
    ("Show_context", {"session_id": "ctx_\x00"}, ["NUL character"]),
    *(
        ("Retrieve_memory", {"query": "x", "top_k": top_k}, ["top_k must be a whole number from 1 to 100"])
        for top_k in (0, -1, 101, 2.5, "many", [], {}, 10**400)
    ),
    *(
        ("Summary_context", {"span": span, "session_id": "ctx_none"}, ['span must be "all"'])
        for span in ("0", "-1", "abc", 0, -1, 1.5, "", [], None)
    ),
    ("Add_memory", {"content": "x", "metadata": "not json"}, ["metadata must be a JSON object"]),
    ("Add_memory", {"content": "x", "metadata": [1]}, ["metadata must be a JSON object"]),
    ("Add_memory", {"content": "x", "metadata": "[" * 100_000}, ["metadata must be a JSON object"]),
    ("Add_memory", {"content": "x", "metadata": {"a": 10**30}}, ["cannot be stored", "string"]),
    ("Add_memory", {"content": "x", "metadata": {"a": "b" * 20_000}}, ["metadata is larger than", "content"]),
    ("Add_memory", {"content": "x", "metadata": {"": 1}}, ["metadata has a key"]),
    ("Add_memory", {"content": "x", "metadata": {"expires_at": "soon"}}, ["ISO time"]),
    ("Add_memory", {"content": "x", "metadata": {"expires_at": "2001-01-01T00:00:00Z"}}, ["already passed"]),
    ("Retrieve_memory", {"query": "x", "metadata_filter": {"created_at": {"after": "soon"}}}, ["created_at"]),
    ("Add_memory", {"content": "x", "memory": "y"}, ["there is no argument memory", "content, metadata, memory_type"]),
    ("Forget_memory", {}, ["There is no tool 'Forget_memory'", "Delete_memory"]),
]


async def test_arguments_that_cannot_be_used_are_refused_with_what_to_do(server: Any, tools_of: Any) -> None:
    async with server.client(X_Agemem_Namespace="refused") as client:
        call = tools_of(client)
        await call("Add_memory", content=KEPT)
        for tool, arguments, words in REFUSED:
            said = await call.error(tool, **arguments)
            assert all(word in said for word in words), (tool, str(arguments)[:80], said)
            assert len(said) < 1000
        found = await call("Retrieve_memory", query="spare key", top_k=100)
        assert [hit["content"] for hit in found["memories"]] == [KEPT]


async def test_metadata_nested_without_end_is_refused(server: Any, tools_of: Any) -> None:
    nested: Any = "end"
    for _ in range(60):
        nested = {"deeper": nested}
    async with server.client(X_Agemem_Namespace="nested") as client:
        for given in (nested, json.dumps(nested)):
            assert "nested more than 12 levels" in await tools_of(client).error(
                "Add_memory", content="x", metadata=given
            )


async def test_a_foreign_id_is_refused_in_the_words_of_an_unknown_one(server: Any, tools_of: Any) -> None:
    async with server.client(X_Agemem_Namespace="owner") as client:
        added = (await tools_of(client)("Add_memory", content="Owned."))["memory_id"]
        session = (await tools_of(client)("Append_context", messages="Owned."))["session_id"]
    async with server.client(X_Agemem_Namespace="stranger") as client:
        call = tools_of(client)
        foreign = await call.error("Delete_memory", memory_id=added, confirmation=True)
        unknown = await call.error("Delete_memory", memory_id="mem_zzzz", confirmation=True)
        assert foreign.replace(added, "mem_zzzz") == unknown
        foreign = await call.error("Show_context", session_id=session)
        unknown = await call.error("Show_context", session_id="ctx_zzzz")
        assert foreign.replace(session, "ctx_zzzz") == unknown


async def test_an_expired_session_is_refused_and_its_memories_stay(place: Any, tools_of: Any, wait_until: Any) -> None:
    short = {"AGEMEM_CONTEXT__SESSION_DAYS": "0.000001", "AGEMEM_CONTEXT__UNNAMED_SESSION_HOURS": "0.00001"}
    async with place.stdio(**short) as client:
        call = tools_of(client)
        await call("Add_memory", content=KEPT)
        session = (await call("Retrieve_memory", query="key"))["session_id"]
        # Looked at from outside, since naming a session prolongs its life.
        wait_until(lambda: place.run("sessions", "list", "--json").json() == [], "the session expired")
        said = await call.error("Show_context", session_id=session)
        assert session in said
        assert "expired" in said
        assert "without session_id for a new one" in said
        assert "There is no session" in place.run("sessions", "show", session).error()
        assert len((await call("Retrieve_memory", query="spare key"))["memories"]) == 1


@pytest.mark.parametrize("name", ["ledger.db", "sessions.db"])
async def test_a_corrupt_database_is_left_as_it_is(place: Any, tools_of: Any, name: str) -> None:
    await _keep(place, tools_of)
    path = place.data / name
    sound = path.read_bytes()
    damaged = sound[:100] + b"\xff" * (len(sound) - 100)
    path.write_bytes(damaged)
    async with place.stdio() as client:
        for tool, arguments in (("Add_memory", {"content": "x"}), ("Append_context", {"messages": "x"})):
            said = await tools_of(client).error(tool, **arguments)
            assert f"The database {path} is damaged" in said
            assert "restore a backup" in said
    assert path.read_bytes() == damaged
    place.end_daemon()
    assert "damaged" in place.run("memories" if name == "ledger.db" else "sessions", "list").error()
    path.write_bytes(sound)
    await _is_kept(place, tools_of)


async def test_a_file_that_is_no_database_is_left_as_it_is(place: Any, tools_of: Any) -> None:
    place.data.mkdir()
    ledger = place.data / "ledger.db"
    ledger.write_text("My own notes, which must not be overwritten.\n" * 100, encoding="utf-8")
    before = ledger.read_bytes()
    async with place.stdio() as client:
        assert str(ledger) in await tools_of(client).error("Add_memory", content="x")
    assert ledger.read_bytes() == before


@contextmanager
def small_disk(folder: Path, size: str) -> Generator[None]:
    """A disk of its own for a folder, or a skip where none can be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or sys.platform != "linux":
        pytest.skip("small disks are mounted on Linux alone")
    mounted = subprocess.run(command, capture_output=True, check=False, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk could be mounted: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_with_no_room_for_an_index_is_told_before_anything_is_made(place: Any, tools_of: Any) -> None:
    with small_disk(place.data, "6m"):
        async with place.stdio() as client:
            for _ in range(2):
                said = await tools_of(client).error("Add_memory", content="x")
                assert f"The disk that holds the data folder {place.data} is full" in said
                assert "Free some space" in said
        made = {path.name for path in place.data.rglob("*") if path.is_file() and path.stat().st_size}
        assert made <= {"daemon.log"}


async def test_a_full_disk_is_told_and_nothing_acknowledged_is_lost(place: Any, tools_of: Any) -> None:
    with small_disk(place.data, "96m"):
        async with place.stdio() as client:
            call = tools_of(client)
            await call("Add_memory", content=KEPT)
            with (place.data / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
                while True:
                    ballast.write(b"x" * 4096)
            for number in range(3):
                for tool, arguments in (
                    ("Add_memory", {"content": f"{number} " + "word " * 9000}),
                    ("Append_context", {"messages": f"{number} " + "word " * 9000}),
                ):
                    said = await call.error(tool, **arguments)
                    assert "full" in said
                    assert "Free some space" in said
            (place.data / "ballast").unlink()
            await call("Add_memory", content="Stored after space was freed.")
        place.end_daemon()
        async with place.stdio() as client:
            found = await tools_of(client)("Retrieve_memory", query="spare key stored", top_k=100)
            assert {hit["content"] for hit in found["memories"]} == {KEPT, "Stored after space was freed."}
        place.end_daemon()


async def test_a_data_folder_that_cannot_be_made_is_told(place: Any, tools_of: Any) -> None:
    obstacle = place.root / "file"
    obstacle.write_text("in the way", encoding="utf-8")
    below = str(obstacle / "data")
    async with place.stdio("--data-dir", below) as client:
        assert len((await client.list_tools()).tools) == 8
        said = await tools_of(client).error("Add_memory", content="x")
        assert below in said
        assert "--data-dir" in said
    assert below in place.run("memories", "list", "--data-dir", below).error()
    assert obstacle.read_text(encoding="utf-8") == "in the way"


async def test_a_missing_data_folder_is_made_for_its_owner_alone(place: Any, tools_of: Any) -> None:
    deep = place.root / "not" / "yet" / "there"
    async with place.stdio("--data-dir", str(deep)) as client:
        await tools_of(client)("Add_memory", content="x")
    assert deep.stat().st_mode & 0o777 == 0o700


async def test_a_read_only_data_folder_is_told_and_left_as_it_is(place: Any, tools_of: Any) -> None:
    prefix: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write anywhere, and there is no setpriv to give that up")
        prefix = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
    await _keep(place, tools_of)
    place.data.chmod(0o500)
    try:
        server = place.serve_http(prefix=prefix)
        async with server.client() as client:
            said = await tools_of(client).error("Add_memory", content="x")
            assert str(place.data) in said
            assert "permissions" in said
        server.process.end(signal.SIGTERM)
        refused = place.run("memories", "restore", "mem_1", prefix=prefix).error()
        assert "permissions" in refused
    finally:
        place.data.chmod(0o700)
    await _is_kept(place, tools_of)


async def test_a_folder_made_with_another_embedding_model_is_refused_with_the_way_back(
    full_place: Any, tools_of: Any
) -> None:
    await _keep(full_place, tools_of)
    async with full_place.stdio(AGEMEM_EMBEDDING="none") as client:
        said = await tools_of(client).error("Add_memory", content="x")
        assert "all-MiniLM-L6-v2" in said
        assert "none" in said
        assert "AGEMEM_EMBEDDING" in said
    full_place.end_daemon()
    await _is_kept(full_place, tools_of)


def test_lone_surrogates_over_the_wire_are_refused_by_a_text(place: Any) -> None:
    process = place.start("serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    client = {"name": "raw", "version": "1"}
    start = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client}

    def add(number: int, content: str) -> dict[str, Any]:
        params = {"name": "Add_memory", "arguments": {"content": content}}
        return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}

    for message in (
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": start},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        add(2, "broken \ud83c character"),
        add(3, "whole \U0001f30d character"),
    ):
        # json.dumps writes the surrogate as an escape, as a careless client does.
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()
    answers: dict[int, Any] = {}
    while 3 not in answers:
        line = process.stdout.readline()
        assert line, process.log
        answer = json.loads(line)
        if "id" in answer:
            answers[answer["id"]] = answer
    assert answers[2]["error"]["code"] == -32700
    assert "send whole characters" in answers[2]["error"]["message"]
    assert answers[3]["result"]["structuredContent"]["content"] == "whole \U0001f30d character"
    stored = place.run("memories", "list", "--json").json()
    assert [one["content"] for one in stored] == ["whole \U0001f30d character"]


def test_an_unknown_setting_keeps_the_server_from_starting(place: Any) -> None:
    said = place.run("serve", AGEMEM_EMBEDING="none").error()
    assert "Did you mean AGEMEM_EMBEDDING?" in said
    assert not (place.data / "ledger.db").exists()
