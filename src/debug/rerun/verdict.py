"""The result of a re-run: identical, within tolerance, or different; and what was changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from debug.causal_map import MeanOverPairs
from debug.errors import InputError
from debug.statistics import wilson
from debug.tracking import LoggedRun, own_n

IDENTICAL, WITHIN, DIFFERENT = "identical", "within tolerance", "different"


class RerunError(InputError):
    """A run that cannot be repeated, or a change that does not apply to it."""


@dataclass(frozen=True)
class Verdict:
    """A re-run compared with the run that it repeats."""

    outcome: str
    """``identical`` (every bit), ``within tolerance`` (logits as close as rounding allows, same successes), or
    ``different``."""
    findings: list[str]
    """Differences in the results; the largest one, with its place, first."""
    environment: dict[str, tuple[str | None, ...]]
    """Differences in how the two were computed: name -> value then and now."""

    def __str__(self) -> str:
        lines = [self.outcome, *(f"  {finding}" for finding in self.findings)]
        lines += [f"  {name}: was {then}, now {now}" for name, (then, now) in self.environment.items()]
        if not self.environment:
            lines.append("  nothing differs in versions, dtype, device, digests, commit or thread count")
        return "\n".join(lines)


@dataclass(frozen=True)
class Rerun:
    """A re-run: the cell that it repeats, its own cell, and the verdict; where settings were changed, instead of a
    verdict the metrics before and after."""

    of: str
    run_id: str
    verdict: Verdict | None
    measured: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.verdict is not None:
            return f"run {self.run_id} repeats {self.of}: {self.verdict}"
        return "\n".join([f"run {self.run_id} repeats {self.of} with changes:", *(f"  {s}" for s in self.measured)])


_RATES = (
    *("accuracy", "accuracy_counterfactual", "answer_probability", "answer_rank", "num_no_answer", "num_errors"),
    *("patch_success_rate", "peak_patch_success_rate", "control_success_rate", "normalized_logit_diff"),
    *("answer_kept_rate", "answer_logit_drop", "rank_agreement", "pairs_used", "pairs_skipped", "num_samples"),
)
"""Metrics that summarize a run, in this order; those of knockouts end in a slash and the hypothesis."""


def measured_otherwise(
    asked: Mapping[str, object], old: LoggedRun, new: LoggedRun, pairs: Sequence[int] | None
) -> list[str]:
    """The changed settings, and each metric before and after, on the same pairs where the re-run is limited to some."""
    lines = []
    for name, value in asked.items():
        was = old.params.get({"program_generator": "generator"}.get(name, name))
        lines.append(f"{name}: {'' if was is None or name == 'pairs' else f'{was} -> '}{name_of(value)}")
    then, now = old.metrics, new.metrics
    if pairs is not None:
        then = _metrics_of(old, pairs)
        now = {name: value for name, value in now.items() if name in then or name not in old.metrics}
    names = [name for rate in _RATES for name in sorted({*then, *now}) if name == rate or name.startswith(f"{rate}/")]
    names = [name for name in names if not name.endswith(("_ci_low", "_ci_high")) and "_by_layer/" not in name]
    # By target only where there is no metric over all targets: for knockouts.
    names = [name for name in names if "/" not in name or name.partition("/")[0] not in {*then, *now}]
    rows = [("", "before", "after"), *((name, _shown(then, name), _shown(now, name)) for name in names)]
    wide = [max(len(row[column]) for row in rows) for column in range(2)]
    return lines + [f"{a.ljust(wide[0])}  {b.ljust(wide[1])}  {c}".rstrip() for a, b, c in rows]


def _shown(metrics: Mapping[str, float], name: str) -> str:
    if name not in metrics:
        return "none"
    ends = [metrics.get(f"{name}_{end}") for end in ("ci_low", "ci_high")]
    interval = "" if None in ends else f" [{ends[0]:.3g}, {ends[1]:.3g}]"
    n = own_n(name, metrics)
    return f"{metrics[name]:.3g}{interval}" + ("" if n is None or not interval else f" (n={n})")


def _metrics_of(run: LoggedRun, numbers: Sequence[int]) -> dict[str, float]:
    """A run's metrics on some of its pairs only (samples, for an accuracy run), numbered as in :func:`rerun`: those
    that can be computed from what the run kept."""
    if run.kind == "accuracy":
        records = [record for record in run.sample_records() if record["program"] is not None]
        read = [records[n]["correct"] for n in numbers if records[n]["correct"] is not None]
        found = wilson(sum(read), len(read)).metrics("accuracy") if read else {}
        return {name: value for name, value in found.items() if value is not None} | {"num_samples": len(read)}
    mean = MeanOverPairs()
    for number in numbers:
        mean.add(run.maps[number])
    found = mean.result().to_metrics()[0] if run.maps[numbers[0]].targets else {}
    return {name: value for name, value in found.items() if value is not None} | {"pairs_used": len(numbers)}


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))
