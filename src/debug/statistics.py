"""How sure a number is: a rate's Wilson interval, a mean's bootstrap interval. The arithmetic is scipy's.

Knows no run and no model. Every result carries n, the number of independent things it was computed from.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def __str__(self) -> str:
        """``97.0% [94.1, 98.5] (n=200)`` for a rate, ``0.813 [0.790, 0.836] (n=50)`` for a mean."""

        def show(value: float) -> str:
            return f"{100 * value:.1f}" if self.is_rate else f"{value:.3f}"

        ends = "no interval" if self.low is None or self.high is None else f"[{show(self.low)}, {show(self.high)}]"
        return f"{show(self.estimate)}{'%' if self.is_rate else ''} {ends} (n={self.n})"


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
