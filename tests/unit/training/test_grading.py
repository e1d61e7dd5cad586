"""Rewards with a model that judges: what it is asked, and what becomes of a run without its grades."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

from tests.unit.policies.openai_chat.chat_endpoint import Line, endpoint, http, says  # noqa: E402  after the skip
from tests.unit.training.building import LEAVES, Story  # noqa: E402  as above
from tests.unit.training.tiny_policy import tiny_run  # noqa: E402  as above

from agemem_mcp.errors import ProviderError  # noqa: E402  as above
from agemem_policies.openai_chat import Endpoint  # noqa: E402  as above
from agemem_training.grading import graded  # noqa: E402  as above
from agemem_training.judges import JudgeSettings  # noqa: E402  as above
from agemem_training.progress import Progress  # noqa: E402  as above
from agemem_training.record import REASONING, Episode  # noqa: E402  as above
from agemem_training.reporting.metrics import MetricsFile  # noqa: E402  as above
from agemem_training.rewards import Reward, RewardSettings  # noqa: E402  as above
from agemem_training.run import Wishes, train  # noqa: E402  as above
from agemem_training.settings_of import judge_of  # noqa: E402  as above

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

PAY = RewardSettings("paper")
SCORE = says('{"score": 0.4}')


def answered(text: str = "Oslo") -> Episode:
    """An episode in which something was stored, retrieved and answered."""
    story = Story()
    story.turn(story.add("mem_1", "Maya lives in Oslo."))
    story.stage(REASONING)
    story.turn(story.retrieve("mem_1"))
    return story.answer(text)


async def graded_at(url: str, episodes: list[Episode], *, memories: bool = True) -> list[Reward]:
    return await graded(episodes, PAY, JudgeSettings(Endpoint(url, "judge"), memories))


async def test_without_a_judge_words_grade_and_nothing_is_missed() -> None:
    [result] = await graded([answered()], PAY)
    assert (result.paper.task, result.paper.storage, result.paper.relevance) == (1.0, 1.0, 1.0)
    assert "ungraded" not in result.figures()


async def test_a_judge_grades_answer_stored_and_retrieved_memories() -> None:
    async with endpoint(SCORE) as chat:
        [result] = await graded_at(chat.url, [answered()])
    assert (result.paper.task, result.paper.storage, result.paper.relevance) == (0.4, 0.4, 0.4)
    assert (result.strict.task, result.strict.relevance) == (0.4, 0.4)
    assert result.success
    assert result.figures()["ungraded"] == 0
    assert len(chat.asked) == 3


async def test_memories_can_be_left_to_gold_facts() -> None:
    async with endpoint(SCORE) as chat:
        [result] = await graded_at(chat.url, [answered()], memories=False)
    assert (result.paper.task, result.paper.storage) == (0.4, 1.0)
    assert len(chat.asked) == 1


async def test_nobody_is_asked_about_nothing() -> None:
    silent, unknown = Story(), Story(LEAVES)
    async with endpoint(SCORE) as chat:
        nothing, right = await graded_at(chat.url, [silent.answer(" "), unknown.answer("unknown")])
    # Of what nobody knows there is no memory that could be useful; the answer alone is graded.
    assert (nothing.paper.task, right.paper.task) == (-1.0, 0.4)
    assert len(chat.asked) == 1


async def test_episodes_are_graded_side_by_side_but_not_more_than_eight_questions() -> None:
    waiting, most = 0, 0
    full = asyncio.Event()

    async def slow(line: Line) -> None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        if waiting == 8:
            full.set()
        # One after the other they would wait here for ever.
        await full.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        waiting -= 1
        await line.send(SCORE)

    async with endpoint(slow) as chat:
        results = await asyncio.wait_for(graded_at(chat.url, [answered() for _ in range(12)]), 30)
    assert [one.paper.task for one in results] == [0.4] * 12
    assert most == 8


async def test_a_grade_that_is_not_given_is_given_by_words_and_counted() -> None:
    async def strict(line: Line) -> None:
        await line.send(says("I would rather not.") if "Iceland" in str(chat.bodies[-1]) else SCORE)

    async with endpoint(strict) as chat:
        episodes = [answered("Iceland"), *(answered() for _ in range(3))]
        results = [one for done in episodes for one in await graded_at(chat.url, [done], memories=False)]
    assert [one.ungraded for one in results] == [1, 0, 0, 0]
    assert [one.paper.task for one in results] == [0.0, 0.4, 0.4, 0.4]


async def test_a_judge_whose_replies_mostly_hold_no_score_ends_the_run() -> None:
    async with endpoint(says("Well done!")) as chat:
        with pytest.raises(ProviderError, match=r"graded 0 of 9\. .*Well done!"):
            await graded_at(chat.url, [answered() for _ in range(3)])


async def test_a_judge_that_cannot_be_asked_ends_the_run() -> None:
    async with endpoint(http({"error": {"message": "who?"}}, status=401)) as chat:
        with pytest.raises(ProviderError, match=r"cannot be asked\. .*Check the API key"):
            await graded_at(chat.url, [answered() for _ in range(3)])


@dataclass
class Judge:
    """A model behind an endpoint of its own thread, which a run that has its own event loops can ask."""

    url: str
    keys: list[str | None] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def judging(status: int = 200) -> Generator[Judge]:
    """It grades everything .5, but for what it was asked first: to that it never replies with a score."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            judge.keys.append(self.headers["Authorization"])
            judge.asked.append(body["messages"][0]["content"])
            said = "No." if judge.asked[-1] == judge.asked[0] else '{"score": 0.5}'
            content = json.dumps({"choices": [{"index": 0, "message": {"content": said}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        judge = Judge(f"http://127.0.0.1:{server.server_address[1]}/v1")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()


def test_a_run_is_graded_by_the_judge_with_its_key_and_tells_what_was_not(
    tiny_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGEMEM_POLICY__API_KEY", "the-key")
    with judging() as judge, Progress(silent=True) as progress:
        reward = {"judge_url": judge.url, "judge_model": "m", "variant": "paper"}
        config = tiny_run(tiny_start, grpo={"iterations": 1}, reward=reward)
        out = train(config, Wishes(tmp_path / "run", "agemem-mcp train"), progress, lambda _: None)
    assert set(judge.keys) == {"Bearer the-key"}
    metrics = MetricsFile(out / "metrics.jsonl").read()
    before, *_ = metrics.evaluations
    # Its answers are wrong, so that words give 0 where the judge gives a half.
    assert sorted(before.episodes.columns["paper/task"]) == [0.0, 0.5]
    assert sorted(before.episodes.columns["ungraded"]) == [0, 1]
    [rollouts] = [one.rollouts for one in metrics.iterations if one.rollouts is not None]
    assert rollouts.figures["ungraded"] == 0
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| grades by words, as the judge gave none | 0 in 4 episodes |" in report


def test_a_run_whose_judge_cannot_be_asked_tells_once_how_to_go_on(tiny_start: Path, tmp_path: Path) -> None:
    with judging(status=401) as judge, Progress(silent=True) as progress:
        config = tiny_run(tiny_start, reward={"judge_url": judge.url, "judge_model": "m"})
        with pytest.raises(ProviderError, match=r"cannot be asked\. .* No iteration was saved") as failed:
            train(config, Wishes(tmp_path / "run", "agemem-mcp train"), progress, lambda _: None)
    assert str(failed.value).count("--resume") == 1


def test_the_key_of_a_judge_is_no_part_of_what_is_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGEMEM_POLICY__API_KEY", "the-key")
    config = tiny_run(tmp_path, reward={"judge_url": "http://localhost:1/v1", "judge_model": "m"})
    judge = judge_of(config)
    assert judge is not None
    assert judge.endpoint.api_key == "the-key"
    assert "the-key" not in repr(judge)
