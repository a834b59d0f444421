"""How sure a number is: intervals of rates, means, differences; paired tests of two models. The arithmetic is scipy's.

Knows no run and no model. Every result carries n, the number of independent things it was computed from, and a warning
where that is too few for what a reader would conclude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval; the ends are None where n cannot give them.

    ``is_rate`` is whether the estimate is a share of n, which is printed in percent.
    """

    estimate: float
    low: float | None
    high: float | None
    n: int
    is_rate: bool = False

    @property
    def warning(self) -> str | None:
        """What a reader must know before concluding from a rate: that its interval is wider than 20 points."""
        if not self.is_rate or self.low is None or self.high is None or self.high - self.low <= 0.2:
            return None
        return f"n = {self.n} leaves {100 * (self.high - self.low):.0f} points open"

    def metrics(self, name: str) -> dict[str, float | None]:
        """The estimate and its ends under the names that the tracking contract has for them."""
        return {name: self.estimate, f"{name}_ci_low": self.low, f"{name}_ci_high": self.high}

    def __str__(self) -> str:
        """``97.0% [94.1, 98.5] (n=200)`` for a rate, ``0.813 [0.790, 0.836] (n=50)`` for a mean."""

        def show(value: float) -> str:
            return f"{100 * value:.1f}" if self.is_rate else f"{value:.3f}"

        ends = "no interval" if self.low is None or self.high is None else f"[{show(self.low)}, {show(self.high)}]"
        return f"{show(self.estimate)}{'%' if self.is_rate else ''} {ends} (n={self.n})"


@dataclass(frozen=True)
class Comparison:
    """Two models on the same programs: ``difference`` of their accuracies, the first's less the second's.

    ``p_value`` is that of the exact McNemar test, ``p_adjusted`` after Holm's correction for all pairs compared.
    """

    difference: Interval
    only_first: int
    """Programs that only the first answers correctly."""
    only_second: int
    p_value: float
    p_adjusted: float | None = None
    warning: str | None = None

    def __str__(self) -> str:
        p = self.p_value if self.p_adjusted is None else self.p_adjusted
        adjusted = "" if self.p_adjusted is None else " (Holm)"
        told_apart = f"{self.only_first} : {self.only_second}"
        return f"{self.difference}, {told_apart}, p = {p:.2g}{adjusted}{f'; {self.warning}' if self.warning else ''}"


def mcnemar(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Two models that were asked the same programs: the exact McNemar test, and the difference with its interval.

    Args:
        first, second: shape [n], whether each program was answered correctly, the same programs in the same order.

    Returns:
        The difference's interval is a bootstrap over programs; none where all programs have the same difference.

    Raises:
        ValueError: shapes differ, or there is no program.
    """
    pair = np.asarray(first), np.asarray(second)
    if pair[0].ndim != 1 or not pair[0].size or pair[0].shape != pair[1].shape or {a.dtype.kind for a in pair} != {"b"}:
        raise ValueError(
            f"answers have shapes {pair[0].shape} and {pair[1].shape}; expected the same programs of both models, "
            "one or more, as True (correct) or False"
        )
    difference = pair[0].astype(float) - pair[1].astype(float)
    only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
    told_apart = only_first + only_second
    p_value = float(stats.binomtest(only_first, told_apart).pvalue) if told_apart else 1.0
    interval = bootstrap_mean(difference, is_rate=True)
    if interval.low == interval.high:  # resampling equal values says nothing about other programs
        interval = replace(interval, low=None, high=None)
    return _with_warning(Comparison(interval, only_first, only_second, p_value), 1)


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p values adjusted for their number (Holm 1979); the order stays.

    The i-th smallest of m is multiplied by m - i + 1, and none may fall below a smaller one's. scipy has no such
    function; a test checks this one against the closed test that it abbreviates.
    """
    count = len(comparisons)
    order = sorted(range(count), key=lambda index: comparisons[index].p_value)
    adjusted, smallest = list(comparisons), 0.0
    for rank, index in enumerate(order):
        smallest = max(smallest, min(1.0, (count - rank) * comparisons[index].p_value))
        adjusted[index] = _with_warning(replace(comparisons[index], p_adjusted=smallest), count)
    return adjusted


def _with_warning(comparison: Comparison, compared: int) -> Comparison:
    """Too few programs tell the two apart for any outcome to reach 5% among this many comparisons?"""
    told_apart = comparison.only_first + comparison.only_second
    needed = math.ceil(math.log2(2 * compared / 0.05))
    if told_apart >= needed:
        return replace(comparison, warning=None)
    return replace(
        comparison,
        warning=f"{told_apart} of {comparison.difference.n} programs tell them apart, too few for p < 0.05 "
        f"({needed} are needed{f' among {compared} comparisons' if compared > 1 else ''})",
    )


@lru_cache(maxsize=4096)  # a map over many layers asks for the same few again and again
def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A rate with its Wilson score interval.

    Raises:
        ValueError: n is below 1, or successes are not between 0 and n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; a rate needs n of 1 or more, and successes from 0 to n")
    ends = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(ends.low), float(ends.high), n, is_rate=True)


def bootstrap_mean(
    values: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    is_rate: bool = False,
    weights: ArrayLike | None = None,
) -> Interval:
    """A mean with its percentile bootstrap interval.

    Args:
        values: shape [n], one value for each thing that was drawn independently (a pair, never an intervention: those
            of one pair are not independent).
        is_rate: the values are shares, and their mean is printed in percent.
        weights: shape [n], how many interventions each value is the mean of; None where that is the same for all.

    Returns:
        Constant values give an interval of no width; a single value gives no interval (both ends None).

    Raises:
        ValueError: no values, more than one axis, or a value that is not finite.
    """
    sample: Float[np.ndarray, " n"] = np.asarray(values, dtype=float)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise ValueError(f"values have shape {sample.shape}; expected [n] with n of 1 or more, all of them finite")
    weight: Float[np.ndarray, " n"] = np.ones_like(sample) if weights is None else np.asarray(weights, dtype=float)
    mean = float(np.average(sample, weights=weight))
    if sample.size == 1:
        return Interval(mean, None, None, 1, is_rate)
    if (sample == sample[0]).all():
        return Interval(mean, mean, mean, sample.size, is_rate)
    ends = stats.bootstrap(
        (sample, weight),
        lambda x, w, axis: (x * w).sum(axis) / w.sum(axis),
        paired=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(ends.low), float(ends.high), sample.size, is_rate)


def bootstrap_means(
    values: Float[np.ndarray, "n column"], *, is_rate: bool = False, resamples: int = 2000, seed: int = 0
) -> list[Interval]:
    """:func:`bootstrap_mean` of every column, from the same resamples, in one matrix product.

    Raises:
        ValueError: as :func:`bootstrap_mean`.
    """
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values have shape {values.shape}; expected [n, column] with n of 1 or more, all finite")
    n = len(values)
    means = values.mean(axis=0)
    if n == 1:
        return [Interval(float(mean), None, None, 1, is_rate) for mean in means]
    varies = (values != values[0]).any(axis=0)
    drawn = np.empty((resamples, int(varies.sum())))
    rng, rows = np.random.default_rng(seed), max(1, 2_000_000 // n)
    for start in range(0, resamples if varies.any() else 0, rows):
        count = min(rows, resamples - start)
        chosen = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(chosen.ravel(), minlength=count * n).reshape(count, n)
        drawn[start : start + count] = times.astype(float) @ values[:, varies] / n
    ends = np.stack([means, means])
    if varies.any():
        ends[:, varies] = np.percentile(drawn, [2.5, 97.5], axis=0)
    return [
        Interval(float(mean), float(low), float(high), n, is_rate)
        for mean, (low, high) in zip(means, ends.T, strict=True)
    ]
