"""How long forward passes take on this machine: the engine itself, on random weights, for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from debug.causal_tracing.group import Group
from debug.causal_tracing.pairs import PairReader, PreparedPair
from debug.causal_tracing.patching import Grids
from debug.causal_tracing.planning import all_answered
from debug.engine import patched_logits, unembedded
from debug.engine.forward import batches
from debug.engine.read_back import ReadBack
from debug.engine.work import Counter, Work
from debug.models.blueprint import Blueprint, with_random_weights
from debug.plan import Plan

SECONDS = 8.0  # after which no further batch is timed
SAMPLED = 10  # batches
ROUNDS = 5  # in which these are timed, where there is time
Clock = Callable[[], float]


class Speed(NamedTuple):
    """What things cost on this machine, fitted to what was timed."""

    per: Float[np.ndarray, "5"]
    """Seconds for each forward pass, layer that runs, layer that is skipped, intervention, and FLOP."""
    map_seconds: float
    """Of a pair's map, its logit lens too."""

    def seconds(self, work: Iterable[Work], pairs: int) -> float:
        return float(self.per @ _counts(Work.sum(work))) + pairs * self.map_seconds


def _counts(work: Work) -> Float[np.ndarray, "5"]:
    return np.array([work.passes, work.layers, work.skipped, work.interventions, work.flop], dtype=float)


def speed(
    model: Blueprint, first: Sequence[PreparedPair], plan: Plan, batch_tokens: int, clock: Clock = time.perf_counter
) -> Speed:
    """Time some of the batches of a plan's first pairs. The model gets random weights."""
    plan = replace(all_answered(plan), method="patching", source=plan.source if plan.knockout else "counterfactual")
    plan = replace(plan, source_run=None, save_activations="none")
    loaded, counter = with_random_weights(model), Counter(model)
    length = len(first[0].tokenized.original.token_ids)
    given = [
        one._replace(stored=None, partner=None) for one in first if len(one.tokenized.original.token_ids) == length
    ]
    reader, until = PairReader(loaded, plan), clock() + SECONDS
    timed: list[tuple[Work, float]] = []

    def record(work: Work, run: Callable[[], object]) -> None:
        started = clock()
        run()
        if loaded.device.startswith("cuda"):
            torch.cuda.synchronize(loaded.device)
        timed.append((work, clock() - started))

    Group(reader, given[:1], None, batch_tokens)  # the first time costs more
    started, group = clock(), Group(reader, given, None, batch_tokens)
    passes, taken = group.passes, clock() - started
    timed.append((counter.unpatched(len(passes), length), taken))
    grids = Grids.of(group, range(len(given)))
    read_back, hidden = ReadBack(loaded, passes), passes.activations["residual_stream"][0].flatten(0, 1)[:256]

    def patch(chosen: Sequence[int]) -> None:
        some = [grids.interventions[i] for i in chosen]
        for indices, logits in patched_logits(loaded, passes, some, batch_tokens, read_back):
            grids.take([chosen[i] for i in indices], logits)

    planned = [batch.packed.numbers for batch in batches(loaded, passes, grids.interventions, batch_tokens)]
    spread = [planned[i] for i in np.linspace(0, len(planned) - 1, min(SAMPLED, len(planned))).astype(int)]
    patch(planned[-1][:2])
    parts = [part for whole in reversed(spread) for part in (whole, whole[: len(whole) // 3 or 1])]
    for n, chosen in enumerate([planned[-1][:2], planned[-1], planned[0][:2], *parts * ROUNDS]):
        if n > 3 and clock() > until:
            break
        some = [grids.interventions[i] for i in chosen]
        work = Work.sum(each for each, _ in counter.patched(passes, some, batch_tokens))
        record(work, lambda chosen=chosen: patch(chosen))
    record(counter.unembedded(len(hidden)), lambda: unembedded(loaded, hidden))
    started = clock()
    for number in range(len(given)):
        grids.map_of(number)
    map_seconds = (clock() - started) / len(given)
    rows, seconds = np.array([_counts(work) for work, _ in timed]), np.array([taken for _, taken in timed])
    scale = np.maximum(rows.max(0), 1)
    from scipy.optimize import nnls

    fitted, _ = nnls(rows / scale / seconds[:, None], np.ones(len(rows)))  # each by its share
    fitted *= seconds.sum() / (rows / scale @ fitted).sum()  # noise only adds to times, which shares take for less
    return Speed(fitted / scale, map_seconds)
