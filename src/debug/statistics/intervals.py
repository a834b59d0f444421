"""Intervals of rates and means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Num
from numpy.typing import ArrayLike
from scipy import special  # and not scipy.stats, whose import takes a second

from debug.errors import InputError

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
"""Significance level of p values; the intervals have the same level."""


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
        """A warning where the interval of a rate is wider than 20 percentage points, else None."""
        if not self.is_rate or self.low is None or self.high is None or self.high - self.low <= 0.2:
            return None
        return f"n = {self.n}: the CI is {100 * (self.high - self.low):.0f} points wide"

    def metrics(self, name: str) -> dict[str, float | None]:
        """The estimate and its ends, under their names in the tracking store."""
        return {name: self.estimate, f"{name}_ci_low": self.low, f"{name}_ci_high": self.high}

    def __str__(self) -> str:
        """``97.0% [94.1, 98.5] (n=200)`` for a rate, ``0.813 [0.790, 0.836] (n=50)`` for a mean.

        An end that is not 0 is never printed as 0, so that a reader can see whether the interval contains 0.
        """
        factor, digits = (100, 1) if self.is_rate else (1, 3)

        def show(value: float) -> str:
            return f"{factor * value + 0.0:.{digits}f}"

        def show_end(value: float) -> str:
            return show(value) if value == 0 or float(show(value)) else f"{factor * value:.1g}"

        ends = "no CI"
        if self.low is not None and self.high is not None:
            ends = f"[{show_end(self.low)}, {show_end(self.high)}]"
        return f"{show(self.estimate)}{'%' if self.is_rate else ''} {ends} (n={self.n})"


@lru_cache(maxsize=4096)  # a map over many layers needs the same few many times
def wilson(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """A rate with its Wilson score interval.

    Raises:
        InputError: n is below 1, or successes are not between 0 and n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} successes of {n}; a rate needs n of 1 or more, and successes from 0 to n")
    rate, z = successes / n, float(special.ndtri((1 + confidence) / 2))
    middle, half = 2 * n * rate + z**2, z * math.sqrt(4 * n * rate * (1 - rate) + z**2)
    low, high = ((middle + side) / (2 * (n + z**2)) for side in (-half, half))
    return Interval(rate, low if successes else 0.0, high if successes < n else 1.0, n, is_rate=True)


def rate_until(successes: int, n: int, wanted: int, confidence: float = CONFIDENCE) -> Interval:
    """The rate of successes, where trials went on until there were ``wanted`` or no trial was left.

    Successes over trials would be too high on average, for the last trial is a success. Unbiased is, where ``wanted``
    were found, (wanted - 1) / (n - 1), and else successes / n: of the ways to that end, the share that begins with a
    success (Girshick, Mosteller and Savage 1946, Annals of Mathematical Statistics 17:13). The interval is the exact
    (Clopper-Pearson) one of this stopping rule. With one wanted the only unbiased estimate is 1 (the first trial was a
    success) or 0, and the interval reaches to it: ask for two or more.

    Args:
        successes: at most ``wanted``.
        n: trials up to and with the one that was the last success wanted; where that was not found, all.

    Raises:
        InputError: there was no trial, or the numbers contradict each other.
    """
    if not 0 <= successes <= min(n, wanted) or n < 1 or wanted < 1:
        raise InputError(f"{successes} successes in {n} trials with {wanted} wanted; expected one trial or more")
    tail, found = (1 - confidence) / 2, successes == wanted
    estimate, failures = successes / n, n - successes
    if found and n > 1:
        estimate = (wanted - 1) / (n - 1)
    low = float(special.betaincinv(successes, failures + 1, tail)) if successes else 0.0
    high = float(special.betaincinv(successes + (not found), failures, 1 - tail)) if failures else 1.0
    return Interval(estimate, min(low, estimate), max(high, estimate), n, is_rate=True)


def bootstrap_mean(
    values: ArrayLike,
    confidence: float = CONFIDENCE,
    *,
    is_rate: bool = False,
    weights: ArrayLike | None = None,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """A mean with its interval: :func:`bootstrap_means` of one column.

    Args:
        values: shape [n], one value per independent unit (a pair, never an intervention: interventions on one pair
            are not independent).

    Raises:
        InputError: as :func:`bootstrap_means`.
    """
    sample: Float[np.ndarray, " n"] = np.asarray(values, dtype=float)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise InputError(f"values have shape {sample.shape}; expected [n] with n of 1 or more, all of them finite")
    [mean] = bootstrap_means(sample[:, None], confidence, is_rate=is_rate, weights=weights, bounds=bounds)
    return mean


def bootstrap_means(
    values: Num[np.ndarray, "..."],
    confidence: float = CONFIDENCE,
    *,
    is_rate: bool = False,
    weights: ArrayLike | None = None,
    bounds: tuple[float, float] | None = None,
) -> list[Interval]:
    """The mean of each column, with its interval. No resampling, despite the name (kept from an older version).

    Shares (and other values with ``bounds``): Wilson's interval of as many yes-or-no trials as would leave the mean as
    uncertain as the values do (the effective sample size of survey statistics), with Student's t; of values that are
    yes or no it is Wilson's. Where few values hold the whole mean their spread says little of others', and it is taken
    for more (see ``of_shares``). Constant shares: as many things as n draws may have missed, by the exact
    (Clopper-Pearson) limit for 0 of n, may have any share; of constant 0 or 1 this is the Clopper-Pearson interval.

    Other means: Student's t with Hall's correction for skewness (1992, JRSS B 54:221). Constant values have no
    interval: without bounds nothing is known of the values that were not seen.

    The percentile bootstrap that was used before has a coverage of 40 to 90% where n is small or shares are rare; BCa
    is no better there.

    Args:
        values: shape [n, column]; one row per independent unit.
        is_rate: the values are shares, from 0 to 1, and their mean is printed in percent.
        weights: shape [n], how much each row counts (how many interventions it is the mean of); None: all alike.
        bounds: the possible values; None: from 0 to 1 for a rate, else any. Differences of shares: (-1, 1).

    Returns:
        A single row gives no interval (both ends None).

    Raises:
        InputError: no values, one that is not finite or beyond the bounds, or weights that cannot be.
    """
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise InputError(f"values have shape {values.shape}; expected [n, column] with n of 1 or more, all finite")
    n = len(values)
    weight: Float[np.ndarray, " n"] = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
    low, high = bounds or ((0.0, 1.0) if is_rate else (-np.inf, np.inf))
    bounded = np.isfinite(high - low)
    if weight.shape != (n,) or not np.isfinite(weight).all() or not weight.sum() or (bounded and weight.min() <= 0):
        raise InputError(f"weights are {weight}; expected {n} finite ones{', each above 0' if bounded else ''}")
    if values.min() < low - 1e-6 or values.max() > high + 1e-6:
        raise InputError(
            f"values go from {values.min():.6g} to {values.max():.6g}; expected {low:g} to {high:g} "
            "(differences of shares have bounds=(-1, 1))"
        )
    if n == 1:
        return [Interval(float(value), None, None, 1, is_rate) for value in values[0]]
    if bounded:
        # rounded, so that a share next to 0 is one as much as a share next to 1, of which floats know fewer
        shares = of_shares(np.round(np.clip((values - low) / (high - low), 0, 1), 12), weight)
        ends = [low + (high - low) * end for end in shares.ends(confidence)]
        constant = np.zeros(values.shape[1], dtype=bool)
    else:
        ends = _of_any(values, weight, confidence)
        constant = _constant(values)
    means = weight @ values / weight.sum()
    return [
        Interval(float(mean), None if none else float(low), None if none else float(high), n, is_rate)
        for mean, none, low, high in zip(means, constant, *ends, strict=True)
    ]


def _constant(values: Float[np.ndarray, "n column"]) -> Bool[np.ndarray, " column"]:
    """Which columns vary by no more than rounding."""
    return np.ptp(values, axis=0) <= np.maximum(1e-9 * np.abs(values).max(axis=0), 1e-100)


def _influence(values: Float[np.ndarray, "n column"], weight: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n column"]:
    """How much each row moves the weighted mean, times n: deviations, whose mean is 0."""
    return len(values) * weight[:, None] * (values - weight @ values / weight.sum()) / weight.sum()


def _of_any(
    values: Float[np.ndarray, "n column"], weight: Float[np.ndarray, " n"], confidence: float
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """Ends of Hall's transformed t interval: T + skew T²/3 + skew² T³/27 + skew/(6n) is Student's t, nearly."""
    n, deviation = len(values), _influence(values, weight)
    spread = deviation.std(axis=0, ddof=1)
    standard = deviation / np.where(spread > 0, spread, 1)
    skew = (standard**3).mean(axis=0) * (n / (n - 1)) ** 1.5
    skew = np.where(np.abs(skew) < 1e-6, 1e-6, skew)  # its limit is the t interval
    critical = special.stdtrit(n - 1, (1 + confidence) / 2) / np.sqrt(n)
    mean = weight @ values / weight.sum()
    upper, lower = (
        3 / skew * (np.cbrt(1 + skew * (end - skew / (6 * n))) - 1) * spread for end in (critical, -critical)
    )
    return mean - upper, mean - lower


@dataclass(frozen=True)
class _Shares:
    """Means of shares, by column: as uncertain as a rate of ``size`` yes-or-no trials."""

    mean: Float[np.ndarray, " column"]
    size: Float[np.ndarray, " column"]
    freedom: Float[np.ndarray, " column"]
    """Degrees of freedom of the size; infinite where it is known."""
    constant: Bool[np.ndarray, " column"]

    def ends(self, confidence: float) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
        tail = (1 - confidence) / 2
        critical = np.where(np.isinf(self.freedom), -special.ndtri(tail), -special.stdtrit(self.freedom, tail))
        shrunk = 1 + critical**2 / self.size
        middle = (self.mean + critical**2 / (2 * self.size)) / shrunk
        half = critical / shrunk * np.sqrt(self.mean * (1 - self.mean) / self.size + (critical / self.size) ** 2 / 4)
        unseen = 1 - tail ** (1 / self.size)  # the share of things that n draws may have missed
        low = np.where(self.constant, self.mean * (1 - unseen), np.clip(middle - half, 0, self.mean))
        high = np.where(self.constant, self.mean + (1 - self.mean) * unseen, np.clip(middle + half, self.mean, 1))
        return low, high


def of_shares(share: Float[np.ndarray, "n column"], weight: Float[np.ndarray, " n"]) -> _Shares:
    """Effective sample size of means of shares from 0 to 1 (Korn and Graubard 1998; Dean and Pagano 2015).

    The design effect is the variance of the mean over that of as many yes-or-no values, 1 where each share is 0 or 1.
    Of a mean that few rows contribute to it is known badly, and too low where the large shares are not among them: it
    is 1 for one contributing row, moved half the way to 1 for two, a quarter for three, and so on, with (sum)²/(sum of
    squares) as their number. The form is this project's own, chosen by simulation (benchmarks/interval_coverage.py).
    """
    n = len(share)
    mean = np.clip(weight @ share / weight.sum(), 0, 1)
    rows = weight.sum() ** 2 / (weight @ weight)
    constant = np.ptp(share, axis=0) <= 1e-9
    whole = np.where(constant, 1.0, mean * (1 - mean) / rows)
    effect = (_influence(share, weight) ** 2).sum(axis=0) / n**2 / whole
    near = weight[:, None] * np.where(mean <= 0.5, share, 1 - share)
    contributing = near.sum(axis=0) ** 2 / np.where(constant, 1.0, (near**2).sum(axis=0))
    effect += np.maximum(1 - effect, 0) * 2.0 ** (1 - np.maximum(contributing, 1))
    known = ((share == 0) | (share == 1)).all(axis=0) & bool(np.ptp(weight) == 0)
    size = np.where(known, rows, rows * (n - 1) / n / np.where(constant, 1.0, effect))
    return _Shares(mean, np.where(constant, rows, size), np.where(known, np.inf, n - 1.0), constant)
