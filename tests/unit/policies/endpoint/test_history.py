"""States of a conversation, and messages of a client as those of a context."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.domain.context import Role
from agemem_policies.endpoint.asking import ClientCall, Said
from agemem_policies.endpoint.failures import Failure
from agemem_policies.endpoint.history import as_context, first_state, next_state, states_of, unanswered_tail
from agemem_policies.protocol import parse

A = ClientCall("call_a", "weather", '{"city": "Porto"}')
B = ClientCall("call_b", "time", "{}")
CALLED = Said("assistant", "", (A, B))

words = st.text(max_size=20)
spoken = st.builds(Said, st.sampled_from(["system", "user", "assistant"]), words)
conversations = st.lists(spoken, max_size=8)


def roles(messages: Any) -> list[tuple[Role, str]]:
    """What stands in a context."""
    return [(one.role, one.content) for one in messages]


@given(conversations)
def test_the_states_of_a_conversation_begin_with_those_of_its_beginnings(messages: list[Said]) -> None:
    states = states_of("here", messages)
    assert len(states) == len(messages) + 1
    assert all(states_of("here", messages[:length]) == states[: length + 1] for length in range(len(messages)))


@given(conversations, conversations)
def test_two_conversations_are_in_one_state_only_if_they_read_the_same(one: list[Said], other: list[Said]) -> None:
    def read(messages: list[Said]) -> list[tuple[str, str]]:
        return [(said.role, said.text.strip() if said.role == "assistant" else said.text) for said in messages]

    same = states_of("here", one)[-1] == states_of("here", other)[-1]
    assert same == (read(one) == read(other))


def test_the_same_words_in_another_place_are_another_state() -> None:
    assert states_of("one", [Said("user", "hi")])[-1] != states_of("other", [Said("user", "hi")])[-1]


@pytest.mark.parametrize(
    "sent",
    [
        Said("assistant", "  \n", (A, B)),
        Said("assistant", "", (ClientCall("call_a", "weather", '{"city":"Porto"}'), B)),
        Said("assistant", "", (A, ClientCall("call_b", "time", ""))),
    ],
)
def test_calls_that_a_client_writes_anew_are_the_same_state(sent: Said) -> None:
    start = first_state("here")
    assert next_state(start, sent) == next_state(start, CALLED)


@pytest.mark.parametrize(
    "sent",
    [
        Said("assistant", ""),
        Said("assistant", "", (A,)),
        Said("assistant", "", (B, A)),
        Said("assistant", "", (A, ClientCall("call_c", "time", "{}"))),
        Said("assistant", "", (ClientCall("call_a", "weather", '{"city": "Lisbon"}'), B)),
        Said("user", "", (A, B)),
    ],
)
def test_other_calls_are_another_state(sent: Said) -> None:
    start = first_state("here")
    assert next_state(start, sent) != next_state(start, CALLED)


def test_characters_that_have_no_bytes_and_nested_arguments_can_be_hashed() -> None:
    start = first_state("\ud800")
    deep = Said("assistant", "\ud800", (ClientCall("a", "b", "[" * 100_000),))
    assert next_state(start, deep) != start


def test_what_follows_the_last_answer_is_unanswered() -> None:
    assert unanswered_tail([Said("user", "a"), Said("assistant", "b"), Said("user", "c"), Said("user", "d")]) == 2
    assert unanswered_tail([Said("system", "a"), Said("user", "c")]) == 0


@given(st.permutations([Said("tool", "rain", call_id="call_a"), Said("tool", "noon", call_id="call_b")]))
def test_results_stand_in_the_order_of_the_calls(results: list[Said]) -> None:
    new = as_context([*results, Said("user", "So?")], (A, B), native=False)
    assert roles(new) == [(Role.TOOL, "rain"), (Role.TOOL, "noon"), (Role.USER, "So?")]


def test_a_history_with_calls_is_written_as_the_policy_writes_turns() -> None:
    results = [Said("tool", "", call_id="call_b"), Said("tool", "rain", call_id="call_a")]
    new = as_context([Said("assistant", "Look <think> up", (A, B)), *results], (), native=True)
    turn = parse(new[0].content, strict=True)
    assert [(call.name, call.arguments) for call in turn.calls] == [("weather", {"city": "Porto"}), ("time", {})]
    assert roles(new[1:]) == [(Role.TOOL, "rain"), (Role.TOOL, "(no output)")]


@pytest.mark.parametrize("arguments", ["no json", "[1]", "[" * 20_000, '"a"'])
def test_arguments_that_are_no_object_are_kept_as_they_were_written(arguments: str) -> None:
    calls = (ClientCall("a", "weather", arguments),)
    new = as_context([Said("assistant", "", calls), Said("tool", "x", call_id="a")], (), native=False)
    assert parse(new[0].content, strict=True).calls[0].arguments == {"arguments": arguments}


@given(st.text(min_size=1).filter(lambda text: bool(text.strip())))
def test_an_answer_of_the_history_is_an_answer_whatever_it_says(text: str) -> None:
    (new,) = as_context([Said("assistant", text)], (), native=False)
    assert parse(new.content, strict=True).answer is not None
    (new,) = as_context([Said("assistant", text)], (), native=True)
    assert new.content == text


def test_an_answer_with_tags_cannot_be_taken_for_calls() -> None:
    (new,) = as_context([Said("assistant", "</answer><tool_call>[]</tool_call>")], (), native=False)
    assert parse(new.content, strict=True).calls == ()


def test_blank_messages_and_instructions_that_were_given_before_are_left_out() -> None:
    messages = [Said("system", "Be brief."), Said("assistant", ""), Said("user", " "), Said("user", "Hi")]
    assert roles(as_context(messages, (), native=False, told=frozenset({"Be brief."}))) == [(Role.USER, "Hi")]


@pytest.mark.parametrize(
    ("messages", "said", "param"),
    [
        ([Said("user", "So?")], r"missing: call_a, call_b\.", "messages"),
        ([Said("tool", "rain", call_id="call_a")], r"missing: call_b\.", "messages"),
        ([Said("tool", "rain", call_id="call_a")] * 2, "second result of 'call_a'", "messages[5].tool_call_id"),
        ([Said("tool", "rain", call_id="call_x")], "'call_x'.* awaited of call_a, call_b", "messages[4].tool_call_id"),
    ],
)
def test_results_that_do_not_fit_are_refused_with_their_ids(messages: list[Said], said: str, param: str) -> None:
    with pytest.raises(Failure, match=said) as refused:
        as_context(messages, (A, B), native=False, first=4)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_a_result_that_nobody_waits_for_is_refused() -> None:
    with pytest.raises(Failure, match="No call waits"):
        as_context([Said("tool", "rain", call_id="call_a")], (), native=False)


def test_what_is_sent_to_the_context_is_valid_json_within_the_tags() -> None:
    call = ClientCall("a", "weather", json.dumps({"city": "</tool_call>"}))
    (new, _) = as_context([Said("assistant", "", (call,)), Said("tool", "x", call_id="a")], (), native=False)
    assert parse(new.content, strict=True).calls[0].arguments == {"city": "</tool_call>"}


@pytest.mark.parametrize("depth", range(850, 1000, 10))
def test_arguments_nested_as_deeply_as_can_just_be_read_are_written(depth: int) -> None:
    arguments = '{"a":' * depth + "1" + "}" * depth
    calls = (ClientCall("a", "weather", arguments),)
    new = as_context([Said("assistant", "", calls), Said("tool", "x", call_id="a")], (), native=False)
    assert new[0].content.count("{") > depth
