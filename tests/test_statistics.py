"""Intervals: known values, and what must hold whatever the numbers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from debug.statistics import Comparison, Interval, bootstrap_mean, bootstrap_means, holm, mcnemar, wilson


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


def test_constants_that_may_be_anything_and_a_single_value_have_no_interval():
    assert bootstrap_mean([2.5, 2.5, 2.5]) == Interval(2.5, None, None, 3)
    assert bootstrap_mean([0.1 + 0.2, 0.3, 0.3]).low is None  # equal but for rounding
    assert bootstrap_mean([0.5]) == Interval(0.5, None, None, 1)
    assert bootstrap_mean([0.5], is_rate=True) == Interval(0.5, None, None, 1, True)


@pytest.mark.parametrize("n", [3, 10, 50, 200])
@pytest.mark.parametrize("share", [0.0, 1.0, 0.4])
def test_constant_shares_have_the_exact_interval_of_what_n_draws_may_have_missed(n, share):
    missed = binomtest(0, n).proportion_ci(0.95, method="exact").high
    interval = bootstrap_mean([share] * n, is_rate=True)
    assert (interval.low, interval.high) == pytest.approx((share * (1 - missed), share + (1 - share) * missed))
    assert 2.9 < -n * np.log(1 - missed) < 3.7  # the rule of three, two-sided: 3.69 / n


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")]])
def test_values_that_have_no_mean_are_refused(values):
    with pytest.raises(ValueError, match="expected \\[n\\]"):
        bootstrap_mean(values)


def answers(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


def test_mcnemar_counts_only_the_programs_that_tell_two_models_apart():
    # 8 : 2, two-sided: 2 (C(10,0) + C(10,1) + C(10,2)) / 2^10
    for both, neither in ((0, 0), (500, 300)):
        assert mcnemar(*answers(both, 8, 2, neither)).p_value == pytest.approx(2 * 56 / 1024)
    compared = mcnemar(*answers(30, 8, 2, 10))
    assert (compared.difference.estimate, compared.difference.n) == (pytest.approx(6 / 50), 50)
    assert compared.difference.low < 6 / 50 < compared.difference.high
    assert str(compared).startswith("12.0% [")
    assert str(compared).endswith("(n=50), 8 : 2, p = 0.11")


def test_too_few_programs_are_warned_of_not_taken_for_no_difference():
    assert "5 of 40 programs tell them apart, too few for p < 0.05 (6 are needed)" in str(
        mcnemar(*answers(35, 5, 0, 0))
    )
    assert mcnemar(*answers(34, 6, 0, 0)).p_value < 0.05
    assert mcnemar(*answers(34, 6, 0, 0)).warning is None
    among_many = holm([mcnemar(*answers(34, 6, 0, 0))] * 10)[0]
    assert among_many.p_adjusted > 0.05
    assert "9 are needed among 10 comparisons" in among_many.warning
    assert holm([mcnemar(*answers(31, 9, 0, 0))] * 10)[0].p_adjusted < 0.05


def test_models_that_answer_alike_may_differ_elsewhere_by_what_n_leaves_open():
    z = 1.959964
    for n in (3, 50):
        same = mcnemar([True] * n, [True] * n)
        assert (same.difference.low, same.difference.high) == pytest.approx((-z * z / (n + z * z), z * z / (n + z * z)))
        assert same.p_value == 1


@pytest.mark.parametrize("second", [[True], [[True, False]], [1, 0], []])
def test_answers_to_other_programs_cannot_be_compared(second):
    with pytest.raises(ValueError, match="expected the same programs of both models"):
        mcnemar([True, False], second)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_with_bonferroni(p_values):
    """A pair's adjusted p is the largest, over all sets of pairs that hold it, of the set's size times its least p."""
    nothing = Interval(0.0, None, None, 1, True)
    adjusted = [c.p_adjusted for c in holm([Comparison(nothing, 0, 0, p) for p in p_values])]
    indices = range(len(p_values))
    sets = [set(s) for size in range(1, len(p_values) + 1) for s in combinations(indices, size)]
    closed = [max(min(1, len(s) * min(p_values[i] for i in s)) for s in sets if index in s) for index in indices]
    assert adjusted == pytest.approx(closed)


def test_a_rate_with_a_wide_interval_says_so():
    assert wilson(8, 10).warning == "n = 10 leaves 45 points open"
    assert wilson(80, 100).warning is None


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000))
def test_means_of_many_columns_are_those_of_each(n, columns, seed):
    values = np.random.default_rng(seed).normal(size=(n, columns)).round(1)
    values[:, 0] = 0.5
    for column, found in zip(values.T, bootstrap_means(values), strict=True):
        alone = bootstrap_mean(column)
        assert found.n == alone.n
        assert (found.low is None) == (alone.low is None)
        assert [found.estimate, found.low, found.high] == pytest.approx([alone.estimate, alone.low, alone.high])


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 2)), np.array([[np.nan]])])
def test_columns_without_values_have_no_means(values):
    with pytest.raises(ValueError, match=r"expected \[n, column\]"):
        bootstrap_means(values)
