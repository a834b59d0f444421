"""Where the heads of a clean forward pass look: from the tokens of the targets to all tokens of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from debug.causal_map.grid import CausalMapError


@dataclass(frozen=True, eq=False)
class AttentionPattern:
    """Of one pair.

    Raises:
        CausalMapError: it cannot be one; says what is wrong.
    """

    queries: list[int]
    """Token positions that look; ascending."""
    weights: Float[np.ndarray, "layer head query key"]
    """Shares of each query's attention, as float16; no query looks at tokens behind it."""

    def __post_init__(self) -> None:
        if self.weights.ndim != 4 or self.weights.dtype != np.float16:
            raise CausalMapError(
                f"the attention is {self.weights.dtype} {self.weights.shape}; expected float16, layers x heads x "
                "queries x keys"
            )
        n_queries, n_keys = self.weights.shape[2:]
        there = all(type(query) is int and 0 <= query < n_keys for query in self.queries)
        if not there or self.queries != sorted({*self.queries}):
            raise CausalMapError(f"queries are {self.queries!r:.80}; expected ascending positions below {n_keys}")
        if len(self.queries) != n_queries:
            raise CausalMapError(f"there is attention of {n_queries} queries, and {len(self.queries)} are named")
        if not ((self.weights >= 0) & (self.weights <= 1)).all():
            raise CausalMapError("the attention has values that are no shares from 0 to 1")

    def of(self, positions: Sequence[int]) -> Float[np.ndarray, "layer head key"]:
        """The mean over these tokens. Raises CausalMapError where one is none of the queries."""
        if missing := [position for position in positions if position not in self.queries]:
            raise CausalMapError(f"the attention of the tokens at {missing} was not kept; of {self.queries} it was")
        rows = [self.queries.index(position) for position in positions]
        return self.weights[:, :, rows].astype(np.float32).mean(2)
