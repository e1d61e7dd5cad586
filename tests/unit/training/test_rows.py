"""Trajectories as rows of tokens, and rows as micro-batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.errors import InvalidOperation
from agemem_policies.policy import Completion, Prompt
from agemem_policies.steps import Step
from agemem_training.rows import NO_STEP, Row, merged_rows, packed, padded, step_count


def step_of(prompt: list[int], action: list[int], logprobs: list[float] | None = None) -> Step:
    given = [-0.5] * len(action) if logprobs is None else logprobs
    completion = Completion("", prompt_ids=tuple(prompt), action_ids=tuple(action), logprobs=tuple(given))
    return Step(0, Prompt(()), completion, None)


GROWING = [step_of([1, 2], [3, 4], [-0.1, -0.2]), step_of([1, 2, 3, 4, 5], [6], [-0.3]), step_of([1, 9], [7, 8, 9])]
"""The second prompt begins with the first turn; before the third the context was rewritten."""


def test_steps_whose_prompt_goes_on_from_the_last_share_a_row() -> None:
    first, second = merged_rows(GROWING, steps_in_batch=3, advantage=0.7, source="task-1/0")
    assert first.ids_T == [1, 2, 3, 4, 5, 6]
    assert first.steps_T == [NO_STEP, NO_STEP, 0, 0, NO_STEP, 1]
    assert first.logprobs_T == [0, 0, -0.1, -0.2, 0, -0.3]
    assert first.weights_T == pytest.approx([0, 0, 1 / 6, 1 / 6, 0, 1 / 3])
    assert second.ids_T == [1, 9, 7, 8, 9]
    assert second.steps_T == [NO_STEP, NO_STEP, 2, 2, 2]
    assert (second.advantage, second.source) == (0.7, "task-1/0")


def test_a_prompt_that_leaves_out_the_end_of_the_turn_begins_a_row() -> None:
    # A prompt that is only a part of what went before does not go on from it.
    assert len(merged_rows([step_of([1], [2, 3]), step_of([1, 2], [4])], steps_in_batch=2)) == 2


def test_without_merging_each_step_has_a_row() -> None:
    assert [row.ids_T for row in merged_rows(GROWING, steps_in_batch=3, merge=False)][:2] == [
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5, 6],
    ]


def test_a_step_in_which_nothing_was_written_is_left_out_and_not_counted() -> None:
    steps = [step_of([1], []), step_of([1, 2], [3])]
    assert step_count(steps) == 1
    (row,) = merged_rows(steps, steps_in_batch=1)
    assert (row.ids_T, row.steps_T, row.weights_T) == ([1, 2, 3], [NO_STEP, NO_STEP, 1], [0, 0, 1])


def test_demonstrations_have_no_logprobs() -> None:
    (row,) = merged_rows([step_of([1], [2], [])], steps_in_batch=1)
    assert row.logprobs_T[0] == 0
    assert math.isnan(row.logprobs_T[1])


@pytest.mark.parametrize("bad", [step_of([], [1]), step_of([1], [2, 3], [-0.1])])
def test_a_step_whose_tokens_do_not_fit_together_is_named(bad: Step) -> None:
    with pytest.raises(InvalidOperation, match="Step 1 of task-1/0"):
        merged_rows([step_of([1], [2]), bad], steps_in_batch=2, source="task-1/0")


STEPS = st.lists(
    st.builds(
        step_of,
        st.lists(st.integers(0, 2), min_size=1, max_size=6),
        st.lists(st.integers(0, 2), max_size=4),
    ),
    min_size=1,
    max_size=8,
)


@given(STEPS, st.booleans())
def test_weights_sum_to_1_and_each_step_weighs_the_same(steps: list[Step], merge: bool) -> None:
    count = step_count(steps)
    rows = merged_rows(steps, steps_in_batch=count, merge=merge)
    weights: dict[int, float] = {}
    for row in rows:
        for number, weight in zip(row.steps_T, row.weights_T, strict=True):
            weights[number] = weights.get(number, 0.0) + weight
    assert weights.pop(NO_STEP, 0.0) == 0.0
    assert list(weights.values()) == pytest.approx([1 / count] * count if count else [])


@given(STEPS)
def test_every_action_stands_after_its_own_prompt(steps: list[Step]) -> None:
    for row in merged_rows(steps, steps_in_batch=9):
        for number in set(row.steps_T) - {NO_STEP}:
            begin, count = row.steps_T.index(number), row.steps_T.count(number)
            assert tuple(row.ids_T[:begin]) == steps[number].completion.prompt_ids
            assert tuple(row.ids_T[begin : begin + count]) == steps[number].completion.action_ids


def rows_of(*lengths: int) -> list[Row]:
    return [Row([1] * n, [NO_STEP] * n, [0.0] * n, [0.0] * n) for n in lengths]


def test_rows_of_like_length_go_together() -> None:
    batches = packed(rows_of(2, 9, 3, 10, 2), max_tokens=20)
    assert [[len(row) for row in batch] for batch in batches] == [[10, 9], [3, 2, 2]]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60))
def test_no_micro_batch_is_too_large_unless_one_row_alone_is(lengths: list[int], max_tokens: int) -> None:
    batches = packed(rows_of(*lengths), max_tokens=max_tokens)
    assert sorted(len(row) for batch in batches for row in batch) == sorted(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= max_tokens


def test_rows_are_padded_on_the_right() -> None:
    batch = padded(merged_rows(GROWING, steps_in_batch=3, advantage=0.5, source="a"), pad_id=99)
    assert batch.ids_B_T.tolist() == [[1, 2, 3, 4, 5, 6], [1, 9, 7, 8, 9, 99]]
    assert batch.attention_B_T.sum(1).tolist() == [6, 5]
    assert np.array_equal(batch.is_action_B_T, batch.weights_B_T > 0)
    assert batch.steps_B_T[1].tolist() == [NO_STEP, NO_STEP, 2, 2, 2, NO_STEP]
    assert batch.advantages_B_T[:, 0].tolist() == [0.5, 0.5]
    assert batch.advantages_B_T[1, -1] == 0
    assert batch.sources == ("a", "a")


def test_rows_can_be_padded_to_a_length() -> None:
    assert padded(rows_of(2), length=5).ids_B_T.shape == (1, 5)
    assert padded(rows_of(6), length=5).ids_B_T.shape == (1, 6)
