"""What maps say of a cell: metrics, with their names on screen and in the store."""

from __future__ import annotations

from typing import Protocol

METRICS = {
    "success": "success",
    "normalized_logit_diff": "normalized logit difference",
    "logit_diff": "logit difference",
    "answer_kept": "answer kept",
    "answer_logit_drop": "drop of the answer's logit",
    "control_success": "success of the same-answer control",
    "control_answer_kept": "answer kept by the same-answer control",
    "legacy_success_rate": "legacy success rate (the top token changed)",
    "legacy_normalized_logit_difference": "legacy normalized logit difference",
    "legacy_logit_difference": "legacy logit difference",
}
"""What maps can say of a cell, with its name on screen; see :meth:`CausalMap.metrics` for which map has which.

- success: the patched run's top token is c. answer_kept: it is o.
- logit_diff: z_patched[c] - z_clean[c]; normalized: as a share of z_cf[c] - z_clean[c]; over pairs the ratio of the two
  means (:func:`ratio_of_means`).
- answer_logit_drop: z_clean[o] - z_patched[o].
- control_*: the same cell patched from another program with the original's own answer, at the targets.
- legacy_*: what results of the older format call so; no scale of this project. The logit difference is that of the
  patched run's top token, whichever that is, and normalized by the range of the clean run's logits.
"""
LOGGED = {
    "success": "patch_success_rate",
    "answer_kept": "answer_kept_rate",
    "control_success": "control_success_rate",
    "control_answer_kept": "control_answer_kept_rate",
}
"""Names of rates in the tracking store; all other metrics keep theirs."""
ESTIMATED = "estimated"
"""The word that is with every name of a number that was not measured by patching, but estimated from gradients."""
RANDOM = "_random"
"""Ending of a target's name: the random control of a hypothesis of a knockout."""
RATES = ("success", "answer_kept", "control_success", "control_answer_kept", "legacy_success_rate")
LEGACY = tuple(metric for metric in METRICS if metric.startswith("legacy_"))


class MayBeEstimated(Protocol):
    """A map, or a mean of maps."""

    @property
    def estimated(self) -> bool: ...


def column_of(metric: str, of: MayBeEstimated) -> str:
    """A metric's name in tables: that of an estimate says so."""
    return f"{ESTIMATED}_{metric}" if of.estimated else metric


def title_of(metric: str, of: MayBeEstimated) -> str:
    """A metric's name on screen: the same."""
    return f"{ESTIMATED} {METRICS[metric]}" if of.estimated else METRICS[metric]
