"""Intervals against published values and by repetition."""

from __future__ import annotations

import math
import random

import pytest

from agemem_training.reporting.intervals import difference_interval, mean_interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_of_a_share_is_wilsons(successes: int, n: int, low: float, high: float) -> None:
    interval = wilson(successes, n)
    assert interval.estimate == successes / n
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_shares_at_the_ends_keep_within_them() -> None:
    assert wilson(0, 7).low == 0
    assert wilson(7, 7).high == pytest.approx(1)
    assert wilson(7, 7).high <= 1
    assert wilson(7, 7).low == pytest.approx(1 - wilson(0, 7).high)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_what_is_no_share_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(successes, n)


def test_the_interval_of_a_mean_is_nearly_the_normal_one_for_many_values() -> None:
    rng = random.Random(1)
    values = [rng.gauss(3, 2) for _ in range(400)]
    mean = math.fsum(values) / 400
    error = math.sqrt(math.fsum((one - mean) ** 2 for one in values) / 399 / 400)
    interval = mean_interval(values)
    assert interval.estimate == pytest.approx(mean)
    assert (interval.low, interval.high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.15 * error)


def test_the_interval_holds_the_true_mean_in_about_95_cases_of_100() -> None:
    rng = random.Random(2)
    intervals = [mean_interval([rng.gauss(0, 1) for _ in range(100)]) for _ in range(400)]
    assert 0.91 <= sum(one.low <= 0 <= one.high for one in intervals) / 400 <= 0.98


def test_the_same_values_have_the_same_interval() -> None:
    values = [random.Random(3).random() for _ in range(50)]
    assert mean_interval(values) == mean_interval(values)


def test_values_that_are_all_the_same_have_an_interval_of_no_width() -> None:
    interval = mean_interval([0.1] * 30)
    assert interval.low == interval.estimate == interval.high


def test_one_value_says_nothing_about_a_mean() -> None:
    interval = mean_interval([4.0])
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert not interval.above_zero


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no mean"):
        mean_interval([])


def test_a_small_rise_on_every_task_is_outside_the_interval_however_different_the_tasks_are() -> None:
    rng = random.Random(4)
    before = [rng.gauss(0, 10) for _ in range(100)]
    rise = difference_interval(before, [one + rng.gauss(0.3, 0.3) for one in before])
    assert rise.above_zero
    assert not rise.below_zero
    fall = difference_interval([one + 0.3 for one in before], before)
    assert fall.below_zero


def test_noise_is_within_the_interval() -> None:
    rng = random.Random(5)
    difference = difference_interval([rng.random() for _ in range(200)], [rng.random() for _ in range(200)])
    assert not difference.above_zero
    assert not difference.below_zero


def test_a_difference_takes_as_many_values_before_as_after() -> None:
    with pytest.raises(ValueError, match="longer"):
        difference_interval([1.0], [1.0, 2.0])
