"""Carrying out the calls of a turn, so that the context tells what was done, whatever interrupts it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from agemem_mcp.domain.context import Role
from agemem_mcp.domain.memory import Actor
from agemem_mcp.domain.operations import SIX, tool_name
from agemem_mcp.domain.results import RetrieveResult
from agemem_mcp.domain.text import preview
from agemem_mcp.service.memory_service import retrieved_text
from agemem_policies.events import Called, Observed
from agemem_policies.memory import Observation
from agemem_policies.protocol import Call
from agemem_policies.session import NewMessage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from agemem_policies.baselines import Kit
    from agemem_policies.events import OnEvent
    from agemem_policies.memory import MemoryTools
    from agemem_policies.session import SessionContext

    Summarise = Callable[[str], Awaitable[str | None]]
    """Writes a summary of a span with the policy's own model; None if it cannot."""

_OF_A_SESSION = {tool_name(operation) for operation in SIX if "session_id" in operation.model_fields}
_RETRIEVING = "Retrieve_memory"


class CallRunner:
    """Carries out calls on behalf of one session, and puts what they were answered into its context."""

    def __init__(
        self, tools: MemoryTools, context: SessionContext, kit: Kit, told: OnEvent, summarise: Summarise | None
    ) -> None:
        self._tools = tools
        self._context = context
        self._names = [tool_name(operation) for operation in kit.operations]
        self._told = told
        self._summarise = summarise
        self._summarising: asyncio.Future[str | None] | None = None
        self._stopping = False
        self.carried_out = 0
        """Calls of the policy."""

    async def carry_out(self, written: str, calls: Sequence[Call], *, allowed: int) -> list[Observation]:
        """Carry out the calls of a turn one after the other.

        Args:
            written: the turn, as it is to stand in the context.
            calls: of it.
            allowed: so many are carried out; of the others the policy is told.

        Raises:
            StoreError: the memory server cannot be reached.
            asyncio.CancelledError: cancelled. The call that had begun was carried out, and each call has its
                observation in the context.
        """
        working = asyncio.ensure_future(self._carry_out(written, calls, allowed))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            self._stopping = True
            if self._summarising is not None:
                self._summarising.cancel()
            await asyncio.wait([working])
            raise

    async def by_environment(self, name: str, arguments: dict[str, Any]) -> Observation:
        """Make a call that is not the policy's decision; what it retrieves enters the context.

        Raises:
            StoreError: the memory server cannot be reached.
        """
        observation = await self._answered(Call(name, arguments), Actor.ENVIRONMENT)
        if found := _found(observation):
            await self._context.retrieved(observation, found)
        return observation

    async def _carry_out(self, written: str, calls: Sequence[Call], allowed: int) -> list[Observation]:
        observations: list[Observation] = []
        waiting = [NewMessage(Role.ASSISTANT, written)]
        # What is retrieved enters the context by itself, after the turn that asked for it. Else all is appended at the
        # end, and a filter does not meet its own criteria in the turn that names them.
        at_once = not any(call.name == _RETRIEVING for call in calls)
        for number, call in enumerate(calls):
            if number >= allowed or self._stopping:
                left = len(calls) - number
                why = (
                    "the run was ended" if self._stopping else f"no more than {number} are, of this turn. Go on without"
                )
                observations.append(Observation(f"{left} more calls were not carried out: {why}.", is_error=True))
                waiting.append(NewMessage(Role.TOOL, observations[-1].text))
                break
            if not at_once and waiting:
                await self._context.append(waiting, Actor.POLICY)
                waiting = []
            observation = await self._answered(call, Actor.POLICY)
            self.carried_out += 1
            observations.append(observation)
            if found := _found(observation):
                await self._context.retrieved(observation, found)
            else:
                waiting.append(NewMessage(Role.TOOL, observation.text))
        if waiting:
            await self._context.append(waiting, Actor.POLICY)
        return observations

    async def _answered(self, call: Call, actor: Actor) -> Observation:
        self._told(Called(call))
        observation = await self._call(call, actor)
        self._told(Observed(call, observation))
        return observation

    async def _call(self, call: Call, actor: Actor) -> Observation:
        if actor is Actor.POLICY and call.name not in self._names:
            there_are = f"The tools are {', '.join(self._names)}." if self._names else "There are none: answer."
            return Observation(f"There is no tool {preview(call.name, 60)!r}. {there_are}", is_error=True)
        arguments = dict(call.arguments)
        if call.name in _OF_A_SESSION:
            # Whatever a model writes there: it works on its own session.
            arguments["session_id"] = self._context.session_id
        try:
            json.dumps(arguments, ensure_ascii=False).encode()
        except ValueError as error:
            return Observation(f"The arguments of {call.name} cannot be sent: {error}. Write them anew.", is_error=True)
        if call.name == "Summary_context":
            observation = await self._summary(arguments, actor)
        else:
            observation = await self._tools.call(call.name, arguments, session_id=self._context.session_id, actor=actor)
        if call.name == "Filter_context" and not observation.is_error:
            await self._context.filtered(observation)
        if call.name == "Summary_context" and not observation.is_error:
            await self._context.summarised(observation)
        return _brief(call.name, observation)

    async def _summary(self, arguments: dict[str, Any], actor: Actor) -> Observation:
        """Summarise, with a summary of the policy's own model if the call has none and that can write one."""
        session_id = self._context.session_id
        if self._summarise is not None and not arguments.get("summary"):
            self._summarising = asyncio.ensure_future(self._summarise(str(arguments.get("span", ""))))
            try:
                written = await self._summarising
            except asyncio.CancelledError:
                return Observation("The summary was not written: the run was ended.", is_error=True)
            finally:
                self._summarising = None
            if written is not None:
                given = {**arguments, "summary": written}
                observation = await self._tools.call("Summary_context", given, session_id=session_id, actor=actor)
                if not observation.is_error:
                    return observation
        return await self._tools.call("Summary_context", arguments, session_id=session_id, actor=actor)


def _found(observation: Observation) -> str | None:
    """The message that a retrieval became in the context; None if it was none, or found nothing."""
    if observation.is_error or not observation.structured.get("memories"):
        return None
    return retrieved_text(RetrieveResult.model_validate(observation.structured).memories)


def _brief(name: str, observation: Observation) -> Observation:
    """Without the session's handle, which a model that works on one session has no use for."""
    if name not in _OF_A_SESSION or observation.is_error:
        return observation
    info = observation.structured["context"]
    first = observation.text.rpartition("\n")[0] or observation.text.partition(" Session ")[0]
    room = f"The context holds {info['tokens']:,} of {info['budget_tokens']:,} tokens."
    return Observation(f"{first}\n{room}", observation.structured)
