"""What is made of a stream, and what its listener is told."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.policies.openai_chat.chat_endpoint import (
    DONE,
    HELLO,
    STREAM_END,
    STREAM_HEAD,
    Line,
    asking,
    chunk,
    completed,
    delta,
    endpoint,
    event,
    http,
    says,
    streamed,
)

from agemem_mcp.errors import ProviderError
from agemem_policies.openai_chat import Sampling
from agemem_policies.policy import Completion, FunctionCall


async def heard(*pieces: bytes) -> tuple[Completion, list[str]]:
    """What a policy makes of a stream, and what it tells meanwhile: always the very text."""
    told: list[str] = []
    completion = await completed(streamed(*pieces), told=told)
    assert "".join(told) == completion.text
    assert all(told)
    return completion, told


async def test_the_text_is_told_as_it_comes() -> None:
    usage = event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    completion, told = await heard(
        delta(role="assistant", content=""), delta(content="Os"), delta(content="lo"), delta("stop"), usage, DONE
    )
    assert completion == Completion("Oslo", prompt_tokens=5, completion_tokens=2)
    assert told == ["Os", "lo"]


async def test_a_piece_is_told_before_the_next_one_is_sent() -> None:
    told: list[str] = []
    heard_first = asyncio.Event()

    def hear(text: str) -> None:
        told.append(text)
        heard_first.set()

    async def answer(line: Line) -> None:
        await line.send(STREAM_HEAD, chunk(delta(content="Os")))
        await heard_first.wait()
        await line.send(chunk(delta(content="lo")), chunk(DONE), STREAM_END)

    async with endpoint(answer) as chat, asking(chat.url) as policy:
        assert (await policy.act(HELLO, hear)).text == "Oslo"
    assert told == ["Os", "lo"]


async def test_what_comes_after_done_is_not_waited_for() -> None:
    async def answer(line: Line) -> None:
        await line.send(STREAM_HEAD, chunk(delta(content="Oslo") + DONE + b"data: {"))
        await line.hung_up()

    assert (await completed(answer, told=[])).text == "Oslo"


@pytest.mark.parametrize(
    "pieces",
    [
        (b": ping\n\n", delta(content="Oslo"), b": ping\n\n", DONE),
        (delta(content="Oslo").replace(b"data: ", b"data:"), b"data:[DONE]\n\n"),
        (delta(content="Oslo").replace(b"\n", b"\r\n"), DONE.replace(b"\n", b"\r\n")),
        tuple(bytes([byte]) for byte in delta(content="Oslo") + DONE),
        (delta(content="Oslo").replace(b'"index"', b'\ndata: "index"'), DONE),
        (b"event: message\nid: 1\n" + delta(content="Oslo"), DONE),
        (delta(content="Oslo"), delta("stop")),
        (delta(content="Oslo"),),
        (delta(content="Oslo").rstrip(),),
        (event({"usage": None}), event({"choices": None}), delta(content="Oslo"), DONE),
        (event({"choices": [{"message": {"content": "Oslo"}}]}), DONE),
        (event({"choices": [{"delta": {"content": "Oslo"}}, {"index": 1, "delta": {"content": "Bergen"}}]}), DONE),
    ],
    ids=[
        "comments",
        "no space",
        "CRLF",
        "single bytes",
        "lines of data",
        "fields",
        "no end but a reason",
        "no end",
        "no last line",
        "no choices",
        "a whole message",
        "two choices",
    ],
)
async def test_servers_write_the_same_stream_in_many_ways(pieces: tuple[bytes, ...]) -> None:
    completion, _ = await heard(*pieces)
    assert completion == Completion("Oslo")


@pytest.mark.parametrize("pieces", [(DONE,), (b"data: [DONE]",), (delta("stop"),), (delta("stop", content=""), DONE)])
async def test_a_turn_may_be_empty(pieces: tuple[bytes, ...]) -> None:
    assert await heard(*pieces) == (Completion(""), [])


async def test_a_stream_that_is_stopped_by_the_limit_is_cut_off() -> None:
    completion, _ = await heard(delta(content="Os"), delta("length"), event({"choices": []}), DONE)
    assert completion == Completion("Os", cut_off=True)


@pytest.mark.parametrize("pieces", [(), (b": ping\n\n",), (b"<html>\n\n",), (delta(role="assistant"),)])
async def test_a_stream_that_ends_without_an_answer_is_a_providers_error(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(ProviderError, match=r"ended its stream without an answer\. Check the URL"):
        await heard(*pieces)


@pytest.mark.parametrize("data", [b'{"choices": [', b"Oslo", b"[1]", b'{"choices": []}\ndata: {"choices": []}'])
async def test_an_event_that_is_no_json_object_is_a_providers_error(data: bytes) -> None:
    with pytest.raises(ProviderError, match=r"JSON (object )?as an event of its stream"):
        await heard(delta(content="Os"), b"data: " + data + b"\n\n", DONE)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"message": "out of memory"}, r"failed: out of memory\. See the endpoint's own log"),
        ("out of memory", r"failed: out of memory\."),
        ({"kind": 7}, r'failed: {"error": {"kind": 7}}\.'),
        ({"code": 503, "message": "no workers"}, r"answered 503 \(no workers\)\. Try again later"),
        ({"code": "max_tokens", "message": "max_tokens"}, "failed: max_tokens"),
        ({"code": 400, "message": "max_tokens is too large"}, r"answered 400 \(max_tokens is too large\)"),
    ],
)
async def test_an_error_in_a_stream_is_a_providers_error_and_not_asked_again_after_text(error: Any, said: str) -> None:
    told: list[str] = []
    script = streamed(delta(content="Os"), event({"error": error}), DONE)
    async with endpoint(script) as chat, asking(chat.url) as policy:
        with pytest.raises(ProviderError, match=said):
            await policy.act(HELLO, told.append)
    assert (len(chat.asked), told) == (1, ["Os"])


async def test_an_endpoint_that_does_not_stream_is_read_whole() -> None:
    told: list[str] = []
    assert await completed(says("Oslo"), told=told) == Completion("Oslo")
    assert told == ["Oslo"]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([("Hm", None), (".", None), (None, "Oslo"), (None, ".")], ["<think>Hm", ".", "</think>Oslo", "."]),
        ([("Hm", ""), (".", "Oslo")], ["<think>Hm", ".", "</think>Oslo"]),
        ([("Hm.", None)], ["<think>Hm.", "</think>"]),
        ([(None, "Oslo"), ("Hm.", None)], ["Oslo"]),
        ([("Hm.", "<think>Hm."), ("So.", "So.</think>Oslo")], ["<think>Hm.", "So.</think>Oslo"]),
    ],
    ids=["before the text", "with the text", "without text", "after the text", "that the text holds too"],
)
async def test_thoughts_that_come_apart_are_told_in_front_of_the_text(
    field: str, messages: list[tuple[str | None, str | None]], told: list[str]
) -> None:
    pieces = [delta(content=content, **{field: thought}) for thought, content in messages]
    assert (await heard(*pieces, DONE))[1] == told


async def test_halves_of_a_character_are_joined() -> None:
    completion, told = await heard(delta(content="a\ud83d"), delta(content="\ude00b\ud83d"), delta("stop"), DONE)
    assert completion.text == "a😀b\ufffd"
    assert told == ["a", "😀b", "\ufffd"]


def call(index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: Any = None) -> bytes:
    """A piece of a native call as an event, without what is not given."""
    function = {key: value for key, value in {"name": name, "arguments": arguments}.items() if value is not None}
    fields = {"index": index, "id": call_id, "function": function}
    return delta(tool_calls=[{key: value for key, value in fields.items() if value is not None}])


FIRST = FunctionCall("a", "search", '{"query": "Ana"}')
SECOND = FunctionCall("b", "list", "{}")


@pytest.mark.parametrize(
    "pieces",
    [
        (
            call(0, "a", "search", ""),
            call(0, None, None, '{"query": '),
            call(0, None, None, '"Ana"}'),
            call(1, "b", "list", "{}"),
        ),
        (
            call(0, "a", "search", '{"query": '),
            call(1, "b", "list", "{"),
            call(0, None, None, '"Ana"}'),
            call(1, None, None, "}"),
        ),
        (call(0, "a", "search", FIRST.arguments), call(1, "b", "list", "{}")),
        (call(0, "a", "search", FIRST.arguments), call(0, "b", "list", "{}")),
        (call(None, "a", "search", FIRST.arguments), call(None, "b", "list", "{}")),
        (call(None, "a", "search", '{"query": '), call(None, None, None, '"Ana"}'), call(None, "b", "list", "{}")),
        (call(None, "a", "search", '{"query": '), call(None, "a", None, '"Ana"}'), call(None, "b", "list", "{}")),
        (call(0, "a", "search", '{"query": '), call(0, "a", "search", '"Ana"}'), call(1, "b", "list", "{}")),
        (call(0, "a", "sea"), call(0, "", "rch"), call(0, "", "", FIRST.arguments), call(1, "b", "list", {})),
        (call(0, None, "search"), call(0, "a", None, FIRST.arguments), call(1, "b", "list", {})),
        (call(0, "a", "search", FIRST.arguments), call(1, "b"), call(1, None, "list", "{}")),
    ],
    ids=[
        "OpenAI's way",
        "by turns",
        "whole calls",
        "all numbered 0",
        "no numbers",
        "no numbers, in pieces",
        "ids alone",
        "all repeated",
        "names in pieces",
        "the id later",
        "the name later",
    ],
)
async def test_native_calls_are_gathered_however_they_are_numbered(pieces: tuple[bytes, ...]) -> None:
    completion, told = await heard(*pieces, delta("tool_calls"), DONE)
    assert completion.calls == (FIRST, SECOND)
    assert told == []


async def test_calls_without_ids_get_one_each() -> None:
    completion, _ = await heard(call(0, None, "search", "{}"), call(1, None, "list", "{}"), call(None, None, "x"), DONE)
    assert [made.name for made in completion.calls] == ["search", "list", "x"]
    assert len({made.call_id for made in completion.calls}) == 3
    assert all(made.call_id.startswith("call_") for made in completion.calls)


async def test_tokens_and_their_probabilities_are_gathered_from_a_stream() -> None:
    def tokens(text: str, *ids: int) -> dict[str, Any]:
        logprobs = {"content": [{"logprob": -float(one)} for one in ids]}
        return {"index": 0, "delta": {"content": text}, "token_ids": list(ids), "logprobs": logprobs}

    script = streamed(
        event(
            {"prompt_token_ids": [1, 2], "choices": [{"index": 0, "delta": {"role": "assistant"}, "logprobs": None}]}
        ),
        event({"choices": [tokens("Os", 3, 4)], "prompt_token_ids": None}),
        event({"choices": [tokens("lo", 5)]}),
        DONE,
    )
    async with endpoint(script) as chat, asking(chat.url, sampling=Sampling(return_token_ids=True)) as policy:
        completion = await policy.act(HELLO, [].append)
    assert completion == Completion("Oslo", prompt_ids=(1, 2), action_ids=(3, 4, 5), logprobs=(-3.0, -4.0, -5.0))


async def test_a_turn_that_is_given_up_hangs_up_at_once() -> None:
    told, hung_up = asyncio.Event(), asyncio.Event()

    async def answer(line: Line) -> None:
        await line.send(STREAM_HEAD, chunk(delta(content="Os")))
        await line.hung_up()
        hung_up.set()

    async with endpoint(answer) as chat, asking(chat.url) as policy:
        turn = asyncio.ensure_future(policy.act(HELLO, lambda _: told.set()))
        await told.wait()
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
        await hung_up.wait()


async def test_a_listener_that_fails_is_heard_and_ends_the_turn() -> None:
    hung_up = asyncio.Event()

    async def answer(line: Line) -> None:
        await line.send(STREAM_HEAD, chunk(delta(content="Os")))
        await line.hung_up()
        hung_up.set()

    async with endpoint(answer) as chat, asking(chat.url) as policy:
        with pytest.raises(ZeroDivisionError):
            await policy.act(HELLO, lambda _: print(1 / 0))
        await hung_up.wait()


STREAM = (
    delta(role="assistant", reasoning_content="Hm… 😀")
    + b": ping\r\n\r\n"
    + delta(content="Os\r\n").replace(b"\n", b"\r\n")
    + json.dumps({"choices": [{"delta": {"content": "løs 😀"}}]}, ensure_ascii=False).encode().join([b"data:", b"\r\r"])
    + delta(content="\ud83d")
    + delta(content="\ude00")
    + call(0, "a", "search", '{"query": ')
    + call(0, None, None, '"Ana"}').replace(b'"index"', b'\ndata:  "index"')
    + delta("length")
    + event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})
    + DONE
)
WHOLE = Completion("<think>Hm… 😀</think>Os\r\nløs 😀😀", (FIRST,), True, 5, 2)


@settings(max_examples=40)
@given(st.lists(st.integers(0, len(STREAM)), max_size=60))
async def test_a_stream_gives_the_same_completion_however_its_bytes_are_cut(cuts: list[int]) -> None:
    places = sorted({0, *cuts, len(STREAM)})
    completion, _ = await heard(*(STREAM[start:end] for start, end in pairwise(places)))
    assert completion == WHOLE


ODD = st.binary(max_size=40) | st.sampled_from(
    [
        b"data: ",
        b"\n\n",
        b"\r\n",
        b'{"choices": [{"delta": {"content": "x"}}]}',
        b'{"error": 1}',
        DONE,
        delta(content="y"),
    ]
)


@settings(max_examples=60)
@given(st.lists(ODD, max_size=8), st.sampled_from(["events", "body", "raw"]), st.booleans())
async def test_any_bytes_are_a_completion_or_a_providers_error(pieces: list[bytes], sent_as: str, stream: bool) -> None:
    data = b"".join(pieces)
    script = {"events": streamed(*pieces), "body": http(data), "raw": data}[sent_as]
    told: list[str] = []
    try:
        outcome: object = await completed(script, told=told if stream else None)
    except ProviderError as error:
        outcome = error
    if isinstance(outcome, Completion):
        assert "".join(told) == (outcome.text if stream else "")
    else:
        assert str(outcome)
