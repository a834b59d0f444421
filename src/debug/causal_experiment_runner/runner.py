"""Causal studies, cell by cell, into the tracking store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import NamedTuple

from debug import models, provenance
from debug.causal_experiment_runner.config import CausalConfig
from debug.causal_experiment_runner.gathering import Kept, as_logged
from debug.causal_experiment_runner.results import CausalExperimentResult, CellResult, NoPairLeft
from debug.causal_experiment_runner.stored_activations import StoredActivations
from debug.causal_experiment_runner.writer import SHARD, CellWriter, summary
from debug.causal_map import ESTIMATED
from debug.causal_tracing import PairResult, Reference, as_written, trace_pairs
from debug.counterfactual import PairLike, as_pair, read_pairs, read_program
from debug.engine import default_batch_tokens
from debug.errors import InputError
from debug.executors import Workers
from debug.generators import GeneratedProgram, search
from debug.kinds import Argument, Json
from debug.models import LoadedModel
from debug.plan import Plan
from debug.programs import AnyPair, ProgramError
from debug.progress import Progress
from debug.studies import Resuming, Study, digest_of
from debug.tracking import RunWriter, Store

logger = logging.getLogger(__name__)


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
            raise InputError(f"batch_tokens is {batch_tokens}; expected 1 token or more, or None for a default")
        self.store = Store(tracking_uri)
        self.dtype, self.device, self.batch_tokens = dtype, device, batch_tokens

    def run(
        self,
        config: CausalConfig,
        *,
        resume: bool = False,
        mix: bool = False,
        take_over: bool = False,
        workers: Workers | None = None,
        is_worker: bool = False,
    ) -> CausalExperimentResult:
        """Generate pairs and patch them, for each model, hops and length.

        A cell of which no pair is left to patch is a FAILED run with its reasons; the others go on.

        Args:
            resume: go on with the latest study of this very configuration that did not end well, if there is one:
                finished cells and pairs stay, cells that another process is carrying out are left to it.
            mix, take_over: when, and how, it may be gone on with all the same: :class:`debug.studies.Resuming`.
            workers, is_worker: who carries it out, as there.

        Raises:
            InputError: an argument cannot be, or no pair of any cell was left to patch.
            StudyDiffers: without ``mix``; before anything is written.
            StudyIncomplete: cells of some models have failed.
            SelfCheckError: the engine's self-checks failed; the run is then FAILED and holds what they measured.
        """
        asked = asked_of(config)
        for model_id in config.models:
            models.locate(model_id)  # a misspelt one is to be known before the first has run for hours
        for of_cell in asked:
            next(of_cell().pairs, None)  # and a kind of counterfactual that no program of a cell has
        study = self._study(config, asked)
        resuming = Resuming(resume, mix, take_over, workers or Workers(), is_worker)
        with resuming.open(self.store, study, {}) as carried:
            run = carried.run
            run.log_json("config.json", _record(config) | asdict(config.plan()))
            made: dict[str, CellResult] = {}
            rows = {place: run.summary for place, run in carried.finished().items()}

            def patch(cell: PlannedCell, run_id: str) -> None:
                found = self._cell(run, cell.model_id, asked[cell.number](), study.name_of(cell), run_id)
                made[cell.place], rows[cell.place] = found, summary(found)
                if found.error and len(study.cells) > 1:  # of one, it is the run's error
                    logger.error("%s", found.error)
                run.log_json(
                    "summary.json", {"cells": [rows[each.place] for each in study.cells if each.place in rows]}
                )
                run.describe([f"{cell.name}: {line}" for cell in [*made.values()][:20] for line in cell.findings()[:3]])
                run.flush()

            carried.carry_out(patch)
            finished = {} if made.keys() >= {cell.place for cell in study.cells} else carried.finished()
            cells = [made.get(cell.place) or as_logged(finished[cell.place]) for cell in study.cells]
            found = [summary(cell) for cell in cells]
            run.log_json("summary.json", {"cells": found})
            run.describe([f"{cell.name}: {line}" for cell in cells[:20] for line in cell.findings()[:3]])
            if all(cell.error for cell in cells):
                several = f"none of {len(cells)} cells had a pair left to patch; study {run.run_id} has the reasons"
                raise NoPairLeft(cells[0].error if len(cells) == 1 else several)
            run.log_means(cell["metrics"] for cell in found)
            return CausalExperimentResult(run.run_id, cells, self.store.uri)

    def _study(self, config: CausalConfig, asked: Sequence[Callable[[], Asked]]) -> Study[PlannedCell]:
        names = models.names_of(config.models)
        shapes = [_shape(of_cell().params, config.plan()) for of_cell in asked]

        def made_by(model_id: str) -> Mapping[str, str | None]:
            model = self._loaded(model_id)
            return provenance.what_made_it(_how(model), provenance.of_process() | model.provenance())

        digests = [provenance.file_digest(Path(file)) for file in (config.pairs, config.program) if file is not None]
        how = [self.dtype, self.device, self.batch_tokens]
        return Study(
            config.name or config.kind,
            f"{', '.join(names.values())} · {kind_of_plan(config.plan())}",
            config.kind,
            digest_of([config.to_record(), digests, how]),
            [PlannedCell(model_id, number) for model_id, number in product(config.models, range(len(asked)))],
            lambda cell: f"{names[cell.model_id]} · {shapes[cell.number]}",
            made_by,
        )

    def _loaded(self, model_id: str | LoadedModel) -> LoadedModel:
        if isinstance(model_id, LoadedModel):
            return model_id
        return models.load(model_id, dtype=self.dtype, device=self.device)

    def run_intervention_experiment(
        self,
        model_id: str | LoadedModel,
        programs: Sequence[PairLike],
        intervention_type: str = "residual_stream",
        *,
        layers: Sequence[int] | None = None,
        positions: str | Sequence[str | int] = "all",
        name: str | None = None,
        tags: dict[str, str] | None = None,
        **plan: Argument,
    ) -> CausalExperimentResult:
        """Patch these programs, each a pair, a dict of which only "original" is required, or a program's text.

        Args:
            name: the MLflow experiment; None: the kind of run.
            plan: any other field of :class:`debug.plan.Plan` (require_correct is True: pairs that the model does not
                answer are skipped); activations at the targets are saved, and attention patterns
                of the first pairs, unless it says otherwise.

        Raises:
            InputError: an argument cannot be, or no pair was left to patch (the message has the reasons).
            SelfCheckError: the engine's self-checks failed; the run is then FAILED and holds what they measured.
        """
        defaults: dict[str, Argument] = {
            "prompt_template": "VARIABLE_BINDING",
            **{name: getattr(CausalConfig, name) for name in ("save_activations", "save_attention")},
        }
        what = Plan(intervention_type, layers, positions, **(defaults | plan))
        return self.run_plan(model_id, programs, what, name=name, tags=tags)

    def run_plan(
        self,
        model_id: str | LoadedModel,
        programs: Sequence[PairLike],
        plan: Plan,
        *,
        name: str | None = None,
        wanted: int | None = None,
        params: dict[str, Json] | None = None,
        tags: dict[str, str] | None = None,
        reference: Sequence[str | dict[str, Json]] | None = None,
    ) -> CausalExperimentResult:
        """Patch these programs as a plan says, until ``wanted`` are used (None: all that can be).

        ``params`` say where the programs came from, where that is known: generator, hops, seq_len, seed, num_seqs.
        ``reference`` are the programs that means are over and partners are drawn from; None: the first usable ones.

        Raises:
            InputError, SelfCheckError: as :meth:`run_intervention_experiment`.
        """
        if not programs:
            raise InputError("programs is empty; expected at least one pair")
        model = self._loaded(model_id)
        model.require_patchable()
        title = f"{model.id} · {kind_of_plan(plan)}"
        given = {"num_seqs": len(programs), "generator": "given"}
        with self.store.start(name or plan.kind, title, kind=plan.kind, tags=tags) as study:
            study.log_json("config.json", asdict(plan) | {"name": name or plan.kind, "models": [model.id]})
            known = _common_params(programs) | given | (params or {})
            wanted = len(programs) if wanted is None else wanted
            asked = Asked(iter(programs), known | {"num_seqs": wanted}, len(programs), plan)
            of_cell = f"{model.id} · {_shape(plan.params(model) | known, plan)}"
            cell = self._cell(study, model, asked, of_cell, reference=reference)
            study.log_json("summary.json", {"cells": [summary(cell)]})
            study.describe(cell.findings())
            if cell.error:
                raise NoPairLeft(cell.error)
            return CausalExperimentResult(study.run_id, [cell], self.store.uri)

    def _results(
        self,
        model: LoadedModel,
        asked: Asked,
        batch_tokens: int,
        reference: Reference | None,
        known: Mapping[int, PairResult],
    ) -> Iterator[PairResult]:
        """Patch pairs until as many as wanted are used, ``max_tries`` were tried, or there are no more."""
        used = tried = 0
        plan, wanted, max_tries = asked.plan, asked.params["num_seqs"], asked.max_tries
        stored = StoredActivations(self.store.load_run(plan.source_run), model) if plan.source_run else None
        with Progress(wanted, f"{model.id} {plan.intervention_type}", "pair") as bar:
            while used < wanted and tried < max_tries:
                before = tried
                pairs = islice(asked.pairs, min(wanted - used, max_tries - tried))
                first = replace(plan, save_attention=max(0, plan.save_attention - tried))
                from_before = _From(known, before)
                for result in trace_pairs(model, pairs, first, batch_tokens, stored, reference, from_before):
                    tried += 1
                    used += result.causal_map is not None
                    bar.update(result.causal_map is not None)
                    yield result
                if tried == before:
                    break
        if 0 < used < wanted:
            logger.warning("%d of %d pairs were used; %d were tried", used, wanted, tried)

    def _cell(
        self,
        study: RunWriter,
        model_id: str | LoadedModel,
        asked: Asked,
        name: str,
        claimed: str | None = None,
        reference: Sequence[str | dict[str, Json]] | None = None,
    ) -> CellResult:
        """Stream the results of one cell into a child run; those that it has are not computed again."""
        known_model = name.split(" · ", 1)[0]
        cell = CellResult(known_model, name)
        try:
            with study.cell(name, {"model": known_model}, claimed=claimed) as run:
                cell.run_id = run.run_id
                model = self._loaded(model_id)
                if model.id != known_model:
                    model = replace(model, id=known_model)
                plan, pairs = as_written(model, asked.plan, asked.pairs)
                params = plan.params(model) | asked.params | {"model": model.id} | _how(model)
                run.log_params(params)
                if plan.answer_lead or plan.prompt_template != asked.plan.prompt_template:
                    cell.prompt = (
                        f"{params['prompt_template']}, then {plan.answer_lead!r}"
                        if plan.answer_lead
                        else f"{params['prompt_template']}: the vocabulary has the final space in the answer's token"
                    )
                made = model.provenance()
                run.set_tags(made)
                run.log_model(model.id, made)
                batch_tokens = self.batch_tokens or default_batch_tokens(model)
                # All that the numbers depend on, but for the pairs (samples.jsonl) and the environment (params, tags).
                wanted = params["num_seqs"]
                run.log_json("config.json", {"plan": asdict(plan), "wanted": wanted, "batch_tokens": batch_tokens})
                kept = Kept(run, SHARD)
                writer = CellWriter(run, cell, params, len(kept))
                started = time.monotonic()
                others = None
                if plan.needs_reference:
                    others, pairs = _reference(model, pairs, plan, asked.max_tries, batch_tokens, reference)
                    run.log_json("reference.json", {"programs": others.texts})
                    run.log_metrics({"reference_size": len(others.programs)})
                to_patch = Asked(pairs, params, asked.max_tries, plan)
                finished = False
                try:
                    for result in self._results(model, to_patch, batch_tokens, others, kept):
                        writer.add(result)
                        cell.seconds = time.monotonic() - started
                    finished = True
                finally:  # what is done is kept, also when the run is interrupted or a self-check failed
                    writer.close(finished=finished)
                if cell.checks is None:
                    counted = cell.skipped.most_common(3)
                    reasons = "; ".join(f"{n} x {reason}" if n > 1 else reason for reason, n in counted)
                    raise NoPairLeft(f"no pair of {cell.name!r} was left to patch: {reasons or 'none was found'}")
        except NoPairLeft as error:
            cell.error = str(error)
        return cell


class PlannedCell(NamedTuple):
    """A model on the pairs of one number of hops and lines, or on those that are given."""

    model_id: str
    number: int

    @property
    def place(self) -> str:
        return digest_of([*self])


class _From(Mapping[int, PairResult]):
    """Results that are known, counted from the first of those that are tried now."""

    def __init__(self, known: Mapping[int, PairResult], first: int) -> None:
        self._known, self._first = known, first

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and index >= 0 and self._first + index in self._known

    def __getitem__(self, index: int) -> PairResult:
        return replace(self._known[self._first + index], index=index)

    def __iter__(self) -> Iterator[int]:
        return (index - self._first for index in self._known if index >= self._first)

    def __len__(self) -> int:
        return max(0, len(self._known) - self._first)


def _how(model: LoadedModel) -> dict[str, str]:
    """Params that say how a model is run."""
    return {"backend": model.backend, "dtype": model.dtype, "device": model.device}


def _shape(params: Mapping[str, Json], plan: Plan) -> str:
    """What tells a cell from others of its model, in words."""
    hops, seq_len, few_shot = (params.get(name) for name in ("hops", "seq_len", "few_shot"))
    parts = [
        f"{hops} {'hop' if hops == 1 else 'hops'}" if hops else "",
        f"{seq_len} {'line' if seq_len == 1 else 'lines'}" if seq_len else "",
        f"{few_shot}-shot" if few_shot else "",
        kind_of_plan(plan),
    ]
    return " · ".join(filter(None, parts))


class Asked(NamedTuple):
    """What a cell asks of each model."""

    pairs: Iterator[PairLike]
    params: dict[str, Json]
    """Where the pairs come from."""
    max_tries: int
    plan: Plan


def asked_of(config: CausalConfig) -> list[Callable[[], Asked]]:
    """Of each cell of a model, what it asks."""
    if config.pairs is not None or config.program is not None:
        given = read_pairs(config.pairs) if config.pairs is not None else read_program(config.program or "")
        wanted = len(given) if config.program is None else min(len(given), config.num_seqs)
        known = _common_params(given) | {"num_seqs": wanted, "generator": "given"}
        return [lambda: Asked(iter(given), dict(known), len(given), config.plan())]
    name, generator = config.named_generator

    def generated(hops: int | None, seq_len: int) -> Asked:
        seed, plan = config.first_seed(hops, seq_len), config.plan(seq_len)
        made = search(generator, seq_len, seed, hops, plan.prompt_template)
        params = {"hops": "any" if hops is None else hops, "seq_len": seq_len, "seed": seed}
        params |= {"num_seqs": config.num_seqs, "generator": name, "counterfactual": config.counterfactual}
        if config.few_shot:
            params |= {"few_shot": config.few_shot, "prompt_template": config.prompt[0]}
        return Asked(pairs_of(config, made), params, config.max_tries, plan)

    return [partial(generated, *cell) for cell in config.cells]


def _record(config: CausalConfig) -> dict[str, Json]:
    """The configuration as JSON values, without what says nothing of pairs that are given."""
    record = config.to_record()
    if config.pairs is None and config.program is None:
        return record
    unsaid = ("hops", "seq_lens", "seed", "independent_cells", *(["num_seqs"] if config.program is None else []))
    return {name: value for name, value in record.items() if name not in unsaid} | {"generator": "given"}


def pairs_of(config: CausalConfig, made: Iterable[GeneratedProgram]) -> Iterator[AnyPair]:
    """The pairs of generated programs; those that have none are passed over, as seeds of other hops are."""
    in_a_row = 0
    for program in made:
        try:
            pair = config.pair_of(program.program, program.seed)
        except ProgramError as error:
            in_a_row += 1
            if in_a_row > config.max_tries:
                raise InputError(
                    f"{in_a_row} programs in a row have no counterfactual; of the last: {error}"
                ) from error
            continue
        in_a_row = 0
        yield pair


def _reference(
    model: LoadedModel,
    pairs: Iterator[PairLike],
    plan: Plan,
    max_tries: int,
    batch_tokens: int,
    texts: Sequence[str | dict[str, Json]] | None,
) -> tuple[Reference, Iterator[PairLike]]:
    """A cell's reference set, from texts or from the first of its pairs; and all of its pairs."""
    if texts is not None:
        return Reference.of_texts(model, texts, plan, batch_tokens), pairs
    seen: list[PairLike] = []

    def first() -> Iterator[PairLike]:
        for pair in islice(pairs, max_tries):
            seen.append(pair)
            yield pair

    return Reference.found(model, first(), plan, batch_tokens), chain(seen, pairs)


def _common_params(programs: Sequence[PairLike]) -> dict[str, Json]:
    """hops and seq_len of programs that were given, where all have the same, else ``any``; the first one's seed."""
    pairs = []
    for program in programs:
        with suppress(ProgramError):  # it will be skipped, with its reason
            pairs.append(as_pair(program))
    hops, seq_lens = ({getattr(pair.original, name) for pair in pairs} for name in ("hops", "seq_len"))
    return {
        "hops": (hops.pop() if len(hops) == 1 else None) or "any",
        "seq_len": seq_lens.pop() if len(seq_lens) == 1 else "any",
        "seed": pairs[0].seed if pairs else None,
    }


def kind_of_plan(plan: Plan) -> str:
    """The component in a run's name, with a word where it is not patched."""
    return f"{plan.intervention_type} ({ESTIMATED})" if plan.method == "attribution" else plan.intervention_type
