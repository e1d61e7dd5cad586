"""A checkpoint as the policy of real processes: in the terminal, and behind the chat endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

WHY = "a model in this process needs torch and transformers: `pip install 'agemem-mcp[local]'`"
pytest.importorskip("torch", reason=WHY)
pytest.importorskip("transformers", reason=WHY)

from tests.unit.policies.local.tiny_checkpoint import write_script  # noqa: E402  after the skip

ASKED, ANSWER = "Where does Maya live?", "In Lisbon."
WINDOW = 16_384
"""Its tokens are bytes, of which the agent's own prompt has thousands."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers every question alike, in the form of the protocol."""
    folder = tmp_path_factory.mktemp("checkpoint") / "lisbon"
    script = ["?", "<think>", "It is known.", "</think>", "<answer>", ANSWER, "</answer>"]
    return write_script(folder, script, window=WINDOW)


@pytest.fixture(scope="module")
def client(new_place: Any, checkpoint: Path) -> Generator[openai.OpenAI]:
    """OpenAI's client of a server whose policy is the checkpoint."""
    server = new_place().serve_http(AGEMEM_POLICY__NAME=f"hf:{checkpoint}").ready()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_checkpoint_answers_in_the_terminal(place: Any, checkpoint: Path) -> None:
    told = place.run("chat", "--policy", f"hf:{checkpoint}", "--message", ASKED, "--json").json()
    (turn,) = told["turns"]
    assert (turn["answer"], turn["stop_reason"], told["policy"]) == (ANSWER, "answer", checkpoint.name)
    assert turn["prompt_tokens"] > 1000
    assert turn["completion_tokens"] == 6


def test_a_checkpoint_answers_openais_client_whole_and_in_a_stream(client: openai.OpenAI, checkpoint: Path) -> None:
    assert checkpoint.name in [model.id for model in client.models.list()]
    create: Any = client.chat.completions.create
    messages = [{"role": "user", "content": ASKED}]
    answer = create(model="agemem", messages=messages)
    assert answer.choices[0].message.content == ANSWER
    assert (answer.usage.completion_tokens, answer.agemem["stop_reason"]) == (6, "answer")
    chunks = create(model="agemem", messages=[*messages, answer.choices[0].message, *messages], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER


def test_a_folder_without_a_checkpoint_is_refused_with_what_to_do(place: Any, tmp_path: Path) -> None:
    failed = place.run("chat", "--policy", f"hf:{tmp_path}", "--message", ASKED)
    assert str(tmp_path) in failed.error()
