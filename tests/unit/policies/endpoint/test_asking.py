"""What of a request is understood, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_policies.endpoint.asking import ClientCall, Said, check_names, read_request
from agemem_policies.endpoint.failures import Failure

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = ("model", "messages", "stream", "stream_options", "n", "tools", "tool_choice", "user", "metadata")
fields = st.fixed_dictionaries({}, optional=dict.fromkeys(names, json_values))


def read(**given: Any) -> Any:
    """Read a request with these fields."""
    return read_request(json.dumps({**HI, **given}).encode())


def test_unknown_fields_are_passed_over() -> None:
    asked = read(temperature=0.7, seed=1, logit_bias={}, response_format={"type": "text"}, whatever=[1], max_tokens=5)
    assert asked.messages == (Said("user", "hi"),)
    assert (asked.model, asked.stream, asked.user, asked.session_id, asked.tools) == (None, False, None, None, ())


def test_all_roles_and_parts_are_read() -> None:
    asked = read(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [{"type": "text", "text": "b"}]},
            {"role": "user", "name": "ana", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
            {"role": "tool", "tool_call_id": "call_a", "content": [{"type": "text", "text": "e"}]},
            {"role": "assistant"},
            {"role": "user", "content": "f"},
        ]
    )
    assert asked.messages == (
        Said("system", "a"),
        Said("system", "b"),
        Said("user", "c\nd"),
        Said("assistant", "", (ClientCall("call_a", "weather", "{}"),)),
        Said("tool", "e", call_id="call_a"),
        Said("assistant", ""),
        Said("user", "f"),
    )


def test_tools_are_functions_with_everything_a_policy_needs() -> None:
    (tool,) = read(tools=[{**TOOL, "strict": True}], tool_choice="auto").tools
    assert tool == {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert read(tools=[TOOL], tool_choice="none").tools == ()
    assert len(read(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "weather"}}).tools) == 1


@pytest.mark.parametrize(("metadata", "found"), [({"session_id": "ctx_1"}, "ctx_1"), ({"session_id": 5}, None)])
def test_the_metadata_may_name_a_session(metadata: dict[str, Any], found: str | None) -> None:
    assert read(metadata=metadata).session_id == found


@pytest.mark.parametrize(
    ("given", "param", "said"),
    [
        ({"n": 2}, "n", "n must be 1"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages", "last"),
        ({"messages": [{"role": "function", "content": "a"}]}, "messages[0].role", "'tool'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]", "text alone"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages[0].content", ""),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id", "names no tool_call_id"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CALL, CALL]}, HI["messages"][0]]},
            "messages[0].tool_calls",
            "one id",
        ),
        ({"tools": [TOOL, TOOL]}, "tools[1]", "'weather'"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type", "'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"stream": "perhaps"}, "stream", "boolean"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused_with_the_field(
    given: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(Failure) as refused:
        read(**given)
    assert refused.value.status == 400
    assert str(refused.value.param).startswith(param)
    assert said in str(refused.value)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'"a"', b"null", b"[" * 10_000])
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Failure) as refused:
        read_request(body)
    assert refused.value.status == 400


@given(fields)
def test_whatever_comes_is_understood_or_refused(request: dict[str, Any]) -> None:
    try:
        understood = read_request(json.dumps(request).encode()).messages
    except Failure as failure:
        understood = failure.status == 400 and bool(str(failure))
    assert understood


@pytest.mark.parametrize("name", ["Add_memory", "add_memory", "save_memory", "AddMemory"])
def test_a_tool_that_cannot_be_told_from_one_of_the_memory_is_refused(name: str) -> None:
    tools = ({"name": "weather"}, {"name": name})
    with pytest.raises(Failure, match="another name") as refused:
        check_names(tools, {"Add_memory"})
    assert refused.value.param == "tools[1]"
    check_names(tools, set())
