"""Pair after pair through a plan: groups of one length share forward passes."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from debug import models
from debug.causal_map import CausalMap, Metric, as_metric
from debug.causal_tracing.batches import in_parts
from debug.causal_tracing.group import Group
from debug.causal_tracing.grouped import results_of
from debug.causal_tracing.pairs import PreparedPair, StoredRuns, as_written, prepare, where_written
from debug.causal_tracing.reference import Reference
from debug.causal_tracing.results import CausalTracingResult, PairResult
from debug.counterfactual import PairLike, as_pair
from debug.engine import SelfCheckError, default_batch_tokens
from debug.errors import InputError
from debug.kinds import Argument
from debug.models import LoadedModel, PromptTooLong, VocabularyError
from debug.models.hook_points import COMPONENTS
from debug.plan import Plan
from debug.programs import ProgramError
from debug.token_analyzer import PairError

logger = logging.getLogger(__name__)
WINDOW = 64  # pairs that are looked at together: those of one length share forward passes


def trace_pairs(
    model: LoadedModel,
    pairs: Iterable[PairLike],
    plan: Plan,
    batch_tokens: int | None = None,
    stored: StoredRuns | None = None,
    reference: Reference | None = None,
) -> Iterator[PairResult]:
    """Run a plan on pair after pair and yield what became of each, in order. Pairs of one length share forward passes.

    A pair that cannot be used is yielded with its reason, and the rest go on. Memory does not grow with their number.
    ``stored`` gives the counterfactuals' activations to a plan whose source they are, ``reference`` the programs that
    means are over and partners are drawn from; without it these are the first usable ones of the pairs.

    Raises:
        InputError: the plan does not fit the model.
        SelfCheckError: logits of a patched forward pass, or of all pairs, are not finite; or the self-checks of the
            pairs that were yielded last failed.
    """
    plan.layers_of(model)  # raises, before anything runs
    plan.heads_of(model)
    if plan.source == "stored" and stored is None:
        raise InputError("source is 'stored'; CausalExperimentRunner patches from activations of logged runs")
    batch_tokens = batch_tokens or default_batch_tokens(model)
    plan, pairs = as_written(model, plan, pairs)
    if plan.needs_reference and reference is None:
        pairs = list(pairs)
        reference = Reference.found(model, pairs, plan, batch_tokens)
    finite = overflowed = False
    stream = enumerate(pairs)
    while window := list(islice(stream, WINDOW)):
        done, by_length = _prepared(model, window, plan, stored, reference)
        pending = [index for index, _ in window]

        def traced(part: Sequence[PreparedPair]) -> list[PairResult]:
            return list(results_of(Group(model, part, plan, reference, batch_tokens)))

        for group in by_length:
            for results in in_parts(group, _together(model, group, plan, batch_tokens), traced):
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


def _prepared(
    model: LoadedModel,
    window: Sequence[tuple[int, PairLike]],
    plan: Plan,
    stored: StoredRuns | None,
    reference: Reference | None,
) -> tuple[dict[int, PairResult], list[list[PreparedPair]]]:
    """Of numbered pairs those that cannot be used, with their reasons, by number; the others by the prompts' length."""
    done: dict[int, PairResult] = {}
    prepared: list[PreparedPair] = []
    by_length: dict[int, list[PreparedPair]] = defaultdict(list)
    for index, given in window:
        pair = None
        try:
            pair = as_pair(given)
            ready = prepare(model, index, pair, plan, stored)
            if reference is not None:
                ready = ready._replace(partner=reference.partner(ready, plan))
        except (ProgramError, PairError, VocabularyError, PromptTooLong) as error:
            done[index] = PairResult(index, pair, skipped=str(error))
        else:
            prepared.append(ready)
    for ready in where_written(model, plan, prepared):
        if isinstance(ready, PairResult):
            done[ready.index] = ready
        else:
            by_length[len(ready.tokenized.original.token_ids)].append(ready)
    return done, list(by_length.values())


def _together(model: LoadedModel, group: Sequence[PreparedPair], plan: Plan, batch_tokens: int) -> int:
    """How many pairs of one length are run together: as many as share forward passes well, and as few as one would mind
    to lose when interrupted."""
    length = len(group[0].tokenized.original.token_ids)
    tokens = len(plan.layers_of(model)) * len(group[0].columns.columns) * length // 2  # that a pair's squares run
    if not plan.knockout and COMPONENTS[plan.intervention_type].per_head:
        tokens *= len(plan.heads_of(model))
    return max(1, min(batch_tokens // (2 * length), 32 * batch_tokens // max(1, tokens)))


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
    model = model_id if isinstance(model_id, LoadedModel) else models.load(model_id, dtype=dtype, device=device)
    model.say_what_prompts_lose()
    results = list(tqdm(trace_pairs(model, programs, what, batch_tokens), "pairs", len(programs), disable=None))
    result = CausalTracingResult(model.id, what, results, None if metric is None else as_metric(metric))
    if not result.maps:
        raise InputError(f"no pair was left to patch; the first was skipped because: {results[0].skipped}")
    return result
