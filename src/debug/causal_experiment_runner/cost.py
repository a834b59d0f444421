"""A causal study before it runs: pairs, squares, tokens, time and memory. Loads no weights, writes to no store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

from debug.causal_experiment_runner.config import CausalConfig
from debug.causal_experiment_runner.gathering import kind_of_reason
from debug.causal_experiment_runner.runner import asked_of, kind_of_plan
from debug.causal_experiment_runner.stored_activations import StoredActivations
from debug.causal_tracing import as_written
from debug.causal_tracing.pairs import PreparedPair
from debug.causal_tracing.planning import Planned, planned
from debug.causal_tracing.timing import speed
from debug.engine import default_batch_tokens
from debug.engine.work import Work
from debug.errors import InputError
from debug.models import names_of
from debug.models.blueprint import Blueprint, blueprint
from debug.tracking import Store


@dataclass(frozen=True)
class CellPlan:
    """What a cell of a study would do, if the model answers all of its pairs."""

    name: str
    pairs: int
    interventions: int
    work: Work
    """Of all forward passes, self-checks too, but for those that follow."""
    depends: Work
    """Of those whose interventions logits decide: as many, more or less."""
    seconds: float | None
    """As the run counts them: without loading the model, writing the means and drawing. None: not timed."""
    bytes: int
    """On the device: weights, activations that are kept, and the largest batch."""
    candidates: list[dict[str, str]]
    """Of the first pairs, each answer whose logit is stored and its first token: the counterfactual's, the original's,
    then others that the programs' texts make possible."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of pairs."""
    assumptions: tuple[str, ...] = ()

    def __str__(self) -> str:
        time_ = "" if self.seconds is None else f"about {self.seconds:.1f} s, "
        shown = "; ".join(
            ", ".join(repr(token) if token == answer else f"{answer} as {token!r}" for answer, token in of_pair.items())
            for of_pair in self.candidates
        )
        return "\n".join(
            [
                f"{self.name}: {self.pairs} pairs, {self.interventions} interventions",
                f"  {self.work.passes} forward passes of {self.work.tokens} tokens, {self.work.token_layers} tokens x "
                f"layers, {self.work.flop:.3g} FLOP; self-checks included",
                f"  and about {self.depends.passes} of {self.depends.tokens} tokens whose interventions logits decide",
                f"  {time_}about {self.bytes / 2**30:.2f} GiB of memory beside Python's own",
                f"  candidates' first tokens: {shown or 'none'}",
                *(f"  skipped {n} x {reason}" for reason, n in self.skipped.most_common(5)),
                *(f"  assuming that {what}" for what in self.assumptions),
            ]
        )


def dry_run(
    config: CausalConfig,
    tracking_uri: str | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    batch_tokens: int | None = None,
    timed: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[CellPlan]:
    """What :meth:`CausalExperimentRunner.run` would do, cell by cell. Loads no weights and writes nothing.

    Args:
        tracking_uri: read where activations of a logged run are the source.
        timed: estimate the time: for some seconds the engine runs on random weights, those of layers beyond 2 GiB
            shared, which take memory meanwhile.
        clock: ``time.process_time`` where CPU time is meant.

    Raises:
        InputError: an argument cannot be, or does not fit a model.
    """
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch_tokens is {batch_tokens}; expected 1 token or more, or None for a default")
    names, asked = names_of(config.models), asked_of(config)
    cells = []
    for model_id, of_cell in product(config.models, asked):
        model = blueprint(model_id, dtype=dtype, device=device)
        model.require_patchable()
        pairs, params, max_tries, plan = of_cell()
        tokens = batch_tokens or default_batch_tokens(model)
        plan, pairs = as_written(model, plan, pairs)
        stored = None
        if plan.source_run:
            stored = StoredActivations(Store(tracking_uri).load_run(plan.source_run), model)
        found = planned(model, pairs, plan, params["num_seqs"], max_tries, tokens, stored, clock)
        weights, seconds = model.weight_bytes, None
        if timed and found.first:
            seconds = found.seconds + speed(model, found.first, plan, tokens, clock).seconds(
                [*found.work, *found.depends], found.used
            )
        where = [f"{params[key]} {word}" for key, word in (("hops", "hops"), ("seq_len", "lines")) if params.get(key)]
        name = " · ".join([names[model_id], *where, kind_of_plan(plan)])
        cells.append(_cell(name, model, found, weights, seconds, _assumptions(found, plan.require_correct)))
    return cells


def _assumptions(found: Planned, require_correct: bool) -> tuple[str, ...]:
    said = []
    if require_correct:
        said.append("the model answers all programs: each pair that it does not costs a forward pass, and another pair")
    if found.first and not found.first[0].own.prompt[-1:].isspace():
        said.append("the model writes no white space of its own before an answer")
    return tuple(said)


def _answers(one: PreparedPair) -> dict[str, tuple[int, ...]]:
    return {text: (token,) for text, token in zip(one.texts, one.tokenized.answer_tokens, strict=True)}


def _cell(
    name: str, model: Blueprint, found: Planned, weights: int, seconds: float | None, assumptions: tuple[str, ...]
) -> CellPlan:
    shown = [
        {answer: model.tokenizer.decode([*of][:1]) for answer, of in (one.candidates or _answers(one)).items()}
        for one in found.first
    ]
    skipped: Counter[str] = Counter()
    first: dict[str, str] = {}  # of each kind of reason the first is shown whole, as of a run
    for reason, n in found.skipped.items():
        skipped[first.setdefault(kind_of_reason(reason), reason)] += n
    return CellPlan(
        name,
        found.used,
        found.interventions,
        Work.sum([*found.work, *found.lens]),
        Work.sum(found.depends),
        seconds,
        weights + found.bytes,
        shown,
        skipped,
        assumptions,
    )
