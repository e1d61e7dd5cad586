"""What becomes of a run: text, reason, usage, and what was done for it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agemem_mcp.domain.text import preview
from agemem_policies.endpoint.replies import Operation, Transcript, plain
from agemem_policies.events import Called, ContextChanged, Corrected, Observed, Said, Thought
from agemem_policies.memory import Observation
from agemem_policies.protocol import Call
from agemem_policies.steps import StopReason, Trajectory

NEW_TURN = ContextChanged(3, 100, 8192)


def transcript(*events: Any) -> tuple[Transcript, list[Any]]:
    """One that was told these events, and what it passed on."""
    passed: list[Any] = []
    told = Transcript(passed.append)
    for event in events:
        told.told(event)
    return told, passed


def ended(reason: StopReason, **more: Any) -> Trajectory:
    """A run that has ended."""
    return Trajectory("ctx_1", stop_reason=reason, **more)


def test_thoughts_and_corrections_are_not_passed_on() -> None:
    _, passed = transcript(NEW_TURN, Thought("Hm."), Corrected("no tags"), Called(Call("Add_memory")), Said("Yes."))
    assert passed == ["Yes."]


def test_what_is_said_in_two_turns_is_set_off() -> None:
    told, passed = transcript(NEW_TURN, Said("Let me "), Said("look."), NEW_TURN, NEW_TURN, Said("It "), Said("rains."))
    assert passed == ["Let me ", "look.", "\n\nIt ", "rains."]
    assert told.said == "".join(passed)


def test_an_operation_is_passed_on_with_its_memory() -> None:
    call, stored = Call("Add_memory", {"content": "tea"}), Observation("Stored.", {"memory_id": "mem_1"})
    told, passed = transcript(Observed(call, stored), Observed(Call("x"), Observation("No.", is_error=True)))
    assert passed == [
        Operation("Add_memory", {"content": "tea"}, "Stored.", is_error=False, memory_id="mem_1"),
        Operation("x", {}, "No.", is_error=True, memory_id=None),
    ]
    extension = told.reply(ended(StopReason.ANSWER, answer="Yes."), streamed=False).extension
    assert extension["operations"][0] == {
        "name": "Add_memory",
        "arguments": {"content": "tea"},
        "text": "Stored.",
        "is_error": False,
    }


def test_a_whole_answer_is_the_answer_and_a_streamed_one_all_that_was_said() -> None:
    told, passed = transcript(NEW_TURN, Said("Let me look."), NEW_TURN, Said("It rains."))
    run = ended(StopReason.ANSWER, answer="It rains.")
    assert told.reply(run, streamed=False).message.text == "It rains."
    assert told.reply(run, streamed=True).message.text == "".join(passed) == "Let me look.\n\nIt rains."


def test_an_answer_that_was_not_told_on_the_way_is_told_at_the_end() -> None:
    told, passed = transcript(NEW_TURN, Said("Let me look."), NEW_TURN)
    reply = told.reply(ended(StopReason.ANSWER, answer="It rains."), streamed=True)
    assert reply.message.text == "".join(passed) == "Let me look.\n\nIt rains."


@pytest.mark.parametrize(
    "reason",
    [
        StopReason.MAX_ROUNDS,
        StopReason.MAX_CALLS,
        StopReason.MAX_TOKENS,
        StopReason.MAX_SECONDS,
        StopReason.REPEATED_CALLS,
        StopReason.CONTEXT_OVERFLOW,
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_run_without_an_answer_says_why(reason: StopReason, streamed: bool) -> None:
    told, passed = transcript(NEW_TURN, Said("Half an"))
    reply = told.reply(ended(reason), streamed=streamed)
    assert reply.finish_reason == "length"
    assert reply.extension["stop_reason"] == reason.value
    assert "No answer was reached" in reply.message.text
    assert passed == (["Half an", "\n\n" + reply.message.text.partition("\n\n")[2]] if streamed else ["Half an"])


@pytest.mark.parametrize("streamed", [True, False])
def test_calls_for_the_client_have_ids_of_their_own(streamed: bool) -> None:
    told, passed = transcript(NEW_TURN, Said("Let me look."))
    calls = (Call("weather", {"city": "Porto"}), Call("weather", {"city": "Porto"}))
    reply = told.reply(ended(StopReason.CLIENT_CALLS, client_calls=calls), streamed=streamed)
    assert reply.finish_reason == "tool_calls"
    assert reply.message.text == "Let me look."
    assert passed == ["Let me look."]
    assert [json.loads(one.arguments) for one in reply.message.calls] == [{"city": "Porto"}] * 2
    assert len({one.call_id for one in reply.message.calls}) == 2


def test_usage_and_context_are_the_runs() -> None:
    run = ended(
        StopReason.ANSWER,
        answer="Yes.",
        prompt_tokens=30,
        completion_tokens=4,
        context_tokens=50,
        context_messages=6,
        budget_tokens=8192,
    )
    reply = transcript()[0].reply(run, streamed=False)
    assert reply.usage == {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}
    assert reply.extension == {
        "session_id": "ctx_1",
        "operations": [],
        "context": {"tokens": 50, "budget_tokens": 8192, "messages": 6},
        "stop_reason": "answer",
        "rounds": 0,
    }


def test_numbers_that_are_no_json_become_words() -> None:
    assert plain({"a": float("nan"), "b": [float("inf")]}) == {"a": "NaN", "b": ["Infinity"]}
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert plain({"a": deep}) == {}
    while deep:  # taken apart here: the interpreter would do it by recursion
        deep = deep.pop()


def test_the_sentence_is_short() -> None:
    text = transcript()[0].reply(ended(StopReason.CONTEXT_OVERFLOW), streamed=False).message.text
    assert preview(text, 120) == text
