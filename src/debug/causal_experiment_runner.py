"""Causal runs: many pairs through the engine, as runs in the tracking store.

One call is a study; each (model, hops, seq_len) under it is a cell with its causal maps, its mean over pairs with
intervals, the engine's self-checks and the pictures. Results are streamed: what is done is kept when a run is stopped.
The method is in ``causal_tracing``, the formats are in ``tracking``; this file only joins them.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, islice, product
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from debug import causal_visualization as charts
from debug import models
from debug.causal_map import (
    ESTIMATED,
    LOGGED,
    RANDOM,
    CausalMap,
    MeanCausalMap,
    MeanOverPairs,
    column_of,
    save_maps,
    save_tensors,
)
from debug.causal_tracing import Agreement, PairResult, Plan, Reference, agreement_metrics, as_written, trace_pairs
from debug.core import ExperimentConfig
from debug.counterfactual import as_pair, make_pair
from debug.engine import default_batch_tokens
from debug.generators import Generator, search
from debug.models import LoadedModel
from debug.programs import ProgramError, ProgramPair
from debug.prompts import get_prompt
from debug.self_checks import SelfChecks
from debug.statistics import Interval, bootstrap_mean, wilson
from debug.stored_activations import StoredActivations
from debug.tracking import LoggedRun, RunWriter, Store

logger = logging.getLogger(__name__)

_LOGGED = (  # fields of the plan that are params as they are
    *("positions", "require_correct", "exclude_shallow"),
    *("source", "source_run", "direction", "layer_window", "method", "random_draws", "match_attention"),
)
SHARD = 64  # pairs in one file of causal maps, or of activations


@dataclass(frozen=True)
class CausalConfig(Plan):
    """A causal study over models x hops x lengths, on programs that are generated: a plan, and where it is carried out.

    ``num_seqs`` pairs are used in each cell; pairs that a filter skips are recorded with their reason and replaced by
    the next seed's, up to ``max_tries`` pairs.
    """

    prompt_template: str = "VARIABLE_BINDING"
    require_correct: bool = True
    save_activations: str = "targets"
    models: Sequence[str] = field(kw_only=True)
    hops: Sequence[int | None] = field(default=(3,), kw_only=True)
    seq_lens: Sequence[int] = field(default=(5,), kw_only=True)
    num_seqs: int = field(default=50, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    """The MLflow experiment; None: the kind of run."""
    generator: str | Generator = field(default="variable_binding", kw_only=True)
    independent_cells: bool = field(default=False, kw_only=True)
    """As :class:`debug.core.ExperimentConfig` has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None:
            object.__setattr__(self, "name", self.kind)
        checked = self.programs()
        for name in ("models", "hops", "seq_lens"):
            object.__setattr__(self, name, getattr(checked, name))

    def programs(self) -> ExperimentConfig:
        """Which programs, in which prompt, to which models: what causal and accuracy studies have in common."""
        return ExperimentConfig(
            self.name or self.kind,
            self.prompt_template,
            self.generator,
            self.models,
            self.num_seqs,
            self.seq_lens,
            self.hops,
            self.seed,
            independent_cells=self.independent_cells,
        )

    @property
    def max_tries(self) -> int:
        return 200 + 20 * self.num_seqs

    def plan(self) -> Plan:
        return Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})


@dataclass
class CellResult:
    """One cell of a causal study: what its run holds, in memory but for the maps, which are read when asked for."""

    model: str
    name: str
    run_id: str = ""
    mean: MeanCausalMap | None = None
    checks: SelfChecks | None = None
    accuracy: Interval | None = None
    accuracy_counterfactual: Interval | None = None
    pairs_used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of pairs."""
    rank_agreement: list[float] = field(default_factory=list)
    """Of attributions, pair by pair: Spearman's correlation with exact patching over all cells, few of which matter."""
    agreement: list[Agreement] = field(default_factory=list)
    """Of attributions, pair by pair: beside exact patching, where it matters."""
    interventions: int = 0
    seconds: float = 0.0
    seeds_passed_over: int | None = None
    """Seeds without the hops asked for, or whose program the prompt solves; None where the programs were given."""
    error: str | None = None
    prompt: str | None = None
    """What the model was asked in, where that is not the template as it was named."""

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.pairs_used} pairs used, {self.skipped.total()} skipped"]
        lines += [f"  prompt {self.prompt}"] if self.prompt else []
        lines += [f"  FAILED: {self.error}"] if self.error else []
        lines += [f"  skipped {n} x {reason}" for reason, n in self.skipped.most_common(5)]
        if self.accuracy is not None:
            lines.append(f"  accuracy {self.accuracy}, on the counterfactuals {self.accuracy_counterfactual}")
        if self.mean is not None:
            lines += [
                f"  {LOGGED.get(name, column_of(name, self.mean)).replace('_', ' ')} at the targets, over layers: {of}"
                for name, of in self.mean.overall.items()
                if of
            ]
            for hypothesis, by_layer in self.mean.against_random.items():
                for row, compared in enumerate(by_layer):
                    kept, control = (self.mean[name]["answer_kept"][row] for name in (hypothesis, hypothesis + RANDOM))
                    lines.append(
                        f"  {hypothesis} cut from layer {self.mean.layers[row]} on: answer kept {kept}; with as many "
                        f"random edges cut {control}; difference {compared}"
                    )
            if self.mean.too_small is not None and self.mean.too_small.estimate > 0:
                lines.append(f"  the counterfactual's own effect is too small in {self.mean.too_small} of the pairs")
            peak = self.mean.peak()
            if peak is not None and peak.chosen.estimate > 0:
                rate = peak.rate or "not measured: there is one pair alone"
                lines.append(
                    f"  peak, leaving out what holds by construction: {peak.target} at layer {peak.layer}, chosen on "
                    f"every other pair, on the rest {rate}"
                )
            elif "success" in self.mean.metrics:
                lines.append(
                    "  no peak: where success does not hold by construction, no pair that could choose has any"
                )
            lines += [f"  hand-over {move}" for move in self.mean.moves]
        lines += [f"  {name.replace('_', ' ')}: {value}" for name, value in agreement_metrics(self.agreement).items()]
        if self.rank_agreement:
            lines.append(
                f"  rank agreement over all cells, most of which do nothing: {bootstrap_mean(self.rank_agreement)}"
            )
        if self.checks is not None:
            lines.append(f"  self-checks: {self.checks}")
        lines.append(f"  {self.interventions} interventions in {self.seconds:.1f} s; run {self.run_id}")
        return "\n".join(lines)


@dataclass(frozen=True)
class CausalExperimentResult:
    """A causal study: its run id and its cells."""

    run_id: str
    cells: list[CellResult]
    tracking_uri: str

    def logged(self, cell: int = 0) -> LoggedRun:
        """A cell's run as the store has it: params, metrics, pairs, maps, activations."""
        return Store(self.tracking_uri).load_run(self.cells[cell].run_id)

    @property
    def maps(self) -> Sequence[CausalMap]:
        """Causal maps of the first cell, read from the store one file at a time."""
        return self.logged().maps


class NoPairLeft(ValueError):
    """Every pair of a cell was skipped."""


class CausalExperimentRunner:
    """Runs causal experiments and logs them. ``tracking_uri`` None: the project's own store under mlruns/."""

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        dtype: str | None = None,
        device: str | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; expected 1 token or more, or None for a default")
        self.store = Store(tracking_uri)
        self.dtype, self.device, self.batch_tokens = dtype, device, batch_tokens

    def run(self, config: CausalConfig) -> CausalExperimentResult:
        """Generate pairs and patch them, for each model, hops and length.

        A cell of which no pair is left to patch is a FAILED run with its reasons; the others go on.

        Raises:
            ValueError: an argument cannot be, or no pair of any cell was left to patch.
            SelfCheckError: the engine's self-checks failed; the run is then FAILED and holds what they measured.
        """
        programs = config.programs()
        (name, generator), (prompt_name, template) = programs.generator, programs.prompt
        for model_id in config.models:
            models.locate(model_id)  # a misspelt one is to be known before the first has run for hours
        names = models.names_of(config.models)
        title = f"{', '.join(names.values())} · {_what(config.plan())}"
        with self.store.start(programs.name, title, kind=config.kind) as study:
            study.log_json("config.json", programs.to_record() | asdict(config.plan()))
            cells: list[CellResult] = []
            for model_id, (hops, seq_len) in product(config.models, programs.cells):
                model = models.load(model_id, dtype=self.dtype, device=self.device)
                if model.id != names[model_id]:
                    model = replace(model, id=names[model_id])
                seed = programs.first_seed(hops, seq_len)
                made = search(generator, seq_len, seed, hops, template)
                pairs = (make_pair(program.program, program.seed) for program in made)
                params = {
                    "hops": "any" if hops is None else hops,
                    "seq_len": seq_len,
                    "seed": seed,
                    "num_seqs": config.num_seqs,
                    "generator": name,
                    "prompt_template": prompt_name,
                }
                cells.append(self._cell(study, model, config.plan(), pairs, config.num_seqs, config.max_tries, params))
                study.log_json("summary.json", {"cells": [_summary(cell) for cell in cells]})
                study.flush()
            if all(cell.error for cell in cells):
                raise ValueError(cells[0].error)
            return CausalExperimentResult(study.run_id, cells, self.store.uri)

    def run_intervention_experiment(
        self,
        model_id: str | LoadedModel,
        programs: Sequence[ProgramPair | dict[str, Any] | str],
        intervention_type: str = "residual_stream",
        *,
        layers: Sequence[int] | None = None,
        positions: str | Sequence[str | int] = "all",
        name: str | None = None,
        tags: dict[str, str] | None = None,
        **plan: Any,
    ) -> CausalExperimentResult:
        """Patch these programs, each a pair, a dict of which only "original" is required, or a program's text.

        Args:
            name: the MLflow experiment; None: the kind of run.
            plan: any other field of :class:`debug.causal_tracing.Plan`; activations at the targets are saved unless it
                says otherwise.

        Raises:
            ValueError: an argument cannot be, or no pair was left to patch (the message has the reasons).
            SelfCheckError: the engine's self-checks failed; the run is then FAILED and holds what they measured.
        """
        defaults: dict[str, Any] = {"prompt_template": "VARIABLE_BINDING", "save_activations": "targets"}
        what = Plan(intervention_type, layers, positions, **(defaults | plan))
        return self.run_plan(model_id, programs, what, name=name, tags=tags)

    def run_plan(
        self,
        model_id: str | LoadedModel,
        programs: Sequence[ProgramPair | dict[str, Any] | str],
        plan: Plan,
        *,
        name: str | None = None,
        wanted: int | None = None,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
        reference: Sequence[str] | None = None,
    ) -> CausalExperimentResult:
        """Patch these programs as a plan says, until ``wanted`` are used (None: all that can be).

        ``params`` say where the programs came from, where that is known: generator, hops, seq_len, seed, num_seqs.
        ``reference`` are the programs that means are over and partners are drawn from; None: the first usable ones.

        Raises:
            ValueError, SelfCheckError: as :meth:`run_intervention_experiment`.
        """
        if not programs:
            raise ValueError("programs is empty; expected at least one pair")
        model = model_id
        if not isinstance(model, LoadedModel):
            model = models.load(model, dtype=self.dtype, device=self.device)
        model.require_patchable()
        title = f"{model.id} · {_what(plan)}"
        given = {"num_seqs": len(programs), "generator": "given"}
        prompt = {"prompt_template": get_prompt(plan.prompt_template)[0]}
        with self.store.start(name or plan.kind, title, kind=plan.kind, tags=tags) as study:
            study.log_json("config.json", asdict(plan) | {"name": name or plan.kind, "models": [model.id]})
            known = _common_params(programs) | given | prompt | (params or {})
            wanted = len(programs) if wanted is None else wanted
            cell = self._cell(study, model, plan, iter(programs), wanted, len(programs), known, reference)
            study.log_json("summary.json", {"cells": [_summary(cell)]})
            if cell.error:
                raise ValueError(cell.error)
            return CausalExperimentResult(study.run_id, [cell], self.store.uri)

    def _results(
        self,
        model: LoadedModel,
        pairs: Iterator[Any],
        plan: Plan,
        wanted: int,
        max_tries: int,
        batch_tokens: int,
        reference: Reference | None,
    ) -> Iterator[PairResult]:
        """Patch pairs until ``wanted`` are used, ``max_tries`` were tried, or there are no more."""
        used = tried = 0
        stored = StoredActivations(self.store.load_run(plan.source_run), model) if plan.source_run else None
        with tqdm(total=wanted, desc=f"{model.id} {plan.intervention_type}", unit="pair", disable=None) as bar:
            while used < wanted and tried < max_tries:
                before = tried
                asked = islice(pairs, min(wanted - used, max_tries - tried))
                for result in trace_pairs(model, asked, plan, batch_tokens, stored, reference):
                    tried += 1
                    used += result.causal_map is not None
                    bar.update(result.causal_map is not None)
                    yield result
                if tried == before:
                    break
        if used < wanted:
            logger.warning("%d of %d pairs were used; %d were tried", used, wanted, tried)

    def _cell(
        self,
        study: RunWriter,
        model: LoadedModel,
        plan: Plan,
        pairs: Iterator[Any],
        wanted: int,
        max_tries: int,
        params: dict[str, Any],
        reference: Sequence[str] | None = None,
    ) -> CellResult:
        """Stream the results of one cell into a child run."""
        asked = plan.prompt_template
        plan, pairs = as_written(model, plan, pairs)
        if plan.prompt_template != asked:
            params["prompt_template"] = get_prompt(plan.prompt_template)[0]
        if plan.answer_lead:
            params["answer_lead"] = repr(plan.answer_lead)
        hops, seq_len = params.get("hops"), params.get("seq_len")
        shape = [
            f"{hops} {'hop' if hops == 1 else 'hops'}" if hops else "",
            f"{seq_len} lines" if seq_len else "",
            _what(plan),
        ]
        cell = CellResult(model.id, " · ".join([model.id, *filter(None, shape)]))
        if plan.answer_lead or plan.prompt_template != asked:
            cell.prompt = (
                f"{params['prompt_template']}, then {plan.answer_lead!r}"
                if plan.answer_lead
                else (f"{params['prompt_template']}: the vocabulary has the final space in the answer's token")
            )
        params |= {
            "model": model.id,
            "backend": "transformers",
            "dtype": model.dtype,
            "device": model.device,
            "intervention_type": plan.intervention_type,
            "layers": _listed(plan.layers_of(model)),
            "targets": _listed(plan.targets or "default"),
            "heads": _listed(plan.heads or "each"),
            **{name: _listed(getattr(plan, name)) for name in _LOGGED if getattr(plan, name) is not None},
        }
        try:
            with study.cell(cell.name, params) as run:
                cell.run_id = run.run_id
                run.set_tags(model.provenance())
                batch_tokens = self.batch_tokens or default_batch_tokens(model)
                # All that the numbers depend on, but for the pairs (samples.jsonl) and the environment (params, tags).
                run.log_json("config.json", {"plan": asdict(plan), "wanted": wanted, "batch_tokens": batch_tokens})
                writer = _CellWriter(run, cell, params)
                started = time.monotonic()
                others = None
                if plan.needs_reference:
                    others, pairs = _reference(model, pairs, plan, max_tries, batch_tokens, reference)
                    run.log_json("reference.json", {"programs": others.texts})
                    run.log_metrics({"reference_size": len(others.programs)})
                try:
                    for result in self._results(model, pairs, plan, wanted, max_tries, batch_tokens, others):
                        writer.add(result)
                        cell.seconds = time.monotonic() - started
                finally:  # what is done is kept, also when the run is interrupted or a self-check failed
                    writer.close()
                if cell.checks is None:
                    reasons = "; ".join(f"{n} x {reason}" for reason, n in cell.skipped.most_common(3))
                    raise NoPairLeft(f"no pair of {cell.name!r} was left to patch: {reasons or 'none was found'}")
        except NoPairLeft as error:
            logger.error("%s", error)
            cell.error = str(error)
        return cell


def _reference(
    model: LoadedModel,
    pairs: Iterator[Any],
    plan: Plan,
    max_tries: int,
    batch_tokens: int,
    texts: Sequence[str] | None,
) -> tuple[Reference, Iterator[Any]]:
    """A cell's reference set, from texts or from the first of its pairs; and all of its pairs."""
    if texts is not None:
        return Reference.of_texts(model, texts, plan, batch_tokens), pairs
    seen: list[Any] = []

    def first() -> Iterator[Any]:
        for pair in islice(pairs, max_tries):
            seen.append(pair)
            yield pair

    return Reference.found(model, first(), plan, batch_tokens), chain(seen, pairs)


class _CellWriter:
    """Adds results to a cell's run as they come: maps and activations in shards, metrics and pictures at the end."""

    def __init__(self, run: RunWriter, cell: CellResult, params: dict[str, Any]) -> None:
        self.run, self.cell, self.params = run, cell, params
        self.mean = MeanOverPairs()
        self.pairs: list[ProgramPair] = []
        self.first: CausalMap | None = None
        self.correct: list[tuple[bool, bool]] = []
        self.maps: list[CausalMap] = []
        self.activations: dict[str, np.ndarray] = {}
        self.shards = self.tried = 0

    def add(self, result: PairResult) -> None:
        # Drawing goes on until enough pairs are used: counting those that replace skipped ones would bias the rate.
        if result.correct is not None and len(self.correct) < self.params["num_seqs"]:
            self.correct.append(result.correct)
        if result.pair is not None and result.pair.seed is not None and self.params["generator"] != "given":
            self.tried += 1
            self.cell.seeds_passed_over = result.pair.seed - self.params["seed"] + 1 - self.tried
        self.run.append_jsonl("samples.jsonl", [_sample(result)])
        if result.causal_map is None or result.pair is None:
            self.cell.skipped[_kind_of_reason(result.skipped)] += 1
            return
        causal_map = replace(result.causal_map, pair=len(self.pairs))
        self.first = self.first or causal_map
        self.cell.interventions += result.interventions
        self.cell.rank_agreement += [] if result.rank_agreement is None else [result.rank_agreement]
        self.cell.agreement += [] if result.agreement is None else [result.agreement]
        if result.checks is not None:
            self.cell.checks = result.checks if self.cell.checks is None else self.cell.checks | result.checks
        self.activations |= {f"{len(self.pairs)}/{name}": array for name, array in result.activations.items()}
        self.pairs.append(result.pair)
        self.maps.append(causal_map)
        self.mean.add(causal_map)
        if len(self.maps) == SHARD:
            self._write_shard()

    def _write_shard(self) -> None:
        save_maps(self.run.folder / "causal_maps" / f"{self.shards:05d}.safetensors", self.maps)
        if self.activations:
            save_tensors(self.run.folder / "activations" / f"{self.shards:05d}.safetensors", self.activations)
        self.run.log_programs(self.pairs)
        self.run.flush()
        self.maps, self.activations = [], {}
        self.shards += 1

    def close(self) -> None:
        cell = self.cell
        if self.maps:
            self._write_shard()
        cell.pairs_used = len(self.pairs)
        if self.correct:
            n = len(self.correct)
            cell.accuracy, cell.accuracy_counterfactual = (
                wilson(sum(pair[which] for pair in self.correct), n) for which in (0, 1)
            )
        if self.first is not None and self.first.targets:
            cell.mean = self.mean.result()
        metrics, curves = _metrics(cell)
        self.run.log_metrics(metrics)
        for layer, values in curves.items():
            self.run.log_metrics(values, step=layer)
        self.run.log_json("summary.json", _summary(cell))
        if self.pairs:
            known = {name: self.params.get(name) for name in ("generator", "seed", "hops", "seq_len")}
            texts = [text for pair in self.pairs for text in (pair.original.text, pair.counterfactual.text)]
            self.run.log_dataset(f"{known['generator']} pairs", texts, known | {"artifact": "programs.json"})
        if self.first is not None:
            for stem, chart in charts.pictures(self.first, cell.mean).items():
                charts.save_chart(chart, self.run.folder, stem)


def _metrics(cell: CellResult) -> tuple[dict[str, float | None], dict[int, dict[str, float | None]]]:
    """A cell's metrics of the tracking contract, and the stepped ones by layer."""
    metrics: dict[str, float | None] = {
        "pairs_used": cell.pairs_used,
        "pairs_skipped": cell.skipped.total(),
        "interventions_per_second": cell.interventions / cell.seconds if cell.seconds else None,
    }
    if cell.accuracy is not None and cell.accuracy_counterfactual is not None:
        metrics |= cell.accuracy.metrics("accuracy") | {"accuracy_n": cell.accuracy.n}
        metrics |= cell.accuracy_counterfactual.metrics("accuracy_counterfactual")
        metrics |= {"accuracy_counterfactual_n": cell.accuracy_counterfactual.n}
    if cell.checks is not None:
        metrics |= cell.checks.metrics()
    if cell.rank_agreement:
        metrics |= bootstrap_mean(cell.rank_agreement).metrics("rank_agreement")
    for name, value in agreement_metrics(cell.agreement).items():
        metrics |= value.metrics(name)
    of_mean, curves = cell.mean.to_metrics() if cell.mean else ({}, {})
    return metrics | of_mean, curves


def _summary(cell: CellResult) -> dict[str, Any]:
    metrics, curves = _metrics(cell)
    peak = cell.mean and cell.mean.peak()
    found = peak if peak and peak.chosen.estimate > 0 else None
    return {
        "name": cell.name,
        "run_id": cell.run_id,
        "metrics": metrics,
        "by_layer": {str(layer): values for layer, values in curves.items()},
        "n": ({"accuracy": cell.accuracy.n} if cell.accuracy else {})
        | ({curve.target: curve.n for curve in cell.mean.curves} if cell.mean else {}),
        "seeds_passed_over": cell.seeds_passed_over,
        "peak": found and {"target": found.target, "layer": found.layer, "n": found.rate.n if found.rate else 0},
        "hand_overs": [move._asdict() for move in cell.mean.moves] if cell.mean else [],
        "skipped": dict(cell.skipped),
        "seconds": cell.seconds,
    }


def _sample(result: PairResult) -> dict[str, Any]:
    """The pair as a sample: the original program and what the model says to it, the counterfactual beside it."""
    pair, correct, answers = result.pair, result.correct, result.answers
    return {
        "seed": pair and pair.seed,
        "seq_len": pair and pair.original.seq_len,
        "hops": pair and pair.original.hops,
        "program": pair and pair.original.text,
        "prompt": result.prompt,
        "expected": pair and pair.expected_original,
        "raw_output": answers and answers[0],
        "parsed": pair and answers and _parsed(answers[0], pair.expected_original),
        "correct": correct and correct[0],
        "chain": pair and list(pair.variable_chain.names),
        "error": result.skipped,
        "counterfactual": pair and pair.counterfactual.text,
        "expected_counterfactual": pair and pair.expected_counterfactual,
        "raw_output_counterfactual": answers and answers[1],
        "correct_counterfactual": correct and correct[1],
    }


def _parsed(top_token: str, expected: int) -> int | None:
    """The top token as an answer; null where an answer has more tokens than the one that was asked for."""
    text = top_token.strip()
    return int(text) if text.isdecimal() and len(text) >= len(str(expected)) else None


def _kind_of_reason(reason: str | None) -> str:
    """The first line without the texts and numbers of a pair, so that reasons can be counted."""
    return re.sub(r"'[^']*'|\[[^\]]*\]|\d+", "…", (reason or "").split("\n")[0])[:200]


def _common_params(programs: Sequence[ProgramPair | dict[str, Any] | str]) -> dict[str, Any]:
    """hops and seq_len of programs that were given, where all have the same, else ``any``; the first one's seed."""
    pairs = []
    for program in programs:
        with suppress(ProgramError):  # it will be skipped, with its reason
            pairs.append(as_pair(program))
    hops, seq_lens = ({getattr(pair.original, name) for pair in pairs} for name in ("hops", "seq_len"))
    return {
        "hops": hops.pop() if len(hops) == 1 else "any",
        "seq_len": seq_lens.pop() if len(seq_lens) == 1 else "any",
        "seed": pairs[0].seed if pairs else None,
    }


def _what(plan: Plan) -> str:
    """The component in a run's name, with a word where it is not patched."""
    return f"{plan.intervention_type} ({ESTIMATED})" if plan.method == "attribution" else plan.intervention_type


def _listed(values: Any) -> Any:
    """Sequences as one text; all else as it is."""
    return ",".join(map(str, values)) if isinstance(values, list | tuple) else values
