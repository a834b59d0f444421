"""Causal maps and a tracking store made by hand, for tests of what is done with them: no model runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from debug.causal_map import CausalMap, save_maps
from debug.counterfactual import make_pair
from debug.kinds import Json
from debug.tracking import Store

PROGRAM = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "
NASTY = "<script>alert(1)</script> **bold** $x$ `code` :red[no] [link](http://127.0.0.1)\x00 " + "long " * 50

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
        target_columns={"ref_depth_1_rhs": 2, "ref_depth_2_rhs": 6, "ref_depth_3_rhs": 10, "final": n - 1},
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
        heads=[[head] for head in range(heads or 0)],
    )


def with_likeliest(one: CausalMap) -> CausalMap:
    """The map with three likeliest tokens of each forward pass, the third a space; the first two exchange places where
    the patch succeeds."""
    columns = list(one.target_columns.values()) if one.heads else list(range(len(one.columns)))
    top = one.top[..., columns, None]
    tokens = np.concatenate([top, np.where(top == 17, 18, 17), np.full_like(top, 19)], -1).astype(np.int32)
    logs = np.log(np.array([0.75, 0.125, 0.0625])).astype(np.float16)
    return replace(
        one,
        vocabulary=one.vocabulary | {19: " "},
        top_k_columns=columns,
        top_k=tokens,
        top_k_logs=np.broadcast_to(logs, tokens.shape),
        top_k_unpatched=np.array([[18, 17, 19], [17, 18, 19]], np.int32),
        top_k_unpatched_logs=np.stack([logs, logs]),
    )


def make_estimate(pair: int = 0, heads: int | None = None) -> CausalMap:
    """The same map as an attribution estimates it: without a top token."""
    one = make_map(pair, heads=heads)
    return replace(one, method="attribution", top=np.full_like(one.top, -1))


def make_knockout(pair: int = 0) -> CausalMap:
    """Edges of two hypotheses and as many random ones cut in all six layers: the answer is lost where the chain's are
    cut, and of the random ones of the same number in even pairs."""
    names = ["direct_pointer", "direct_pointer_random", "chain_following", "chain_following_random"]
    one = make_map(pair)
    return replace(
        one,
        intervention_type="attention_knockout",
        source="knockout",
        layers=[0],
        layer_window=6,
        positions=[],
        columns=[[2, 22]] * 4,
        targets={name: [2, 22] for name in names},
        target_columns={name: number for number, name in enumerate(names)},
        z_patched=one.z_patched[:1, :4],
        top=np.array([[18, 18, 17, 18 if pair % 2 else 17]]),
    )


def make_samples(n: int, raw_output: str = "8") -> list[dict[str, Json]]:
    """Samples of the published three-hop program, all answered with ``raw_output``."""
    known = {"seq_len": 5, "hops": 3, "program": PROGRAM, "prompt": PROGRAM, "expected": 8, "error": None}
    parsed = int(raw_output) if raw_output.isdecimal() else None
    said = {"raw_output": raw_output, "parsed": parsed, "correct": parsed == 8, "chain": ["h", "x", "i"]}
    return [{"seed": seed, **known, **said} for seed in range(n)]


def log_accuracy(store: Store, raw_output: str = "8", hops: Iterable[int] = (1, 2, 3)) -> list[str]:
    """An accuracy study; the run ids of the study and of its cells."""
    with store.start("accuracy", "tiny · accuracy", kind="accuracy") as study:
        ids = [study.run_id]
        for number in hops:
            with study.cell(f"tiny · {number} hops · 5 lines", {"model": "tiny", "hops": number, "seq_len": 5}) as cell:
                ids.append(cell.run_id)
                cell.log_metrics({"accuracy": 0.9, "accuracy_ci_low": 0.8, "accuracy_ci_high": 0.95, "num_samples": 60})
                cell.append_jsonl("samples.jsonl", make_samples(60, raw_output))
    return ids


def log_causal(
    store: Store, maps: list[CausalMap], model: str = "tiny", weights_digest: str | None = None, hops: int = 3
) -> str:
    """A causal study of one cell; the run id of the cell."""
    kind = "attribution" if maps[0].estimated else "causal_tracing"
    with store.start("causal", "tiny · residual_stream", kind=kind) as study:
        params = {"model": model, "hops": hops, "seq_len": 5, "intervention_type": maps[0].intervention_type}
        params["scored_by"] = maps[0].scored_by
        with study.cell("tiny · 3 hops · 5 lines · residual_stream", params) as cell:
            if weights_digest is not None:
                cell.set_tags({"debug.weights_digest": weights_digest})
            save_maps(cell.folder / "causal_maps" / "00000.safetensors", maps)
            cell.log_programs([make_pair(PROGRAM, seed) for seed in range(len(maps))])
            cell.append_jsonl("samples.jsonl", make_samples(len(maps)))
            cell.log_metrics({"patch_success_rate": 0.31, "patch_success_rate_ci_low": 0.28, "pairs_used": len(maps)})
    return cell.run_id
