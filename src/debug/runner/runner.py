"""Accuracy studies, cell by cell, into the tracking store."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from debug import causal_visualization as charts
from debug import models, provenance, tracking
from debug.core import ExperimentConfig
from debug.errors import InputError
from debug.executors import Workers
from debug.generators import GeneratedProgram
from debug.kinds import Argument, Json
from debug.models import heuristics
from debug.progress import Progress
from debug.runner.asking import records_of, suited_to
from debug.runner.comparisons import compare_series, what_is_shared
from debug.runner.labels import params_of
from debug.runner.programs import Drawn, draw_programs
from debug.runner.results import ExperimentResult, findings, hops_text
from debug.runner.scoring import COUNTED, count_records, score_records
from debug.runner.study import PlannedCell, Study, how_run
from debug.studies import Resuming

if TYPE_CHECKING:
    import altair as alt

    from debug.runner.asking import Model

logger = logging.getLogger(__name__)
_Made = tuple[dict[str, Json], list[dict[str, Json]]]
"""Of a cell its row of the summary, and its samples."""


class NothingScored(InputError):
    """Not one sample of a run could be asked and read."""


class ExperimentRunner:
    """Runs accuracy experiments; holds where they are logged and how models are run, and no results.

    Args:
        tracking_uri: as :func:`debug.tracking.store_uri`.
        batch_size: prompts that are completed at once, requests to a server; vLLM takes all.
        dtype, device, quantization: as :func:`debug.models.load`.
        backend: "transformers", "vllm", "openai", or "auto", the default, as :func:`debug.models.choose_backend` has
            it.
        engine_args: as :func:`debug.models.load_vllm`; with "openai" the fields of :func:`debug.models.load_served`.
        base_url: of "openai", as :func:`debug.models.load_served`; by default OPENAI_BASE_URL.
        price: of "openai": of a million prompt tokens and of a million completion tokens, for the metric ``cost``.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        batch_size: int = 32,
        dtype: str | None = None,
        device: str | None = None,
        backend: str | None = None,
        quantization: str | None = None,
        engine_args: Mapping[str, Argument] | None = None,
        base_url: str | None = None,
        price: Sequence[float] | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected 1 or more")
        self.tracking_uri, self.batch_size, self.dtype, self.device = tracking_uri, batch_size, dtype, device
        self.quantization, self.engine_args = quantization, dict(engine_args or {})
        self.backend, self.backend_reason = models.choose_backend(backend or "auto", device, quantization)
        if backend is not None or self.backend == "vllm":
            logger.info("backend %s: %s", self.backend, self.backend_reason)
        if self.engine_args and self.backend == "transformers":
            raise InputError(f"engine_args are vLLM's, and the backend is {self.backend} ({self.backend_reason})")
        self.base_url: str | None = None
        self.price: list[float] | None = None
        self._served: dict[str, models.ServedModel] = {}
        if self.backend == "openai":
            decided = {"dtype": dtype, "device": device, "quantization": quantization}
            self.base_url, self.price = models.checked_server(base_url, price, decided)
        elif base_url is not None or price is not None:
            raise InputError(f"base_url and price are of backend 'openai', and the backend is {self.backend}")

    @property
    def how(self) -> dict[str, Json]:
        """What the runner, not the configuration, decides."""
        names = ("batch_size", "backend", "dtype", "device", "quantization", "engine_args")
        how = {name: getattr(self, name) for name in names}
        if self.base_url is None:
            return how
        return how | {"base_url": provenance.without_passwords(self.base_url), "price": self.price}

    def check(self, model_ids: Iterable[str]) -> None:
        """Raise what :meth:`load` raises of these, as far as it can be told without loading one. A server is asked
        anew what it has."""
        self._served.clear()
        for model_id in dict.fromkeys(model_ids):
            if heuristics.find(model_id) is None:
                self.load(model_id) if self.backend == "openai" else models.locate(model_id)

    # Models stay in memory from run to run until they are unloaded.

    def preload_models(self, model_ids: list[str]) -> None:
        for model_id in model_ids:
            self.load(model_id)

    def list_loaded_models(self) -> list[str]:
        return models.loaded()

    def unload_model(self, model_id: str) -> None:
        models.unload(model_id)

    def unload_all_models(self) -> None:
        models.unload_all()

    def load(self, model_id: str) -> Model:
        """The model in the runner's backend, or the rule of a ``heuristic:`` id; loaded once, kept in memory."""
        baseline = heuristics.find(model_id)
        if baseline is not None:
            return baseline
        if self.base_url is not None:
            if model_id not in self._served:
                self._served[model_id] = models.load_served(model_id, self.base_url, self.engine_args)
            return self._served[model_id]
        if self.backend == "vllm":
            return models.load_vllm(model_id, dtype=self.dtype, device=self.device, engine_args=self.engine_args)
        return models.load(model_id, dtype=self.dtype, device=self.device, quantization=self.quantization)

    def run(
        self,
        config: ExperimentConfig,
        no_cache: bool = False,
        *,
        programs: Mapping[tuple[int | None, int], Sequence[GeneratedProgram]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExperimentResult:
        """Score every model on every cell, the same programs for all models.

        Args:
            no_cache: free each model after its cells.
            programs: of cells, by (hops, seq_len), that are not to be drawn.
            tags: of the study and its cells.

        Raises:
            debug.models.ModelNotFound: before anything is written, where that can be told without loading.
            TooFewPrograms: a search ended early; the cells before it stay.
            NothingScored: not one sample could be asked and read; its message has the commonest error.
            debug.tracking.TrackingError: the store cannot be opened or written.
        """
        return self.run_study(config.name, [config], no_cache=no_cache, resume=False, programs=programs, tags=tags)

    def run_study(
        self,
        name: str,
        configs: Sequence[ExperimentConfig],
        *,
        no_cache: bool = False,
        resume: bool = True,
        mix: bool = False,
        take_over: bool = False,
        workers: Workers | None = None,
        is_worker: bool = False,
        programs: Mapping[tuple[int | None, int], Sequence[GeneratedProgram]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExperimentResult:
        """Several experiments as one study: other prompts, other tasks, compared program by program.

        Args:
            name: the MLflow experiment; those of the configs are not used.
            resume: go on with the latest study of these very configs that did not end well, if there is one: also with
                one that another process is carrying out, whose cells are left to it. A function of one's own is known
                by its name alone.
            mix, take_over: when, and how, it may be gone on with all the same: :class:`debug.studies.Resuming`.
            workers, is_worker: who carries it out, as there.
            no_cache, programs, tags: as :meth:`run`; the programs are the first config's.

        Raises:
            StudyDiffers: without ``mix``; before anything is written.
            StudyIncomplete: cells of some models have failed.
            InputError: as :meth:`run`.
        """
        self.check(model_id for config in configs for model_id in config.models)
        study, store = Study(name, configs, self.how), tracking.Store(self.tracking_uri)
        drawn = {
            (0, hops, seq_len): Drawn(list(given), [], configs[0].prompt_text(seq_len), 0)
            for (hops, seq_len), given in (programs or {}).items()
        }
        resuming = Resuming(resume, mix, take_over, workers or Workers(), is_worker)
        with (
            resuming.open(store, study.to_carry_out(self.load, no_cache), tags or {}) as carried,
            Progress(sum(configs[cell.config].num_seqs for cell in study.cells), study.name, "sample") as bar,
        ):
            run = carried.run
            study.describe(run)
            known = {place: _as_logged(run) for place, run in carried.finished().items()}
            bar.update(sum(len(records) for _, records in known.values()))

            def ask(cell: PlannedCell, run_id: str) -> None:
                known[cell.place] = self._cell(run, study, cell, run_id, drawn, bar)
                rows = [known[each.place][0] for each in study.cells if each.place in known]
                run.log_json("summary.json", {"experiment": name, "cells": rows, "comparisons": []})
                run.flush()
                if no_cache and cell == [each for each in study.cells if each.model_id == cell.model_id][-1]:
                    models.unload(cell.model_id)

            carried.carry_out(ask)
            if known.keys() < {cell.place for cell in study.cells}:  # others carried the rest out
                known = {place: _as_logged(run) for place, run in carried.finished().items()} | known
            rows: list[dict[str, Json]] = []
            samples: list[dict[str, Json]] = []
            for cell in study.cells:
                row, records = known[cell.place]
                rows.append(row | {"model": study.names[cell.model_id], "label": study.label(cell)})
                of_cell = {name: rows[-1][name] for name in ("model", "label", "generator")} | {"cell_hops": cell.hops}
                samples += [of_cell | record for record in records]
            summary = {"experiment": name, "cells": rows, "mixed": carried.mixed}
            _conclude(run, summary, samples)
        cell_run_ids = {
            (cell.model_id, cell.hops, cell.seq_len): row["run_id"] for cell, row in zip(study.cells, rows, strict=True)
        }
        frame = pl.DataFrame(samples, infer_schema_length=None, strict=False)
        return ExperimentResult(frame, summary, run.run_id, cell_run_ids, store.uri)

    def _cell(
        self,
        study_run: tracking.RunWriter,
        study: Study,
        planned: PlannedCell,
        run_id: str,
        drawn: dict[tuple[int, int | None, int], Drawn],
        bar: Progress,
    ) -> _Made:
        """One cell as a run: its row of the summary, and its samples. Those that it has are not asked again."""
        config, label, name = study.configs[planned.config], study.label(planned), study.name_of(planned)
        hops, seq_len = planned.hops, planned.seq_len
        bar.set_description(name)
        of_cell = {"model": study.names[planned.model_id], "label": label, "seq_len": seq_len}
        with study_run.cell(name, of_cell | {"hops": hops_text(hops)}, claimed=run_id) as cell:
            model = self.load(planned.model_id)
            if model.id != of_cell["model"]:
                model = replace(model, id=of_cell["model"])
            key = (planned.config, hops, seq_len)
            if key not in drawn:
                drawn[key] = draw_programs(config, hops, seq_len)
            config, programs = suited_to(model, config, drawn[key])
            reason = self.backend_reason if model.backend == self.backend else "a rule in the place of a model"
            own_tags = model.provenance() | {"debug.backend_reason": reason}
            seed = config.first_seed(hops, seq_len)
            cell.log_params(params_of([config]) | of_cell | how_run(model) | {"hops": hops_text(hops), "seed": seed})
            cell.set_tags(own_tags)
            cell.log_model(model.id, own_tags)
            own = {"models": [model.id], "hops": [hops], "seq_lens": [seq_len]}
            cell.log_json("config.json", config.to_record() | own | self.how)
            source = {"generator": config.generator[0], "seed": seed, "hops": hops, "seq_len": seq_len}
            texts = [program.program for program in programs.programs]
            cell.log_dataset(f"{config.generator[0]} programs", texts, source | {"artifact": "samples.jsonl"})
            records = cell.kept_jsonl("samples.jsonl")
            bar.update(len(records))
            kept = len(records)
            started = time.perf_counter()
            for record in records_of(model, programs, config, seq_len, self.batch_size, records):
                cell.append_jsonl("samples.jsonl", [record])
                records.append(record)
                bar.update()
            metrics = score_records(records, time.perf_counter() - started, kept, self.price)
            cell.log_metrics(metrics)
            row = of_cell | {"hops": hops, "generator": config.generator[0], "prompt_template": config.prompt[0]}
            row |= {"backend": model.backend, "backend_reason": reason, "run_id": cell.run_id} | metrics
            row |= count_records(records) | {"seeds_passed_over": programs.seeds_passed_over}
            cell.log_json("summary.json", row)
            cell.describe(findings(row))
        _warn(name, row, len(records))
        return row, records

    def plot(self, name: str) -> alt.TopLevelMixin:
        """The accuracy chart of an experiment's latest run, from the tracking store.

        Raises:
            InputError: no accuracy run of that name, or no cell of it was finished.
        """
        from debug.runner import logged

        return logged.plot(tracking.Store(self.tracking_uri), name)

    def analyze_errors(self, name: str) -> pl.DataFrame:
        """The samples of an experiment's latest run that were not answered correctly, commonest wrong answers first.

        Returns:
            One row a sample: run_id of its cell, model, hops, seq_len, seed, program, expected, parsed, raw_output,
            outcome ("wrong", "no answer", or "error": not asked or not read), error, and times_given: in how many
            samples of the cell that answer was wrong.

        Raises:
            InputError: no accuracy run of that name, or no sample in it.
        """
        from debug.runner import logged

        return logged.analyze_errors(tracking.Store(self.tracking_uri), name)


def _as_logged(cell: tracking.LoggedRun) -> _Made:
    return cell.summary, list(cell.samples.iter_rows(named=True))


def _conclude(run: tracking.RunWriter, summary: dict[str, Json], samples: list[dict[str, Json]]) -> None:
    """Compare the series of a study whose cells are all there, and log its summary, its metrics and its charts.

    Raises:
        NothingScored: not one sample could be asked and read.
    """
    rows = summary["cells"]
    if not any(row["num_samples"] for row in rows):
        [(message, _)] = sum((Counter(row["error_counts"]) for row in rows), Counter()).most_common(1)
        raise NothingScored(f"none of {len(samples)} samples could be asked and read; commonest error: {message}")
    summary["comparisons"], summary["comparisons_over_cells"] = compare_series(samples)
    summary["shared_programs"] = what_is_shared(samples)
    run.log_json("summary.json", summary)
    run.log_means(row for row in rows if row["num_samples"])
    run.log_metrics({"num_samples": len(samples), "num_errors": sum(row["errors"] for row in rows)})
    spent = [name for name in (*COUNTED, "cost") if any(name in row for row in rows)]
    run.log_metrics({name: sum(row.get(name) or 0 for row in rows) for name in spent})
    charts.draw("debug.runner.charts:charts_of", run.folder, rows, summary["comparisons"])()
    run.describe(
        [
            f"{row['label']}, hops {hops_text(row['hops'])}, lines {row['seq_len']}: {findings(row)[0]}"
            for row in rows[:40]
        ]
        + ["pictures: tab Artifacts, accuracy.png; dashboard, page Compare"]
    )


def _warn(name: str, row: dict[str, Json], asked: int) -> None:
    if row["errors"]:
        first = next(iter(row["error_counts"]))
        logger.warning("%s: %d of %d samples have errors: %s", name, row["errors"], asked, first)
    if row["distinct_programs"] < row["num_samples"]:
        logger.warning(
            "%s: %d different programs among %d samples; the interval takes all for independent, and is too narrow",
            *(name, row["distinct_programs"], asked),
        )
