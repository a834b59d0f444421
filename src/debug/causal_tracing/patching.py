"""Exact patching: every cell of the grids of a group, the control's at the targets, and the self-checks, all packed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from debug.causal_map import CausalMap
from debug.causal_tracing.agreement import Agreement
from debug.causal_tracing.group import Group
from debug.causal_tracing.mapping import map_of
from debug.engine import Intervention, patched_logits
from debug.engine.plain_hooks import plain_logits, rounding
from debug.engine.read_back import ReadBack
from debug.engine.self_checks import Asked, Check, SelfChecks, measured, telling


def patch(
    group: Group, used: list[int], checks: list[Check]
) -> tuple[dict[int, CausalMap], SelfChecks, dict[int, int], dict[int, tuple[float | None, Agreement | None]]]:
    """Run every cell: of the grids, of the controls at the targets, of the checks, all packed together."""
    passes = group.passes
    interventions: list[Intervention] = []
    where: list[tuple[int, bool, tuple[int, ...]]] = []  # of each cell of a map: pair, is it the control's, grid index
    z_patched, tops, controls = {}, {}, {}
    for number in used:
        one, shape = group.given[number], group.shape(number)
        answers = list(one.tokenized.answer_tokens)
        z_patched[number] = passes.logits[number, answers].cpu().expand(*shape, 2).clone()
        tops[number] = torch.full(shape, group.tops[number])
        at_target = {column: t for t, column in enumerate(one.columns.target_columns.values())}
        if number in group.control_row:
            controls[number] = torch.full((*shape[:-1], len(at_target)), group.tops[number])
        for at, intervention in group.interventions(number):
            interventions.append(intervention)
            where.append((number, False, at))
        if one.control is None:
            continue
        both = zip(one.tokenized.original.token_ids, one.control.token_ids, strict=True)
        first = next(position for position, (own, other) in enumerate(both) if own != other)
        for at, intervention in group.interventions(number, group.control_row[number], first):
            if at[-1] in at_target:
                interventions.append(intervention)
                where.append((number, True, (*at[:-1], at_target[at[-1]])))
    n_interventions = len(interventions)
    checked = dict.fromkeys(
        c for check in checks for c in (check.intervention, check.expected) if isinstance(c, Intervention)
    )
    interventions += checked
    logits_of: dict[Intervention, Tensor] = {}
    read_back = ReadBack(group.model, passes)
    with tqdm(total=n_interventions, desc="cells", leave=False, disable=None) as bar:
        for indices, logits in patched_logits(group.model, passes, interventions, group.batch_tokens, read_back):
            of_maps = [i for i, index in enumerate(indices) if index < n_interventions]
            logits_of |= {
                interventions[index]: row.clone()
                for index, row in zip(indices, logits, strict=True)
                if index >= n_interventions
            }
            tokens = [group.given[where[indices[i]][0]].tokenized.answer_tokens for i in of_maps]
            answers = logits[of_maps].gather(1, torch.tensor(tokens, device=logits.device).view(-1, 2)).cpu()
            top = logits[of_maps].argmax(-1).cpu()
            for i, answer, token in zip(of_maps, answers, top, strict=True):
                number, is_control, at = where[indices[i]]
                if is_control:
                    controls[number][at] = token
                else:
                    z_patched[number][at] = answer
                    tops[number][at] = token
            bar.update(len(of_maps))
    ran = np.bincount([number for number, *_ in where], minlength=len(group.given)).tolist()
    maps = {
        number: map_of(group, number, z_patched[number].numpy(), tops[number].numpy(), _numpy(controls.get(number)))
        for number in used
    }
    ran_at: dict[int, dict[tuple[int, ...], Intervention]] = {number: {} for number in (used[0], used[-1])}
    for intervention, (number, is_control, at) in zip(interventions, where, strict=False):
        if number in ran_at and not is_control:
            ran_at[number][at] = intervention
    asked = {
        (number, at): interventions_at[at]
        for number, interventions_at in ran_at.items()
        for at in telling(z_patched[number].numpy(), interventions_at, 3 if number == used[0] else 1)
    }
    tolerance, distance = localized(group, asked, {at: z_patched[at[0]][at[1]] for at in asked})
    return maps, measured(group.model, passes, checks, logits_of, Asked(tolerance, distance, read_back)), ran, {}


def localized(
    group: Group,
    asked: dict[tuple[int, tuple[int, ...]], Intervention],
    found: dict[tuple[int, tuple[int, ...]], Tensor],
) -> tuple[float, float | None]:
    """What rounding may do, and how far cells of the maps are from the same cells run the plain way: the largest
    difference of an answer's logit."""
    if not asked:
        return rounding(group.model, group.passes, [0])[0], None
    logits, tolerance = plain_logits(group.model, group.passes, list(asked.values()))
    tokens = torch.tensor([group.given[number].tokenized.answer_tokens for number, _ in asked])
    plain = logits.cpu().gather(1, tokens)
    return tolerance, (plain - torch.stack(list(found.values()))).abs().max().item()


def _numpy(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.numpy()
