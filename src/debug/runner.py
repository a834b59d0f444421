"""Accuracy runs: programs into a model, answers parsed and scored, every cell of the sweep a run in the tracking store.

    result = ExperimentRunner().run(quick_experiment(...))

One :meth:`ExperimentRunner.run` is one parent run; each (model, hops, seq_len) under it is a cell, a nested run.
Samples are stored as they come, so that what is done stays, however the run ends. A sample is correct, wrong, without
an answer (nothing in the text is one: not correct, and counted apart), or has an error: the model was not asked, or its
answer not read, and the sample counts in no rate. Knows no causal run.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
from filelock import FileLock
from tqdm.auto import tqdm

from debug import heuristics, models, provenance, tracking
from debug.answers import suited
from debug.causal_visualization import accuracy_chart, comparison_chart, save_chart
from debug.core import ExperimentConfig, cut_off, parse_answer, shared_programs
from debug.generators import MAX_SEEDS, GeneratedProgram, GeneratorError, HopsNotAvailable, generate
from debug.heuristics import Heuristic
from debug.models import Engine, LoadedModel
from debug.prompts import fill, get_prompt, without_final_space
from debug.statistics import Comparison, Interval, bootstrap_mean, holm, mcnemar, wilson

KIND = "accuracy"

Cell = tuple[str, int | None, int]
"""Model id, hops (None: any) and seq_len."""

Model = LoadedModel | Engine | Heuristic

MOST_PRINTED = 40
"""Comparisons that are printed one by one."""

logger = logging.getLogger(__name__)


class TooFewPrograms(ValueError):
    """The search for programs of the hops asked for ended before there were enough."""


class StudyDiffers(ValueError):
    """A study whose finished cells were made by other code, libraries or weights than those that are here now."""


class NothingScored(ValueError):
    """Not one sample of a run could be asked and read."""


@dataclass(frozen=True)
class ExperimentResult:
    """What a run gave: one row a sample, the summary as in summary.json, and the MLflow run ids.

    ``str()`` is a table of the cells with their intervals, and of the paired tests where models were compared; where
    cells share programs it says so.
    ``cell_run_ids`` are by (model id, hops, seq_len); of a study with several prompts or tasks, the last's.
    """

    samples: pl.DataFrame
    summary: dict[str, Any]
    run_id: str
    cell_run_ids: dict[Cell, str]
    tracking_uri: str

    def __str__(self) -> str:
        cells = self.summary["cells"]
        several = len({cell["generator"] for cell in cells}) > 1
        head = ("model", *(["generator"] if several else []), "hops", "lines", "accuracy", "no answer", "errors", "run")
        rows: list[tuple[Any, ...]] = [head]
        for cell in cells:
            accuracy, warning = "none", None
            if cell["num_samples"]:
                interval = wilson(cell["correct"], cell["num_samples"])
                accuracy, warning = str(interval), interval.warning
            rows.append(
                (
                    *(cell["label"], *([cell["generator"]] if several else []), _hops(cell["hops"]), cell["seq_len"]),
                    *(accuracy, cell["no_answer"], cell["errors"], cell["run_id"]),
                )
            )
            if warning:
                rows[-1] += (warning,)
        lines = _table(rows)
        errors = sum((Counter(cell["error_counts"]) for cell in cells), Counter())
        lines += [f"{count} errors: {message}" for message, count in errors.most_common(5)]
        unanswered = sum((Counter(cell["no_answer_counts"]) for cell in cells), Counter())
        lines += [f"{count} without an answer: {message}" for message, count in unanswered.most_common(5)]
        lines += [f"finished cells were made otherwise: {line}" for line in self.summary.get("mixed", ())]
        for backend, reason in dict.fromkeys((cell["backend"], cell["backend_reason"]) for cell in cells):
            lines.append(f"backend {backend}: {reason}")
        comparisons = self.summary["comparisons"]
        told_apart = sum(c["p_adjusted"] < 0.05 for c in comparisons)
        if len(comparisons) > MOST_PRINTED:
            lines += ["", f"the same programs, paired: in {told_apart} of {len(comparisons)} comparisons exact McNemar"]
            lines[-1] += " tests give p < 0.05 after Holm's correction; each is in summary.json and comparisons.png"
        elif comparisons:
            lines += [
                "",
                "the same programs, paired (difference of accuracies; correct by one alone; exact McNemar; the",
            ]
            lines[-1] += " interval is that of the p of each comparison alone)"
            lines += _table(
                [
                    (
                        f"{c['first']} - {c['second']}",
                        c["generator"],
                        _hops(c["hops"]),
                        f"{c['seq_len']} lines",
                        c["text"],
                    )
                    for c in comparisons
                ]
            )
        over_cells = self.summary["comparisons_over_cells"]
        if over_cells:
            lines += ["", "all cells together, paired, clustered by seed (n: seeds; exact sign-flip test over seeds)"]
            lines += _table([(f"{c['first']} - {c['second']}", c["generator"], c["text"]) for c in over_cells])
        if self.summary["shared_programs"]:
            lines += ["", self.summary["shared_programs"]]
        return "\n".join(lines)


def _table(rows: Sequence[Sequence[Any]]) -> list[str]:
    widths = [max(len(str(row[n])) for row in rows if n < len(row)) for n in range(max(map(len, rows)))]
    return [
        "  ".join(str(entry).ljust(width) for entry, width in zip(row, widths, strict=False)).rstrip() for row in rows
    ]


@dataclass(frozen=True)
class NotGenerated:
    """A seed for which the generator gave no program."""

    seed: int
    error: str


@dataclass(frozen=True)
class Drawn:
    """The programs of a cell, the template they are put into, and how many seeds were passed over to find them."""

    programs: list[GeneratedProgram]
    failed: list[NotGenerated]
    template: str
    seeds_passed_over: int


class ExperimentRunner:
    """Runs accuracy experiments; holds where they are logged and how models are run, and no results.

    Args:
        tracking_uri: as :func:`debug.tracking.store_uri`.
        batch_size: prompts that are completed at once; vLLM takes all.
        dtype, device, quantization: as :func:`debug.models.load`.
        backend: "transformers", "vllm", or "auto": as :func:`debug.models.choose_backend` has it.
        engine_args: as :func:`debug.models.load_engine`.
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
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        self.tracking_uri, self.batch_size, self.dtype, self.device = tracking_uri, batch_size, dtype, device
        self.quantization, self.engine_args = quantization, dict(engine_args or {})
        self.backend, self.backend_reason = models.choose_backend(backend, device, quantization)
        if self.engine_args and self.backend != "vllm":
            raise ValueError(f"engine_args are vLLM's, and the backend is {self.backend} ({self.backend_reason})")

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
            return models.load_engine(model_id, dtype=self.dtype, device=self.device, engine_args=self.engine_args)
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
        labels = _labels(configs, names)
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
                _title(configs, names),
                digest,
                plan if resume else None,
                no_cache,
                mix,
                take_over,
                tags or {},
            ) as (study, finished, mixed),
            tqdm(total=sum(configs[c].num_seqs for c, _, _ in plan), unit="sample") as bar,
        ):
            study.log_params(_params(configs))
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
                        drawn[c, hops, seq_len] = _draw(config, hops, seq_len)
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
            summary["comparisons"], summary["comparisons_over_cells"] = _compare(samples)
            summary["shared_programs"] = _shared_programs(samples)
            study.log_json("summary.json", summary)
            study.log_metrics({"num_samples": len(samples), "num_errors": sum(row["errors"] for row in rows)})
            _save_charts(study, rows, summary["comparisons"])
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
                        found[f"{name}{of} was {_short(was)}, now {_short(became)}"] = None
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
        config, drawn = _suited(model, config, drawn)
        name = f"{label} · {_hops(hops)} {'hop' if hops == 1 else 'hops'} · {seq_len} lines"
        bar.set_description(name)
        reason = self.backend_reason if model.backend == self.backend else "a rule in the place of a model"
        params = {
            "model": model.id,
            "label": label,
            "hops": _hops(hops),
            "seq_len": seq_len,
            **_how_run(model),
            "seed": config.first_seed(hops, seq_len),
        }
        own_tags = model.provenance() | {tracking.PLACE: place, "debug.backend_reason": reason}
        with study.cell(name, _params([config]) | params, own_tags) as cell:
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
            for record in _records(model, drawn, config, seq_len, self.batch_size):
                cell.append_jsonl("samples.jsonl", [record])
                records.append(record)
                bar.update()
            metrics = _score(records, time.perf_counter() - started)
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
            row |= _counts(records) | {"seeds_passed_over": drawn.seeds_passed_over}
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
            ValueError: no accuracy run of that name, or no cell of it was finished.
        """
        cells = self._latest_cells(name)
        several = len({cell.params["generator"] for cell in cells}) > 1
        rows = [
            {
                "label": label + (f" · {cell.params['generator']}" if several else ""),
                "hops": None if cell.params["hops"] == "any" else int(cell.params["hops"]),
                "seq_len": int(cell.params["seq_len"]),
                **{metric: cell.metrics.get(metric) for metric in _CHARTED},
            }
            for cell, label in zip(cells, told_apart(cells), strict=True)
            if "accuracy" in cell.metrics
        ]
        if not rows:
            raise ValueError(f"the latest accuracy run of experiment {name!r} has no finished cell to plot")
        return accuracy_chart(_chart_frame(rows))

    def analyze_errors(self, name: str) -> pl.DataFrame:
        """The samples of an experiment's latest run that were not answered correctly, commonest wrong answers first.

        Returns:
            One row a sample: run_id of its cell, model, hops, seq_len, seed, program, expected, parsed, raw_output,
            outcome ("wrong", "no answer", or "error": not asked or not read), error, and times_given: in how many
            samples of the cell that answer was wrong.

        Raises:
            ValueError: no accuracy run of that name, or no sample in it.
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
            raise ValueError(f"the latest accuracy run of experiment {name!r} has no samples")
        return pl.concat(frames, how="vertical_relaxed").select(
            *["run_id", "model", "hops", "seq_len", "seed", "program"],
            *["expected", "parsed", "raw_output", "outcome", "error", "times_given"],
        )

    def _latest_cells(self, name: str) -> list[tracking.LoggedRun]:
        store = tracking.Store(self.tracking_uri)
        found = store.find_runs(experiment=name, kind=KIND, role="study", limit=1)
        if found.is_empty():
            raise ValueError(f"no accuracy run of experiment {name!r} in {provenance.without_passwords(store.uri)}")
        return store.load_run(found["run_id"][0]).children


def told_apart(cells: Sequence[tracking.LoggedRun], param: str = "label") -> list[str]:
    """What the model of each cell is called: its label, or name, and where cells of other weights have the same one (of
    two folders of one name, in runs of before) the beginning of the weights' digest."""
    names = [cell.params.get(param, cell.params["model"]) for cell in cells]
    digests = [cell.tags.get("debug.weights_digest") for cell in cells]
    weights: dict[str, set[str]] = {}
    for name, digest in zip(names, digests, strict=True):
        weights.setdefault(name, set()).update([digest] if digest else [])
    return [
        f"{name} ({digest[:6]})" if digest and len(weights[name]) > 1 else name
        for name, digest in zip(names, digests, strict=True)
    ]


_STUDY = "debug.study"  # tag: digest of a study's configs


def _place(config: int, model_id: str, cell: tuple[int | None, int]) -> str:
    return _digest([config, model_id, *cell])


def _how_run(model: Model) -> dict[str, str]:
    """Params that say how a model was run."""
    how = {name: getattr(model, name) for name in ("backend", "dtype", "device")}
    return how | {"quantization": model.quantization or "none"}


def _short(value: str | None) -> str:
    """A digest or a commit by its beginning, as it is told apart by eye."""
    return "not known" if value is None else value[:12] if len(value) >= 40 else value


@contextmanager
def _one_at_a_time(store: tracking.Store, digest: str) -> Iterator[None]:
    """Of the processes of this user on this machine that look for one study, or start it, one after the other."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    name = f"debug-{user}-{_digest([store.uri, digest])}.lock"
    with FileLock(Path(tempfile.gettempdir()) / name):
        yield


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _title(configs: Sequence[ExperimentConfig], model_names: Mapping[str, str]) -> str:
    parts = (
        [model_names[model_id] for config in configs for model_id in config.models],
        [config.generator[0] for config in configs],
        [config.prompt[0] for config in configs],
    )
    return " · ".join(", ".join(dict.fromkeys(names)) for names in parts)


def _labels(configs: Sequence[ExperimentConfig], names: Mapping[str, str]) -> dict[tuple[int, str], str]:
    """What each config's model is called in tables and charts: its name, and how it is asked where that differs.

    Two that are asked alike, and have a cell in common, are told apart by what else differs.
    """
    prompts: dict[tuple[str, str], set[str]] = {}
    for config in configs:
        for model_id in config.models:
            prompts.setdefault((config.generator[0], model_id), set()).add(_asked(config))
    labels = {}
    for c, config in enumerate(configs):
        for model_id in config.models:
            several = len(prompts[config.generator[0], model_id]) > 1
            labels[c, model_id] = names[model_id] + (f", {_asked(config)}" if several else "")
    alike: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for (c, model_id), label in labels.items():
        alike.setdefault((configs[c].generator[0], label), []).append((c, model_id))
    for places in alike.values():
        cells = [cell for c, _ in places for cell in configs[c].cells]
        if len(set(cells)) == len(cells):
            continue
        records = [configs[c].to_record() for c, _ in places]
        differ = [name for name in _TOLD_APART if len({str(record[name]) for record in records}) > 1]
        said = [", ".join(f"{name} {str(record[name])[:40]!r}" for name in differ) for record in records]
        for (c, model_id), words in zip(places, said, strict=True):
            own = words if words and said.count(words) == 1 else f"experiment {c + 1}"
            labels[c, model_id] += f", {own}"
    return labels


_TOLD_APART = ("answer_parser", "max_new_tokens", "seed", "num_seqs")


def _asked(config: ExperimentConfig) -> str:
    """The way a config asks, in words."""
    parts = [config.prompt[0], f"{config.few_shot} solved" if config.few_shot else "", "chat" if config.chat else ""]
    return " ".join([part for part in parts if part] + (["logits"] if config.scoring == "logits" else []))


def _params(configs: Sequence[ExperimentConfig]) -> dict[str, Any]:
    """Params that the whole study shares."""
    each = [
        {
            "generator": config.generator[0],
            "prompt_template": config.prompt[0],
            "answer_parser": config.parser[0],
            "seed": config.seed,
            "num_seqs": config.num_seqs,
            "few_shot": config.few_shot,
            "chat": config.chat,
            "scoring": config.scoring,
            "max_new_tokens": config.max_new_tokens,
        }
        for config in configs
    ]
    return {name: value for name, value in each[0].items() if all(params[name] == value for params in each)}


def _draw(config: ExperimentConfig, hops: int | None, seq_len: int) -> Drawn:
    """The first ``num_seqs`` seeds whose program has the hops and is not solved in the prompt as an example.

    A seed at which the generator fails is one of them: it is recorded, and not replaced by another.
    """
    template = config.prompt_text(seq_len)
    programs, failed, start = [], [], config.first_seed(hops, seq_len)
    with tqdm(total=config.num_seqs, desc="programs", unit="program", leave=False, delay=2) as bar:
        for seed in range(start, start + MAX_SEEDS):
            try:
                candidate = generate(config.generator[1], seq_len, seed, hops)
            except HopsNotAvailable:
                continue
            except GeneratorError as error:
                failed.append(NotGenerated(seed, str(error)))
            else:
                if candidate.program in template:
                    continue
                programs.append(candidate)
            bar.update()
            done = len(programs) + len(failed)
            if done == config.num_seqs:
                return Drawn(programs, failed, template, seed - start + 1 - done)
    raise TooFewPrograms(
        f"found {len(programs)} of {config.num_seqs} programs with {_hops(hops)} hops on {seq_len} lines in "
        f"{MAX_SEEDS} seeds from {start} on; ask for fewer, or for longer programs"
    )


_NO_SAMPLE = dict.fromkeys(("hops", "program", "prompt", "expected", "raw_output", "parsed", "correct", "chain"), None)


def _records(
    model: Model, drawn: Drawn, config: ExperimentConfig, seq_len: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """The record of each sample, as batches finish; fields as the tracking contract has them.

    ``correct`` is null where there is an error that kept the sample from being asked or read.
    """
    for failure in drawn.failed:
        yield {"seed": failure.seed, "seq_len": seq_len} | _NO_SAMPLE | {"error": failure.error}
    programs = drawn.programs
    prompts = given(model, drawn.template, [program.program for program in programs])
    answers: Iterator[tuple[int, dict[str, Any]]]
    if config.scoring == "logits":
        answers = _ranked(model, prompts, programs, batch_size)
    else:
        answers = _written(model, prompts, config, batch_size)
    for index, answer in answers:
        program = programs[index]
        parsed, unread = answer["parsed"], answer.pop("unread")
        correct = type(parsed) is type(program.answer) and parsed == program.answer  # True is not 1
        yield {
            "seed": program.seed,
            "seq_len": program.seq_len,
            "hops": program.hops,
            "program": program.program,
            "prompt": _sent(model, prompts[index], config),
            "expected": program.answer,
            "chain": program.metadata.get("chain"),
            **answer,
            "correct": None if unread else correct,
        }


def _suited(model: Model, config: ExperimentConfig, drawn: Drawn) -> tuple[ExperimentConfig, Drawn]:
    """Both with the template without its final space, where the model's vocabulary has that in the answers' tokens."""
    if isinstance(model, Heuristic) or config.chat or not drawn.programs:
        return config, drawn
    possible = [str(answer) for answer in _possible(drawn.programs)]
    template = suited(model.tokenizer, config.prompt_template, drawn.programs[0].program, possible)
    if template == config.prompt[1]:
        return config, drawn
    config = replace(config, prompt_template=without_final_space(config.prompt_template))
    return config, replace(drawn, template=get_prompt(without_final_space(drawn.template))[1])


def given(model: Model, template: str, programs: Sequence[str]) -> list[str]:
    """What a model is given of each program: the prompt; a heuristic is given the program."""
    return [program if isinstance(model, Heuristic) else fill(template, program) for program in programs]


def _sent(model: Model, prompt: str, config: ExperimentConfig) -> str:
    """The text that the model was given."""
    try:
        return prompt if isinstance(model, Heuristic) else model.rendered(prompt, chat=config.chat)
    except ValueError:  # no chat template: the sample's error says so
        return prompt


def _written(
    model: Model, prompts: list[str], config: ExperimentConfig, batch_size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answers parsed from what the model writes."""
    assert config.max_new_tokens is not None
    completions = model.generate(prompts, max_new_tokens=config.max_new_tokens, batch_size=batch_size, chat=config.chat)
    for index, completion in completions:
        if completion.error is not None:
            yield index, {"raw_output": None, "parsed": None, "error": completion.error, "unread": True}
            continue
        parsed, error, unread = None, None, False
        if not completion.ended and cut_off(config.parser[1], completion.text):
            error = f"no end after {config.max_new_tokens} tokens, and the answer comes last; raise max_new_tokens"
        else:
            try:
                parsed = parse_answer(config.parser[1], completion.text)
            except ValueError as failure:
                error, unread = str(failure), True
        if not completion.text.strip():
            error = error or "the model wrote nothing"
        yield index, {"raw_output": completion.text, "parsed": parsed, "error": error, "unread": unread}


def _possible(programs: Sequence[GeneratedProgram]) -> list[Any]:
    """The answers that are ranked: the digits, True and False, or all answers of the cell's programs."""
    expected = {program.answer for program in programs}
    if all(isinstance(answer, bool) for answer in expected):
        return [False, True]
    if all(isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer <= 9 for answer in expected):
        return list(range(10))
    return sorted(expected, key=str)


def _ranked(
    model: Model, prompts: list[str], programs: list[GeneratedProgram], batch_size: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The most probable of the possible answers.

    ``answer_rank`` counts, from 1, the possible answers that are no less probable than the right one.
    """
    possible = _possible(programs)
    for index, scores in model.score(prompts, [str(answer) for answer in possible], batch_size=batch_size):
        if scores.error is not None:
            yield index, {"raw_output": None, "parsed": None, "error": scores.error, "unread": True}
            continue
        values = np.array(scores.log_probabilities)
        best = np.flatnonzero(values == values.max())
        right = possible.index(programs[index].answer)
        yield (
            index,
            {
                "raw_output": str(possible[best[0]]),
                "parsed": possible[best[0]] if len(best) == 1 else None,
                "error": None if len(best) == 1 else f"{len(best)} answers are equally probable",
                "unread": False,
                "answer_rank": int((values >= values[right]).sum()),
                "answer_probability": float(np.exp(values[right])),
            },
        )


def _score(records: list[dict[str, Any]], seconds: float) -> dict[str, float | None]:
    """A cell's metrics. A sample without an answer counts among n: it was asked, and not answered correctly; one with
    ``correct`` null does not."""
    read = [record for record in records if record["correct"] is not None]
    metrics: dict[str, float | None] = {"accuracy": None, "accuracy_ci_low": None, "accuracy_ci_high": None}
    if read:
        metrics |= _with_ends("accuracy", wilson(sum(record["correct"] for record in read), len(read)))
    for name in ("answer_probability", "answer_rank"):
        values = [record[name] for record in read if name in record]
        if values:
            bounds = (0.0, 1.0) if name == "answer_probability" else None
            metrics |= _with_ends(name, bootstrap_mean(values, bounds=bounds))
    return metrics | {
        "num_samples": len(read),
        "num_errors": len(records) - len(read),
        "num_no_answer": sum(record["parsed"] is None for record in read),
        "samples_per_second": len(records) / seconds,
    }


def _with_ends(name: str, interval: Interval) -> dict[str, float | None]:
    return {name: interval.estimate, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


def _counts(records: list[dict[str, Any]]) -> dict[str, Any]:
    read = [record for record in records if record["correct"] is not None]
    correct = sum(record["correct"] for record in read)
    no_answer = sum(record["parsed"] is None for record in read)
    errors = Counter(_without_seed(record) for record in records if record["correct"] is None)
    unanswered = Counter(_without_seed(record) for record in read if record["error"] is not None)
    return {
        "correct": correct,
        "wrong": len(read) - correct - no_answer,
        "no_answer": no_answer,
        "errors": len(records) - len(read),
        "error_counts": dict(errors.most_common(5)),
        "no_answer_counts": dict(unanswered.most_common(5)),
        "distinct_programs": len({record["program"] for record in read}),
    }


def _without_seed(record: dict[str, Any]) -> str:
    """An error without what is this sample's alone, so that errors of one kind can be counted."""
    return record["error"].replace(f"at seed {record['seed']}", "at a seed").split("; the prompt begins")[0]


def _compare(samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every two series, but two rules, on every cell that both have, and on all these cells of a task together: paired
    by program, and over cells clustered by seed, as cells share programs; Holm's correction over all of each kind."""
    cells: dict[tuple[str, int | None, int], dict[str, dict[str, bool]]] = {}
    seeds: dict[str, int] = {}  # of a program; one that several seeds give is the first one's
    for sample in samples:
        if sample["correct"] is not None:
            cell = cells.setdefault((sample["generator"], sample["cell_hops"], sample["seq_len"]), {})
            cell.setdefault(sample["label"], {}).setdefault(sample["program"], sample["correct"])
            seeds.setdefault(sample["program"], sample["seed"])
    places, compared = [], []
    together: dict[tuple[str, str, str], list[dict[str, tuple[bool, bool]]]] = defaultdict(list)
    for place, series in cells.items():
        for first, second in combinations(series, 2):
            if first.startswith(heuristics.PREFIX) and second.startswith(heuristics.PREFIX):
                continue  # two rules are no question, and each comparison costs the others power
            both = sorted(series[first].keys() & series[second].keys())
            if both:
                places.append((*place, first, second))
                compared.append(mcnemar(*([series[name][program] for program in both] for name in (first, second))))
                answers = {program: (series[first][program], series[second][program]) for program in both}
                together[place[0], first, second].append(answers)
    over_cells = {place: answers for place, answers in together.items() if len(answers) > 1}
    pooled = []
    for of_cells in over_cells.values():
        answers = {program: both for cell in of_cells for program, both in cell.items()}  # each program once
        pooled.append(mcnemar(*zip(*answers.values(), strict=True), seeds=[seeds[program] for program in answers]))
    return (
        _comparison_records(("generator", "hops", "seq_len", "first", "second"), places, compared),
        _comparison_records(("generator", "first", "second"), list(over_cells), pooled),
    )


def _comparison_records(
    names: Sequence[str], places: Sequence[Sequence[Any]], compared: Sequence[Comparison]
) -> list[dict[str, Any]]:
    return [
        dict(zip(names, place, strict=True)) | _comparison_record(comparison)
        for place, comparison in zip(places, holm(compared), strict=True)
    ]


def _shared_programs(samples: list[dict[str, Any]]) -> str | None:
    """What a reader must know who compares the cells: how many seeds two of them have in common, at most."""
    seeds: dict[tuple[str, int | None, int], set[int]] = defaultdict(set)
    for sample in samples:
        if sample["seed"] is not None:
            seeds[sample["generator"], sample["cell_hops"], sample["seq_len"]].add(sample["seed"])
    shared = {
        (one, other): len(seeds[one] & seeds[other]) for one, other in combinations(seeds, 2) if one[0] == other[0]
    }
    if not any(shared.values()):
        return None
    (one, other), most = max(shared.items(), key=lambda item: item[1])
    named = " and ".join(
        f"{_hops(hops)} {'hop' if hops == 1 else 'hops'} on {lines}" for _, hops, lines in (one, other)
    )
    text = shared_programs([(one[0], *one[1:], 0), (other[0], *other[1:], 0)])
    return f"{text} Most, {most} of {len(seeds[one])}: {named} lines."


def _comparison_record(comparison: Comparison) -> dict[str, Any]:
    return {
        "difference": comparison.difference.estimate,
        "ci_low": comparison.difference.low,
        "ci_high": comparison.difference.high,
        "n": comparison.difference.n,
        "only_first": comparison.only_first,
        "only_second": comparison.only_second,
        "p_value": comparison.p_value,
        "p_adjusted": comparison.p_adjusted,
        "warning": comparison.warning,
        "text": str(comparison),
    }


def _save_charts(study: tracking.RunWriter, rows: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
    """accuracy, and comparisons where there are any; of several generators, one of each for each."""
    generators = list(dict.fromkeys(row["generator"] for row in rows))
    for generator in generators:
        ending = f"_{generator}" if len(generators) > 1 else ""
        scored = [row for row in rows if row["generator"] == generator and row["num_samples"]]
        if scored:
            save_chart(accuracy_chart(_chart_frame(scored)), study.folder, f"accuracy{ending}")
        compared = [row for row in comparisons if row["generator"] == generator]
        if compared:
            frame = pl.DataFrame(compared, infer_schema_length=None)
            save_chart(comparison_chart(frame), study.folder, f"comparisons{ending}")


_CHARTED = {"accuracy": "accuracy", "accuracy_ci_low": "ci_low", "accuracy_ci_high": "ci_high", "num_samples": "n"}


def _chart_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The columns that the accuracy chart reads, from rows with a cell's coordinates and metrics."""
    frame = pl.DataFrame(rows, infer_schema_length=None).rename(_CHARTED)
    return frame.select(pl.col("label").alias("model"), "hops", "seq_len", *_CHARTED.values())


def _hops(hops: int | None) -> str:
    return "any" if hops is None else str(hops)
