"""Ways to be paid for nothing: each was found by a policy, or stands in released code. The strict variant pays none.

The paper's own holes are shown to be there in its variant: they are reported, not hidden.
"""

from __future__ import annotations

from dataclasses import replace

from tests.unit.training.building import LIVES, MOVES, OSLO, ROME, TEA, Story

from agemem_training.record import DISTRACTION, REASONING
from agemem_training.rewards import reward


def test_deleting_a_useful_entry_is_no_maintenance() -> None:
    story = Story()
    story.turn(story.add("mem_1", OSLO.text))
    story.turn(story.delete("mem_1"))
    result = reward(story.answer())
    assert (result.paper.maintenance, result.strict.maintenance) == (1.0, 0.0)


def test_a_filter_that_removes_nothing_prevents_nothing_and_costs() -> None:
    story = Story()
    story.turn(story.filter(), tokens=600)
    result = reward(story.answer())
    assert (result.paper.preventive, result.strict.preventive) == (1.0, 0.0)
    assert result.strict.penalty_no_effect == -0.02


def test_filtering_at_every_turn_earns_no_more_than_doing_nothing() -> None:
    busy, idle = Story(), Story()
    for number in range(6):
        text = f"chatter {number}"
        busy.says(text)
        busy.turn(busy.filter(text))
        idle.turn()
    eager, calm = reward(busy.answer()), reward(idle.answer())
    assert (eager.paper.preventive, calm.paper.preventive) == (1.0, 0.0)
    assert eager.strict.preventive == calm.strict.preventive
    assert eager.strict.total <= calm.strict.total


def test_filtering_at_every_turn_that_loses_the_fact_is_punished_also_where_none_was_due() -> None:
    story = Story()
    story.says(OSLO.text)
    story.turn(story.filter(OSLO.text))
    story.turn()
    assert reward(story.answer()).strict.preventive == 0.0


def test_the_query_in_the_context_preserves_nothing() -> None:
    story = Story()
    story.stage(REASONING)
    story.says(LIVES.query)
    result = reward(story.answer())
    assert (result.paper.preservation, result.strict.preservation) == (1.0, 0.0)


def test_a_query_that_tells_the_fact_itself_preserves_nothing() -> None:
    story = Story(replace(LIVES, query="Is it Oslo where Maya lives?", answer="yes"))
    story.says("is it OSLO, where Maya lives?")
    assert reward(story.answer("yes")).strict.preservation == 0.0


def test_adding_nothing_is_not_paid() -> None:
    result = reward(Story().answer())
    assert (result.paper.storage, result.strict.storage) == (0.0, 0.0)


def test_a_new_entry_beside_the_stale_one_is_no_update() -> None:
    beside, instead = Story(MOVES), Story(MOVES)
    for story in (beside, instead):
        story.turn(story.add("mem_1", OSLO.text), story.add("mem_2", TEA.text))
    beside.turn(beside.add("mem_3", ROME.text))
    instead.turn(instead.update("mem_1", ROME.text))
    worse, better = reward(beside.answer("Rome")).strict, reward(instead.answer("Rome")).strict
    assert (worse.maintenance, better.maintenance) == (0.0, 1.0)
    assert worse.storage < better.storage == 1.0


def test_storing_a_fact_twice_in_other_words_lowers_storage() -> None:
    once, twice = Story(), Story()
    for story in (once, twice):
        story.turn(story.add("mem_1", OSLO.text), story.add("mem_2", TEA.text))
    twice.turn(twice.add("mem_3", "Oslo is where Maya lives"))
    assert reward(twice.answer()).strict.storage < reward(once.answer()).strict.storage == 1.0


def test_a_failed_update_earns_nothing() -> None:
    story = Story(MOVES)
    story.turn(story.add("mem_1", OSLO.text))
    story.turn(story.fails("Update_memory", memory_id="mem_9", content=ROME.text))
    result = reward(story.answer("Rome"))
    assert (result.paper.maintenance, result.strict.maintenance) == (0.0, 0.0)
    assert result.strict.no_effect_calls == 1


def test_adding_a_text_again_is_no_update_though_the_ledger_writes_one() -> None:
    story = Story()
    story.turn(story.add("mem_1", OSLO.text))
    story.turn(story.add_again("mem_1"))
    assert reward(story.answer()).paper.maintenance == 0.0


def test_naming_a_tool_in_prose_is_no_call() -> None:
    prose = 'I call Filter_context, Delete_memory and Retrieve_memory: <tool_call>[{"name": "Update_memory"}]'
    told, silent = Story(), Story()
    for story, thought in ((told, prose), (silent, "")):
        story.broken(thought)
        story.turn(story.add("mem_1", OSLO.text), think=thought)
        story.stage(REASONING)
    assert reward(told.answer()) == reward(silent.answer())


def test_additions_of_stage_1_still_count_after_the_reset() -> None:
    story = Story()
    story.turn(story.add("mem_1", OSLO.text))
    story.stage(DISTRACTION)
    story.turn(story.add("mem_2", "Nice weather."))
    story.stage(REASONING)
    # The later entry is not of stage 1.
    assert reward(story.answer()).paper.storage == 1.0


def test_quality_is_neither_length_nor_the_word_important() -> None:
    story = Story()
    story.turn(
        story.add("mem_1", "This is a very important memory, important to keep: " + "the weather is nice. " * 20)
    )
    result = reward(story.answer())
    assert (result.paper.storage, result.strict.storage) == (0.0, 0.0)
    short = Story()
    short.turn(short.add("mem_1", "Maya: Oslo"))
    assert reward(short.answer()).paper.storage == 1.0
