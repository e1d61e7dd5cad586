"""How sure figures are: 95 % intervals.

.. code-block:: text

    share of successes  Wilson's score interval: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    mean                the percentile bootstrap over the episodes
    before and after    the same over the differences, task by task: both were measured on the same tasks

The bootstrap is drawn from a seed that is always the same: the same figures have the same interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

FloatN: TypeAlias = NDArray[np.float64]

CONFIDENCE = 0.95
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_RESAMPLES = 4000
_SEED = 2601
_ROUNDING = 1e-9
"""Figures are of the order of 1 and more: a smaller difference is one of rounding errors."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and where its true value lies, in 95 cases of 100."""

    estimate: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether all of it is: of a difference, a rise outside the interval."""
        return self.low > _ROUNDING

    @property
    def negative(self) -> bool:
        """Whether the figure itself is below 0, however sure that is."""
        return self.estimate < -_ROUNDING

    @property
    def below_zero(self) -> bool:
        """Whether all of it is: of a difference, a fall outside the interval."""
        return self.high < -_ROUNDING


def wilson(successes: int, n: int) -> Interval:
    """The interval of a share.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n == 0:
        msg = f"{successes} successes of {n} are no share"
        raise ValueError(msg)
    share = successes / n
    centre = share + _Z**2 / (2 * n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    return Interval(share, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def mean_interval(values_N: Sequence[float]) -> Interval:
    """The interval of a mean; a single value says nothing about it, so its interval is endless.

    Raises:
        ValueError: there are no values.
    """
    values = np.asarray(values_N, dtype=np.float64)
    if not len(values):
        msg = "no values have no mean"
        raise ValueError(msg)
    mean = fmean(values_N)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    # Resampled around the mean: values that are all the same have an interval of no width, free of rounding errors.
    deviations = _resampling(len(values)) @ (values - mean)
    low, high = np.quantile(deviations, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, mean + float(low), mean + float(high))


def difference_interval(before_N: Sequence[float], after_N: Sequence[float]) -> Interval:
    """The interval of a mean difference, after minus before, over the same N tasks in the same order.

    Raises:
        ValueError: there are no values, or not as many before as after.
    """
    return mean_interval([after - before for before, after in zip(before_N, after_N, strict=True)])


@lru_cache(maxsize=4)
def _resampling(n: int) -> FloatN:
    """How much each of N values weighs in each of the resamples: ``weights_R_N @ values_N`` are R means."""
    rng = np.random.default_rng([_SEED, n])
    return rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
