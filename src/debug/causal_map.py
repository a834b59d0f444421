"""What one causal experiment found: the grid of layers x token positions (x heads) for a pair, and its mean over pairs.

The engine fills a :class:`CausalMap`, tracking stores it, charts and the dashboard read it. Numpy only: knows no model,
no store and no picture. Maps keep logits of both answer tokens, so that any other metric can be derived later.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import stats

from debug.statistics import Comparison, Interval, bootstrap_mean, bootstrap_means, mcnemar, wilson

Answer = Float[np.ndarray, "2"]  # logits of the answer tokens c (counterfactual) and o (original)
ROOT, FINAL = "ref_depth_1_rhs", "final"
LEADS = 0.25
"""The value is handed over to a target that succeeds in this share of the pairs or more: 1 in 200 is noise."""
SUPPORT = 0.95
"""A hand-over is reported where this share of the resamples of pairs has it."""
RESAMPLES = 1000
SMALLEST_HALF = 5
"""Pairs that measure a hand-over which others chose: of fewer, not even all would tell it from chance (1 in 2^5)."""
_PARTS = ("lhs", "equals", "rhs", "newline", "hash", "var", "colon")


class CausalMapError(ValueError):
    """A causal map, or a file of them, that is not one: names the field."""


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


@dataclass(frozen=True, eq=False)
class CausalMap:
    """What every cell of one pair (layer, column, perhaps heads) did to the answer.

    A column is a set of token positions patched together, or, of an ``attention_knockout``, the positions between which
    edges were cut. The first ``len(positions)`` columns are the single positions of the grid; targets that are no
    single position have a column of their own behind them.
    """

    intervention_type: str
    pair: int
    """Index of the pair in the run's programs.json."""
    tokens: list[str]
    """The prompt's tokens as text, the model's reading of them, in order."""
    layers: list[int]
    positions: list[int]
    columns: list[list[int]]
    targets: dict[str, list[int]]
    """Target (of a knockout: hypothesis) -> its token positions. Of patches, targets on one and the same set of
    positions are listed once."""
    target_columns: dict[str, int]
    """Target -> its column."""
    n_layers: int
    first_difference: int
    """First token position at which the two prompts differ; cells before it were not run: their effect is zero."""
    answer_tokens: tuple[int, int]
    """c and o: first tokens of the counterfactual's and of the original's answer; -1 where not known (imported)."""
    top_tokens: tuple[int, int]
    """Top token of the clean and of the counterfactual run."""
    min_effect: float
    """Smallest |z_cf[c] - z_clean[c]| by which a difference is normalized; see models.SMALLEST_EFFECT."""
    vocabulary: dict[int, str]
    """Text of every token id that occurs in this map as a top token or as an answer."""
    z_clean: Answer
    z_counterfactual: Answer
    z_patched: Float[np.ndarray, "layer *head column 2"]
    top: Int[np.ndarray, "layer *head column"]
    """Top token of each patched run; -1 where it was only estimated, or not recorded."""
    layer_window: int = 1
    """Row l patches, or cuts, the layers l to l + layer_window - 1 together."""
    heads: list[list[int]] = field(default_factory=list)
    """The heads that each step of the head axis patches together; empty where there is no such axis."""
    source: str = "counterfactual"
    """Where patched activations come from: one of SOURCES, or "knockout" where edges are cut."""
    direction: str = "into_original"
    method: str = "patching"
    """"patching"; "attribution": a linear estimate of the logit difference; "imported": of the older format, of which
    logits are not known (NaN)."""
    control_top: Int[np.ndarray, "layer *head target"] | None = None
    """Top tokens with the same-answer control as source, at the targets; None where it was not run."""
    lens_logits: Float[np.ndarray, "row position 2"] | None = None
    """Logit lens of the clean run: logits of c and o read off the residual stream going into each layer, and at the
    top; of the single ``positions``. None where it was not read."""
    lens_ranks: Int[np.ndarray, "row position 2"] | None = None
    """How many tokens have a higher logit there than c and o."""
    legacy_success_rate: Float[np.ndarray, "layer *head column"] | None = None
    legacy_normalized_logit_difference: Float[np.ndarray, "layer *head column"] | None = None
    legacy_logit_difference: Float[np.ndarray, "layer *head column"] | None = None
    """See METRICS; of imported maps only."""

    def __post_init__(self) -> None:
        expected = (len(self.layers), *([len(self.heads)] if self.heads else []), len(self.columns))
        if self.top.shape != expected or self.z_patched.shape != (*expected, 2):
            axes = "layers x heads x columns" if self.heads else "layers x columns"
            raise CausalMapError(
                f"'z_patched' {self.z_patched.shape} and 'top' {self.top.shape} do not fit {expected} {axes}"
            )
        if self.columns[: len(self.positions)] != [[position] for position in self.positions]:
            raise CausalMapError("'columns' must begin with the single 'positions'")
        if not all(0 <= p < len(self.tokens) for column in [*self.columns, *self.targets.values()] for p in column):
            raise CausalMapError(f"'columns' or 'targets' name positions outside the {len(self.tokens)} tokens")
        columns = range(len(self.columns))
        if self.targets.keys() != self.target_columns.keys() or not {*self.target_columns.values()} <= {*columns}:
            raise CausalMapError("'target_columns' must name a column of 'columns' for each of 'targets'")
        if self.control_top is not None and self.control_top.shape != (*expected[:-1], len(self.targets)):
            raise CausalMapError(f"'control_top' {self.control_top.shape} does not fit the {len(self.targets)} targets")
        lens = (self.n_layers + 1, len(self.positions), 2)
        for name in ("lens_logits", "lens_ranks"):
            if (array := getattr(self, name)) is not None and array.shape != lens:
                raise CausalMapError(f"'{name}' {array.shape} does not fit {lens} rows x positions x answers")

        for name in LEGACY:
            if (array := getattr(self, name)) is not None and array.shape != expected:
                raise CausalMapError(f"'{name}' {array.shape} does not fit {expected} layers x (heads x) columns")

    @property
    def metrics(self) -> tuple[str, ...]:
        """What this map says of a cell, the main one first."""
        if self.method == "imported":
            return ("success", *(name for name in LEGACY if getattr(self, name) is not None))
        if self.estimated:
            return ("normalized_logit_diff", "logit_diff")
        moved = ("success", "normalized_logit_diff", "logit_diff")
        return moved if self.source in PAIR_SOURCES else ("answer_kept", "answer_logit_drop")

    @property
    def estimated(self) -> bool:
        """Its numbers are estimates of what patching would give."""
        return self.method == "attribution"

    @property
    def target_metrics(self) -> tuple[str, ...]:
        """What it says at its targets: the same, and what the control did there."""
        return self.metrics + (("control_success", "control_answer_kept") if self.control_top is not None else ())

    def grid(self, metric: str) -> Float[np.ndarray, "layer *head position"]:
        """A metric over the single positions; NaN where it has no value.

        Raises:
            CausalMapError: this map has no such metric.
        """
        return self.values(metric)[..., : len(self.positions)]

    def values(self, metric: str) -> Float[np.ndarray, "layer *head column"]:
        """A metric over all columns, joint ones too; as :meth:`grid`."""
        if metric not in self.metrics:
            raise CausalMapError(f"this map has no {metric!r}; it has {', '.join(self.metrics)}")
        c, o = self.answer_tokens
        if metric in LEGACY:
            return getattr(self, metric).astype(float)
        if metric in ("success", "answer_kept"):
            answer = c if metric == "success" else o
            return np.where((self.top < 0) | (answer < 0), np.nan, self.top == answer)
        if metric == "answer_logit_drop":
            return (self.z_clean[1] - self.z_patched[..., 1]).astype(float)
        raw = (self.z_patched[..., 0] - self.z_clean[0]).astype(float)
        if metric == "logit_diff":
            return raw
        whole = float(self.z_counterfactual[0] - self.z_clean[0])
        return raw / (whole if abs(whole) >= self.min_effect else np.nan)

    @property
    def logit_diff(self) -> Float[np.ndarray, "layer *head position"]:
        """z_patched[c] - z_clean[c]: the raw effect."""
        return self.grid("logit_diff")

    @property
    def normalized_logit_diff(self) -> Float[np.ndarray, "layer *head position"]:
        """The effect as a share of the counterfactual's own: 0 none, 1 all; NaN (null) where that is too small."""
        return self.grid("normalized_logit_diff")

    @property
    def success(self) -> Bool[np.ndarray, "layer *head position"]:
        """The patched run's top token is c; False where that is not known (imported maps: :meth:`grid` has NaN)."""
        return self.grid("success") == 1

    @property
    def top_token(self) -> Int[np.ndarray, "layer *head position"]:
        return self.top[..., : len(self.positions)]

    def beginning_at(self, start: int) -> CausalMap:
        """The map without the single positions before ``start``, and without targets there: for a picture of the rest.

        Raises:
            CausalMapError: no position is left.
        """
        singles = [index for index, position in enumerate(self.positions) if position >= start]
        if not singles:
            raise CausalMapError(f"no position of the map is at or after {start}; the last is {self.positions[-1:]}")
        kept = [*singles, *range(len(self.positions), len(self.columns))]
        targets = [target for target, column in self.target_columns.items() if column in kept]
        rows = [list(self.targets).index(target) for target in targets]

        def of(array: np.ndarray | None, indices: list[int], axis: int) -> Any:
            return None if array is None else array.take(indices, axis)

        return replace(
            self,
            positions=[self.positions[index] for index in singles],
            columns=[self.columns[index] for index in kept],
            targets={target: self.targets[target] for target in targets},
            target_columns={target: kept.index(self.target_columns[target]) for target in targets},
            z_patched=of(self.z_patched, kept, -2),
            top=of(self.top, kept, -1),
            control_top=of(self.control_top, rows, -1),
            lens_logits=of(self.lens_logits, singles, 1),
            lens_ranks=of(self.lens_ranks, singles, 1),
            **{name: of(getattr(self, name), kept, -1) for name in LEGACY},
        )

    def at_target(self, target: str, metric: str = "success") -> Float[np.ndarray, "layer *head"]:
        """One of ``target_metrics`` at a target, its tokens patched together."""
        if metric.startswith("control_") and self.control_top is not None:
            answer = self.answer_tokens[0 if metric == "control_success" else 1]
            return (self.control_top[..., list(self.targets).index(target)] == answer).astype(float)
        return self.values(metric)[..., self.target_columns[target]]

    def to_tensors(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays, and everything else as JSON values."""
        arrays = {name: array for name in _ARRAYS if (array := getattr(self, name)) is not None}
        return arrays, {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ARRAYS}

    @classmethod
    def from_tensors(cls, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> CausalMap:
        """Raises CausalMapError for whatever is missing or of the wrong type."""
        values: dict[str, Any] = {}
        header = dict(header)
        if "target_columns" not in header:  # the first maps had each target on a column of its own positions
            with suppress(KeyError, ValueError, TypeError, AttributeError):  # what is wrong with these is told below
                columns = [*map(sorted, header["columns"])]
                header["target_columns"] = {t: columns.index(sorted(at)) for t, at in header["targets"].items()}
        if "heads" not in header and getattr(arrays.get("top"), "ndim", 0) == 3:
            header["heads"] = [[head] for head in range(arrays["top"].shape[1])]
        for name, check in _HEADER.items():
            if name not in header and name in _DEFAULTS:
                continue
            if name not in header:
                raise CausalMapError(f"field {name!r} is missing")
            try:
                values[name] = check(header[name])
            except (TypeError, ValueError, AttributeError) as error:
                raise CausalMapError(f"field {name!r} is {header[name]!r:.80}: {error}") from error
        values.update(arrays)
        return cls(**values)


def _int(value: Any) -> int:
    if type(value) is int and -(2**31) <= value < 2**31:  # no bool
        return value
    raise TypeError("expected an integer of 32 bits")


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise TypeError("expected a number, 0 or more")
    return float(value)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a text")
    value.encode("utf-8")  # a lone surrogate is no text, and a ValueError
    return value


def _list(check: Any) -> Any:
    def read(value: Any) -> list:
        if not isinstance(value, list | tuple):
            raise TypeError("expected a list")
        return [check(item) for item in value]

    return read


def _two(value: Any) -> tuple[int, int]:
    first, second = _list(_int)(value)
    return first, second


def _one_of(*options: str) -> Any:
    def read(value: Any) -> str:
        if value not in options:
            raise ValueError(f"expected one of {', '.join(options)}")
        return value

    return read


SOURCES = ("counterfactual", "stored", "zero", "mean", "resample")
"""Where patched activations can come from: the counterfactual's run; the same, as a logged run stored it; zeros; the
mean over runs of other programs of the same length; the run of another pair's original."""
PAIR_SOURCES = ("counterfactual", "stored")
"""The sources that are the pair's other program: only from these a cell can succeed."""
DIRECTIONS = ("into_original", "into_counterfactual")

_ARRAYS = {
    "z_clean": np.float32,
    "z_counterfactual": np.float32,
    "z_patched": np.float32,
    "top": np.int64,
    "control_top": np.int64,
    "lens_logits": np.float32,
    "lens_ranks": np.int64,
    **dict.fromkeys(LEGACY, np.float32),
}
LONGEST_HEADER = 2**24  # characters that say what the maps of one file are of
_OPTIONAL = ("control_top", "lens_logits", "lens_ranks", *LEGACY)
_HEADER: dict[str, Any] = {
    "intervention_type": _str,
    "pair": _int,
    "tokens": _list(_str),
    "layers": _list(_int),
    "positions": _list(_int),
    "columns": _list(_list(_int)),
    "targets": lambda value: {_str(name): _list(_int)(positions) for name, positions in value.items()},
    "n_layers": _int,
    "first_difference": _int,
    "answer_tokens": _two,
    "top_tokens": _two,
    "min_effect": _number,
    "vocabulary": lambda value: {_int(int(token)): _str(text) for token, text in value.items()},
    "target_columns": lambda value: {_str(name): _int(column) for name, column in value.items()},
    "layer_window": _int,
    "heads": _list(_list(_int)),
    "source": _one_of(*SOURCES, "knockout"),
    "direction": _one_of(*DIRECTIONS),
    "method": _one_of("patching", "attribution", "imported"),
}
_DEFAULTS = ("layer_window", "heads", "source", "direction", "method")  # what the first maps did not say


def save_maps(path: Path, maps: Sequence[CausalMap]) -> None:
    """Write maps into one safetensors file: arrays as ``<index>/<name>``, the rest as JSON in the file's header."""
    arrays: dict[str, np.ndarray] = {}
    headers = []
    for index, causal_map in enumerate(maps):
        own, header = causal_map.to_tensors()
        arrays |= {f"{index}/{name}": np.ascontiguousarray(array) for name, array in own.items()}
        headers.append(header)
    save_tensors(path, arrays, {"causal_maps": json.dumps(headers)})


def save_tensors(path: Path, arrays: dict[str, np.ndarray], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file; whoever reads meanwhile finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    save_file(arrays, part, metadata=header)
    part.replace(path)


def load_maps(path: Path) -> list[CausalMap]:
    """Read the maps of one file; arrays are checked for name, type and shape.

    Raises:
        CausalMapError: names what of the file is broken.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {})["causal_maps"]
            if len(text) > LONGEST_HEADER:
                raise CausalMapError(f"the header 'causal_maps' has {len(text):,} characters, above {LONGEST_HEADER:,}")
            headers = json.loads(text)
            if not isinstance(headers, list) or not all(isinstance(header, dict) for header in headers):
                raise CausalMapError("the header 'causal_maps' is no list of records")
            maps, there = [], set(file.keys())
            for index, header in enumerate(headers):
                arrays = {
                    name: file.get_tensor(f"{index}/{name}")
                    for name in _ARRAYS
                    if name not in _OPTIONAL or f"{index}/{name}" in there
                }
                for name, array in arrays.items():
                    if array.dtype != _ARRAYS[name]:
                        raise CausalMapError(
                            f"map {index}: '{name}' is {array.dtype}, expected {_ARRAYS[name].__name__}"
                        )
                if arrays["z_clean"].shape != (2,) or arrays["z_counterfactual"].shape != (2,):
                    raise CausalMapError(f"map {index}: 'z_clean' and 'z_counterfactual' must have two logits each")
                try:
                    maps.append(CausalMap.from_tensors(arrays, header))
                except CausalMapError as error:
                    raise CausalMapError(f"map {index}: {error}") from error
            return maps
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError, TypeError, AttributeError) as error:
        if isinstance(error, CausalMapError):
            raise
        raise CausalMapError(f"not a file of causal maps: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class TargetCurve:
    """A target over layers, averaged over the pairs that have it."""

    target: str
    values: dict[str, list[Interval | None]]
    """Metric -> by layer; None where no pair has a value (none whose own effect is large enough to divide by)."""

    def __getitem__(self, metric: str) -> list[Interval | None]:
        return self.values[metric]

    @property
    def success(self) -> list[Interval]:
        """Patch success rate by layer."""
        return self.values["success"]  # type: ignore[return-value]

    @property
    def n(self) -> int:
        return max((value.n for values in self.values.values() for value in values if value), default=0)


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

    def __str__(self) -> str:
        layers = f"[{self.low}, {self.high}], in {self.support:.1%} of resamples"
        return f"{self.before} -> {self.after} at layer {self.layer} {layers} (n={self.n})"


@dataclass(frozen=True)
class MeanCausalMap:
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
                name = LOGGED.get(metric, metric)
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
        for curve in self.curves:
            for metric in (metric for metric in self.metrics if single or metric in LOGGED):
                for layer, value in zip(self.layers, curve[metric], strict=True):
                    if value is not None and single:
                        scalars |= value.metrics(f"{LOGGED.get(metric, metric)}/{logged_name(curve.target)}")
                    elif value is not None:
                        curves[layer] |= value.metrics(f"{LOGGED[metric]}_by_layer/{logged_name(curve.target)}")
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
    """Adds maps up one at a time, keeping a few numbers of each; :meth:`result` is the mean with its intervals."""

    def __init__(self) -> None:
        self._first: CausalMap | None = None
        self._n = 0
        self._metrics: tuple[str, ...] = ()
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

    def add(self, causal_map: CausalMap) -> None:
        if self._first is None:
            self._first = causal_map
            unshared = ("logit_diff", "legacy_logit_difference")  # no scale that pairs share
            own = [metric for metric in causal_map.metrics if metric not in unshared]
            self._metrics = (*own, "control_success", "control_answer_kept")
        first = self._first
        if causal_map.layers != first.layers or causal_map.metrics != first.metrics:
            raise CausalMapError(
                f"maps over layers {first.layers} with {', '.join(first.metrics)} and maps over layers "
                f"{causal_map.layers} with {', '.join(causal_map.metrics)} cannot be averaged"
            )
        self._n += 1
        below_top = _below_top(causal_map)
        grids = {metric: causal_map.values(metric) for metric in causal_map.metrics}
        c_clean, c_counterfactual = causal_map.z_clean[0], causal_map.z_counterfactual[0]
        self._whole.append(float(c_counterfactual - c_clean))

        def control(target: str, metric: str) -> np.ndarray:
            known = metric in causal_map.target_metrics
            return causal_map.at_target(target, metric) if known else np.full(causal_map.top.shape[:-1], np.nan)

        parts, raw_sum = [], 0.0
        draws: dict[str, list[np.ndarray]] = {}  # of random edges: a pair's value is the mean over them
        for target, at in causal_map.targets.items():
            column = causal_map.target_columns[target]
            both = np.stack([grids[m][..., column] if m in grids else control(target, m) for m in self._metrics])
            raw = grids["logit_diff"][..., column] if "logit_diff" in grids else np.full(both.shape[1:], np.nan)
            if (control_of := random_of(target)) is not None:
                draws.setdefault(control_of, []).append(both)
                if control_of != target:
                    continue
            curves = {
                f"{target}/{head_name(heads)}": (both[:, :, i], raw[:, i], heads)
                for i, heads in enumerate(causal_map.heads)
            }
            for name, (values, raws, heads) in (curves or {target: (both, raw, None)}).items():
                self._rows.setdefault(name, []).append(values)
                self._raw.setdefault(name, []).append(raws)
                self._numbers.setdefault(name, []).append(self._n - 1)
                self._at.setdefault(name, []).append(frozenset(at))
                self._held |= {name} if held_by_construction(causal_map, target, heads) else set()
                self._with_last |= {name} if len(causal_map.tokens) - 1 in at else set()
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

        The mean's normalized difference is the sum of "logit_diff" over that of "whole_effect", not the mean of ratios.

        Raises:
            CausalMapError: no map has this target, or this layer.
        """
        if self._first is None or target not in self._rows or layer not in self._first.layers:
            raise CausalMapError(f"no map has a target {target!r} at layer {layer}")
        row, numbers = self._first.layers.index(layer), self._numbers[target]
        values = np.stack(self._rows[target])[:, :, row]
        effects = {"logit_diff": np.stack(self._raw[target])[:, row], "whole_effect": np.array(self._whole)[numbers]}
        return numbers, dict(zip(self._metrics, values.T, strict=True)) | effects

    def of_each(self, metric: str) -> dict[int, float]:
        """Which of the maps, counted from 0 -> its mean of a metric over the interventions at its targets; those
        without a value left out. ``overall`` is their mean, each weighted by its number of interventions.

        Raises:
            CausalMapError: the maps have no such metric.
        """
        if metric not in self._metrics:
            raise CausalMapError(f"these maps have no {metric!r}; they have {', '.join(self._metrics)}")
        values = (float(means[self._metrics.index(metric)]) for means, _ in self._overall)
        return {n: value for n, value in zip(self._overall_of, values, strict=True) if not math.isnan(value)}

    def result(self) -> MeanCausalMap:
        """Raises CausalMapError where no map, or none with a target, was added."""
        if self._first is None or not self._rows:
            raise CausalMapError("no causal map with a target to average over")
        curves, whole = [], np.array(self._whole)
        for target in sorted(self._rows, key=_text_order):
            values = np.stack(self._rows[target])  # pair, metric, layer
            by_metric = {metric: _means(metric, values[:, i]) for i, metric in enumerate(self._metrics)}
            if "normalized_logit_diff" in by_metric:
                wholes, raw = whole[self._numbers[target]][:, None], np.stack(self._raw[target])
                by_metric["normalized_logit_diff"] = ratio_of_means(raw, wholes, self._first.min_effect)
            curves.append(TargetCurve(target, by_metric))
        metrics = tuple(
            metric
            for metric in self._metrics
            if not metric.startswith("control_") or any(v for curve in curves for v in curve[metric])
        )
        weights = np.array([n for _, n in self._overall])
        overall = {
            metric: _mean(metric, np.array([means[i] for means, _ in self._overall]), weights)
            for i, metric in enumerate(self._metrics)
            if metric in metrics
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
        success, below_top = self._success(), _below_top(self._first)
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

    def _success(self) -> dict[str, Float[np.ndarray, "pair layer"]]:
        """Target -> whether each pair's patch succeeds; NaN where a pair has not this target."""
        success = {}
        for target in sorted(self._rows, key=_text_order) if "success" in self._metrics else ():
            rows = np.stack(self._rows[target])[:, self._metrics.index("success")]
            success[target] = np.full((self._n, rows.shape[1]), np.nan)
            success[target][self._numbers[target]] = rows
        return success

    def _share_a_token(self, one: str, other: str) -> bool:
        at = [dict(zip(self._numbers[target], self._at[target], strict=True)) for target in (one, other)]
        return any(at[0][number] & at[1][number] for number in at[0].keys() & at[1].keys())

    def _against_random(self) -> dict[str, list[Comparison]]:
        """Hypotheses of a knockout against their own controls, on the same pairs; draws are clustered by pair."""
        if "answer_kept" not in self._metrics:
            return {}
        kept = {name: np.stack(rows)[:, self._metrics.index("answer_kept")] for name, rows in self._rows.items()}

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


def column_of(metric: str, of: CausalMap | MeanCausalMap) -> str:
    """A metric's name in tables: that of an estimate says so."""
    return f"{ESTIMATED}_{metric}" if of.estimated else metric


def title_of(metric: str, of: CausalMap | MeanCausalMap) -> str:
    """A metric's name on screen: the same."""
    return f"{ESTIMATED} {METRICS[metric]}" if of.estimated else METRICS[metric]


def random_of(target: str) -> str | None:
    """Of a column of random edges the name of its control, which all draws share; None of any other."""
    found = re.fullmatch(rf"(.+{RANDOM})(_\d+)?", target)
    return found and found[1]


def peaks(
    success: dict[str, Float[np.ndarray, "pair layer"]], layers: Sequence[int], below_top: Bool[np.ndarray, " layer"]
) -> dict[str, Peak]:
    """The best layer of every target that has a value in some pair of even number; see :class:`Peak`."""
    found = {}
    for target, rows in success.items():
        chosen = {row: rate for row in np.flatnonzero(below_top).tolist() if (rate := _mean("success", rows[::2, row]))}
        if chosen:
            row = max(chosen, key=lambda row: chosen[row].low or 0.0)  # the first of equals
            found[target] = Peak(target, layers[row], _mean("success", rows[1::2, row]), chosen[row])
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
    known: dict[str, Any] = {target: ~np.isnan(rows).all(axis=0) for target, rows in chosen.items()}
    rates = {target: np.where(known[target], _nanmean(rows), -1.0) for target, rows in chosen.items()}
    route: list[str] = []
    for row in range(len(layers)):
        best = max(rates, key=lambda target: rates[target][row])
        passes = not route or (known[route[-1]][row] and rates[best][row] > rates[route[-1]][row])
        if passes and rates[best][row] >= LEADS:
            route.append(best)
    found: list[HandOver] = []
    for number, after in enumerate(route[1:], 1):
        for before in [found[-1].after] if found else dict.fromkeys(route[:number]):
            move = None if before == after or share(before, after) else _hand_over(before, after, rates, measured)
            if move is not None and move.support >= (1 if few else SUPPORT):
                at, low, high = (layers[row] for row in (move.layer, move.low, move.high))
                found.append(move._replace(layer=at, low=low, high=high))
                break
    return found


def _hand_over(
    before: str, after: str, rates: dict[str, np.ndarray], success: dict[str, np.ndarray]
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
    times = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    first, second = (np.vstack([np.ones(n), times]) @ np.nan_to_num(values) / n for values in both)
    passes = (second >= LEADS) & (second > first)
    moved = passes[:, -1] & (first[:, 0] >= LEADS) & (first[:, 0] > second[:, 0])
    if not moved[1:].any():
        return None
    rows = led + passes.argmax(axis=1)
    low, high = np.percentile(rows[1:][moved[1:]], [2.5, 97.5], method="closest_observation").tolist()
    return HandOver(before, after, int(rows[0]), int(low), int(high), float(moved[1:].mean()), n)


def held_by_construction(causal_map: CausalMap, target: str, heads: Sequence[int] | None = None) -> bool:
    """Whether patching a target succeeds at some layer in any model that answers: no finding, and left out of peaks.

    Of the residual stream: where it has a token of the root, or of another role on that token, for these are the
    counterfactual's input; or the last token, which becomes its output. Of attention, or of several heads together
    (maps do not say how many heads there are): where all layers are patched at the last token, whose embedding is the
    same in both programs.
    """
    at = {*causal_map.targets[target]}
    last = len(causal_map.tokens) - 1
    if causal_map.intervention_type == "residual_stream":
        root = {*causal_map.targets.get(ROOT, ())}
        root |= set() if causal_map.method == "imported" else {causal_map.first_difference}
        parts = target.split("+")
        return bool(at & (root | {last})) or bool({ROOT, ROOT.replace("rhs", "line"), FINAL} & {*parts})
    whole = causal_map.intervention_type == "attention" or len(heads or ()) > 1
    return whole and last in at and causal_map.layer_window >= causal_map.n_layers > 1


def _below_top(causal_map: CausalMap) -> Bool[np.ndarray, " layer"]:
    """Of each row, whether it leaves what the final norm reads as it is."""
    return np.array([layer + causal_map.layer_window - 1 < causal_map.n_layers for layer in causal_map.layers], bool)


def _nanmean(values: Float[np.ndarray, "pair layer"]) -> Float[np.ndarray, " layer"]:
    """The mean over the pairs that have a value; 0 where none has."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))


def ratio_of_means(
    effects: Float[np.ndarray, "pair column"],
    wholes: Float[np.ndarray, "pair #column"],
    smallest: float,
    confidence: float = 0.95,
) -> list[Interval | None]:
    """The mean effect as a share of the mean whole effect, by column, with Fieller's interval over pairs.

    The mean of the pairs' own ratios is ruled by those whose whole effect is next to nothing; here a pair weighs what
    its whole effect is, and none is left out. An effect counts with its sign: a pair whose counterfactual makes its
    answer less likely takes from both sums. The interval holds every r at which effect - r whole may have mean zero, by
    Student's t (Fieller 1954): on few pairs it covers where bootstraps of the ratio do not, as a test shows.

    Returns:
        None where the mean whole effect is below ``smallest``, or is of pairs of both signs and may be zero: a share of
        nothing can be any number. No ends where pairs are too few to bound it, or all give the same.
    """
    n, wholes = len(effects), np.broadcast_to(wholes, effects.shape).astype(float)
    effect, whole = effects.mean(axis=0, dtype=float), wholes.mean(axis=0)
    t = float(stats.t.ppf((1 + confidence) / 2, n - 1)) if n > 1 else np.inf
    spread = t**2 / (n * (n - 1)) if n > 1 else 0.0
    x, w = effects - effect, wholes - whole
    a, b, c = (
        u * v - spread * (du * dv).sum(axis=0)
        for u, v, du, dv in ((whole, whole, w, w), (effect, whole, x, w), (effect, effect, x, x))
    )
    mixed: np.ndarray = (wholes.min(axis=0) < 0) & (wholes.max(axis=0) > 0)
    found: list[Interval | None] = []
    for column in range(effects.shape[1]):
        if abs(whole[column]) < max(smallest, np.finfo(float).tiny) or (mixed[column] and a[column] <= 0):
            found.append(None)
            continue
        ratio = float(effect[column] / whole[column])
        low = high = None
        if n > 1 and a[column] > 0 and float(np.ptp(effects[:, column] - ratio * wholes[:, column])) > 0:
            half = math.sqrt(max(0.0, b[column] ** 2 - a[column] * c[column]))
            low, high = float((b[column] - half) / a[column]), float((b[column] + half) / a[column])
        found.append(Interval(ratio, low, high, n))
    return found


def logged_name(target: str) -> str:
    """A target, or a hypothesis, as a part of a metric's name: MLflow has no ``+`` and no ``>`` in these."""
    return re.sub(r"[^\w./: -]", "_", target.replace("->", "_to_").replace("+", "_and_"))


def head_name(heads: Sequence[int]) -> str:
    """``head_3``; of several heads patched together ``heads_3_5``."""
    return f"head{'s' if len(heads) > 1 else ''}_{'_'.join(map(str, heads))}"


def _text_order(target: str) -> tuple:
    """Where a target stands in any program: chain lines by referential depth, the query line, ``final``; then heads.

    Positions by number come first, in theirs.
    """
    name, _, head = target.replace("/heads_", "/head_").partition("/head_")
    kind, *rest = name.split("_")
    line = {"position": 0, "ref": 1, "query": 2}.get(kind, 3)
    numbers = [int(part) for part in rest if part.isdecimal()]
    part = _PARTS.index(rest[-1]) if rest and rest[-1] in _PARTS else 0
    return line, numbers, part, [int(number) for number in head.split("_") if number]


def _mean(
    metric: str, values: Float[np.ndarray, "pair"], interventions: Float[np.ndarray, "pair"] | None = None
) -> Interval | None:
    """NaN (the pair's own effect is too small to divide by, or it has no control) is left out of the mean and n.

    Of one intervention a pair a rate has Wilson's interval: resampling 50 successes of 50 would claim certainty.
    """
    known = ~np.isnan(values)
    if not known.any():
        return None
    values, weights = values[known], None if interventions is None else interventions[known]
    if metric in RATES and weights is None and np.isin(values, (0, 1)).all():
        return wilson(int(values.sum()), len(values))
    return bootstrap_mean(values, is_rate=metric in RATES, weights=weights)


def _means(metric: str, values: Float[np.ndarray, "pair layer"]) -> list[Interval | None]:
    """:func:`_mean` of every layer; those whose values the same pairs have are resampled together."""
    known = ~np.isnan(values)
    yes_or_no = np.isin(values, (0, 1)) | ~known
    alone = yes_or_no.all(axis=0) & (metric in RATES) | ~known.any(axis=0)
    means = {row: _mean(metric, values[:, row]) for row in np.flatnonzero(alone).tolist()}
    for pattern in {row.tobytes(): row for row in known.T[~alone]}.values():
        rows = np.flatnonzero(~alone & (known == pattern[:, None]).all(axis=0)).tolist()
        found = bootstrap_means(values[pattern][:, rows], is_rate=metric in RATES)
        means |= dict(zip(rows, found, strict=True))
    return [means[row] for row in range(values.shape[1])]


def mean_over_pairs(maps: Iterable[CausalMap]) -> MeanCausalMap:
    """The mean of many maps, aligned by target; memory holds one map at a time where ``maps`` is lazy."""
    mean = MeanOverPairs()
    for causal_map in maps:
        mean.add(causal_map)
    return mean.result()
