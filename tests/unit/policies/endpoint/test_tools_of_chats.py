"""Tools that the client runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.policies.endpoint.chat_server import (
    WEATHER,
    assistant,
    data_of,
    error,
    result,
    said,
    script,
    serving,
    session,
    user,
)

from agemem_policies.endpoint.serving import ServedPolicy
from agemem_policies.policy import Completion, FunctionCall
from agemem_policies.protocol import Call, Turn

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings
    from agemem_policies.policy import OnText, Prompt

CALLS = Turn(
    "Both cities.",
    (
        Call("weather", {"city": "Porto"}),
        Call("Add_memory", {"content": "Ana asks for the weather."}),
        Call("weather", {"city": "Lisbon"}),
    ),
)


async def test_calls_pass_to_the_client_and_results_come_back_in_their_order(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(CALLS, Turn(answer="Rain, sun.")), scripted=True) as chat:
        first = await chat.ask(user("Weather?"), tools=[WEATHER])
        choice = first.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        called = said(first)
        assert called["content"] is None
        assert [json.loads(one["function"]["arguments"]) for one in called["tool_calls"]] == [
            {"city": "Porto"},
            {"city": "Lisbon"},
        ]
        assert [one["name"] for one in first.json()["agemem"]["operations"]] == ["Add_memory"]
        porto, lisbon = (one["id"] for one in called["tool_calls"])
        history = [user("Weather?"), called, result(lisbon, "sun"), result(porto, "rain")]
        second = await chat.ask(*history, tools=[WEATHER])
        assert session(second) == session(first)
        assert said(second)["content"] == "Rain, sun."
        results = [text for role, text in await chat.context(session(first)) if role == "tool"]
        assert results[0].startswith("Stored as")
        assert results[1:] == ["rain", "sun"]


async def test_a_streamed_call_is_recognised_when_it_is_sent_back(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(CALLS, Turn(answer="Rain, sun.")), scripted=True) as chat:
        chunks = data_of(await chat.events(user("Weather?"), tools=[WEATHER]))
        calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert [call["index"] for call in calls] == [0, 1]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        sent_back = [{key: value for key, value in call.items() if key != "index"} for call in calls]
        results = [result(call["id"], "rain") for call in calls]
        answer = await chat.ask(user("Weather?"), assistant("", tool_calls=sent_back), *results, tools=[WEATHER])
        assert session(answer) == chunks[-1]["session_id"]


@pytest.mark.parametrize("named", [True, False])
async def test_missing_results_are_named(lexical_settings: Settings, named: bool) -> None:
    async with serving(lexical_settings, script(CALLS, Turn(answer="Rain.")), scripted=True) as chat:
        first = await chat.ask(user("Weather?"), tools=[WEATHER])
        porto, lisbon = (one["id"] for one in said(first)["tool_calls"])
        headers = {"X-Agemem-Session": session(first)} if named else {}
        history = [] if named else [user("Weather?"), said(first)]
        for messages, missing in (([user("So?")], f"{porto}, {lisbon}"), ([result(porto, "rain")], f"{lisbon}.")):
            refused = await chat.ask(*history, *messages, headers=headers, tools=[WEATHER])
            assert refused.status_code == 400
            assert missing in error(refused)
        answered = await chat.ask(*history, result(porto, "a"), result(lisbon, "b"), headers=headers, tools=[WEATHER])
        assert session(answered) == session(first)


async def test_a_history_with_calls_of_another_server_is_taken_as_it_is(lexical_settings: Settings) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Porto"}'}}
    async with serving(lexical_settings, script(Turn(answer="Rain.")), scripted=True) as chat:
        answer = await chat.ask(user("?"), assistant(None, tool_calls=[call]), result("call_1", ""), user("So?"))
        assert [text for _, text in await chat.context(session(answer))][1:3] == [
            '<think></think><tool_call>[{"name": "weather", "arguments": {"city": "Porto"}}]</tool_call>',
            "(no output)",
        ]


async def test_tools_that_change_are_told_to_a_policy_that_reads_of_them(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(*[Turn(answer="Yes.")] * 4), scripted=True) as chat:
        history: list[dict[str, Any]] = [user("one")]
        begun = await chat.ask(*history)
        for tools in ([WEATHER], [WEATHER], []):
            history += [assistant("Yes."), user("next")]
            await chat.ask(*history, tools=tools)
        told = [text for role, text in await chat.context(session(begun)) if role == "system"]
        assert ["weather" in text for text in told] == [True, False]


@pytest.mark.parametrize(("kit", "status"), [("agemem", 400), ("no_memory", 200)])
async def test_a_tool_named_like_one_of_the_memory_is_refused(
    lexical_settings: Settings, kit: str, status: int
) -> None:
    tool = {"type": "function", "function": {"name": "add_memory"}}
    async with serving(lexical_settings, script(Turn(answer="Yes.")), scripted=True) as chat:
        assert (await chat.ask(user("one"), model=kit, tools=[tool])).status_code == status


class NativePolicy:
    """Calls the client's tool, says something beside it, and then answers."""

    name = "native"
    native = True

    def __init__(self) -> None:
        self.seen: list[Prompt] = []

    async def act(self, prompt: Prompt, on_text: OnText | None = None) -> Completion:
        self.seen.append(prompt)
        calls = () if len(self.seen) > 1 else (FunctionCall("theirs", "weather", '{"city": "Porto"}'),)
        text = "Let me look." if calls else "It rains."
        if on_text is not None:
            on_text(text)
        return Completion(text, calls=calls)

    async def close(self) -> None:
        pass


async def test_a_native_policy_is_shown_the_result_with_its_call(lexical_settings: Settings) -> None:
    policy = NativePolicy()
    async with serving(lexical_settings, lambda: policy) as chat:
        first = await chat.ask(user("Weather?"), tools=[WEATHER], stream=True)
        chunks = data_of(first.text.split("\n\n"))
        (call,) = (call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", []))
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text == "Let me look."
        del call["index"]
        history = [user("Weather?"), assistant(text, tool_calls=[call]), result(call["id"], "rain")]
        assert said(await chat.ask(*history, tools=[WEATHER]))["content"] == "It rains."
        shown = policy.seen[1].messages[-2:]
        assert [message.role for message in shown] == ["assistant", "tool"]
        assert shown[0].calls[0].call_id == shown[1].call_id
        assert "weather" in [tool["name"] for tool in policy.seen[1].tools]


async def test_a_policy_that_takes_long_to_load_is_loaded_once_when_it_is_first_asked() -> None:
    made: list[NativePolicy] = []

    def make() -> NativePolicy:
        made.append(NativePolicy())
        return made[-1]

    served = ServedPolicy(make, "local", late=True)
    assert made == []
    assert await served.of(None) is await served.of("ctx_1") is made[0]
    await served.close()
