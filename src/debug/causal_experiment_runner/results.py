"""Results of a causal study, and their printed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from debug.causal_map import RANDOM, CausalMap, MeanCausalMap, column_of, metric_of
from debug.causal_tracing import Agreement, agreement_metrics
from debug.engine.self_checks import SelfChecks
from debug.errors import InputError
from debug.statistics import Interval, bootstrap_mean
from debug.tracking import LoggedRun, Store


@dataclass
class CellResult:
    """One cell of a causal study: the contents of its run, except the maps, which are read from the store."""

    model: str
    name: str
    run_id: str = ""
    mean: MeanCausalMap | None = None
    checks: SelfChecks | None = None
    accuracy: Interval | None = None
    accuracy_counterfactual: Interval | None = None
    pairs_used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of pairs."""
    rank_agreement: list[float] = field(default_factory=list)
    """Of attributions, per pair: Spearman's correlation with exact patching, over all interventions (most have no
    effect)."""
    agreement: list[Agreement] = field(default_factory=list)
    """Of attributions, per pair: agreement with exact patching on the interventions that have an effect."""
    interventions: int = 0
    seconds: float = 0.0
    seeds_passed_over: int | None = None
    """Seeds without the wanted hops, or whose program is a few-shot example; None where the programs were given."""
    error: str | None = None
    prompt: str | None = None
    """The prompt, where it differs from the named template."""

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.pairs_used} pairs used, {self.skipped.total()} skipped"]
        lines += [f"  prompt {self.prompt}"] if self.prompt else []
        lines += [f"  FAILED: {self.error}"] if self.error else []
        lines += [f"  skipped {n} x {reason}" for reason, n in self.skipped.most_common(5)]
        if self.accuracy is not None:
            lines.append(f"  accuracy {self.accuracy}, on the counterfactuals {self.accuracy_counterfactual}")
        if self.mean is not None:
            lines += [
                f"  {self._named(name)} at the targets, over layers: {of}"
                for name, of in self.mean.overall.items()
                if of
            ]
            for hypothesis, by_layer in self.mean.against_random.items():
                for row, compared in enumerate(by_layer):
                    kept, control = (self.mean[name]["answer_kept"][row] for name in (hypothesis, hypothesis + RANDOM))
                    lines.append(
                        f"  {hypothesis} cut from layer {self.mean.layers[row]} on: answer kept {kept}; with as "
                        f"many random edges cut {control}; difference {compared}"
                    )
            if self.mean.too_small is not None and self.mean.too_small.estimate > 0:
                lines.append(
                    f"  the counterfactual's own effect is too small to normalize by in {self.mean.too_small} of pairs"
                )
            peak = self.mean.peak()
            if peak is not None and peak.chosen.estimate > 0:
                rate = peak.rate or "not measured (only one pair)"
                lines.append(
                    f"  peak success, without what holds by construction: {peak.target} at layer {peak.layer}, "
                    f"selected on one half of the pairs, on the other half {rate}"
                )
            elif "success" in self.mean.metrics:
                lines.append(
                    "  no peak success: without what holds by construction, no pair of the selection half succeeds"
                )
            lines += [f"  hand-over {move}" for move in self.mean.moves]
        lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in agreement_metrics(self.agreement).items()]
        if self.rank_agreement:
            lines.append(
                f"  rank agreement over all interventions, most without effect: {bootstrap_mean(self.rank_agreement)}"
            )
        if self.checks is not None:
            lines.append(f"  self-checks: {self.checks}")
        lines.append(f"  {self.interventions} interventions in {self.seconds:.1f} s; run {self.run_id}")
        return "\n".join(lines)

    def _named(self, metric: str) -> str:
        assert self.mean is not None
        return (metric_of(metric).stored or column_of(metric, self.mean)).replace("_", " ")


@dataclass(frozen=True)
class CausalExperimentResult:
    """A causal study: its run id and its cells."""

    run_id: str
    cells: list[CellResult]
    tracking_uri: str

    def logged(self, cell: int = 0) -> LoggedRun:
        """A cell's run as the store has it: params, metrics, pairs, maps, activations."""
        return Store(self.tracking_uri).load_run(self.cells[cell].run_id)

    @property
    def maps(self) -> Sequence[CausalMap]:
        """Causal maps of the first cell, read from the store one file at a time."""
        return self.logged().maps


class NoPairLeft(InputError):
    """Every pair of a cell was skipped."""
