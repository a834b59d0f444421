"""A causal map made by hand, for tests of what is done with maps: no model runs."""

from __future__ import annotations

import numpy as np

from debug.causal_map import CausalMap

TOKENS = ["i", " = ", "8", "\n", "x", " = ", "i", "\n", "h", " = ", "x", "\n", "y", " = ", "4", "\n"]
TOKENS += ["w", " = ", "x", "\n", "#", "h", ": "]
ROUTE = {2: range(0, 2), 6: range(2, 4), 10: range(3, 5), 22: range(4, 7)}
"""Token position -> rows at which patching it moves the answer: the value travels down the chain, then to the end."""


def make_map(
    pair: int = 0,
    tokens: list[str] = TOKENS,
    n_layers: int = 6,
    heads: int | None = None,
    min_effect: float = 1e-3,
) -> CausalMap:
    """A map of the published three-hop program (`#h: `, 8 becomes 7), for a model of six layers unless told."""
    rng = np.random.default_rng(pair)
    rows, n = n_layers + (heads is None), len(tokens)
    share = rng.normal(0, 0.05, (rows, n))
    share[:, :2] = 0
    for position, layers in ROUTE.items():
        position = min(position, n - 1)
        for layer in layers:
            share[min(layer, rows - 1), position] = 1 - rng.uniform(0, 0.2)
    if heads is not None:
        share = share[:, None, :] * rng.uniform(0, 1, (rows, heads, 1))
    z_clean, z_cf = np.array([2, 9], np.float32), np.array([9, 2], np.float32)
    z = (z_clean + share[..., None] * (z_cf - z_clean)).astype(np.float32)
    return CausalMap(
        intervention_type="residual_stream" if heads is None else "attention_heads",
        pair=pair,
        tokens=tokens,
        layers=list(range(rows)),
        positions=list(range(n)),
        columns=[[position] for position in range(n)],
        targets={"ref_depth_1_rhs": [2], "ref_depth_2_rhs": [6], "ref_depth_3_rhs": [10], "final": [n - 1]},
        n_layers=n_layers,
        first_difference=2,
        answer_tokens=(17, 18),
        top_tokens=(18, 17),
        min_effect=min_effect,
        vocabulary={17: "7", 18: "8"},
        z_clean=z_clean,
        z_counterfactual=z_cf,
        z_patched=z,
        top=np.where(z[..., 0] > z[..., 1], 17, 18).astype(np.int64),
    )
