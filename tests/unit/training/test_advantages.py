"""Advantages within a group."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agemem_mcp.errors import ConfigurationError, InvalidOperation
from agemem_training.advantages import group_advantages

REWARDS = st.lists(st.floats(-3, 3, allow_nan=False), min_size=2, max_size=16)


def test_an_advantage_is_the_reward_in_stds_from_the_mean() -> None:
    group = group_advantages([1.0, 2.0, 3.0], epsilon=0.0)
    assert group.advantages_G.tolist() == [-1.0, 0.0, 1.0]
    assert (group.mean, group.std, group.zero_variance) == (2.0, 1.0, False)


@pytest.mark.parametrize("rewards", [[0.5, 0.5], [0.1 + 0.2, 0.3, 0.3]])
def test_equal_rewards_give_zeros_and_are_told(rewards: list[float]) -> None:
    group = group_advantages(rewards)
    assert group.zero_variance
    assert not group.advantages_G.any()


@pytest.mark.parametrize("rewards", [[], [1.0]])
def test_a_group_of_one_has_nothing_to_be_compared_with(rewards: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="Raise the group size"):
        group_advantages(rewards)


def test_a_reward_that_is_no_number_is_named() -> None:
    with pytest.raises(InvalidOperation, match="Reward 1 of a group"):
        group_advantages([0.0, float("nan"), 1.0])


@given(REWARDS)
def test_the_advantages_of_a_group_sum_to_0_and_keep_the_order(rewards: list[float]) -> None:
    advantages = group_advantages(rewards).advantages_G
    assert abs(advantages.sum()) < 1e-5
    if advantages.any():
        order = np.argsort(rewards, kind="stable")
        assert (np.diff(advantages[order]) >= 0).all()


@given(REWARDS.filter(lambda rewards: np.std(rewards) > 1e-2), st.floats(-5, 5), st.floats(0.1, 10))
def test_shifting_and_scaling_rewards_changes_nothing(rewards: list[float], shift: float, scale: float) -> None:
    moved = [scale * reward + shift for reward in rewards]
    assert group_advantages(moved).advantages_G == pytest.approx(group_advantages(rewards).advantages_G, abs=1e-2)
