"""Home: what the newest studies found, what is running and how long it will take, and what failed and why."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import streamlit as st
from store import is_large, load, mean_of
from view import all_runs, chart_only, literally, number, part, prose, put_now, said_of_life

from debug.causal_visualization.thumbnails import accuracy_thumbnail, map_thumbnail
from debug.errors import DebugError
from debug.provenance import without_passwords
from debug.report import found, rate_in_words, rates_in_words
from debug.tracking import LoggedRun

CARDS = 6
PEAK = "peak_patch_success_rate"
WIDTH = 352  # pixels of a card: two fit on a page of 800, three on one of 1280
MOST_RUNNING, MOST_FAILED = 8, 5
NOT_DONE = ("RUNNING", "SCHEDULED")


def page() -> None:
    st.title("Studies")
    runs = all_runs()
    if runs is None:
        return
    runs = runs.filter(pl.col("archived").is_null()).sort("made", descending=True, nulls_last=True, maintain_order=True)
    top = runs.filter(pl.col("parent_run_id").is_null() | ~pl.col("parent_run_id").is_in(runs["run_id"].implode()))
    running = top.filter(pl.col("status").is_in(NOT_DONE))
    if len(running):
        st.session_state["live"] = True
        st.subheader("Running")
        for row in running.head(MOST_RUNNING).iter_rows(named=True):
            part(one_running, row, cells_of(runs, row))
    ended = top.filter(~pl.col("status").is_in(NOT_DONE) & (pl.col("status") != "FAILED"))
    failed = top.filter(pl.col("status") == "FAILED")
    if len(ended):
        st.subheader("Newest findings")
        shown = max(CARDS, number("show") or 0)
        with st.container(horizontal=True, gap="small"):
            for row in ended.head(shown).iter_rows(named=True):
                with st.container(border=True, width=WIDTH, gap="xsmall"):
                    part(card, row, cells_of(runs, row))
        if len(ended) > shown:
            st.button(f"Show more ({len(ended) - shown:,})", on_click=put_now, kwargs={"show": shown + CARDS})
    if len(failed):
        st.subheader("Failed")
        for row in failed.head(MOST_FAILED).iter_rows(named=True):
            heading(row)
            said = (row["error"] or "").strip().splitlines() or ["no reason was logged"]
            literally(without_passwords(said[-1][:300]))
        if len(failed) > MOST_FAILED:
            st.caption(f"{len(failed) - MOST_FAILED:,} more are listed on the Runs page.")


def cells_of(runs: pl.DataFrame, row: dict) -> pl.DataFrame:
    cells = runs.filter(pl.col("parent_run_id") == row["run_id"]).reverse()
    return cells if len(cells) else runs.filter(pl.col("run_id") == row["run_id"])


def heading(row: dict) -> None:
    """A link to the study's page, and the name as text: names are a store's."""
    started = f"{row['made']:%Y-%m-%d %H:%M}" if row["made"] else "no date"
    prose(row["name"] or "unnamed", strong=True)
    with st.container(horizontal=True, gap="small", vertical_alignment="center"):
        st.caption(f"{started} · {(row['kind'] or 'other').replace('_', ' ')}", width="content")
        query = {"run": row["run_id"]}
        st.page_link("study.py", label="Open", icon=":material/article:", query_params=query, width="content")


# --- a card ----------------------------------------------------------------------------------------------------------


def card(row: dict, cells: pl.DataFrame) -> None:
    heading(row)
    if row["status"] == "KILLED":
        st.caption("stopped before it was done")
    rates = rates_of(cells)
    causal = cells.filter(pl.col("params.intervention_type").is_not_null())
    if len(rates):
        for line in rates_in_words(rates)[:3]:
            prose(line)
        chart_only(accuracy_thumbnail(rates.head(60)))
    for run_id in causal["run_id"].head(1):
        run = load(run_id)
        if not (len(run.maps) and run.maps[0].targets):
            st.caption("No map to average.")
            return
        if is_large(run):
            peak, ends = f"metrics.{PEAK}", ("ci_low", "ci_high")
            low, high = (causal.row(0, named=True)[f"{peak}_{end}"] for end in ends)
            if (rate := causal[peak][0]) is not None:
                prose(f"peak patch success rate {rate_in_words(rate, low, high, causal[f'{peak}_n'][0])}")
            st.caption(f"{len(run.maps):,} pairs: the map is drawn when you open it.")
            return
        mean = mean_of(run)[0]
        for line in found(mean):
            prose(line)
        chart_only(map_thumbnail(mean))
    if len(causal) > 1:
        st.caption(f"The first of {len(causal)} cells.")
    if rates.is_empty() and causal.is_empty():
        said = {"cells": len(cells), "held-out accuracy": row["metrics.held_out_accuracy"]}
        st.caption(" · ".join(f"{name}: {value:g}" for name, value in said.items() if value is not None))


def rates_of(cells: pl.DataFrame) -> pl.DataFrame:
    """The accuracy of cells that patch nothing, as :func:`accuracy_chart` takes it."""
    there = pl.col("metrics.accuracy").is_not_null() & pl.col("params.intervention_type").is_null()
    return cells.filter(there).select(
        model=pl.coalesce("params.label", "params.model", pl.lit("model")),
        hops="params.hops",
        seq_len=pl.col("params.seq_len").cast(pl.Int64, strict=False).fill_null(0),
        accuracy="metrics.accuracy",
        ci_low="metrics.accuracy_ci_low",
        ci_high="metrics.accuracy_ci_high",
        n=pl.col("metrics.accuracy_n").cast(pl.Int64, strict=False),
    )


# --- running ---------------------------------------------------------------------------------------------------------


def one_running(row: dict, cells: pl.DataFrame) -> None:
    """How far a study is: cells that are done, and the samples of the one that it works at."""
    heading(row)
    study = load(row["run_id"])
    if not said_of_life(study):
        return
    done = int((~cells["status"].is_in(NOT_DONE)).sum()) if cells["run_id"][0] != row["run_id"] else 0
    working = [load(run_id) for run_id in cells.filter(pl.col("status").is_in(NOT_DONE))["run_id"].head(1)]
    for cell in working:
        wanted, samples = wanted_of(cell, study), samples_so_far(cell)
        spent = (datetime.now(UTC) - cell.start_time).total_seconds() if cell.start_time else None
        share = min(1.0, samples / wanted) if wanted else 0.0
        left = f", about {spent / samples * (wanted - samples):.0f} s left" if wanted and spent and samples > 1 else ""
        what = f"{samples:,} of {wanted:,}" if wanted else f"{samples:,} so far"
        st.progress(share, f"{done} cells done; this one: {what}{left}")


def wanted_of(cell: LoggedRun, study: LoggedRun) -> int | None:
    """How many samples or pairs a cell is to have; None where nobody said."""
    given = cell.params.get("num_seqs") or study.params.get("num_seqs") or ""
    return int(given) if given.isdecimal() else None


def samples_so_far(cell: LoggedRun) -> int:
    try:
        return sum(1 for _ in cell.sample_records())
    except DebugError:  # none yet
        return 0


page()
