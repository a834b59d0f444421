"""Pair after pair through a plan: groups of one length share forward passes."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from debug import models
from debug.causal_map import AttentionPattern, CausalMap, Metric, as_metric
from debug.causal_tracing.attribution import estimate
from debug.causal_tracing.batches import in_parts
from debug.causal_tracing.group import Group
from debug.causal_tracing.pairs import PairReader, PreparedPair, StoredRuns, as_written
from debug.causal_tracing.patching import Filled, patch
from debug.causal_tracing.reference import Reference
from debug.causal_tracing.results import CausalTracingResult, PairResult
from debug.counterfactual import PairLike, as_pair
from debug.engine import SelfCheckError, default_batch_tokens, unembedded
from debug.engine.attention_patterns import attention_pattern
from debug.engine.self_checks import Check, checks_of
from debug.errors import InputError
from debug.kinds import Argument
from debug.models import LoadedModel, PromptTooLong, VocabularyError
from debug.models.backends import is_remote
from debug.models.hook_points import COMPONENTS
from debug.plan import Plan
from debug.programs import ProgramError
from debug.progress import hidden
from debug.token_analyzer import PairError

logger = logging.getLogger(__name__)
MOST_ATTENTION = 2**27  # numbers of a whole prompt's patterns, all in memory at once: half a GiB
WINDOW = 64  # pairs that are looked at together: those of one length share forward passes


def trace_pairs(
    model: LoadedModel,
    pairs: Iterable[PairLike],
    plan: Plan,
    batch_tokens: int | None = None,
    stored: StoredRuns | None = None,
    reference: Reference | None = None,
    known: Mapping[int, PairResult] | None = None,
) -> Iterator[PairResult]:
    """Run a plan on pair after pair and yield what became of each, in order. Pairs of one length share forward passes.

    A pair that cannot be used is yielded with its reason, and the rest go on. Memory does not grow with their number.
    ``stored`` gives the counterfactuals' activations to a plan whose source they are, ``reference`` the programs that
    means are over and partners are drawn from; without it these are the first usable ones of the pairs. ``known`` has
    results of an earlier run on these very pairs, by number: what runs together stays together, so that they change no
    number of the others, and what is known as a whole is not run.

    Raises:
        InputError: the plan does not fit the model.
        SelfCheckError: logits of a patched forward pass, or of all pairs, are not finite; or the self-checks of the
            pairs that were yielded last failed.
    """
    PairReader(model, plan, stored)  # raises, before anything runs
    batch_tokens = batch_tokens or default_batch_tokens(model)
    plan, pairs = as_written(model, plan, pairs)
    reader = PairReader(model, plan, stored)
    if plan.needs_reference and reference is None:
        pairs = list(pairs)
        reference = Reference.found(model, pairs, plan, batch_tokens)
    known = known or {}
    finite = overflowed = False
    stream = enumerate(pairs)
    while window := list(islice(stream, WINDOW)):
        if all(index in known for index, _ in window):
            yield from (_of(known[index], given) for index, given in window)
            continue
        done, by_length = prepared_of(reader, window, reference)
        done |= {index: _of(known[index], given) for index, given in window if index in known}
        pending = [index for index, _ in window]

        def traced(part: Sequence[PreparedPair]) -> list[PairResult]:
            if all(one.index in known for one in part):
                return [_of(known[one.index], one.pair) for one in part]
            return list(_results_of(Group(reader, part, reference, batch_tokens)))

        for group in by_length:
            for results in in_parts(group, pairs_together(reader, group, batch_tokens), traced):
                finite |= any(result.skipped != model.not_finite for result in results)
                overflowed |= any(result.skipped == model.not_finite for result in results)
                done |= {result.index: result for result in results}
                checks = [result.checks for result in done.values() if result.checks]
                while pending and pending[0] in done:
                    yield done.pop(pending.pop(0))
                for check in checks:
                    check.require()
        for index in pending:
            yield done.pop(index)
    if overflowed and not finite:
        raise SelfCheckError(model.not_finite)


def _of(known: PairResult, given: PairLike) -> PairResult:
    """A known result with its pair, which is None where it is none."""
    with suppress(ProgramError):
        return replace(known, pair=as_pair(given))
    return known


def prepared_of(
    reader: PairReader, window: Sequence[tuple[int, PairLike]], reference: Reference | None
) -> tuple[dict[int, PairResult], list[list[PreparedPair]]]:
    """Of numbered pairs those that cannot be used, with their reasons, by number; the others by the prompts' length."""
    done: dict[int, PairResult] = {}
    prepared: list[PreparedPair] = []
    by_length: dict[int, list[PreparedPair]] = defaultdict(list)
    for index, given in window:
        pair = None
        try:
            pair = as_pair(given)
            ready = reader.prepared(index, pair)
            if reference is not None:
                ready = ready._replace(partner=reference.partner(ready))
        except (ProgramError, PairError, VocabularyError, PromptTooLong) as error:
            done[index] = PairResult(index, pair, skipped=str(error))
        else:
            prepared.append(ready)
    for ready in reader.where_written(prepared):
        if isinstance(ready, PairResult):
            done[ready.index] = ready
        else:
            by_length[len(ready.tokenized.original.token_ids)].append(ready)
    return done, list(by_length.values())


def pairs_together(reader: PairReader, group: Sequence[PreparedPair], batch_tokens: int) -> int:
    """How many pairs of one length are run together: as many as share forward passes well, and as few as one would mind
    to lose when interrupted."""
    length = len(group[0].tokenized.original.token_ids)
    tokens = len(reader.layers) * len(group[0].columns.columns) * length // 2  # that a pair's squares run
    if not reader.plan.knockout and COMPONENTS[reader.plan.intervention_type].per_head:
        tokens *= len(reader.heads)
    return max(1, min(batch_tokens // (2 * length), 32 * batch_tokens // max(1, tokens)))


def _results_of(group: Group) -> Iterator[PairResult]:
    used = []
    for number, one in enumerate(group.given):
        if not group.is_finite(number):
            yield PairResult(one.index, one.pair, group.model.not_finite, prompt=group.said(number)["prompt"])
        elif reason := group.reader.reason_to_skip(one, group.correct(number)):
            yield PairResult(one.index, one.pair, reason, **group.said(number))
        else:
            used.append(number)
    if not used:
        return
    checks = checks_for(group, used)
    filled = _fill_of(group)(group, used, checks)
    for number in used:
        one = group.given[number]
        yield PairResult(
            one.index,
            one.pair,
            **group.said(number),
            causal_map=filled.maps[number],
            checks=filled.checks,
            activations=_kept_activations(group, number),
            attention=_kept_attention(group, number),
            interventions=filled.ran[number],
            rank_agreement=filled.agreement[number][0] if number in filled.agreement else None,
            agreement=filled.agreement[number][1] if number in filled.agreement else None,
        )


def _fill_of(group: Group) -> Callable[[Group, list[int], list[Check]], Filled]:
    if not is_remote(group.model.device):
        return estimate if group.plan.method == "attribution" else patch
    from debug.causal_tracing.remotely import patch_remotely

    return patch_remotely


def checks_for(
    group: Group, used: list[int], read: Callable[[LoadedModel, Tensor], Tensor] = unembedded
) -> list[Check]:
    used = [0] if group.plan.source == "stored" else used
    pairs = [group.rows_of(number) for number in used]
    differing = [group.given[number].tokenized.differing for number in used]
    return checks_of(group.model, group.passes, group.plan.intervention_type, pairs, differing, read)


def _kept_activations(group: Group, number: int) -> dict[str, np.ndarray]:
    if group.plan.save_activations == "none" or group.plan.source == "stored":  # these are the source run's
        return {}
    positions = sorted({p for column in group.given[number].columns.targets.values() for p in column})
    if group.plan.save_activations == "all":
        positions = list(range(group.passes.length))
    token_ids = [program.token_ids for program in group.given[number].tokenized.programs]
    kept = {"positions": np.array(positions), "token_ids": np.array(token_ids)}
    for name, row in zip(("clean", "counterfactual"), group.rows_of(number), strict=True):
        for component, layers in group.passes.activations.items():
            stacked = torch.stack([layer[row, positions] for layer in layers]).cpu()
            kept[f"{name}/{component}"] = stacked.float().numpy()  # numpy has no bfloat16; float32 holds it exactly
    return kept


def keeps_attention(group: Group, number: int) -> bool:
    """Whether a pair's attention patterns are asked for, and those of a whole prompt fit into memory."""
    numbers = group.model.n_layers * group.model.n_heads * group.passes.length**2
    return group.given[number].index < group.plan.save_attention and numbers <= MOST_ATTENTION


def _kept_attention(group: Group, number: int) -> AttentionPattern | None:
    if not keeps_attention(group, number):
        return None
    one = group.given[number]
    queries = sorted({position for at in one.columns.targets.values() for position in at})
    pattern = attention_pattern(group.model, torch.tensor(one.tokenized.original.token_ids))
    return AttentionPattern(queries, pattern[:, :, queries].clip(0, 1).astype(np.float16))


def run_causal_tracing_experiment(
    model_id: str | LoadedModel,
    programs: Sequence[PairLike],
    intervention_type: str = "residual_stream",
    intervention_layers: Sequence[int] | None = None,
    positions: str | Sequence[str | int] = "all",
    *,
    metric: str | Metric | Callable[[CausalMap], Float[np.ndarray, "layer *head column"]] | None = None,
    dtype: str | None = None,
    device: str | None = None,
    batch_tokens: int | None = None,
    **plan: Argument,
) -> CausalTracingResult:
    """Patch each pair's counterfactual activations into its clean forward pass, square by square; maps stay in memory.

    Nothing is logged; :class:`debug.causal_experiment_runner.CausalExperimentRunner` does the same as an MLflow run.

    Args:
        model_id: an id (see :func:`debug.models.load`), or a model that is loaded.
        programs: pairs, dicts with "original" and perhaps "counterfactual", or texts of programs.
        intervention_type: one of ``INTERVENTION_TYPES``.
        intervention_layers: rows of the map; None for all (0 .. n_layers for the residual stream).
        positions: "all", "targets", or names of targets and token positions.
        metric: one's own, as a function of a map's logits; ``result.values`` and ``result.mean`` then have it. Such as
            ``lambda m: m.z_patched[..., 0] - m.z_patched[..., 1]``; see :func:`debug.causal_map.as_metric`.
        plan: any other field of :class:`Plan`: targets, source, direction, heads, layer_window, require_correct (True:
            pairs that the model does not answer are skipped), ...

    Raises:
        InputError: an argument cannot be, or no pair was left to patch (the message has the reasons).
        SelfCheckError: a self-check failed.
    """
    if not programs:
        raise InputError("programs is empty; expected at least one pair")
    what = Plan(intervention_type, intervention_layers, positions, **plan)
    own = None if metric is None else as_metric(metric)
    model = model_id if isinstance(model_id, LoadedModel) else models.load(model_id, dtype=dtype, device=device)
    model.say_what_prompts_lose()
    results = list(tqdm(trace_pairs(model, programs, what, batch_tokens), "pairs", len(programs), disable=hidden()))
    result = CausalTracingResult(model.id, what, results, own)
    if not result.maps:
        raise InputError(f"no pair was left to patch; the first was skipped because: {results[0].skipped}")
    return result
