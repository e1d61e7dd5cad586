"""The words that name a source of tasks, and what they open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agemem_mcp.domain.memory import Scope
from agemem_mcp.domain.operations import AddMemory
from agemem_mcp.errors import ConfigurationError
from agemem_mcp.service.long_term import Origin
from agemem_training.tasks.choosing import SourceChoice, open_source, parse_source
from agemem_training.tasks.source import split_of

if TYPE_CHECKING:
    from agemem_mcp.service.memory_service import MemoryService
    from agemem_mcp.settings import Settings
    from agemem_training.tasks.recorded import Survey


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("hotpotqa:/data/train.json", SourceChoice("hotpotqa", "/data/train.json")),
        ("hotpotqa:odd?namespace=x", SourceChoice("hotpotqa", "odd?namespace=x")),
        (" recorded:C:\\memory ", SourceChoice("recorded", "C:\\memory")),
        ("recorded:~/memory?namespace=work:2", SourceChoice("recorded", "~/memory", "work:2")),
        ("synthetic:L2", SourceChoice("synthetic", "L2")),
    ],
)
def test_words_name_a_source(text: str, choice: SourceChoice) -> None:
    assert parse_source(text) == choice


def test_a_tilde_stands_for_the_home_folder() -> None:
    assert parse_source("recorded:~/memory").path == Path.home() / "memory"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "'' names no source of tasks. Write hotpotqa:PATH"),
        ("train.json", "'train.json' names no source of tasks. Write"),
        ("hotpot:train.json", "Did you mean hotpotqa?"),
        ("synthetik:L1", "Did you mean synthetic?"),
        ("hotpotqa:", "'hotpotqa:' names no file"),
        ("recorded: ", "names no data folder"),
        ("recorded:?namespace=x", "names no data folder"),
        ("synthetic:", "names no level"),
        ("synthetic:l2", "There is no level 'l2'. Did you mean L2? Levels are L1, L2, L3."),
        ("synthetic:hard", "There is no level 'hard'. Levels are L1, L2, L3."),
        ("recorded:/data?namespaces=x", "Did you mean namespace?"),
        ("recorded:/data?limit=3", "'?limit=3' is no option of recorded tasks. Write"),
        ("recorded:/data?namespace=", "'?namespace=' is no option"),
    ],
)
def test_words_that_name_no_source_are_told_what_to_write(text: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as failure:
        parse_source(text)
    assert told in str(failure.value)


def refuse(taken: Survey) -> None:
    raise AssertionError(taken)


async def test_a_file_of_questions_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    question = {
        "_id": "a",
        "question": "Who?",
        "answer": "Ana",
        "supporting_facts": [["T", 0]],
        "context": [["T", ["Ana."]]],
    }
    path.write_text(json.dumps([question]), encoding="utf-8")
    source = await open_source(parse_source(f"hotpotqa:{path}"), show=refuse)
    assert next(source.tasks(split_of("hotpotqa-a"), seed=0)).query == "Who?"


@pytest.mark.parametrize("level", ["L1", "L2", "L3"])
async def test_a_level_of_stories_is_opened(level: str) -> None:
    source = await open_source(parse_source(f"synthetic:{level}"), show=refuse)
    task = next(source.tasks("test", seed=3))
    assert (task.task_id, task.labels["level"]) == (f"{level}-test-3-0", level)


async def test_what_is_taken_of_a_recording_is_shown_before_tasks_are_made(
    lexical_service: MemoryService, lexical_settings: Settings
) -> None:
    operation = AddMemory(content="Maya lives in Oslo.", metadata={})
    await lexical_service.long_term.add(Scope(namespace="maya"), operation, Origin(session_id="s1"))
    choice = parse_source(f"recorded:{lexical_settings.data_dir}?namespace=maya")
    shown: list[Survey] = []
    source = await open_source(choice, show=shown.append)
    assert [taken.previews for taken in shown] == [("Maya lives in Oslo.",)]
    assert next(source.tasks(split_of("s1"), seed=0)).answer == "Oslo"
    with pytest.raises(AssertionError, match=r"Maya lives in Oslo\."):
        await open_source(choice, show=refuse)
