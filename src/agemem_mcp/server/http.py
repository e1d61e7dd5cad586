"""The HTTP server: the MCP app mounted in FastAPI, with health, readiness and authentication."""

from __future__ import annotations

import asyncio
import hmac
import os
import signal
import socket
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from mcp.server.transport_security import TransportSecuritySettings

from agemem_mcp._version import __version__
from agemem_mcp.domain.memory import Scope, check_namespace
from agemem_mcp.errors import ConfigurationError
from agemem_mcp.server.extensions import Guard, is_extended, refused
from agemem_mcp.server.tools import NAMESPACE_HEADER, MemoryServer, ToolOffer
from agemem_mcp.server.turns import Turns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

    from starlette.types import ASGIApp, Receive, Send
    from starlette.types import Scope as ConnectionScope

    from agemem_mcp.server.extensions import Extend
    from agemem_mcp.service.gate import ServiceGate

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_OPEN_PATHS = ("/healthz", "/readyz")
_SETTLING_S = 5
_MAX_BODY_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How to serve over HTTP."""

    host: str = "127.0.0.1"
    port: int = 8000
    namespace: str = "default"
    offer: ToolOffer = field(default_factory=ToolOffer)
    token: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    insecure: bool = False
    """Listen beyond this machine without a token."""

    def check(self) -> None:
        """Refuse to listen beyond this machine without a token.

        Raises:
            ConfigurationError: it would.
        """
        if self.host not in LOOPBACK and self.token is None and not self.insecure:
            msg = (
                f"Listening on {self.host} without a token would open the memory to the network. Set AGEMEM_TOKEN to a "
                f"long random text (from `openssl rand -hex 32`, say), or pass --insecure if the network is trusted."
            )
            raise ConfigurationError(msg)


def build_app(
    options: HttpOptions, gate: ServiceGate, turns: Turns | None = None, extend: Sequence[Extend] = ()
) -> FastAPI:
    """The ASGI application. It opens the gate; closing it is for whoever made it.

    Args:
        options: where and how to serve.
        gate: where the service comes from.
        turns: whose operation is next, where other servers work on the same service.
        extend: make what other packages add.

    Raises:
        ConfigurationError: it would serve others without a token, or what an extension needs cannot be used.
    """
    options.check()
    turns = turns or Turns()
    extensions = [make(gate, turns) for make in extend]
    security = transport_security(options)

    def scope_of(request: Any) -> Scope:  # noqa: ANN401  starlette's request, or None in-process
        named = None if request is None else request.headers.get(NAMESPACE_HEADER)
        return Scope(namespace=options.namespace if named is None else check_namespace(named))

    server = MemoryServer(gate, scope_of=scope_of, offer=options.offer, turns=turns)
    inner = server.mcp.streamable_http_app(
        streamable_http_path="/mcp",
        transport_security=security,
        max_request_body_size=_MAX_BODY_BYTES,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        gate.start()
        async with server.mcp.session_manager.run():
            yield
        for extension in extensions:
            await extension.close()
        await server.drain()

    app = FastAPI(title="agemem-mcp", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok", "version": __version__}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The memory is open, and a call would not have to wait."""
        # Why it failed may name folders of this machine: that goes to the log, not to whoever asks.
        return JSONResponse({"status": gate.state}, status_code=200 if gate.ready else 503)

    for extension in extensions:
        app.include_router(extension.router)
    app.mount("/", inner)
    if extensions:
        app.add_middleware(Guard, security=security, max_body_bytes=_MAX_BODY_BYTES)
    if options.token is not None:
        app.add_middleware(BearerToken, token=options.token)
    return app


def transport_security(options: HttpOptions) -> TransportSecuritySettings:
    """Which Host and Origin headers are let in: loopback names, the address served and the allowed ones."""
    names: list[str] = [*LOOPBACK[:2], "[::1]", *options.allowed_hosts]
    if options.host not in ("0.0.0.0", "::", *LOOPBACK):  # noqa: S104  compared, not bound
        names.append(options.host)
    hosts = _with_ports(names)
    return TransportSecuritySettings(
        enable_dns_rebinding_protection="*" not in options.allowed_hosts,
        allowed_hosts=hosts,
        allowed_origins=[f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts],
    )


class BearerToken:
    """ASGI middleware: requests but those for health must carry the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 401."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            scheme, _, token = given.partition(b" ")
            # Constant time: how long the comparison takes says nothing of the token.
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
                await _token_required(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _token_required(path: str) -> JSONResponse:
    text = "A bearer token is required: send `Authorization: Bearer …` with AGEMEM_TOKEN's value."
    headers = {"WWW-Authenticate": 'Bearer realm="agemem-mcp"'}
    if is_extended(path):
        return refused(
            401, f"{text} OpenAI's clients take it as their api_key.", code="invalid_api_key", headers=headers
        )
    return JSONResponse({"error": text}, status_code=401, headers=headers)


def _with_ports(names: Sequence[str]) -> list[str]:
    return [form for name in dict.fromkeys(names) for form in (name, f"{name}:*") if name != "*"]


class HttpListener:
    """An application that listens within the running event loop, until :meth:`close`."""

    def __init__(self, app: FastAPI, options: HttpOptions) -> None:
        """Bind the address.

        Raises:
            ConfigurationError: the address cannot be listened on.
        """
        self._socket = _listen(options.host, options.port)
        name = f"[{options.host}]" if ":" in options.host else options.host
        self.url = f"http://{name}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=_SETTLING_S
        )
        self._server = _Uvicorn(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))

    async def close(self, *, process_ends: bool) -> None:
        """Finish the requests that have begun, and stop.

        Args:
            process_ends: event streams, which never end by themselves, are told to. They know of the end of a process
                alone (`sse_starlette` keeps one flag for all servers in it); else they are cut off after a while.
        """
        if process_ends:
            self._server.handle_exit(signal.SIGTERM, None)
        self._server.should_exit = True
        await asyncio.gather(self._serving, return_exceptions=True)
        self._socket.close()


class _Uvicorn(uvicorn.Server):
    """Signals belong to the process that owns the memory, which closes its listeners in order."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":
                # Not on Windows, where it would let two servers share the port.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        msg = f"Cannot listen on {host}:{port}: {error.strerror or error}. Choose another with --port or --host."
        raise ConfigurationError(msg) from error
    return listener
