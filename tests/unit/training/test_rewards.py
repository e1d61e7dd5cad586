"""Each component of the reward, and what episodes are worth."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from tests.unit.training.building import BUDGET, LEAVES, LIVES, MOVES, OSLO, ROME, TEA, Story

from agemem_mcp.domain.context import Role
from agemem_policies.steps import StopReason
from agemem_training.judges import WordJudge
from agemem_training.record import DISTRACTION, REASONING, Episode
from agemem_training.rewards import JudgeScores, RewardSettings, Terms, judged, reward
from agemem_training.tasks import Change, Task

EMPTY_HANDED = Task("nothing", "Where does Maya live?", "unknown", ())
"""Nothing was ever told."""


def good_episode() -> Episode:
    """All is stored, replaced, found and answered."""
    story = Story(MOVES)
    story.turn(story.add("mem_1", OSLO.text))
    story.turn(story.update("mem_1", ROME.text))
    story.turn(story.add("mem_2", TEA.text))
    story.stage(DISTRACTION)
    story.says("So many towns!")
    story.turn(story.filter("So many towns!"), tokens=700)
    story.stage(REASONING)
    story.says(MOVES.query)
    story.turn(story.retrieve("mem_1"))
    return story.answer("Rome", used=250)


def test_a_perfect_episode_lacks_only_what_its_context_costs() -> None:
    result = reward(good_episode())
    assert result.success
    assert result.strict.compression == 0.75
    for terms in (result.paper, result.strict):
        assert (terms.preventive, terms.preservation, terms.maintenance, terms.relevance) == (1, 1, 1, 1)
    # Of the two entries, one is for the query.
    assert (result.paper.storage, result.strict.storage) == (0.5, 1.0)
    assert result.strict.total == pytest.approx((1 + 2.75 / 3 + 1) / 3)
    assert result.paper.total == pytest.approx((1 + 2.75 / 3 + 2.5 / 3) / 3)


def test_the_total_is_that_of_the_variant_and_both_are_told() -> None:
    totals = {one: reward(good_episode(), RewardSettings(variant=one)) for one in ("paper", "strict", "answer")}
    assert totals["paper"].total == totals["strict"].paper.total
    assert totals["strict"].total == totals["paper"].strict.total
    assert totals["answer"].total == 1.0


def test_the_released_weights_count_calls_with_an_effect_and_are_clipped() -> None:
    story = Story()
    story.turn(story.add("mem_1", OSLO.text), story.fails("Update_memory"))
    story.stage(REASONING)
    result = reward(story.answer(used=0), RewardSettings(variant="released"))
    assert result.tools == 0.5
    # Context: compressed, nothing prevented, Maya nowhere. Memory: stored, nothing changed, nothing retrieved.
    assert result.total == pytest.approx(0.5 * 1 + 0.2 * 0.5 + 0.15 * 1 / 3 + 0.15 * 1 / 3)
    worst = Story().end(StopReason.MAX_ROUNDS, used=2000)
    assert reward(worst, RewardSettings(variant="released")).total == -1.0


def test_a_total_is_clipped_where_it_is_asked_for() -> None:
    worst = Story().end(StopReason.MAX_ROUNDS)
    assert reward(worst, RewardSettings("paper")).total < -0.5
    assert reward(worst, RewardSettings("paper", clip=0.5)).total == -0.5


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_no_answer_costs_1_and_its_short_context_earns_nothing(answer: str | None) -> None:
    episode = Story().end(StopReason.ANSWER if answer is not None else StopReason.MAX_TOKENS, used=0)
    episode.answer = answer
    result = reward(episode, RewardSettings("answer"))
    assert (result.total, result.success) == (-1.0, False)
    assert result.paper.compression == result.strict.compression == 0.0


def test_a_partly_right_answer_is_worth_its_f1_and_no_success() -> None:
    result = reward(Story().answer("in Oslo"))
    assert result.strict.task == pytest.approx(2 / 3)
    assert not result.success


@pytest.mark.parametrize("reason", [StopReason.MAX_ROUNDS, StopReason.REPEATED_CALLS, StopReason.MAX_CALLS])
def test_running_out_of_rounds_costs_1(reason: StopReason) -> None:
    terms = reward(Story().end(reason)).paper
    assert (terms.penalty_rounds, terms.penalty_overflow) == (-1.0, 0.0)


def test_going_over_the_budget_costs_a_half_once_however_it_ended() -> None:
    story = Story()
    story.turn(tokens=BUDGET + 1)
    story.turn(tokens=BUDGET + 1)
    assert reward(story.answer()).paper.penalty_overflow == -0.5
    assert reward(Story().end(StopReason.CONTEXT_OVERFLOW)).paper.penalty_overflow == -0.5
    story = Story()
    story.turn(tokens=BUDGET)
    assert reward(story.answer()).paper.penalty_overflow == 0.0


def test_both_penalties_can_apply() -> None:
    story = Story()
    story.turn(tokens=BUDGET + 1)
    settings = RewardSettings(rounds_penalty=2.0, overflow_penalty=0.25)
    terms = reward(story.end(StopReason.MAX_ROUNDS), settings).paper
    assert terms.penalty_rounds + terms.penalty_overflow == -2.25


def test_prevention_after_the_limit_was_reached_is_none() -> None:
    story = Story()
    story.turn(tokens=BUDGET + 1)
    story.turn(story.filter("x"), tokens=BUDGET)
    assert reward(story.answer()).paper.preventive == 0.0


def test_a_reduction_that_was_due_and_not_made_earns_nothing() -> None:
    story = Story()
    story.turn(tokens=600)
    assert reward(story.answer()).strict.preventive == 0.0


def test_a_short_episode_needs_no_reduction() -> None:
    story = Story()
    story.turn(tokens=500)
    # Nothing can overflow after the answer.
    assert reward(story.answer(tokens=900)).strict.preventive == 1.0


def test_a_summary_that_frees_nothing_prevents_nothing() -> None:
    story = Story()
    story.turn(story.summarise("long-winded", left=600), tokens=600)
    result = reward(story.answer())
    assert (result.strict.preventive, result.paper.preventive) == (0.0, 1.0)
    assert result.strict.no_effect_calls == 1


def test_a_summary_is_measured_against_the_context_just_before_it() -> None:
    story = Story()
    story.background("mem_1", TEA.text)
    # The retrieval brought the context to 150.
    story.turn(story.retrieve("mem_1"), story.summarise("short", left=140), tokens=100)
    assert reward(story.answer()).strict.no_effect_calls == 0


def test_a_reduction_that_loses_a_gold_fact_earns_nothing() -> None:
    story = Story()
    story.says(OSLO.text)
    story.turn(story.filter(OSLO.text), tokens=600)
    story.turn()
    assert reward(story.answer()).strict.preventive == 0.0


def test_a_summary_that_keeps_the_gold_fact_loses_nothing() -> None:
    story = Story()
    story.says(OSLO.text)
    story.turn(story.summarise("Maya's town is Oslo."), tokens=600)
    story.turn()
    assert reward(story.answer()).strict.preventive == 1.0


def test_the_end_of_a_stage_throws_its_context_away_by_itself() -> None:
    story = Story()
    story.says(OSLO.text)
    story.turn(story.filter("chatter"), tokens=600)
    story.stage(DISTRACTION)
    story.turn()
    assert reward(story.answer()).strict.preventive == 1.0


def test_what_the_last_reduction_lost_is_seen_in_the_context_at_the_end() -> None:
    story = Story()
    story.stage(DISTRACTION)
    story.says(OSLO.text)
    story.turn(story.filter(OSLO.text), tokens=600)
    assert reward(story.end(StopReason.MAX_ROUNDS)).strict.preventive == 0.0


def test_compression_cannot_be_below_0() -> None:
    assert reward(Story().answer(used=3000)).paper.compression == 0.0


def test_a_query_without_key_items_leaves_none_to_lose() -> None:
    assert reward(Story(replace(LIVES, key_items=())).answer()).paper.preservation == 1.0


def test_what_the_assistant_says_preserves_nothing() -> None:
    story = Story()
    story.says("<answer>Maya lives in Oslo</answer>", Role.ASSISTANT)
    assert reward(story.answer()).strict.preservation == 0.0
    story.says(OSLO.text)
    assert reward(story.answer()).strict.preservation == 1.0


def test_storage_weighs_precision_and_coverage() -> None:
    story = Story()
    story.turn(story.add("mem_1", OSLO.text), story.add("mem_2", "Nice weather."), story.add("mem_3", "Good morning!"))
    # One of three entries is good, and one of two facts is stored.
    assert reward(story.answer()).strict.storage == pytest.approx(2 / (3 + 2))


def test_what_others_stored_already_need_not_be_stored_again() -> None:
    story = Story()
    story.background("mem_1", TEA.text)
    story.turn(story.add("mem_2", OSLO.text))
    assert reward(story.answer()).strict.storage == 1.0
    story.turn(story.add("mem_3", "Tom's drink is tea"))
    assert reward(story.answer()).strict.storage == pytest.approx(2 / 3)


def test_with_nothing_to_store_storing_nothing_is_right() -> None:
    assert reward(Story(EMPTY_HANDED).answer("unknown")).strict.storage == 1.0
    story = Story(EMPTY_HANDED)
    story.turn(story.add("mem_1", "Nice weather."))
    assert reward(story.answer("unknown")).strict.storage == 0.0


def test_a_deleted_entry_is_no_longer_stored_and_was_still_added() -> None:
    story = Story()
    story.turn(story.add("mem_1", "Nice weather."), story.add("mem_2", OSLO.text), story.add("mem_3", TEA.text))
    story.turn(story.delete("mem_1"))
    result = reward(story.answer())
    assert result.strict.storage == 1.0
    assert result.paper.storage == pytest.approx(1 / 3)


def test_only_the_policy_s_entries_count() -> None:
    story = Story()
    story.background("mem_1", OSLO.text)
    result = reward(story.answer())
    assert (result.paper.storage, result.strict.storage) == (0.0, 0.0)


def test_an_update_that_replaces_what_is_stale_is_maintenance() -> None:
    story = Story(MOVES)
    story.background("mem_1", OSLO.text)
    story.turn(story.update("mem_1", ROME.text))
    assert reward(story.answer()).strict.maintenance == 1.0


def test_a_retraction_is_followed_by_a_delete() -> None:
    story = Story(LEAVES)
    story.turn(story.add("mem_1", OSLO.text))
    assert reward(story.answer()).strict.maintenance == 0.0
    story.turn(story.delete("mem_1"))
    assert reward(story.answer()).strict.maintenance == 1.0


def test_a_delete_and_an_add_are_as_good_as_an_update() -> None:
    story = Story(MOVES)
    story.turn(story.add("mem_1", OSLO.text))
    story.turn(story.delete("mem_1"))
    assert reward(story.answer()).strict.maintenance == 0.0
    story.turn(story.add("mem_2", ROME.text))
    assert reward(story.answer()).strict.maintenance == 1.0


def test_a_change_of_which_a_stale_entry_is_left_was_not_made() -> None:
    story = Story(MOVES)
    story.background("mem_0", "Maya's address is in Oslo.")
    story.turn(story.add("mem_1", OSLO.text))
    story.turn(story.update("mem_1", ROME.text))
    assert reward(story.answer()).strict.maintenance == 0.0


def test_an_update_that_drops_something_true_loses_the_maintenance() -> None:
    story = Story(MOVES)
    story.turn(story.add("mem_1", "Maya lives in Oslo, and Tom drinks tea."))
    story.turn(story.update("mem_1", ROME.text))
    assert reward(story.answer()).strict.maintenance == 0.0


def test_a_background_memory_that_is_true_must_not_be_lost() -> None:
    story = Story(replace(LIVES, background=("The bakery closes at six.",)))
    story.background("mem_1", "The bakery closes at six.")
    assert reward(story.answer()).strict.maintenance == 1.0
    story.turn(story.delete("mem_1"))
    assert reward(story.answer()).strict.maintenance == 0.0


def test_half_of_the_changes_are_worth_half() -> None:
    coffee = replace(TEA, text="Tom drinks coffee.", keys=("Tom", "coffee"))
    task = replace(MOVES, facts=(ROME, coffee), changes=(Change(OSLO, ROME), Change(TEA, coffee)))
    story = Story(task)
    story.turn(story.add("mem_1", OSLO.text), story.add("mem_2", TEA.text))
    story.turn(story.update("mem_2", coffee.text))
    assert reward(story.answer()).strict.maintenance == 0.5


def test_relevance_counts_what_the_policy_retrieved_in_stage_3() -> None:
    story = Story()
    story.turn(story.add("mem_1", OSLO.text))
    story.turn(story.retrieve("mem_1"))
    assert reward(story.answer()).strict.relevance == 0.0
    story.stage(REASONING)
    story.turn(story.retrieve("mem_1"))
    assert reward(story.answer()).strict.relevance == 1.0


def test_where_nothing_is_known_one_has_to_look() -> None:
    story = Story(LEAVES)
    terms = reward(story.answer("unknown")).strict
    assert (terms.task, terms.preservation, terms.relevance) == (1.0, 0.0, 0.0)
    story.stage(REASONING)
    story.turn(story.retrieve())
    terms = reward(story.answer("unknown")).strict
    assert (terms.preservation, terms.relevance, terms.no_effect_calls) == (1.0, 1.0, 0)


def test_where_nothing_is_known_what_is_outdated_must_not_be_found() -> None:
    story = Story(LEAVES)
    story.turn(story.add("mem_1", OSLO.text))
    story.stage(REASONING)
    story.turn(story.retrieve("mem_1"))
    terms = reward(story.answer("unknown")).strict
    assert (terms.preservation, terms.relevance) == (0.0, 0.0)


def test_each_call_without_effect_costs_a_little_in_the_strict_variant() -> None:
    story = Story()
    story.turn(story.add("mem_1", OSLO.text), story.add_again("mem_1"))
    story.turn(story.update("mem_1", OSLO.text), story.fails("Delete_memory", memory_id="mem_9"))
    story.turn(story.filter(), story.retrieve())
    result = reward(story.answer())
    assert result.strict.no_effect_calls == result.paper.no_effect_calls == 5
    assert result.strict.penalty_no_effect == pytest.approx(-0.1)
    assert result.paper.penalty_no_effect == 0.0


def test_calls_that_were_not_carried_out_had_no_effect() -> None:
    story = Story()
    call, _ = story.fails("Filter_context", criteria="x")
    story.turn(story.add("mem_1", OSLO.text), (call, story.fails("x")[1]))
    step = story.episode.steps[0]
    assert step.turn is not None
    # The server told of the second call that it and all later ones were not carried out.
    story.episode.steps[0] = replace(step, turn=replace(step.turn, calls=(*step.turn.calls, call, call)))
    assert reward(story.answer()).strict.no_effect_calls == 3


async def test_judges_are_asked_about_the_answer_the_entries_and_what_was_retrieved() -> None:
    episode = good_episode()
    assert await judged(episode) == JudgeScores()
    scores = await judged(episode, answers=WordJudge(), memories=WordJudge())
    # What was added in stage 1, as it was then, tells of Rome.
    assert scores == JudgeScores(answer=1.0, storage=1.0, relevance=1.0, asked=3)
    result = reward(episode, scores=JudgeScores(answer=0.8, storage=0.1, relevance=0.2))
    assert (result.paper.task, result.paper.storage, result.paper.relevance) == (0.8, 0.1, 0.2)
    assert (result.strict.task, result.strict.storage, result.strict.relevance) == (0.8, 1.0, 0.2)


async def test_no_judge_is_asked_about_an_answer_that_was_not_given() -> None:
    scores = await judged(Story().end(StopReason.MAX_ROUNDS), answers=WordJudge())
    assert scores.answer is None


def test_all_figures_have_names() -> None:
    figures = reward(good_episode()).figures()
    assert figures["success"] == 1.0
    assert figures["total"] == figures["strict/total"]
    names = {one.name for one in fields(Terms)}
    assert {name.removeprefix("paper/") for name in figures if name.startswith("paper/")} == names
