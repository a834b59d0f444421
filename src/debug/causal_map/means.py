"""Means over pairs with their intervals, and the ratio of two means."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Num
from scipy import special

from debug.statistics import Interval, bootstrap_mean, bootstrap_means, wilson


def ratio_of_means(
    effects: Float[np.ndarray, "pair column"],
    wholes: Float[np.ndarray, "pair #column"],
    smallest: float,
    confidence: float = 0.95,
) -> list[Interval | None]:
    """The mean effect as a share of the mean whole effect, by column, with Fieller's interval over pairs.

    The mean of the pairs' own ratios is ruled by those whose whole effect is next to nothing; here a pair weighs what
    its whole effect is, and none is left out. An effect counts with its sign: a pair whose counterfactual makes its
    answer less likely takes from both sums. The interval holds every r at which effect - r whole may have mean zero, by
    Student's t (Fieller 1954): on few pairs it covers where bootstraps of the ratio do not, as a test shows.

    Returns:
        None where the mean whole effect is below ``smallest``, or is of pairs of both signs and may be zero: a share of
        nothing can be any number. No ends where pairs are too few to bound it, or all give the same.
    """
    n, wholes = len(effects), np.broadcast_to(wholes, effects.shape).astype(float)
    effect, whole = effects.mean(axis=0, dtype=float), wholes.mean(axis=0)
    t = float(special.stdtrit(n - 1, (1 + confidence) / 2)) if n > 1 else np.inf
    spread = t**2 / (n * (n - 1)) if n > 1 else 0.0
    x, w = effects - effect, wholes - whole
    a, b, c = (
        u * v - spread * (du * dv).sum(axis=0)
        for u, v, du, dv in ((whole, whole, w, w), (effect, whole, x, w), (effect, effect, x, x))
    )
    mixed: np.ndarray = (wholes.min(axis=0) < 0) & (wholes.max(axis=0) > 0)
    found: list[Interval | None] = []
    for column in range(effects.shape[1]):
        if abs(whole[column]) < max(smallest, np.finfo(float).tiny) or (mixed[column] and a[column] <= 0):
            found.append(None)
            continue
        ratio = float(effect[column] / whole[column])
        low = high = None
        if n > 1 and a[column] > 0 and float(np.ptp(effects[:, column] - ratio * wholes[:, column])) > 0:
            half = math.sqrt(max(0.0, b[column] ** 2 - a[column] * c[column]))
            low, high = float((b[column] - half) / a[column]), float((b[column] + half) / a[column])
        found.append(Interval(ratio, low, high, n))
    return found


def mean_of(
    is_rate: bool, values: Float[np.ndarray, "pair"], interventions: Num[np.ndarray, "pair"] | None = None
) -> Interval | None:
    """NaN (the pair's own effect is too small to divide by, or it has no control) is left out of the mean and n.

    Of one intervention a pair a rate has Wilson's interval: resampling 50 successes of 50 would claim certainty.
    """
    known = ~np.isnan(values)
    if not known.any():
        return None
    values, weights = values[known], None if interventions is None else interventions[known]
    if is_rate and weights is None and np.isin(values, (0, 1)).all():
        return wilson(int(values.sum()), len(values))
    return bootstrap_mean(values, is_rate=is_rate, weights=weights)


def means_by_layer(is_rate: bool, values: Float[np.ndarray, "pair layer"]) -> list[Interval | None]:
    """:func:`mean_of` of every layer; those whose values the same pairs have are resampled together."""
    known = ~np.isnan(values)
    yes_or_no = np.isin(values, (0, 1)) | ~known
    alone = yes_or_no.all(axis=0) & is_rate | ~known.any(axis=0)
    means = {row: mean_of(is_rate, values[:, row]) for row in np.flatnonzero(alone).tolist()}
    for pattern in {row.tobytes(): row for row in known.T[~alone]}.values():
        rows = np.flatnonzero(~alone & (known == pattern[:, None]).all(axis=0)).tolist()
        found = bootstrap_means(values[pattern][:, rows], is_rate=is_rate)
        means |= dict(zip(rows, found, strict=True))
    return [means[row] for row in range(values.shape[1])]
