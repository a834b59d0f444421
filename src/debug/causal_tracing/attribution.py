"""Attribution patching: every square of a group's maps estimated by its gradient; some patched exactly, to compare.

The method is Nanda's (2023).
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from debug.causal_tracing.agreement import agreement_of
from debug.causal_tracing.group import Group
from debug.causal_tracing.mapping import map_of
from debug.causal_tracing.patching import Filled, interventions_of, localized
from debug.engine import Intervention, Site, gradients, patched_logits
from debug.engine.read_back import ReadBack
from debug.engine.self_checks import Asked, Check, measured
from debug.errors import InputError

LOCALIZED_CELLS = 4  # of an attribution's exact sample, patched once more the plain way
AGREEMENT_CELLS = 64  # of a pair, drawn to be patched exactly, to compare an attribution with
LARGEST_CELLS = 32  # and those beside them that the attribution calls the largest: few of those drawn matter


class _Sampled(NamedTuple):
    """A square that is patched exactly, to compare the estimate with."""

    number: int
    """Of the pair."""
    at: tuple[int, ...]
    intervention: Intervention
    drawn: bool
    """Drawn alike from all; else one of the largest estimates."""
    weight: float
    """For how many squares it stands."""


def estimate(group: Group, used: list[int], checks: list[Check]) -> Filled:
    """Estimate every square by its gradient, and patch some exactly to compare with."""
    model, passes = group.model, group.passes
    if model.ranks > 1:
        raise InputError("method is 'attribution', and a model that is split over processes gives no gradients here")
    tokens = torch.tensor([group.given[number].tokenized.answer_tokens[0] for number in used])
    slopes = gradients(model, passes.token_ids[used], tokens, group.plan.intervention_type)
    maps, sampled = {}, []
    for row, number in enumerate(used):
        z_patched = _estimated(group, number, [slope[row] for slope in slopes])
        sampled += sample(group, number, z_patched)
        maps[number] = map_of(group, number, z_patched.numpy(), np.full(group.shape(number), -1), None)
    every = [*(one.intervention for one in sampled), *interventions_of(checks)]
    exact: dict[int, list[tuple[float, float, bool, float]]] = defaultdict(list)
    logits_of, found, read_back = {}, {}, ReadBack(model, passes)
    for indices, logits in patched_logits(model, passes, every, group.batch_tokens, read_back):
        for index, row_logits in zip(indices, logits, strict=True):
            if index >= len(sampled):
                logits_of[every[index]] = row_logits.clone()
                continue
            number, at, _, drawn, weight = sampled[index]
            found[number, at] = row_logits[list(group.given[number].tokenized.answer_tokens)].cpu()
            guess = float(maps[number].z_patched[(*at, 0)])
            exact[number].append((found[number, at][0].item(), guess, drawn, weight))
    clean, intervention_at = passes.logits.cpu(), {(one.number, one.at): one.intervention for one in sampled}

    def moved(at: tuple[int, tuple[int, ...]]) -> float:
        return (found[at] - clean[at[0], list(group.given[at[0]].tokenized.answer_tokens)]).abs().max().item()

    asked = {at: intervention_at[at] for at in sorted(found, key=moved, reverse=True)[:LOCALIZED_CELLS]}
    tolerance, distance = localized(group, asked, {at: found[at] for at in asked})
    return Filled(
        maps,
        measured(model, passes, checks, logits_of, Asked(tolerance, distance, read_back.worst)),
        dict.fromkeys(used, 0) | {number: len(both) for number, both in exact.items()},
        {number: agreement_of(maps[number], compared) for number, compared in exact.items()},
    )


def _estimated(
    group: Group, number: int, slopes: Sequence[Float[Tensor, "token width"]]
) -> Float[Tensor, "layer *head column 2"]:
    """The logits of a pair's patched forward passes as the gradients of its clean one have them; of c alone."""
    model, plan, passes = group.model, group.plan, group.passes
    clean, counterfactual = group.rows_of(number)
    z_patched = passes.logits[number, list(group.given[number].tokenized.answer_tokens)].cpu()
    z_patched = z_patched.expand(*group.shape(number), 2).clone()
    z_patched[..., 1] = torch.nan
    by_layer = []
    for layer in group.reader.layers:
        stored = passes.activations[plan.intervention_type][layer]
        effect = (stored[counterfactual] - stored[clean]).float() * slopes[layer].float()
        by_head = group.head_sets() != [None]
        by_layer.append(effect.unflatten(-1, (model.n_heads, -1)).sum(-1) if by_head else effect.sum(-1))
    for at, intervention in group.interventions(number):
        effect = by_layer[at[0]][list(intervention.sites[0].positions)].sum(0)
        chosen = intervention.sites[0].heads if isinstance(intervention.sites[0], Site) else None
        z_patched[(*at, 0)] += (effect[list(chosen)].sum() if chosen is not None else effect).item()
    return z_patched


def sample(group: Group, number: int, z_patched: Float[Tensor, "layer *head column 2"]) -> Iterator[_Sampled]:
    """Squares of a pair that are patched exactly, too: some drawn alike from all, and the largest estimates."""
    one, every = group.given[number].tokenized, list(group.interventions(number))
    z_clean = group.passes.logits[number, one.answer_tokens[0]].cpu()
    rng = np.random.RandomState(zlib.crc32(one.original.prompt.encode()))
    size = np.array([abs(float(z_patched[(*at, 0)] - z_clean)) for at, _ in every])
    drawn = rng.permutation(len(every))[:AGREEMENT_CELLS].tolist()
    largest = np.argsort(-size, kind="stable")[:LARGEST_CELLS].tolist()
    others = len({*drawn} - {*largest})
    for i in dict.fromkeys([*drawn, *largest]):
        weight = 1.0 if i in largest else (len(every) - len(largest)) / others
        yield _Sampled(number, every[i][0], every[i][1], i in drawn, weight)
