"""Runs: all runs of the store, filtered and sorted. Selected runs are used on the other pages.

Lists studies with the rates of their cells, and below the cells of the selected studies; or all cells.
"""

from __future__ import annotations

import json
from datetime import date

import polars as pl
import streamlit as st
from store import load, mlflow_address
from view import (
    all_runs,
    choice,
    chosen_runs,
    downloads,
    given_by_url,
    in_url,
    literally,
    part,
    problem,
    put,
    put_now,
    said_of,
    several,
    table_key,
    text,
    yes,
)

from debug.causal_map import ESTIMATED
from debug.tracking import LoggedRun, own_n

FILTERS = {
    "experiment": "Experiment",
    "kind": "Kind",
    "params.model": "Model",
    "params.hops": "Hops",
    "params.seq_len": "Lines",
    "params.seed": "Seed",
    "status": "Status",
}
NAMES = {
    "start_time": "started (UTC)",
    "params.seq_len": "lines",
    "lowest": "lowest accuracy",
    "highest": "highest accuracy",
    "patched": "highest patch success",
    "params.intervention_type": "component",
    "metrics.accuracy": "accuracy",
    "metrics.peak_patch_success_rate": "peak patch success",
}
# Rate -> the columns with the ends of its 95% CI, and with its n.
INTERVALS = {
    name: (f"{name}_ci_low", f"{name}_ci_high", f"{name}_n")
    for name in ("lowest", "highest", "patched", "metrics.accuracy", "metrics.peak_patch_success_rate")
}
# Name -> column of studies, column of cells, whether in descending order. (Sorting by a click on a column header stays
# in the browser. No docstring: Streamlit would print it on the page.)
SORTS = {
    "": ("start_time", "start_time", True),
    "oldest first": ("start_time", "start_time", False),
    "name": ("name", "name", False),
    "highest accuracy": ("highest", "metrics.accuracy", True),
    "lowest accuracy": ("lowest", "metrics.accuracy", False),
    "highest patch success": ("patched", "metrics.peak_patch_success_rate", True),
}


def page() -> None:
    st.title("Runs")
    runs = all_runs()
    if runs is None:
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        matching = filtered(runs)
        sort = SORTS[choice("sort", "Sort by", list(SORTS), lambda name: name or "newest first", width=200)]
        only_cells = yes("cells", "Show cells instead of studies")
    chosen = list(dict.fromkeys(in_url("runs")))
    if missing := [run_id for run_id in chosen if run_id not in set(runs["run_id"])]:
        problem("The link names runs that are not in this store.", "\n".join(missing))
        chosen = [run_id for run_id in chosen if run_id not in missing]
    put(runs=chosen)
    if only_cells:
        cells = matching.filter(pl.col("parent_run_id").is_not_null() | (pl.col("role") == "cell"))
        cells = cells.sort(sort[1], descending=sort[2], nulls_last=True, maintain_order=True)
        cell_table(cells, chosen, "all cells")
        hidden = [run_id for run_id in chosen if run_id not in set(cells["run_id"])]
    else:
        studies = of_studies(runs, matching).sort(sort[0], descending=sort[2], nulls_last=True, maintain_order=True)
        study_table(studies, chosen)
        shown = set(chosen) & set(studies["run_id"])
        of_chosen = runs.filter(pl.col("run_id").is_in(chosen))["parent_run_id"].drop_nulls().to_list()
        under = runs.filter(pl.col("parent_run_id").is_in([*shown, *of_chosen])).sort("start_time")
        if len(under):
            st.subheader("Cells of the selected studies")
            cell_table(under, chosen, "cells below")
        hidden = [run_id for run_id in chosen if run_id not in {*studies["run_id"], *under["run_id"]}]
    if hidden:
        st.caption(f"Selected runs that the filters hide: {len(hidden)}.")
    if chosen:
        part(details, runs, chosen)
    else:
        st.caption("Select runs in the table. Selected runs are used on the other pages.")


def filtered(runs: pl.DataFrame) -> pl.DataFrame:
    """The runs that match the filters."""
    words = text("text", "Text", placeholder="name, model, prompt, id", width=200)
    conditions = [pl.lit(True)]
    for column, label in FILTERS.items():
        known = sorted(runs[column].drop_nulls().unique().to_list(), key=lambda v: (not v.isdecimal(), len(v), v))
        if wanted := several(column.rpartition(".")[2], label, known, width=150, placeholder="any"):
            conditions.append(pl.col(column).is_in(wanted))
    since, until = day("since", "From"), day("until", "To")
    if since:
        conditions.append(pl.col("start_time").dt.date() >= since)
    if until:
        conditions.append(pl.col("start_time").dt.date() <= until)
    searched = [column for column, dtype in runs.schema.items() if dtype == pl.String]
    for word in words.lower().split():
        # The whole text is searched, also where the table shows only the beginning of a name.
        conditions.append(pl.any_horizontal(pl.col(searched).str.to_lowercase().str.contains(word, literal=True)))
    return runs.filter(pl.all_horizontal(conditions))


def day(name: str, label: str) -> date | None:
    given = given_by_url(name)
    if given is not None:
        try:
            st.session_state[name] = date.fromisoformat(given[0] if given else "")
        except ValueError:
            st.session_state[name] = None
    picked = st.date_input(label, key=name, format="YYYY-MM-DD", width=130, value=None)
    put(**{name: picked})
    return picked if isinstance(picked, date) else None


def of_studies(runs: pl.DataFrame, matching: pl.DataFrame) -> pl.DataFrame:
    """Top-level runs that match, or of which a cell matches, with the rates of their cells."""
    is_child = pl.col("parent_run_id").is_in(runs["run_id"].implode())
    top = runs.filter(~is_child | pl.col("parent_run_id").is_null())
    mine = runs.with_columns(top=pl.when(is_child).then(pl.col("parent_run_id")).otherwise(pl.col("run_id")))
    hit = mine.filter(pl.col("run_id").is_in(matching["run_id"].implode()))["top"].unique()
    reached = mine.group_by("top").agg(
        cells=pl.len() - 1,
        models=listed("params.model"),
        hops=listed("params.hops"),
        lines=listed("params.seq_len"),
        **extreme("lowest", "metrics.accuracy", descending=False),
        **extreme("highest", "metrics.accuracy", descending=True),
        **extreme("patched", "metrics.peak_patch_success_rate", descending=True),
    )
    return top.filter(pl.col("run_id").is_in(hit.implode())).join(reached, left_on="run_id", right_on="top", how="left")


def extreme(name: str, rate: str, descending: bool) -> dict[str, pl.Expr]:
    """A group's lowest or highest rate, the ends of its 95% CI, and its n."""
    columns = (rate, *INTERVALS[rate])
    first = [pl.col(each).sort_by(rate, descending=descending, nulls_last=True).first() for each in columns]
    return dict(zip((name, *INTERVALS[name]), first, strict=True))


def listed(column: str) -> pl.Expr:
    values = pl.col(column).drop_nulls().str.strip_chars("[]").unique(maintain_order=True)
    return values.sort_by(values.str.zfill(4)).head(6).str.join(", ")


REACHED = ("lowest", "highest", "patched")
# Column widths in pixels: all columns but the last (experiment) fit on a page of 1280 pixels.
WIDTHS = {
    "name": 160,
    "status": 78,
    "kind": 100,
    "models": 86,
    "hops": 62,
    "lines": 48,
    "seq_len": 46,
    "cells": 48,
    **dict.fromkeys((*REACHED, "accuracy", "peak_patch_success_rate"), 156),
}


def study_table(studies: pl.DataFrame, chosen: list[str]) -> None:
    columns = ["start_time", "name", "status", "kind", "models", "hops", "lines", "cells"]
    selectable(
        studies.select(
            "run_id", *columns, *(each for name in REACHED for each in (name, *INTERVALS[name])), "experiment"
        ),
        chosen,
        "studies",
        min(330, 40 + 35 * len(studies)),
    )


def cell_table(cells: pl.DataFrame, chosen: list[str], key: str) -> None:
    columns = ["start_time", "name", "status", "kind", "params.model", "params.hops", "params.seq_len"]
    accuracy, patched = "metrics.accuracy", "metrics.peak_patch_success_rate"
    component = pl.col("params.intervention_type")
    estimated = pl.when(pl.col("kind") == "attribution").then(pl.format(f"{{}} ({ESTIMATED})", component))
    shown = cells.select(
        "run_id",
        *columns,
        *(accuracy, *INTERVALS[accuracy]),
        estimated.otherwise(component),
        *(patched, *INTERVALS[patched]),
        "experiment",
    )
    selectable(shown, chosen, key, min(330, 40 + 35 * len(cells)))


def selectable(shown: pl.DataFrame, chosen: list[str], key: str, height: int) -> None:
    """A table with selectable rows; the selection is kept in the URL."""
    ids = shown["run_id"].to_list()
    st.caption(f"{len(ids):,} {'rows' if len(ids) != 1 else 'row'}")
    rates = [name for name in INTERVALS if name in shown.columns]
    ends = {end for name in rates for end in INTERVALS[name]}
    visible = shown.with_columns(as_text(name) for name in rates).drop("run_id", *ends)
    visible = visible.with_columns(pl.col(pl.String).str.slice(0, 300))
    config: dict = {
        name: st.column_config.Column(
            NAMES.get(name, name.rpartition(".")[2].replace("_", " ")), width=WIDTHS.get(name.rpartition(".")[2])
        )
        for name in visible.columns
    }
    config["start_time"] = st.column_config.DatetimeColumn(NAMES["start_time"], format="YYYY-MM-DD HH:mm", width=118)
    rows = [row for row, run_id in enumerate(ids) if run_id in chosen]
    widget = table_key(f"{key} {hash(tuple(ids))}", rows)  # rows are selected by number: other runs need a new table

    def choose() -> None:
        """Uses the rows that were on screen: the store may have changed since."""
        now = [ids[row] for row in st.session_state[widget]["selection"]["rows"] if row < len(ids)]
        put_now(runs=[*(run_id for run_id in st.query_params.get_all("runs") if run_id not in set(ids)), *now])

    st.dataframe(
        visible,
        hide_index=True,
        height=height,
        placeholder="",
        column_config=config,
        on_select=choose,
        selection_mode="multi-row",
        selection_default={"selection": {"rows": rows}},  # type: ignore[arg-type]  (a plain dict will do)
        key=widget,
        lazy=False,
    )
    downloads(key, shown)


def as_text(rate: str) -> pl.Expr:
    """`` 97.0% [94.1, 98.5] n=200``, the known parts of it; padded, so that a click on the header sorts by the rate."""

    def percent(column: str) -> pl.Expr:
        return (100 * pl.col(column)).round(1).cast(pl.String)

    low, high, n = INTERVALS[rate]
    interval = (
        pl.format(" [{}, {}]", percent(low), percent(high)).str.replace("100.0]", "100]", literal=True).fill_null("")
    )
    size = pl.format(" n={}", pl.col(n).cast(pl.Int64)).fill_null("")
    return pl.format("{}%{}{}", percent(rate).str.pad_start(5), interval, size).alias(rate)


def details(runs: pl.DataFrame, picked: list[str]) -> None:
    """Links to the other pages, and the metrics and params of the run that was selected last."""
    ids = chosen_runs(runs)
    kinds = runs.filter(pl.col("run_id").is_in(ids))
    causal = kinds.filter(pl.col("params.intervention_type").is_not_null())
    with st.container(horizontal=True):
        query = [("runs", run_id) for run_id in picked]
        st.page_link("compare.py", label="Compare these runs", icon=":material/compare:", query_params=query)
        if len(causal):
            st.page_link(
                "causal_map.py",
                label="Causal map",
                icon=":material/grid_on:",
                query_params=[*query, ("run", causal["run_id"][-1])],
            )
        st.page_link("samples.py", label="Samples", icon=":material/list:", query_params=query)
    run = load(picked[-1])
    st.subheader("Run")
    literally(f"{run.name} · {run.status}\n{run.run_id}")
    row = runs.row(by_predicate=pl.col("run_id") == run.run_id, named=True)
    if address := mlflow_address(row["experiment_id"], run.run_id):
        st.link_button("Open in MLflow", address)
    said_of(run.status, run.tags.get("debug.error"))
    if run.kind is None:
        st.info("This run was not logged by this project. Its metrics and params are shown without interpretation.")
    if again := run.tags.get("debug.rerun_of"):
        st.caption("Re-run of:")
        literally(again + "\n" + run.tags.get("debug.rerun_verdict", run.tags.get("debug.rerun_changes", "")))
    numbers(run)
    pictures(run)


def numbers(run: LoggedRun) -> None:
    rows = [
        (name, value, *(run.metrics.get(f"{name}_{end}") for end in ("ci_low", "ci_high")), own_n(name, run.metrics))
        for name, value in sorted(run.metrics.items())
        if not name.endswith(("_ci_low", "_ci_high", "_n")) and "_by_layer/" not in name
    ]
    ends = {"value": pl.Float64, "from": pl.Float64, "to": pl.Float64, "n": pl.Int64}
    config = {
        "value": st.column_config.NumberColumn("value", format="%.4g"),
        "from": st.column_config.NumberColumn("95% CI low", format="%.3f"),
        "to": st.column_config.NumberColumn("95% CI high", format="%.3f"),
    }
    left, right = st.columns(2)
    if rows:
        frame = pl.DataFrame(rows, {"metric": pl.String, **ends}, orient="row")
        left.dataframe(
            frame,
            hide_index=True,
            placeholder="",
            column_config=config,  # type: ignore[arg-type]  (columns and texts)
            height=280,
        )
    if run.params:
        params = pl.DataFrame(sorted(run.params.items()), {"parameter": pl.String, "value": pl.String}, orient="row")
        right.dataframe(params.with_columns(pl.col("value").str.slice(0, 1000)), hide_index=True, height=280)


def pictures(run: LoggedRun) -> None:
    with st.expander("Files of this run"):
        names = run.artifacts()
        literally("\n".join(names) or "none")
        if "summary.json" in names and st.button("Show summary.json"):
            literally(json.dumps(run.summary, indent=1, ensure_ascii=False)[:20_000])


page()
