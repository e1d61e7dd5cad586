"""Grades by words, and by a model behind a real endpoint."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.openai_chat.chat_endpoint import TLS, Line, endpoint, http, says
from tests.unit.training.building import LIVES

from agemem_mcp.errors import ProviderError
from agemem_policies.openai_chat import Endpoint
from agemem_training.judges import LLMJudge, NoScore, WordJudge, answer_score, read_score, success
from agemem_training.tasks import Task

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

NAME = Task("name", "Who wrote it?", "Jane Austen", (), aliases=("Miss Austen",))


def asked(right: str) -> Task:
    return Task("closed", "?", right, ())


@pytest.mark.parametrize("answer", ["Jane Austen", "the jane austen!", "  JANE\nAUSTEN.", "Miss Austen"])
def test_the_right_answer_is_right_however_it_is_written(answer: str) -> None:
    assert success(answer, NAME)
    assert answer_score(answer, NAME) == 1.0


@pytest.mark.parametrize("answer", [None, "", "  ", "Jane", "It was Jane Austen"])
def test_anything_else_is_no_success(answer: str | None) -> None:
    assert not success(answer, NAME)


def test_a_part_of_the_answer_is_worth_its_f1() -> None:
    assert answer_score("Jane", NAME) == pytest.approx(2 / 3)
    assert answer_score("It was Jane Austen", NAME) == pytest.approx(4 / 6)
    assert answer_score("nobody", NAME) == 0.0


@pytest.mark.parametrize(
    ("answer", "right"), [("no, not yes", "yes"), ("it is unknown", "unknown"), ("yes", "yes man")]
)
def test_closed_answers_are_right_or_wrong(answer: str, right: str) -> None:
    assert answer_score(answer, asked(right)) == 0.0


def test_an_answer_of_articles_and_signs_alone_is_compared_as_it_is() -> None:
    assert success("A", asked("a"))
    assert not success("the", asked("a"))


@given(st.text(), st.text(min_size=1))
def test_a_grade_lies_between_0_and_1_and_the_right_answer_is_worth_1(answer: str, right: str) -> None:
    assert 0 <= answer_score(answer, asked(right)) <= 1
    if right.strip():
        assert answer_score(right, asked(right)) == 1.0


async def test_memories_are_graded_by_the_gold_facts_they_tell() -> None:
    judge = WordJudge()
    assert await judge.grade_memories(["Maya: Oslo", "nothing"], LIVES) == 1.0
    assert await judge.grade_memories([], LIVES) == 0.0
    assert await judge.grade_answer("Oslo", LIVES) == 1.0


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 0.8, "reason": "minor"}', 0.8),
        ('```json\n{"reason": "{odd}", "score": "1"}\n```', 1.0),
        ('I think {x}: {"score": 0, "reason": "wrong"} is fair.', 0.0),
        ('<think>perhaps {"score": 0.1}</think>{"score": 0.9}', 0.9),
        ("Score: 0.7", 0.7),
        ("The score is .5.", 0.5),
        ("score = 0.8/1", 0.8),
        ('{"score": 0.4, "reason": "cut off', 0.4),
    ],
)
def test_a_score_is_read_from_what_models_make_of_json(reply: str, score: float) -> None:
    assert read_score(reply) == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "Right!",
        "Score: 1/10",
        "score: 1 out of 10",
        "Score: 1%",
        '{"score": 8}',
        '{"score": -1}',
        '{"score": null}',
        '{"score": "NaN"}',
    ],
)
def test_a_reply_without_a_score_from_0_to_1_is_an_error_that_shows_it(reply: str) -> None:
    with pytest.raises(ProviderError, match="no score from 0 to 1") as raised:
        read_score(reply)
    assert reply[:10] in str(raised.value)


@dataclass
class Client:
    """Connections for judges of a test."""

    http: httpx.AsyncClient

    def judge(self, url: str, *, concurrent: int = 8, prompts: Path | None = None) -> LLMJudge:
        return LLMJudge(Endpoint(url, "judge"), concurrent=concurrent, prompts=prompts, client=self.http)


@pytest.fixture
async def client() -> AsyncGenerator[Client]:
    async with httpx.AsyncClient(verify=TLS) as http:
        yield Client(http)


async def test_a_model_is_asked_with_question_reference_and_answer(client: Client) -> None:
    async with endpoint(says('{"score": 0.8}')) as chat:
        # What is graded cannot fill in another field.
        assert await client.judge(chat.url).grade_answer("{reference}", NAME) == 0.8
    (body,) = chat.bodies
    (message,) = body["messages"]
    assert "Who wrote it?" in message["content"]
    assert "Jane Austen\nor: Miss Austen" in message["content"]
    assert "Answer to grade:\n{reference}" in message["content"]
    assert '{"score": number from 0 to 1' in message["content"]
    assert body["temperature"] == 0.0


async def test_a_model_is_asked_with_facts_and_memories(client: Client) -> None:
    async with endpoint(says('{"score": 0.6}')) as chat:
        assert await client.judge(chat.url).grade_memories(["Maya: Oslo", "Tom: tea"], LIVES) == 0.6
    (message,) = chat.bodies[0]["messages"]
    assert "- Maya lives in Oslo." in message["content"]
    assert "- Maya: Oslo\n- Tom: tea" in message["content"]


async def test_no_memories_are_worth_nothing_and_nobody_is_asked(client: Client) -> None:
    async with endpoint(says('{"score": 1}')) as chat:
        assert await client.judge(chat.url).grade_memories([], LIVES) == 0.0
    assert chat.asked == []


async def test_a_reply_without_a_score_is_asked_for_again_in_other_words(client: Client) -> None:
    async with endpoint(says("Well done!"), says(""), says('{"score": 0.7}')) as chat:
        assert await client.judge(chat.url).grade_answer("x", NAME) == 0.7
    # At temperature 0 the same would come back.
    assert [body["temperature"] for body in chat.bodies] == [0.0, 1.0, 1.0]


async def test_a_model_that_never_gives_a_score_is_an_error(client: Client) -> None:
    async with endpoint(says("Well done!")) as chat:
        with pytest.raises(NoScore, match="Well done!"):
            await client.judge(chat.url).grade_answer("x", NAME)
    assert len(chat.asked) == 3


async def test_a_text_that_an_endpoint_refuses_has_no_score_and_an_unknown_key_ends_everything(client: Client) -> None:
    async with endpoint(http({"error": {"message": "content filter"}}, status=400)) as chat:
        with pytest.raises(NoScore, match="content filter"):
            await client.judge(chat.url).grade_answer("x", NAME)
    async with endpoint(http({"error": {"message": "who?"}}, status=401)) as chat:
        with pytest.raises(ProviderError, match="Check the API key") as raised:
            await client.judge(chat.url).grade_answer("x", NAME)
    assert not isinstance(raised.value, NoScore)
    assert len(chat.asked) == 1


async def test_only_so_many_questions_are_asked_at_once(client: Client) -> None:
    open_now, most = 0, 0

    async def slow(line: Line) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        for _ in range(20):
            await asyncio.sleep(0)
        open_now -= 1
        await line.send(says('{"score": 0.5}'))

    async with endpoint(slow) as chat:
        judge = client.judge(chat.url, concurrent=2)
        assert await asyncio.gather(*(judge.grade_answer(str(n), NAME) for n in range(8))) == [0.5] * 8
    assert most == 2


async def test_a_prompt_can_be_replaced(client: Client, tmp_path: Path) -> None:
    (tmp_path / "judge_answer.txt").write_text("Is {answer} like {reference}?")
    async with endpoint(says(json.dumps({"score": 1}))) as chat:
        await client.judge(chat.url, prompts=tmp_path).grade_answer("Jane", NAME)
    assert chat.bodies[0]["messages"][0]["content"] == "Is Jane like Jane Austen\nor: Miss Austen?"


async def test_a_judge_closes_its_own_connections() -> None:
    async with endpoint(says('{"score": 1}')) as chat, LLMJudge(Endpoint(chat.url, "judge")) as judge:
        assert await judge.grade_answer("x", NAME) == 1.0
