"""Exact patching of a group on a model that is elsewhere, with the self-checks that can be made from here."""

from __future__ import annotations

import torch

from debug.causal_tracing.group import Group
from debug.causal_tracing.likeliest import Likeliest
from debug.causal_tracing.patching import Filled, Grids, interventions_of
from debug.engine import remote
from debug.engine.self_checks import Asked, Check, measured
from debug.models.remote_model import RemoteModel
from debug.progress import Progress


def patch_remotely(group: Group, used: list[int], checks: list[Check]) -> Filled:
    """As :func:`debug.causal_tracing.patching.patch`; what cannot be heard from here is asked again in other ways.

    The squares at which a redirection would show most are run again the plain way, in traces of their own;
    the unpatched programs, which are in every batch, must have the same logits in all.

    Raises:
        SelfCheckError: they have not: another model has answered.
    """
    model, grids, passes, drifts = group.model, Grids.of(group, used), group.passes, []
    assert isinstance(model, RemoteModel)
    tokens = [grids.tokens[number] for number, *_ in grids.where]
    ranks = grids.likeliest.tokens.shape[1]
    with Progress(len(tokens), "interventions", "intervention", brief=True) as bar:
        asked = passes, grids.interventions, tokens, ranks, group.batch_tokens
        for indices, read, drift in remote.patched_reads(model, *asked):
            likeliest = Likeliest(read.tokens.to(torch.int32), read.logs.half())
            grids.put(indices, read.answers, read.tops, likeliest)
            drifts.append(drift)
            bar.update(len(indices))
    every = interventions_of(checks)
    logits_of = dict(zip(every, remote.patched_logits(model, passes, every), strict=True))
    again = grids.telling(used)
    alone = remote.plain_logits(model, passes, [*again.values()])
    distance = None
    if again:
        squares = [(grids.z_patched(number)[at], group.given[number].tokenized.answer_tokens) for number, at in again]
        both = zip(alone, squares, strict=True)
        distance = max((row[list(answers)] - found).abs().max().item() for row, (found, answers) in both)
    tolerance = remote.rounding(model, passes, drifts)
    checked = measured(model, passes, checks, logits_of, Asked(tolerance, distance, None))
    ran = grids.ran()
    return Filled({n: grids.map_of(n) for n in used}, checked, {n: ran[n] for n in used}, {})
