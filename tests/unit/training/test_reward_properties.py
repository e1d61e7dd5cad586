"""What holds of the reward of any episode."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.training.building import LEAVES, LIVES, MOVES, OSLO, ROME, TEA, Story

from agemem_policies.steps import StopReason
from agemem_training.record import REASONING
from agemem_training.rewards import RewardSettings, reward

if TYPE_CHECKING:
    from tests.unit.training.building import Done

    from agemem_training.record import Episode
    from agemem_training.tasks import Task

TEXTS = st.sampled_from([OSLO.text, ROME.text, TEA.text, "Nice weather.", "Maya moved from Oslo to Rome."])
MOVES_OF_A_POLICY = st.tuples(
    st.sampled_from(["add", "update", "delete", "retrieve", "filter", "summarise", "fail", "stage", "says"]),
    TEXTS,
    st.integers(0, 1300),
)


def played(task: Task, moves: list[tuple[str, str, int]], answer: str | None, used: int) -> Episode:
    """An episode of any moves; those on an entry that is not there fail."""
    story = Story(task)
    for number, (what, text, tokens) in enumerate(moves):
        live = [one for one, record in story.heads.items() if not record.deleted]
        if what == "says":
            story.says(text)
        elif what == "stage":
            story.stage(min(REASONING, story.now_in + 1))
        else:
            story.turn(call_of(story, what, text, live, number), tokens=tokens)
    return story.end(StopReason.MAX_ROUNDS, used=used) if answer is None else story.answer(answer, used=used)


def call_of(story: Story, what: str, text: str, live: list[str], number: int) -> Done:  # noqa: PLR0911  one return per call
    """Make one call."""
    match what:
        case "add":
            return story.add(f"mem_{number}", text)
        case "update" if live:
            return story.update(live[0], text)
        case "delete" if live:
            return story.delete(live[0])
        case "retrieve":
            return story.retrieve(*live[:3])
        case "filter":
            return story.filter(text)
        case "summarise":
            return story.summarise(text)
        case _:
            return story.fails("Update_memory", memory_id="mem_x", content=text)


@given(
    st.sampled_from([LIVES, MOVES, LEAVES]),
    st.lists(MOVES_OF_A_POLICY, max_size=12),
    st.none() | st.sampled_from(["Oslo", "in Rome", "unknown"]),
    st.integers(0, 1300),
)
def test_every_episode_has_a_bounded_reward_that_is_the_same_each_time(
    task: Task, moves: list[tuple[str, str, int]], answer: str | None, used: int
) -> None:
    episode = played(task, moves, answer, used)
    result = reward(episode)
    assert result == reward(played(task, moves, answer, used))
    for terms in (result.paper, result.strict):
        for name in ("compression", "preventive", "preservation", "storage", "maintenance", "relevance"):
            assert 0 <= getattr(terms, name) <= 1, name
        assert -1 <= terms.task <= 1
        assert terms.total <= 1
    assert result.paper.total >= -1 / 3 - 1.5
    assert result.strict.total >= -1 / 3 - 1.5 - 0.02 * len(moves)
    assert abs(reward(episode, RewardSettings("released")).total) <= 1
    assert all(math.isfinite(figure) for figure in result.figures().values())
