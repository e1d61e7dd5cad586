"""The rungs of the ablation, native tool calling, and tools of the client's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agemem_mcp.domain.context import MessageKind, Role
from agemem_mcp.domain.operations import tool_name
from agemem_mcp.errors import ConfigurationError
from agemem_policies.agent import Agent, AgentOptions
from agemem_policies.baselines import AGEMEM, AGEMEM_LTM, AGEMEM_RAG, KITS, NO_MEMORY, RAG, kit_named
from agemem_policies.policy import Completion, FunctionCall
from agemem_policies.protocol import Call, Turn, render
from agemem_policies.rendering import chat_messages
from agemem_policies.scripted import ScriptedPolicy
from agemem_policies.session import ContextMessage, NewMessage
from agemem_policies.steps import StopReason

from .test_agent import ADD, DONE, LOOK, context_of, found, ran

if TYPE_CHECKING:
    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import OnText, Prompt


def test_kits_are_found_by_name() -> None:
    assert [kit_named(name).name for name in KITS] == list(KITS)
    with pytest.raises(ConfigurationError, match="There are agemem, agemem_ltm, agemem_rag, rag, no_memory"):
        kit_named("best")


async def test_without_memory_there_are_no_tools(tools: MemoryTools) -> None:
    trajectory, policy = await ran(tools, Turn("a", (ADD,)), DONE, kit=NO_MEMORY)
    assert "You have no tools" in policy.seen[0].messages[0].content
    assert trajectory.steps[0].observations[0].text.startswith("There is no tool 'Add_memory'. There are none")
    assert await found(tools, "Maya") == []


async def test_rag_stores_what_the_user_says_and_retrieves_for_it(tools: MemoryTools) -> None:
    await ran(tools, DONE, message="Maya lives in Lisbon.", kit=RAG)
    trajectory, policy = await ran(tools, DONE, message="Where does Maya live?", kit=RAG)
    assert "Maya lives in Lisbon." in policy.seen[0].messages[-1].content
    assert trajectory.calls == []
    assert set(await found(tools, "Maya live")) == {"Maya lives in Lisbon.", "Where does Maya live?"}


async def test_with_rag_in_place_of_the_context_tools_each_step_retrieves_and_the_policy_stores(
    tools: MemoryTools,
) -> None:
    trajectory, policy = await ran(
        tools, Turn("a", (ADD,)), Turn("b", (LOOK,)), DONE, message="Maya moved to Lisbon.", kit=AGEMEM_RAG
    )
    assert [step.observations[0].is_error for step in trajectory.steps[:2]] == [False, True]
    system = policy.seen[0].messages[0].content
    assert '"name": "Update_memory"' in system
    assert not any(f'"name": "{name}", "desc' in system for name in ("Retrieve_memory", "Filter_context"))
    assert "with Update_memory" in system
    assert "with Summary_context" not in system
    _, policy = await ran(tools, DONE, message="Maya in Lisbon?", kit=AGEMEM_RAG)
    assert policy.seen[0].messages[-1].content.startswith("<retrieved_memories>")


async def test_with_the_tools_of_long_term_memory_alone_the_policy_decides_to_retrieve(tools: MemoryTools) -> None:
    clear = Turn("c", (Call("Summary_context", {"span": "all"}),))
    trajectory, policy = await ran(tools, Turn("a", (ADD,)), Turn("b", (LOOK,)), clear, DONE, kit=AGEMEM_LTM)
    assert [step.observations[0].is_error for step in trajectory.steps[:3]] == [False, False, True]
    assert not any("<retrieved_memories>" in one.content for one in policy.seen[0].messages[1:])
    assert any("<retrieved_memories>" in one.content for one in policy.seen[2].messages[1:])
    system = policy.seen[0].messages[0].content
    assert '"name": "Retrieve_memory"' in system
    assert '"name": "Summary_context"' not in system


class NativePolicy(ScriptedPolicy):
    """Calls natively what its script calls in text."""

    native = True

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        """The next turn, as an API gives it."""
        self.seen.append(prompt)
        line = self._lines[self._next]
        self._next += 1
        if isinstance(line, Completion):
            return line
        assert isinstance(line, Turn)
        text = line.answer if line.answer is not None else line.think
        if on_text is not None and text:
            on_text(text)
        calls = tuple(
            FunctionCall(f"c{number}", call.name, json.dumps(call.arguments)) for number, call in enumerate(line.calls)
        )
        return Completion(text, calls)


async def ran_natively(tools: MemoryTools, *lines: Any, **options: Any) -> tuple[Any, NativePolicy]:
    """Run a script with native calling."""
    policy = NativePolicy(lines)
    return await Agent(policy, tools, AgentOptions(**options)).run("Hello."), policy


async def test_native_calls_go_through_the_same_loop(tools: MemoryTools) -> None:
    trajectory, policy = await ran_natively(tools, Turn("Let me see.", (ADD, LOOK)), Turn(answer="Lisbon."))
    assert (trajectory.stop_reason, trajectory.answer) == (StopReason.ANSWER, "Lisbon.")
    assert trajectory.said == "Let me see.Lisbon."
    assert [one["name"] for one in policy.seen[0].tools] == [tool_name(one) for one in AGEMEM.operations]
    _, _, called, stored, retrieved = policy.seen[1].messages
    assert [(one.name, json.loads(one.arguments)) for one in called.calls] == [
        (ADD.name, ADD.arguments),
        (LOOK.name, LOOK.arguments),
    ]
    assert [stored.call_id, retrieved.call_id] == [one.call_id for one in called.calls]
    assert "Maya lives in Lisbon." in retrieved.content
    assert await context_of(tools, trajectory.session_id)


@pytest.mark.parametrize(
    "completion",
    [
        Completion(""),
        Completion("x", (FunctionCall("c", "Add_memory", "{"),)),
        Completion("x", (FunctionCall("c", "Add_memory", "[1]"),)),
        Completion("x", (FunctionCall("c", "Add_memory", "[" * 5000),)),
    ],
)
async def test_a_native_turn_that_cannot_be_read_is_corrected(tools: MemoryTools, completion: Completion) -> None:
    trajectory, _ = await ran_natively(tools, completion, Turn(answer="Sorry."))
    assert (trajectory.violations, trajectory.answer) == (1, "Sorry.")


async def test_a_native_model_may_write_its_calls_as_text(tools: MemoryTools) -> None:
    trajectory, _ = await ran_natively(tools, Completion(render(Turn("a", (ADD,)))), Turn(answer="Kept."))
    assert (trajectory.violations, trajectory.answer) == (0, "Kept.")
    assert await found(tools, "Maya") == ["Maya lives in Lisbon."]


def shown(*messages: tuple[Role, str, MessageKind]) -> list[str]:
    """What a native model is shown of a context, in short."""
    listed = [ContextMessage(f"msg_{n}", role, text, kind) for n, (role, text, kind) in enumerate(messages)]
    return [
        f"{one.role}{'+' * len(one.calls)}{'' if one.call_id is None else '=' + one.call_id}"
        for one in chat_messages(listed, native=True)
    ]


def test_calls_whose_answers_have_left_the_context_are_shown_as_text() -> None:
    call = (Role.ASSISTANT, render(Turn("a", (ADD, LOOK))), MessageKind.MESSAGE)
    stored = (Role.TOOL, "Stored.", MessageKind.MESSAGE)
    hits = (Role.TOOL, "[mem_1] x", MessageKind.RETRIEVED)
    summary = (Role.TOOL, "So far.", MessageKind.SUMMARY)
    ask = (Role.USER, "And?", MessageKind.MESSAGE)
    assert shown(call, stored, hits) == ["assistant++", "tool=call_msg_0_0", "tool=call_msg_0_1"]
    assert shown(call, stored, ask) == ["assistant", "user", "user"]
    assert shown(stored, hits, ask) == ["user", "user", "user"]
    assert shown(call, stored, summary) == ["assistant", "user", "user"]
    assert shown(call, stored, hits, stored) == ["assistant", "user", "user", "user"]
    assert shown((Role.ASSISTANT, "Plain.", MessageKind.MESSAGE)) == ["assistant"]


WEATHER = {"name": "get_weather", "description": "Weather.", "parameters": {"type": "object", "properties": {}}}
FORECAST = Call("get_weather", {"place": "Lisbon"})


@pytest.mark.parametrize("policy_type", [ScriptedPolicy, NativePolicy])
async def test_tools_of_the_client_are_handed_to_it_and_their_results_taken(
    tools: MemoryTools, policy_type: type[ScriptedPolicy]
) -> None:
    policy = policy_type([Turn("Both.", (FORECAST, ADD)), DONE])
    agent = Agent(policy, tools, AgentOptions(client_tools=(WEATHER,)))
    first = await agent.run("Weather?")
    assert (first.stop_reason, first.client_calls, first.answer) == (StopReason.CLIENT_CALLS, (FORECAST,), None)
    assert await found(tools, "Maya") == ["Maya lives in Lisbon."]
    then = await agent.run([NewMessage(Role.TOOL, "Rain.")], session_id=first.session_id)
    assert then.answer == "Done."
    last = policy.seen[-1].messages
    assert "Rain." in last[-1].content
    assert last[-2].content.removeprefix("<tool_response>\n").startswith("Stored as mem_")
    if policy.native:
        assert [one.name for one in last[-3].calls] == ["Add_memory", "get_weather"]
        assert [last[-2].call_id, last[-1].call_id] == [one.call_id for one in last[-3].calls]
