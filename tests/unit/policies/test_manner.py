"""How a checkpoint wants to be used: kept beside it, and followed by the agent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.errors import ConfigurationError
from agemem_policies.agent import Agent, AgentOptions
from agemem_policies.local import LocalPolicy
from agemem_policies.manner import FILE, Manner, manner_of, options_for
from agemem_policies.protocol import Call, Turn
from agemem_policies.scripted import ScriptedPolicy
from agemem_policies.steps import StopReason

if TYPE_CHECKING:
    from pathlib import Path

    from agemem_policies.memory import MemoryTools
    from agemem_policies.policy import Prompt

TRAINED = Manner(
    system="You manage memory.",
    recalled=2,
    window_tokens=640,
    answer_tokens=0,
    frame_tokens=0,
    own_summaries=False,
)
DONE = Turn("nothing new", answer="ok")


class Trained(ScriptedPolicy):
    """A script that was trained in a manner of its own."""

    manner = TRAINED


async def prompts_of(policy: ScriptedPolicy, tools: MemoryTools, options: AgentOptions | None = None) -> list[Prompt]:
    """What a policy is shown when Tom's new address is told to a memory that knows his old one."""
    await Agent(
        ScriptedPolicy([Turn("new", (Call("Add_memory", {"content": "Tom lives in Oslo."}),)), DONE]), tools
    ).run("Tom lives in Oslo.")
    await Agent(policy, tools, options).run("Tom lives in Rome now.")
    return policy.seen


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    for manner in (TRAINED, Manner(), Manner(system="Grüße, 记忆")):
        manner.save(tmp_path)
        assert manner_of(tmp_path) == manner


def test_a_folder_without_the_file_wants_nothing(tmp_path: Path) -> None:
    manner = manner_of(tmp_path)
    assert manner == Manner()
    options = AgentOptions(recalled=3, own_summaries=False, system="Mine.", window_tokens=99, frame_tokens=1)
    assert manner.applied_to(options) == options


def test_keys_that_are_not_known_are_ignored(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"recalled": 1, "colour": "green"}), encoding="utf-8")
    assert manner_of(tmp_path) == Manner(recalled=1)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (b"{", "EOF"),
        (b"", "EOF"),
        (b"[1]", "the whole"),
        (b'{"recalled": "two"}', "recalled"),
        (b'{"recalled": true}', "recalled"),
        (b'{"own_summaries": 1}', "own_summaries"),
        (b'{"system": "\xff"}', "unicode"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong_in_it(tmp_path: Path, written: bytes, reason: str) -> None:
    (tmp_path / FILE).write_bytes(written)
    with pytest.raises(ConfigurationError) as caught:
        manner_of(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)
    assert reason in str(caught.value)
    with pytest.raises(ConfigurationError):
        options_for(LocalPolicy(tmp_path), AgentOptions())


def test_a_local_policy_is_used_in_the_manner_of_its_folder(tmp_path: Path) -> None:
    TRAINED.save(tmp_path)
    wanted = options_for(LocalPolicy(tmp_path), AgentOptions(strict=True, retrieved=7))
    assert (wanted.system, wanted.recalled, wanted.window_tokens) == ("You manage memory.", 2, 640)
    assert (wanted.answer_tokens, wanted.frame_tokens, wanted.own_summaries) == (0, 0, False)
    assert (wanted.strict, wanted.retrieved) == (True, 7)


def test_a_policy_without_a_manner_changes_nothing(tmp_path: Path) -> None:
    options = AgentOptions(recalled=3, own_summaries=False)
    assert options_for(ScriptedPolicy([DONE]), options) is options
    assert options_for(LocalPolicy(tmp_path), options) == options


async def test_an_agent_shows_the_trained_prompt_and_recalls_for_each_message(tools: MemoryTools) -> None:
    (prompt,) = await prompts_of(Trained([DONE]), tools)
    assert [one.role for one in prompt.messages] == ["system", "user", "user"]
    assert prompt.messages[0].content == "You manage memory."
    assert prompt.messages[2].content.startswith("<retrieved_memories>\n[mem_")
    assert "Tom lives in Oslo." in prompt.messages[2].content


async def test_without_a_manner_an_agent_does_as_its_options_say(tools: MemoryTools) -> None:
    (prompt,) = await prompts_of(ScriptedPolicy([DONE]), tools)
    assert [one.role for one in prompt.messages] == ["system", "user"]
    assert "Filter_context" in prompt.messages[0].content


async def test_an_agent_counts_the_frames_and_the_window_of_the_manner(tools: MemoryTools) -> None:
    class Narrow(ScriptedPolicy):
        manner = Manner(system="Hi.", window_tokens=200, answer_tokens=0, frame_tokens=0)

    class Framed(ScriptedPolicy):
        manner = Manner(system="Hi.", window_tokens=200, answer_tokens=0, frame_tokens=150)

    fits = await Agent(Narrow([DONE]), tools).run("Hello.")
    assert fits.stop_reason is StopReason.ANSWER
    # Two messages, each in a frame of 150 tokens, are more than 200.
    framed = await Agent(Framed([DONE]), tools).run("Hello.")
    assert framed.stop_reason is StopReason.CONTEXT_OVERFLOW


async def test_a_manner_without_own_summaries_leaves_them_to_the_server(tools: MemoryTools) -> None:
    class Mute(ScriptedPolicy):
        manner = Manner(own_summaries=False)

    call = Turn("too much", (Call("Summary_context", {"span": "all"}),))
    message = " ".join(f"The harbour of town {number} was closed for days." for number in range(12))
    policy = Mute([call, DONE])
    trajectory = await Agent(policy, tools).run(message)
    assert len(policy.seen) == 2
    assert trajectory.steps[0].observations[0].structured["method"] == "extractive"
    asked = ScriptedPolicy([call, "Harbours were closed.", DONE])
    await Agent(asked, tools).run(message)
    assert len(asked.seen) == 3
