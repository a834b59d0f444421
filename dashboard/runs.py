"""Runs: all of them as a table; of the chosen one what it measured, its causal maps and its samples.

The URL holds run, pair and metric, so that a link shows the same view.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import polars as pl
import streamlit as st
from store import MOST_RUNS, chosen_store, literally, load, mean_map, problem, runs_of

from debug.causal_map import CausalMapError
from debug.causal_visualization import (
    METRICS,
    Picture,
    accuracy_chart,
    causal_heatmap,
    curves_by_layer,
    head_heatmap,
    mean_heatmap,
)
from debug.tracking import LoggedRun, TrackingError

Option = TypeVar("Option", bound=str)
MEAN = "mean"
COLUMNS = ["start_time", "name", "status", "kind", "role", "params.model", "params.hops", "params.seq_len"]
RATES = [f"metrics.{name}" for name in ("accuracy", "patch_success_rate", "peak_patch_success_rate")]
LABELS = {"start_time": "started (UTC)", "params.seq_len": "lines"}


def page() -> None:
    st.title("Runs")
    st.html("<style>[class*='st-key-chart-'] { overflow-x: auto }</style>")
    try:
        store = chosen_store()
        runs = runs_of(store, store.uri)
    except TrackingError as error:
        problem("The tracking store cannot be read.", error)
        return
    run_id = choose(runs)
    if run_id is None:
        st.info("There are no runs in this store yet: `make demo` makes the first ones.")
        literally(store.uri)
        return
    try:
        run = load(store, run_id, dict(zip(runs["run_id"], runs["status"], strict=True)).get(run_id))
    except TrackingError as error:
        problem("This run cannot be read. Choose one in the table.", error)
        return
    show_numbers(run)
    for part in (show_cells, show_maps, show_samples):
        try:
            part(run)
        except (TrackingError, CausalMapError) as error:
            problem("This part of the run cannot be read.", error)


def choose(runs: pl.DataFrame) -> str | None:
    """The table. The chosen run is the one in the URL; the newest where the URL names none."""
    ids = runs["run_id"].to_list()
    asked = st.query_params.get("run")
    if not ids:
        return asked
    shown = [name for name in [*COLUMNS, *RATES, "experiment"] if name in runs.columns]
    labels = {name: LABELS.get(name, name.rpartition(".")[2].replace("_", " ")) for name in shown}
    config = {name: st.column_config.Column(label) for name, label in labels.items()}
    config |= {name: st.column_config.NumberColumn(labels[name], format="percent") for name in RATES if name in shown}
    config["start_time"] = st.column_config.DatetimeColumn(labels["start_time"], format="YYYY-MM-DD HH:mm")
    selection = st.dataframe(
        runs.select(shown),
        hide_index=True,
        height=250,
        placeholder="",
        column_config=config,
        on_select="rerun",
        selection_mode="single-row" if asked and asked not in ids else "single-row-required",
        selection_default={"selection": {"rows": [ids.index(asked)]}} if asked in ids else None,
        key=f"runs {hash(tuple(ids))}",  # rows are selected by number: with other rows, begin again with the URL's run
    )
    if len(ids) == MOST_RUNS:
        st.caption(f"The latest {MOST_RUNS:,} runs.")
    if rows := selection["selection"]["rows"]:
        asked = st.query_params["run"] = ids[rows[0]]
    return asked


def show_numbers(run: LoggedRun) -> None:
    st.subheader("Run")
    literally(f"{run.name} · {run.status}\n{run.run_id}")
    if run.status == "FAILED":
        problem("This run failed. What it logged before that is below.", run.tags.get("debug.error", ""))
    elif run.status != "FINISHED":
        st.info("This run has not finished. What it logged so far is below.")
    metrics = [
        (name, value, run.metrics.get(f"{name}_ci_low"), run.metrics.get(f"{name}_ci_high"))
        for name, value in sorted(run.metrics.items())
        if not name.endswith(("_ci_low", "_ci_high")) and "_by_layer/" not in name
    ]
    ends = {"from": pl.Float64, "to": pl.Float64}
    if not metrics and not run.params:
        return
    left, right = st.columns(2)
    left.dataframe(
        pl.DataFrame(metrics, ["metric", "value", *ends], orient="row", schema_overrides=ends),
        hide_index=True,
        placeholder="",
        column_config={
            "from": st.column_config.NumberColumn("95% interval from", format="%.3f"),
            "to": st.column_config.NumberColumn("to", format="%.3f"),
        },
    )
    params = pl.DataFrame(sorted(run.params.items()), {"parameter": pl.String, "value": pl.String}, orient="row")
    right.dataframe(params, hide_index=True)


def show_cells(run: LoggedRun) -> None:
    """The accuracy of the cells of a study."""
    rows = [
        {
            "model": cell.params.get("model", ""),
            "hops": int(hops) if (hops := cell.params.get("hops", "")).isdecimal() else None,
            "seq_len": int(seq_len),
            "accuracy": cell.metrics["accuracy"],
            "ci_low": cell.metrics.get("accuracy_ci_low"),
            "ci_high": cell.metrics.get("accuracy_ci_high"),
            "n": cell.metrics.get("num_samples"),
        }
        for cell in run.children
        if "accuracy" in cell.metrics and (seq_len := cell.params.get("seq_len", "")).isdecimal()
    ]
    if rows:
        st.subheader("Accuracy of its cells")
        draw(accuracy_chart(pl.DataFrame(rows, infer_schema_length=None)), "cells")


def show_maps(run: LoggedRun) -> None:
    """The mean over pairs, or one pair with its program."""
    maps = run.maps
    if not len(maps):
        if run.kind == "causal_tracing" and run.role == "cell":
            st.info("This run has no causal maps: it ended before the first, or they were removed from the store.")
        return
    st.subheader("Causal map")
    left, right = st.columns(2)
    with left:
        averages = [MEAN] if maps[0].targets else []  # of maps without targets there is no mean
        pair = from_url("pair", "Pair", [*averages, *map(str, range(len(maps)))], str)
    mean = mean_map(run, run.run_id, len(maps)) if pair == MEAN else None
    with right:
        there = (mean or maps[int(pair)]).metrics
        names = [name for name in dict.fromkeys(("normalized_logit_diff", *METRICS)) if name in there]
        metric = from_url("metric", "Metric", names, METRICS.__getitem__)
    if mean is not None:
        with st.container(horizontal=True):
            draw(mean_heatmap(mean, metric), "mean")
            draw(curves_by_layer(mean, metric), "curves")
        return
    causal_map = maps[int(pair)]
    if causal_map.top.ndim == 3 and not causal_map.targets:
        st.info("This map has heads, and no target at which to show them.")
    elif causal_map.top.ndim == 3:
        target = from_url("target", "Target", list(causal_map.targets), str)
        draw(head_heatmap(causal_map, target, metric), "heads")
    else:
        draw(causal_heatmap(causal_map, metric), "map")
    if causal_map.pair < 0:
        st.info("The programs of this map were not recorded.")
        return
    if not 0 <= causal_map.pair < len(run.pairs):
        problem("The program of this map is not among the programs of the run.", f"pair {causal_map.pair}")
        return
    programs = run.pairs[causal_map.pair]
    left, right = st.columns(2)
    left.caption("Original program, with its answer")
    left.code(f"{programs.original.text}{programs.original.answer}", language=None)
    right.caption("Counterfactual program, with its answer")
    right.code(f"{programs.counterfactual.text}{programs.counterfactual.answer}", language=None)


def show_samples(run: LoggedRun) -> None:
    """One row a sample; a row that is clicked shows its prompt and output in full."""
    if "samples.jsonl" not in run.artifacts():
        if run.role == "cell":
            st.info("This run has no samples: it ended before the first, or they were removed from the store.")
        return
    st.subheader("Samples")
    samples = run.samples
    empty = [column.name for column in samples if column.null_count() == len(column)]
    texts = pl.col(pl.String).str.replace_all("\n", " ⏎ ", literal=True)
    selection = st.dataframe(
        samples.drop({*empty, "prompt", "chain"}).with_columns(texts),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"samples of {run.run_id}",
    )
    for row in selection["selection"]["rows"]:
        sample = samples.row(row, named=True)
        left, right = st.columns(2)
        left.caption("Prompt")
        left.code(sample["prompt"] or "", language=None, wrap_lines=True)
        right.caption("Raw output")
        right.code(sample["raw_output"] or "", language=None, wrap_lines=True)


def from_url(name: str, label: str, options: list[Option], show: Callable[[Option], str]) -> Option:
    """A choice that the URL holds under ``name``. What a link asks for and this run does not have is said."""
    asked = st.query_params.get(name)
    known = [option for option in options if option == asked]
    choice = st.selectbox(label, options, options.index(known[0]) if known else 0, show, key=name)
    st.query_params[name] = choice
    if asked is not None and not known:
        st.caption("The link asks for another one, which this run does not have:")
        literally(asked)
    return choice


def draw(chart: Picture, key: str) -> None:
    """A chart in its own size; one that is wider than the page scrolls by itself."""
    with st.container(key=f"chart-{key}", width="content"):
        st.altair_chart(chart, width="content")


page()
