"""Stories: the same for the same seed, without anything held out in training, and each with one right answer."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, get_args

import pytest

from agemem_mcp.errors import ConfigurationError
from agemem_training.facts import holds, is_stale, outdated
from agemem_training.tasks import Split
from agemem_training.tasks.synthetic import LEVELS, Difficulty, Stories
from agemem_training.tasks.synthetic.language import (
    CHANGED,
    OPENINGS,
    RELATIONS,
    RUMOURS,
    SMALL_TALK,
    TOPICS,
    TWO_HOPS,
    UNKNOWN,
    wording,
)

if TYPE_CHECKING:
    from agemem_training.tasks import Task
    from agemem_training.tasks.synthetic.language import Relation

SPLITS: tuple[Split, ...] = get_args(Split)
TOLD = 300
each_level = pytest.mark.parametrize("level", LEVELS)
each_split = pytest.mark.parametrize("split", SPLITS)


@cache
def stories(level: str, split: Split = "train", count: int = TOLD, seed: int = 1) -> tuple[Task, ...]:
    """Many stories."""
    return tuple(islice(Stories(level).tasks(split, seed=seed), count))


@cache
def pattern(form: str) -> re.Pattern[str]:
    """What reads a sentence of some form, at the end of a text."""
    written = re.escape(form).replace(r"\{s\}", r"(?P<s>\w+)").replace(r"\{v\}", "(?P<v>.+)")
    return re.compile(f"(?:^|.* ){written}", re.IGNORECASE)


def replayed(task: Task) -> dict[tuple[str, str], str]:
    """What is known after the messages: (relation, subject) → value; by reading them alone."""
    known: dict[tuple[str, str], str] = {}
    for message in task.messages:
        for name, relation in RELATIONS.items():
            denied = pattern(relation.denied).fullmatch(message)
            if denied is not None:
                assert known.pop((name, denied["s"])) == denied["v"]
            elif (told := pattern(relation.sentence).fullmatch(message)) is not None:
                known[name, told["s"]] = told["v"]
    return known


def answered(task: Task, known: dict[tuple[str, str], str]) -> str | None:
    """What those who know so much answer."""
    questions: list[tuple[tuple[str, ...], tuple[str, ...]]]
    questions = [((one.first, one.second), forms) for one in TWO_HOPS for forms in one.questions.values()]
    questions += [((one.name,), forms) for one in RELATIONS.values() for forms in one.questions.values()]
    for hops, forms in questions:
        for form in forms:
            if (asked := pattern(form).fullmatch(task.query)) is not None:
                about: str | None = asked["s"]
                for relation in hops:
                    about = None if about is None else known.get((relation, about))
                return about
    pytest.fail(f"nobody understands {task.query!r}")


def relation_of(task: Task) -> Relation:
    """What the fact that holds the answer is about."""
    mark = task.gold[-1].keys[1]
    return next(one for one in RELATIONS.values() if one.mark == mark)


@each_level
@each_split
def test_the_messages_tell_the_answer(level: str, split: Split) -> None:
    for task in stories(level, split):
        assert (answered(task, replayed(task)) or UNKNOWN) == task.answer, task


@each_level
def test_the_same_seed_tells_the_same_stories(level: str) -> None:
    again = tuple(islice(Stories(level).tasks("train", seed=1), 20))
    assert again == stories(level)[:20]
    assert Stories(level).task("train", seed=1, number=7) == again[7]
    assert not {task.messages for task in again} & {task.messages for task in stories(level, count=20, seed=2)}


@each_level
def test_each_story_has_an_id_of_its_own(level: str) -> None:
    ids = [task.task_id for split in SPLITS for seed in (1, 2) for task in stories(level, split, 50, seed)]
    assert len(set(ids)) == len(ids)


def vocabulary(task: Task) -> set[str]:
    """All words of a story that could be names."""
    return set(re.findall(r"[A-Z]\w+", " ".join((*task.messages, *task.distractors, *task.background, task.query))))


@each_level
def test_the_facts_of_validation_and_test_are_about_names_that_training_never_shows(level: str) -> None:
    trained = set[str]().union(*(vocabulary(task) for task in stories(level, "train", 600)))
    for split in ("validation", "test"):
        for task in stories(level, split):
            assert not {fact.keys[0] for fact in task.facts} & trained


def test_validation_and_test_are_worded_otherwise() -> None:
    tables = [OPENINGS, CHANGED, SMALL_TALK, RUMOURS]
    tables += [one.questions for one in (*RELATIONS.values(), *TWO_HOPS)]
    tables += [texts for _, texts in TOPICS.values()]
    for table in tables:
        assert not set(wording(table, "test")) & set(wording(table, "train"))
        assert wording(table, "validation") == wording(table, "test")


def told_before(split: Split) -> tuple[set[str], set[str]]:
    """The openings of facts, and those of what replaces one."""
    plain, changed = set[str](), set[str]()
    for task in stories("L2", split, 600):
        new = {one.new.text for one in task.changes if one.new is not None}
        for fact in (*task.facts, *(one.stale for one in task.changes)):
            for message in task.messages:
                if message.lower().endswith(fact.text.lower()):
                    (changed if fact.text in new else plain).add(message[: -len(fact.text)])
    return plain, changed


def test_in_training_the_words_before_a_fact_do_not_tell_whether_it_changes_another() -> None:
    plain, changed = told_before("train")
    assert plain == changed == {*OPENINGS["train"], *CHANGED["train"]}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_outside_training_a_change_is_told_as_one(split: Split) -> None:
    plain, changed = told_before(split)
    assert plain == set(OPENINGS["test"])
    assert changed == set(CHANGED["test"])


@each_level
@each_split
def test_nobody_knows_in_at_most_one_story_of_twenty_and_in_one_of_five_of_training(level: str, split: Split) -> None:
    unknown = sum(task.answer == UNKNOWN for task in stories(level, split, 1000))
    assert unknown <= (0.2 if split == "train" else 0.05) * 1000
    assert bool(unknown) == (LEVELS[level].taken_back > 0)


@each_level
def test_a_value_belongs_to_one_fact_alone(level: str) -> None:
    for task in stories(level):
        every = [*task.facts, *(change.stale for change in task.changes)]
        values = [fact.keys[2] for fact in every]
        assert len(set(values)) == len(values), task
        about = [fact.keys[:2] for fact in task.facts]
        assert len(set(about)) == len(about), task


@each_level
@each_split
def test_neither_distractors_nor_memories_of_others_state_a_fact_of_the_story(level: str, split: Split) -> None:
    for task in stories(level, split, 600):
        every = [*task.facts, *(change.stale for change in task.changes)]
        for text in (*task.distractors, *task.background):
            assert not [fact for fact in every if holds(text, fact)], (text, task)


@each_level
def test_gold_facts_are_true_at_the_end_and_hold_the_answer(level: str) -> None:
    for task in stories(level):
        assert set(task.gold) <= set(task.facts)
        assert not [fact for fact in task.facts for change in outdated(task) if is_stale(fact.text, change)]
        if task.answer == UNKNOWN:
            assert not task.gold
            continue
        assert task.gold[-1].keys[2] == task.answer
        assert task.gold[-1].text == relation_of(task).state(task.gold[-1].keys[0], task.answer)
        assert task.gold[0].keys[0] in task.query
        assert [fact.keys[2] for fact in task.gold[:-1]] == [fact.keys[0] for fact in task.gold[1:]]


@each_level
def test_a_level_asks_the_kinds_of_questions_that_it_is_for(level: str) -> None:
    kinds = Counter(task.labels["kind"] for task in stories(level))
    expected = {
        "L1": {"one hop"},
        "L2": {"one hop", "changed", "taken back"},
        "L3": {"one hop", "changed", "taken back", "two hops"},
    }
    assert set(kinds) == expected[level]
    assert all(task.labels["level"] == level for task in stories(level))
    assert min(kinds["one hop"], kinds["changed"] or TOLD, kinds["two hops"] or TOLD) > 0.15 * TOLD


def test_a_level_that_there_is_not_is_told_which_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no level 'L4'.*L1, L2, L3"):
        Stories("L4")


def test_a_difficulty_of_ones_own_needs_no_level() -> None:
    task = Stories("mine", Difficulty(facts=(2, 2), small_talk=(0, 0), distractors=(0, 0))).task(
        "train", seed=1, number=0
    )
    assert (len(task.messages), task.distractors, task.labels["level"]) == (2, (), "mine")


def test_a_story_longer_than_there_are_names_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="more values of the kind"):
        Stories("long", Difficulty(facts=(60, 60))).task("train", seed=1, number=0)
