"""The chat endpoint of a real server, asked by OpenAI's own client."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

TOKEN = "correct-horse-battery-staple"
KITS = ["agemem", "agemem_ltm", "agemem_rag", "rag", "no_memory"]
HELLO = "Hi, I'm Maya. I moved to Lisbon in March, and I work as a nurse."
FLIGHT = "My flight to Porto leaves on 3 May at 07:40."
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@contextmanager
def client_of(server: Any, *, api_key: str = "none", **options: Any) -> Generator[openai.OpenAI]:
    """OpenAI's client, which asks once."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=api_key, max_retries=0, **options) as client:
        yield client


@pytest.fixture(scope="module")
def echo(new_place: Any) -> Any:
    """A server whose policy repeats what is said."""
    return new_place().serve_http(AGEMEM_POLICY__NAME="scripted:echo").ready()


@pytest.fixture
def client(echo: Any) -> Generator[openai.OpenAI]:
    """A client of it."""
    with client_of(echo) as client:
        yield client


def ask(client: openai.OpenAI, *messages: Any, **more: Any) -> Any:
    """Send a conversation; strings are the user's."""
    sent = [{"role": "user", "content": one} if isinstance(one, str) else one for one in messages]
    create: Any = client.chat.completions.create
    return create(**{"model": "agemem", "messages": sent, **more})


def test_an_answer_is_read_by_openais_client_with_its_usage_and_what_was_done(client: openai.OpenAI) -> None:
    answer = ask(client, "Hello there")
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert answer.agemem["stop_reason"] == "answer"
    assert answer.agemem["context"]["budget_tokens"] == 8192


def test_a_stream_gives_the_same_as_a_whole_answer(client: openai.OpenAI) -> None:
    stream = ask(client, "Hello there, once more", stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello there, once more"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-2].agemem["session_id"] == chunks[0].session_id == stream.response.headers["X-Agemem-Session"]
    assert chunks[-1].usage.total_tokens > 0


def test_a_resent_history_goes_on_in_its_session_and_an_edited_one_does_not(client: openai.OpenAI) -> None:
    first = ask(client, "Remember: one")
    history = ["Remember: one", first.choices[0].message]
    second = ask(client, *history, "Remember: two")
    assert second.session_id == first.session_id
    edited = ask(client, *history, "Remember: three")
    assert edited.session_id != first.session_id
    assert edited.agemem["context"]["messages"] == second.agemem["context"]["messages"] == 5


def test_the_header_names_a_session(client: openai.OpenAI) -> None:
    first = ask(client, "one")
    second = ask(client, "two", extra_headers={"X-Agemem-Session": first.session_id})
    third = ask(client, "three", metadata={"session_id": first.session_id})
    assert first.session_id == second.session_id == third.session_id
    assert third.agemem["context"]["messages"] == 7


def test_a_session_of_somebody_else_does_not_exist(client: openai.OpenAI) -> None:
    mine = ask(client, "my secret", user="maya@example.com")
    for user in ("someone@example.com", openai.omit):
        with pytest.raises(openai.NotFoundError) as refused:
            ask(client, "what secret?", user=user, extra_headers={"X-Agemem-Session": mine.session_id})
        assert refused.value.code == "session_not_found"
    again = ask(client, "?", user="maya@example.com", extra_headers={"X-Agemem-Session": mine.session_id})
    assert again.session_id == mine.session_id


def test_the_models_are_the_kits_and_the_policy(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [*KITS, "scripted:echo"]
    assert client.models.retrieve("scripted:echo").owned_by == "agemem-mcp"
    for model in [*KITS, "scripted:echo"]:
        assert ask(client, f"as {model}", model=model).model == model


def test_errors_are_openais_own_exceptions(client: openai.OpenAI) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    with pytest.raises(openai.BadRequestError, match="text alone") as refused:
        ask(client, image)
    assert refused.value.param == "messages[0].content[0]"
    with pytest.raises(openai.BadRequestError, match="n must be 1"):
        ask(client, "hi", n=2)
    with pytest.raises(openai.NotFoundError, match="agemem_rag") as unknown:
        ask(client, "hi", model="gpt-4o")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="agemem", input="hi")
    with pytest.raises(openai.APIStatusError) as large:
        ask(client, "x" * 5_000_000)
    assert large.value.status_code == 413


def test_the_tour_stores_updates_and_forgets(place: Any) -> None:
    server = place.serve_http(AGEMEM_POLICY__NAME="scripted:tour").ready()
    with client_of(server) as client:
        first = ask(client, HELLO, user="maya")
        assert [one["name"] for one in first.agemem["operations"]] == ["Add_memory", "Add_memory"]
        stream = ask(client, HELLO, first.choices[0].message, FLIGHT, user="maya", stream=True)
        lines = list(stream.response.iter_lines())
        comments = [line for line in lines if line.startswith(": agemem Add_memory {")]
        assert len(comments) == 1
        assert "3 May" in comments[0]
        assert stream.response.headers["X-Agemem-Session"] == first.session_id
        stream.close()
    found = place.run("memories", "list", "--namespace", "default@maya", "--json").json()
    assert len(found) == 3
    assert place.run("memories", "list", "--json").json() == []


def test_the_token_is_the_api_key(new_place: Any) -> None:
    server = new_place().serve_http(AGEMEM_TOKEN=TOKEN, AGEMEM_POLICY__NAME="scripted:echo").ready()
    with client_of(server, api_key=TOKEN) as client:
        assert ask(client, "let in").choices[0].message.content == "let in"
    with client_of(server, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="AGEMEM_TOKEN") as refused:
            ask(client, "let in")
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert TOKEN not in server.process.log


def test_without_a_policy_the_client_is_told_which_setting_to_set(new_place: Any) -> None:
    server = new_place().serve_http().ready()
    with client_of(server) as client:
        assert list(client.models.list()) == []
        with pytest.raises(openai.NotFoundError, match="AGEMEM_POLICY__NAME"):
            ask(client, "hi")


def test_a_policy_that_does_not_exist_is_refused_before_serving(place: Any) -> None:
    said = place.run("serve", "--transport", "http", "--port", "0", AGEMEM_POLICY__NAME="scripted:none").error()
    assert "There is no script 'none'" in said


class Model:
    """A scripted model behind an OpenAI-compatible endpoint."""

    def __init__(self) -> None:
        self.turns: list[str | int | None] = []
        """What it says next: a turn, or a status of HTTP; None to think until the test ends."""
        self.thought = threading.Event()
        self.asked: list[Any] = []
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                model.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                turn = model.turns.pop(0)
                if turn is None:
                    model.thought.wait()
                    self.close_connection = True
                    return
                status, body = (turn, {"error": {"message": "out of memory"}}) if isinstance(turn, int) else (200, {})
                if isinstance(turn, str):
                    message = {"role": "assistant", "content": turn}
                    usage = {"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42}
                    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
                sent = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.send_header("Retry-After", "0")
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self.thought.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def model() -> Generator[Model]:
    """A model that says what a test tells it to."""
    model = Model()
    yield model
    model.close()


@pytest.fixture
def behind(place: Any, model: Model) -> Generator[openai.OpenAI]:
    """A client of a server whose policy is that model."""
    server = place.serve_http(AGEMEM_POLICY__NAME=f"openai:small@{model.url}").ready()
    with client_of(server) as client:
        yield client


def test_a_model_behind_an_endpoint_answers_with_memory_and_its_own_usage(behind: Any, model: Model) -> None:
    model.turns = [
        '<think>Keep it.</think><tool_call>[{"name": "Add_memory", "arguments": {"content": "tea"}}]</tool_call>',
        "<think></think><answer>Noted.</answer>",
    ]
    answer = ask(behind, "I like tea.", model="small")
    assert answer.choices[0].message.content == "Noted."
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (80, 4)
    assert [one["name"] for one in answer.agemem["operations"]] == ["Add_memory"]
    assert "small" in [one.id for one in behind.models.list()]


def test_a_model_that_fails_is_a_server_error_with_the_sentence(behind: Any, model: Model) -> None:
    model.turns = [500] * 4
    with pytest.raises(openai.InternalServerError, match=r"answered 500 .*out of memory") as failed:
        ask(behind, "hi")
    assert (failed.value.status_code, failed.value.code) == (502, "provider_error")
    model.turns = [500] * 4
    with pytest.raises(openai.APIError, match="out of memory"):
        list(ask(behind, "hi again", stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_tools_of_the_client_pass_through(behind: Any, model: Model, stream: bool) -> None:
    calls = [{"name": "weather", "arguments": {"city": city}} for city in ("Porto", "Lisbon")]
    model.turns = [
        f"<think></think><tool_call>{json.dumps(calls)}</tool_call>",
        "<think></think><answer>Rain, sun.</answer>",
    ]
    if stream:
        with behind.chat.completions.stream(
            model="agemem", messages=[{"role": "user", "content": "Weather?"}], tools=[WEATHER]
        ) as events:
            first = events.get_final_completion()
    else:
        first = ask(behind, "Weather?", tools=[WEATHER])
    called = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments)["city"] for call in called.tool_calls] == ["Porto", "Lisbon"]
    porto, lisbon = ({"role": "tool", "tool_call_id": call.id} for call in called.tool_calls)
    sent_back = called.model_dump(include={"role", "content", "tool_calls"})
    with pytest.raises(openai.BadRequestError, match=lisbon["tool_call_id"]):
        ask(behind, "Weather?", sent_back, {**porto, "content": "rain"}, tools=[WEATHER])
    results = [{**lisbon, "content": "sun"}, {**porto, "content": "rain"}]
    second = ask(behind, "Weather?", sent_back, *results, tools=[WEATHER])
    assert second.choices[0].message.content == "Rain, sun."
    assert second.session_id == first.session_id
    shown = "".join(message["content"] for message in model.asked[-1]["messages"][-2:])
    assert 0 < shown.find("rain") < shown.find("sun")


def test_a_client_that_goes_away_ends_the_run_and_can_ask_again(behind: Any, model: Model) -> None:
    model.turns = [None, "<think></think><answer>Here I am.</answer>"]
    with ask(behind, "Where are you?", stream=True) as stream:
        session_id = next(stream).session_id
    # It could not be answered if the first run went on: requests on a session take turns.
    answer = ask(behind, "Where are you?", extra_headers={"X-Agemem-Session": session_id})
    assert answer.choices[0].message.content == "Here I am."
    assert answer.session_id == session_id
    assert answer.agemem["context"]["messages"] == 3
