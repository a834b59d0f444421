"""What becomes of the pairs of a group: the reason why one is skipped, or its map, checks and activations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from debug.causal_tracing.attribution import estimate
from debug.causal_tracing.group import Group
from debug.causal_tracing.pairs import reason_to_skip
from debug.causal_tracing.patching import patch
from debug.causal_tracing.results import PairResult
from debug.engine.self_checks import Check, checks_of


def results_of(group: Group) -> Iterator[PairResult]:
    used = []
    for number, one in enumerate(group.given):
        if not group.is_finite(number):
            yield PairResult(one.index, one.pair, group.model.not_finite, prompt=group.said(number)["prompt"])
        elif reason := reason_to_skip(group.given[number], group.plan, group.top_tokens(number)):
            yield PairResult(one.index, one.pair, reason, **group.said(number))
        else:
            used.append(number)
    if not used:
        return
    checks = _checks(group, used)
    fill = estimate if group.plan.method == "attribution" else patch
    filled = fill(group, used, checks)
    for number in used:
        one = group.given[number]
        yield PairResult(
            one.index,
            one.pair,
            **group.said(number),
            causal_map=filled.maps[number],
            checks=filled.checks,
            activations=_kept_activations(group, number),
            interventions=filled.ran[number],
            rank_agreement=filled.agreement[number][0] if number in filled.agreement else None,
            agreement=filled.agreement[number][1] if number in filled.agreement else None,
        )


def _checks(group: Group, used: list[int]) -> list[Check]:
    used = [0] if group.plan.source == "stored" else used
    pairs = [group.rows_of(number) for number in used]
    differing = [group.given[number].tokenized.differing for number in used]
    return checks_of(group.model, group.passes, group.plan.intervention_type, pairs, differing)


def _kept_activations(group: Group, number: int) -> dict[str, np.ndarray]:
    if group.plan.save_activations == "none" or group.plan.source == "stored":  # these are the source run's
        return {}
    positions = sorted({p for column in group.given[number].columns.targets.values() for p in column})
    if group.plan.save_activations == "all":
        positions = list(range(group.passes.length))
    programs = (group.given[number].tokenized.original, group.given[number].tokenized.counterfactual)
    kept = {"positions": np.array(positions), "token_ids": np.array([program.token_ids for program in programs])}
    for name, row in zip(("clean", "counterfactual"), group.rows_of(number), strict=True):
        for component, layers in group.passes.activations.items():
            stacked = torch.stack([layer[row, positions] for layer in layers]).cpu()
            kept[f"{name}/{component}"] = stacked.float().numpy()  # numpy has no bfloat16; float32 holds it exactly
    return kept
