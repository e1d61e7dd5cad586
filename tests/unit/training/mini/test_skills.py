"""Skills: what drills ask for is measured, each skill apart, and who has none is given none."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from tests.unit.training.always import Always
from tests.unit.training.untrained import SYSTEM, chatty_model, mini_tokenizer, wordy_model

from agemem_policies.protocol import Call, Turn, parse, render
from agemem_training.mini.drills import drill
from agemem_training.mini.skills import SKILLS, _skills_of, measure_skills
from agemem_training.sampling import TurnSampler


def test_drills_of_the_measure_ask_for_every_skill() -> None:
    rng = random.Random(1)
    exchanges = [one for _ in range(300) for one in drill(rng, system=SYSTEM, split="test")]
    counted = Counter(skill for one in exchanges for skill, _ in _skills_of(parse(one.turn)))
    assert set(counted) == set(SKILLS)
    # Foods are the rarest: of seven kinds of fact one is about them.
    assert min(counted.values()) >= 20


@pytest.mark.parametrize(
    ("turn", "wanted"),
    [
        (Turn("new fact", (Call("Add_memory", {"content": "Tom likes tea."}),)), {"closed lists": "Tom likes tea."}),
        (
            Turn("new fact", (Call("Add_memory", {"content": "The door code of Tom is 4711."}),)),
            {"numbers": "The door code of Tom is 4711."},
        ),
        (
            Turn("new fact", (Call("Add_memory", {"content": "The birthday of Tom is 4 May."}),)),
            {"numbers": "The birthday of Tom is 4 May."},
        ),
        (Turn("new fact", (Call("Add_memory", {"content": "Tom lives in Rom."}),)), {"names": "Tom lives in Rom."}),
        (Turn("x", (Call("Add_memory", {"content": "Gibberish"}),)), {"names": "Gibberish"}),
        (
            Turn("x mem_7", (Call("Update_memory", {"memory_id": "mem_7", "content": "Tom likes tea."}),)),
            {"closed lists": "Tom likes tea.", "ids": "mem_7"},
        ),
        (Turn("x mem_7", (Call("Delete_memory", {"memory_id": "mem_7", "confirmation": True}),)), {"ids": "mem_7"}),
        (Turn("look up", (Call("Retrieve_memory", {"query": "Tom lives in"}),)), {"first query": "Tom lives in"}),
        (Turn("Tom works", (Call("Retrieve_memory", {"query": "Nex is"}),)), {"second query": "Nex is"}),
        (Turn("Tom likes tea", answer="tea"), {"answers": "tea"}),
        (Turn("nothing new", answer="ok"), {}),
        (None, {}),
    ],
)
def test_what_a_turn_copies_tells_which_skills_it_shows(turn: Turn | None, wanted: dict[str, str]) -> None:
    assert dict(_skills_of(turn)) == wanted


@pytest.mark.parametrize("make", [wordy_model, chatty_model])
def test_a_policy_that_was_never_trained_has_no_skill(make: type) -> None:
    tokenizer = mini_tokenizer()
    sampler = TurnSampler(make(), tokenizer, frozenset({tokenizer.eos_token_id}), temperature=0, max_tokens=16)
    results = measure_skills(sampler, system=SYSTEM, drills=120)
    assert [one.skill for one in results] == list(SKILLS)
    assert any(one.tried for one in results)
    assert all(one.right == 0 for one in results)
    assert measure_skills(sampler, system=SYSTEM, drills=120) == results
    assert not sampler._kept


def test_another_decision_counts_for_no_skill_and_what_cannot_be_read_is_wrong() -> None:
    def tried(text: str) -> set[str]:
        results = measure_skills(Always(text), system=SYSTEM, drills=60)  # pyright: ignore[reportArgumentType]  as much of one as is used
        assert not any(one.right for one in results)
        return {one.skill for one in results if one.tried}

    assert tried(render(Turn("new fact", (Call("Add_memory", {"content": "Tom works."}),)))) == set(SKILLS[:3])
    assert tried(render(Turn("Tom works", answer="ok"))) == set()
    assert tried("<think>new") == set(SKILLS)
