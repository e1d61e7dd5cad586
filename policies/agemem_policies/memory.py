"""The memory server as an agent uses it: tool calls through an MCP client, in this process or over a network."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError

from agemem_mcp.domain.memory import Actor
from agemem_mcp.errors import AgeMemError, ConfigurationError, InvalidOperation, StoreError
from agemem_mcp.server.clients import cause_of, client_at, client_in_process
from agemem_mcp.server.tools import ACTOR_META_KEY, SESSION_META_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from agemem_mcp.domain.memory import Scope
    from agemem_mcp.server.turns import Turns
    from agemem_mcp.service.gate import ServiceGate


@dataclass(frozen=True, slots=True)
class Observation:
    """What a call was answered."""

    text: str
    """As the model is shown it."""
    structured: dict[str, Any] = field(default_factory=dict[str, Any])
    """The complete result; empty for an error."""
    is_error: bool = False


class MemoryTools:
    """Calls tools of a memory server, on behalf of a session."""

    def __init__(self, client: Client) -> None:
        """Use a client that is connected already."""
        self.client = client

    async def call(
        self, name: str, arguments: dict[str, Any], *, session_id: str | None, actor: Actor = Actor.POLICY
    ) -> Observation:
        """Call a tool; what it refuses is an observation as well.

        Args:
            name: its wire name.
            arguments: as the model wrote them.
            session_id: on whose behalf; the ledger notes it.
            actor: who decided to call it.

        Raises:
            StoreError: the server cannot be reached any more.
        """
        meta: Any = {ACTOR_META_KEY: actor.value}
        if session_id is not None:
            meta[SESSION_META_KEY] = session_id
        try:
            result = await self.client.call_tool(name, arguments, meta=meta)
        except (MCPError, OSError, RuntimeError) as error:
            msg = f"The memory server did not answer {name} ({error}). Check that it runs, and try again."
            raise StoreError(msg) from error
        text = "\n".join(getattr(part, "text", "") for part in result.content)
        return Observation(text, result.structured_content or {}, bool(result.is_error))

    async def require(
        self, name: str, arguments: dict[str, Any], *, session_id: str | None, actor: Actor
    ) -> dict[str, Any]:
        """Call a tool that must succeed; gives its complete result.

        Raises:
            InvalidOperation: the server refused it.
            StoreError: the server cannot be reached any more.
        """
        observation = await self.call(name, arguments, session_id=session_id, actor=actor)
        if observation.is_error:
            raise InvalidOperation(observation.text)
        return observation.structured


@asynccontextmanager
async def tools_in_process(
    gate: ServiceGate, scope: Scope, *, turns: Turns | None = None
) -> AsyncGenerator[MemoryTools]:
    """A memory of this process, through the MCP server all the same.

    Args:
        gate: where the service comes from.
        scope: all that can be reached.
        turns: whose operation is next, where others work on the same service.
    """
    async with client_in_process(gate, scope, turns=turns) as client:
        yield MemoryTools(client)


@asynccontextmanager
async def tools_of_folder(data_dir: Path, namespace: str) -> AsyncGenerator[MemoryTools]:
    """The memory of a data folder, through whoever owns it, which is started if need be.

    Raises:
        ConfigurationError: it could not be started; what was said on stderr tells why.
    """
    # All of the tools, whatever is configured for clients: an agent keeps its context with the two helpers.
    command = ["-m", "agemem_mcp", "serve", "--data-dir", str(data_dir), "--namespace", namespace, "--tools", "all"]
    parameters = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
    async with _connected(Client(stdio_client(parameters)), f"in {data_dir}") as tools:
        yield tools


@asynccontextmanager
async def tools_at(url: str, *, token: str | None, namespace: str) -> AsyncGenerator[MemoryTools]:
    """The memory of a server, such as ``http://127.0.0.1:8000/mcp``.

    Raises:
        ConfigurationError: there is none, or it wants another token.
    """
    async with _connected(client_at(url, token=token, namespace=namespace), f"at {url}") as tools:
        yield tools


@asynccontextmanager
async def _connected(connecting: AbstractAsyncContextManager[Client], where: str) -> AsyncGenerator[MemoryTools]:
    entered = False
    try:
        async with connecting as client:
            entered = True
            yield MemoryTools(client)
    except BaseExceptionGroup as group:
        cause = cause_of(group)
        if entered or isinstance(cause, AgeMemError) or not isinstance(cause, Exception):
            raise cause from group
        raise _unusable(where, cause) from group
    except (MCPError, OSError) as error:
        if entered:
            raise
        raise _unusable(where, error) from error


def _unusable(where: str, cause: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"No memory server could be used {where} ({cause}). Check the address, that it runs, and AGEMEM_TOKEN if it "
        "wants a token."
    )
