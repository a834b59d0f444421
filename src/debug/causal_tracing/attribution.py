"""Attribution patching: every cell of a group estimated by its gradient, and some patched exactly to compare with.

The method is Nanda's (2023).
"""

from __future__ import annotations

import zlib
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from debug.causal_map import CausalMap
from debug.causal_tracing.agreement import Agreement, agreement_of
from debug.causal_tracing.group import Group
from debug.causal_tracing.mapping import map_of
from debug.causal_tracing.patching import localized
from debug.engine import Intervention, Site, gradients, patched_logits
from debug.engine.read_back import ReadBack
from debug.engine.self_checks import Asked, Check, SelfChecks, measured

LOCALIZED_CELLS = 4  # of an attribution's exact sample, run once more the plain way
AGREEMENT_CELLS = 64  # of a pair, drawn to be patched exactly, to compare an attribution with
LARGEST_CELLS = 32  # and those beside them that the attribution calls the largest: few of those drawn matter


def estimate(
    group: Group, used: list[int], checks: list[Check]
) -> tuple[dict[int, CausalMap], SelfChecks, dict[int, int], dict[int, tuple[float | None, Agreement | None]]]:
    """Estimate every cell by its gradient, and patch some exactly to compare with."""
    model, plan, passes = group.model, group.plan, group.passes
    component, heads = plan.intervention_type, group.head_sets()
    tokens = torch.tensor([group.given[number].tokenized.answer_tokens[0] for number in used])
    slopes = gradients(model, passes.token_ids[used], tokens, component)
    interventions, sampled, maps = [], {}, {}
    for row, number in enumerate(used):
        one, shape = group.given[number], group.shape(number)
        clean, counterfactual = group.rows_of(number)
        answers = list(one.tokenized.answer_tokens)
        z_clean = passes.logits[number, answers].cpu()
        z_patched = z_clean.expand(*shape, 2).clone()
        z_patched[..., 1] = torch.nan  # the estimate is of c's logit alone
        by_layer = []
        for layer in plan.layers_of(model):
            stored = passes.activations[component][layer]
            effect = (stored[counterfactual] - stored[clean]).float() * slopes[layer][row].float()
            by_layer.append(effect.unflatten(-1, (model.n_heads, -1)).sum(-1) if heads != [None] else effect.sum(-1))
        for at, intervention in group.interventions(number):
            effect = by_layer[at[0]][list(intervention.sites[0].positions)].sum(0)
            chosen = intervention.sites[0].heads if isinstance(intervention.sites[0], Site) else None
            z_patched[(*at, 0)] += (effect[list(chosen)].sum() if chosen is not None else effect).item()
        every = list(group.interventions(number))
        rng = np.random.RandomState(zlib.crc32(one.tokenized.original.prompt.encode()))
        size = np.array([abs(float(z_patched[(*at, 0)] - z_clean[0])) for at, _ in every])
        drawn = rng.permutation(len(every))[:AGREEMENT_CELLS].tolist()
        largest = np.argsort(-size, kind="stable")[:LARGEST_CELLS].tolist()
        others = len({*drawn} - {*largest})
        for i in dict.fromkeys([*drawn, *largest]):
            weight = 1.0 if i in largest else (len(every) - len(largest)) / others
            sampled[len(interventions)] = (number, every[i][0], i in drawn, weight)
            interventions.append(every[i][1])
        maps[number] = map_of(group, number, z_patched.numpy(), np.full(shape, -1), None)
    n_interventions = len(interventions)
    interventions += dict.fromkeys(
        c for check in checks for c in (check.intervention, check.expected) if isinstance(c, Intervention)
    )
    exact: dict[int, list[tuple[float, float, bool, float]]] = defaultdict(list)
    logits_of: dict[Intervention, Tensor] = {}
    read_back, found = ReadBack(model, passes), {}
    for indices, logits in patched_logits(model, passes, interventions, group.batch_tokens, read_back):
        for index, row_logits in zip(indices, logits, strict=True):
            if index >= n_interventions:
                logits_of[interventions[index]] = row_logits.clone()
                continue
            number, at, is_drawn, weight = sampled[index]
            found[number, at] = row_logits[list(group.given[number].tokenized.answer_tokens)].cpu()
            c = group.given[number].tokenized.answer_tokens[0]
            estimate = float(maps[number].z_patched[(*at, 0)])
            exact[number].append((row_logits[c].item(), estimate, is_drawn, weight))
    agreement = {number: agreement_of(maps[number], compared) for number, compared in exact.items()}
    ran = {number: len(both) for number, both in exact.items()} | dict.fromkeys(set(used) - exact.keys(), 0)
    clean, intervention_at = passes.logits.cpu(), {of[:2]: interventions[index] for index, of in sampled.items()}

    def moved(at: tuple[int, tuple[int, ...]]) -> float:
        return (found[at] - clean[at[0], list(group.given[at[0]].tokenized.answer_tokens)]).abs().max().item()

    strongest = sorted(found, key=moved, reverse=True)[:LOCALIZED_CELLS]
    tolerance, distance = localized(
        group, {at: intervention_at[at] for at in strongest}, {at: found[at] for at in strongest}
    )
    asked = Asked(tolerance, distance, read_back)
    return maps, measured(model, passes, checks, logits_of, asked), ran, agreement
