"""The causal map of one pair: layers x token positions (x heads)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from debug.causal_map.metrics import LEGACY, METRICS, RANDOM, Metric
from debug.errors import InputError
from debug.kinds import Argument, Json
from debug.shown import Shown

Answer = Float[np.ndarray, "2"]  # logits of the answer tokens c (counterfactual) and o (original)
ROOT, FINAL = "ref_depth_1_rhs", "final"
ARRAYS = {
    "z_clean": np.float32,
    "z_counterfactual": np.float32,
    "z_patched": np.float32,
    "z_candidates": np.float32,
    "top": np.int64,
    "control_top": np.int64,
    "said": np.int64,
    "control_said": np.int64,
    "log_probabilities": np.float32,
    "lens_logits": np.float32,
    "lens_ranks": np.int64,
    "top_k": np.int32,
    "top_k_logs": np.float16,
    "top_k_unpatched": np.int32,
    "top_k_unpatched_logs": np.float16,
    **dict.fromkeys(LEGACY, np.float32),
}
"""The arrays of a map, in a file of maps too."""


class CausalMapError(InputError):
    """A causal map, or a file of them, that is not one: names the field."""


@dataclass(frozen=True, eq=False, repr=False)
class CausalMap(Shown):
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
    """c and o: of the counterfactual's and of the original's answer the first token at which they differ; -1 where not
    known (imported)."""
    top_tokens: tuple[int, int]
    """Top token of the clean and of the counterfactual run."""
    min_effect: float
    """Smallest |z_cf[c] - z_clean[c]| by which a difference is normalized; see models.SMALLEST_EFFECT."""
    vocabulary: dict[int, str]
    """Text of every token id that occurs in this map as a top token, among the likeliest, or as an answer."""
    z_clean: Answer
    z_counterfactual: Answer
    z_patched: Float[np.ndarray, "layer *head column 2"]
    top: Int[np.ndarray, "layer *head column"]
    """Top token of each patched run; -1 where it was only estimated, or not recorded."""
    layer_window: int = 1
    """Row l patches, or cuts, the layers l to l + layer_window - 1 together."""
    differing: list[int] = field(default_factory=list)
    """All positions at which the two prompts differ; older maps have the first alone, and so have ablations."""
    heads: list[list[int]] = field(default_factory=list)
    """The heads that each step of the head axis patches together; empty where there is no such axis."""
    source: str = "counterfactual"
    """Where patched activations come from: one of SOURCES, or "knockout" where edges are cut."""
    direction: str = "into_original"
    method: str = "patching"
    """"patching"; "attribution": a linear estimate of the logit difference; "imported": of the older format, of which
    logits are not known (NaN)."""
    candidates: dict[str, int] = field(default_factory=dict)
    """Answer -> its first token, of all answers that a hypothesis or either program has; older maps have none."""
    z_candidates: Float[np.ndarray, "layer *head column candidate"] | None = None
    """Logits of the candidates' tokens in each patched run, in their order."""
    control_top: Int[np.ndarray, "layer *head target"] | None = None
    """Top tokens with the same-answer control as source, at the targets; None where it was not run."""
    scored_by: str = "first_token"
    """What says which answer a patched run gives: one of SCORED_BY."""
    said: Int[np.ndarray, "layer *head column"] | None = None
    """Scored as whole answers, or by what is written: the answer of each square, as its number among the candidates
    (0: c, 1: o); -1 none of them. None where the top token says it."""
    control_said: Int[np.ndarray, "layer *head target"] | None = None
    """The same with the same-answer control as source."""
    log_probabilities: Float[np.ndarray, "layer *head column candidate"] | None = None
    """Scored as whole answers: the natural logarithm of each candidate's probability."""
    lens_logits: Float[np.ndarray, "row position 2"] | None = None
    """Logit lens of the clean run: logits of c and o read off the residual stream going into each layer, and at the
    top; of the single ``positions``. None where it was not read."""
    lens_ranks: Int[np.ndarray, "row position 2"] | None = None
    """How many tokens have a higher logit there than c and o."""
    top_k_columns: list[int] = field(default_factory=list)
    """The columns at which the likeliest tokens are kept: all, of a map with heads those of its targets."""
    top_k: Int[np.ndarray, "layer *head kept rank"] | None = None
    """The likeliest tokens of each patched run there, the likeliest first (which of equals is left open); None where
    nothing was run, or an older version ran it."""
    top_k_logs: Float[np.ndarray, "layer *head kept rank"] | None = None
    """Natural logarithms of their probabilities, over the whole vocabulary."""
    top_k_unpatched: Int[np.ndarray, "2 rank"] | None = None
    """The same of the clean and of the counterfactual run; -1 where a stored run's are not known."""
    top_k_unpatched_logs: Float[np.ndarray, "2 rank"] | None = None
    legacy_success_rate: Float[np.ndarray, "layer *head column"] | None = None
    legacy_normalized_logit_difference: Float[np.ndarray, "layer *head column"] | None = None
    legacy_logit_difference: Float[np.ndarray, "layer *head column"] | None = None
    """See METRICS; of imported maps only."""

    def _in_short(self) -> str:
        across = f"{len(self.positions)} positions" if self.positions else f"{len(self.columns)} columns"
        heads = f" x {len(self.heads)} heads" if self.heads else ""
        return f"{self.intervention_type}, pair {self.pair}: {len(self.layers)} layers{heads} x {across}"

    def __post_init__(self) -> None:
        expected = (len(self.layers), *([len(self.heads)] if self.heads else []), len(self.columns))
        if self.top.shape != expected or self.z_patched.shape != (*expected, 2):
            axes = "layers x heads x columns" if self.heads else "layers x columns"
            raise CausalMapError(
                f"'z_patched' {self.z_patched.shape} and 'top' {self.top.shape} do not fit {expected} {axes}"
            )
        if (z := self.z_candidates) is not None and z.shape != (*expected, len(self.candidates)):
            raise CausalMapError(f"'z_candidates' {z.shape} does not fit the {len(self.candidates)} candidates")
        if (p := self.log_probabilities) is not None and p.shape != (*expected, len(self.candidates)):
            raise CausalMapError(f"'log_probabilities' {p.shape} does not fit the {len(self.candidates)} candidates")
        if (self.said is None) != (self.scored_by == "first_token"):
            raise CausalMapError(f"'said' must be there where 'scored_by' is no first token; it is {self.scored_by!r}")
        if self.said is not None and self.said.shape != expected:
            raise CausalMapError(f"'said' {self.said.shape} does not fit {expected} layers x (heads x) columns")
        if self.columns[: len(self.positions)] != [[position] for position in self.positions]:
            raise CausalMapError("'columns' must begin with the single 'positions'")
        if not all(0 <= p < len(self.tokens) for column in [*self.columns, *self.targets.values()] for p in column):
            raise CausalMapError(f"'columns' or 'targets' name positions outside the {len(self.tokens)} tokens")
        columns = range(len(self.columns))
        if self.targets.keys() != self.target_columns.keys() or not {*self.target_columns.values()} <= {*columns}:
            raise CausalMapError("'target_columns' must name a column of 'columns' for each of 'targets'")
        for name in ("control_top", "control_said"):
            array = getattr(self, name)
            if array is not None and array.shape != (*expected[:-1], len(self.targets)):
                raise CausalMapError(f"'{name}' {array.shape} does not fit the {len(self.targets)} targets")
        lens = (self.n_layers + 1, len(self.positions), 2)
        for name in ("lens_logits", "lens_ranks"):
            if (array := getattr(self, name)) is not None and array.shape != lens:
                raise CausalMapError(f"'{name}' {array.shape} does not fit {lens} rows x positions x answers")
        if not {*self.top_k_columns} <= {*columns}:
            raise CausalMapError(f"'top_k_columns' {self.top_k_columns!r:.80} must be columns, which are {columns}")
        for name, shape in (("top_k", (*expected[:-1], len(self.top_k_columns))), ("top_k_unpatched", (2,))):
            kept, logs = getattr(self, name), getattr(self, f"{name}_logs")
            if (kept is None) != (logs is None):
                raise CausalMapError(f"'{name}' and '{name}_logs' must both be there, or neither")
            if kept is None:
                continue
            if kept.shape[:-1] != shape or logs.shape != kept.shape:
                raise CausalMapError(f"'{name}' {kept.shape} and '{name}_logs' {logs.shape} do not fit {shape} x ranks")
            if self.top_k_unpatched is not None and kept.shape[-1] != self.top_k_unpatched.shape[-1]:
                raise CausalMapError(f"'{name}' has {kept.shape[-1]} ranks, 'top_k_unpatched' another number")
            if (logs > 0).any():
                raise CausalMapError(f"'{name}_logs' has logarithms of probabilities above 1")
        for name in LEGACY:
            if (array := getattr(self, name)) is not None and array.shape != expected:
                raise CausalMapError(f"'{name}' {array.shape} does not fit {expected} layers x (heads x) columns")

    @property
    def metrics(self) -> tuple[str, ...]:
        """What this map says of a square, the main one first."""
        return tuple(name for name, metric in METRICS.items() if metric.has(self) and not metric.of_control)

    def answer_number(self, answer: str) -> int | None:
        """What :attr:`answered` has where this candidate is the answer; None of no candidate."""
        if answer not in self.candidates:
            return None
        return self.candidates[answer] if self.said is None else list(self.candidates).index(answer)

    @property
    def answer_numbers(self) -> tuple[int, int]:
        """What :attr:`answered` has where c, or o, is the answer."""
        c, o = self.answer_tokens
        return (c, o) if self.said is None else (0, int(c != o))

    @property
    def answered(self) -> Int[np.ndarray, "layer *head column"]:
        """The answer of each patched run: its top token; or the number of a candidate, -1 for none."""
        return self.top if self.said is None else self.said

    @property
    def control_answered(self) -> Int[np.ndarray, "layer *head target"] | None:
        return self.control_top if self.said is None else self.control_said

    @property
    def estimated(self) -> bool:
        """Its numbers are estimates of what patching would give."""
        return self.method == "attribution"

    @property
    def target_metrics(self) -> tuple[str, ...]:
        """What it says at its targets: the same, and what the control did there."""
        return self.metrics + tuple(name for name, metric in METRICS.items() if metric.of_control and metric.has(self))

    def grid(self, metric: str | Metric) -> Float[np.ndarray, "layer *head position"]:
        """A metric over the single positions; NaN where it has no value.

        Raises:
            CausalMapError: this map has no such metric, or a caller's own gives no numbers of the map's shape.
        """
        return self.values(metric)[..., : len(self.positions)]

    def values(self, metric: str | Metric) -> Float[np.ndarray, "layer *head column"]:
        """A metric over all columns, joint ones too; as :meth:`grid`."""
        if isinstance(metric, str) and metric not in self.metrics:
            raise CausalMapError(f"this map has no {metric!r}; it has {', '.join(self.metrics)}")
        one = METRICS[metric] if isinstance(metric, str) else metric
        given = one.of(self)
        try:
            values = np.asarray(given, dtype=float)
        except (TypeError, ValueError) as error:
            raise CausalMapError(f"metric {one.name!r} gives {given!r:.80}; expected an array of numbers") from error
        if values.shape != self.top.shape:
            raise CausalMapError(
                f"metric {one.name!r} gives values of shape {values.shape}; the map has {self.top.shape} squares"
            )
        if one.name not in METRICS and np.isinf(values).any():
            raise CausalMapError(f"metric {one.name!r} gives infinite values; expected numbers, or NaN for no value")
        return values

    @property
    def logit_diff(self) -> Float[np.ndarray, "layer *head position"]:
        """z_patched[c] - z_patched[o], the usual logit difference."""
        return self.grid("logit_diff")

    @property
    def logit_change(self) -> Float[np.ndarray, "layer *head position"]:
        """z_patched[c] - z_clean[c]: the raw effect."""
        return self.grid("logit_change")

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
        of_top_k = [number for number, column in enumerate(self.top_k_columns) if column in kept]

        def of(array: np.ndarray | None, indices: list[int], axis: int) -> np.ndarray | None:
            return None if array is None else array.take(indices, axis)

        return replace(
            self,
            positions=[self.positions[index] for index in singles],
            columns=[self.columns[index] for index in kept],
            targets={target: self.targets[target] for target in targets},
            target_columns={target: kept.index(self.target_columns[target]) for target in targets},
            z_patched=of(self.z_patched, kept, -2),
            z_candidates=of(self.z_candidates, kept, -2),
            log_probabilities=of(self.log_probabilities, kept, -2),
            top=of(self.top, kept, -1),
            control_top=of(self.control_top, rows, -1),
            said=of(self.said, kept, -1),
            control_said=of(self.control_said, rows, -1),
            lens_logits=of(self.lens_logits, singles, 1),
            lens_ranks=of(self.lens_ranks, singles, 1),
            top_k_columns=[kept.index(self.top_k_columns[number]) for number in of_top_k],
            top_k=of(self.top_k, of_top_k, -2),
            top_k_logs=of(self.top_k_logs, of_top_k, -2),
            **{name: of(getattr(self, name), kept, -1) for name in LEGACY},
        )

    def at_target(self, target: str, metric: str | Metric = "success") -> Float[np.ndarray, "layer *head"]:
        """One of ``target_metrics`` at a target, its tokens patched together."""
        one = METRICS.get(metric) if isinstance(metric, str) else metric
        if one is not None and one.of_control and one.has(self):
            return one.of(self)[..., list(self.targets).index(target)]
        return self.values(metric)[..., self.target_columns[target]]

    def to_tensors(self) -> tuple[dict[str, np.ndarray], dict[str, Json]]:
        """The arrays, and everything else as JSON values."""
        arrays = {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}
        return arrays, {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ARRAYS}

    @classmethod
    def from_tensors(cls, arrays: dict[str, np.ndarray], header: dict[str, Json]) -> CausalMap:
        """Raises CausalMapError for whatever is missing or of the wrong type."""
        from debug.causal_map.header import Header  # here: pydantic
        from debug.records import validated

        header = dict(header)
        if "target_columns" not in header:  # the first maps had each target on a column of its own positions
            with suppress(KeyError, ValueError, TypeError, AttributeError):  # what is wrong with these is told below
                columns = [*map(sorted, header["columns"])]
                header["target_columns"] = {t: columns.index(sorted(at)) for t, at in header["targets"].items()}
        if "heads" not in header and getattr(arrays.get("top"), "ndim", 0) == 3:
            header["heads"] = [[head] for head in range(arrays["top"].shape[1])]
        values: dict[str, Argument] = {**validated(Header, header, CausalMapError), **arrays}
        return cls(**values)


def random_of(target: str) -> str | None:
    """Of a column of random edges the name of its control, which all draws share; None of any other."""
    found = re.fullmatch(rf"(.+{RANDOM})(_\d+)?", target)
    return found and found[1]


def held_by_construction(causal_map: CausalMap, target: str, heads: Sequence[int] | None = None) -> bool:
    """Whether patching a target succeeds at some layer in any model that answers: no finding, and left out of peaks.

    Of the residual stream: where it has a token of the root, or any other that differs, for these are the
    counterfactual's input; or the last token, which becomes its output. Of attention, or of several heads together
    (maps do not say how many heads there are): where all layers are patched at the last token, whose embedding is the
    same in both programs.
    """
    at = {*causal_map.targets[target]}
    last = len(causal_map.tokens) - 1
    if causal_map.intervention_type == "residual_stream":
        root = {*causal_map.targets.get(ROOT, ())}
        root |= set() if causal_map.method == "imported" else {causal_map.first_difference, *causal_map.differing}
        parts = target.split("+")
        return bool(at & (root | {last})) or bool({ROOT, ROOT.replace("rhs", "line"), FINAL} & {*parts})
    whole = causal_map.intervention_type == "attention" or len(heads or ()) > 1
    return whole and last in at and causal_map.layer_window >= causal_map.n_layers > 1


def rows_below_top(causal_map: CausalMap) -> Bool[np.ndarray, " layer"]:
    """Of each row, whether it leaves what the final norm reads as it is."""
    return np.array([layer + causal_map.layer_window - 1 < causal_map.n_layers for layer in causal_map.layers], bool)
