"""HotpotQA's questions as tasks: both layouts, what is wrong with a file, the real samples, the splits."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from agemem_mcp.errors import ConfigurationError
from agemem_training.tasks.hotpotqa import HotpotQATasks, read_hotpotqa
from agemem_training.tasks.source import Split, split_of
from agemem_training.tasks.task import Fact

SAMPLES = Path(os.environ.get("HOTPOTQA") or Path(__file__).parents[5] / "shared" / "data" / "hotpotqa")
OFFICIAL: dict[str, Any] = {
    "_id": "5a8b",
    "question": "In which year was the mayor of Oslo born?",
    "answer": "1966",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Oslo", 1], ["Ana Berg", 0]],
    "context": [
        ["Bergen", ["Bergen is a city."]],
        ["Oslo", ["Oslo is a capital.", " Its mayor is Ana Berg.", ""]],
        ["Ana Berg", ["Ana Berg was born in 1966."]],
        ["Empty", [" "]],
    ],
}
HUB: dict[str, Any] = {
    "id": "5a8b",
    "question": OFFICIAL["question"],
    "answer": "1966",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": {"title": ["Oslo", "Ana Berg"], "sent_id": [1, 0]},
    "context": {
        "title": ["Bergen", "Oslo", "Ana Berg", "Empty"],
        "sentences": [sentences for _, sentences in OFFICIAL["context"]],
    },
}


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "questions"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def listed(folder: Path, *records: object) -> Path:
    return written(folder, json.dumps(records))


def complaint(path: Path) -> str:
    with pytest.raises(ConfigurationError) as failure:
        list(read_hotpotqa(path))
    assert str(path) in str(failure.value)
    return str(failure.value)


def test_supporting_paragraphs_are_told_and_the_others_distract(tmp_path: Path) -> None:
    (task,) = read_hotpotqa(listed(tmp_path, OFFICIAL))
    assert (task.query, task.answer) == ("In which year was the mayor of Oslo born?", "1966")
    assert task.messages == (
        "Oslo: Oslo is a capital. Its mayor is Ana Berg.",
        "Ana Berg: Ana Berg was born in 1966.",
    )
    assert task.distractors == ("Bergen: Bergen is a city.",)
    assert task.gold == (Fact("Oslo: Its mayor is Ana Berg."), Fact("Ana Berg: Ana Berg was born in 1966."))
    assert task.facts == task.gold
    assert task.key_items == ("Oslo",)
    assert (task.task_id, task.labels) == ("hotpotqa-5a8b", {"source": "hotpotqa", "type": "bridge"})


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_hubs_columns_give_the_same_task_as_the_official_layout(tmp_path: Path, mark: str) -> None:
    official = list(read_hotpotqa(listed(tmp_path, OFFICIAL)))
    assert list(read_hotpotqa(listed(tmp_path, HUB))) == official
    assert list(read_hotpotqa(written(tmp_path, f"{mark}{json.dumps(HUB)}\n\n"))) == official


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_gives_the_same_task_as_the_official_layout(tmp_path: Path) -> None:
    arrow: Any = importlib.import_module("pyarrow")
    path = tmp_path / "questions.parquet"
    importlib.import_module("pyarrow.parquet").write_table(arrow.Table.from_pylist([HUB]), path)
    assert list(read_hotpotqa(path)) == list(read_hotpotqa(listed(tmp_path, OFFICIAL)))
    assert "Download it again" in complaint(written(tmp_path, path.read_bytes()[:-9]))


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path) -> None:
    assert "pip install pyarrow" in complaint(written(tmp_path, b"PAR1\x00"))


def test_type_is_labelled_only_where_it_is_given(tmp_path: Path) -> None:
    untyped = {name: value for name, value in OFFICIAL.items() if name != "type"}
    (task,) = read_hotpotqa(listed(tmp_path, untyped))
    assert task.labels == {"source": "hotpotqa"}


def test_a_supporting_sentence_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    one_missing = OFFICIAL | {"supporting_facts": [["Oslo", 9], ["Ana Berg", 0]]}
    all_missing = OFFICIAL | {"supporting_facts": [["Oslo", 9], ["Oslo", 2]]}
    (task,) = read_hotpotqa(listed(tmp_path, all_missing, one_missing))
    assert task.gold == (Fact("Ana Berg: Ana Berg was born in 1966."),)
    assert len(task.messages) == 2


def test_json_lines_are_read_no_further_than_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path, f"{json.dumps(OFFICIAL)}\n{json.dumps(OFFICIAL)}\nnot JSON\n")
    assert len(list(read_hotpotqa(path, limit=2))) == 2
    assert f"{path}, line 3 is no valid JSON" in complaint(path)


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in complaint(tmp_path / "nowhere.json")
    assert "cannot be read (Is a directory)" in complaint(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no valid JSON (Expecting value at character 1)"),
        (b"question,answer\n", "no valid JSON"),
        (b'[{"_id": "a",\n oops}]', "at line 2, character 2"),
        (b'"text"', 'holds "text"; expected a JSON list of questions'),
        (b'["caf\xe9"]', "no text in UTF-8"),
        (b'{"question": "caf\xe9"}', "no text in UTF-8"),
        (b"[" * 100_000, "no JSON that can be read"),
        (b"[1]", "record 1 is 1; expected a question as a JSON object"),
    ],
)
def test_a_file_that_holds_no_questions_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    assert told in complaint(written(tmp_path, content))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": 1966}, "the field 'answer' holds 1966; expected text"),
        ({"answer": " "}, "the field 'answer' holds \" \"; expected text"),
        ({"answer": None}, "the field 'answer' holds null; expected text"),
        ({"question": "Who\0?"}, "the field 'question' cannot be told to the server: a text holds a NUL character"),
        ({"context": [["Oslo", ["\ud83d"]]]}, "the field 'context' cannot be told to the server: a text holds"),
        ({"context": [["Oslo", ["x" * 70_000]]]}, "the field 'context' cannot be told to the server: a text is 70,006"),
        ({"question": ["x"]}, "the field 'question' holds [\"x\"]; expected text"),
        ({"type": 3}, "the field 'type' holds 3; expected text"),
        ({"context": "Oslo"}, "the field 'context' holds \"Oslo\"; expected [[title, [sentence, …]], …]"),
        ({"context": [["Oslo"]]}, "the field 'context' holds [[\"Oslo\"]]"),
        ({"context": [["Oslo", "text"]]}, 'the field \'context\' holds ["Oslo", "text"]'),
        ({"context": [["Oslo", [1]]]}, "the field 'context' holds [\"Oslo\", [1]]"),
        ({"context": {"title": ["Oslo"]}}, 'the field \'context\' holds {"title": ["Oslo"]}'),
        ({"context": {"title": ["Oslo"], "sentences": []}}, "with as many of each"),
        ({"supporting_facts": []}, "the field 'supporting_facts' holds []; expected at least one fact"),
        ({"supporting_facts": [["Oslo", "1"]]}, 'the field \'supporting_facts\' holds ["Oslo", "1"]'),
        ({"supporting_facts": [["Oslo", -1]]}, "the field 'supporting_facts' holds [\"Oslo\", -1]"),
        ({"supporting_facts": [["Oslo", True]]}, "the field 'supporting_facts' holds [\"Oslo\", true]"),
        ({"supporting_facts": [["Rome", 0]]}, "the distractor setting); 'Rome' is none"),
    ],
)
def test_a_field_that_is_not_what_it_should_be_is_told_with_its_record(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    said = complaint(listed(tmp_path, OFFICIAL, OFFICIAL | change))
    assert ", record 2: " in said
    assert told in said


@pytest.mark.parametrize("name", ["_id", "question", "answer", "context", "supporting_facts"])
def test_a_field_that_is_missing_is_told_with_its_line(tmp_path: Path, name: str) -> None:
    lacking = {field: value for field, value in OFFICIAL.items() if field != name}
    said = complaint(written(tmp_path, f"{json.dumps(OFFICIAL)}\n{json.dumps(lacking)}"))
    assert f"line 2: the field '{name}' is missing; expected " in said


@pytest.fixture
def many(tmp_path: Path) -> HotpotQATasks:
    """A hundred questions."""
    return HotpotQATasks(listed(tmp_path, *(OFFICIAL | {"_id": str(number)} for number in range(100))))


def test_each_question_is_in_one_split(many: HotpotQATasks) -> None:
    held_out = [[task.task_id for task in many.tasks(split, seed=1)] for split in ("validation", "test")]
    trained = 100 - sum(map(len, held_out))
    train = {task.task_id for task in itertools.islice(many.tasks("train", seed=1), trained)}
    assert len(train) == trained
    assert len(train.union(*held_out)) == 100
    assert all(5 <= len(ids) <= 17 for ids in held_out)


def test_training_goes_through_all_questions_again_in_another_order(many: HotpotQATasks) -> None:
    size = sum(split_of(f"hotpotqa-{number}") == "train" for number in range(100))
    drawn = [task.task_id for task in itertools.islice(many.tasks("train", seed=1), 2 * size)]
    assert sorted(drawn[:size]) == sorted(drawn[size:])
    assert drawn[:size] != drawn[size:]


def test_the_order_depends_on_the_seed_alone(many: HotpotQATasks) -> None:
    first, again, other = (
        [task.task_id for task in itertools.islice(many.tasks("train", seed=seed), 9)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_split_without_a_question_is_told_before_the_first_is_asked_for(tmp_path: Path) -> None:
    one = HotpotQATasks(listed(tmp_path, OFFICIAL))
    empty = [split for split in get_args(Split) if split != split_of("hotpotqa-5a8b")]
    for split in empty:
        with pytest.raises(ConfigurationError, match=f"falls into the {split} split"):
            one.tasks(split, seed=0)


@pytest.mark.parametrize(("name", "kinds"), [("train_100.json", (78, 22)), ("dev_distractor_100.json", (85, 15))])
def test_the_real_samples_become_tasks(name: str, kinds: tuple[int, int]) -> None:
    if not (SAMPLES / name).is_file():
        pytest.skip(f"HotpotQA's samples are not here: {SAMPLES} (set HOTPOTQA to their folder)")
    tasks = list(read_hotpotqa(SAMPLES / name))
    assert len(tasks) == 100
    assert tuple(sum(one.labels["type"] == kind for one in tasks) for kind in ("bridge", "comparison")) == kinds
    assert all(len(one.messages) == 2 and len(one.gold) >= 2 for one in tasks)
    assert {len(one.distractors) for one in tasks} <= {2, 8}
    assert all(
        any(fact.text.partition(": ")[2] in message for message in one.messages) for one in tasks for fact in one.gold
    )
    # most questions name someone or something; those that do not ("Which of the two …") have no items
    assert sum(bool(one.key_items) for one in tasks) >= 97
    assert all(item in one.query for one in tasks for item in one.key_items)
    assert replace(tasks[0], labels={}) in [replace(one, labels={}) for one in HotpotQATasks(SAMPLES / name)._tasks]
