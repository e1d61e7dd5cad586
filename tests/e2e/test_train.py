"""``agemem-mcp train`` as a person runs it, beside a server of this repository in a process of its own."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

WHY = "training needs torch, transformers, accelerate and peft: `pip install 'agemem-mcp[train]'`"
for extra in ("torch", "transformers", "accelerate", "peft", "matplotlib"):
    pytest.importorskip(extra, reason=WHY)

from tests.unit.training.tiny_policy import tiny_run, write_tiny_policy  # noqa: E402  after the skip

from agemem_training.config import as_toml  # noqa: E402  as above
from agemem_training.loading import shipped_warm_start  # noqa: E402  as above
from agemem_training.tasks.synthetic import Stories  # noqa: E402  as above
from agemem_training.worlds import NAMESPACE_PREFIX  # noqa: E402  as above

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "a token of the tests"


def test_episodes_happen_on_a_server_at_a_url_each_in_a_namespace_of_its_own(place: Any, tmp_path: Path) -> None:
    server = place.serve_http(AGEMEM_TOKEN=TOKEN, AGEMEM_IDS="sequential", AGEMEM_EMBEDDING="none")
    url = f"{server.url}/mcp"
    config = tiny_run(
        write_tiny_policy(tmp_path / "policy"),
        environment={"url": url},
        grpo={"iterations": 2},
        evaluation={"every": 9},
    )
    (tmp_path / "config.toml").write_text(as_toml(config))
    command = ("train", "--config", str(tmp_path / "config.toml"), "--out", str(tmp_path / "run"), "--json")
    refused = place.run(*command, AGEMEM_TOKEN="another")
    assert "AGEMEM_TOKEN" in refused.error()
    assert not (tmp_path / "run").exists()
    done = place.run(*command, AGEMEM_TOKEN=TOKEN)
    assert done.status == 0, done.err
    assert json.loads(done.out)["folder"] == str(tmp_path / "run")
    # Background of stories is the environment's to store: 2 iterations of four episodes, 2 before and 2 after.
    namespaces = {one for (one,) in sqlite3.connect(place.data / "ledger.db").execute("SELECT namespace FROM scopes")}
    assert all(one.startswith(f"{NAMESPACE_PREFIX}.") for one in namespaces)
    assert 6 <= len(namespaces) <= 12


def test_the_mini_policy_is_told_stories_and_answers_from_what_it_stored(full_place: Any) -> None:
    server = full_place.serve_http(AGEMEM_IDS="sequential").ready()
    stories = {f"story-{number}": Stories("L1").task("test", seed=11, number=number) for number in range(6)}
    answers, memories = list[bool](), list[bool]()
    for namespace, story in stories.items():
        said = [part for text in (*story.messages, *story.distractors, story.query) for part in ("--message", text)]
        told = full_place.run(
            *("chat", "--policy", f"hf:{shipped_warm_start()}", "--url", f"{server.url}/mcp", "--json", *said),
            AGEMEM_NAMESPACE=namespace,
        )
        assert told.status == 0, told.err
        turns = told.json()["turns"]
        assert {one["stop_reason"] for one in turns} == {"answer"}
        answers.append(turns[-1]["answer"] == story.answer)
        listed = full_place.run("memories", "list", "--json", "--namespace", namespace).json()
        memories.append({one["content"] for one in listed} >= {fact.text for fact in story.facts})
    # It copies nearly all words right, not all. That it stores small talk too is for reinforcement learning to mend.
    assert sum(answers) >= 4, answers
    assert sum(memories) >= 4, memories
