"""Where targets succeed most often, and how the value is handed over from target to target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from debug.causal_map.means import mean_of
from debug.statistics import Interval

LEADS = 0.25
"""The value is handed over to a target that succeeds in this share of the pairs or more: 1 in 200 is noise."""
SUPPORT = 0.95
"""A hand-over is reported where this share of the resamples of pairs has it."""
RESAMPLES = 1000
SMALLEST_HALF = 5
"""Pairs that measure a hand-over which others chose: of fewer, not even all would tell it from chance (1 in 2^5)."""


class Peak(NamedTuple):
    """The layer at which a target succeeds most often: chosen on one half of the pairs, measured on the other.

    A maximum over many cells that is measured on the pairs that chose it is too high: of a flat truth of 0.30 over 30
    layers its interval covers 0.30 in 1 of 20 experiments.
    """

    target: str
    layer: int
    """The first of equals."""
    rate: Interval | None
    """Of the pairs of odd number; None where there is one pair alone."""
    chosen: Interval
    """Of those of even number (0, 2, ...), on which target and layer were chosen. Where none of these succeeds there is
    no place to report: the first of equals is not one."""


class HandOver(NamedTuple):
    """The value's move from a target to the next, as pairs of odd number show it, which those of even number named.

    :func:`hand_overs` says what counts.
    """

    before: str
    after: str
    layer: int
    """The first at which the next target's success rate passes the previous one's."""
    low: int
    high: int
    """Ends of the layer's 95% bootstrap interval over pairs."""
    support: float
    """Share of the resamples of pairs that have this hand-over."""
    n: int
    """Pairs that it was measured on."""

    def said(self, name: Callable[[str], str] = str) -> str:
        layers = f"[{self.low}, {self.high}], in {self.support:.1%} of resamples"
        return f"{name(self.before)} -> {name(self.after)} at layer {self.layer} {layers} (n={self.n})"

    __str__ = said


def peaks(
    success: dict[str, Float[np.ndarray, "pair layer"]], layers: Sequence[int], below_top: Bool[np.ndarray, " layer"]
) -> dict[str, Peak]:
    """The best layer of every target that has a value in some pair of even number; see :class:`Peak`."""
    found = {}
    for target, rows in success.items():
        chosen = {row: rate for row in np.flatnonzero(below_top).tolist() if (rate := mean_of(True, rows[::2, row]))}
        if chosen:
            row = max(chosen, key=lambda row: chosen[row].low or 0.0)  # the first of equals
            found[target] = Peak(target, layers[row], mean_of(True, rows[1::2, row]), chosen[row])
    return found


def hand_overs(
    success: dict[str, Float[np.ndarray, "pair layer"]], layers: Sequence[int], share: Callable[[str, str], bool]
) -> list[HandOver]:
    """How the lead goes from target to target, as layers go up.

    A target leads at a layer where its success rate is the highest and ``LEADS`` or more. Pairs of even number say
    which targets lead one after the other, and at which layers each is farthest ahead of the other. Pairs of odd
    number, resampled, say whether that is so: in a share ``SUPPORT`` of the resamples the first must be ahead at the
    one layer and the second at the other. A target between two that is not confirmed is left out. Fewer than twice
    ``SMALLEST_HALF`` pairs are not halved, and all of their resamples must agree; nothing is told of fewer than 3.

    Args:
        success: target -> 0 or 1; NaN where a pair, or an imported map, has no value, and what is so by construction.
        share: whether two targets share a token in some pair; these hand nothing over to each other.
    """
    n = max((len(rows) for rows in success.values()), default=0)
    few = n < 2 * SMALLEST_HALF
    if n < 3:
        return []
    chosen = success if few else {target: rows[::2] for target, rows in success.items()}
    measured = success if few else {target: rows[1::2] for target, rows in success.items()}
    known: dict[str, Any] = {  # numpy types them as arrays or scalars
        target: ~np.isnan(rows).all(axis=0) for target, rows in chosen.items()
    }
    rates = {target: np.where(known[target], _nanmean(rows), -1.0) for target, rows in chosen.items()}
    route: list[str] = []
    for row in range(len(layers)):
        best = max(rates, key=lambda target: rates[target][row])
        passes = not route or (known[route[-1]][row] and rates[best][row] > rates[route[-1]][row])
        if passes and rates[best][row] >= LEADS:
            route.append(best)
    weights = lru_cache(maxsize=1)(_weights)  # most moves of a route are of as many pairs
    found: list[HandOver] = []
    for number, after in enumerate(route[1:], 1):
        for before in [found[-1].after] if found else dict.fromkeys(route[:number]):
            move = (
                None if before == after or share(before, after) else _hand_over(before, after, rates, measured, weights)
            )
            if move is not None and move.support >= (1 if few else SUPPORT):
                at, low, high = (layers[row] for row in (move.layer, move.low, move.high))
                found.append(move._replace(layer=at, low=low, high=high))
                break
    return found


def _hand_over(
    before: str,
    after: str,
    rates: dict[str, np.ndarray],
    success: dict[str, np.ndarray],
    weights: Callable[[int], np.ndarray],
) -> HandOver | None:
    """Whatever its support, and by row, not by layer; None where these two can have none. ``rates`` are those of the
    pairs that choose."""
    ahead = rates[before] - rates[after]
    passed = len(ahead) - 1 - int(np.argmin(ahead[::-1]))
    led = int(np.argmax(ahead[: passed + 1]))
    both = np.stack([success[before], success[after]])[..., led : passed + 1]  # target, pair, row
    both = both[:, ~np.isnan(both[..., [0, -1]]).any(axis=(0, 2))]
    n = both.shape[1]
    if led == passed or n < 3:
        return None
    first, second = (weights(n) @ np.nan_to_num(values) / n for values in both)
    passes = (second >= LEADS) & (second > first)
    moved = passes[:, -1] & (first[:, 0] >= LEADS) & (first[:, 0] > second[:, 0])
    if not moved[1:].any():
        return None
    rows = led + passes.argmax(axis=1)
    low, high = np.percentile(rows[1:][moved[1:]], [2.5, 97.5], method="closest_observation").tolist()
    return HandOver(before, after, int(rows[0]), int(low), int(high), float(moved[1:].mean()), n)


def _weights(n: int) -> Float[np.ndarray, "resample pair"]:
    """How often each pair counts: once, and in each resample of the pairs."""
    return np.vstack([np.ones(n), np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)])


def _nanmean(values: Float[np.ndarray, "pair layer"]) -> Float[np.ndarray, " layer"]:
    """The mean over the pairs that have a value; 0 where none has."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
