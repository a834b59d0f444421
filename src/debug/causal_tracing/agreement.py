"""An attribution beside exact patching: where it matters, how much of it is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from debug.causal_map import CausalMap, ratio_of_means
from debug.statistics import Interval, bootstrap_mean

MATTERS = 0.1  # share of the counterfactual's whole effect from which on a square does


class Agreement(NamedTuple):
    """An attribution beside exact patching, at squares of one pair's map.

    The squares are ``AGREEMENT_CELLS`` drawn from all that were estimated, each alike, and the ``LARGEST_CELLS`` with
    the largest estimates. One of the latter stands for itself, one of the others for as many as were not drawn.
    """

    exact: Float[np.ndarray, " square"]
    """Effects on the logit of c as shares of the counterfactual's whole effect."""
    estimated: Float[np.ndarray, " square"]
    weights: Num[np.ndarray, " square"]
    """For how many squares each stands."""

    @property
    def matters(self) -> Bool[np.ndarray, " square"]:
        """Whether the exact effect is at least the share ``MATTERS`` of the whole one."""
        return np.abs(self.exact) >= MATTERS

    @property
    def rank(self) -> float | None:
        """Spearman's correlation among the squares that matter; None of fewer than 3, or where all are equal."""
        return _spearman(self.exact[self.matters], self.estimated[self.matters], self.weights[self.matters], 3)

    @property
    def slope(self) -> tuple[float, float]:
        """Of the estimate on the exact effect, through zero, among squares that matter: numerator and denominator."""
        exact, estimated, weights = self.exact[self.matters], self.estimated[self.matters], self.weights[self.matters]
        return float((weights * exact * estimated).sum()), float((weights * exact**2).sum())

    @property
    def missed(self) -> tuple[float, float]:
        """How many squares matter that the estimate says do not, or turn the other way; how many matter."""
        seen = self.estimated * np.sign(self.exact) >= MATTERS
        return float(self.weights[self.matters & ~seen].sum()), float(self.weights[self.matters].sum())


def agreement_of(
    causal_map: CausalMap, compared: list[tuple[float, float, bool, float]]
) -> tuple[float | None, Agreement | None]:
    """Of (exact logit, estimated logit, whether it was drawn, weight): the rank agreement of those that were drawn, and
    all as shares of the pair's whole effect."""
    exact, estimated, drawn, weights = (np.array(values) for values in zip(*compared, strict=True))
    rank = _spearman(exact[drawn], estimated[drawn], np.ones(int(drawn.sum())))
    whole = float(causal_map.z_counterfactual[0] - causal_map.z_clean[0])
    if abs(whole) < causal_map.min_effect:
        return rank, None
    exact, estimated = ((values - causal_map.z_clean[0]) / whole for values in (exact, estimated))
    return rank, Agreement(exact, estimated, weights)


def agreement_metrics(pairs: Sequence[Agreement]) -> dict[str, Interval]:
    """Attribution beside exact patching, over pairs: of the squares that matter the mean rank agreement, the slope
    of the estimate on the exact effect, and the share that the estimate misses. What no pair has is left out."""
    found: dict[str, Interval | None] = {}
    if ranks := [pair.rank for pair in pairs if pair.rank is not None]:
        found["rank_agreement_where_it_matters"] = bootstrap_mean(ranks)
    for name, parts in (
        ("attribution_slope", [pair.slope for pair in pairs]),
        ("attribution_missed", [pair.missed for pair in pairs]),
    ):
        if sums := [(part, whole) for part, whole in parts if whole > 0]:
            part, whole = np.array(sums).T[..., None]
            [found[name]] = ratio_of_means(part, whole, 0.0)
    if (missed := found.get("attribution_missed")) is not None:
        low, high = (None if end is None else min(1.0, max(0.0, end)) for end in (missed.low, missed.high))
        found["attribution_missed"] = Interval(missed.estimate, low, high, missed.n, is_rate=True)
    return {name: value for name, value in found.items() if value is not None}


def _spearman(
    exact: Float[np.ndarray, " square"],
    estimated: Float[np.ndarray, " square"],
    weights: Num[np.ndarray, " square"],
    fewest: int = 2,
) -> float | None:
    """Spearman's correlation, each square counted as often as its weight says; scipy's has none."""
    if len(exact) < fewest or (exact == exact[0]).all() or (estimated == estimated[0]).all():
        return None
    ranks = []
    for values in (exact, estimated):
        below, equal = values[:, None] > values, values[:, None] == values
        ranks.append((below + equal / 2) @ weights)
    covariance = np.cov(*ranks, aweights=weights)
    return float(covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1]))
