"""What one causal experiment found: the grid of layers x token positions (x heads) for a pair, and its mean over pairs.

The engine fills a :class:`CausalMap`, tracking stores it, charts and the dashboard read it. Numpy only: knows no model,
no store and no picture. Maps keep logits of both answer tokens, so that any other metric can be derived later.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from debug.statistics import Interval, bootstrap_mean, wilson

Answer = Float[np.ndarray, "2"]  # logits of the answer tokens c (counterfactual) and o (original)
HELD_BY_CONSTRUCTION = ("ref_depth_1_rhs", "final")
"""Targets of the residual stream left out of its peak: the root's tokens are the counterfactual's input, `final`
becomes its output."""
_PARTS = ("lhs", "equals", "rhs", "newline", "hash", "var", "colon")


class CausalMapError(ValueError):
    """A causal map, or a file of them, that is not one: names the field."""


@dataclass(frozen=True, eq=False)
class CausalMap:
    """Patching one pair: what every cell (layer, column of positions, perhaps head) did to the answer.

    A column is a set of token positions patched together. The first ``len(positions)`` columns are the single positions
    of the grid; targets of several tokens have a column of their own behind them.
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
    """Target -> its token positions. Targets on one and the same set of positions are listed once."""
    n_layers: int
    first_difference: int
    """First token position at which the two prompts differ; cells before it were not run: their effect is zero."""
    answer_tokens: tuple[int, int]
    """c and o: first tokens of the counterfactual's and of the original's answer."""
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

    def __post_init__(self) -> None:
        expected = (len(self.layers), len(self.columns))
        found = (self.top.shape[0], self.top.shape[-1]) if self.top.ndim >= 2 else self.top.shape
        if found != expected or self.z_patched.shape != (*self.top.shape, 2) or self.top.ndim not in (2, 3):
            raise CausalMapError(
                f"'z_patched' {self.z_patched.shape} and 'top' {self.top.shape} do not fit {expected} layers x columns"
            )
        if self.columns[: len(self.positions)] != [[position] for position in self.positions]:
            raise CausalMapError("'columns' must begin with the single 'positions'")
        if not all(0 <= p < len(self.tokens) for column in [*self.columns, *self.targets.values()] for p in column):
            raise CausalMapError(f"'columns' or 'targets' name positions outside the {len(self.tokens)} tokens")

    @property
    def logit_diff(self) -> Float[np.ndarray, "layer *head position"]:
        """z_patched[c] - z_clean[c]: the raw effect."""
        return self._grid(self._logit_diff)

    @property
    def normalized_logit_diff(self) -> Float[np.ndarray, "layer *head position"]:
        """The effect as a share of the counterfactual's own: 0 none, 1 all; NaN (null) where that is too small."""
        return self._grid(self._normalized)

    @property
    def success(self) -> Bool[np.ndarray, "layer *head position"]:
        """The patched run's top token is c."""
        return self._grid(self._success)

    @property
    def top_token(self) -> Int[np.ndarray, "layer *head position"]:
        return self._grid(self.top)

    def at_target(self, target: str, metric: str = "success") -> Float[np.ndarray, "layer *head"]:
        """``success``, ``logit_diff`` or ``normalized_logit_diff`` of a target, its tokens patched together."""
        column = self.columns.index(sorted(self.targets[target]))
        values = {"success": self._success, "logit_diff": self._logit_diff, "normalized_logit_diff": self._normalized}
        return values[metric][..., column].astype(float)

    @property
    def _success(self) -> np.ndarray:
        return self.top == self.answer_tokens[0]

    @property
    def _logit_diff(self) -> np.ndarray:
        return self.z_patched[..., 0] - self.z_clean[0]

    @property
    def _normalized(self) -> np.ndarray:
        whole = self.z_counterfactual[0] - self.z_clean[0]
        return self._logit_diff / (whole if abs(whole) >= self.min_effect else np.nan)

    def _grid(self, values: np.ndarray) -> np.ndarray:
        return values[..., : len(self.positions)]

    def to_tensors(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays, and everything else as JSON values."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return arrays, {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _ARRAYS}

    @classmethod
    def from_tensors(cls, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> CausalMap:
        """Raises CausalMapError for whatever is missing or of the wrong type."""
        values: dict[str, Any] = {}
        for name, check in _HEADER.items():
            if name not in header:
                raise CausalMapError(f"field {name!r} is missing")
            try:
                values[name] = check(header[name])
            except (TypeError, ValueError, AttributeError) as error:
                raise CausalMapError(f"field {name!r} is {header[name]!r:.80}: {error}") from error
        values.update(arrays)
        return cls(**values)


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("expected an integer")
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a text")
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


_ARRAYS = {"z_clean": np.float32, "z_counterfactual": np.float32, "z_patched": np.float32, "top": np.int64}
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
    "min_effect": float,
    "vocabulary": lambda value: {int(token): _str(text) for token, text in value.items()},
}


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
            headers = json.loads((file.metadata() or {})["causal_maps"])
            if not isinstance(headers, list):
                raise CausalMapError("the header 'causal_maps' is no list")
            maps = []
            for index, header in enumerate(headers):
                arrays = {name: file.get_tensor(f"{index}/{name}") for name in _ARRAYS}
                for name, dtype in _ARRAYS.items():
                    if arrays[name].dtype != dtype:
                        raise CausalMapError(
                            f"map {index}: '{name}' is {arrays[name].dtype}, expected {dtype.__name__}"
                        )
                if arrays["z_clean"].shape != (2,) or arrays["z_counterfactual"].shape != (2,):
                    raise CausalMapError(f"map {index}: 'z_clean' and 'z_counterfactual' must have two logits each")
                maps.append(CausalMap.from_tensors(arrays, header))
            return maps
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError, TypeError, AttributeError) as error:
        if isinstance(error, CausalMapError):
            raise
        raise CausalMapError(f"not a file of causal maps: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class TargetCurve:
    """A target over layers, averaged over the pairs that have it."""

    target: str
    success: list[Interval]
    normalized_logit_diff: list[Interval | None]
    """None where no pair's own effect is large enough to divide by."""

    @property
    def n(self) -> int:
        return self.success[0].n


@dataclass(frozen=True)
class MeanCausalMap:
    """Causal maps of many pairs, aligned by target: layers x targets, with n for each.

    Of a map with heads each head of a target has a curve of its own, called ``<target>/head_<h>``.
    """

    intervention_type: str
    layers: list[int]
    n_layers: int
    n_pairs: int
    curves: list[TargetCurve]
    """In the order of the program's text."""
    patch_success_rate: Interval | None
    """Over the interventions at the targets, all layers but row n_layers; None where there are no others."""
    normalized_logit_diff: Interval | None

    def __getitem__(self, target: str) -> TargetCurve:
        return next(curve for curve in self.curves if curve.target == target)

    def peaks(self) -> dict[str, tuple[int, Interval]]:
        """Target -> the layer with the highest success rate, and that rate; row n_layers left out, first of equals."""
        return {
            curve.target: max(self._below_top(curve), key=lambda item: (item[1].estimate, -item[0]))
            for curve in self.curves
            if self._below_top(curve)
        }

    def peak(self) -> tuple[str, int, Interval] | None:
        """The best layer and target, leaving out the targets that hold by construction; None where nothing is left."""
        held = HELD_BY_CONSTRUCTION if self.intervention_type == "residual_stream" else ()
        peaks = [(t, *peak) for t, peak in self.peaks().items() if t not in held]
        return max(peaks, key=lambda item: item[2].estimate) if peaks else None

    def hand_overs(self) -> list[tuple[str, str, int]]:
        """(target, next target, the first layer at which the next one's success rate passes the previous one's).

        Targets are those that lead, that is, have the highest rate of all at some layer; in the order of their leads.
        """
        found = []
        leader = None
        for row, layer in enumerate(self.layers):
            best = max(self.curves, key=lambda curve: curve.success[row].estimate)
            rate = best.success[row].estimate
            if rate > (leader.success[row].estimate if leader else 0):
                if leader:
                    found.append((leader.target, best.target, layer))
                leader = best
        return found

    def _below_top(self, curve: TargetCurve) -> list[tuple[int, Interval]]:
        return [(layer, rate) for layer, rate in zip(self.layers, curve.success, strict=True) if layer < self.n_layers]


class MeanOverPairs:
    """Adds maps up one at a time, keeping a few numbers of each; :meth:`result` is the mean with its intervals."""

    def __init__(self) -> None:
        self._first: CausalMap | None = None
        self._n = 0
        self._rows: dict[str, list[np.ndarray]] = {}  # target -> per pair [metric, layer]: success, normalized effect
        self._overall: list[tuple[float, float, int]] = []  # per pair: both means, and of how many interventions

    def add(self, causal_map: CausalMap) -> None:
        self._first = self._first or causal_map
        if causal_map.layers != self._first.layers:
            raise CausalMapError(f"maps over layers {self._first.layers} and {causal_map.layers} cannot be averaged")
        self._n += 1
        below_top = [layer < causal_map.n_layers for layer in causal_map.layers]
        parts = []
        for target in causal_map.targets:
            both = np.stack([causal_map.at_target(target, m) for m in ("success", "normalized_logit_diff")])
            heads = {f"{target}/head_{h}": both[:, :, h] for h in range(both.shape[2])} if both.ndim == 3 else None
            for name, values in (heads or {target: both}).items():
                self._rows.setdefault(name, []).append(values)
                parts.append(values[:, below_top])
        if parts and any(below_top):
            interventions = np.concatenate(parts, axis=1)
            success, normalized = interventions.mean(axis=1)
            self._overall.append((float(success), float(normalized), interventions.shape[1]))

    def result(self) -> MeanCausalMap:
        """Raises CausalMapError where no map, or none with a target, was added."""
        if self._first is None or not self._rows:
            raise CausalMapError("no causal map with a target to average over")
        curves = []
        for target in sorted(self._rows, key=_text_order):
            values = np.stack(self._rows[target])  # pair, metric, layer
            rows = range(values.shape[2])
            success = [_rate(values[:, 0, row]) for row in rows]
            normalized = [_mean(values[:, 1, row]) for row in rows]
            curves.append(TargetCurve(target, success, normalized))
        overall = np.array(self._overall).reshape(-1, 3)
        return MeanCausalMap(
            self._first.intervention_type,
            self._first.layers,
            self._first.n_layers,
            self._n,
            curves,
            _rate(overall[:, 0], overall[:, 2]) if len(overall) else None,
            _mean(overall[:, 1], overall[:, 2]),
        )


def _text_order(target: str) -> tuple:
    """Where a target stands in any program: chain lines by referential depth, the query line, ``final``; then heads.

    Positions by number come first, in theirs.
    """
    name, _, head = target.partition("/head_")
    kind, *rest = name.split("_")
    line = {"position": 0, "ref": 1, "query": 2}.get(kind, 3)
    numbers = [int(part) for part in rest if part.isdecimal()]
    return line, numbers, _PARTS.index(rest[-1]) if rest and rest[-1] in _PARTS else 0, int(head or 0)


def _rate(values: Float[np.ndarray, "pair"], interventions: Float[np.ndarray, "pair"] | None = None) -> Interval:
    """Of one intervention a pair, Wilson's interval: resampling 50 successes of 50 would claim certainty."""
    if interventions is None and np.isin(values, (0, 1)).all():
        return wilson(int(values.sum()), len(values))
    return bootstrap_mean(values, is_rate=True, weights=interventions)


def _mean(values: Float[np.ndarray, "pair"], interventions: Float[np.ndarray, "pair"] | None = None) -> Interval | None:
    """Nulls (NaN: the pair's own effect is too small to divide by) are left out, and n says so."""
    known = ~np.isnan(values)
    if not known.any():
        return None
    return bootstrap_mean(values[known], weights=None if interventions is None else interventions[known])


def mean_over_pairs(maps: Iterable[CausalMap]) -> MeanCausalMap:
    """The mean of many maps, aligned by target; memory holds one map at a time where ``maps`` is lazy."""
    mean = MeanOverPairs()
    for causal_map in maps:
        mean.add(causal_map)
    return mean.result()
