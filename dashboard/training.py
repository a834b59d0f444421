"""Training: accuracy by hops over the steps of a training run; causal maps of two of its checkpoints side by side."""

from __future__ import annotations

import re

import polars as pl
import streamlit as st
from store import load, mean_of
from view import all_runs, choice, draw, literally, one_run, part, run_label, said_of

from debug.causal_map import METRICS
from debug.dashboard_charts import over_steps, side_by_side
from debug.tracking import LoggedRun

CHECKPOINT = re.compile(r"checkpoints/(step_\d+)/config\.json")


def page() -> None:
    st.title("Training")
    runs = all_runs()
    if runs is None:
        return
    run_id = one_run(runs, pl.col("kind") == "training", "a training", name="training", label="Training run")
    if run_id is None:
        st.caption("This trains the bundled model again, and logs it:")
        literally("python runs/train_bundled_model.py")
        return
    run = load(run_id)
    said_of(run.status, run.tags.get("debug.error"))
    part(accuracies, run)
    part(checkpoints, run, runs)


def accuracies(run: LoggedRun) -> None:
    """The metrics accuracy/lines_<n>[_hops_<k>], as the training loop logs them."""
    names = r"^accuracy/lines_(\d+)(?:_hops_(\d+))?$"
    curves = run.curves("accuracy/").with_columns(
        panel=pl.col("metric").str.extract(names, 1), series=pl.col("metric").str.extract(names, 2).fill_null("any")
    )
    curves = curves.filter(pl.col("panel").is_not_null())
    if curves.is_empty():
        st.info("This run has logged no accuracies by hops yet.")
        return
    by_hops = curves.filter(pl.col("panel").is_in(curves.filter(pl.col("series") != "any")["panel"].unique().implode()))
    shown = by_hops if len(by_hops) else curves
    shown = shown.select(
        "step", "value", panel=pl.format("{} lines", "panel"), series=pl.format("hops {}", "series"), metric="metric"
    )
    draw(over_steps(shown, "accuracy on held-out programs"), "accuracy-over-steps", shown)


def checkpoints(run: LoggedRun, runs: pl.DataFrame) -> None:
    """Causal runs of this run's checkpoints, known by the name of their folder."""
    st.subheader("Causal maps of two checkpoints")
    names = sorted({match[1] for name in run.artifacts() if (match := CHECKPOINT.fullmatch(name))})
    traced = runs.filter(pl.col("params.model").is_in(names), pl.col("params.intervention_type").is_not_null())
    traced = traced.sort("params.model", "start_time")
    if len(traced) < 2:
        st.info(f"{len(traced)} of {len(names)} checkpoints have a causal run. This makes one, for each that is named:")
        folders = [str(run.artifact(f"checkpoints/{name}/config.json").parent) for name in names]
        literally(
            "python runs/causal_trace.py --models "
            + " ".join(folders[:1] + folders[-1:])
            + f" \\\n  --tracking-uri {run.store.uri}"
            if folders
            else "(this run kept no checkpoints)"
        )
        return
    rows = {row["run_id"]: row for row in traced.iter_rows(named=True)}
    left, middle, right = st.columns(3)
    with left:
        first = choice("first", "First", list(rows), lambda i: run_label(rows[i]))
    with middle:
        second = choice("second", "Second", [i for i in reversed(rows) if i != first], lambda i: run_label(rows[i]))
    one, other = mean_of(load(first))[0], mean_of(load(second))[0]
    shared = [metric for metric in one.metrics if metric in other.metrics]
    if not shared:
        st.info("The two maps have no metric in common.")
        return
    with right:
        metric = choice("metric", "Metric", shared, METRICS.__getitem__)
    titles = (rows[first]["params.model"], rows[second]["params.model"])
    draw(side_by_side(one, other, metric, titles), "checkpoints")


page()
