"""What a plan would do to pairs, without weights: the same pairs, groups, squares and batches, and no forward pass."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor

from debug.causal_map.sources import FIRST_TOKEN, GREEDY
from debug.causal_tracing.attribution import LOCALIZED_CELLS, sample
from debug.causal_tracing.experiment import WINDOW, checks_for, keeps_attention, pairs_together, prepared_of
from debug.causal_tracing.group import Group
from debug.causal_tracing.mapping import ROWS_OF_LENS
from debug.causal_tracing.pairs import PairReader, PreparedPair, StoredRuns
from debug.causal_tracing.patching import Grids, interventions_of
from debug.causal_tracing.reference import Reference, recorded
from debug.causal_tracing.whole_answers import nothing
from debug.counterfactual import PairLike
from debug.engine import ForwardPasses, Intervention
from debug.engine.continuing import Written, beginnings
from debug.engine.work import Counter, Work, unknown_passes
from debug.models import LoadedModel
from debug.plan import Plan

ALLOCATED = 1.35  # bytes that a process grows by for each that tensors have; fitted to three runs on a CPU
FIRST = 3  # pairs whose answers' tokens are shown, and which are timed


@dataclass
class Planned:
    """What a plan would do, where the model answers all pairs."""

    used: int = 0
    skipped: Tally[str] = field(default_factory=Tally)
    """Reason -> number of pairs; what the model says is none of them."""
    interventions: int = 0
    work: list[Work] = field(default_factory=list)
    """Forward pass by forward pass, self-checks too."""
    lens: list[Work] = field(default_factory=list)
    """And those of the logit lens: hidden states that are unembedded."""
    depends: list[Work] = field(default_factory=list)
    """More of them, whose number and interventions logits decide: here as if all logits were equal."""
    bytes: int = 0
    """Beside the weights, the most: of a group's unpatched forward passes and of what runs then."""
    first: list[PreparedPair] = field(default_factory=list)
    seconds: float = 0.0
    """That programs, tokens and squares took here; they take as long in a run."""


class _Unrun(Group):
    """A group none of whose programs is run."""

    def __init__(self, reader: PairReader, given: Sequence[PreparedPair], batch_tokens: int) -> None:
        super().__init__(reader, given, None, batch_tokens)
        if self.plan.source in ("mean", "zero", "stored"):  # of no forward pass here
            self.source_row = {number: len(self.passes) + number for number in range(len(given))}

    def _unpatched(self, token_ids: Int[Tensor, "program token"]) -> ForwardPasses:
        return unknown_passes(self.model, token_ids, recorded(self.plan))

    def _sources(self, reference: Reference | None) -> None:
        return None


def all_answered(plan: Plan) -> Plan:
    """The plan, where nothing is asked that only the model can tell. Random edges are as many, whatever they match."""
    return replace(plan, require_correct=False, match_attention=False)


def planned(
    model: LoadedModel,
    pairs: Iterator[PairLike],
    plan: Plan,
    wanted: int,
    max_tries: int,
    batch_tokens: int,
    stored: StoredRuns | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Planned:
    """What ``trace_pairs`` would do with pairs until ``wanted`` are used, or ``max_tries`` are tried.

    Raises:
        InputError: the plan does not fit the model.
    """
    plan, result, counter, tried = all_answered(plan), Planned(), Counter(model), 0
    reader, started = PairReader(model, plan, stored), clock()
    reference = None
    if plan.needs_reference:
        seen = list(islice(pairs, max_tries))
        reference, pairs = _reference(model, seen, plan, batch_tokens, counter, result), iter(seen)
    while result.used < wanted and tried < max_tries:
        before, asked = tried, islice(pairs, min(wanted - result.used, max_tries - tried))
        while window := list(islice(enumerate(asked, tried), WINDOW)):
            tried += len(window)
            skipped, by_length = prepared_of(reader, window, reference)
            result.skipped.update(one.skipped for one in skipped.values() if one.skipped)
            for group in by_length:
                size = pairs_together(reader, group, batch_tokens)
                for start in range(0, len(group), size):
                    _add(result, counter, _Unrun(reader, group[start : start + size], batch_tokens))
        if tried == before:
            break
    result.seconds = clock() - started
    return result


def _reference(
    model: LoadedModel, seen: list[PairLike], plan: Plan, batch_tokens: int, counter: Counter, result: Planned
) -> Reference:
    def run(model: LoadedModel, token_ids: Tensor, components: object) -> ForwardPasses:
        result.work.append(counter.unpatched(*token_ids.shape))
        return unknown_passes(model, token_ids, ())

    reference = Reference.found(model, seen, plan, batch_tokens, run)
    if plan.source == "mean":
        for length, n in Tally(len(program.token_ids) for _, program in reference.programs).items():
            most = max(1, batch_tokens // length)
            result.work += [counter.unpatched(min(most, n - start), length) for start in range(0, n, most)]
    return reference


def _add(result: Planned, counter: Counter, group: _Unrun) -> None:
    """A group's part: its unpatched forward passes, the batches of its squares and checks, and the plain ones."""
    model, passes, plan = group.model, group.passes, group.plan
    result.work.append(counter.unpatched(len(passes), passes.length))
    reasons = [group.reader.reason_to_skip(one, (True, True)) for one in group.given]
    result.skipped.update(filter(None, reasons))
    used = [number for number, reason in enumerate(reasons) if reason is None]
    if not used:
        return
    result.used += len(used)
    result.first = (result.first + [group.given[number] for number in used])[:FIRST]

    def read(model: LoadedModel, hidden: Tensor) -> Tensor:
        result.work.append(counter.unembedded(len(hidden)))
        return hidden.new_zeros(()).expand(len(hidden), passes.logits.shape[1])

    checks = checks_for(group, used, read)
    if plan.method == "attribution":
        slopes = counter.unpatched(len(used), passes.length)
        result.work.append(slopes._replace(flop=3 * slopes.flop))  # backwards it is twice as much
        own = _sampled(group, used)
        asked = own[:LOCALIZED_CELLS]
    else:
        grids = Grids.of(group, used)
        own, asked = grids.interventions, list(grids.telling(used).values())
    result.interventions += len(own)
    every = [*own, *interventions_of(checks)]
    batches = list(counter.patched(passes, every, group.batch_tokens))
    (result.depends if plan.method == "attribution" else result.work).extend(work for work, _ in batches)
    result.work += counter.rounding(passes.length)
    result.depends += counter.plain(passes.length, asked, len(passes))
    kept_attention = [number for number in used if keeps_attention(group, number)]
    result.work += [counter.unpatched(1, passes.length, passes.length)] * len(kept_attention)
    if plan.logit_lens:
        for number in used:
            rows = (model.n_layers + 1) * len(group.given[number].columns.positions)
            result.lens += [counter.unembedded(min(ROWS_OF_LENS, rows - n)) for n in range(0, rows, ROWS_OF_LENS)]
    if plan.scored_by != FIRST_TOKEN:
        batches += _of_answers(group, used, grids, counter, result)
    rows = len(passes) + (len(group.given) if plan.source in ("mean", "stored") else plan.source == "zero")
    kept = rows * passes.length * counter.kept(passes) * counter.element
    patterns = model.n_layers * model.n_heads * passes.length**2 * counter.element if kept_attention else 0
    most = max([counter.unpatched_bytes(len(passes), passes.length), patterns, *(size for _, size in batches)])
    result.bytes = max(result.bytes, int(ALLOCATED * (kept + most)))


def _of_answers(
    group: _Unrun, used: Sequence[int], grids: Grids, counter: Counter, result: Planned
) -> list[tuple[Work, int]]:
    """What whole answers take, of all pairs' unpatched programs and of the squares of those that are used; of greedy
    ones only the first token's is known, and the others are as if all texts were different."""
    found, greedy = [], group.plan.scored_by == GREEDY
    made = {number: [*nothing(group.rows_of(number))] for number in used}
    for (number, *_), intervention in zip(grids.where, grids.interventions, strict=True):
        made[number].append(intervention)
    for number, one in enumerate(group.given):
        for interventions in (nothing(group.rows_of(number)), *([made[number]] if number in made else [])):
            steps: list[list[Written]] = [[*each] for each in beginnings([*one.candidates.values()])]
            if greedy:
                steps = [[()]] * (len(steps) + 1)
            if one.in_common and len(interventions) > 2:
                steps.append([one.candidates[one.texts[0]][: one.in_common]])
            for at, begun in enumerate(steps):
                every = enumerate(interventions)
                asked = [(each, (n,) * at if greedy else start) for n, each in every for start in begun]
                batches = [*counter.behind(group.passes, asked, group.batch_tokens)]
                (result.depends if greedy and at else result.work).extend(work for work, _ in batches)
                found += batches
    return found


def _sampled(group: Group, used: Sequence[int]) -> list[Intervention]:
    """As many of an attribution's squares as are patched exactly: which are largest only the model can tell."""
    blank = {number: torch.zeros(*group.shape(number), 2) for number in used}
    return [one.intervention for number in used for one in sample(group, number, blank[number])]
