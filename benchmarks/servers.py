"""Memory servers as a client meets them: started over stdio, called by tools, ended for certain.

Each server is told its folder by the environment variable ``BENCHMARK_FOLDER`` as well, which it does not read: every
process it starts has it, and so all of them can be counted and ended, and no other one is.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from corpus import fact, person, question
from processes import end_all

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from types import TracebackType

    from mcp_types import CallToolResult

    ToolCall = tuple[str, dict[str, Any]]

FOLDER_VARIABLE = "BENCHMARK_FOLDER"
HITS = 10
_CALL_TIMEOUT_S = 300.0
_START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class MemoryTools:
    """A memory server: how it is started on a folder, and which calls store and search."""

    name: str
    command: Callable[[Path], list[str]]
    store: Callable[[int], ToolCall]
    """The call that stores fact ``i``."""
    search: Callable[[int], ToolCall]
    """The call that asks question ``i``."""
    look_up: Callable[[int], ToolCall]
    """The call that finds fact ``i`` for certain if it is stored, to count what was kept."""
    environment: Callable[[Path], dict[str, str]] = field(default=lambda _: {})
    refused: ToolCall | None = None
    """A call that goes the way of all others and does nothing."""
    stop: Callable[[Path], list[str]] | None = None
    """The command that ends what stays behind when the client has gone."""
    embeds: bool = True


def agemem(*command: str) -> list[str]:
    """The command line of our own program, run by this interpreter."""
    return [sys.executable, "-m", "agemem_mcp", *command]


OURS = MemoryTools(
    name="agemem-mcp",
    command=lambda folder: agemem("serve", "--data-dir", str(folder)),
    store=lambda i: ("Add_memory", {"content": fact(i)}),
    search=lambda i: ("Retrieve_memory", {"query": question(i), "top_k": HITS}),
    look_up=lambda i: ("Retrieve_memory", {"query": fact(i), "top_k": HITS}),
    refused=("Delete_memory", {"memory_id": "mem_none", "confirmation": False}),
    stop=lambda folder: agemem("daemon", "stop", "--data-dir", str(folder)),
)


class ServerError(Exception):
    """A server refused a call, or did not start."""


class Running:
    """A started server and a client's session with it; leaving ends the server that the client started."""

    def __init__(self, tools: MemoryTools, folder: Path, *, mode: str = "legacy") -> None:
        """Nothing is started yet.

        Args:
            tools: which server.
            folder: where it keeps what it stores.
            mode: the protocol era; ``legacy`` is the one that all servers speak.
        """
        self.tools = tools
        self._folder = folder
        self._mode = mode
        self._stack = AsyncExitStack()
        self.ready_s = 0.0
        """From starting the process to the list of tools."""

    async def __aenter__(self) -> Self:
        """Start the server and list its tools.

        Raises:
            ServerError: it did not come that far; the text has the end of what it wrote to stderr.
        """
        program, *arguments = self.tools.command(self._folder)
        own = {**self.tools.environment(self._folder), FOLDER_VARIABLE: str(self._folder)}
        parameters = StdioServerParameters(command=program, args=arguments, env={**os.environ, **own})
        log = self._folder.parent / f"{self._folder.name}.stderr"
        errors = self._stack.enter_context(log.open("a", encoding="utf-8"))
        started = time.perf_counter()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                transport = stdio_client(parameters, errlog=errors)
                self._client = await self._stack.enter_async_context(Client(transport, mode=self._mode))
                await self._client.list_tools()
        except BaseException as error:
            await self._stack.aclose()
            if not isinstance(error, Exception):
                raise
            msg = f"{self.tools.name} did not start ({error!r}): {log.read_text(encoding='utf-8')[-500:]}"
            raise ServerError(msg) from error
        self.ready_s = time.perf_counter() - started
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def call(self, call: ToolCall) -> CallToolResult:
        """Make a tool call; an answer that is an error is an answer too."""
        async with asyncio.timeout(_CALL_TIMEOUT_S):
            return await self._client.call_tool(*call)

    async def timed(self, call: ToolCall) -> tuple[float, str]:
        """Make a tool call that must succeed; seconds and the text of the answer.

        Raises:
            ServerError: the server refused it.
        """
        started = time.perf_counter()
        result = await self.call(call)
        took_s = time.perf_counter() - started
        if result.is_error:
            msg = f"{self.tools.name} refused {call[0]}: {text_of(result)[:300]}"
            raise ServerError(msg)
        return took_s, text_of(result)

    async def found(self, i: int, call: ToolCall) -> bool:
        """Whether the answer to a search holds fact ``i``, word for word."""
        _, answer = await self.timed(call)
        return fact(i) in answer and person(i) in answer


def text_of(result: CallToolResult) -> str:
    """The text parts of an answer."""
    return "\n".join(getattr(part, "text", "") for part in result.content)


@contextmanager
def temporary_folder() -> Generator[Path]:
    """A new folder for servers; on leaving, whatever still runs on it or below it is ended and it is removed."""
    folder = Path(tempfile.mkdtemp(prefix="agemem-bench-"))
    try:
        yield folder
    finally:
        end_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def served(tools: MemoryTools, folder: Path) -> AsyncGenerator[Running]:
    """A server, also ended where it stays behind after its client has gone."""
    try:
        async with Running(tools, folder) as running:
            yield running
    finally:
        await end(tools, folder)


async def end(tools: MemoryTools, folder: Path) -> None:
    """End what serves a folder, first by its own command if it has one."""
    if tools.stop is not None:
        stopping = await asyncio.create_subprocess_exec(
            *tools.stop(folder), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        await stopping.wait()
    await asyncio.to_thread(end_all, folder)


async def in_flight(running: Running, calls: list[ToolCall], *, width: int = 8) -> float:
    """Make all calls, ``width`` of them in flight on one session; calls per second.

    Raises:
        ServerError: one of them was refused.
    """
    waiting = iter(calls)

    async def worker() -> None:
        for call in waiting:
            await running.timed(call)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(worker())
    return len(calls) / (time.perf_counter() - started)
