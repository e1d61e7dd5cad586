"""The routes: chat completions and the list of models."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from agemem_mcp.server.extensions import PREFIX, Extension
from agemem_mcp.server.tools import NAMESPACE_HEADER
from agemem_policies.endpoint.asking import read_request
from agemem_policies.endpoint.chats import Chats
from agemem_policies.endpoint.failures import SESSION_HEADER, Failure
from agemem_policies.endpoint.responses import ChatResponse, Envelope
from agemem_policies.endpoint.scopes import scope_of
from agemem_policies.endpoint.serving import NO_POLICY, served_policy

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from agemem_mcp.server.http import HttpOptions
    from agemem_mcp.server.turns import Turns
    from agemem_mcp.service.gate import ServiceGate
    from agemem_mcp.settings import Settings
    from agemem_policies.endpoint.serving import ServedPolicy

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def routes(settings: Settings, options: HttpOptions, gate: ServiceGate, turns: Turns) -> Extension:
    """The endpoint as an extension of the HTTP server.

    Args:
        settings: name the policy.
        options: of the server; name the namespace.
        gate: where the memory comes from.
        turns: whose operation on it is next.

    Raises:
        ConfigurationError: there is no policy of that name.
    """
    name = settings.policy.name
    policy = served_policy(settings.policy, name) if name is not None and name.strip() else None
    return extension(policy, options.namespace, gate, turns)


def extension(policy: ServedPolicy | None, namespace: str, gate: ServiceGate, turns: Turns) -> Extension:
    """The endpoint with a policy that was made already, or none."""
    endpoint = Endpoint(policy, None if policy is None else Chats(policy, gate, turns), namespace)
    router = APIRouter(prefix=PREFIX)
    router.add_route(f"{PREFIX}/chat/completions", endpoint.complete, methods=["POST"])
    router.add_route(f"{PREFIX}/models", endpoint.list_models, methods=["GET"])
    router.add_route(f"{PREFIX}/models/{{model:path}}", endpoint.show_model, methods=["GET"])
    router.add_route(f"{PREFIX}/{{path:path}}", endpoint.refuse, methods=_METHODS)
    return Extension(router, endpoint.close)


class Endpoint:
    """Answers requests."""

    def __init__(self, policy: ServedPolicy | None, chats: Chats | None, namespace: str) -> None:
        self._policy = policy
        self._chats = chats
        self._namespace = namespace
        self._created = int(time.time())

    async def complete(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = await request.body()
        try:
            if self._policy is None or self._chats is None:
                raise Failure(404, NO_POLICY, code="no_policy")  # noqa: TRY301  told like the others
            asked = read_request(body)
            asked = replace(asked, session_id=request.headers.get(SESSION_HEADER) or asked.session_id)
            kit = self._policy.kit(asked.model)
            scope = scope_of(request.headers.get(NAMESPACE_HEADER, self._namespace), asked.user)
            running = self._chats.start(asked, kit, scope)
        except Failure as failure:
            return failure.response()
        return ChatResponse(running, Envelope(asked.model or kit.name, asked.include_usage), stream=asked.stream)

    async def list_models(self, _request: Request) -> Response:
        """``GET /v1/models``."""
        models = () if self._policy is None else self._policy.models
        return JSONResponse({"object": "list", "data": [self._model(name) for name in models]})

    async def show_model(self, request: Request) -> Response:
        """``GET /v1/models/{id}``."""
        name = str(request.path_params["model"])
        try:
            if self._policy is None:
                raise Failure(404, NO_POLICY, code="no_policy")  # noqa: TRY301  told like the others
            self._policy.kit(name)
        except Failure as failure:
            return failure.response()
        return JSONResponse(self._model(name))

    async def refuse(self, request: Request) -> Response:
        """Whatever else is asked below the prefix."""
        there_are = f"POST {PREFIX}/chat/completions, GET {PREFIX}/models and GET {PREFIX}/models/ID"
        msg = f"{request.method} {request.url.path} is not answered here. There are {there_are}."
        return Failure(404, msg, code="unknown_url").response()

    async def close(self) -> None:
        """End what is being worked on, and release the policy."""
        if self._chats is not None:
            await self._chats.close()

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "agemem-mcp"}
