"""Accuracy studies, cell by cell, into the tracking store."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
from filelock import FileLock
from tqdm.auto import tqdm

from debug import models, provenance, tracking
from debug.causal_visualization import accuracy_chart
from debug.core import ExperimentConfig
from debug.errors import InputError
from debug.generators import GeneratedProgram
from debug.models import heuristics
from debug.runner.asking import Model, records_of, suited_to
from debug.runner.charts import CHARTED, chart_frame, save_charts
from debug.runner.comparisons import compare_series, what_is_shared
from debug.runner.names import labels_of, params_of, shortened, title_of, told_apart
from debug.runner.programs import Drawn, draw_programs
from debug.runner.results import ExperimentResult, hops_text
from debug.runner.scoring import count_records, score_records

KIND = "accuracy"

logger = logging.getLogger(__name__)


class StudyDiffers(InputError):
    """A study whose finished cells were made by other code, libraries or weights than those that are here now."""


class NothingScored(InputError):
    """Not one sample of a run could be asked and read."""


class ExperimentRunner:
    """Runs accuracy experiments; holds where they are logged and how models are run, and no results.

    Args:
        tracking_uri: as :func:`debug.tracking.store_uri`.
        batch_size: prompts that are completed at once; vLLM takes all.
        dtype, device, quantization: as :func:`debug.models.load`.
        backend: "transformers", "vllm", or "auto": as :func:`debug.models.choose_backend` has it.
        engine_args: as :func:`debug.models.load_vllm`.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        batch_size: int = 32,
        dtype: str | None = None,
        device: str | None = None,
        backend: str = "auto",
        quantization: str | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected 1 or more")
        self.tracking_uri, self.batch_size, self.dtype, self.device = tracking_uri, batch_size, dtype, device
        self.quantization, self.engine_args = quantization, dict(engine_args or {})
        self.backend, self.backend_reason = models.choose_backend(backend, device, quantization)
        if self.engine_args and self.backend != "vllm":
            raise InputError(f"engine_args are vLLM's, and the backend is {self.backend} ({self.backend_reason})")

    @property
    def _how(self) -> dict[str, Any]:
        """What the runner, not the configuration, decides."""
        names = ("batch_size", "backend", "dtype", "device", "quantization", "engine_args")
        return {name: getattr(self, name) for name in names}

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
        programs: Mapping[tuple[int | None, int], Sequence[GeneratedProgram]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> ExperimentResult:
        """Several experiments as one study: other prompts, other tasks, compared program by program.

        Args:
            name: the MLflow experiment; those of the configs are not used.
            resume: go on with the latest study of these very configs that did not end well, if there is one; its
                finished cells stay. A function of one's own is known by its name alone.
            mix: go on also where the finished cells were made by other code, libraries, weights or tokenizer than those
                that are here now, or in another dtype or on another device; the tag ``debug.mixed`` then says so.
            take_over: go on also where there is a sign of life of another process that carries out the study.
            no_cache, programs, tags: as :meth:`run`; the programs are the first config's.

        Raises:
            StudyDiffers: without ``mix``; before anything is written.
            debug.tracking.StillRunning: without ``take_over``; before anything is written.
            As :meth:`run`.
        """
        for model_id in dict.fromkeys(model_id for config in configs for model_id in config.models):
            if heuristics.find(model_id) is None:
                models.locate(model_id)
        names = models.names_of(model_id for config in configs for model_id in config.models)
        labels = labels_of(configs, names)
        plan = [
            (c, model_id, cell)
            for c, config in enumerate(configs)
            for model_id in config.models
            for cell in config.cells
        ]
        digest = _digest([self._how, *(config.to_record() | {"name": name} for config in configs)])
        store = tracking.Store(self.tracking_uri)
        logger.info("backend %s: %s", self.backend, self.backend_reason)
        drawn = {
            (0, hops, seq_len): Drawn(list(given), [], configs[0].prompt_text(seq_len), 0)
            for (hops, seq_len), given in (programs or {}).items()
        }
        rows: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        with (
            self._study(
                store,
                name,
                title_of(configs, names),
                digest,
                plan if resume else None,
                no_cache,
                mix,
                take_over,
                tags or {},
            ) as (study, finished, mixed),
            tqdm(total=sum(configs[c].num_seqs for c, _, _ in plan), unit="sample") as bar,
        ):
            study.log_params(params_of(configs))
            experiments = [config.to_record() for config in configs]
            shared = experiments[0] if len(configs) == 1 else {"name": name, "experiments": experiments}
            study.log_json("config.json", shared | self._how)
            for number, (c, model_id, (hops, seq_len)) in enumerate(plan):
                config, place, label = configs[c], _place(c, model_id, (hops, seq_len)), labels[c, model_id]
                if place in finished:
                    row = finished[place].summary | {"model": names[model_id], "label": label}
                    records = list(finished[place].samples.iter_rows(named=True))
                    bar.update(len(records))
                else:
                    model = self.load(model_id)
                    if model.id != names[model_id]:
                        model = replace(model, id=names[model_id])
                    if (c, hops, seq_len) not in drawn:
                        drawn[c, hops, seq_len] = draw_programs(config, hops, seq_len)
                    row, records = self._run_cell(
                        study, model, config, hops, seq_len, drawn[c, hops, seq_len], label, place, bar
                    )
                rows.append(row)
                of_cell = {
                    "model": row["model"],
                    "label": row["label"],
                    "generator": row["generator"],
                    "cell_hops": hops,
                }
                samples += [of_cell | record for record in records]
                summary = {"experiment": name, "cells": rows, "comparisons": [], "mixed": mixed}
                study.log_json("summary.json", summary)
                study.flush()
                if no_cache and all(later != model_id for _, later, _ in plan[number + 1 :]):
                    models.unload(model_id)
            if not any(row["num_samples"] for row in rows):
                [(message, _)] = sum((Counter(row["error_counts"]) for row in rows), Counter()).most_common(1)
                raise NothingScored(
                    f"none of {len(samples)} samples could be asked and read; commonest error: {message}"
                )
            summary["comparisons"], summary["comparisons_over_cells"] = compare_series(samples)
            summary["shared_programs"] = what_is_shared(samples)
            study.log_json("summary.json", summary)
            study.log_metrics({"num_samples": len(samples), "num_errors": sum(row["errors"] for row in rows)})
            save_charts(study, rows, summary["comparisons"])
        cell_run_ids = {(model_id, *cell): row["run_id"] for (_, model_id, cell), row in zip(plan, rows, strict=True)}
        frame = pl.DataFrame(samples, infer_schema_length=None, strict=False)
        return ExperimentResult(frame, summary, study.run_id, cell_run_ids, store.uri)

    @contextmanager
    def _study(
        self,
        store: tracking.Store,
        name: str,
        title: str,
        digest: str,
        plan: Sequence[tuple[int, str, tuple[int | None, int]]] | None,
        no_cache: bool,
        mix: bool,
        take_over: bool,
        tags: Mapping[str, str],
    ) -> Iterator[tuple[tracking.RunWriter, dict[str, tracking.LoggedRun], list[str]]]:
        """A new study; or, with a plan, the unfinished one of this digest, its finished cells by their places, and in
        what they differ from those to come."""
        finished: dict[str, tracking.LoggedRun] = {}
        mixed: list[str] = []
        with ExitStack() as stack:
            with _one_at_a_time(store, digest):
                found = store.find_runs(experiment=name, kind=KIND, role="study", tags={_STUDY: digest}, limit=None)
                unfinished = found.filter(pl.col("status") != "FINISHED")["run_id"]
                if plan is None or unfinished.is_empty():
                    study = stack.enter_context(store.start(name, title, kind=KIND, tags={_STUDY: digest, **tags}))
                else:
                    earlier = store.load_run(unfinished[0])
                    finished, mixed = self._unfinished(earlier, plan, no_cache, mix, take_over)
                    keep, own = {cell.run_id for cell in finished.values()}, {tracking.MIXED: "; ".join(mixed)[:8000]}
                    going_on = store.resume(earlier.run_id, keep=keep, tags=own if mixed else None, take_over=take_over)
                    study = stack.enter_context(going_on)
            yield study, finished, mixed

    def _unfinished(
        self,
        study: tracking.LoggedRun,
        plan: Sequence[tuple[int, str, tuple[int | None, int]]],
        no_cache: bool,
        mix: bool,
        take_over: bool,
    ) -> tuple[dict[str, tracking.LoggedRun], list[str]]:
        """The finished cells of a study that may be gone on with, by their places, and in what they differ from those
        to come. Raises StillRunning and StudyDiffers where it may not."""
        if study.owner is not None and not take_over:
            raise tracking.StillRunning(
                f"study {study.run_id} of experiment {study.experiment!r} is being carried out: {study.owner}. Wait "
                "for it, or stop it; --fresh (resume=False) starts another one, --take-over (take_over=True) goes on "
                "with it all the same, and that process stops at its next cell"
            )
        cells = [cell for cell in study.children if cell.status == "FINISHED"]
        finished = {cell.tags[tracking.PLACE]: cell for cell in cells if tracking.PLACE in cell.tags}
        mixed = self._differences(plan, finished, no_cache)
        if mixed and not mix:
            raise StudyDiffers(
                f"the {len(finished)} finished cells of study {study.run_id} were made otherwise: {'; '.join(mixed)}. "
                "Go back to what made them, start anew with --fresh (resume=False), or go on all the same with --mix "
                "(mix=True), which tags the study and its new cells"
            )
        logger.info(
            "going on with study %s (%s), of which %d cells are done", study.run_id, study.status, len(finished)
        )
        return finished, mixed

    def _differences(
        self,
        plan: Sequence[tuple[int, str, tuple[int | None, int]]],
        finished: Mapping[str, tracking.LoggedRun],
        no_cache: bool,
    ) -> list[str]:
        """In what the finished cells differ from those to come, in words: code and libraries, and of each model that
        has cells of both kinds its weights, tokenizer, dtype and device. What a cell did not record does not differ."""
        places: dict[str, list[str]] = {}
        for c, model_id, cell in plan:
            places.setdefault(model_id, []).append(_place(c, model_id, cell))
        found: dict[str, None] = {}
        for model_id, of_model in places.items():
            done = [finished[place] for place in of_model if place in finished]
            now: dict[str, str | None] = provenance.of_code()
            if 0 < len(done) < len(of_model):
                model = self.load(model_id)
                params = {**_how_run(model), "device": model.device}
                now |= provenance.what_made_it(params, provenance.of_process() | model.provenance())
                if no_cache:
                    models.unload(model_id)
            for cell in done:
                then = provenance.what_made_it(cell.params, cell.tags)
                for name, (was, became) in provenance.differences(then, now).items():
                    if was is not None and name in now:
                        of = "" if name in provenance.of_code() else f" of {models.name_of(model_id)}"
                        found[f"{name}{of} was {shortened(was)}, now {shortened(became)}"] = None
        return list(found)

    def _run_cell(
        self,
        study: tracking.RunWriter,
        model: Model,
        config: ExperimentConfig,
        hops: int | None,
        seq_len: int,
        drawn: Drawn,
        label: str,
        place: str,
        bar: tqdm,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One cell as a run: its row of the summary, and its samples."""
        config, drawn = suited_to(model, config, drawn)
        name = f"{label} · {hops_text(hops)} {'hop' if hops == 1 else 'hops'} · {seq_len} lines"
        bar.set_description(name)
        reason = self.backend_reason if model.backend == self.backend else "a rule in the place of a model"
        params = {
            "model": model.id,
            "label": label,
            "hops": hops_text(hops),
            "seq_len": seq_len,
            **_how_run(model),
            "seed": config.first_seed(hops, seq_len),
        }
        own_tags = model.provenance() | {tracking.PLACE: place, "debug.backend_reason": reason}
        with study.cell(name, params_of([config]) | params, own_tags) as cell:
            own = {"models": [model.id], "hops": [hops], "seq_lens": [seq_len]}
            cell.log_json("config.json", config.to_record() | own | self._how)
            source = {"generator": config.generator[0], "seed": params["seed"], "hops": hops, "seq_len": seq_len}
            cell.log_dataset(
                f"{config.generator[0]} programs",
                [program.program for program in drawn.programs],
                source | {"artifact": "samples.jsonl"},
            )
            records = []
            started = time.perf_counter()
            for record in records_of(model, drawn, config, seq_len, self.batch_size):
                cell.append_jsonl("samples.jsonl", [record])
                records.append(record)
                bar.update()
            metrics = score_records(records, time.perf_counter() - started)
            cell.log_metrics(metrics)
            row: dict[str, Any] = {
                "model": model.id,
                "label": label,
                "generator": config.generator[0],
                "prompt_template": config.prompt[0],
                "hops": hops,
                "seq_len": seq_len,
                "backend": model.backend,
                "backend_reason": reason,
                "run_id": cell.run_id,
            } | metrics
            row |= count_records(records) | {"seeds_passed_over": drawn.seeds_passed_over}
            cell.log_json("summary.json", row)
        if row["errors"]:
            logger.warning(
                "%s: %d of %d samples have errors: %s",
                name,
                row["errors"],
                len(records),
                next(iter(row["error_counts"])),
            )
        if row["distinct_programs"] < row["num_samples"]:
            logger.warning(
                "%s: %d different programs among %d samples; the interval takes all for independent, and is too narrow",
                name,
                row["distinct_programs"],
                len(records),
            )
        return row, records

    def plot(self, name: str) -> alt.TopLevelMixin:
        """The accuracy chart of an experiment's latest run, from the tracking store.

        Raises:
            InputError: no accuracy run of that name, or no cell of it was finished.
        """
        cells = self._latest_cells(name)
        several = len({cell.params["generator"] for cell in cells}) > 1
        rows = [
            {
                "label": label + (f" · {cell.params['generator']}" if several else ""),
                "hops": None if cell.params["hops"] == "any" else int(cell.params["hops"]),
                "seq_len": int(cell.params["seq_len"]),
                **{metric: cell.metrics.get(metric) for metric in CHARTED},
            }
            for cell, label in zip(cells, told_apart(cells), strict=True)
            if "accuracy" in cell.metrics
        ]
        if not rows:
            raise InputError(f"the latest accuracy run of experiment {name!r} has no finished cell to plot")
        return accuracy_chart(chart_frame(rows))

    def analyze_errors(self, name: str) -> pl.DataFrame:
        """The samples of an experiment's latest run that were not answered correctly, commonest wrong answers first.

        Returns:
            One row a sample: run_id of its cell, model, hops, seq_len, seed, program, expected, parsed, raw_output,
            outcome ("wrong", "no answer", or "error": not asked or not read), error, and times_given: in how many
            samples of the cell that answer was wrong.

        Raises:
            InputError: no accuracy run of that name, or no sample in it.
        """
        cells = self._latest_cells(name)
        frames = [
            cell.samples.filter(~pl.col("correct").fill_null(False))
            .with_columns(
                run_id=pl.lit(cell.run_id),
                model=pl.lit(model),
                outcome=pl.when(pl.col("correct").is_null())
                .then(pl.lit("error"))
                .when(pl.col("parsed").is_null())
                .then(pl.lit("no answer"))
                .otherwise(pl.lit("wrong")),
                times_given=pl.len().over("parsed"),
            )
            .sort("outcome", "times_given", "parsed", "seed", descending=[True, True, False, False])
            for cell, model in zip(cells, told_apart(cells, "model"), strict=True)
            if "samples.jsonl" in cell.artifacts()
        ]
        if not frames:
            raise InputError(f"the latest accuracy run of experiment {name!r} has no samples")
        return pl.concat(frames, how="vertical_relaxed").select(
            *["run_id", "model", "hops", "seq_len", "seed", "program"],
            *["expected", "parsed", "raw_output", "outcome", "error", "times_given"],
        )

    def _latest_cells(self, name: str) -> list[tracking.LoggedRun]:
        store = tracking.Store(self.tracking_uri)
        found = store.find_runs(experiment=name, kind=KIND, role="study", limit=1)
        if found.is_empty():
            raise InputError(f"no accuracy run of experiment {name!r} in {provenance.without_passwords(store.uri)}")
        return store.load_run(found["run_id"][0]).children


_STUDY = "debug.study"  # tag: digest of a study's configs


def _place(config: int, model_id: str, cell: tuple[int | None, int]) -> str:
    return _digest([config, model_id, *cell])


def _how_run(model: Model) -> dict[str, str]:
    """Params that say how a model was run."""
    how = {name: getattr(model, name) for name in ("backend", "dtype", "device")}
    return how | {"quantization": model.quantization or "none"}


@contextmanager
def _one_at_a_time(store: tracking.Store, digest: str) -> Iterator[None]:
    """Of the processes of this user on this machine that look for one study, or start it, one after the other."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    name = f"debug-{user}-{_digest([store.uri, digest])}.lock"
    with FileLock(Path(tempfile.gettempdir()) / name):
        yield


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
