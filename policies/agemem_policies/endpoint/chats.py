"""From a request to a run of the agent in the right session, one at a time in each."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog

from agemem_mcp.domain.context import Role
from agemem_mcp.domain.memory import Actor
from agemem_mcp.domain.operations import tool_name
from agemem_mcp.errors import AgeMemError, InvalidOperation
from agemem_policies.agent import Agent, AgentOptions
from agemem_policies.endpoint.asking import check_names
from agemem_policies.endpoint.failures import Failure
from agemem_policies.endpoint.history import as_context, next_state, states_of, unanswered_tail
from agemem_policies.endpoint.known import Known, KnownSessions, OneAtATime
from agemem_policies.endpoint.replies import Piece, Reply, Transcript
from agemem_policies.memory import tools_in_process
from agemem_policies.session import NewMessage
from agemem_policies.steps import StopReason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agemem_mcp.domain.memory import Scope
    from agemem_mcp.server.turns import Turns
    from agemem_mcp.service.gate import ServiceGate
    from agemem_policies.baselines import Kit
    from agemem_policies.endpoint.asking import Asked, ClientCall, Said
    from agemem_policies.endpoint.serving import ServedPolicy
    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import Policy
    from agemem_policies.steps import Trajectory

log = structlog.get_logger(__name__)

_BROKEN = "This failed for a reason of the server's own; its log has the details. What was stored before is safe."


@dataclass(frozen=True, slots=True)
class Work:
    """A request, and where it belongs."""

    asked: Asked
    kit: Kit
    scope: Scope
    states: tuple[bytes, ...]
    """Of the conversation: before its first message and after each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which session goes on, and with what."""

    session_id: str | None
    known: Known | None
    messages: Sequence[Said]
    first: int
    """Position of the first of the messages in the request."""
    waiting: tuple[ClientCall, ...] = ()
    told: frozenset[str] = frozenset()
    """System messages that need not be said again."""


class Running:
    """One request that is being worked on."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        """What comes of it, as it comes; None at the end."""
        self.transcript = Transcript(self.pieces.put_nowait)
        self.session: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Known once the request's messages stand in it."""
        self.task: asyncio.Task[Reply]


class Chats:
    """Works on requests."""

    def __init__(self, policy: ServedPolicy, gate: ServiceGate, turns: Turns) -> None:
        """Set it up.

        Args:
            policy: who answers.
            gate: where the memory comes from.
            turns: whose operation on it is next.
        """
        self._policy = policy
        self._gate = gate
        self._turns = turns
        self._known = KnownSessions()
        self._one = OneAtATime()
        self._running: set[asyncio.Task[Reply]] = set()

    def start(self, asked: Asked, kit: Kit, scope: Scope) -> Running:
        """Begin to work on a request. Cancelling the task leaves the session's context consistent.

        Raises:
            Failure: a tool of the client's has the name of one of the memory's.
        """
        check_names(asked.tools, {tool_name(operation) for operation in kit.operations})
        work = Work(asked, kit, scope, tuple(states_of(f"{scope.key}\x1f{kit.name}", asked.messages)))
        running = Running()
        running.task = asyncio.create_task(self._reply(work, running))
        self._running.add(running.task)
        running.task.add_done_callback(self._running.discard)
        running.task.add_done_callback(lambda task: _ended(task, running))
        return running

    async def close(self) -> None:
        """End what is being worked on."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await self._policy.close()

    async def _reply(self, work: Work, running: Running) -> Reply:
        try:
            await self._gate.service()
            while True:
                if (reply := await self._try(work, running)) is not None:
                    return reply
        except Failure:
            raise
        except AgeMemError as error:
            raise Failure(503, str(error), code="not_available") from error
        except Exception as error:  # the outermost boundary: the text of a crash stays here
            log.exception("a chat completion failed")
            raise Failure(500, _BROKEN, code="internal_error") from error

    async def _try(self, work: Work, running: Running) -> Reply | None:
        """Work on a request in the session that fits now; None if another one fits by the time it is free."""
        plan = self._plan(work)
        session_id = plan.session_id
        if session_id is None:
            try:
                return await self._carry_out(work, plan, running)
            finally:
                if running.session.done():
                    self._one.end(running.session.result())
        await self._one.begin(session_id)
        try:
            plan = self._plan(work)
            return await self._carry_out(work, plan, running) if plan.session_id == session_id else None
        finally:
            self._one.end(session_id)

    def _plan(self, work: Work) -> Plan:
        asked, messages = work.asked, work.asked.messages
        if asked.session_id is None:
            for length in range(len(messages), 0, -1):
                if (known := self._known.in_state(work.states[length])) is not None:
                    return Plan(known.session_id, known, messages[length:], length, known.waiting)
            return Plan(None, None, messages, 0)
        known = self._known.of(work.scope, asked.session_id)
        if known is not None and known.state in work.states[1:]:
            length = len(messages) - work.states[::-1].index(known.state)
            return Plan(asked.session_id, known, messages[length:], length, known.waiting)
        first = unanswered_tail(messages)
        told: frozenset[str] = frozenset() if known is None else known.instructions
        # What the client shows of the conversation counts, if it shows any.
        waiting = messages[first - 1].calls if first else () if known is None else known.waiting
        return Plan(asked.session_id, known, messages[first:], first, waiting, told)

    async def _carry_out(self, work: Work, plan: Plan, running: Running) -> Reply | None:
        """Run the agent; None if the session that was found is there no more."""
        attempt = _Attempt(work, plan, running, await self._policy.of(plan.session_id))
        new = attempt.new_messages()
        async with tools_in_process(self._gate, work.scope, turns=self._turns) as tools:
            # Within the client nothing may be raised: its task groups would wrap it.
            outcome = await self._run(attempt, tools, new)
        if isinstance(outcome, Failure):
            raise outcome
        if outcome is None:
            return None
        if outcome.error is not None:
            raise _failed(outcome, outcome.error) from outcome.error
        reply = running.transcript.reply(outcome, streamed=work.asked.stream)
        self._known.note(attempt.left(next_state(work.states[-1], reply.message), reply.message.calls))
        return reply

    async def _run(self, attempt: _Attempt, tools: MemoryTools, new: list[NewMessage]) -> Trajectory | Failure | None:
        work, plan, running = attempt.work, attempt.plan, attempt.running

        def begun(session_id: str) -> None:
            if plan.session_id is None:
                self._one.claim(session_id)
            self._policy.keep(session_id, attempt.policy)
            running.session.set_result(session_id)

        agent = Agent(attempt.policy, tools, AgentOptions(kit=work.kit, client_tools=work.asked.tools))
        try:
            return await agent.run(new, session_id=plan.session_id, on_event=running.transcript.told, on_session=begun)
        except InvalidOperation as error:
            return await self._refused(attempt, tools, error)
        except (AgeMemError, asyncio.CancelledError) as error:
            if plan.known is not None and not attempt.begun:
                # It was cut off within appending: nobody can say how far that came.
                self._known.note(replace(plan.known, state=None))
            if isinstance(error, asyncio.CancelledError):
                raise
            return Failure(503, str(error), code="memory_error", session=plan.session_id)
        finally:
            if attempt.begun:
                # If no answer comes, whoever asks again goes on here.
                self._known.note(attempt.left(work.states[-1], ()))

    async def _refused(self, attempt: _Attempt, tools: MemoryTools, error: InvalidOperation) -> Failure | None:
        """What it means that the memory refused the request's messages."""
        session_id = attempt.plan.session_id
        if session_id is not None and await _is_gone(tools, session_id):
            self._known.forget(session_id)
            # One that was only found by its history is replaced by a new one.
            return None if attempt.work.asked.session_id is None else _no_session()
        return Failure(400, str(error), param="messages", session=session_id)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A run in the session that a plan names."""

    work: Work
    plan: Plan
    running: Running
    policy: Policy

    @property
    def begun(self) -> bool:
        """Whether the new messages stand in the session."""
        return self.running.session.done()

    def new_messages(self) -> list[NewMessage]:
        """What is appended.

        Raises:
            Failure: results of tools are missing, or belong to no call.
        """
        plan = self.plan
        new = as_context(plan.messages, plan.waiting, native=self.policy.native, first=plan.first, told=plan.told)
        # What is said of the tools must not come between calls and their results.
        results = next((number for number, one in enumerate(new) if one.role is not Role.TOOL), len(new))
        return [*new[:results], *self._of_tools(), *new[results:]]

    def _of_tools(self) -> list[NewMessage]:
        """Tells a policy, which reads of its tools in the session's first message, that the client's are others now."""
        tools = self.work.asked.tools
        before = "" if self.plan.known is None else self.plan.known.tools
        if self.plan.session_id is None or self.policy.native or _digest(tools) == before:
            return []
        if not tools:
            return [NewMessage(Role.SYSTEM, "From now on you have no tools but those of the memory.")]
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return [NewMessage(Role.SYSTEM, f"Beside those of the memory your tools are now, one to a line:\n{listed}")]

    def left(self, state: bytes, waiting: tuple[ClientCall, ...]) -> Known:
        """The session in this state."""
        before = frozenset[str]() if self.plan.known is None else self.plan.known.instructions
        said = {one.text for one in self.work.asked.messages if one.role == "system"}
        session_id = self.running.session.result()
        return Known(session_id, self.work.scope, state, waiting, _digest(self.work.asked.tools), before | said)


def _failed(outcome: Trajectory, error: AgeMemError) -> Failure:
    """What it means that a run ended by an error: the model's, what it wrote, or the memory's."""
    session_id = outcome.session_id
    if outcome.stop_reason is StopReason.PROVIDER_ERROR:
        return Failure(502, str(error), code="provider_error", session=session_id)
    if isinstance(error, InvalidOperation):
        msg = f"What the model wrote could not be kept: {error}"
        return Failure(502, msg, code="provider_error", session=session_id)
    return Failure(503, str(error), code="memory_error", session=session_id)


async def _is_gone(tools: MemoryTools, session_id: str) -> bool:
    shown = await tools.call("Show_context", {"session_id": session_id}, session_id=None, actor=Actor.ENVIRONMENT)
    return shown.is_error


def _no_session() -> Failure:
    msg = "There is no such session here. Leave X-Agemem-Session away to begin a new one."
    return Failure(404, msg, code="session_not_found", param="session_id")


def _digest(tools: Sequence[dict[str, Any]]) -> str:
    return json.dumps(tools, sort_keys=True) if tools else ""


def _ended(task: asyncio.Task[Reply], running: Running) -> None:
    running.pieces.put_nowait(None)
    if not task.cancelled():
        task.exception()  # looked at here, in case the client is gone
