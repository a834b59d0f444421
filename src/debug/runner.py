"""Accuracy runs: programs into a model, answers parsed and scored, every cell of the sweep a run in the tracking store.

    result = ExperimentRunner().run(quick_experiment(...))

One :meth:`ExperimentRunner.run` is one parent run; each (model, hops, seq_len) under it is a cell, a nested run.
Samples are stored as they come, so that what is done stays, however the run ends. Knows no causal run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import altair as alt
import polars as pl
from tqdm.auto import tqdm

from debug import models, tracking
from debug.causal_visualization import accuracy_chart, save_chart
from debug.core import ExperimentConfig, parse_answer
from debug.generators import MAX_SEEDS, GeneratedProgram, search
from debug.models import LoadedModel
from debug.prompts import fill
from debug.statistics import wilson

KIND = "accuracy"

Cell = tuple[str, int | None, int]
"""Model id, hops (None: any) and seq_len."""

logger = logging.getLogger(__name__)


class TooFewPrograms(ValueError):
    """The search for programs of the hops asked for ended before there were enough."""


@dataclass(frozen=True)
class ExperimentResult:
    """What a run gave: one row a sample, the summary as in summary.json, and the MLflow run ids.

    ``str()`` is a table of the cells with their intervals.
    """

    samples: pl.DataFrame
    summary: dict[str, Any]
    run_id: str
    cell_run_ids: dict[Cell, str]
    tracking_uri: str

    def __str__(self) -> str:
        rows = [("model", "hops", "lines", "accuracy", "no answer", "run")]
        for cell in self.summary["cells"]:
            accuracy = str(wilson(cell["correct"], cell["num_samples"]))
            row = (cell["model"], _hops(cell["hops"]), cell["seq_len"], accuracy, cell["no_answer"], cell["run_id"])
            rows.append(row)
        widths = [max(len(str(entry)) for entry in column) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(str(entry).ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )


@dataclass(frozen=True)
class Drawn:
    """The programs of a cell, and how many seeds were passed over to find them."""

    programs: list[GeneratedProgram]
    seeds_passed_over: int


class ExperimentRunner:
    """Runs accuracy experiments; holds where they are logged and how models are run, and no results.

    Args:
        tracking_uri: as :func:`debug.tracking.store_uri`.
        batch_size: prompts that are completed at once.
        dtype, device: as :func:`debug.models.load`.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        batch_size: int = 32,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        self.tracking_uri, self.batch_size, self.dtype, self.device = tracking_uri, batch_size, dtype, device

    # Models stay in memory from run to run until they are unloaded.

    def preload_models(self, model_ids: list[str]) -> None:
        for model_id in model_ids:
            self._load(model_id)

    def list_loaded_models(self) -> list[str]:
        return models.loaded()

    def unload_model(self, model_id: str) -> None:
        models.unload(model_id)

    def unload_all_models(self) -> None:
        models.unload_all()

    def _load(self, model_id: str) -> LoadedModel:
        return models.load(model_id, dtype=self.dtype, device=self.device)

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
            ValueError: the model has no tokens for a prompt; the generator or the parser failed.
            debug.tracking.TrackingError: the store cannot be opened or written.
        """
        for model_id in config.models:
            models.locate(model_id)
        names = [models.name_of(model_id) for model_id in config.models]
        cells = list(product(config.hops, config.seq_lens))
        drawn = {cell: Drawn(list(given), 0) for cell, given in (programs or {}).items()}
        summary: dict[str, Any] = {"experiment": config.name, "cells": []}
        samples: list[dict[str, Any]] = []
        store = tracking.Store(self.tracking_uri)
        title = f"{', '.join(names)} · {config.generator[0]} · {config.prompt[0]}"
        with (
            store.start(config.name, title, kind=KIND, tags=tags) as study,
            tqdm(total=len(config.models) * len(cells) * config.num_seqs, unit="sample") as bar,
        ):
            study.log_params(_params(config))
            study.log_json("config.json", config.to_record() | {"batch_size": self.batch_size})
            for model_id in config.models:
                model = self._load(model_id)
                for hops, seq_len in cells:
                    if (hops, seq_len) not in drawn:
                        drawn[hops, seq_len] = _draw(config, hops, seq_len)
                    row, records = self._run_cell(study, model, config, hops, drawn[hops, seq_len], bar)
                    summary["cells"].append(row)
                    samples += [{"model": row["model"], **record} for record in records]
                    study.log_json("summary.json", summary)
                    study.flush()
                if no_cache:
                    models.unload(model_id)
            study.log_metrics({"num_samples": len(samples)})
            save_chart(accuracy_chart(_chart_frame(summary["cells"])), study.folder, "accuracy")
        cell_run_ids = {
            (model_id, hops, seq_len): row["run_id"]
            for (model_id, (hops, seq_len)), row in zip(product(config.models, cells), summary["cells"], strict=True)
        }
        frame = pl.DataFrame(samples, infer_schema_length=None)
        return ExperimentResult(frame, summary, study.run_id, cell_run_ids, store.uri)

    def _run_cell(
        self,
        study: tracking.RunWriter,
        model: LoadedModel,
        config: ExperimentConfig,
        hops: int | None,
        drawn: Drawn,
        bar: tqdm,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One cell as a run: its row of the summary, and its samples."""
        seq_len = drawn.programs[0].seq_len
        name = f"{model.id} · {_hops(hops)} {'hop' if hops == 1 else 'hops'} · {seq_len} lines"
        bar.set_description(name)
        params = {
            "model": model.id,
            "hops": _hops(hops),
            "seq_len": seq_len,
            "dtype": model.dtype,
            "device": model.device,
        }
        with study.cell(name, _params(config) | params) as cell:
            cell.set_tags(model.provenance())
            own = {"models": [model.id], "hops": [hops], "seq_lens": [seq_len], "batch_size": self.batch_size}
            cell.log_json("config.json", config.to_record() | own)
            source = {"generator": config.generator[0], "seed": config.seed, "hops": hops, "seq_len": seq_len}
            cell.log_dataset(
                f"{config.generator[0]} programs",
                [program.program for program in drawn.programs],
                source | {"artifact": "samples.jsonl"},
            )
            records = []
            started = time.perf_counter()
            for record in _complete(model, drawn.programs, config, self.batch_size):
                cell.append_jsonl("samples.jsonl", [record])
                records.append(record)
                bar.update()
            metrics = _score(records, time.perf_counter() - started)
            cell.log_metrics(metrics)
            row: dict[str, Any] = {
                "model": model.id,
                "hops": hops,
                "seq_len": seq_len,
                "run_id": cell.run_id,
            } | metrics
            row |= _counts(records) | {"seeds_passed_over": drawn.seeds_passed_over}
            cell.log_json("summary.json", row)
        if row["distinct_programs"] < len(records):
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
        rows = [
            {
                "model": cell.params["model"],
                "hops": None if cell.params["hops"] == "any" else int(cell.params["hops"]),
                "seq_len": int(cell.params["seq_len"]),
                **{metric: cell.metrics.get(metric) for metric in _CHARTED},
            }
            for cell in self._latest_cells(name)
            if "accuracy" in cell.metrics
        ]
        if not rows:
            raise ValueError(f"the latest accuracy run of experiment {name!r} has no finished cell to plot")
        return accuracy_chart(_chart_frame(rows))

    def analyze_errors(self, name: str) -> pl.DataFrame:
        """The samples of an experiment's latest run that were not answered correctly, commonest wrong answers first.

        Returns:
            One row a sample: run_id of its cell, model, hops, seq_len, seed, program, expected, parsed, raw_output,
            outcome ("wrong" or "no answer"), and times_given: in how many samples of the cell that answer was wrong.

        Raises:
            ValueError: no accuracy run of that name, or no sample in it.
        """
        frames = [
            cell.samples.filter(~pl.col("correct"))
            .with_columns(
                run_id=pl.lit(cell.run_id),
                model=pl.lit(cell.params["model"]),
                outcome=pl.when(pl.col("parsed").is_null()).then(pl.lit("no answer")).otherwise(pl.lit("wrong")),
                times_given=pl.len().over("parsed"),
            )
            .sort("outcome", "times_given", "parsed", "seed", descending=[True, True, False, False])
            for cell in self._latest_cells(name)
            if "samples.jsonl" in cell.artifacts()
        ]
        if not frames:
            raise ValueError(f"the latest accuracy run of experiment {name!r} has no samples")
        return pl.concat(frames, how="vertical_relaxed").select(
            *["run_id", "model", "hops", "seq_len", "seed", "program"],
            *["expected", "parsed", "raw_output", "outcome", "times_given"],
        )

    def _latest_cells(self, name: str) -> list[tracking.LoggedRun]:
        store = tracking.Store(self.tracking_uri)
        found = store.find_runs(experiment=name, kind=KIND, role="study", limit=1)
        if found.is_empty():
            raise ValueError(f"no accuracy run of experiment {name!r} in {store.uri}")
        return store.load_run(found["run_id"][0]).children


def _params(config: ExperimentConfig) -> dict[str, Any]:
    """Params of the whole study."""
    return {
        "generator": config.generator[0],
        "prompt_template": config.prompt[0],
        "answer_parser": config.parser[0],
        "seed": config.seed,
        "num_seqs": config.num_seqs,
        "backend": "transformers",
    }


def _draw(config: ExperimentConfig, hops: int | None, seq_len: int) -> Drawn:
    """The first programs that have the hops, and that the prompt does not solve as an example."""
    programs = []
    with tqdm(total=config.num_seqs, desc="programs", unit="program", leave=False, delay=2) as bar:
        for candidate in search(config.generator[1], seq_len, config.seed, hops, config.prompt[1]):
            programs.append(candidate)
            bar.update()
            if len(programs) == config.num_seqs:
                return Drawn(programs, candidate.seed - config.seed + 1 - len(programs))
    raise TooFewPrograms(
        f"found {len(programs)} of {config.num_seqs} programs with {_hops(hops)} hops on {seq_len} lines in "
        f"{MAX_SEEDS} seeds from {config.seed} on; ask for fewer, or for longer programs"
    )


def _complete(
    model: LoadedModel, programs: list[GeneratedProgram], config: ExperimentConfig, batch_size: int
) -> Iterator[dict[str, Any]]:
    """The record of each sample, as batches finish; fields as the tracking contract has them."""
    template, parser = config.prompt[1], config.parser[1]
    prompts = [fill(template, program.program) for program in programs]
    for index, completion in model.generate(prompts, max_new_tokens=config.max_new_tokens, batch_size=batch_size):
        program = programs[index]
        parsed = parse_answer(parser, completion)
        yield {
            "seed": program.seed,
            "seq_len": program.seq_len,
            "hops": program.hops,
            "program": program.program,
            "prompt": prompts[index],
            "expected": program.answer,
            "raw_output": completion,
            "parsed": parsed,
            "correct": type(parsed) is type(program.answer) and parsed == program.answer,  # True is not 1
            "chain": program.metadata.get("chain"),
            "error": None,
        }


def _score(records: list[dict[str, Any]], seconds: float) -> dict[str, float | None]:
    """A cell's metrics. A sample without an answer counts among n: it was asked, and not answered correctly."""
    accuracy = wilson(sum(record["correct"] for record in records), len(records))
    return {
        "accuracy": accuracy.estimate,
        "accuracy_ci_low": accuracy.low,
        "accuracy_ci_high": accuracy.high,
        "num_samples": accuracy.n,
        "samples_per_second": len(records) / seconds,
    }


def _counts(records: list[dict[str, Any]]) -> dict[str, int]:
    correct = sum(record["correct"] for record in records)
    no_answer = sum(record["parsed"] is None for record in records)
    return {
        "correct": correct,
        "wrong": len(records) - correct - no_answer,
        "no_answer": no_answer,
        "distinct_programs": len({record["program"] for record in records}),
    }


_CHARTED = {"accuracy": "accuracy", "accuracy_ci_low": "ci_low", "accuracy_ci_high": "ci_high", "num_samples": "n"}


def _chart_frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """The columns that the accuracy chart reads, from rows with a cell's coordinates and metrics."""
    frame = pl.DataFrame(rows, infer_schema_length=None).rename(_CHARTED)
    return frame.select("model", "hops", "seq_len", *_CHARTED.values())


def _hops(hops: int | None) -> str:
    return "any" if hops is None else str(hops)
