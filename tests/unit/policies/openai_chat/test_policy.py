"""What an endpoint is asked, and what is made of a whole answer."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.policies.openai_chat.chat_endpoint import HELLO, MODEL, TLS, asking, completed, endpoint, http, says

from agemem_mcp.errors import ConfigurationError, ProviderError
from agemem_policies.openai_chat import Endpoint, OpenAIChatPolicy, Sampling
from agemem_policies.policy import ChatMessage, Completion, FunctionCall, Policy, Prompt

SEARCH = {"name": "search", "description": "Finds.", "parameters": {"type": "object", "properties": {}}}
CALLED = Prompt(
    (
        ChatMessage("system", "You remember."),
        ChatMessage("user", "Where is Ana?"),
        ChatMessage("assistant", "", (FunctionCall("call_1", "search", '{"query": "Ana"}'),)),
        ChatMessage("tool", "Oslo", call_id="call_1"),
        ChatMessage("tool", "nothing more"),
        ChatMessage("user", "And now?"),
    ),
    (SEARCH,),
)


async def asked(
    prompt: Prompt = HELLO, *, native: bool = False, sampling: Sampling | None = None, stream: bool = False
) -> dict[str, Any]:
    """The request that a policy makes of a prompt."""
    async with endpoint(says("x")) as chat, asking(chat.url, native=native, sampling=sampling) as policy:
        await policy.act(prompt, [].append if stream else None)
    (body,) = chat.bodies
    return body


async def test_a_request_holds_the_model_the_messages_and_the_limit() -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert await asked() == {"model": MODEL, "messages": messages, "max_tokens": 2048}


async def test_a_temperature_and_a_limit_are_sent_where_they_are_given() -> None:
    body = await asked(sampling=Sampling(temperature=0.0, max_tokens=7))
    assert (body["temperature"], body["max_tokens"]) == (0.0, 7)


async def test_a_stream_is_asked_for_when_someone_listens() -> None:
    body = await asked(stream=True)
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


@pytest.mark.parametrize("slash", ["", "/", "//"])
async def test_the_path_follows_the_base_url(slash: str) -> None:
    async with endpoint(says("x")) as chat, asking(chat.url + slash) as policy:
        await policy.act(HELLO)
    assert chat.asked[0].path == "/v1/chat/completions"


@pytest.mark.parametrize(("api_key", "header"), [("sk-1", "Bearer sk-1"), (None, None), ("", None)])
async def test_the_key_is_sent_where_there_is_one(api_key: str | None, header: str | None) -> None:
    async with endpoint(says("x")) as chat, asking(chat.url, api_key=api_key) as policy:
        await policy.act(HELLO)
    assert chat.asked[0].headers.get("authorization") == header


async def test_messages_of_one_role_become_one_and_tools_users_without_native_calling() -> None:
    body = await asked(
        Prompt(
            (
                ChatMessage("system", "a"),
                ChatMessage("system", "b"),
                ChatMessage("user", "c"),
                ChatMessage("tool", "d", call_id="call_1"),
                ChatMessage("user", ""),
                ChatMessage("user", "e"),
                ChatMessage("assistant", "f", (FunctionCall("call_1", "search", "{}"),)),
                ChatMessage("tool", "g"),
            ),
            (SEARCH,),
        )
    )
    assert "tools" not in body
    assert body["messages"] == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "c\n\nd\n\ne"},
        {"role": "assistant", "content": "f"},
        {"role": "user", "content": "g"},
    ]


async def test_native_calling_sends_functions_calls_and_their_answers() -> None:
    body = await asked(CALLED, native=True)
    assert body["tools"] == [{"type": "function", "function": SEARCH}]
    function = {"name": "search", "arguments": '{"query": "Ana"}'}
    assert body["messages"] == [
        {"role": "system", "content": "You remember."},
        {"role": "user", "content": "Where is Ana?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Oslo"},
        {"role": "user", "content": "nothing more"},
        {"role": "user", "content": "And now?"},
    ]


async def test_native_calling_without_tools_sends_no_empty_list() -> None:
    assert "tools" not in await asked(native=True)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("", {}),
        (" ", {}),
        ('{"a": 1}', {"a": 1}),
        ('{"a": ', {"unreadable": '{"a": '}),
        ("[1]", {"unreadable": "[1]"}),
        ("[" * 100_000, {"unreadable": "[" * 100_000}),
    ],
)
async def test_calls_that_were_written_badly_are_sent_back_as_an_object(written: str, sent: dict[str, Any]) -> None:
    prompt = Prompt((ChatMessage("assistant", "", (FunctionCall("call_1", "search", written),)),))
    body = await asked(prompt, native=True)
    assert json.loads(body["messages"][0]["tool_calls"][0]["function"]["arguments"]) == sent


async def test_half_a_character_in_a_prompt_can_be_sent() -> None:
    body = await asked(Prompt((ChatMessage("user", "a\ud83d"),)))
    assert body["messages"][0]["content"].startswith("a")


async def test_text_and_usage_are_read_from_a_whole_answer() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    choice = {"message": {"content": "Oslo."}, "finish_reason": "stop"}
    completion = await completed(http({"choices": [choice], "usage": usage}))
    assert completion == Completion("Oslo.", prompt_tokens=12, completion_tokens=3)


@pytest.mark.parametrize(
    "usage", [None, {}, [], {"prompt_tokens": "12", "completion_tokens": True}, {"prompt_tokens": -1}]
)
async def test_counts_that_are_none_are_not_told(usage: object) -> None:
    completion = await completed(http({"choices": [], "usage": usage}))
    assert (completion.prompt_tokens, completion.completion_tokens) == (None, None)


@pytest.mark.parametrize(("reason", "cut_off"), [("length", True), ("stop", False), (None, False)])
async def test_a_model_that_is_stopped_by_its_limit_is_cut_off(reason: str | None, cut_off: bool) -> None:
    completion = await completed(http({"choices": [{"message": {"content": "x"}, "finish_reason": reason}]}))
    assert completion.cut_off is cut_off


@pytest.mark.parametrize(
    "body",
    [
        {"choices": []},
        {"choices": None},
        {"choices": [None, 1, {}]},
        {"choices": [{"message": {"content": None}}]},
        {"choices": [{"message": {"content": 5, "tool_calls": None, "reasoning_content": ""}}]},
        {"choices": [{"index": [0], "message": {"content": "of an index that is none"}}]},
        {"choices": [{"index": 1, "message": {"content": "another choice"}}]},
        {"choices": [], "error": None},
    ],
)
async def test_an_answer_without_text_is_empty(body: object) -> None:
    assert await completed(http(body)) == Completion("")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "malformed JSON as its answer"),
        (b"", "malformed JSON as its answer"),
        (b"\xff\xfe", "malformed JSON as its answer"),
        (b"[" * 100_000, "malformed JSON as its answer"),
        (b'{"choices": ' + b"1" * 5000 + b"}", "malformed JSON as its answer"),
        (b"[1]", "no JSON object as its answer"),
        (b"{}", "answered without choices"),
        (b'{"object": "list", "data": []}', "answered without choices"),
    ],
)
async def test_an_answer_in_another_form_is_a_providers_error(body: bytes, said: str) -> None:
    with pytest.raises(ProviderError, match=f"{said}. Check that (the|its) URL is an OpenAI-compatible one"):
        await completed(http(body))


async def test_content_in_parts_is_put_together() -> None:
    parts = [{"type": "text", "text": "Os"}, {"type": "image"}, "?", {"type": "text", "text": "lo"}]
    assert (await completed(says(parts))).text == "Oslo"


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Oslo.", "<think>Hm.</think>Oslo."),
        (None, "<think>Hm.</think>"),
        ("<think>Hm.</think>Oslo.", "<think>Hm.</think>Oslo."),
    ],
)
async def test_thoughts_that_come_apart_go_in_front_of_the_text(field: str, content: str | None, text: str) -> None:
    assert (await completed(says(content, **{field: "Hm."}))).text == text


async def test_half_a_character_in_an_answer_is_replaced() -> None:
    call = {"id": "a\ud83d", "function": {"name": "b\ud83d", "arguments": "\ude00"}}
    completion = await completed(says("a\ud83d b", tool_calls=[call]))
    assert completion == Completion("a\ufffd b", (FunctionCall("a\ufffd", "b\ufffd", "\ufffd"),))


async def test_native_calls_are_read_from_a_whole_answer() -> None:
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Ana"}'}},
        {"id": "call_2", "function": {"name": "list", "arguments": {"top": 3}}},
        {"function": {"name": "save"}},
        {"id": "call_1", "index": 7, "function": {"name": "search", "arguments": "{"}},
    ]
    completion = await completed(says(None, tool_calls=calls))
    first, second, third, fourth = completion.calls
    assert first == FunctionCall("call_1", "search", '{"query": "Ana"}')
    assert second == FunctionCall("call_2", "list", '{"top": 3}')
    assert (third.name, third.arguments, fourth.name, fourth.arguments) == ("save", "", "search", "{")
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call.call_id) for call in (third, fourth))


IDS = {
    "prompt_token_ids": [1, 2, 3],
    "choices": [
        {
            "message": {"content": "Oslo."},
            "token_ids": [4, 5],
            "logprobs": {"content": [{"token": "Oslo", "logprob": -0.5}, {"token": ".", "logprob": 0}]},
        }
    ],
}


async def asked_for_tokens(body: object) -> Completion:
    """What is made of an answer where its tokens were asked for."""
    async with endpoint(http(body)) as chat, asking(chat.url, sampling=Sampling(return_token_ids=True)) as policy:
        completion = await policy.act(HELLO)
    assert (chat.bodies[0]["return_token_ids"], chat.bodies[0]["logprobs"]) == (True, True)
    return completion


async def test_tokens_and_their_probabilities_are_read_where_they_were_asked_for() -> None:
    assert await asked_for_tokens(IDS) == Completion(
        "Oslo.", prompt_ids=(1, 2, 3), action_ids=(4, 5), logprobs=(-0.5, 0.0)
    )


async def test_the_prompts_tokens_may_stand_in_the_choice() -> None:
    assert (await asked_for_tokens({"choices": [{"prompt_token_ids": [1, 2]}]})).prompt_ids == (1, 2)


async def test_tokens_that_were_not_asked_for_are_passed_over() -> None:
    assert await completed(http(IDS)) == Completion("Oslo.")


async def test_an_endpoint_that_knows_no_token_ids_gives_none() -> None:
    logprobs = {"content": [{"logprob": -1.0}]}
    assert await asked_for_tokens({"choices": [{"message": {"content": "x"}, "logprobs": logprobs}]}) == Completion("x")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"token_ids": [4, 5], "logprobs": {"content": [{"logprob": -1.0}]}}, "2 tokens but 1 log-probabilities"),
        ({"token_ids": ["4"]}, "not whole numbers"),
        ({"token_ids": [True]}, "not whole numbers"),
        ({"token_ids": [4], "logprobs": {"content": [{"logprob": "-1"}]}}, "not a number"),
        ({"token_ids": [4], "logprobs": {"content": [{"logprob": float("nan")}]}}, "not a number"),
        ({"token_ids": [4], "logprobs": {"content": [{"logprob": -(10**400)}]}}, "not a number"),
        ({"token_ids": [4], "logprobs": {"content": [None]}}, "not a number"),
    ],
)
async def test_tokens_that_cannot_be_trained_on_are_a_providers_error(choice: dict[str, Any], said: str) -> None:
    with pytest.raises(ProviderError, match=said):
        await asked_for_tokens({"choices": [choice]})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url",
        "ftp://localhost/v1",
        "http://",
        "http://[::1",
        "http://a:99999",
        "http://a:0",
        "http://a..b/v1",
        "http://" + "a" * 64,
        "localhost:8000/v1",
        "http://user:secret@a:99999",
    ],
)
def test_an_address_that_is_none_is_found_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"No model can be asked at .* Write its address like") as caught:
        Endpoint(url, MODEL)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("api_key", ["sk-secret\n", "sk secret", " ", "sk-secrét", "sk-secret\x00"])
def test_a_key_that_cannot_be_sent_is_found_at_once_and_not_shown(api_key: str) -> None:
    with pytest.raises(ConfigurationError, match="API key holds characters that no key has") as caught:
        Endpoint("http://localhost", MODEL, api_key)
    assert "secr" not in str(caught.value)


def test_an_endpoint_that_is_printed_does_not_show_its_key() -> None:
    assert "secret" not in repr(Endpoint("http://localhost", MODEL, "sk-secret"))


async def test_a_policy_is_called_like_its_model() -> None:
    async with asking("http://localhost", native=True) as made:
        policy: Policy = made
        assert (policy.name, policy.native) == (MODEL, True)


async def test_closing_twice_is_harmless_and_ends_the_policys_own_connections() -> None:
    async with endpoint(says("x")) as chat:
        policy = OpenAIChatPolicy(Endpoint(chat.url, MODEL))
        assert (await policy.act(HELLO)).text == "x"
        await policy.close()
        await policy.close()
        with pytest.raises(RuntimeError, match="closed"):
            await policy.act(HELLO)


async def test_closing_leaves_connections_that_were_given_open() -> None:
    async with endpoint(says("x")) as chat, httpx.AsyncClient(verify=TLS) as client:
        await OpenAIChatPolicy(Endpoint(chat.url, MODEL), client=client).close()
        assert (await OpenAIChatPolicy(Endpoint(chat.url, MODEL), client=client).act(HELLO)).text == "x"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "delta",
                    "content",
                    "tool_calls",
                    "function",
                    "name",
                    "arguments",
                    "id",
                    "index",
                    "usage",
                    "error",
                    "code",
                    "finish_reason",
                    "token_ids",
                    "prompt_token_ids",
                    "logprobs",
                    "logprob",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@settings(max_examples=60)
@given(JSON, st.booleans(), st.integers(200, 599))
async def test_any_json_is_a_completion_or_a_providers_error(value: object, tokens: bool, status: int) -> None:
    body = {"choices": [{"message": value}], **value} if isinstance(value, dict) else value
    async with (
        endpoint(http(body, status=status)) as chat,
        asking(chat.url, sampling=Sampling(return_token_ids=tokens)) as policy,
    ):
        try:
            outcome: object = await policy.act(HELLO)
        except ProviderError as error:
            outcome = error
    assert isinstance(outcome, Completion) or str(outcome)
