"""Group-relative advantages (AgeMem, section 3.4).

    A_k = (r_k - mean(r)) / (std(r) + ε)        over the K trajectories of one task, std with K - 1

and every step of trajectory k gets A_k. Rewards that are all the same, but for rounding, give zeros: there is nothing
to learn from them, and dividing by their std would make a signal of rounding errors. No other deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agemem_mcp.errors import ConfigurationError, InvalidOperation

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatG: TypeAlias = NDArray[np.float64]
"""One number for each of the G trajectories of a group."""

EPSILON = 1e-6
_SAME = 1e-9
"""A smaller std is one of rounding errors: rewards are of the order of 1."""


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """The advantages of one group."""

    advantages_G: FloatG
    mean: float
    std: float
    """Of the rewards, with K - 1."""
    zero_variance: bool
    """Whether all rewards are the same: the group carries no signal."""


def group_advantages(rewards_G: Sequence[float] | FloatG, *, epsilon: float = EPSILON) -> GroupAdvantages:
    """The advantages of the trajectories of one task.

    Args:
        rewards_G: one for each trajectory.
        epsilon: added to the std.

    Raises:
        ConfigurationError: a group of one: it has nothing to be compared with.
        InvalidOperation: a reward is not a finite number.
    """
    rewards = np.asarray(rewards_G, dtype=np.float64)
    if rewards.ndim != 1 or len(rewards) < 2:  # noqa: PLR2004  two are a group
        msg = f"A group needs at least two trajectories, not {rewards.size}. Raise the group size K."
        raise ConfigurationError(msg)
    if not np.isfinite(rewards).all():
        msg = f"Reward {int(np.argmin(np.isfinite(rewards)))} of a group is not a finite number. Check what graded it."
        raise InvalidOperation(msg)
    mean, std = float(rewards.mean()), float(rewards.std(ddof=1))
    if std < _SAME:
        return GroupAdvantages(np.zeros_like(rewards), mean, std, zero_variance=True)
    return GroupAdvantages((rewards - mean) / (std + epsilon), mean, std, zero_variance=False)
