"""The mean of causal maps over pairs, aligned by target."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from debug.causal_map.grid import CausalMap, CausalMapError, held_by_construction, random_of, rows_below_top
from debug.causal_map.means import mean_of, means_by_layer, ratio_of_means
from debug.causal_map.metrics import LEGACY, METRICS, RANDOM, Metric
from debug.causal_map.names import Place, logged_name
from debug.causal_map.routes import HandOver, Peak, hand_overs, peaks
from debug.shown import Shown
from debug.statistics import Comparison, Interval, mcnemar, wilson


@dataclass(frozen=True)
class TargetCurve:
    """A target (of a map with heads, a set of heads there) over layers, averaged over the pairs that have it."""

    place: Place
    values: dict[str, list[Interval | None]]
    """Metric -> by layer; None where no pair has a value (none whose own effect is large enough to divide by)."""

    def __getitem__(self, metric: str) -> list[Interval | None]:
        return self.values[metric]

    @property
    def target(self) -> str:
        """Its name: ``final``, or ``final/head_3``."""
        return self.place.name

    @property
    def success(self) -> list[Interval]:
        """Patch success rate by layer."""
        return self.values["success"]  # type: ignore[return-value]  (every pair has one: never None)

    @property
    def n(self) -> int:
        return max((value.n for values in self.values.values() for value in values if value), default=0)


@dataclass(frozen=True, repr=False)
class MeanCausalMap(Shown):
    """Causal maps of many pairs, aligned by target: layers x targets, with n for each.

    Of a map with heads each set of heads of a target has a curve of its own, called ``<target>/head_<h>``.
    """

    intervention_type: str
    layers: list[int]
    n_layers: int
    n_pairs: int
    metrics: tuple[str, ...]
    """What the curves have values of, the main one first."""
    curves: list[TargetCurve]
    """In the order of the program's text."""
    overall: dict[str, Interval | None]
    """Metric -> mean over the interventions at the targets (no random controls), all layers but row n_layers; None
    where there are none."""
    against_random: dict[str, list[Comparison]] = field(default_factory=dict)
    """Of a knockout: hypothesis -> by layer, whether the answer is kept with its edges cut, against the same pairs with
    as many random edges cut."""
    layer_window: int = 1
    peaks: dict[str, Peak] = field(default_factory=dict)
    """By target; rows that reach the top of the residual stream left out."""
    held: frozenset[str] = frozenset()
    """Targets that succeed by construction: :func:`held_by_construction`."""
    moves: list[HandOver] = field(default_factory=list)
    """In the order of the layers."""
    too_small: Interval | None = None
    """Share of the pairs whose own effect z_cf[c] - z_clean[c] is below ``min_effect``; None where it is not asked."""
    negative: Interval | None = None
    """Share of the pairs whose counterfactual makes its own answer less likely: their effect counts with its sign."""
    estimated: bool = False
    """See :attr:`CausalMap.estimated`."""

    def _in_short(self) -> str:
        peak = self.peak()
        best = f"; peak at {peak.target}, layer {peak.layer}" if peak and peak.chosen.estimate > 0 else ""
        of = f"{self.n_pairs} {'pair' if self.n_pairs == 1 else 'pairs'}"
        return f"{self.intervention_type}, {of}: {len(self.layers)} layers x {len(self.curves)} targets{best}"

    def __getitem__(self, target: str) -> TargetCurve:
        return next(curve for curve in self.curves if curve.target == target)

    def peak(self) -> Peak | None:
        """The best layer and target, leaving out the targets that hold by construction; None where nothing is left."""
        free = [peak for target, peak in self.peaks.items() if target not in self.held]
        return max(free, key=lambda peak: peak.chosen.low or 0.0, default=None)

    def hand_overs(self) -> list[tuple[str, str, int]]:
        """(target, next target, the first layer at which the next one's success rate passes the previous one's)."""
        return [(move.before, move.after, move.layer) for move in self.moves]

    def to_metrics(self) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
        """The mean as metrics of the tracking contract: scalars, and by layer what is a curve over several."""
        scalars: dict[str, float | None] = {}
        for metric, value in self.overall.items():
            if value is not None and metric not in LEGACY:
                name = _stored(metric)
                scalars |= value.metrics(name) | {f"{name}_n": value.n}
        shares = {"normalized_logit_diff_too_small": self.too_small, "counterfactual_effect_negative": self.negative}
        for name, share in shares.items():
            scalars |= share.metrics(name) if share else {}
        if (peak := self.peak()) is not None and peak.rate is not None and peak.chosen.estimate > 0:
            scalars |= {"peak_layer": peak.layer, "peak_patch_success_rate_n": peak.rate.n}
            scalars |= peak.rate.metrics("peak_patch_success_rate")
        for target, (_, layer, rate, chosen) in self.peaks.items():
            if chosen.estimate > 0:
                scalars |= {f"peak_layer/{logged_name(target)}": layer}
                scalars |= rate.metrics(f"peak_patch_success_rate/{logged_name(target)}") if rate else {}
        for move in self.moves:
            name = logged_name(f"{move.before}->{move.after}")
            layers = {"": move.layer, "_ci_low": move.low, "_ci_high": move.high}
            scalars |= {f"hand_over_layer/{name}{end}": layer for end, layer in layers.items()}
            scalars |= {f"hand_over_support/{name}": move.support}
        curves: dict[int, dict[str, float | None]] = {layer: {} for layer in self.layers}
        single = len(self.layers) == 1 and "success" not in self.metrics
        rates = [name for name in self.metrics if name in METRICS and not METRICS[name].signed and name not in LEGACY]
        for curve in self.curves:
            for metric in self.metrics if single else rates:
                for layer, value in zip(self.layers, curve[metric], strict=True):
                    if value is not None and single:
                        scalars |= value.metrics(f"{_stored(metric)}/{logged_name(curve.target)}")
                    elif value is not None:
                        curves[layer] |= value.metrics(f"{_stored(metric)}_by_layer/{logged_name(curve.target)}")
        for hypothesis, by_layer in self.against_random.items():
            for layer, compared in zip(self.layers, by_layer, strict=True):
                if single:
                    scalars |= compared.difference.metrics(f"answer_kept_against_random/{logged_name(hypothesis)}")
                    scalars |= {f"answer_kept_against_random_p/{logged_name(hypothesis)}": compared.p_value}
                else:
                    curves[layer] |= compared.difference.metrics(
                        f"answer_kept_against_random_by_layer/{logged_name(hypothesis)}"
                    )
        return scalars, {layer: values for layer, values in curves.items() if values}


class MeanOverPairs:
    """Adds maps up one at a time, keeping a few numbers of each; :meth:`result` is the mean with its intervals.

    ``metrics`` are one's own, averaged beside those of the maps.
    """

    def __init__(self, metrics: Sequence[Metric] = ()) -> None:
        self._own = list(metrics)
        self._first: CausalMap | None = None
        self._n = 0
        self._metrics: list[Metric] = []
        self._places: dict[str, Place] = {}
        self._rows: dict[str, list[np.ndarray]] = {}  # target -> per pair [metric, layer]
        self._numbers: dict[str, list[int]] = {}  # target -> which of the maps that were added these are
        self._overall: list[tuple[np.ndarray, int]] = []  # per pair: mean of each metric, and of how many interventions
        self._overall_of: list[int] = []  # which of the maps that were added these are
        self._raw: dict[str, list[np.ndarray]] = {}  # target -> per pair [layer]: logit differences
        self._draws: dict[str, int] = {}  # target -> how many random controls its pairs have
        self._raw_overall: list[float] = []  # per pair: their sum over the interventions
        self._whole: list[float] = []  # per pair: the counterfactual's own effect
        self._at: dict[str, list[frozenset[int]]] = {}  # target -> per pair: token positions
        self._held: set[str] = set()
        self._with_last: set[str] = set()  # targets with the last token: at the top row they hold by construction

    @property
    def n_pairs(self) -> int:
        return self._n

    @property
    def _names(self) -> list[str]:
        return [metric.name for metric in self._metrics]

    def add(self, causal_map: CausalMap) -> None:
        if self._first is None:
            self._first = causal_map
            shared = [METRICS[name] for name in causal_map.metrics if METRICS[name].interval != "none"]
            controls = [metric for metric in METRICS.values() if metric.of_control]
            self._metrics = [*dict.fromkeys([*shared, *self._own, *controls])]
        first = self._first
        if causal_map.layers != first.layers or causal_map.metrics != first.metrics:
            raise CausalMapError(
                f"maps over layers {first.layers} with {', '.join(first.metrics)} and maps over layers "
                f"{causal_map.layers} with {', '.join(causal_map.metrics)} cannot be averaged"
            )
        self._n += 1
        below_top = rows_below_top(causal_map)
        grids = {metric.name: causal_map.values(metric) for metric in self._metrics if not metric.of_control}
        moved = "logit_change" in causal_map.metrics
        changes = causal_map.values("logit_change") if moved else np.full(causal_map.top.shape, np.nan)
        c_clean, c_counterfactual = causal_map.z_clean[0], causal_map.z_counterfactual[0]
        self._whole.append(float(c_counterfactual - c_clean))

        def at(target: str, metric: Metric) -> np.ndarray:
            if not metric.of_control:
                return grids[metric.name][..., causal_map.target_columns[target]]
            known = metric.has(causal_map)
            return causal_map.at_target(target, metric) if known else np.full(causal_map.top.shape[:-1], np.nan)

        parts, raw_sum = [], 0.0
        draws: dict[str, list[np.ndarray]] = {}  # of random edges: a pair's value is the mean over them
        for target, positions in causal_map.targets.items():
            both = np.stack([at(target, metric) for metric in self._metrics])
            raw = changes[..., causal_map.target_columns[target]]
            if (control_of := random_of(target)) is not None:
                draws.setdefault(control_of, []).append(both)
                if control_of != target:
                    continue
            curves = {
                Place(target, tuple(heads)): (both[:, :, i], raw[:, i]) for i, heads in enumerate(causal_map.heads)
            }
            for place, (values, raws) in (curves or {Place(target): (both, raw)}).items():
                name = place.name
                self._places[name] = place
                self._rows.setdefault(name, []).append(values)
                self._raw.setdefault(name, []).append(raws)
                self._numbers.setdefault(name, []).append(self._n - 1)
                self._at.setdefault(name, []).append(frozenset(positions))
                self._held |= {name} if held_by_construction(causal_map, target, place.heads) else set()
                self._with_last |= {name} if len(causal_map.tokens) - 1 in positions else set()
                if random_of(target) is None:
                    parts.append(values[:, below_top])
                    raw_sum += float(raws[below_top].sum())
        for name, each in draws.items():
            self._rows[name][-1] = np.mean(each, axis=0)
            self._draws[name] = len(each)
        if parts and any(below_top):
            interventions = np.concatenate(parts, axis=1)
            self._overall.append((interventions.mean(axis=1), interventions.shape[1]))
            self._overall_of.append(self._n - 1)
            self._raw_overall.append(raw_sum)

    def behind(self, target: str, layer: int) -> tuple[list[int], dict[str, Float[np.ndarray, "pair"]]]:
        """What the mean at a target and layer is made of: which of the maps, counted from 0, and each one's metrics.

        The mean's normalized difference is the sum of "logit_change" over that of "whole_effect": a ratio of means.

        Raises:
            CausalMapError: no map has this target, or this layer.
        """
        if self._first is None or target not in self._rows or layer not in self._first.layers:
            raise CausalMapError(f"no map has a target {target!r} at layer {layer}")
        row, numbers = self._first.layers.index(layer), self._numbers[target]
        values = np.stack(self._rows[target])[:, :, row]
        effects = {"logit_change": np.stack(self._raw[target])[:, row], "whole_effect": np.array(self._whole)[numbers]}
        return numbers, dict(zip(self._names, values.T, strict=True)) | effects

    def of_each(self, metric: str) -> dict[int, float]:
        """Which of the maps, counted from 0 -> its mean of a metric over the interventions at its targets; those
        without a value left out. ``overall`` is their mean, each weighted by its number of interventions.

        Raises:
            CausalMapError: the maps have no such metric.
        """
        if metric not in self._names:
            raise CausalMapError(f"these maps have no {metric!r}; they have {', '.join(self._names)}")
        values = (float(means[self._names.index(metric)]) for means, _ in self._overall)
        return {n: value for n, value in zip(self._overall_of, values, strict=True) if not math.isnan(value)}

    def effects_of_each(self) -> dict[int, tuple[float, float]]:
        """Which of the maps, counted from 0 -> what it adds to the sums whose ratio is the overall
        ``normalized_logit_diff``: the changes of its answer's logit at its targets, and as many whole effects."""
        whole = (self._whole[number] * n for number, (_, n) in zip(self._overall_of, self._overall, strict=True))
        return {n: (raw, of) for n, raw, of in zip(self._overall_of, self._raw_overall, whole, strict=True)}

    def result(self) -> MeanCausalMap:
        """Raises CausalMapError where no map, or none with a target, was added."""
        if self._first is None or not self._rows:
            raise CausalMapError("no causal map with a target to average over")
        curves, whole = [], np.array(self._whole)
        for target in self._in_text_order():
            values = np.stack(self._rows[target])  # pair, metric, layer
            by_metric = {m.name: means_by_layer(not m.signed, values[:, i]) for i, m in enumerate(self._metrics)}
            if "normalized_logit_diff" in by_metric:
                wholes, raw = whole[self._numbers[target]][:, None], np.stack(self._raw[target])
                by_metric["normalized_logit_diff"] = ratio_of_means(raw, wholes, self._first.min_effect)
            curves.append(TargetCurve(self._places[target], by_metric))
        metrics = tuple(
            metric.name
            for metric in self._metrics
            if not metric.of_control or any(v for curve in curves for v in curve[metric.name])
        )
        weights = np.array([n for _, n in self._overall])
        overall = {
            metric.name: mean_of(not metric.signed, np.array([means[i] for means, _ in self._overall]), weights)
            for i, metric in enumerate(self._metrics)
            if metric.name in metrics
        }
        too_small = negative = None
        if "normalized_logit_diff" in metrics:
            smallest = self._first.min_effect
            too_small = wilson(int((np.abs(whole) < smallest).sum()), len(whole))
            negative = wilson(int((whole <= -smallest).sum()), len(whole))
            if self._overall:
                of_these, share = whole[self._overall_of], weights / weights.mean()
                sums, wholes = np.array(self._raw_overall) / weights.mean(), of_these * share
                [overall["normalized_logit_diff"]] = ratio_of_means(sums[:, None], wholes[:, None], smallest)
        success, below_top = self._success(), rows_below_top(self._first)
        by_no_construction = {
            target: np.where(below_top, rows, np.nan) if target in self._with_last else rows
            for target, rows in success.items()
        }
        return MeanCausalMap(
            self._first.intervention_type,
            self._first.layers,
            self._first.n_layers,
            self._n,
            metrics,
            curves,
            overall,
            self._against_random(),
            self._first.layer_window,
            peaks(success, self._first.layers, below_top),
            frozenset(self._held),
            hand_overs(by_no_construction, self._first.layers, self._share_a_token),
            too_small,
            negative,
            self._first.estimated,
        )

    def _in_text_order(self) -> list[str]:
        return sorted(self._rows, key=lambda name: self._places[name].text_order)

    def _success(self) -> dict[str, Float[np.ndarray, "pair layer"]]:
        """Target -> whether each pair's patch succeeds; NaN where a pair has not this target."""
        success = {}
        for target in self._in_text_order() if "success" in self._names else ():
            rows = np.stack(self._rows[target])[:, self._names.index("success")]
            success[target] = np.full((self._n, rows.shape[1]), np.nan)
            success[target][self._numbers[target]] = rows
        return success

    def _share_a_token(self, one: str, other: str) -> bool:
        at = [dict(zip(self._numbers[target], self._at[target], strict=True)) for target in (one, other)]
        return any(at[0][number] & at[1][number] for number in at[0].keys() & at[1].keys())

    def _against_random(self) -> dict[str, list[Comparison]]:
        """Hypotheses of a knockout against their own controls, on the same pairs; draws are clustered by pair."""
        if "answer_kept" not in self._names:
            return {}
        kept = {name: np.stack(rows)[:, self._names.index("answer_kept")] for name, rows in self._rows.items()}

        def compared(own: Float[np.ndarray, " pair"], random: Float[np.ndarray, " pair"], draws: int) -> Comparison:
            each = np.arange(draws) < np.rint(random * draws)[:, None]
            pairs = np.repeat(np.arange(len(own)), draws)
            return mcnemar(np.repeat(own == 1, draws), each.ravel(), seeds=pairs)

        found = {}
        for name, own in kept.items():
            if name + RANDOM in kept:
                with_control = np.isin(self._numbers[name], self._numbers[name + RANDOM])
                random, draws = kept[name + RANDOM], self._draws[name + RANDOM]
                found[name] = [compared(own[with_control, row], random[:, row], draws) for row in range(own.shape[1])]
        return found


def mean_over_pairs(maps: Iterable[CausalMap], metrics: Sequence[Metric] = ()) -> MeanCausalMap:
    """The mean of many maps, aligned by target; memory holds one map at a time where ``maps`` is lazy."""
    mean = MeanOverPairs(metrics)
    for causal_map in maps:
        mean.add(causal_map)
    return mean.result()


def _stored(metric: str) -> str:
    return METRICS[metric].in_store if metric in METRICS else metric
