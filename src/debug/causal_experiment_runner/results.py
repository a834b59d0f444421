"""Results of a causal study, and their printed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from debug.causal_map import CausalMap, MeanCausalMap, column_of, findings, metric_of, random_of
from debug.causal_tracing import Agreement, agreement_metrics
from debug.engine.self_checks import SelfChecks
from debug.errors import InputError
from debug.hypotheses import HypothesisScores
from debug.kinds import Argument
from debug.plan import KNOCKOUT
from debug.shown import Shown
from debug.statistics import Interval, bootstrap_mean
from debug.tracking import LoggedRun, Store

if TYPE_CHECKING:
    import altair as alt


@dataclass(repr=False)
class CellResult(Shown):
    """One cell of a causal study: the contents of its run, except the maps, which are read from the store."""

    model: str
    name: str
    run_id: str = ""
    mean: MeanCausalMap | None = None
    scores: HypothesisScores | None = None
    """Of the rival hypotheses; None where no pair tells them apart."""
    checks: SelfChecks | None = None
    accuracy: Interval | None = None
    accuracy_counterfactual: Interval | None = None
    pairs_used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason, as the first pair of its kind has it -> number of pairs of this kind."""
    rank_agreement: list[float] = field(default_factory=list)
    """Of attributions, per pair: Spearman's correlation with exact patching, over all interventions (most have no
    effect)."""
    agreement: list[Agreement] = field(default_factory=list)
    """Of attributions, per pair: agreement with exact patching on the interventions that have an effect."""
    interventions: int = 0
    interventions_kept: int = 0
    """Those that were made before the cell was taken up; the seconds are those of the others."""
    seconds: float = 0.0
    seeds_passed_over: int | None = None
    """Seeds without the wanted hops, or whose program is a few-shot example; None where the programs were given."""
    error: str | None = None
    prompt: str | None = None
    """The prompt, where it differs from the named template."""

    def _in_short(self) -> str:
        return f"{self.name}, run {self.run_id[:8]}: {self.pairs_used} pairs used, {self.skipped.total()} skipped"

    def plot(self, **settings: Argument) -> alt.TopLevelMixin:
        """The picture of its mean. Raises InputError where it has none."""
        if self.mean is None:
            raise InputError(f"{self.name} has no map: {self.error or 'every pair was skipped'}")
        return self.mean.plot(**settings)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.pairs_used} pairs used, {self.skipped.total()} skipped"]
        lines += [f"  prompt {self.prompt}"] if self.prompt else []
        lines += [f"  FAILED: {self.error}"] if self.error else []
        lines += [f"  {line}" for line in self.findings()]
        if self.mean is not None:
            lines += [
                f"  {self._named(name)} at the targets, over layers: {of}"
                for name, of in self.mean.overall.items()
                if of
            ]
            if self.mean.intervention_type == KNOCKOUT:
                own = [curve for curve in self.mean.curves if curve.target not in self.mean.against_random]
                lines += [
                    f"  {curve.target} cut from layer {layer} on: answer kept {kept}"
                    for curve in own
                    if random_of(curve.target) is None
                    for layer, kept in zip(self.mean.layers, curve["answer_kept"], strict=True)
                ]
            if self.mean.too_small is not None and self.mean.too_small.estimate > 0:
                lines.append(
                    f"  the counterfactual's own effect is too small to normalize by in {self.mean.too_small} of pairs"
                )
        lines += [f"  {line}" for line in self.scores.said()] if self.scores and self.scores.beyond_success else []
        lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in agreement_metrics(self.agreement).items()]
        if self.rank_agreement:
            lines.append(
                f"  rank agreement over all interventions, most without effect: {bootstrap_mean(self.rank_agreement)}"
            )
        if self.checks is not None:
            lines.append(f"  self-checks: {self.checks}")
        lines.append(f"  {self.interventions} interventions in {self.seconds:.1f} s; run {self.run_id}")
        return "\n".join(lines)

    def findings(self) -> list[str]:
        """The main findings, a sentence each: of the mean, accuracy, and what was skipped."""
        lines = findings(self.mean) if self.mean else []
        if self.accuracy is not None:
            lines.append(f"accuracy {self.accuracy}, on the counterfactuals {self.accuracy_counterfactual}")
        return lines + [f"skipped {n} x {reason}" for reason, n in self.skipped.most_common(5)]

    def _named(self, metric: str) -> str:
        assert self.mean is not None
        name = metric_of(metric).stored or column_of(metric, self.mean)
        return _IN_WORDS.get(name, name.replace("_", " "))


_CONTROL = "control, patched from a program of the same answer"
_IN_WORDS = {
    "control_success_rate": f"{_CONTROL}: answer becomes the counterfactual's",
    "control_answer_kept_rate": f"{_CONTROL}: answer stays",
}
"""Names of metrics that say too little by themselves."""


@dataclass(frozen=True, repr=False)
class CausalExperimentResult(Shown):
    """A causal study: its run id and its cells."""

    run_id: str
    cells: list[CellResult]
    tracking_uri: str

    def _in_short(self) -> str:
        return f"run {self.run_id[:8]}: {'; '.join(cell.name for cell in self.cells[:8])}"

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.cells))

    def plot(self, cell: int = 0, **settings: Argument) -> alt.TopLevelMixin:
        """The picture of a cell's mean."""
        return self.cells[cell].plot(**settings)

    def _repr_html_(self) -> str:
        return "".join(cell._repr_html_() for cell in self.cells)

    def logged(self, cell: int = 0) -> LoggedRun:
        """A cell's run as the store has it: params, metrics, pairs, maps, activations."""
        return Store(self.tracking_uri).load_run(self.cells[cell].run_id)

    @property
    def maps(self) -> Sequence[CausalMap]:
        """Causal maps of the first cell, read from the store one file at a time."""
        return self.logged().maps


class NoPairLeft(InputError):
    """Every pair of a cell was skipped."""
