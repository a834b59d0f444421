"""Intervals: known values, and what must hold whatever the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debug.statistics import Interval, bootstrap_mean, wilson


def test_wilson_gives_the_textbook_interval():
    interval = wilson(
        8, 10
    )  # z = 1.96: centre (8 + z²/2) / (10 + z²), half width z sqrt(10 * .8 * .2 + z²/4) / (10 + z²)
    assert interval.estimate == 0.8
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_a_rate_and_a_mean_read_as_in_a_paper():
    assert str(wilson(194, 200)) == "97.0% [93.6, 98.6] (n=200)"
    assert str(Interval(0.8, None, None, 1, is_rate=True)) == "80.0% no interval (n=1)"
    assert str(Interval(0.8125, 0.79, 0.836, 50)) == "0.812 [0.790, 0.836] (n=50)"


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_stays_a_rate(counts):
    interval = wilson(*counts)
    assert 0 <= interval.low <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= interval.high <= 1


def test_a_perfect_score_is_not_certainty():
    assert wilson(20, 20).low < 0.9


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_rate_that_cannot_be_is_refused(successes, n):
    with pytest.raises(ValueError, match="n of 1 or more"):
        wilson(successes, n)


def test_bootstrap_interval_narrows_as_the_root_of_n_and_is_repeatable():
    draws = np.random.default_rng(0).normal(3, 1, 6400)
    small, large = bootstrap_mean(draws[:64]), bootstrap_mean(draws)
    assert (small.high - small.low) / (large.high - large.low) == pytest.approx(10, rel=0.3)
    assert bootstrap_mean(draws) == large
    assert large.high - large.low == pytest.approx(2 * 1.96 / 80, rel=0.1)


def test_constants_have_no_width_and_one_value_has_no_interval():
    assert bootstrap_mean([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5, 3)
    assert bootstrap_mean([0.5]) == Interval(0.5, None, None, 1)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")]])
def test_values_that_have_no_mean_are_refused(values):
    with pytest.raises(ValueError, match="expected \\[n\\]"):
        bootstrap_mean(values)
