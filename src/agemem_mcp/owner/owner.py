"""The process that owns a data folder: it listens on the folder's socket and serves every client there.

A connection begins with one line, the client's greeting: the secret from ``owner.json``, its version,
its settings, and what it wants (`mcp`, or `control` for commands). It is answered by one line; after
that an MCP connection carries nothing but the protocol.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog

from agemem_mcp._version import __version__
from agemem_mcp.domain.memory import Scope
from agemem_mcp.errors import AgeMemError, ConfigurationError
from agemem_mcp.link import places
from agemem_mcp.server.connection import Incoming, Outgoing
from agemem_mcp.server.tools import MemoryServer, ToolOffer
from agemem_mcp.server.turns import Turns
from agemem_mcp.settings import differing_settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agemem_mcp.service.gate import ServiceGate
    from agemem_mcp.settings import Settings

log = structlog.get_logger(__name__)

_GREETING_S = 10.0
_LONGEST_GREETING = 256 * 1024
_BACKLOG = 256
_CLOSING_S = 7.0
"""How long connections may take to end once they were told to; what has begun by then is carried out all the same."""
_CANCELLING_S = 5.0


class Owner:
    """Serves a memory to everyone who connects, until it is told to end."""

    def __init__(self, settings: Settings, gate: ServiceGate, *, kind: str, idle_s: float | None = None) -> None:
        """Set it up; the folder's lock must be held.

        Args:
            settings: what the memory was opened with.
            gate: where the service comes from.
            kind: ``daemon``, ``http`` or ``stdio``: what this process was started as.
            idle_s: end after so long without a connection; None for never.
        """
        self.settings = settings
        self.gate = gate
        self.kind = kind
        self.turns = Turns()
        self.started = time.time()
        self.listening: list[str] = []
        """URLs served over HTTP."""
        self.clients: dict[asyncio.Task[None], str] = {}
        """Connections that are open, by purpose."""
        self._incoming: set[Incoming] = set()
        self._idle_s = idle_s
        self._idle_since = time.monotonic()
        self._ending = asyncio.Event()
        self._folder = str(settings.data_dir)
        self._identity: places.Owner | None = None

    def end(self) -> None:
        """Begin to end: take nothing new, finish what has begun."""
        self._ending.set()

    async def until_ending(self) -> None:
        """Wait for the moment in which it is told to end."""
        await self._ending.wait()

    @property
    def ending(self) -> bool:
        """Whether it was told to end."""
        return self._ending.is_set()

    @property
    def mcp_clients(self) -> int:
        """Number of MCP clients connected over the folder's socket."""
        return sum(purpose == "mcp" for purpose in self.clients.values())

    async def run(self, *, also: Callable[[], Awaitable[None]] | None = None, alone: bool = False) -> None:
        """Listen and serve until :meth:`end`, a signal, or too long a time without a connection.

        Args:
            also: runs beside it; when it returns the owner ends.
            alone: the folder is not ours (its gate says why to those who call): do not listen.

        Raises:
            ConfigurationError: the socket cannot be made.
        """
        self._end_on_signals()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.gate.close)
            listening = asyncio.create_task(self._listen_in_time(alone=alone))
            if not alone:
                await listening
            stack.callback(self._forget)
            beside = None if also is None else asyncio.create_task(self._beside(also))
            watch = asyncio.create_task(self._watch_idleness())
            await self._ending.wait()
            # Nobody finds this owner any more; whoever comes now starts the next one, which waits for the folder.
            self._forget()
            if listening.done() and not listening.cancelled():
                listening.result().close()
            listening.cancel()
            watch.cancel()
            await self._end_connections()
            if beside is not None:
                await beside

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a stream that is this process's own client, without a greeting."""
        await self._mcp(self.settings, reader, writer)

    async def _beside(self, also: Callable[[], Awaitable[None]]) -> None:
        try:
            await also()
        finally:
            self.end()

    async def _listen_in_time(self, *, alone: bool) -> asyncio.Server:
        """Listen; where the folder belongs to another process, once that is gone and the memory could be opened."""
        if alone:
            await self.gate.until_open()
        return await self._listen()

    async def _end_connections(self) -> None:
        for incoming in self._incoming:
            incoming.stop()
        for task, purpose in self.clients.items():
            if purpose != "mcp":
                task.cancel()
        if self.clients:
            await asyncio.wait(self.clients, timeout=_CLOSING_S)
        for task in self.clients:
            task.cancel()
        if self.clients:
            await asyncio.wait(self.clients, timeout=_CANCELLING_S)

    async def _listen(self) -> asyncio.Server:
        try:
            server = None if self.settings.daemon == "tcp" else await self._unix_server()
            if server is None:
                server = await asyncio.start_server(
                    self._accept, "127.0.0.1", 0, backlog=_BACKLOG, limit=_LONGEST_GREETING
                )
            name = server.sockets[0].getsockname()
            address = f"unix:{name}" if isinstance(name, str) else f"tcp:{name[1]}"
            self._identity = places.Owner(os.getpid(), __version__, address, secrets.token_urlsafe(24))
            places.write_owner(self._folder, self._identity)
        except OSError as error:
            msg = f"The memory in {self._folder} cannot be shared with other processes: {error}. Check the folder."
            raise ConfigurationError(msg) from error
        return server

    async def _unix_server(self) -> asyncio.Server | None:
        """A server on the folder's Unix socket; None where there are none (Windows, some network file systems)."""
        if not hasattr(socket, "AF_UNIX"):
            return None
        try:
            path = places.socket_path(self._folder) or places.short_socket_path(self._folder)
            listener = _unix_socket(path)
        except OSError as error:
            log.warning("no Unix socket can be made; clients connect by loopback TCP", error=str(error))
            return None
        return await asyncio.start_unix_server(self._accept, sock=listener, backlog=_BACKLOG, limit=_LONGEST_GREETING)

    def _forget(self) -> None:
        if self._identity is None:
            return
        identity, self._identity = self._identity, None
        with suppress(OSError):
            places.remove_owner(self._folder, identity)
            kind, _, place = identity.address.partition(":")
            if kind == "unix":
                Path(place).unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self.clients[task] = "new"
        try:
            await self._greeted(task, reader, writer)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # It left, or never said what it wants.
            log.debug("a connection ended early")
        except asyncio.CancelledError:
            # Nobody awaits this task; asyncio would report its end by cancellation as an error.
            log.debug("a connection was ended")
        except Exception:  # the outermost boundary: one connection must not end the others
            log.exception("a connection failed")
        finally:
            writer.close()
            del self.clients[task]
            self._idle_since = time.monotonic()

    async def _greeted(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async with asyncio.timeout(_GREETING_S):
            hello = _parsed(await reader.readuntil(b"\n"))
            if "nonce" in hello and self._identity is not None:
                proof = places.proof(self._identity.secret, str(hello["nonce"]))
                writer.write(json.dumps({"proof": proof}).encode() + b"\n")
                hello = _parsed(await reader.readuntil(b"\n"))
        answer, settings = self._answer(hello)
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        if settings is None:
            return
        self.clients[task] = str(hello.get("purpose"))
        if hello.get("purpose") == "control":
            from agemem_mcp.owner.control import Control  # noqa: PLC0415  most connections are not

            await Control(self, settings, reader, writer).serve()
        else:
            await self._mcp(settings, reader, writer)

    def _answer(self, hello: dict[str, Any]) -> tuple[dict[str, Any], Settings | None]:
        """What a greeting is answered, and the client's settings if it is let in."""
        identity = self._identity
        if identity is None or self.ending:
            return {"ok": False, "retry": True}, None
        if not hmac.compare_digest(str(hello.get("secret")).encode(), identity.secret.encode()):
            return {"ok": False, "error": "This connection did not show the folder's secret."}, None
        notes: list[str] = []
        theirs = str(hello.get("version"))
        if _newer(theirs, __version__):
            if self.kind == "daemon" and not any(self.clients[task] != "new" for task in self.clients):
                log.warning("a newer release takes over", version=theirs)
                self.end()
                return {"ok": False, "retry": True}, None
            notes.append(
                f"This is release {theirs}, but the memory is served by process {os.getpid()} of release "
                f"{__version__}, which is in use. The newer one takes over when it starts while no client is left, or "
                f"after `agemem-mcp daemon stop`."
            )
        try:
            given = cast("dict[str, str]", hello.get("settings") or {})
            settings = load_settings(environment=given, data_dir=self.settings.data_dir)
        except AgeMemError as error:
            return {"ok": False, "error": str(error)}, None
        if different := differing_settings(self.settings, settings):
            notes.append(self._settings_note(different))
        return {"ok": True, "notes": notes}, settings

    def _settings_note(self, different: list[tuple[str, str, str]]) -> str:
        listed = "; ".join(f"{name} is {mine} there, {theirs} here" for name, mine, theirs in different)
        return (
            f"The memory is served by process {os.getpid()} with other settings: {listed}. Its settings hold until it "
            f"ends; `agemem-mcp daemon stop` ends it."
        )

    async def _mcp(self, settings: Settings, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        scope = Scope(namespace=settings.namespace)
        offer = ToolOffer(tools=settings.tools, lives=self.settings.context.lives)
        server = MemoryServer(
            self.gate,
            scope_of=lambda _: scope,
            offer=offer,
            turns=self.turns,
            writer=f"connection {secrets.token_hex(8)}",
        )
        outgoing = Outgoing(writer)
        incoming = Incoming(reader, outgoing)
        self._incoming.add(incoming)
        try:
            await server.mcp.run(incoming, outgoing, server.mcp.create_initialization_options())
        finally:
            self._incoming.discard(incoming)
            await server.drain()

    async def _watch_idleness(self) -> None:
        while self._idle_s is not None:
            if not self.clients and not self.listening and time.monotonic() - self._idle_since >= self._idle_s:
                log.info("nobody was connected for a while")
                self.end()
                return
            await asyncio.sleep(min(self._idle_s, 5.0) / 2)

    def _end_on_signals(self) -> None:
        if sys.platform == "win32":
            return  # the event loop has no signal handlers there; a kill is safe, the ledger being committed first
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.end)


def _unix_socket(path: str) -> socket.socket:
    """A socket that its user alone can connect to; one that a dead process left behind is replaced."""
    with suppress(FileNotFoundError):
        Path(path).unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        hello: object = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", hello) if isinstance(hello, dict) else {}


def _newer(one: str, other: str) -> bool:
    """Whether release ``one`` came after ``other``; anything but plain numbers is not taken for newer."""
    numbers = [tuple(int(part) for part in text.split(".") if part.isdigit()) for text in (one, other)]
    return numbers[0] > numbers[1]
