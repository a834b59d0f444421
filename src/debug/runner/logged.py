"""The latest accuracy run of an experiment, read back: its chart, and the samples that went wrong."""

from __future__ import annotations

import altair as alt
import polars as pl

from debug import provenance, tracking
from debug.causal_visualization import accuracy_chart
from debug.errors import InputError
from debug.runner.charts import CHARTED, chart_frame
from debug.runner.labels import told_apart
from debug.runner.study import KIND


def plot(store: tracking.Store, name: str) -> alt.TopLevelMixin:
    """See :meth:`debug.runner.ExperimentRunner.plot`."""
    cells = _latest_cells(store, name)
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


def analyze_errors(store: tracking.Store, name: str) -> pl.DataFrame:
    """See :meth:`debug.runner.ExperimentRunner.analyze_errors`."""
    cells = _latest_cells(store, name)
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


def _latest_cells(store: tracking.Store, name: str) -> list[tracking.LoggedRun]:
    found = store.find_runs(experiment=name, kind=KIND, role="study", limit=1)
    if found.is_empty():
        raise InputError(f"no accuracy run of experiment {name!r} in {provenance.without_passwords(store.uri)}")
    return store.load_run(found["run_id"][0]).children
