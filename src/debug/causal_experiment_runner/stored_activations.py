"""Activations that a logged run stored, as the source of new patches: its counterfactuals need not be run again.

A run is told by the token ids of its prompt, which are stored with it; digests of weights and tokenizer, and the dtype,
keep activations of another model out. Reads a logged run; knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from debug.causal_tracing import StoredRun
from debug.errors import InputError
from debug.models import LoadedModel
from debug.token_analyzer import PairError
from debug.tracking import LoggedRun


class StoredActivationsError(InputError):
    """Stored activations that are not this model's, or of which it cannot be told whose they are."""


class StoredActivations:
    """Token ids of a prompt -> its stored run; see :data:`debug.causal_tracing.StoredRuns`."""

    def __init__(self, run: LoggedRun, model: LoadedModel) -> None:
        """Of a study, its only cell's. Raises StoredActivationsError where they were not computed by this model in
        this dtype, or a study has other than one cell."""
        if run.role == "study":
            if len(run.children) != 1:
                raise StoredActivationsError(
                    f"run {run.run_id} is a study of {len(run.children)} cells; name the cell whose activations are "
                    f"meant: {', '.join(cell.run_id for cell in run.children[:5])}"
                )
            [run] = run.children
        self.run = run
        expected = {
            "weights_digest": model.weights_digest,
            "tokenizer_digest": model.tokenizer_digest,
            "dtype": model.dtype,
        }
        for name, value in expected.items():
            if (found := run.environment.get(name)) != value:
                raise StoredActivationsError(
                    f"activations of run {run.run_id} cannot be patched into {model.id!r}: their {name} is {found}, "
                    f"the model's {value}. Load the model that made them, or run the counterfactuals"
                )

    @cached_property
    def _rows(self) -> dict[tuple[int, ...], tuple[int, int]]:
        """Token ids -> number of the pair, and 0 for its clean run or 1 for its counterfactual's."""
        rows: dict[tuple[int, ...], tuple[int, int]] = {}
        for name, array in self.run.activations.items():
            number, _, what = name.partition("/")
            if what == "token_ids" and number.isdecimal() and array.ndim == 2 and len(array) == 2:
                rows |= {tuple(ids): (int(number), which) for which, ids in enumerate(array.tolist())}
        if not rows:
            raise StoredActivationsError(
                f"run {self.run.run_id} has no activations with the token ids they belong to; log it again with "
                "save_activations 'targets' or 'all'"
            )
        return rows

    def __call__(self, token_ids: Sequence[int]) -> StoredRun:
        """Raises PairError where that prompt's run is not stored, StoredActivationsError where it is broken."""
        if (row := self._rows.get(tuple(token_ids))) is None:
            raise PairError(f"the run of this pair's source is not among the activations of run {self.run.run_id}")
        number, which = row
        kind = ("clean", "counterfactual")[which]
        names = [name for name in self.run.activations if name.startswith(f"{number}/{kind}/")]
        positions = self.run.activations.get(f"{number}/positions")
        maps = self.run.maps
        if not names or positions is None or number >= len(maps):
            raise StoredActivationsError(f"run {self.run.run_id}: pair {number} lacks its activations or its map")
        at = np.asarray(positions).tolist()
        if not all(type(p) is int and 0 <= p < len(token_ids) for p in at) or len({*at}) != len(at):
            raise StoredActivationsError(f"run {self.run.run_id}: '{number}/positions' is {at}; expected positions")
        causal_map = maps[number]
        logits = causal_map.z_counterfactual if which else causal_map.z_clean
        tokens, logs = causal_map.top_k_unpatched, causal_map.top_k_unpatched_logs
        return StoredRun(
            at,
            {name.rpartition("/")[2]: self.run.activations[name] for name in names},
            dict(zip(causal_map.answer_tokens, map(float, logits), strict=True)),
            causal_map.top_tokens[which],
            None if tokens is None or logs is None else (tokens[which], logs[which]),
        )
