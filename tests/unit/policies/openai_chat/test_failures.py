"""What fails, whether it is tried again, and what is said in the end."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog
from tests.unit.policies.openai_chat.chat_endpoint import (
    DONE,
    HELLO,
    STREAM_HEAD,
    Line,
    Waits,
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
from agemem_policies.openai_chat import Patience, Sampling
from agemem_policies.policy import Completion

if TYPE_CHECKING:
    from tests.unit.policies.openai_chat.chat_endpoint import Scripted

SILENCE_S = 0.5
"""Waited out for good, by the tests whose endpoint is silent."""


async def hang_up(line: Line) -> None:
    """Answers nothing."""


async def be_silent(line: Line) -> None:
    """Answers nothing and keeps the connection."""
    await line.hung_up()


async def break_off(line: Line) -> None:
    """Answers the beginning of a stream that has told nothing yet."""
    await line.send(STREAM_HEAD, chunk(delta(role="assistant")))


async def break_off_in_text(line: Line) -> None:
    """Answers the beginning of a stream that has told something."""
    await line.send(STREAM_HEAD, chunk(delta(content="Os")), b"5\r\nda")


async def be_silent_in_text(line: Line) -> None:
    """Answers the beginning of a stream that has told something, and keeps the connection."""
    await line.send(STREAM_HEAD, chunk(delta(content="Os")))
    await line.hung_up()


def refused(status: int, message: str = "no", headers: str = "") -> bytes:
    """A refusal in OpenAI's form."""
    return http({"error": {"message": message, "type": "some_error"}}, status=status, headers=headers)


async def tried(*script: Scripted, attempts: int = 4, told: list[str] | None = None) -> tuple[Any, int, list[float]]:
    """The completion or the error, the number of requests, and the waits between them."""
    waits = Waits()
    timeout_s = SILENCE_S if {be_silent, be_silent_in_text} & set(script) else Patience().timeout_s
    patience = Patience(timeout_s=timeout_s, attempts=attempts, sleep=waits, random=lambda: 0.5)
    async with endpoint(*script) as chat, asking(chat.url, patience=patience) as policy:
        try:
            outcome: object = await policy.act(HELLO, None if told is None else told.append)
        except ProviderError as error:
            outcome = error
    return outcome, len(chat.asked), waits.waited


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    assert await tried(refused(status), says("Oslo")) == (Completion("Oslo"), 2, [0.375])


@pytest.mark.parametrize("failing", [hang_up, be_silent, b"", b"nonsense\r\n\r\n", break_off])
async def test_a_lost_connection_is_tried_again_while_nothing_was_told(failing: Scripted) -> None:
    told: list[str] = []
    outcome = await tried(failing, streamed(delta(content="Oslo"), DONE), told=told)
    assert outcome == (Completion("Oslo"), 2, [0.375])
    assert told == ["Oslo"]


async def test_an_error_in_a_stream_that_may_pass_is_tried_again_while_nothing_was_told() -> None:
    failing = streamed(event({"error": {"code": 503, "message": "no workers"}}))
    outcome = await tried(failing, streamed(delta(content="Oslo"), DONE), told=[])
    assert outcome == (Completion("Oslo"), 2, [0.375])


async def test_an_error_that_stands_in_place_of_an_answer_is_one() -> None:
    passing, lasting = http({"error": {"code": 502, "message": "no workers"}}), http({"error": "no such model"})
    error, requests, waits = await tried(passing, lasting)
    assert (requests, waits) == (2, [0.375])
    with pytest.raises(ProviderError, match=r"failed: no such model\."):
        raise error


@pytest.mark.parametrize(
    ("failing", "said"),
    [(break_off_in_text, r"broke off \(RemoteProtocolError\)"), (be_silent_in_text, "was silent for 0.5 s")],
)
async def test_a_stream_that_breaks_off_after_text_is_not_tried_again(failing: Scripted, said: str) -> None:
    told: list[str] = []
    with pytest.raises(ProviderError, match=said) as caught:
        raise (await tried(failing, told=told))[0]
    assert told == ["Os"]
    assert isinstance(caught.value.__cause__, httpx.HTTPError)


async def test_waits_double_and_end_with_the_attempts() -> None:
    error, requests, waits = await tried(refused(500, "out of memory"))
    assert (requests, waits) == (4, [0.375, 0.75, 1.5])
    with pytest.raises(ProviderError, match=r"/v1/chat/completions answered 500 \(out of memory\)\. Try again later"):
        raise error


@pytest.mark.parametrize("attempts", [1, 0])
async def test_one_attempt_is_the_least(attempts: int) -> None:
    _, requests, waits = await tried(refused(500), attempts=attempts)
    assert (requests, waits) == (1, [])


async def test_waits_do_not_grow_for_ever() -> None:
    patience = Patience(random=lambda: 0.0)
    assert [patience.wait_s(attempt, None) for attempt in (1, 7, 8, 9, 5000)] == [0.5, 32.0, 60.0, 60.0, 60.0]


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("7", 7.0),
        ("0.25", 0.25),
        ("0", 0.0),
        ("-3", 0.0),
        ("3600", 60.0),
        pytest.param(format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), 60.0, id="tomorrow"),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 0.0),
        ("nan", 0.375),
        ("inf", 0.375),
        ("soon", 0.375),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 0.375),
        ("", 0.375),
    ],
)
async def test_an_endpoint_says_how_long_it_wants_to_be_left_alone(header: str, wait_s: float) -> None:
    script = (refused(429, headers=f"Retry-After: {header}\r\n"), says("Oslo"))
    assert await tried(*script) == (Completion("Oslo"), 2, [wait_s])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, r"answered 401 \(no\)\. Check the API key"),
        (403, r"answered 403 \(no\)\. Check the API key"),
        (404, r"answered 404 \(no\)\. Check the model's name and the URL, which usually ends in /v1"),
        (400, r"answered 400 \(no\)\. Check the model's name and options"),
        (422, r"answered 422 \(no\)\. Check the model's name and options"),
        (413, r"answered 413 \(no\)\. Check the model's name and options"),
        (307, r"answered 307 \(no\)\. Give the URL that answers itself"),
    ],
)
async def test_a_refusal_is_not_tried_again_and_says_what_to_do(status: int, said: str) -> None:
    error, requests, _ = await tried(refused(status))
    assert requests == 1
    with pytest.raises(ProviderError, match=said):
        raise error


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "no such  \n model", "param": "model"}}, r"\(no such model: model\)"),
        ({"error": "no such model"}, r"\(no such model\)"),
        ({"message": "no such model", "object": "error"}, r"\(no such model\)"),
        ({"detail": "Not Found"}, r"\(Not Found\)"),
        (
            {"detail": [{"loc": ["body", "top_p", 0], "msg": "too large", "input": {"a": 1}}, 5]},
            r"\(body top_p too large\)",
        ),
        ({"other": 1}, r'\({"other": 1}\)'),
        ([1], r"\(\[1\]\)"),
        (b"<p>no</p>", r"\(<p>no</p>\)"),
        (b"\xff", r"\(\ufffd\)"),
        (b"", r"answered 400\. "),
        (b"a" * 5000, rf"\({'a' * 500}…\)"),
    ],
)
async def test_the_endpoints_own_words_are_shown(body: object, said: str) -> None:
    with pytest.raises(ProviderError, match=said):
        await completed(http(body, status=400))


async def test_the_key_and_a_password_are_never_shown() -> None:
    for body in ("a" * 495 + " sk-secret was refused", "sk-secret"):
        script = (refused(401, body), streamed(event({"error": f"Key sk-secret: {body}"})), refused(500, body))
        async with endpoint(*script) as chat:
            url = chat.url.replace("http://", "http://user:pass-secret@") + "?key=a-secret"
            patience = Patience(attempts=2, sleep=Waits())
            with structlog.testing.capture_logs() as logged:
                async with asking(url, api_key="sk-secret", patience=patience) as policy:
                    for _ in script:
                        with pytest.raises(ProviderError) as caught:
                            await policy.act(HELLO, [].append)
                        assert (
                            "secret" not in f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
                        )
        assert [entry["event"] for entry in logged] == ["the model is asked again"]
        assert "secret" not in str(logged)


async def test_an_endpoint_that_is_not_there_is_a_providers_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    waits = Waits()
    async with asking(f"http://127.0.0.1:{port}/v1", patience=Patience(sleep=waits, attempts=2)) as policy:
        with pytest.raises(ProviderError, match=r"could not be reached .* Check that it runs") as caught:
            await policy.act(HELLO)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert len(waits.waited) == 1


async def test_an_endpoint_that_takes_no_connection_is_a_providers_error() -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        async with asking(url, patience=Patience(timeout_s=SILENCE_S, attempts=1)) as policy:
            with pytest.raises(ProviderError, match="took no connection in time") as caught:
                await policy.act(HELLO)
    assert isinstance(caught.value.__cause__, httpx.ConnectTimeout)


async def test_an_endpoint_that_stays_silent_is_a_providers_error() -> None:
    error, requests, _ = await tried(be_silent, attempts=2)
    assert requests == 2
    with pytest.raises(ProviderError, match=r"was silent for 0.5 s. .* raise the timeout or ask for fewer tokens"):
        raise error


async def test_a_body_that_cannot_be_unpacked_is_a_providers_error() -> None:
    with pytest.raises(ProviderError, match="DecodingError"):
        await completed(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd")


async def test_a_turn_that_is_given_up_between_two_attempts_ends() -> None:
    waiting = asyncio.Event()

    async def sleep(wait_s: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async with endpoint(refused(500)) as chat, asking(chat.url, patience=Patience(sleep=sleep)) as policy:
        turn = asyncio.ensure_future(policy.act(HELLO))
        await waiting.wait()
        turn.cancel()
        with pytest.raises(asyncio.CancelledError):
            await turn
    assert len(chat.asked) == 1


WARM = Sampling(temperature=0.7, max_tokens=9)


async def asked_twice(*script: Scripted, stream: bool = False) -> list[dict[str, Any]]:
    """All requests of two turns, less what is the same in each."""
    async with endpoint(*script) as chat, asking(chat.url, sampling=WARM) as policy:
        for _ in range(2):
            await policy.act(HELLO, [].append if stream else None)
    return [{name: body[name] for name in body.keys() - {"model", "messages", "stream"}} for body in chat.bodies]


@pytest.mark.parametrize("status", [400, 422])
async def test_a_field_that_is_refused_is_left_out_or_renamed_from_then_on(status: int) -> None:
    assert await asked_twice(
        refused(status, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        refused(status, "Unsupported value: 'temperature' does not support 0.7 with this model."),
        says("Oslo"),
    ) == [
        {"max_tokens": 9, "temperature": 0.7},
        {"max_completion_tokens": 9, "temperature": 0.7},
        {"max_completion_tokens": 9},
        {"max_completion_tokens": 9},
    ]


async def test_an_endpoint_that_refuses_stream_options_is_asked_without_them() -> None:
    detail = [{"loc": ["body", "stream_options"], "msg": "Extra inputs", "input": {"max_tokens": 9}}]
    bodies = await asked_twice(http({"detail": detail}, status=422), streamed(delta(content="x"), DONE), stream=True)
    assert [body.get("stream_options") for body in bodies] == [{"include_usage": True}, None, None]
    assert all(body["max_tokens"] == 9 for body in bodies)


async def test_a_refusal_that_names_an_innocent_field_is_told_and_forgotten() -> None:
    too_long = refused(400, "The prompt and max_tokens exceed the context of 4096.")
    async with endpoint(too_long, too_long, says("Oslo")) as chat, asking(chat.url) as policy:
        with pytest.raises(ProviderError, match=r"exceed the context .* fits into its context"):
            await policy.act(HELLO)
        await policy.act(HELLO)
    assert [("max_tokens" in body, "max_completion_tokens" in body) for body in chat.bodies] == [
        (True, False),
        (False, True),
        (True, False),
    ]


async def test_a_failure_that_may_pass_changes_no_field_that_it_names() -> None:
    async with endpoint(refused(500, "max_tokens"), says("Oslo")) as chat, asking(chat.url) as policy:
        await policy.act(HELLO)
    assert ["max_tokens" in body for body in chat.bodies] == [True, True]


async def test_turns_at_the_same_time_find_out_for_themselves() -> None:
    refusal, both_asked = refused(400, "max_tokens is not supported"), asyncio.Event()

    async def refuse_when_both_asked(line: Line) -> None:
        if len(chat.asked) == 2:
            both_asked.set()
        await both_asked.wait()
        await line.send(refusal)

    async with (
        endpoint(refuse_when_both_asked, refuse_when_both_asked, says("Oslo")) as chat,
        asking(chat.url) as policy,
    ):
        answers = await asyncio.gather(policy.act(HELLO), policy.act(HELLO))
    assert answers == [Completion("Oslo"), Completion("Oslo")]
    assert len(chat.asked) == 4
