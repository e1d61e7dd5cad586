"""The loop: context → policy → operations → observations → … → answer.

The prompt of each turn *is* the session's context on the memory server, system prompt included: what the policy
summarises or filters there is gone from its next prompt. A turn that cannot be read, a call that is refused and a
model that fails are data: they end in an observation or a :class:`StopReason`, never in an exception that loses
what was done.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from agemem_mcp.domain.context import MessageKind, Role
from agemem_mcp.domain.memory import Actor
from agemem_mcp.errors import AgeMemError
from agemem_policies.baselines import AGEMEM, Kit
from agemem_policies.budget import FRAME_TOKENS, SUMMARISE_FROM, Overflow, framed_tokens, newest_rounds
from agemem_policies.carrying_out import CallRunner
from agemem_policies.events import ContextChanged, Corrected, Said, Thought
from agemem_policies.manner import options_for
from agemem_policies.memory import Observation
from agemem_policies.native import read_native
from agemem_policies.policy import Prompt
from agemem_policies.prompts import agent_prompt, function_of
from agemem_policies.protocol import Call, ProtocolViolation, Turn, parse, render
from agemem_policies.rendering import chat_messages, harmless
from agemem_policies.session import NewMessage, SessionContext
from agemem_policies.steps import Step, StopReason, Trajectory
from agemem_policies.streaming import TurnStream
from agemem_policies.summarising import OwnSummaries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agemem_policies.events import Event, OnEvent
    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import Completion, OnText, Policy
    from agemem_policies.session import ContextMessage
    from agemem_policies.streaming import Part

_CHARS_PER_TOKEN = 3
"""Of JSON schemas, which a model is told beside the messages: an estimate on the safe side."""
_WORTH_ANOTHER = 1.2
_SHOWN_OF_A_VIOLATION = 2000
"""Characters of a turn that cannot be read which the policy is shown again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a run ends that does not end by itself."""

    rounds: int = 24
    """Turns of the policy (N_max of AgeMem, section 3.3)."""
    calls: int = 200
    """Tool calls of the run; a turn that makes more after these ends it."""
    calls_per_turn: int = 20
    """More of one turn are not carried out, and the policy is told."""
    repeats: int = 4
    """Turns in a row with the very same calls."""
    tokens: int | None = None
    """Read and written by the policy's model."""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How an agent works."""

    kit: Kit = AGEMEM
    limits: Limits = field(default_factory=Limits)
    overflow: Overflow = Overflow.SUMMARISE
    window_tokens: int | None = None
    """What the policy's model takes in, by the server's count; None for the budget of the server's contexts."""
    answer_tokens: int = 1024
    """Of the window, kept for the turn itself."""
    strict: bool = False
    """Take only turns in exactly the protocol's form."""
    own_summaries: bool = True
    """The policy's own model writes the summary when ``Summary_context`` is called without one (AgeMem, A.1)."""
    retrieved: int = 3
    """Hits of each retrieval that is not the policy's decision."""
    client_tools: tuple[dict[str, Any], ...] = ()
    """Further functions, run by the client: a turn that calls one ends the run."""
    prompts: Path | None = None
    """Folder of prompts that replace those shipped."""
    system: str | None = None
    """The whole system prompt, instead of the one made of those prompts and the tools."""
    recalled: int = 0
    """Hits of what is retrieved with each user message before the first turn, not by the policy's decision (stage 1
    of AgeMem, section 3.3)."""
    frame_tokens: int = FRAME_TOKENS
    """What the model's chat template puts around each message, at most."""
    stage: int = 0
    """Noted with each step."""


@dataclass(slots=True)
class _Run:
    """What one run knows."""

    context: SessionContext
    trajectory: Trajectory
    runner: CallRunner
    told: OnEvent
    question: str | None
    """The last user message."""
    started: float = field(default_factory=time.monotonic)
    repeats: int = 0
    last_calls: tuple[Call, ...] = ()
    condensed_tokens: int = 0
    """What was left when the context was last summarised for want of room."""


class Agent:
    """Drives a policy on a memory."""

    def __init__(self, policy: Policy, tools: MemoryTools, options: AgentOptions | None = None) -> None:
        """Set it up.

        Args:
            policy: decides.
            tools: of the memory server; its scope is all that this agent can reach.
            options: how it works; what the policy itself says of how it is used goes before (`manner.py`).

        Raises:
            ConfigurationError: a prompt, or what the policy says, cannot be read.
        """
        self._policy = policy
        self._tools = tools
        self._options = options = options_for(policy, options or AgentOptions())
        self._system = options.system or agent_prompt(
            options.kit.operations, native=policy.native, client_tools=options.client_tools, folder=options.prompts
        )
        self._functions: tuple[dict[str, Any], ...] = ()
        if policy.native:
            self._functions = (*(function_of(one) for one in options.kit.operations), *options.client_tools)
        self._functions_tokens = len(json.dumps(self._functions)) // _CHARS_PER_TOKEN
        self._of_client = {str(tool["name"]) for tool in options.client_tools}

    async def run(
        self,
        message: str | Sequence[NewMessage],
        *,
        session_id: str | None = None,
        context: SessionContext | None = None,
        on_event: OnEvent | None = None,
        on_session: Callable[[str], None] | None = None,
    ) -> Trajectory:
        """Work on a message until it is answered, or something else ends the run.

        Args:
            message: what the user says; or messages, which may be those of several roles.
            session_id: a session to go on with; None for a new one.
            context: instead of that: the session's context, which an earlier run has left; or one not yet opened.
            on_event: told what happens, as it happens.
            on_session: told the session's handle once the message stands in it, before the policy is asked.

        Returns:
            What was done. Where the model or the memory server failed meanwhile, its ``error`` is set.

        Raises:
            InvalidOperation: the message cannot be stored, or there is no such session.
            StoreError: the memory server cannot be reached.
            asyncio.CancelledError: cancelled; a call that had begun was carried out and is in the context with its
                observation.
        """
        new = [NewMessage(Role.USER, message)] if isinstance(message, str) else list(message)
        run = await self._begin(new, context or await self._opened(session_id), on_event or _nobody)
        if on_session is not None:
            on_session(run.context.session_id)
        try:
            if self._options.kit.remembers and run.question is not None:
                await run.runner.by_environment("Add_memory", {"content": run.question})
            if self._options.recalled and run.question is not None:
                recalled = {"query": run.question, "top_k": self._options.recalled}
                await run.runner.by_environment("Retrieve_memory", recalled)
            while run.trajectory.stop_reason is None:
                run.trajectory.stop_reason = self._used_up(run)
                if run.trajectory.stop_reason is None:
                    await self._round(run)
        except AgeMemError as error:
            run.trajectory.stop_reason, run.trajectory.error = StopReason.MEMORY_ERROR, error
        run.trajectory.context_tokens = run.context.tokens
        run.trajectory.context_messages = len(run.context.messages)
        run.trajectory.budget_tokens = run.context.budget_tokens
        run.trajectory.seconds = time.monotonic() - run.started
        return run.trajectory

    async def _opened(self, session_id: str | None) -> SessionContext:
        if session_id is None:
            return SessionContext(self._tools)
        return await SessionContext.resume(self._tools, session_id)

    async def _begin(self, new: list[NewMessage], context: SessionContext, told: OnEvent) -> _Run:
        first = [] if context.opened else [NewMessage(Role.SYSTEM, self._system)]
        if first or new:
            await context.append([*first, *new], Actor.USER)
        trajectory = Trajectory(context.session_id)
        own = OwnSummaries(self._policy, context, trajectory, prompts=self._options.prompts)
        runner = CallRunner(
            self._tools, context, self._options.kit, told, own.of_span if self._options.own_summaries else None
        )
        question = next((one.content for one in reversed(new) if one.role is Role.USER), None)
        return _Run(context, trajectory, runner, told, question)

    def _used_up(self, run: _Run) -> StopReason | None:
        limits, trajectory = self._options.limits, run.trajectory
        if len(trajectory.steps) >= limits.rounds:
            return StopReason.MAX_ROUNDS
        if limits.tokens is not None and trajectory.prompt_tokens + trajectory.completion_tokens >= limits.tokens:
            return StopReason.MAX_TOKENS
        if limits.seconds is not None and time.monotonic() - run.started >= limits.seconds:
            return StopReason.MAX_SECONDS
        return StopReason.REPEATED_CALLS if run.repeats >= limits.repeats else None

    async def _round(self, run: _Run) -> None:
        """One turn of the policy and what comes of it."""
        if self._options.kit.retrieves:
            await self._retrieve(run)
        shown = await self._shown(run)
        if shown is None:
            run.trajectory.stop_reason = StopReason.CONTEXT_OVERFLOW
            return
        context = run.context
        context_tokens = context.tokens
        run.told(ContextChanged(len(context.messages), context_tokens, context.budget_tokens))
        prompt = Prompt(chat_messages(shown, native=self._policy.native), self._functions)
        began = time.monotonic()
        completion = await self._act(run, prompt)
        if completion is None:
            return
        policy_s = time.monotonic() - began
        turn: Turn | None = None
        try:
            turn = self._read(completion)
        except ProtocolViolation as violation:
            observations = await self._correct(run, completion, violation)
        else:
            observations = await self._follow(run, completion, turn)
        index = len(run.trajectory.steps)
        step = Step(index, prompt, completion, turn, observations, context_tokens, policy_s, self._options.stage)
        run.trajectory.steps.append(step)

    async def _retrieve(self, run: _Run) -> None:
        """Retrieve what fits the last message, unless that was retrieved itself."""
        last = next((one for one in reversed(run.context.messages) if one.role is not Role.SYSTEM), None)
        if last is not None and last.kind is MessageKind.MESSAGE and last.role is not Role.ASSISTANT:
            arguments = {"query": last.content, "top_k": self._options.retrieved}
            await run.runner.by_environment("Retrieve_memory", arguments)

    async def _shown(self, run: _Run) -> Sequence[ContextMessage] | None:
        """The messages of the next prompt; None if they cannot be made to fit."""
        context, options = run.context, self._options
        overflow = options.overflow
        window = options.window_tokens or context.budget_tokens
        room = window - options.answer_tokens - self._functions_tokens
        wanted = framed_tokens(context.messages, options.frame_tokens)
        # What a summary could not shorten is not tried again before there is more of it.
        due = max(SUMMARISE_FROM * window, _WORTH_ANOTHER * run.condensed_tokens)
        if overflow is Overflow.SUMMARISE and wanted > min(room, due):
            await self._condense(run, room)
            run.condensed_tokens = framed_tokens(context.messages, options.frame_tokens)
        elif overflow is Overflow.TRUNCATE_OLDEST and wanted > room:
            return newest_rounds(context.messages, room, options.frame_tokens)
        return context.messages if framed_tokens(context.messages, options.frame_tokens) <= room else None

    async def _condense(self, run: _Run, room: int) -> None:
        """Replace what went before by a summary; the question that is being worked on is repeated after it."""
        context, question = run.context, run.question
        asked = next((one for one in context.messages if one.content == question), None)
        observation = await run.runner.by_environment("Summary_context", {"span": "all"})
        frame = self._options.frame_tokens
        if observation.is_error or asked is None or framed_tokens([*context.messages, asked], frame) > room // 2:
            return
        await context.append([NewMessage(Role.USER, asked.content)], Actor.ENVIRONMENT)

    async def _act(self, run: _Run, prompt: Prompt) -> Completion | None:
        """A turn of the policy; None if the run ends because it failed, or did not come in time."""
        stream = TurnStream(_teller(run))
        on_text: OnText = stream.feed
        if self._policy.native:
            on_text = partial(_said, run)
        limit = self._options.limits.seconds
        left = None if limit is None else max(0.0, limit - (time.monotonic() - run.started))
        try:
            async with asyncio.timeout(left):
                completion = await self._policy.act(prompt, on_text)
        except TimeoutError:
            run.trajectory.stop_reason = StopReason.MAX_SECONDS
            return None
        except AgeMemError as error:
            # Whatever it is, such as a checkpoint that is not there: it is the policy's, and not the memory's.
            run.trajectory.stop_reason, run.trajectory.error = StopReason.PROVIDER_ERROR, error
            return None
        stream.close()
        run.trajectory.counted(completion)
        return completion

    def _read(self, completion: Completion) -> Turn:
        if self._policy.native:
            return read_native(completion)
        return parse(completion.text, strict=self._options.strict, cut_off=completion.cut_off)

    async def _correct(
        self, run: _Run, completion: Completion, violation: ProtocolViolation
    ) -> tuple[Observation, ...]:
        run.trajectory.violations += 1
        run.told(Corrected(violation.reason))
        written = _storable(completion.text[:_SHOWN_OF_A_VIOLATION])
        new = [NewMessage(Role.ASSISTANT, written)] if written.strip() else []
        await run.context.append([*new, NewMessage(Role.TOOL, str(violation))], Actor.ENVIRONMENT)
        return (Observation(str(violation), is_error=True),)

    async def _follow(self, run: _Run, completion: Completion, turn: Turn) -> tuple[Observation, ...]:
        """Carry out a turn."""
        if turn.answer is not None:
            await run.context.append([NewMessage(Role.ASSISTANT, _storable(completion.text))], Actor.POLICY)
            run.trajectory.answer, run.trajectory.stop_reason = turn.answer.strip(), StopReason.ANSWER
            return ()
        run.repeats = run.repeats + 1 if turn.calls == run.last_calls else 1
        run.last_calls = turn.calls
        theirs = tuple(call for call in turn.calls if call.name in self._of_client)
        ours = tuple(call for call in turn.calls if call.name not in self._of_client)
        written = completion.text
        if theirs or self._policy.native:
            # The client's last: their results come later, and which call a result belongs to is known by its place.
            written = render(Turn(harmless(turn.think), (*ours, *theirs)))
        limits = self._options.limits
        allowed = min(limits.calls_per_turn, limits.calls - run.runner.carried_out)
        observations = await run.runner.carry_out(_storable(written), ours, allowed=allowed)
        if allowed <= 0 and ours:
            run.trajectory.stop_reason = StopReason.MAX_CALLS
        elif theirs:
            run.trajectory.client_calls, run.trajectory.stop_reason = theirs, StopReason.CLIENT_CALLS
        return tuple(observations)


def _teller(run: _Run) -> Callable[[Part, str], None]:
    return lambda part, text: _said(run, text) if part == "answer" else run.told(Thought(text))


def _said(run: _Run, text: str) -> None:
    run.trajectory.said += text
    run.told(Said(text))


def _storable(text: str) -> str:
    """What a model wrote, without the characters that no store keeps."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _nobody(_event: Event) -> None:
    """Nobody is told."""
