"""What became of a pair, and of an experiment in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from debug.causal_map import AttentionPattern, CausalMap, MeanCausalMap, Metric, mean_over_pairs
from debug.causal_tracing.agreement import Agreement
from debug.engine.self_checks import SelfChecks
from debug.errors import InputError
from debug.kinds import Argument
from debug.plan import Plan
from debug.programs import AnyPair
from debug.shown import Shown

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True, repr=False)
class PairResult(Shown):
    """What became of one pair: its causal map, or the reason why it was skipped."""

    index: int
    pair: AnyPair | None
    skipped: str | None = None
    correct: tuple[bool, bool] | None = None
    """Whether the model answers the original, and the counterfactual, as the plan scores; None where not asked."""
    answers: tuple[str, str] | None = None
    """Those top tokens, as text; scored as whole answers, the most probable candidates; greedy, what it writes."""
    prompt: str | None = None
    causal_map: CausalMap | None = None
    checks: SelfChecks | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)
    """``<clean|counterfactual>/<component>`` -> [layer, position, width], "positions", both programs' "token_ids"."""
    attention: AttentionPattern | None = None
    """Of the clean forward pass, from the targets' tokens; None where it was not asked for, or is too large."""
    interventions: int = 0
    """Those that were made, controls too; not those whose effect is zero because nothing differs there."""
    rank_agreement: float | None = None
    """Of an attribution: Spearman's correlation with exact patching over squares drawn alike from all, most of which
    do nothing; None where all are equal."""
    agreement: Agreement | None = None
    """Of an attribution: where it matters; None where the pair's whole effect is too small for a share of it."""

    def _in_short(self) -> str:
        return f"pair {self.index}, " + (f"skipped: {self.skipped}" if self.skipped else repr(self.causal_map))

    def plot(self, **settings: Argument) -> alt.TopLevelMixin:
        """The picture of its map. Raises InputError where the pair was skipped."""
        if self.causal_map is None:
            raise InputError(f"pair {self.index} has no map: {self.skipped}")
        return self.causal_map.plot(**settings)


@dataclass(frozen=True, repr=False)
class CausalTracingResult(Shown):
    """The maps of an experiment in memory, with what was skipped and what the engine measured of itself."""

    model: str
    plan: Plan
    results: list[PairResult]
    metric: Metric | None = None
    """The caller's own."""

    def _in_short(self) -> str:
        return f"{self.model}: {len(self.maps)} pairs used, {len(self.skipped)} skipped"

    def plot(self, **settings: Argument) -> alt.TopLevelMixin:
        """The picture of the mean over pairs, of one pair that of its map. Raises InputError where all were skipped."""
        if not self.maps:
            raise InputError(f"no pair has a map: {'; '.join({str(each.skipped) for each in self.skipped})[:500]}")
        return (self.mean if len(self.maps) > 1 else self.maps[0]).plot(**settings)

    @cached_property
    def maps(self) -> list[CausalMap]:
        """One per used pair; its ``pair`` is the index into the programs given."""
        return [result.causal_map for result in self.results if result.causal_map]

    @property
    def skipped(self) -> list[PairResult]:
        return [result for result in self.results if result.skipped]

    @cached_property
    def checks(self) -> SelfChecks:
        checks = [result.checks for result in self.results if result.checks]
        merged = checks[0]
        for other in checks[1:]:
            merged |= other
        return merged

    @property
    def rank_agreement(self) -> list[float]:
        """Of an attribution: Spearman's correlation with exact patching, pair by pair, over squares most of which do
        nothing; see :attr:`agreement`."""
        return [result.rank_agreement for result in self.results if result.rank_agreement is not None]

    @property
    def agreement(self) -> list[Agreement]:
        """Of an attribution: beside exact patching, pair by pair, where it matters."""
        return [result.agreement for result in self.results if result.agreement is not None]

    @cached_property
    def mean(self) -> MeanCausalMap:
        """The mean over pairs, aligned by target; of the caller's own metric, too."""
        return mean_over_pairs(self.maps, [self.metric] if self.metric else [])

    @property
    def values(self) -> list[Float[np.ndarray, "layer *head position"]]:
        """The caller's metric (without one, the maps' main one) over the single positions, map by map."""
        return [each.grid(self.metric or each.metrics[0]) for each in self.maps]
