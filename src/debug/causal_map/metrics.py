"""What maps say of each square: metrics. A metric is one entry of ``METRICS``; see :func:`as_metric` for one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from debug.causal_map.sources import PAIR_SOURCES
from debug.errors import InputError


class Logits(Protocol):
    """What metrics read of a :class:`debug.causal_map.CausalMap`."""

    z_clean: Float[np.ndarray, "2"]
    z_counterfactual: Float[np.ndarray, "2"]
    z_patched: Float[np.ndarray, "layer *head column 2"]
    top: Int[np.ndarray, "layer *head column"]
    control_top: Int[np.ndarray, "layer *head target"] | None
    answer_tokens: tuple[int, int]
    answered: Int[np.ndarray, "layer *head column"]
    control_answered: Int[np.ndarray, "layer *head target"] | None
    answer_numbers: tuple[int, int]
    min_effect: float
    source: str
    method: str

    @property
    def estimated(self) -> bool: ...


Values = Callable[..., Float[np.ndarray, "layer *head column"]]
"""Of a map: its values."""


@dataclass(frozen=True)
class Metric:
    """A number of each square of a map: how it comes from the map's logits, how it is shown, averaged and stored."""

    name: str
    """In tables and links."""
    title: str
    """On screen."""
    of: Values
    """Its values over all columns; NaN where there is none. Of a metric of the control: over its targets."""
    has: Callable[..., bool]
    """Which maps have it."""
    scale: Literal["rate", "share", "logit"] = "logit"
    """"rate": yes or no, 0 to 1. "share": of the whole effect, 0 none, 1 all. "logit": an amount of logits."""
    interval: Literal["rate", "ratio of means", "mean", "none"] = "mean"
    """Over pairs: Wilson's or a bootstrap of a rate; Fieller's, of the mean change over the mean whole effect; a
    bootstrap; or no mean, as pairs share no scale."""
    stored: str | None = None
    """Name in the tracking store, where that is another."""
    no_effect: float | None = 0.0
    """Its value where a patch does nothing; None where that is another one for each pair."""
    loses: bool = False
    """Whether larger values are further from the original's answer, not closer to the counterfactual's."""
    of_control: bool = False
    """Of the same-answer control, at the targets alone."""

    @property
    def signed(self) -> bool:
        return self.scale != "rate"

    @property
    def in_store(self) -> str:
        return self.stored or self.name


def _answer_is(which: int) -> Values:
    """Whether the patched run answers c (0) or o (1); NaN where its answer, or that one, is not known."""

    def of(causal_map: Logits) -> Float[np.ndarray, "layer *head column"]:
        answer = causal_map.answer_numbers[which]
        return np.where((causal_map.top < 0) | (answer < 0), np.nan, causal_map.answered == answer)

    return of


def _control_answer_is(which: int) -> Values:
    def of(causal_map: Logits) -> Float[np.ndarray, "layer *head target"]:
        assert causal_map.control_answered is not None
        return (causal_map.control_answered == causal_map.answer_numbers[which]).astype(float)

    return of


def _change(causal_map: Logits) -> Float[np.ndarray, "layer *head column"]:
    return (causal_map.z_patched[..., 0] - causal_map.z_clean[0]).astype(float)


def _share(causal_map: Logits) -> Float[np.ndarray, "layer *head column"]:
    whole = float(causal_map.z_counterfactual[0] - causal_map.z_clean[0])
    return _change(causal_map) / (whole if abs(whole) >= causal_map.min_effect else np.nan)


def _difference(causal_map: Logits) -> Float[np.ndarray, "layer *head column"]:
    return (causal_map.z_patched[..., 0] - causal_map.z_patched[..., 1]).astype(float)


def _drop(causal_map: Logits) -> Float[np.ndarray, "layer *head column"]:
    return (causal_map.z_clean[1] - causal_map.z_patched[..., 1]).astype(float)


def _legacy(name: str) -> tuple[Values, Callable[..., bool]]:
    return lambda m: getattr(m, name).astype(float), lambda m: m.method == "imported" and getattr(m, name) is not None


def _moves(causal_map: Logits) -> bool:
    """Whether another answer is moved: not in ablations, and not where both programs have one answer."""
    c, o = causal_map.answer_tokens
    return causal_map.source in PAIR_SOURCES and (c != o or c < 0)


def _patched(causal_map: Logits) -> bool:
    return _moves(causal_map) and causal_map.method != "imported"


def _ablated(causal_map: Logits) -> bool:
    return not _moves(causal_map)


def _controlled(causal_map: Logits) -> bool:
    return causal_map.control_top is not None


METRICS: dict[str, Metric] = {
    each.name: each
    for each in (
        Metric(
            *("success", "success", _answer_is(0), lambda m: not (_ablated(m) or m.estimated)),
            *("rate", "rate", "patch_success_rate"),
        ),
        Metric("normalized_logit_diff", "normalized logit difference", _share, _patched, "share", "ratio of means"),
        Metric(
            "logit_diff", "logit difference", _difference, lambda m: _patched(m) and not m.estimated, no_effect=None
        ),
        Metric("logit_change", "change of the counterfactual answer's logit", _change, _patched, interval="none"),
        Metric(
            "answer_kept", "answer kept", _answer_is(1), _ablated, "rate", "rate", "answer_kept_rate", no_effect=1.0
        ),
        Metric("answer_logit_drop", "drop of the answer's logit", _drop, _ablated, loses=True),
        Metric(
            *("control_success", "success of the same-answer control", _control_answer_is(0), _controlled),
            *("rate", "rate", "control_success_rate"),
            of_control=True,
        ),
        Metric(
            *("control_answer_kept", "answer kept by the same-answer control", _control_answer_is(1), _controlled),
            *("rate", "rate", "control_answer_kept_rate"),
            no_effect=1.0,
            of_control=True,
        ),
        Metric(
            *("legacy_success_rate", "legacy success rate (the top token changed)", *_legacy("legacy_success_rate")),
            *("rate", "rate"),
        ),
        Metric(
            *("legacy_normalized_logit_difference", "legacy normalized logit difference"),
            *(*_legacy("legacy_normalized_logit_difference"), "share"),
        ),
        Metric(
            *("legacy_logit_difference", "legacy logit difference", *_legacy("legacy_logit_difference")),
            interval="none",
        ),
    )
}
"""What maps can say of a square, the main one first. c and o are the counterfactual's and the original's answer.

- success: the patched run's top token is c; its mean is the interchange-intervention accuracy (IIA). answer_kept: it
  is o.
- logit_diff: z_patched[c] - z_patched[o], the usual logit difference.
- logit_change: z_patched[c] - z_clean[c]; normalized_logit_diff: that as a share of z_cf[c] - z_clean[c]; over pairs
  the ratio of the two means (:func:`ratio_of_means`).
- answer_logit_drop: z_clean[o] - z_patched[o].
- control_*: the same square patched from another program with the original's own answer, at the targets.
- legacy_*: what results of the older format call so; no scale of this project. The logit difference is that of the
  patched run's top token, whichever that is, and normalized by the range of the clean run's logits.
"""
ESTIMATED = "estimated"
"""The word that is with every name of a number that was not measured by patching, but estimated from gradients."""
RANDOM = "_random"
"""Ending of a target's name: the random control of a hypothesis of a knockout."""
LEGACY = tuple(name for name in METRICS if name.startswith("legacy_"))


def as_metric(metric: str | Metric | Values) -> Metric:
    """A metric by name, as itself, or one's own function of a map: ``lambda m: m.z_patched[..., 0]``.

    A function's values have the shape [layer, (head,) column] of ``CausalMap.top``; NaN is no value. Its means over
    pairs have bootstrap intervals.

    Raises:
        InputError: no metric of that name, or a function by the name of another metric.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        name = getattr(metric, "__name__", "metric").strip("<>")
        if name in METRICS:
            raise InputError(f"metric {name!r} is one of METRICS already; give the function another name")
        return Metric(name, name.replace("_", " "), metric, lambda _: True)
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r:.80}; expected one of {', '.join(METRICS)}, or a function of a map")
    return METRICS[metric]


class MayBeEstimated(Protocol):
    """A map, or a mean of maps."""

    @property
    def estimated(self) -> bool: ...


def column_of(metric: str, of: MayBeEstimated) -> str:
    """A metric's name in tables: that of an estimate says so."""
    return f"{ESTIMATED}_{metric}" if of.estimated else metric


def metric_of(column: str) -> Metric:
    """The metric whose values a table has in this column; one's own, which is not in ``METRICS``, as it is shown."""
    name = column.removeprefix(f"{ESTIMATED}_")
    return METRICS.get(name) or Metric(name, name.replace("_", " "), _unknown, lambda _: False)


def _unknown(_: Logits) -> Float[np.ndarray, "layer *head column"]:
    raise InputError("this metric is known by its name alone; give it as a function")


def title_of(metric: str, of: MayBeEstimated) -> str:
    """A metric's name on screen: the same."""
    return f"{ESTIMATED} {metric_of(metric).title}" if of.estimated else metric_of(metric).title
