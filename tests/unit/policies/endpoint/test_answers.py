"""Answers as a client reads them: whole, streamed, refused."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from tests.unit.policies.endpoint.chat_server import (
    BASE,
    CHAT,
    CountingPolicy,
    bare,
    data_of,
    error,
    script,
    serving,
    session,
    user,
)

from agemem_mcp.app import open_service
from agemem_mcp.errors import ConfigurationError, ProviderError
from agemem_mcp.server.http import HttpOptions, build_app
from agemem_mcp.server.turns import Turns
from agemem_mcp.service.gate import ServiceGate
from agemem_mcp.settings import load_settings
from agemem_policies.endpoint import responses, routes
from agemem_policies.endpoint.router import extension
from agemem_policies.endpoint.serving import ServedPolicy
from agemem_policies.protocol import Call, Turn

if TYPE_CHECKING:
    from agemem_mcp.settings import Settings

STORES = Turn("Keep it.", (Call("Add_memory", {"content": "tea\n\ndata: x"}), Call("no\n\ndata: tool", {"a": 1})))
USAGE = {"stream_options": {"include_usage": True}}


def fails(_: Any) -> Turn:
    """A policy's turn that does not come."""
    msg = "The model is away."
    raise ProviderError(msg)


async def test_a_whole_answer_has_openais_form_and_what_was_done(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(STORES, Turn(answer=" Stored. ")), scripted=True) as chat:
        answer = (await chat.ask(user("I like tea."), model="agemem")).json()
        assert set(answer) == {"id", "object", "created", "model", "session_id", "choices", "usage", "agemem"}
        assert (answer["object"], answer["model"]) == ("chat.completion", "agemem")
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": "Stored.", "refusal": None}
        assert (choice["finish_reason"], choice["index"]) == ("stop", 0)
        usage = answer["usage"]
        assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0
        extension = answer["agemem"]
        assert [(one["name"], one["is_error"]) for one in extension["operations"]] == [
            ("Add_memory", False),
            ("no\n\ndata: tool", True),
        ]
        assert (extension["stop_reason"], extension["rounds"]) == ("answer", 2)
        assert extension["context"]["messages"] == len(await chat.context(extension["session_id"])) + 1


async def test_a_stream_has_the_role_the_pieces_the_reason_the_usage_and_the_end(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(STORES, Turn(answer="Tea is stored.")), scripted=True) as chat:
        events = await chat.events(user("I like tea."), **USAGE)
        assert events[-1] == "data: [DONE]"
        chunks = data_of(events)
        *pieces, last, usage = chunks
        deltas = [piece["choices"][0]["delta"] for piece in pieces]
        assert deltas == [
            {"role": "assistant", "content": ""},
            *({"content": one} for one in ("Tea ", "is ", "stored.")),
        ]
        assert all(piece["usage"] is None for piece in [*pieces, last])
        assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
        assert (usage["choices"], usage["usage"]["total_tokens"] > 0) == ([], True)
        assert len({(one["id"], one["object"], one["created"], one["session_id"]) for one in chunks}) == 1
        assert last["agemem"]["session_id"] == last["session_id"]


async def test_operations_are_comments_of_one_line_as_they_happen(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(STORES, Turn(answer="Stored.")), scripted=True) as chat:
        events = await chat.events(user("I like tea."))
        comments = [one for one in events if one.startswith(":")]
        assert [one.split(" ", 3)[1:3] for one in comments] == [["agemem", "Add_memory"], ["agemem", "no__data__tool"]]
        told = json.loads(comments[0].split(" ", 3)[3])
        assert told["memory_id"].startswith("mem_")
        assert told["arguments"] == {"content": "tea\n\ndata: x"}
        assert all("\n" not in one for one in events)
        assert events.index(comments[1]) < next(n for n, one in enumerate(events) if "Stored." in one)


async def test_without_the_wish_for_usage_no_chunk_has_it(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(Turn(answer="Yes.")), scripted=True) as chat:
        assert all("usage" not in chunk for chunk in data_of(await chat.events(user("?"))))


@pytest.mark.parametrize("stream", [True, False])
async def test_characters_and_numbers_that_no_json_has_do_not_break_an_answer(
    lexical_settings: Settings, stream: bool
) -> None:
    odd = Turn("", (Call("Add_memory", {"content": "x", "metadata": {"a": float("nan")}}),))
    async with serving(lexical_settings, script(odd, "<answer>a\ud800\u2028b</answer>"), scripted=True) as chat:
        answer = await chat.ask(user("?"), stream=stream)
        assert answer.status_code == 200
        assert "NaN" not in answer.text.replace('"NaN"', "")
        assert "\\ud800" in answer.text
        assert "\\u2028" in answer.text


async def test_a_stream_begins_before_the_model_answers_and_is_kept_alive(
    lexical_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "_KEEP_ALIVE_S", 0.01)
    policy = CountingPolicy()
    policy.let.clear()
    async with serving(lexical_settings, lambda: policy) as chat:
        sent: list[dict[str, Any]] = []
        kept_alive = asyncio.Event()

        def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message.get("body") == b": keep-alive\n\n":
                kept_alive.set()

        body = {"messages": [user("?")], "stream": True}
        asked = asyncio.create_task(bare(chat.app, body, asyncio.Event(), send))
        await kept_alive.wait()
        assert sent[0]["type"] == "http.response.start"
        assert b'"role":"assistant"' in sent[1]["body"]
        policy.let.set()
        await asked
        assert sent[-1]["body"].endswith(b"data: [DONE]\n\n")


async def test_a_model_that_fails_is_told_with_its_session(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(fails), scripted=True) as chat:
        answer = await chat.ask(user("?"))
        assert answer.status_code == 502
        assert answer.json()["error"] == {
            "message": "The model is away.",
            "type": "server_error",
            "param": None,
            "code": "provider_error",
        }
        assert session(answer).startswith("ctx_")


async def test_a_model_that_fails_within_a_stream_is_an_error_event(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, script(fails), scripted=True) as chat:
        events = await chat.events(user("?"))
        assert json.loads(events[-2].removeprefix("data: "))["error"]["message"] == "The model is away."
        assert events[-1] == "data: [DONE]"


async def test_a_crash_is_told_without_its_text(lexical_settings: Settings) -> None:
    def crash(_: Any) -> Turn:
        msg = "secret"
        raise LookupError(msg)

    async with serving(lexical_settings, script(crash), scripted=True) as chat:
        answer = await chat.ask(user("?"))
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "log" in error(answer)


async def test_a_memory_that_cannot_be_opened_is_told(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        await chat.gate.close()
        answer = await chat.ask(user("?"), stream=True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_available")


async def test_an_unending_run_ends_with_the_reason(lexical_settings: Settings) -> None:
    again = Turn("", (Call("Retrieve_memory", {"query": "tea"}),))
    async with serving(lexical_settings, script(*[again] * 10), scripted=True) as chat:
        answer = (await chat.ask(user("?"))).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert "again and again" in answer["choices"][0]["message"]["content"]
        assert answer["agemem"]["stop_reason"] == "repeated_calls"


async def test_the_models_are_the_kits_and_the_policy(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        models = (await chat.http.get("/v1/models")).json()
        names = [one["id"] for one in models["data"]]
        kits = ["agemem", "agemem_ltm", "agemem_rag", "rag", "no_memory"]
        assert (models["object"], names) == ("list", [*kits, "fake-model"])
        for name in names:
            assert (await chat.http.get(f"/v1/models/{name}")).json()["id"] == name
        unknown = await chat.ask(user("?"), model="gpt-4o")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert all(name in error(unknown) for name in names)
        assert (await chat.http.get("/v1/models/gpt-4o")).status_code == 404


async def test_whatever_else_is_asked_is_an_error_of_openais_form(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        for method, path in (("GET", CHAT), ("POST", "/v1/responses"), ("DELETE", "/v1/models/agemem")):
            assert "is not answered here" in error(await chat.http.request(method, path))


async def test_the_policy_is_closed_with_the_application(lexical_settings: Settings) -> None:
    policy = CountingPolicy()
    async with serving(lexical_settings, lambda: policy) as chat:
        await chat.ask(user("?"))
        assert not policy.closed
    assert policy.closed


@pytest.mark.parametrize("stream", [True, False])
async def test_a_server_that_ends_tells_those_who_wait(lexical_settings: Settings, stream: bool) -> None:
    policy = CountingPolicy()
    policy.let.clear()
    gate = ServiceGate(lambda _: open_service(lexical_settings))
    made = extension(ServedPolicy(lambda: policy, "fake-model"), "default", gate, Turns())
    app = build_app(HttpOptions(), gate, None, [lambda *_: made])
    sent: list[dict[str, Any]] = []
    body = {"messages": [user("?")], "stream": stream}
    asked = asyncio.create_task(bare(app, body, asyncio.Event(), sent.append))
    await policy.asked.wait()
    await made.close()
    await asked
    assert "shutting down" in "".join(one.get("body", b"").decode() for one in sent)
    assert sent[0]["status"] == (200 if stream else 503)
    await gate.close()


async def test_without_a_policy_the_setting_is_named_and_there_are_no_models(lexical_settings: Settings) -> None:
    options = HttpOptions()
    gate = ServiceGate(lambda _: open_service(lexical_settings))
    app = build_app(options, gate, None, [partial(routes, lexical_settings, options)])
    transport = httpx2.ASGITransport(app)  # pyright: ignore[reportArgumentType]  its scope type is wider
    async with httpx2.AsyncClient(transport=transport, base_url=BASE) as http:
        for answer in (await http.post(CHAT, json={}), await http.get("/v1/models/agemem")):
            assert answer.status_code == 404
            assert "AGEMEM_POLICY__NAME" in error(answer)
        assert (await http.get("/v1/models")).json() == {"object": "list", "data": []}


@pytest.mark.parametrize("name", ["gpt-4o", "scripted:none", "openai:", "openai:m@http://"])
def test_a_policy_that_is_none_is_refused_before_serving(lexical_settings: Settings, name: str) -> None:
    settings = load_settings(data_dir=lexical_settings.data_dir, policy={"name": name})
    gate = ServiceGate(lambda _: open_service(settings))
    with pytest.raises(ConfigurationError):
        build_app(HttpOptions(), gate, None, [partial(routes, settings, HttpOptions())])


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        ({}, {"Host": "evil.example"}, 421),
        ({}, {"Origin": "http://evil.example"}, 403),
        ({}, {"Origin": "http://localhost:3000"}, 200),
        ({"allowed_hosts": ("memory.example",)}, {"Host": "memory.example:8443"}, 200),
        ({"token": "a long token"}, {}, 401),
        ({"token": "a long token"}, {"Authorization": "Bearer wrong"}, 401),
        ({"token": "a long token"}, {"Authorization": "Bearer a long token"}, 200),
    ],
)
async def test_hosts_origins_and_the_token_hold_as_for_mcp(
    lexical_settings: Settings, options: dict[str, Any], headers: dict[str, str], status: int
) -> None:
    async with serving(lexical_settings, CountingPolicy, **options) as chat:
        for answer in (
            await chat.ask(user("?"), headers=headers),
            await chat.http.get("/v1/models", headers=headers),
        ):
            assert answer.status_code == status
            assert status == 200 or error(answer)


async def test_a_body_beyond_the_limit_is_refused(lexical_settings: Settings) -> None:
    async with serving(lexical_settings, CountingPolicy) as chat:
        answer = await chat.ask(user("x" * 5_000_000))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
