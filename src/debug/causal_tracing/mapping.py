"""A pair's causal map from the numbers of its squares, with the logit lens of its clean forward pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from debug import models
from debug.causal_map import CausalMap
from debug.causal_tracing.group import Group
from debug.causal_tracing.likeliest import Likeliest
from debug.engine import unembedded

ROWS_OF_LENS = 256  # hidden states that are read through the unembedding at a time


def map_of(
    group: Group,
    number: int,
    z_patched: np.ndarray,
    top: np.ndarray,
    control: np.ndarray | None,
    patched: Likeliest | None = None,
) -> CausalMap:
    """``patched`` are the likeliest tokens in all columns; of a map with heads those at its targets are kept, for they
    would make its file larger by two thirds."""
    model, plan, one = group.model, group.plan, group.given[number]
    z_counterfactual, top_counterfactual = group.counterfactual(number)
    answers = list(one.tokenized.answer_tokens)
    seen = {*np.unique(top).tolist(), *answers, group.tops[number], top_counterfactual}
    seen |= set() if control is None else {*np.unique(control).tolist()}
    unpatched, heads = group.likeliest(number), [list(heads) for heads in group.head_sets() if heads]
    columns = sorted({*one.columns.target_columns.values()}) if heads else list(range(len(one.columns.columns)))
    patched = patched and Likeliest(*(array[..., columns, :] for array in patched))
    for each in filter(None, (unpatched, patched)):
        seen |= {*each.tokens.unique().tolist()}
    read = lens(group, number) if plan.logit_lens and one.columns.positions else (None, None)
    return CausalMap(
        intervention_type=plan.intervention_type,
        pair=one.index,
        tokens=one.tokenized.original.tokens,
        layers=group.reader.layers,
        positions=one.columns.positions,
        columns=one.columns.columns,
        targets=one.columns.targets,
        target_columns=one.columns.target_columns,
        n_layers=model.n_layers,
        first_difference=group.first_difference(number),
        differing=list(one.tokenized.differing) if plan.patches_pairs else [],
        answer_tokens=one.tokenized.answer_tokens,
        top_tokens=(group.tops[number], top_counterfactual),
        min_effect=models.SMALLEST_EFFECT[model.dtype],
        vocabulary={token: model.tokenizer.decode([token]) for token in sorted(seen - {-1})},
        z_clean=group.passes.logits[number, answers].cpu().numpy(),
        z_counterfactual=z_counterfactual.numpy(),
        z_patched=z_patched,
        top=top,
        layer_window=group.reader.window,
        heads=heads,
        source="knockout" if plan.knockout else plan.source,
        direction=plan.direction,
        method=plan.method,
        control_top=control,
        lens_logits=read[0],
        lens_ranks=read[1],
        top_k_columns=columns if patched else [],
        top_k=patched and patched.tokens.numpy(),
        top_k_logs=patched and patched.logs.numpy(),
        top_k_unpatched=unpatched.tokens.numpy(),
        top_k_unpatched_logs=unpatched.logs.numpy(),
    )


def lens(group: Group, number: int) -> tuple[Float[np.ndarray, "row position 2"], Int[np.ndarray, "row position 2"]]:
    """Logits and ranks of both answers, read off the clean forward pass's residual stream (nostalgebraist 2020)."""
    positions, answers = group.given[number].columns.positions, list(group.given[number].tokenized.answer_tokens)
    hidden = torch.stack([layer[number, positions] for layer in group.passes.activations["residual_stream"]])
    logits, ranks = [], []
    for part in hidden.flatten(0, 1).split(ROWS_OF_LENS):
        read = unembedded(group.model, part)
        logits.append(read[:, answers].cpu())
        ranks.append(torch.stack([(read > read[:, [answer]]).sum(-1) for answer in answers], -1).cpu())
    shape = (len(hidden), len(positions), 2)
    return torch.cat(logits).view(shape).numpy(), torch.cat(ranks).view(shape).numpy()
