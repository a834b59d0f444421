"""What a causal study found, and how it is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from debug.causal_map import LOGGED, RANDOM, CausalMap, MeanCausalMap, column_of
from debug.causal_tracing import Agreement, agreement_metrics
from debug.engine.self_checks import SelfChecks
from debug.errors import InputError
from debug.statistics import Interval, bootstrap_mean
from debug.tracking import LoggedRun, Store


@dataclass
class CellResult:
    """One cell of a causal study: what its run holds, in memory but for the maps, which are read when asked for."""

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
    """Of attributions, pair by pair: Spearman's correlation with exact patching over all cells, few of which matter."""
    agreement: list[Agreement] = field(default_factory=list)
    """Of attributions, pair by pair: beside exact patching, where it matters."""
    interventions: int = 0
    seconds: float = 0.0
    seeds_passed_over: int | None = None
    """Seeds without the hops asked for, or whose program the prompt solves; None where the programs were given."""
    error: str | None = None
    prompt: str | None = None
    """What the model was asked in, where that is not the template as it was named."""

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.pairs_used} pairs used, {self.skipped.total()} skipped"]
        lines += [f"  prompt {self.prompt}"] if self.prompt else []
        lines += [f"  FAILED: {self.error}"] if self.error else []
        lines += [f"  skipped {n} x {reason}" for reason, n in self.skipped.most_common(5)]
        if self.accuracy is not None:
            lines.append(f"  accuracy {self.accuracy}, on the counterfactuals {self.accuracy_counterfactual}")
        if self.mean is not None:
            lines += [
                f"  {LOGGED.get(name, column_of(name, self.mean)).replace('_', ' ')} at the targets, over layers: {of}"
                for name, of in self.mean.overall.items()
                if of
            ]
            for hypothesis, by_layer in self.mean.against_random.items():
                for row, compared in enumerate(by_layer):
                    kept, control = (self.mean[name]["answer_kept"][row] for name in (hypothesis, hypothesis + RANDOM))
                    lines.append(
                        f"  {hypothesis} cut from layer {self.mean.layers[row]} on: answer kept {kept}; with as many "
                        f"random edges cut {control}; difference {compared}"
                    )
            if self.mean.too_small is not None and self.mean.too_small.estimate > 0:
                lines.append(f"  the counterfactual's own effect is too small in {self.mean.too_small} of the pairs")
            peak = self.mean.peak()
            if peak is not None and peak.chosen.estimate > 0:
                rate = peak.rate or "not measured: there is one pair alone"
                lines.append(
                    f"  peak, leaving out what holds by construction: {peak.target} at layer {peak.layer}, chosen on "
                    f"every other pair, on the rest {rate}"
                )
            elif "success" in self.mean.metrics:
                lines.append(
                    "  no peak: where success does not hold by construction, no pair that could choose has any"
                )
            lines += [f"  hand-over {move}" for move in self.mean.moves]
        lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in agreement_metrics(self.agreement).items()]
        if self.rank_agreement:
            lines.append(
                f"  rank agreement over all cells, most of which do nothing: {bootstrap_mean(self.rank_agreement)}"
            )
        if self.checks is not None:
            lines.append(f"  self-checks: {self.checks}")
        lines.append(f"  {self.interventions} interventions in {self.seconds:.1f} s; run {self.run_id}")
        return "\n".join(lines)


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
