"""One episode: the three stages of AgeMem (section 3.3, algorithms 3 to 5) around the memory server.

1. Long-term memory is built from the task's messages, one after the other; with each the environment retrieves what
   the memory holds about it. An answer closes the message.
2. A new context; long-term memory stays. Distractors come, one after the other.
3. In the same context the query comes, and the policy answers it with what it finds.

An episode is used once. Whatever its policy does wrong is data: it ends with a stop reason and keeps what was done.
Where the policy gives no turn at all, or the memory server fails, there is no episode.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agemem_mcp.domain.memory import Actor
from agemem_policies.agent import Agent, AgentOptions, Limits
from agemem_policies.baselines import AGEMEM, Kit
from agemem_policies.budget import Overflow
from agemem_policies.session import SessionContext
from agemem_policies.steps import StopReason
from agemem_training.record import CONSTRUCTION, DISTRACTION, REASONING, Episode

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_mcp.errors import AgeMemError
    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import Policy
    from agemem_training.tasks.task import Task
    from agemem_training.worlds import World


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds in every episode of a run."""

    kit: Kit = AGEMEM
    max_rounds: int = 24
    """N_max: turns of the policy in one stage."""
    recalled: int = 3
    """k: hits of the environment's retrieval with each message of stage 1."""
    overflow: Overflow = Overflow.ERROR
    """What happens when a context outgrows the budget; by default the episode ends."""
    answer_tokens: int = 0
    """Of the budget, kept for a turn."""
    frame_tokens: int = 0
    """Of the policy's chat template, counted for each message."""
    system: str | None = None
    """The system prompt; None for the agent's."""
    prompts: Path | None = None
    """Folder of prompts that replace the agent's."""
    own_summaries: bool = False
    """Whether the policy's model writes a summary that a call lacks; else the server does."""
    strict: bool = True
    """Take only turns in exactly the protocol's form."""

    def options(self) -> AgentOptions:
        """As the agent takes them."""
        return AgentOptions(
            kit=self.kit,
            overflow=self.overflow,
            answer_tokens=self.answer_tokens,
            frame_tokens=self.frame_tokens,
            system=self.system,
            prompts=self.prompts,
            own_summaries=self.own_summaries,
            strict=self.strict,
        )


@dataclass(slots=True)
class _Stages:
    """An episode under way."""

    policy: Policy
    tools: MemoryTools
    rules: Rules
    episode: Episode
    context: SessionContext
    rounds_left: dict[int, int] = field(default_factory=dict[int, int])
    error: AgeMemError | None = None
    """Of the policy or the memory server."""

    async def say(self, stage: int, message: str) -> bool:
        """Have the policy work on a message; tells whether it was answered, else the episode is over."""
        left = self.rounds_left.setdefault(stage, self.rules.max_rounds)
        options = replace(
            self.rules.options(),
            stage=stage,
            limits=Limits(rounds=left),
            recalled=self.rules.recalled if stage == CONSTRUCTION and self.rules.kit.operations else 0,
        )
        ran = await Agent(self.policy, self.tools, options).run(message, context=self.context)
        self.rounds_left[stage] = left - len(ran.steps)
        first = len(self.episode.steps)
        self.episode.steps += [replace(step, index=first + number) for number, step in enumerate(ran.steps)]
        self.episode.summary_tokens += ran.prompt_tokens - sum(step.completion.prompt_tokens or 0 for step in ran.steps)
        self.episode.sessions[stage] = ran.session_id
        self.episode.stop_reason = ran.stop_reason
        self.error = ran.error
        if stage == REASONING:
            self.episode.answer = ran.answer
        return ran.stop_reason is StopReason.ANSWER


async def run_episode(  # noqa: PLR0913  what an episode is made of
    task: Task, policy: Policy, world: World, rules: Rules, *, namespace: str, seed: int = 0
) -> Episode:
    """Live through one episode.

    Args:
        task: what it is about.
        policy: decides.
        world: where its memory is.
        rules: of the episode.
        namespace: a scope that nobody used before.
        seed: noted with the episode.

    Raises:
        StoreError: the memory server cannot be reached.
        InvalidOperation: it refused a message of the task.
        AgeMemError: the policy or the memory server failed; what the episode was until then is of no use.
    """
    began = time.perf_counter()
    async with world.tools(namespace) as tools:
        episode = Episode(task, seed=seed, max_rounds=rules.max_rounds)
        for text in task.background:
            known = {"content": text, "memory_type": "fact"}
            await tools.require("Add_memory", known, session_id=None, actor=Actor.ENVIRONMENT)
        stages = _Stages(policy, tools, rules, episode, SessionContext(tools))
        await _live(stages, task)
        episode.context = tuple(stages.context.messages)
        episode.context_tokens = stages.context.tokens
        episode.budget_tokens = stages.context.budget_tokens
    if stages.error is not None:
        # A reward would make the policy answer for what went wrong elsewhere.
        raise stages.error
    episode.events = await world.events(namespace)
    policy_s = sum(step.policy_s for step in episode.steps)
    episode.environment_s = time.perf_counter() - began - policy_s
    return episode


async def _live(stages: _Stages, task: Task) -> None:
    for message in task.messages:
        if not await stages.say(CONSTRUCTION, message):
            return
    stages.context = SessionContext(stages.tools)
    for distractor in task.distractors:
        if not await stages.say(DISTRACTION, distractor):
            return
    await stages.say(REASONING, task.query)
