"""Intervals: known values, and what must hold whatever the numbers."""

from __future__ import annotations

import re
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest, nbinom

import interval_coverage as coverage
from debug.statistics import (
    Comparison,
    Interval,
    _paired,
    _sign_flip,
    bootstrap_mean,
    bootstrap_means,
    holm,
    mcnemar,
    rate_until,
    wilson,
)
from present import present


def test_wilson_gives_the_textbook_interval():
    interval = wilson(
        8, 10
    )  # z = 1.96: centre (8 + z²/2) / (10 + z²), half width z sqrt(10 * .8 * .2 + z²/4) / (10 + z²)
    assert interval.estimate == 0.8
    assert (interval.low, interval.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_a_rate_and_a_mean_read_as_in_a_paper():
    assert str(wilson(194, 200)) == "97.0% [93.6, 98.6] (n=200)"
    assert str(Interval(0.8, None, None, 1, is_rate=True)) == "80.0% no CI (n=1)"
    assert str(Interval(0.8125, 0.79, 0.836, 50)) == "0.812 [0.790, 0.836] (n=50)"


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_stays_a_rate(counts):
    interval = wilson(*counts)
    assert 0 <= present(interval.low) <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= present(interval.high) <= 1


def test_a_perfect_score_is_not_certainty():
    assert present(wilson(20, 20).low) < 0.9


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_a_rate_that_cannot_be_is_refused(successes, n):
    with pytest.raises(ValueError, match="n of 1 or more"):
        wilson(successes, n)


def test_the_interval_of_a_mean_narrows_as_the_root_of_n_and_is_repeatable():
    draws = np.random.default_rng(0).normal(3, 1, 6400)
    small, large = bootstrap_mean(draws[:64]), bootstrap_mean(draws)
    assert (present(small.high) - present(small.low)) / (present(large.high) - present(large.low)) == pytest.approx(
        10, rel=0.3
    )
    assert bootstrap_mean(draws) == large
    assert present(large.high) - present(large.low) == pytest.approx(2 * 1.96 / 80, rel=0.1)


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
    assert present(compared.difference.low) < 6 / 50 < present(compared.difference.high)
    assert str(compared).startswith("12.0% [")
    assert str(compared).endswith("(n=50), 8 : 2, p = 0.11")


def test_too_few_programs_are_warned_of_not_taken_for_no_difference():
    assert "; 5 of 40 programs discordant, too few for p < 0.05 (6 needed)" in str(mcnemar(*answers(35, 5, 0, 0)))
    assert mcnemar(*answers(34, 6, 0, 0)).p_value < 0.05
    assert mcnemar(*answers(34, 6, 0, 0)).warning is None
    among_many = holm([mcnemar(*answers(34, 6, 0, 0))] * 10)[0]
    assert present(among_many.p_adjusted) > 0.05
    assert "9 needed among 10 comparisons" in present(among_many.warning)
    assert present(holm([mcnemar(*answers(31, 9, 0, 0))] * 10)[0].p_adjusted) < 0.05


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
    assert wilson(8, 10).warning == "n = 10: the CI is 45 points wide"
    assert wilson(80, 100).warning is None


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_means_of_many_columns_are_those_of_each(n, columns, seed, is_rate):
    rng = np.random.default_rng(seed)
    values = rng.random(size=(n, columns)).round(1)
    values[:, 0] = 0.5
    weights = rng.integers(1, 9, n)
    for column, found in zip(values.T, bootstrap_means(values, is_rate=is_rate, weights=weights), strict=True):
        alone = bootstrap_mean(column, is_rate=is_rate, weights=weights)
        assert found.n == alone.n
        assert (found.low is None) == (alone.low is None)
        assert [found.estimate, found.low, found.high] == pytest.approx([alone.estimate, alone.low, alone.high])


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros((0, 2)), np.array([[np.nan]])])
def test_columns_without_values_have_no_means(values):
    with pytest.raises(ValueError, match=r"expected \[n, column\]"):
        bootstrap_means(values)


# --- how often an interval holds the truth: the table of docs/statistics.md has all ----------------------------------

FEW, MANY = (10, 20), (50, 200)
SAMPLES = 2000  # of a simulation: a standard error of 0.5 points


@pytest.mark.parametrize("n", FEW + MANY)
@pytest.mark.parametrize("share", [0.03, 0.1, 0.5, 0.9, 0.97])
@pytest.mark.parametrize(("interventions", "correlation"), [(5, 0), (5, 0.3), (30, 0), (30, 0.3), (30, 0.8)])
def test_intervals_of_means_of_shares_hold_the_truth(n, share, interventions, correlation):
    """A percentile bootstrap held it in 45 to 90% here. Of 10 or 20 pairs with rare successes most are all 0."""
    draw = coverage.shares(share, interventions, correlation)
    assert 0.92 < coverage.of_means(draw, n, SAMPLES, is_rate=True) < (0.995 if n in FEW else 0.975)


@pytest.mark.parametrize("n", FEW + MANY)
def test_intervals_of_weighted_shares_and_of_their_differences_hold_the_truth(n):
    for share in (0.03, 0.5, 0.97):
        assert 0.915 < coverage.of_weighted(n, share, SAMPLES) < (0.995 if n in FEW else 0.975)
        draw = coverage.differences(share, 0.3)
        assert 0.93 < coverage.of_means(draw, n, SAMPLES, is_rate=True, bounds=(-1, 1)) < 0.97


@pytest.mark.parametrize("name", coverage.MEANS)
def test_intervals_of_other_means_hold_the_truth(name):
    for n in FEW:
        assert coverage.of_means(coverage.MEANS[name], n, SAMPLES) > 0.91
    for n in MANY:
        assert 0.925 < coverage.of_means(coverage.MEANS[name], n, SAMPLES) < 0.98


@pytest.mark.parametrize("share", [None, 0.3, 0.5])
def test_intervals_of_shares_of_the_whole_effect_hold_the_truth(share):
    for n in FEW + MANY:
        assert 0.91 < coverage.of_effects(n, share, SAMPLES) < 0.98


def test_wilson_intervals_hold_the_truth_as_far_as_counts_permit():
    """A count can be one of n + 1 numbers, so that coverage jumps with the share; its mean over shares does not."""
    for n, least in {10: 0.91, 20: 0.92, 50: 0.93, 200: 0.94}.items():
        found = [coverage.of_rates(n, share) for share in coverage.SHARES]
        assert min(found) > least
        assert 0.94 < np.mean(found) < 0.97
    assert max(found) < 0.97


@pytest.mark.parametrize("n", [10, 20, 50])
def test_intervals_of_paired_differences_hold_the_truth(n):
    for apart, first in product((0.05, 0.1, 0.3, 0.5, 0.97), (0.5, 0.75, 1)):
        assert coverage.of_paired(n, apart, first) > 0.91


def test_intervals_of_stopped_rates_hold_the_truth_and_their_estimate_is_unbiased():
    """Successes over trials is 0.52 for a rate of 0.30 with one success wanted."""
    for wanted, most, share in product((1, 2, 5), (5, 60), (0.03, 0.3, 0.9)):
        n, k = np.arange(wanted, most + 1), np.arange(wanted)
        outcomes = [(nbinom.pmf(m - wanted, wanted, share), rate_until(wanted, int(m), wanted)) for m in n]
        chance = [np.exp(coverage.stats.binom.logpmf(each, most, share)) for each in k]
        outcomes += [(p, rate_until(int(each), most, wanted)) for p, each in zip(chance, k, strict=True)]
        assert sum(p for p, _ in outcomes) == pytest.approx(1)
        assert sum(p * found.estimate for p, found in outcomes) == pytest.approx(share)
        assert coverage.of_stopped(wanted, most, share) > 0.95
        assert all(present(found.low) <= found.estimate <= present(found.high) for _, found in outcomes)
    biased = sum(nbinom.pmf(m - 1, 1, 0.3) / m for m in range(1, 500))
    assert biased == pytest.approx(0.516, abs=1e-3)


@pytest.mark.parametrize(("successes", "n", "wanted"), [(0, 0, 1), (3, 2, 5), (3, 9, 2), (-1, 9, 2), (0, 5, 0)])
def test_a_stopped_rate_that_cannot_be_is_refused(successes, n, wanted):
    with pytest.raises(ValueError, match="successes in"):
        rate_until(successes, n, wanted)


# --- weights and bounds ----------------------------------------------------------------------------------------------


def test_weights_move_the_mean_and_its_interval():
    values = [0.0] * 10 + [1.0] * 10
    even, uneven = (bootstrap_mean(values, is_rate=True, weights=w) for w in ([1] * 20, [9] * 10 + [1] * 10))
    assert even == bootstrap_mean(values, is_rate=True)
    assert (uneven.estimate, uneven.n) == (pytest.approx(0.1), 20)
    assert present(uneven.high) < 0.4 < present(even.high)
    # one pair that most interventions are of: as uncertain as one pair
    values = np.linspace(0.3, 0.7, 11)
    for is_rate in (True, False):
        even, uneven = (
            bootstrap_mean(values, weights=w, is_rate=is_rate) for w in ([1] * 11, [1] * 5 + [500] + [1] * 5)
        )
        assert even.estimate == pytest.approx(uneven.estimate)
    for same in ([1.0] * 11, [0.4] * 11):
        even, uneven = (bootstrap_mean(same, is_rate=True, weights=w) for w in ([1] * 11, [500] + [1] * 10))
        assert present(uneven.high) - present(uneven.low) > 2 * (present(even.high) - present(even.low))
    even, uneven = (bootstrap_mean(values, is_rate=True, weights=w) for w in ([1] * 11, [500] + [1] * 10))
    assert uneven.estimate < 0.31
    assert present(uneven.high) - present(uneven.low) > 2 * (present(even.high) - present(even.low))


def test_a_weighted_mean_is_as_uncertain_as_the_jackknife_has_it():
    """With denominators as weights the mean of ratios is the ratio of means."""
    rng = np.random.default_rng(0)
    numerator, denominator = rng.normal(1, 1, 50), rng.normal(2, 1, 50)
    found = bootstrap_mean(numerator / denominator, weights=denominator)
    assert found.estimate == pytest.approx(numerator.mean() / denominator.mean())
    jackknife = [
        np.delete(numerator, i).mean() / np.delete(denominator, i).mean() for i in range(50)
    ]  # an independent reading of the same uncertainty
    error = np.sqrt(49 / 50 * ((np.array(jackknife) - np.mean(jackknife)) ** 2).sum())
    assert present(found.high) - present(found.low) == pytest.approx(2 * 2.01 * error, rel=0.2)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.2, -0.3], {"is_rate": True}, r"values go from -0.3 to 0.2; expected 0 to 1 \(differences .* bounds"),
        ([0.2, 1.3], {"bounds": (-1, 1)}, "values go from 0.2 to 1.3; expected -1 to 1"),
        ([0.2, 0.3], {"weights": [1]}, "expected 2 finite ones"),
        ([0.2, 0.3], {"weights": [1, float("nan")]}, "expected 2 finite ones"),
        ([0.2, 0.3], {"weights": [1, -1]}, "expected 2 finite ones"),
        ([0.2, 0.3], {"is_rate": True, "weights": [1, 0]}, "each above 0"),
    ],
)
def test_values_and_weights_that_cannot_be_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, **options)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 99))
@example([1.0, 1e-224], 0)
def test_the_interval_of_a_mean_share_holds_it_stays_a_share_and_is_never_without_width(values, seed):
    weights = np.random.default_rng(seed).integers(1, 40, len(values))
    for found in (bootstrap_mean(values, is_rate=True), bootstrap_mean(values, is_rate=True, weights=weights)):
        assert 0 <= present(found.low) <= found.estimate <= present(found.high) <= 1
        assert present(found.high) - present(found.low) > 1e-6
    mirrored = bootstrap_mean([1 - value for value in values], is_rate=True)
    assert (1 - present(mirrored.high), 1 - present(mirrored.low)) == pytest.approx(
        (bootstrap_mean(values, is_rate=True).low, bootstrap_mean(values, is_rate=True).high), abs=1e-6
    )


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_the_interval_of_a_mean_holds_it_or_there_is_none(values):
    found = bootstrap_mean(values)
    if found.low is None:
        assert np.ptp(values) <= max(1e-9 * np.abs(values).max(), 1e-100)
    else:
        assert found.low < found.estimate < present(found.high)


def test_yes_or_no_values_have_wilsons_interval():
    for k in range(1, 20):
        found, expected = bootstrap_mean([1.0] * k + [0.0] * (20 - k), is_rate=True), wilson(k, 20)
        assert (found.estimate, found.n, found.is_rate) == (k / 20, 20, True)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


# --- p, interval and remark on one line ------------------------------------------------------------------------------


def leaves_out_zero(interval):
    return interval.low > 0 or interval.high < 0


def printed(comparison):
    """The ends of the interval, the uncorrected p, Holm's p, and the warning, as printed."""
    text = str(comparison)
    low, high = map(float, present(re.search(r"\[(\S+), (\S+)\]", text)).groups())
    p = float(present(re.search(r"p = ([\de.-]+)", text))[1])
    adjusted = re.search(r"uncorrected, ([\de.-]+) after", text)
    return low, high, p, adjusted and float(adjusted[1]), re.search(r"too few for p < 0.05( after)?", text)


@pytest.mark.parametrize("n", [*range(2, 16), 33, 60])
def test_an_interval_leaves_out_zero_exactly_where_p_is_below_5_percent(n):
    """Today's bootstrap said [-45, -10] beside p = 0.062."""
    for only_first in range(n + 1):
        for only_second in range(n + 1 - only_first):
            interval, p = _paired(only_first, only_second, n)
            assert leaves_out_zero(interval) == (p < 0.05)
            assert present(interval.low) <= interval.estimate <= present(interval.high)
            mirrored, p_mirrored = _paired(only_second, only_first, n)
            assert (p, interval.low) == (p_mirrored, pytest.approx(-present(mirrored.high)))


@given(st.integers(0, 400), st.integers(0, 400), st.integers(2, 3000))
def test_an_interval_leaves_out_zero_exactly_where_p_is_below_5_percent_of_many(only_first, only_second, others):
    interval, p = _paired(only_first, only_second, only_first + only_second + others)
    assert leaves_out_zero(interval) == (p < 0.05)


counts = st.tuples(st.integers(0, 25), st.integers(0, 25), st.integers(0, 400))


@given(st.lists(counts, min_size=1, max_size=12))
def test_no_line_contradicts_itself(several):
    """Today: "p = 0.047 (Holm); 7 of 40 programs tell them apart, too few for p < 0.05"."""
    alone = [mcnemar(*answers(both + 2, b, c, 0)) for b, c, both in several]
    for comparison in (*alone, *holm(alone)):
        low, high, p, adjusted, remark = printed(comparison)
        assert (low > 0 or high < 0) == (p < 0.05) == (comparison.p_value < 0.05)
        assert (adjusted is None) == (comparison.p_adjusted is None)
        decisive = p if adjusted is None else adjusted
        if remark:
            assert decisive >= 0.05
            assert (remark[1] is not None) == (comparison.compared > 1)


@given(st.lists(counts, min_size=1, max_size=6))
def test_the_remark_is_there_exactly_where_no_outcome_of_these_programs_would_do(several):
    alone = [mcnemar(*answers(both + 2, b, c, 0)) for b, c, both in several]
    for index, comparison in enumerate(holm(alone)):
        apart = comparison.told_apart
        best = list(alone)
        best[index] = mcnemar(*answers(several[index][2] + 2, apart, 0, 0))
        assert (comparison.warning is None) == (present(holm(best)[index].p_adjusted) < 0.05)
        if comparison.warning:
            needed = int(present(re.search(r"(\d+) needed", comparison.warning))[1])
            for more in (needed - 1, needed):
                best[index] = mcnemar(*answers(several[index][2] + 2, more, 0, 0))
                assert (present(holm(best)[index].p_adjusted) < 0.05) == (more == needed)


def test_a_single_program_or_seed_gives_no_interval():
    assert str(mcnemar([True], [False])).startswith("100.0% no CI (n=1), 1 : 0, p = 1; 1 of 1 programs")
    assert mcnemar([True, True], [False, False], seeds=[3, 3]).difference == Interval(1.0, None, None, 1, True)


def test_a_line_with_holms_correction_says_which_p_the_interval_is_of():
    [line, *_] = holm([mcnemar(*answers(34, 6, 0, 0))] * 10)
    assert str(line) == (
        "15.0% [4.9, 29.1] (n=40), 6 : 0, p = 0.031 uncorrected, 0.31 after Holm's correction for 10 comparisons; "
        "6 of 40 programs discordant, too few for p < 0.05 after Holm's correction (9 needed among 10 "
        "comparisons)"
    )


# --- programs of several cells ---------------------------------------------------------------------------------------


def of_seeds(rng, n, cells, better=0.0):
    """Answers of two models to a program of each seed in each cell; a seed's programs are answered alike."""
    first, second = (rng.random(n) < 0.5 + extra for extra in (better, 0))
    seeds = np.repeat(np.arange(n), cells)
    return np.repeat(first, cells), np.repeat(second, cells), seeds


def test_programs_of_one_seed_are_no_more_evidence_than_one():
    first, second, seeds = of_seeds(np.random.default_rng(3), 30, 4, better=0.3)
    clustered, alone = mcnemar(first, second, seeds=seeds), mcnemar(first[::4], second[::4])
    assert clustered.p_value == pytest.approx(alone.p_value)
    assert mcnemar(first, second).p_value < 1e-4 < clustered.p_value
    assert clustered.difference.estimate == pytest.approx(alone.difference.estimate)
    assert (clustered.difference.n, clustered.told_apart) == (30, alone.told_apart)
    assert (clustered.only_first, clustered.only_second) == (4 * alone.only_first, 4 * alone.only_second)


def test_models_that_are_alike_are_told_apart_in_5_percent_of_studies_at_most():
    rng = np.random.default_rng(0)
    studies = [of_seeds(rng, 40, 5) for _ in range(400)]
    assert np.mean([mcnemar(first, second).p_value < 0.05 for first, second, _ in studies]) > 0.3
    assert np.mean([mcnemar(first, second, seeds=seeds).p_value < 0.05 for first, second, seeds in studies]) < 0.07
    better = [of_seeds(rng, 40, 5, better=0.4) for _ in range(50)]
    assert np.mean([mcnemar(first, second, seeds=seeds).p_value < 0.05 for first, second, seeds in better]) > 0.8


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=8))
def test_the_sign_flip_test_counts_all_flips(differences):
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    assert _sign_flip(np.array(differences, float)) == pytest.approx(np.mean(np.array(sums) >= abs(sum(differences))))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=60))
def test_over_cells_too_an_interval_leaves_out_zero_exactly_where_p_is_below_5_percent(programs):
    first, second, seeds = map(np.array, zip(*programs, strict=True))
    compared = mcnemar(first, second, seeds=seeds)
    if compared.difference.low is not None:
        assert leaves_out_zero(compared.difference) == (compared.p_value < 0.05)
        assert not (compared.warning and compared.p_value < 0.05)
    alone = mcnemar(first, second, seeds=np.arange(len(first)))
    assert alone == mcnemar(first, second)


def test_seeds_of_other_programs_are_refused():
    with pytest.raises(ValueError, match="expected one for each of 2 programs"):
        mcnemar([True, False], [True, True], seeds=[1])
