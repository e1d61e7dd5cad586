"""What episodes came to, from records of real shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.training.building import LIVES, OSLO, Story

from agemem_mcp.errors import InvalidOperation
from agemem_training.record import REASONING, Episode
from agemem_training.reporting import evaluate_figures
from agemem_training.rewards import reward


def solved(kind: str = "asked") -> Episode:
    story = Story(replace(LIVES, labels={"level": "L1", "kind": kind}))
    story.turn(story.add("mem_1", OSLO.text), tokens=100)
    story.stage(REASONING)
    story.turn(story.retrieve("mem_1"), story.fails("Update_memory"), tokens=150)
    return story.answer("Oslo", tokens=200)


def missed(kind: str = "changed") -> Episode:
    return Story(replace(LIVES, labels={"kind": kind})).answer("Paris", tokens=50)


def test_every_figure_of_a_reward_is_a_column_with_one_value_for_each_episode() -> None:
    episodes = [solved(), missed()]
    rewards = [reward(one) for one in episodes]
    figures = evaluate_figures(episodes, rewards)
    for name in rewards[0].figures():
        assert figures.columns[name] == tuple(one.figures()[name] for one in rewards)
    assert figures.successes == 1


def test_calls_are_counted_by_tool_whether_or_not_they_failed() -> None:
    episodes = [solved()]
    columns = evaluate_figures(episodes, [reward(one) for one in episodes]).columns
    assert {name: value[0] for name, value in columns.items() if name.startswith("calls/")} == {
        "calls/Add_memory": 1,
        "calls/Update_memory": 1,
        "calls/Delete_memory": 0,
        "calls/Retrieve_memory": 1,
        "calls/Summary_context": 0,
        "calls/Filter_context": 0,
    }


def test_prompt_tokens_are_those_of_all_prompts_together() -> None:
    episodes = [solved(), missed()]
    columns = evaluate_figures(episodes, [reward(one) for one in episodes]).columns
    assert columns["prompt_tokens"] == (450, 50)
    assert columns["steps"] == (3, 1)


def test_prompt_tokens_are_the_models_count_where_it_tells() -> None:
    episode = missed()
    step = episode.steps[0]
    episode.steps = [replace(step, completion=replace(step.completion, prompt_tokens=77))]
    assert evaluate_figures([episode], [reward(episode)]).columns["prompt_tokens"] == (77,)


def test_figures_of_one_kind_are_those_of_its_tasks_alone() -> None:
    episodes = [solved("asked"), missed("changed"), missed("asked")]
    figures = evaluate_figures(episodes, [reward(one) for one in episodes])
    asked = figures.of_kind("asked")
    assert len(asked) == 2
    assert asked.columns["success"] == (1, 0)
    assert asked.mean("success") == pytest.approx(0.5)


def test_mean_and_spread_of_a_column_are_those_of_its_values() -> None:
    episodes = [solved(), missed()]
    figures = evaluate_figures(episodes, [reward(one) for one in episodes])
    assert figures.means()["prompt_tokens"] == pytest.approx(250)
    assert figures.std("prompt_tokens") == pytest.approx(200 * 2**0.5)
    assert figures.of_kind("asked").std("prompt_tokens") == 0


def test_no_episodes_have_no_figures() -> None:
    with pytest.raises(InvalidOperation, match="without episodes"):
        evaluate_figures([], [])


def test_a_reward_that_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        evaluate_figures([solved(), missed()], [reward(solved())])
