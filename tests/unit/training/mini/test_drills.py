"""Drills: answered from what they show, in the form of real episodes, and about the right names."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, get_args

import pytest
from tests.unit.training.mini.forms import Form, form_of, turn_form
from tests.unit.training.untrained import SYSTEM

from agemem_policies.agent import Agent
from agemem_policies.protocol import parse
from agemem_policies.session import SessionContext
from agemem_training.environment import Rules
from agemem_training.loading import shipped_warm_start
from agemem_training.mini.dates import YEARS
from agemem_training.mini.demonstrator import EXPERT, Demonstrator
from agemem_training.mini.drills import Skill, drill
from agemem_training.mini.warm_start import demonstrate
from agemem_training.tasks.synthetic import LEVELS, Stories
from agemem_training.tasks.synthetic.language import (
    CHANGED,
    OPENINGS,
    RELATIONS,
    SMALL_TALK,
    TOPICS,
    TWO_HOPS,
    about_tokens,
)
from agemem_training.tasks.synthetic.names import FOODS, MONTHS, PARTS, practice_tails, split_of_name
from agemem_training.worlds import WorldSettings, in_process

if TYPE_CHECKING:
    from agemem_policies.memory import MemoryTools
    from agemem_policies.protocol import Turn
    from agemem_policies.steps import Step
    from agemem_training.mini.scene import Exchange
    from agemem_training.tasks.source import Split
    from agemem_training.tasks.task import Task

SKILLS: tuple[Skill, ...] = get_args(Skill)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LINE = re.compile(r"^\[(mem_\d+)\] \([^)]*\) (.*)$", re.MULTILINE)
DAY = re.compile(r"^\[mem_\d+\] \((\d{4}-\d\d-\d\d),", re.MULTILINE)
UPDATED = re.compile(r'"Update_memory", "arguments": {"memory_id": "(mem_\d+)", "content": "([^"]+)"')
DELETED = re.compile(r'"Delete_memory", "arguments": {"memory_id": "(mem_\d+)"')
HEADS = {kind: "|".join(heads) for kind, (heads, _) in PARTS.items()}
TAILS = "|".join(sorted({tail for _, tails in PARTS.values() for tail in tails}, key=len, reverse=True))
NAMES = {kind: re.compile(rf"\b({heads})({TAILS})\b") for kind, heads in HEADS.items()}


def drills_of(skill: Skill, split: Split = "train", count: int = 60) -> list[list[Exchange]]:
    return [
        drill(random.Random(f"{skill} {number}"), system=SYSTEM, split=split, skill=skill) for number in range(count)
    ]


def text_of(exchange: Exchange) -> str:
    return "\n".join(one.content for one in exchange.shown)


def last_hits(exchange: Exchange) -> dict[str, str]:
    """Memories that were shown last, by id; none where the memory is empty."""
    shown = [one.content for one in exchange.shown if one.content.startswith("<retrieved_memories>")]
    return dict(LINE.findall(shown[-1])) if shown else {}


def stated(text: str) -> tuple[str, str, str]:
    """The relation, the subject and the value of a fact."""
    for name, relation in RELATIONS.items():
        pattern = re.escape(relation.sentence).replace(r"\{s\}", r"(?P<s>\w+)").replace(r"\{v\}", "(?P<v>.+)")
        if (found := re.fullmatch(pattern, text)) is not None:
            return name, found["s"], found["v"]
    msg = f"no fact: {text}"
    raise AssertionError(msg)


def names_in(text: str) -> set[tuple[str, str, str]]:
    """Kind, head and tail of every name."""
    return {(kind, *found) for kind, pattern in NAMES.items() for found in pattern.findall(text)}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("skill", SKILLS)
def test_every_turn_of_a_drill_is_in_exactly_the_form_of_the_protocol(skill: Skill, split: Split) -> None:
    for exchanges in drills_of(skill, split):
        assert exchanges
        for exchange in exchanges:
            parse(exchange.turn, strict=True)
            assert exchange.shown[0].role == "system"
            assert exchange.shown[0].content == SYSTEM
            assert exchange.shown[-1].role == "user"


@pytest.mark.parametrize("skill", SKILLS)
def test_each_turn_of_a_drill_is_shown_to_the_next(skill: Skill) -> None:
    for exchanges in drills_of(skill, count=20):
        for before, after in pairwise(exchanges):
            assert after.shown[: len(before.shown)] == before.shown
            written = after.shown[len(before.shown)]
            assert (written.role, written.content) == ("assistant", before.turn)


def test_what_is_stored_was_just_told() -> None:
    stored = 0
    for exchanges in drills_of("add"):
        for told, done in pairwise(exchanges):
            if "Add_memory" not in told.turn:
                continue
            stored += 1
            (call,) = parse(told.turn, strict=True).calls
            content = str(call.arguments["content"])
            said = next(one.content for one in reversed(told.shown) if not one.content.startswith("<"))
            assert said.lower().endswith(content.lower())
            assert content not in last_hits(told).values()
            assert parse(done.turn, strict=True).answer == "ok" or _clears(parse(done.turn, strict=True))
            assert re.match(r"<tool_response>\nStored as mem_\d+\.\n", done.shown[-1].content)
            close = re.findall(r"^- (mem_\d+) \(0\.\d\d\) (.*)$", done.shown[-1].content, re.MULTILINE)
            # What the server names as close are memories of the same kind, and none of them is the new one.
            assert all(_stated(text)[1] == _stated(content)[1] and text != content for _, text in close)
    assert stored > 60


@pytest.mark.parametrize("skill", ["update", "delete"])
def test_what_is_changed_or_deleted_is_the_memory_of_the_stale_fact(skill: Skill) -> None:
    for exchanges in drills_of(skill):
        change, done = exchanges[-2:]
        turn = parse(change.turn, strict=True)
        (call,) = turn.calls
        number = str(call.arguments["memory_id"])
        stale = last_hits(change)[number]
        # The thought spells the memory that is meant and then its id, as a crutch for a small policy.
        assert turn.think == f"{stale.removesuffix('.')} {number}"
        said = next(one.content for one in reversed(change.shown) if not one.content.startswith("<"))
        subject, relation = _stated(stale)
        if skill == "update":
            assert str(call.arguments["content"]).lower() in said.lower()
            assert _stated(str(call.arguments["content"])) == (subject, relation)
            updated = rf"<tool_response>\nUpdated {number} \(version [2-5]\)\. Before: {re.escape(stale)}"
            assert re.match(updated, done.shown[-1].content)
        else:
            assert call.arguments["confirmation"] is True
            assert subject in said
            assert f" {RELATIONS[relation].mark} " in f" {said} " or RELATIONS[relation].mark in said
            assert f"Deleted {number}." in done.shown[-1].content


def _stated(sentence: str) -> tuple[str, str]:
    """About whom a sentence is, and what it says of them."""
    for relation in RELATIONS.values():
        pattern = re.escape(relation.sentence).replace(r"\{s\}", r"(\w+)").replace(r"\{v\}", r"[\w ]+")
        if (found := re.fullmatch(pattern, sentence)) is not None:
            return found[1], relation.name
    raise AssertionError(sentence)


@pytest.mark.parametrize(("skill", "look_ups"), [("answer", 1), ("two hops", 2)])
def test_an_answer_stands_in_the_memory_that_was_looked_up_last(skill: Skill, look_ups: int) -> None:
    for everything in drills_of(skill):
        exchanges = everything[-1 - look_ups :]
        answered = exchanges[-1]
        assert "Retrieve_memory" not in "".join(one.turn for one in everything[: -1 - look_ups])
        subject, value = None, None
        for exchange, after in pairwise(exchanges):
            (call,) = parse(exchange.turn, strict=True).calls
            query = str(call.arguments["query"])
            # Whom it looks for stands in the question, or in what was found before.
            subject = next(head + tail for _, head, tail in names_in(query))
            assert subject in text_of(exchange)
            assert value in (None, subject)
            found = [text for text in last_hits(after).values() if _answers(query, text)]
            assert len(found) == 1
            value = re.fullmatch(r".* (?:is|in|at|likes) ([\w ]+)\.", found[0])[1]  # pyright: ignore[reportOptionalSubscript]  every fact is told so
        turn = parse(answered.turn, strict=True)
        assert turn.answer == value
        assert turn.think + "." in last_hits(answered).values()


def _answers(query: str, text: str) -> bool:
    return any(
        text.startswith(before.format(s=subject)) and query == relation.lookup.format(s=subject)
        for relation in RELATIONS.values()
        for subject in [head + tail for _, head, tail in names_in(query)]
        for before in [relation.sentence.partition("{v}")[0]]
    )


def test_small_talk_needs_nothing() -> None:
    for (exchange,) in drills_of("small talk"):
        assert parse(exchange.turn, strict=True).answer == "ok"


def test_what_no_memory_tells_is_unknown() -> None:
    for exchanges in drills_of("unknown"):
        looked, answered = exchanges[-2:]
        query = str(parse(looked.turn, strict=True).calls[0].arguments["query"])
        assert last_hits(answered)
        assert not any(_answers(query, text) for text in last_hits(answered).values())
        assert parse(answered.turn, strict=True).answer == "unknown"


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_context_is_cleared_as_soon_as_it_is_too_full_and_not_before(split: Split) -> None:
    cleared = {256: 0, 384: 0}
    for exchanges in drills_of("clear", split):
        # Small talk goes earlier than facts, which go when they are stored.
        limit = 384 if any("_memory" in one.turn for one in exchanges) else 256
        for exchange in exchanges:
            if "_memory" in exchange.turn:
                continue
            used = about_tokens(one.content for one in exchange.shown)
            assert _clears(parse(exchange.turn, strict=True)) == (used >= limit)
            cleared[limit] += used >= limit
    # Some end before there is so much to clear, and are not cleared at all.
    assert 15 <= cleared[256] <= 45
    assert 3 <= cleared[384] <= 20


def test_what_is_known_already_is_shown_again_under_its_id() -> None:
    again = 0
    for exchanges in drills_of("two hops"):
        shown = [LINE.findall(one.content) for one in exchanges[-1].shown]
        lines = [line for found in shown for line in found]
        if any("Update_memory" in one.content for one in exchanges[-1].shown):
            continue
        assert len({number for number, _ in lines}) == len(set(lines))
        again += len(lines) > len(set(lines))
    assert again > 30


def test_what_was_changed_is_shown_as_it_is_now() -> None:
    changed = gone = 0
    for exchanges in drills_of("answer", count=600):
        holds: dict[str, str] = {}
        for message in exchanges[-1].shown:
            for number, text in LINE.findall(message.content):
                assert holds.setdefault(number, text) == text
            if (update := UPDATED.search(message.content)) is not None:
                changed += 1
                holds[update[1]] = update[2]
            if (deleted := DELETED.search(message.content)) is not None:
                gone += 1
                # Nothing is true of it any more, so it must not come again.
                holds[deleted[1]] = "deleted"
    assert changed > 20
    assert gone > 20


def test_nobody_has_two_birthdays() -> None:
    alike = 0
    for skill in SKILLS:
        for exchanges in drills_of(skill):
            for message in exchanges[-1].shown:
                told = [stated(text) for _, text in LINE.findall(message.content)]
                assert len({(relation, subject) for relation, subject, _ in told}) == len({*told})
                alike += len({subject for _, subject, _ in told}) < len({*told})
    assert alike > 100


def test_what_is_told_is_at_times_about_somebody_of_whom_something_was_told() -> None:
    again = 0
    for exchanges in drills_of("add", count=200):
        calls = [call for one in exchanges for call in parse(one.turn).calls if call.name == "Add_memory"]
        pairs = [stated(str(call.arguments["content"]))[:2] for call in calls]
        assert len(set(pairs)) == len(pairs)
        again += len({subject for _, subject in pairs}) < len(pairs)
    assert again > 10


def test_questions_are_asked_with_and_without_memories_before_them_and_after_other_messages() -> None:
    first = [exchanges[0] for exchanges in drills_of("answer")]
    assert {bool(last_hits(one)) for one in first} == {True, False}
    assert {"Retrieve_memory" in one.turn for one in first} == {True, False}


@pytest.mark.parametrize("skill", SKILLS)
def test_practice_has_no_name_of_a_held_out_split(skill: Skill) -> None:
    for exchanges in drills_of(skill, count=100):
        for kind, head, tail in names_in(text_of(exchanges[-1]) + exchanges[-1].turn):
            assert tail in practice_tails(kind, head)  # pyright: ignore[reportArgumentType]  a kind of PARTS
            assert tail not in dict(PARTS)[kind][1] or split_of_name(head + tail) == "train"  # pyright: ignore[reportArgumentType]  as above


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("skill", SKILLS)
def test_what_is_measured_has_names_of_its_own_split_alone(skill: Skill, split: Split) -> None:
    for exchanges in drills_of(skill, split):
        names = names_in(text_of(exchanges[-1]) + exchanges[-1].turn)
        assert names or skill == "small talk"
        assert {split_of_name(head + tail) for _, head, tail in names} <= {split}


@pytest.mark.parametrize("skill", SKILLS)
def test_the_wording_of_what_is_measured_is_never_practised(skill: Skill) -> None:
    forms = [OPENINGS, CHANGED, SMALL_TALK, *(one.questions for one in (*RELATIONS.values(), *TWO_HOPS))]
    forms += [texts for _, texts in TOPICS.values()]
    held_out = [text.partition("{")[0] for one in forms for text in set(one["test"]) - set(one["train"])]
    openings = tuple(text for text in held_out if text)
    practised = [exchange for exchanges in drills_of(skill, count=100) for exchange in exchanges]
    measured = [exchange for exchanges in drills_of(skill, "test", count=100) for exchange in exchanges]
    assert not any(_said(one).startswith(openings) for one in practised)
    assert all(_said(one).startswith(openings) for one in measured)


def _said(exchange: Exchange) -> str:
    return next(one.content for one in exchange.shown if one.role == "user")


def test_all_skills_are_drilled_and_the_same_seed_gives_the_same_drills() -> None:
    first = [drill(random.Random(number), system=SYSTEM) for number in range(100)]
    assert first == [drill(random.Random(number), system=SYSTEM) for number in range(100)]
    forms = {turn_form(exchange.turn).partition("(")[0] for exchanges in first for exchange in exchanges}
    assert forms == {
        "Add_memory", "Update_memory", "Delete_memory", "Retrieve_memory", "Summary_context", "Filter_context",
        "answer", "ok",
    }  # fmt: skip


def test_every_value_and_kind_of_name_is_practised() -> None:
    text = "\n".join(
        text_of(exchange)
        for skill in SKILLS
        for exchanges in drills_of(skill, count=150)
        for exchange in exchanges[-1:]
    )
    names = names_in(text)
    for kind, (heads, _) in PARTS.items():
        assert {head for one, head, _ in names if one == kind} == set(heads)
    assert all(re.search(rf"\b{word}\b", text) for word in (*FOODS, *MONTHS))


async def real_forms() -> set[tuple[Form, str]]:
    """What a policy is shown and what it should write, in episodes on the real server."""
    rules = Rules(system=SYSTEM, recalled=2, max_rounds=60, answer_tokens=0)
    world = WorldSettings(budget_tokens=4000, tokenizer="estimate", ids="sequential", extra={"embedding": "none"})
    wanted = replace(LEVELS["L2"], two_hops=0.5, changes=(2, 3), facts=(4, 5), small_talk=(1, 2))
    stories = Stories("forms", wanted)
    episodes = await demonstrate(stories, 24, world, rules, habits="expert", seed=1)
    steps = [step for one in episodes for step in one.steps]
    tight = replace(world, budget_tokens=512, tokenizer=str(shipped_warm_start() / "tokenizer.json"))
    full = await demonstrate(Stories("L3"), 12, tight, rules, habits="expert", seed=1)
    full += await demonstrate(Stories("full", replace(wanted, facts=(7, 8))), 12, tight, rules, habits="expert", seed=1)
    # What comes after has no message that the user wrote, as all were cleared.
    steps += [step for one in full for step in one.steps if step.turn is not None and _clears(step.turn)]
    async with in_process(world, seed=1) as memory:
        for number in range(12):
            async with memory.tools(f"chat-{number}") as tools:
                steps += await chatted(stories.task("train", seed=2, number=number), tools, rules)
    return {(form_of(step.prompt.messages), turn_form(step.completion.text)) for step in steps}


def _clears(turn: Turn) -> bool:
    return any(call.name in {"Filter_context", "Summary_context"} for call in turn.calls)


async def chatted(task: Task, tools: MemoryTools, rules: Rules) -> list[Step]:
    """The expert's steps in a chat, where memories are shown with every message."""
    context = SessionContext(tools)
    expert = Demonstrator(task, EXPERT, random.Random(1), budget_tokens=4000)
    agent = Agent(expert, tools, replace(rules.options(), recalled=2))
    said = (*task.messages, *task.distractors, task.query)
    return [step for message in said for step in (await agent.run(message, context=context)).steps]


async def test_what_drills_show_has_the_very_form_of_what_an_agent_shows() -> None:
    real = await real_forms()
    beginnings = {form[:2] for form, _ in real}
    for skill in SKILLS:
        for exchanges in drills_of(skill):
            for exchange in exchanges:
                form, turn = form_of(exchange.shown), turn_form(exchange.turn)
                assert form[:2] in beginnings
                assert (form, turn) in real or (_shown_nothing_unasked(form), turn) in real


def _shown_nothing_unasked(form: Form) -> Form:
    """A form without the memories that a chat shows with what is said."""
    said, hits = ("user", "said"), ("user", "hits")
    return (said, *form[2:]) if form[:2] == (said, hits) else form


def test_memories_are_of_any_day_and_at_times_of_several() -> None:
    several, days = 0, set[str]()
    for number in range(1500):
        exchange = drill(random.Random(number), system=SYSTEM, skill="answer")[-1]
        shown = [day for message in exchange.shown for day in DAY.findall(message.content)]
        days |= set(shown)
        several += len(set(shown)) > 1
    assert {day[-2:] for day in days} == {f"{day:02d}" for day in range(1, 32)}
    assert {day[:4] for day in days} == {str(year) for year in YEARS}
    assert 400 < several < 1100
