"""One process per data folder: started on demand, shared by all, replaced, ended, found again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import pytest
from tests.e2e.raw_client import HANDSHAKE, RawClient, lines, tool_call

from agemem_mcp.link import places
from agemem_mcp.link.connecting import NoOwner, connect, greeting, read_line

LINKS = pytest.mark.parametrize("link", ["auto", "tcp"])


@pytest.fixture
def daemon(place: Any) -> Any:
    """A place whose daemon runs."""
    assert place.run("memories", "search", "nothing yet", "--json").json() == []
    return place


@LINKS
async def test_eight_clients_on_one_folder_share_a_daemon_and_keep_every_write(
    place: Any, tools_of: Any, link: str
) -> None:
    connected = asyncio.Barrier(9)

    async def client(number: int) -> list[str]:
        async with place.stdio(AGEMEM_DAEMON=link) as client:
            call = tools_of(client)
            added = await asyncio.gather(
                *(call("Add_memory", content=f"Client {number} keeps parcel {parcel}.") for parcel in range(8))
            )
            await connected.wait()
            await connected.wait()
            return [one["memory_id"] for one in added]

    clients = asyncio.gather(*(client(number) for number in range(8)))
    await connected.wait()
    assert place.owner()["address"].startswith("tcp:" if link == "tcp" else "unix:")
    status = place.run("daemon", "status", "--json").json()
    assert (status["pid"], status["clients"]) == (place.holder(), 8)
    await connected.wait()
    kept = {memory_id for ids in await clients for memory_id in ids}
    assert {one["memory_id"] for one in place.run("memories", "list", "--json").json()} == kept
    assert len(kept) == 64


async def test_namespaces_and_tools_belong_to_each_client(place: Any, tools_of: Any) -> None:
    async with place.stdio("--namespace", "work", "--tools", "six") as work, place.stdio() as home:
        assert len((await work.list_tools()).tools) == 6
        assert len((await home.list_tools()).tools) == 8
        mine = await tools_of(work)("Add_memory", content="The report is due on Friday.")
        assert (await tools_of(home)("Retrieve_memory", query="report due Friday"))["memories"] == []
        assert "There is no memory" in await tools_of(home).error(
            "Delete_memory", memory_id=mine["memory_id"], confirmation=True
        )


def test_the_pipe_loads_nothing_but_the_standard_library(daemon: Any) -> None:
    script = (
        "import sys, atexit, os\n"
        "sys.argv = ['agemem-mcp', 'serve']\n"
        "loaded = lambda: sorted({name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))\n"
        "atexit.register(lambda: print(loaded(), 'asyncio' in sys.modules, file=sys.stderr))\n"
        "from agemem_mcp._entry import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env=daemon.environment(PYTHONPATH=os.pathsep.join(path for path in sys.path if path)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "['__main__', 'agemem_mcp'] False"


async def test_files_of_the_link_are_private_and_go_with_the_daemon(place: Any, tools_of: Any) -> None:
    async with place.stdio() as client:
        await tools_of(client)("Add_memory", content="x")
        for name in ("owner.json", "owner.sock"):
            assert (place.data / name).stat().st_mode & 0o777 == 0o600
    holder = place.holder()
    assert place.run("daemon", "stop").out == f"Process {holder} has ended.\n"
    assert not (place.data / "owner.json").exists()
    assert not (place.data / "owner.sock").exists()
    assert place.run("daemon", "status", "--json").json()["running"] is False


async def test_a_folder_with_a_long_path_is_served_from_a_short_one(place: Any, tools_of: Any) -> None:
    deep = place.root / ("d" * 60) / ("e" * 60)
    async with place.stdio("--data-dir", str(deep)) as client:
        assert (await tools_of(client)("Add_memory", content="x"))["duplicate"] is False
        address = json.loads((deep / "owner.json").read_text(encoding="utf-8"))["address"]
        path = address.removeprefix("unix:")
        assert len(path) < 100
        assert os.stat(path).st_mode & 0o777 == 0o600  # noqa: PTH116  a string from JSON
        assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700  # noqa: PTH116, PTH120  as above


@pytest.mark.parametrize("secret", ["", "wrong", None])
def test_without_the_folders_secret_nobody_is_let_in(daemon: Any, secret: str | None) -> None:
    owner = places.read_owner(str(daemon.data))
    assert owner is not None
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as connection:
        connection.settimeout(60)
        connection.connect(owner.address.removeprefix("unix:"))
        hello = greeting("control")
        connection.sendall(lines([{**hello, **({} if secret is None else {"secret": secret})}, {"do": "status"}]))
        buffer = bytearray()
        answer = json.loads(read_line(connection, buffer) or b"{}")
        assert answer == {"ok": False, "error": "This connection did not show the folder's secret."}
        assert read_line(connection, buffer) is None


def test_whoever_listens_on_the_port_of_a_dead_daemon_learns_nothing(place: Any) -> None:
    env = {"AGEMEM_DAEMON": "tcp", "AGEMEM_SUMMARY__API_KEY": "a-secret-key"}
    place.run("memories", "search", "x", **env)
    dead = place.owner()
    place.end_daemon(signal.SIGKILL)
    with socket.create_server(("127.0.0.1", int(dead["address"].removeprefix("tcp:")))) as rogue:
        rogue.settimeout(60)
        process = place.start("memories", "search", "x", "--json", env=env, stdout=subprocess.PIPE)
        heard = bytearray()
        connection, _ = rogue.accept()
        with connection:
            connection.sendall(b'{"proof": "none", "ok": true, "notes": []}\n')
            while chunk := connection.recv(65536):
                heard += chunk
        assert json.loads(heard).keys() == {"nonce"}
        assert process.wait() == 0, process.log


@pytest.mark.parametrize("sent", [b"", b"[]\n", b'{"do": "fly"}\n', b'{"do": "search"}\n', b"x" * 100_000 + b"\n"])
def test_a_request_that_cannot_be_read_is_answered(daemon: Any, sent: bytes) -> None:
    link = connect(str(daemon.data), {**greeting("control"), "settings": dict(daemon.env)}, start=False)
    with closing(link.connection) as connection:
        connection.settimeout(60)
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        line = read_line(connection, bytearray())
    assert line is None if not sent else "cannot read this request" in json.loads(line or b"{}")["error"]
    assert "Traceback" not in (daemon.data / "daemon.log").read_text(encoding="utf-8")


async def test_the_daemon_ends_when_nobody_was_connected_for_a_while(
    place: Any, tools_of: Any, wait_until: Any
) -> None:
    async with place.stdio(AGEMEM_DAEMON_IDLE_MINUTES="0.02") as client:
        await tools_of(client)("Add_memory", content="x")
        await asyncio.sleep(2)
        assert (await tools_of(client)("Add_memory", content="y"))["duplicate"] is False
    wait_until(lambda: not (place.data / "lock.pid").exists(), "the daemon ended by itself")
    assert "Error" not in (place.data / "daemon.log").read_text(encoding="utf-8")


def test_sigterm_lets_the_daemon_finish_what_has_begun(daemon: Any) -> None:
    with closing(RawClient(daemon).socket) as connection:
        connection.sendall(
            lines([*HANDSHAKE, *(tool_call(n, "Add_memory", content=f"Memory number {n}.") for n in range(1, 21))])
        )
        buffer = bytearray()
        assert read_line(connection, buffer) is not None
        daemon.end_daemon()
        answered: set[int] = set()
        while line := read_line(connection, buffer):
            answered.add(json.loads(line)["id"])
    stored = {one["content"] for one in daemon.run("memories", "list", "--json").json()}
    assert {f"Memory number {n}." for n in answered if n} <= stored
    assert "Traceback" not in (daemon.data / "daemon.log").read_text(encoding="utf-8")


def test_the_pipe_says_when_the_daemon_is_lost_and_the_next_one_starts_another(daemon: Any) -> None:
    process = daemon.start("serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdin.write(lines(HANDSHAKE))
    process.stdin.flush()
    assert process.stdout.readline()
    lost = daemon.holder()
    daemon.end_daemon(signal.SIGKILL)
    assert process.wait() == 1
    assert f"The memory's daemon (process {lost}) ended" in process.log
    assert "daemon logs" in process.log
    # The socket, its file and the lock's file of the dead one are still there.
    assert (daemon.data / "owner.sock").exists()
    assert daemon.run("memories", "search", "x", "--json").json() == []
    assert daemon.holder() != lost


def test_a_stale_file_that_names_another_process_of_this_machine_is_seen_through(daemon: Any) -> None:
    daemon.end_daemon(signal.SIGKILL)
    stale = {**daemon.owner(), "pid": os.getpid()}
    (daemon.data / "owner.json").write_text(json.dumps(stale), encoding="utf-8")
    (daemon.data / "lock.pid").write_text(f"{os.getpid()}\n", encoding="ascii")
    assert daemon.run("memories", "search", "x", "--json").json() == []
    assert daemon.owner()["pid"] == daemon.holder() != os.getpid()


def test_many_clients_that_start_at_once_start_one_daemon(place: Any) -> None:
    processes = [place.start("serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)]
    for process in processes:
        process.stdin.write(lines(HANDSHAKE))
        process.stdin.flush()
    assert all(json.loads(process.stdout.readline())["id"] == 0 for process in processes)
    assert place.run("daemon", "status", "--json").json()["clients"] == 6
    for process in processes:
        process.stdin.close()
        assert process.wait() == 0


def test_other_settings_are_named_and_secrets_are_not_shown(daemon: Any) -> None:
    mine = {"AGEMEM_CONTEXT__BUDGET_TOKENS": "1000", "AGEMEM_SUMMARY__URL": "http://127.0.0.1:1/v1"}
    mine |= {"AGEMEM_SUMMARY__MODEL": "m", "AGEMEM_SUMMARY__API_KEY": "a-secret-key", "AGEMEM_NAMESPACE": "mine"}
    process = daemon.start("serve", env=mine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.wait() == 0
    assert f"served by process {daemon.holder()} with other settings" in process.log
    assert "AGEMEM_CONTEXT__BUDGET_TOKENS is 8192 there, 1000 here" in process.log
    assert "AGEMEM_SUMMARY__API_KEY" in process.log
    assert "a-secret-key" not in process.log
    assert "NAMESPACE" not in process.log


def test_a_setting_that_cannot_be_used_is_refused_by_a_running_daemon(daemon: Any) -> None:
    assert "Did you mean AGEMEM_EMBEDDING?" in daemon.run("serve", AGEMEM_EMBEDING="none").error()
    assert "is no namespace" in daemon.run("serve", "--namespace", "a b").error()


def test_a_newer_release_replaces_an_idle_daemon_and_waits_for_a_busy_one(daemon: Any) -> None:
    older = daemon.holder()
    with closing(RawClient(daemon).socket):
        hello = {**greeting("mcp"), "version": "99.0", "settings": dict(daemon.env)}
        link = connect(str(daemon.data), hello, start=False)
        assert "This is release 99.0" in link.notes[0]
        assert f"process {older}" in link.notes[0]
        link.connection.close()
    end = time.monotonic() + 60
    while True:
        try:
            connect(str(daemon.data), hello, start=False).connection.close()
        except NoOwner:
            break
        assert time.monotonic() < end
        time.sleep(0.02)
    assert daemon.run("memories", "search", "x", "--json").json() == []
    assert daemon.holder() != older


def test_a_server_without_a_daemon_is_joined_by_those_that_come_later(place: Any) -> None:
    first = place.start("serve", "--no-daemon", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first.stdin.write(lines([*HANDSHAKE, tool_call(1, "Add_memory", content="Kept in the first process.")]))
    first.stdin.flush()
    assert [json.loads(first.stdout.readline())["id"] for _ in range(2)] == [0, 1]
    assert place.holder() == first.pid
    found = place.run("memories", "search", "kept first process", "--json").json()
    assert [one["content"] for one in found] == ["Kept in the first process."]
    second = place.start("serve", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    second.stdin.write(lines(HANDSHAKE))
    second.stdin.flush()
    assert json.loads(second.stdout.readline())["id"] == 0
    first.stdin.close()
    assert first.wait() == 0
    assert second.wait() == 1


def test_logs_show_what_the_daemon_said(place: Any) -> None:
    assert "Nothing was logged" in place.run("daemon", "logs").err
    place.run("memories", "search", "x", AGEMEM_LOG_LEVEL="info")
    place.end_daemon()
    place.run("memories", "search", "x", AGEMEM_LOG_LEVEL="debug")
    assert place.run("daemon", "logs", "-n", "3").out.count("\n") <= 3


async def test_a_hundred_clients_at_once_are_served(daemon: Any) -> None:
    owner = places.read_owner(str(daemon.data))
    assert owner is not None
    hello = {**greeting("mcp"), "secret": owner.secret, "settings": dict(daemon.env)}

    async def client(number: int) -> str:
        reader, writer = await asyncio.open_unix_connection(owner.address.removeprefix("unix:"))
        try:
            writer.write(lines([hello, *HANDSHAKE, tool_call(1, "Add_memory", content=f"From client {number}.")]))
            for _ in range(2):
                await reader.readline()
            answer = json.loads(await reader.readline())
            assert answer["id"] == 1
            return str(answer["result"]["structuredContent"]["memory_id"])
        finally:
            writer.close()

    ids = await asyncio.gather(*(client(number) for number in range(100)))
    assert len(set(ids)) == 100
    assert len(daemon.run("memories", "list", "--json").json()) == 100
