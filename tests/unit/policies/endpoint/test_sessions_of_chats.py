"""Which session a conversation goes on in."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.policies.endpoint.chat_server import (
    CountingPolicy,
    assistant,
    bare,
    error,
    said,
    script,
    serving,
    session,
    user,
)

from agemem_mcp.adapters.system import SteppingClock
from agemem_mcp.errors import ProviderError, StoreError
from agemem_policies.memory import MemoryTools
from agemem_policies.protocol import Turn

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings

BRIEF = {"role": "system", "content": "Be brief."}


async def test_a_resent_history_goes_on_in_its_session_and_only_what_is_new_is_appended(
    lexical_settings: Settings,
) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        first = await chat.ask(BRIEF, user("one"))
        history = [BRIEF, user("one"), said(first)]
        second = await chat.ask(*history, user("two"))
        assert session(second) == session(first) == second.json()["session_id"]
        assert await chat.context(session(first)) == [
            ("system", "Be brief."),
            ("user", "one"),
            ("assistant", "<think></think><answer>answer 1</answer>"),
            ("user", "two"),
            ("assistant", "<think></think><answer>answer 2</answer>"),
        ]


async def test_a_streamed_answer_is_recognised_as_well(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        first = await chat.ask(user("one"), stream=True)
        second = await chat.ask(user("one"), assistant("answer 1 "), user("two"))
        assert session(second) == session(first)


async def test_an_edited_history_begins_a_session_that_holds_it_as_it_was_sent(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        first = await chat.ask(user("one"))
        history = [user("one"), said(first)]
        second = await chat.ask(*history, user("two"))
        edited = await chat.ask(*history, user("two, I mean three"))
        assert session(edited) != session(second)
        assert [text for _, text in await chat.context(session(edited))] == [
            "one",
            "<think></think><answer>answer 1</answer>",
            "two, I mean three",
            "<think></think><answer>answer 3</answer>",
        ]
        assert len(await chat.context(session(first))) == 4
        again = await chat.ask(*history, user("two"), said(second), user("four"))
        assert session(again) == session(first)


async def test_the_same_question_asked_anew_begins_a_new_session(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        first, second = await chat.ask(user("one")), await chat.ask(user("one"))
        assert session(first) != session(second)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"user": "ana"}),
        ({"user": "ana"}, {"user": "bert"}),
        ({}, {"model": "no_memory"}),
        ({}, {"headers": {"X-Agemem-Namespace": "other"}}),
    ],
)
async def test_another_user_kit_or_namespace_never_finds_it(lexical_settings: Settings, first: Any, then: Any) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        begun = await chat.ask(user("one"), **first)
        history = [user("one"), said(begun), user("two")]
        assert session(await chat.ask(*history, **then)) != session(begun)
        assert session(await chat.ask(*history, **first)) == session(begun)


@pytest.mark.parametrize("model", [None, "agemem", "fake-model"])
async def test_the_default_kit_has_three_names(lexical_settings: Settings, model: str | None) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        begun = await chat.ask(user("one"))
        named: Any = {} if model is None else {"model": model}
        assert session(await chat.ask(user("one"), said(begun), user("two"), **named)) == session(begun)


@pytest.mark.parametrize("way", ["header", "metadata"])
async def test_a_named_session_takes_what_follows_the_last_answer(lexical_settings: Settings, way: str) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        named = session(await chat.ask(user("one")))
        more: dict[str, Any] = (
            {"headers": {"X-Agemem-Session": named}} if way == "header" else {"metadata": {"session_id": named}}
        )
        for messages in ([user("two")], [user("gone"), assistant("forgotten"), user("three"), user("four")]):
            answer = await chat.ask(*messages, **more)
            assert session(answer) == answer.json()["agemem"]["session_id"] == named
        assert [text for role, text in await chat.context(named) if role == "user"] == ["one", "two", "three", "four"]


async def test_a_named_session_recognises_its_history(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        begun = await chat.ask(BRIEF, user("one"))
        headers = {"X-Agemem-Session": session(begun)}
        await chat.ask(BRIEF, user("one"), said(begun), user("two"), user("three"), headers=headers)
        assert [role for role, _ in await chat.context(session(begun))] == [
            "system",
            "user",
            "assistant",
            "user",
            "user",
            "assistant",
        ]


async def test_instructions_resent_with_each_message_stand_in_a_named_session_once(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        headers = {"X-Agemem-Session": session(await chat.ask(BRIEF, user("one")))}
        await chat.ask(BRIEF, user("two"), headers=headers)
        context = await chat.context(headers["X-Agemem-Session"])
        assert [text for role, text in context if role == "system"] == ["Be brief."]


async def test_after_a_restart_a_named_session_goes_on_and_a_history_begins_a_new_one(
    lexical_settings: Settings,
) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        begun = await chat.ask(user("one"))
        history = [user("one"), said(begun), user("two")]
    async with serving(lexical_settings, CountingPolicy) as chat:
        new = await chat.ask(*history)
        assert session(new) != session(begun)
        assert [text for role, text in await chat.context(session(new)) if role == "user"] == ["one", "two"]
        named = await chat.ask(*history, headers={"X-Agemem-Session": session(begun)})
        assert session(named) == session(begun)
        assert [text for role, text in await chat.context(session(begun)) if role == "user"] == ["one", "two"]


@pytest.mark.parametrize("stream", [True, False])
async def test_nobody_reaches_a_session_of_another_scope_or_one_that_does_not_exist(
    lexical_settings: Settings, stream: bool
) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        named = session(await chat.ask(user("my code is 4711"), user="ana"))
        for headers, more in (
            ({"X-Agemem-Session": named}, {"user": "bert"}),
            ({"X-Agemem-Session": named}, {}),
            ({"X-Agemem-Session": "ctx_none"}, {"user": "ana"}),
            ({"X-Agemem-Session": "x" * 5000}, {"user": "ana"}),
        ):
            answer = await chat.ask(user("my code?"), headers=headers, stream=stream, **more)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")
            assert "4711" not in answer.text
        assert len(await chat.context(named, "default@ana")) == 2


async def test_a_session_that_expired_meanwhile_is_replaced_by_one_with_the_whole_history(
    lexical_settings: Settings,
) -> None:
    clock = SteppingClock()
    async with serving(lexical_settings, CountingPolicy, clock=clock) as chat:
        begun = await chat.ask(user("one"))
        clock.advance(timedelta(days=31))
        answer = await chat.ask(user("one"), said(begun), user("two"))
        assert session(answer) != session(begun)
        assert [text for role, text in await chat.context(session(answer)) if role == "user"] == ["one", "two"]


async def test_two_requests_on_one_session_are_worked_on_one_after_the_other(lexical_settings: Settings) -> None:
    policy = CountingPolicy()
    async with serving(lexical_settings, lambda: policy) as chat:
        headers = {"X-Agemem-Session": session(await chat.ask(user("one")))}
        policy.let.clear()
        policy.asked.clear()
        second = asyncio.create_task(chat.ask(user("two"), headers=headers))
        await policy.asked.wait()
        third = asyncio.create_task(chat.ask(user("three"), headers=headers))
        other = asyncio.create_task(chat.ask(user("elsewhere")))
        await policy.until_asked(3)
        policy.let.set()
        assert all(answer.status_code == 200 for answer in await asyncio.gather(second, third, other))
        assert [text for _, text in await chat.context(headers["X-Agemem-Session"])] == [
            "one",
            "<think></think><answer>answer 1</answer>",
            "two",
            "<think></think><answer>answer 2</answer>",
            "three",
            "<think></think><answer>answer 4</answer>",
        ]


async def test_conversations_that_begin_alike_do_not_wait_for_one_another(lexical_settings: Settings) -> None:
    policy = CountingPolicy()
    policy.let.clear()
    async with serving(lexical_settings, lambda: policy) as chat:
        asked = [asyncio.create_task(chat.ask(user("Hello"))) for _ in range(5)]
        await policy.until_asked(5)
        policy.let.set()
        assert len({session(answer) for answer in await asyncio.gather(*asked)}) == 5


async def test_an_answer_that_cannot_be_kept_is_not_the_clients_fault(lexical_settings: Settings) -> None:
    clock = SteppingClock()

    def think_for_a_month(_: Any) -> Turn:
        clock.advance(timedelta(days=31))
        return Turn(answer="Where was I?")

    async with serving(lexical_settings, script(think_for_a_month), clock=clock) as chat:
        answer = await chat.ask(user("one"))
        assert (answer.status_code, "could not be kept" in error(answer)) == (502, True)


async def test_after_a_memory_that_failed_within_appending_nobody_goes_on_by_history(
    lexical_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        history = [user("one"), said(begun := await chat.ask(user("one"))), user("two")]

        async def away(*_: Any, **__: Any) -> Any:
            msg = "The memory server did not answer."
            raise StoreError(msg)

        with monkeypatch.context() as patch:
            patch.setattr(MemoryTools, "call", away)
            failed = await chat.ask(*history)
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "memory_error")
        assert session(await chat.ask(*history)) != session(begun)


async def test_of_two_continuations_at_once_one_goes_on_and_the_other_forks(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        begun = await chat.ask(user("one"))
        both = await asyncio.gather(*(chat.ask(user("one"), said(begun), user(text)) for text in ("two", "three")))
        assert sum(session(answer) == session(begun) for answer in both) == 1


async def test_a_message_whose_answer_failed_is_not_appended_again(lexical_settings: Settings) -> None:
    def fail(_: Any) -> Turn:
        msg = "The model is away."
        raise ProviderError(msg)

    async with serving(lexical_settings, script(Turn(answer="yes"), fail, Turn(answer="now"))) as chat:
        history = [user("one"), said(await chat.ask(user("one"))), user("two")]
        failed = await chat.ask(*history)
        assert (failed.status_code, error(failed)) == (502, "The model is away.")
        again = await chat.ask(*history)
        assert session(again) == session(failed)
        assert said(again)["content"] == "now"
        assert [text for role, text in await chat.context(session(again)) if role == "user"] == ["one", "two"]


async def test_a_refused_message_leaves_the_session_as_it_was(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        begun = await chat.ask(user("one"))
        history = [user("one"), said(begun)]
        refused = await chat.ask(*history, user("x" * 70_000))
        assert refused.status_code == 400
        assert "at most 65,536" in error(refused)
        blank = await chat.ask(*history, user(" "))
        assert (blank.status_code, "says nothing" in error(blank)) == (400, True)
        assert session(await chat.ask(*history, user("two"))) == session(begun)


async def test_a_client_that_goes_away_ends_the_run_and_can_come_back(lexical_settings: Settings) -> None:
    policy = CountingPolicy()
    async with serving(lexical_settings, lambda: policy) as chat:
        begun = await chat.ask(user("one"))
        for stream in (True, False):
            policy.let.clear()
            policy.asked.clear()
            body = {"messages": [user("one"), said(begun), user("two")], "stream": stream}
            await bare(chat.app, body, policy.asked, lambda _: None)
            policy.let.set()
        again = await chat.ask(user("one"), said(begun), user("two"))
        assert session(again) == session(begun)
        assert [text for role, text in await chat.context(session(begun)) if role == "user"] == ["one", "two"]
