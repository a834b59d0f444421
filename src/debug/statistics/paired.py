"""Paired comparison of two series: exact McNemar tests with Tango's intervals; clustered by seed; of two means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import special  # and not scipy.stats or scipy.optimize, whose imports take more than a second

from debug.errors import InputError
from debug.statistics.intervals import CONFIDENCE, LEVEL, Interval, bootstrap_mean, of_shares


@dataclass(frozen=True)
class Comparison:
    """Two models on the same programs: ``difference`` is the accuracy of the first minus that of the second.

    ``p_value`` is uncorrected and matches the interval of ``difference``, which excludes 0 exactly where ``p_value``
    is below 0.05. ``p_adjusted`` is after Holm's correction for ``compared`` comparisons; it has no matching interval.
    """

    difference: Interval
    only_first: int
    """Programs that only the first model answers correctly."""
    only_second: int
    p_value: float
    p_adjusted: float | None = None
    warning: str | None = None
    compared: int = 1
    seeds_apart: int | None = None
    """Where programs are clustered by seed: the number of discordant seeds, whose difference is not 0."""

    @property
    def told_apart(self) -> int:
        """The number of discordant units (programs, or seeds): those on which the two models differ."""
        return self.only_first + self.only_second if self.seeds_apart is None else self.seeds_apart

    def __str__(self) -> str:
        adjusted = (
            ""
            if self.p_adjusted is None
            else f" uncorrected, {_shown(self.p_adjusted)} after Holm's correction for {self.compared} comparisons"
        )
        remark = f"; {self.warning}" if self.warning else ""
        return (
            f"{self.difference}, {self.only_first} : {self.only_second}, p = {_shown(self.p_value)}{adjusted}{remark}"
        )


def _shown(p: float) -> str:
    """Two digits; more where two would round it to the significance level."""
    digits = next((digits for digits in range(2, 17) if float(f"{p:.{digits}g}") != LEVEL), 17)
    return f"{p:.{digits}g}"


def mcnemar(first: ArrayLike, second: ArrayLike, *, seeds: ArrayLike | None = None) -> Comparison:
    """Two models on the same programs: the exact McNemar test, and the difference with its interval.

    The interval is Tango's (1998): the differences that the score test of paired rates does not reject. For 0 the
    exact test is used instead, which is stricter, so that the interval excludes 0 exactly where p is below 0.05.

    Programs of several cells are not independent: those of one seed have the same first lines, or are equal. With
    ``seeds``, p is that of the exact sign-flip (randomization) test over seeds, or that of the interval where it is
    larger; the interval is :func:`bootstrap_mean`'s over seeds, extended to 0 where p is 0.05 or more.

    Args:
        first, second: shape [n], whether each program was answered correctly, the same programs in the same order.
        seeds: shape [n], the cluster of each program; None where programs are independent.

    Returns:
        A single program, or seed, gives no interval (both ends None).

    Raises:
        InputError: shapes differ, or there is no program.
    """
    pair = np.asarray(first), np.asarray(second)
    if pair[0].ndim != 1 or not pair[0].size or pair[0].shape != pair[1].shape or {a.dtype.kind for a in pair} != {"b"}:
        raise InputError(
            f"answers have shapes {pair[0].shape} and {pair[1].shape}; expected the same programs of both models, "
            "one or more, as True (correct) or False"
        )
    n, only_first, only_second = pair[0].size, int((pair[0] & ~pair[1]).sum()), int((pair[1] & ~pair[0]).sum())
    if seeds is not None and np.shape(seeds) != (n,):
        raise InputError(f"seeds have shape {np.shape(seeds)}; expected one for each of {n} programs")
    if seeds is None or np.unique(seeds).size == n:
        difference, p_value = _paired(only_first, only_second, n)
        return _remarked(Comparison(difference, only_first, only_second, p_value))
    _, of = np.unique(seeds, return_inverse=True)
    by_seed = np.bincount(of, pair[0].astype(float) - pair[1])
    difference, p_value = _paired_by_seed(by_seed, np.bincount(of).astype(float))
    apart = int(np.count_nonzero(by_seed))
    return _remarked(Comparison(difference, only_first, only_second, p_value, seeds_apart=apart))


def _sign_test(heads: int, tosses: int) -> float:
    """Exact two-sided p of a fair coin."""
    return min(1.0, 2 * float(special.bdtr(min(heads, tosses - heads), tosses, 0.5))) if tosses else 1.0


@lru_cache(maxsize=4096)
def _paired(only_first: int, only_second: int, n: int) -> tuple[Interval, float]:
    """Tango's interval of a difference of paired rates, widened to 0 where the exact test does not reject 0; and p."""
    told_apart = only_first + only_second
    p_value = _sign_test(only_first, told_apart)
    if n == 1:
        return Interval(float(only_first - only_second), None, None, 1, is_rate=True), p_value
    low, high = -_tango_high(only_second, only_first, n), _tango_high(only_first, only_second, n)
    if p_value >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval((only_first - only_second) / n, low, high, n, is_rate=True), p_value


def _tango_high(gained: int, lost: int, n: int) -> float:
    """The largest difference that the score test does not reject (Tango 1998, Statistics in Medicine 17:891)."""
    from scipy import optimize

    critical = -float(special.ndtri(LEVEL / 2))

    def too_low(difference: float) -> float:
        a, b = 2 * n, -gained - lost + (2 * n - gained + lost) * difference
        c = -lost * difference * (1 - difference)
        rate = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # of losses, most likely given the difference
        deviation = math.sqrt(n * (2 * rate + difference * (1 - difference)))
        return gained - lost - n * difference + critical * deviation

    start, end = (gained - lost) / n + 1e-12, 1 - 1e-12
    if start >= end:
        return 1.0
    return optimize.bisect(too_low, start, end, xtol=1e-13)  # type: ignore[return-value]  (without full_output a float)


def _paired_by_seed(by_seed: Float[np.ndarray, " seed"], size: Float[np.ndarray, " seed"]) -> tuple[Interval, float]:
    """The difference of answers that are clustered by seed, and p.

    Args:
        by_seed: per seed, the number of programs that only the first answers correctly minus only the second.
        size: per seed, the number of programs.
    """
    if len(size) == 1:
        return Interval(float(by_seed[0] / size[0]), None, None, 1, is_rate=True), 1.0
    share = (by_seed / size + 1) / 2
    found = of_shares(share[:, None], size)
    middle = 0.5  # no difference
    if found.constant[0]:
        apart = max(found.mean[0], 1 - found.mean[0])
        of_interval = min(1.0, 2 * (middle / apart) ** found.size[0])
    else:
        score = abs(found.mean[0] - middle) / np.sqrt(middle**2 / found.size[0])
        known = np.isinf(found.freedom[0])
        of_interval = 2 * (special.ndtr(-score) if known else special.stdtr(found.freedom[0], -score))
    p_value = max(_sign_flip(by_seed), float(of_interval))
    low, high = (2 * float(end[0]) - 1 for end in found.ends(CONFIDENCE))
    if p_value >= LEVEL:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(float(by_seed.sum() / size.sum()), low, high, len(size), is_rate=True), p_value


def _sign_flip(by_seed: Float[np.ndarray, " seed"]) -> float:
    """Exact two-sided p of the sum under random signs of the seeds' differences; McNemar's p where all are 1."""
    distances, counts = np.unique(np.abs(by_seed[by_seed != 0]).astype(int), return_counts=True)
    probabilities = np.ones(1)  # of sums from -(len - 1) / 2 on
    for distance, count in zip(distances.tolist(), counts.tolist(), strict=True):
        flips = np.zeros(2 * count * distance + 1)
        heads = np.arange(count + 1)
        log_ways = -special.betaln(heads + 1, count - heads + 1) - math.log(count + 1)
        flips[:: 2 * distance] = np.exp(log_ways - count * math.log(2))
        probabilities = np.convolve(probabilities, flips)
    sums = np.arange(len(probabilities)) - (len(probabilities) - 1) // 2
    return min(1.0, float(probabilities[np.abs(sums) >= abs(by_seed.sum())].sum()))


@dataclass(frozen=True)
class MeanComparison:
    """Two runs on the same pairs: the mean of the first minus that of the second, and its p.

    The interval of ``difference`` excludes 0 exactly where ``p_value`` is below 0.05.
    """

    difference: Interval
    p_value: float

    def __str__(self) -> str:
        return f"{self.difference}, p = {_shown(self.p_value)}"


def paired_means(
    first: ArrayLike, second: ArrayLike, *, is_rate: bool = False, bounds: tuple[float, float] | None = None
) -> MeanComparison:
    """The difference of two means over the same units, with its interval, and a sign-flip (randomization) test of it.

    The test is exact for up to 13 units, else of 9,999 random flips from a fixed seed. Its p is raised to that of the
    interval (:func:`bootstrap_mean`'s of the differences) where that is larger, and the interval is extended to 0 where
    p is 0.05 or more.

    Args:
        first, second: shape [n], the value of each unit (a pair of programs), the same units in the same order.
        is_rate: the values are shares, and their difference is printed in percent points.
        bounds: the possible differences; None: any.

    Raises:
        InputError: shapes differ, there is no unit, or a value is not finite.
    """
    from scipy import stats  # takes more than a second

    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.ndim != 1 or one.shape != other.shape:
        raise InputError(f"values have shapes {one.shape} and {other.shape}; expected [n] of the same units, twice")
    apart = one - other
    difference = bootstrap_mean(apart, is_rate=is_rate, bounds=bounds)
    if not apart.any() or len(apart) == 1:
        return MeanComparison(difference, 1.0)
    flips = stats.permutation_test(
        (apart,), np.mean, permutation_type="samples", vectorized=True, n_resamples=9999, rng=np.random.default_rng(0)
    )
    p_value = max(float(flips.pvalue), _p_of_interval(apart, is_rate, bounds))
    low, high = difference.low, difference.high
    if p_value >= LEVEL and low is not None and high is not None:
        low, high = min(low, 0.0), max(high, 0.0)
    return MeanComparison(replace(difference, low=low, high=high), p_value)


def _p_of_interval(apart: Float[np.ndarray, " n"], is_rate: bool, bounds: tuple[float, float] | None) -> float:
    """One less the highest confidence at which the interval excludes 0; 0 where no interval is known."""
    excluded, reached = 0.0, 1.0
    for _ in range(30):
        middle = (excluded + reached) / 2
        interval = bootstrap_mean(apart, middle, is_rate=is_rate, bounds=bounds)
        if interval.low is None or interval.high is None:
            return 0.0
        excluded, reached = (middle, reached) if interval.low > 0 or interval.high < 0 else (excluded, middle)
    return 1 - excluded


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p values adjusted for their number (Holm 1979); the order stays.

    The i-th smallest of m is multiplied by m - i + 1, and adjusted values are made monotone. scipy has no such
    function; a test checks this one against the closed testing procedure.
    """
    p_values = np.array([comparison.p_value for comparison in comparisons])
    adjusted = _holm(p_values)
    return [
        _remarked(replace(comparison, p_adjusted=float(adjusted[index]), compared=len(comparisons)), index, p_values)
        for index, comparison in enumerate(comparisons)
    ]


def _holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    order = np.argsort(p_values, kind="stable")
    scaled = np.minimum(1, p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(scaled)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted


def _remarked(comparison: Comparison, index: int = 0, p_values: Float[np.ndarray, " m"] | None = None) -> Comparison:
    """Adds a warning where no outcome could be significant: with so few discordant units even the smallest possible p,
    corrected together with the other comparisons' p, is not below 0.05."""
    others = np.zeros(1) if p_values is None else p_values.copy()

    def smallest(apart: int) -> float:
        others[index] = min(1.0, 2.0 ** (1 - apart))
        return float(_holm(others)[index])

    apart, compared = comparison.told_apart, comparison.compared
    if smallest(apart) < LEVEL:
        return replace(comparison, warning=None)
    needed = next(count for count in range(apart + 1, apart + 60) if smallest(count) < LEVEL)
    what = "programs" if comparison.seeds_apart is None else "seeds"
    return replace(
        comparison,
        warning=f"{apart} of {comparison.difference.n} {what} discordant, too few for p < {LEVEL:.2g} "
        + (
            f"({needed} needed)"
            if compared == 1
            else f"after Holm's correction ({needed} needed among {compared} comparisons)"
        ),
    )
