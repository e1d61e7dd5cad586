"""The MCP server: tools generated from the operations, calls handed to the service."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import mcp_types as types
import structlog
from mcp.server.lowlevel.server import Server

from agemem_mcp._version import __version__
from agemem_mcp.domain.context import SessionLives
from agemem_mcp.domain.memory import Actor, Scope
from agemem_mcp.domain.operations import (
    HELPERS,
    RESULT_TYPES,
    SIX,
    Operation,
    input_schema,
    output_schema,
    parse_operation,
    tool_name,
)
from agemem_mcp.errors import AgeMemError
from agemem_mcp.server.render import as_text
from agemem_mcp.server.turns import Turns
from agemem_mcp.service.long_term import Origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from mcp.server.context import ServerRequestContext

    from agemem_mcp.domain.operations import AnyOperation
    from agemem_mcp.domain.results import OperationResult
    from agemem_mcp.service.gate import Progress, ServiceGate
    from agemem_mcp.service.memory_service import MemoryService

log = structlog.get_logger(__name__)

ACTOR_META_KEY = "agemem/actor"
"""A host that drives the tools itself (an environment, a user's command) names itself here; the default is policy."""
SESSION_META_KEY = "agemem/session_id"
"""The session on whose behalf a long-term operation runs, for the ledger."""

NAMESPACE_HEADER = "x-agemem-namespace"
"""Over HTTP: the namespace that a request works in."""

INSTRUCTIONS = (
    "Long-term memory and a short-term context, managed by you. Store what will matter in later conversations with "
    "Add_memory, keep it current with Update_memory and Delete_memory, and look things up with Retrieve_memory before "
    "you answer. Retrieve_memory returns a session_id: pass it on to the context tools."
)


@dataclass(frozen=True, slots=True)
class ToolOffer:
    """Which tools a server offers."""

    tools: str = "all"
    """``six`` or ``all``."""
    lives: SessionLives = field(default_factory=SessionLives)
    """After what time sessions expire: the descriptions say it."""


class MemoryServer:
    """The MCP server over a service that may still be opening."""

    def __init__(
        self,
        gate: ServiceGate,
        *,
        scope_of: Callable[[Any], Scope],
        offer: ToolOffer | None = None,
        turns: Turns | None = None,
        writer: str | None = None,
    ) -> None:
        """Set the server up.

        Args:
            gate: where the service comes from.
            scope_of: the caller's scope, from the transport's own request object (None over stdio).
            offer: which tools, and what they say of themselves.
            turns: whose operation is next, where other servers work on the same service.
            writer: the connection's own id, where the server has one connection: what it stores belongs together.
        """
        offer = offer or ToolOffer()
        self._gate = gate
        self._scope_of = scope_of
        self._turns = turns or Turns()
        self._writer = writer
        operations = SIX if offer.tools == "six" else (*SIX, *HELPERS)
        self._names = {tool_name(operation) for operation in operations}
        self._listing = _listing(operations, offer.lives)
        self._running: set[asyncio.Task[OperationResult]] = set()
        self.mcp: Server[Any] = Server(
            "agemem-mcp",
            version=__version__,
            title="AgeMem memory",
            instructions=INSTRUCTIONS,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    async def drain(self) -> None:
        """Wait for operations whose callers are gone."""
        # Not gathered: whoever is cancelled while waiting here must not cancel them.
        if self._running:
            await asyncio.wait(self._running)

    async def _list_tools(
        self, _context: ServerRequestContext[Any, Any], _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        # Opening takes a second of one core; a client that lists the tools is about to use them, and has its answer.
        asyncio.get_running_loop().call_soon(self._gate.start)
        return self._listing

    async def _call_tool(
        self, context: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        try:
            operation = parse_operation(params.name, params.arguments, allowed=self._names)
            service = await self._gate.service(_reporter(context))
            result = await self._carry_out(service, context, operation)
        except AgeMemError as error:
            return _error(str(error))
        except asyncio.CancelledError:
            raise
        except Exception:  # the outermost boundary: the text of a crash stays here
            log.exception("tool call failed", tool=params.name)
            return _error(
                f"{params.name} failed for a reason of the server's own; its log has the details. "
                f"What was stored before is safe. `agemem-mcp doctor` may tell more."
            )
        return types.CallToolResult(
            content=[types.TextContent(text=as_text(result))], structured_content=result.model_dump(mode="json")
        )

    def _caller(self, context: ServerRequestContext[Any, Any]) -> Hashable:
        """Who takes turns: over stdio each has a server of its own, over HTTP a connection."""
        return self if context.request is None else context.request.client

    async def _carry_out(
        self, service: MemoryService, context: ServerRequestContext[Any, Any], operation: AnyOperation
    ) -> OperationResult:
        """An operation that has begun is carried out wholly, also when its caller cancels or goes away."""
        scope = self._scope_of(context.request)
        origin = _origin(context, self._writer)
        await self._turns.begin(self._caller(context))
        task = asyncio.create_task(service.apply(scope, operation, origin))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[OperationResult]) -> None:
        self._turns.end()
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # looked at here, in case the caller is gone


@cache
def _listing(operations: tuple[type[Operation], ...], lives: SessionLives) -> types.ListToolsResult:
    """Made once: each client over stdio has a server of its own."""
    return types.ListToolsResult(tools=[_tool(operation, lives) for operation in operations])


def _tool(operation: type[Operation], lives: SessionLives) -> types.Tool:
    name = tool_name(operation)
    return types.Tool(
        name=name,
        title=operation.title,
        description=operation.describe(lives),
        input_schema=input_schema(operation),
        output_schema=output_schema(RESULT_TYPES[name]),
        annotations=types.ToolAnnotations(
            title=operation.title,
            read_only_hint=operation.read_only,
            destructive_hint=operation.destructive,
            idempotent_hint=operation.idempotent,
            open_world_hint=False,
        ),
    )


def _reporter(context: ServerRequestContext[Any, Any]) -> Callable[[Progress], Awaitable[None]]:
    steps = 0.0

    async def report(progress: Progress) -> None:
        # The protocol wants a value that only grows, over stages of different sizes: so each report is one step.
        nonlocal steps
        steps += 1
        share = f" ({progress.done / progress.total:.0%})" if progress.total else ""
        await context.session.report_progress(steps, None, progress.text + share)

    return report


def _origin(context: ServerRequestContext[Any, Any], writer: str | None) -> Origin:
    meta: dict[str, Any] = dict(context.meta or {})
    actor, named = meta.get(ACTOR_META_KEY), meta.get(SESSION_META_KEY)
    session_id = named[:64] if isinstance(named, str) and named.isprintable() else None
    return Origin(
        actor=Actor(actor) if isinstance(actor, str) and actor in set(Actor) else Actor.POLICY,
        session_id=session_id,
        writer=session_id or writer,
    )


def _error(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)
