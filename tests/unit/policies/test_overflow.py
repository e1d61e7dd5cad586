"""Contexts that hold more than the model takes in: each way out keeps the prompt within the window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agemem_mcp.domain.context import MessageKind, Role
from agemem_policies.agent import Agent, AgentOptions
from agemem_policies.baselines import NO_MEMORY
from agemem_policies.budget import Overflow, framed_tokens, newest_rounds
from agemem_policies.protocol import Call, Turn
from agemem_policies.scripted import ScriptedPolicy
from agemem_policies.session import ContextMessage, SessionContext
from agemem_policies.steps import StopReason

from .test_agent import DONE, context_of

if TYPE_CHECKING:
    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import Completion, OnText, Prompt
    from agemem_policies.scripted import Line

WINDOW, ANSWER = 1200, 200
FILLER = "The harbour office opens at nine and closes at five, except on public holidays. "


def options(overflow: Overflow, *, own_summaries: bool = False) -> AgentOptions:
    """A small window; no tools, so that the system prompt is short."""
    return AgentOptions(
        kit=NO_MEMORY,
        overflow=overflow,
        window_tokens=WINDOW,
        answer_tokens=ANSWER,
        own_summaries=own_summaries,
    )


async def talk(
    tools: MemoryTools, overflow: Overflow, rounds: int
) -> tuple[list[StopReason | None], ScriptedPolicy, str]:
    """Rounds of about 150 tokens in one session."""
    policy = ScriptedPolicy([DONE] * rounds)
    agent, session_id, reasons = Agent(policy, tools, options(overflow)), None, []
    for number in range(rounds):
        trajectory = await agent.run(f"Number {number}. {FILLER * 6}", session_id=session_id)
        session_id = trajectory.session_id
        reasons.append(trajectory.stop_reason)
    assert session_id is not None
    return reasons, policy, session_id


def size(prompt: Prompt) -> int:
    """About as many tokens as a prompt has, on the safe side of the server's estimate."""
    return sum(len(message.content) for message in prompt.messages) // 5


async def test_without_a_way_out_the_run_ends_and_the_model_is_not_asked(tools: MemoryTools) -> None:
    reasons, policy, _ = await talk(tools, Overflow.ERROR, 12)
    assert reasons[0] is StopReason.ANSWER
    assert reasons[-1] is StopReason.CONTEXT_OVERFLOW
    assert len(policy.seen) == reasons.count(StopReason.ANSWER)
    assert all(size(prompt) <= WINDOW - ANSWER for prompt in policy.seen)


async def test_the_oldest_rounds_are_not_shown_but_stay_in_the_context(tools: MemoryTools) -> None:
    reasons, policy, session_id = await talk(tools, Overflow.TRUNCATE_OLDEST, 12)
    assert set(reasons) == {StopReason.ANSWER}
    assert all(size(prompt) <= WINDOW - ANSWER for prompt in policy.seen)
    last = policy.seen[-1].messages
    assert last[0].role == "system"
    assert last[1].role == "user"
    assert last[1].content.startswith("Number ")
    assert not last[1].content.startswith("Number 0")
    assert last[-1].content.startswith("Number 11.")
    assert any(text.startswith("Number 0.") for _, text in await context_of(tools, session_id))


async def test_what_went_before_is_summarised_and_the_question_repeated(tools: MemoryTools) -> None:
    reasons, policy, session_id = await talk(tools, Overflow.SUMMARISE, 12)
    assert set(reasons) == {StopReason.ANSWER}
    assert all(size(prompt) <= WINDOW - ANSWER for prompt in policy.seen)
    assert any("<summary>" in message.content for message in policy.seen[-1].messages)
    assert all(prompt.messages[-1].content.startswith(f"Number {n}.") for n, prompt in enumerate(policy.seen))
    assert len(await context_of(tools, session_id)) < 24


@pytest.mark.parametrize("overflow", Overflow)
async def test_one_gigantic_message_has_a_clear_outcome(tools: MemoryTools, overflow: Overflow) -> None:
    policy = ScriptedPolicy([DONE])
    trajectory = await Agent(policy, tools, options(overflow)).run(FILLER * 700)
    if overflow is Overflow.SUMMARISE:
        assert trajectory.stop_reason in (StopReason.ANSWER, StopReason.CONTEXT_OVERFLOW)
    else:
        assert trajectory.stop_reason is StopReason.CONTEXT_OVERFLOW
    assert all(size(prompt) <= WINDOW - ANSWER for prompt in policy.seen)


class Writer(ScriptedPolicy):
    """Writes summaries when asked for one."""

    def __init__(self, lines: list[Line], summary: str) -> None:
        super().__init__(lines)
        self.summary = summary
        self.asked: list[Prompt] = []

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """Tell the request for a summary by its instruction."""
        if not prompt.messages[0].content.startswith("You condense"):
            return await super().act(prompt, on_text)
        self.asked.append(prompt)
        return await ScriptedPolicy([self.summary]).act(prompt)


@pytest.mark.parametrize(
    ("summary", "method"),
    [
        ("Maya asked for room 7.", "caller"),
        ("<think>Short.</think><answer>Maya asked for room 7.</answer>", "caller"),
        ("", "extractive"),
        (FILLER * 40, "extractive"),
        ('<tool_call>[{"name": "Add_memory", "arguments": {}}]</tool_call>', "extractive"),
    ],
)
async def test_the_policys_own_model_writes_the_summary_and_the_server_does_if_it_cannot(
    tools: MemoryTools, summary: str, method: str
) -> None:
    line = Turn("Sum up.", (Call("Summary_context", {"span": "1"}),))
    policy = Writer([line, DONE], summary)
    trajectory = await Agent(policy, tools).run(f"Maya wants room 7. {FILLER * 4}")
    (asked,) = policy.asked
    assert "Maya wants room 7." in asked.messages[1].content
    assert trajectory.steps[0].observations[0].structured["method"] == method
    assert trajectory.answer == "Done."


async def test_what_its_model_reads_and_writes_for_a_summary_is_counted(tools: MemoryTools) -> None:
    line = Turn("Sum up.", (Call("Summary_context", {"span": "all"}),))
    policy = Writer([line, DONE], "Room 7.")
    trajectory = await Agent(policy, tools).run(f"Maya wants room 7. {FILLER * 4}")
    assert trajectory.completion_tokens > sum(step.completion.completion_tokens or 0 for step in trajectory.steps)


def message(role: Role, tokens: int, kind: MessageKind = MessageKind.MESSAGE) -> ContextMessage:
    """A message of that size."""
    return ContextMessage(f"{role}{tokens}", role, "x", kind, tokens)


def test_whole_rounds_are_kept_from_the_newest_on_and_all_system_messages() -> None:
    system, late = message(Role.SYSTEM, 10), message(Role.SYSTEM, 11)
    old = [message(Role.USER, 100), message(Role.ASSISTANT, 101)]
    middle = [message(Role.TOOL, 50, MessageKind.SUMMARY), message(Role.ASSISTANT, 51)]
    new = [message(Role.USER, 20), message(Role.ASSISTANT, 21), message(Role.TOOL, 22)]
    everything = [system, *old, late, *middle, *new]
    room = framed_tokens([system, late, *middle, *new])
    assert newest_rounds(everything, framed_tokens(everything)) == [system, late, *old, *middle, *new]
    assert newest_rounds(everything, room) == [system, late, *middle, *new]
    assert newest_rounds(everything, room - 1) == [system, late, *new]
    assert newest_rounds(everything, framed_tokens([system, late, *new]) - 1) is None
    assert newest_rounds([system], framed_tokens([system])) == [system]
    assert newest_rounds([system], 1) is None


async def test_the_copy_of_a_context_follows_what_others_do_to_it(tools: MemoryTools) -> None:
    from agemem_mcp.domain.memory import Actor  # noqa: PLC0415  for this test alone
    from agemem_policies.session import NewMessage  # noqa: PLC0415  as above

    one = SessionContext(tools)
    await one.append([NewMessage(Role.USER, "One.")], Actor.USER)
    other = await SessionContext.resume(tools, one.session_id)
    await other.append([NewMessage(Role.USER, "Two.")], Actor.USER)
    assert len(one.messages) == 1
    await one.append([NewMessage(Role.USER, "Three.")], Actor.USER)
    assert [message.content for message in one.messages] == ["One.", "Two.", "Three."]
    assert one.tokens == sum(message.tokens for message in one.messages)
