"""Real processes for the tests: servers and commands on a folder of their own, ended whatever happens."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Sequence
    from pathlib import Path

    from mcp_types import CallToolResult

DEADLINE_S = 60.0
_POLL_S = 0.02
LEXICAL = {"AGEMEM_EMBEDDING": "none", "AGEMEM_CONTEXT__TOKENIZER": "estimate"}


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until the condition holds, and give what it returned."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        select.select([], [], [], _POLL_S)
    pytest.fail(f"waited {DEADLINE_S:.0f} s in vain until {what}")


@contextmanager
def unwrapped() -> Generator[None]:
    """Show the one exception within the groups that the client's task groups make of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        inner: BaseException = group
        while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        raise inner from None


@dataclass(frozen=True)
class Finished:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """What ``--json`` printed; the command must have succeeded."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    def error(self) -> str:
        """The text of an expected error."""
        assert self.status == 1, (self.status, self.out, self.err)
        assert "Traceback" not in self.err
        assert self.err.count("Error: ") == 1, self.err
        return self.err.split("Error: ")[1].strip()


class Process:
    """A process of ours, with its stderr in a file."""

    def __init__(self, command: Sequence[str], env: dict[str, str], log: Path, **options: Any) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(list(command), env=env, stderr=stderr, **options)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def status(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the status."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the status."""
        return self._process.wait(timeout=DEADLINE_S)

    def dispose(self) -> None:
        """End it if it still runs, and close its pipes."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(timeout=DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def _is_gone(pid: int) -> bool:
    """Whether a process that is not ours to wait for has ended."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@dataclass
class Place:
    """A data folder with a home and an environment of its own, and all processes started on it."""

    root: Path
    env: dict[str, str]
    processes: list[Process] = field(default_factory=list)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.root / "data"

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a process, without settings of whoever runs the tests."""
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("AGEMEM_")}
        own = {
            "HOME": str(self.root / "home"),
            "COLUMNS": "100",
            "AGEMEM_DATA_DIR": str(self.data),
            "AGEMEM_ASSETS_DIR": str(self.root / "assets"),
        }
        return {**inherited, **own, **self.env, **more}

    def run(self, *arguments: str, text: str | None = None, prefix: Sequence[str] = (), **env: str) -> Finished:
        """Run `agemem-mcp` with these arguments to its end."""
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "agemem_mcp", *arguments],
            env=self.environment(**env),
            input=text,
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE_S,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def start(
        self, *arguments: str, prefix: Sequence[str] = (), env: dict[str, str] | None = None, **options: Any
    ) -> Process:
        """Start `agemem-mcp` with these arguments."""
        process = Process(
            [*prefix, sys.executable, "-m", "agemem_mcp", *arguments],
            self.environment(**(env or {})),
            self.root / f"stderr-{len(self.processes)}.log",
            **options,
        )
        self.processes.append(process)
        return process

    def serve_http(self, *arguments: str, prefix: Sequence[str] = (), **env: str) -> HttpServer:
        """Start a server on a free port, and wait until it listens."""
        process = self.start("serve", "--transport", "http", "--port", "0", *arguments, prefix=prefix, env=env)

        def announced() -> str | None:
            assert process.status is None, process.log
            found = [line for line in process.log.splitlines() if line.startswith("agemem-mcp serves ")]
            return found[0] if found else None

        line = until(announced, "the server announced its address")
        return HttpServer(process, line.rsplit(" at ", 1)[1].removesuffix("/mcp"))

    @asynccontextmanager
    async def stdio(self, *arguments: str, mode: str = "auto", **env: str) -> AsyncGenerator[Client]:
        """A client with a stdio server of its own."""
        parameters = StdioServerParameters(
            command=sys.executable, args=["-m", "agemem_mcp", "serve", *arguments], env=self.environment(**env)
        )
        with unwrapped(), (self.root / "stdio.log").open("a", encoding="utf-8") as log:
            async with Client(stdio_client(parameters, errlog=log), mode=mode) as client:
                yield client

    def holder(self) -> int:
        """The process that has the folder open, from its lock."""
        return int((self.data / "lock.pid").read_text(encoding="ascii"))

    def owner(self) -> dict[str, Any]:
        """Who serves the folder, as its file tells."""
        return json.loads((self.data / "owner.json").read_text(encoding="utf-8"))

    def end_daemon(self, number: int = signal.SIGTERM) -> None:
        """End the daemon, and wait until the folder is free."""
        pid = self.owner()["pid"]
        os.kill(pid, number)
        until(lambda: _is_gone(pid), f"process {pid} ended")

    def dispose(self) -> None:
        """End everything that was started here, and the daemons that were started on demand."""
        for process in self.processes:
            process.dispose()
        for owner in self.root.rglob("owner.json"):
            with suppress(ProcessLookupError):
                os.kill(int(json.loads(owner.read_text(encoding="utf-8"))["pid"]), signal.SIGKILL)


@dataclass(frozen=True)
class HttpServer:
    """A running HTTP server."""

    process: Process
    url: str

    @asynccontextmanager
    async def client(self, *, mode: str = "auto", **headers: str) -> AsyncGenerator[Client]:
        """A client of it; underscores in header names stand for hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        with unwrapped():
            async with (
                httpx2.AsyncClient(headers=sent, timeout=DEADLINE_S) as http,
                Client(streamable_http_client(f"{self.url}/mcp", http_client=http), mode=mode) as client,
            ):
                yield client

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """One plain request."""
        with httpx2.Client(timeout=DEADLINE_S) as http:
            return http.get(self.url + path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def ready(self) -> Self:
        """Wait until the memory is open."""
        until(lambda: self.get("/readyz").status_code == 200, "/readyz answers 200")
        return self


class Tools:
    """Calls tools, and tells results from errors."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed; its structured result."""
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, text_of(result)
        assert result.structured_content is not None
        return result.structured_content

    async def error(self, tool: str, **arguments: Any) -> str:
        """Call a tool that must be refused; what it says."""
        result = await self.client.call_tool(tool, arguments)
        text = text_of(result)
        assert result.is_error, text
        assert "of the server's own" not in text
        return text


def text_of(result: CallToolResult) -> str:
    """The text part of a result."""
    return "\n".join(getattr(part, "text", "") for part in result.content)


@pytest.fixture(scope="session")
def tools_of() -> Callable[[Client], Tools]:
    """Makes a caller of tools from a client."""
    return Tools


@pytest.fixture
def wait_until() -> Callable[[Callable[[], Any], str], Any]:
    """Waits for a condition with a deadline."""
    return until


@pytest.fixture
def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def new_place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Callable[[], Place]]:
    """Makes places for servers that need no files; all of them end with the module."""
    places: list[Place] = []

    def make() -> Place:
        places.append(Place(tmp_path_factory.mktemp("place"), dict(LEXICAL)))
        return places[-1]

    yield make
    for place in places:
        place.dispose()


@pytest.fixture
def place(tmp_path: Path) -> Generator[Place]:
    """A place for a server that needs no files."""
    place = Place(tmp_path, dict(LEXICAL))
    yield place
    place.dispose()


@pytest.fixture
def full_place(tmp_path: Path, assets_dir: Path) -> Generator[Place]:
    """A place with the real model and tokenizer."""
    place = Place(tmp_path, {"AGEMEM_ASSETS_DIR": str(assets_dir)})
    yield place
    place.dispose()
