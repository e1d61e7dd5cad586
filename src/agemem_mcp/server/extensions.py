"""What other packages add to the HTTP server, and the guard before it: the same rules as for MCP, in OpenAI's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from fastapi.responses import JSONResponse
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from starlette.requests import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import APIRouter
    from starlette.types import ASGIApp, Message, Receive, Send
    from starlette.types import Scope as ConnectionScope

    from agemem_mcp.server.turns import Turns
    from agemem_mcp.service.gate import ServiceGate

    Extend: TypeAlias = Callable[[ServiceGate, Turns], "Extension"]
    """Makes an extension over the memory that is served."""

PREFIX = "/v1"
"""Paths that extensions answer."""
_REFUSALS = {
    421: "This Host is not served here. Name it with --allowed-host, or ask by the address that is listened on.",
    403: "Pages of this Origin may not ask here. Name its host with --allowed-host if they should.",
}


@dataclass(frozen=True, slots=True)
class Extension:
    """Routes below :data:`PREFIX`, and what ends with the application."""

    router: APIRouter
    close: Callable[[], Awaitable[None]]


def is_extended(path: str) -> bool:
    """Whether a path is one that extensions answer."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def refused(status: int, message: str, *, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal as OpenAI's clients read it."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


class Guard:
    """ASGI middleware: extensions are asked from hosts that are let in, with a body that is not too large."""

    def __init__(self, app: ASGIApp, security: TransportSecuritySettings, max_body_bytes: int) -> None:
        self._app = app
        self._security = TransportSecurityMiddleware(security)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 403, 413 or 421."""
        if scope["type"] != "http" or not is_extended(scope["path"]):
            await self._app(scope, receive, send)
            return
        refusal = await self._security.validate_request(Request(scope))
        if refusal is not None:
            status = refusal.status_code
            answer = refused(status, _REFUSALS.get(status, "This request is not let in."), code="not_allowed")
            await answer(scope, receive, send)
            return
        left = self._max_body_bytes

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _TooLargeError
            return message

        try:
            await self._app(scope, counted, send)
        except _TooLargeError:
            # Whoever reads the body reads all of it before answering.
            msg = f"The request is larger than {self._max_body_bytes:,} bytes. Send less of the conversation."
            await refused(413, msg, code="request_too_large")(scope, receive, send)


class _TooLargeError(Exception):
    """The body is larger than the limit."""
