"""Study: one study on one page, from the question to the command that repeats it; can be saved as one HTML file."""

from __future__ import annotations

import polars as pl
import streamlit as st
from store import load, mean_of
from view import all_runs, draw, exports_of, literally, one_run, part, prose, said_of

from debug.causal_map import MeanCausalMap
from debug.report import Chapter, chapters, report
from debug.tracking import LoggedRun


def page() -> None:
    st.title("Study")
    runs = all_runs()
    if runs is None:
        return
    alone = pl.col("parent_run_id").is_null() | ~pl.col("parent_run_id").is_in(runs["run_id"].implode())
    run_id = one_run(runs, alone | (pl.col("role") == "cell"), "a page", label="Study")
    if run_id is not None:
        part(show, run_id)


def show(run_id: str) -> None:
    run = load(run_id)
    exports_of(run)
    with st.container(horizontal=True, vertical_alignment="center"):
        query = [("runs", run.run_id)]
        st.download_button(
            "Save as HTML",
            lambda: report(run, mean),
            f"{run.run_id[:8]}.html",
            "text/html",
            icon=":material/download:",
            on_click="ignore",
        )
        st.page_link("compare.py", label="Compare its cells", icon=":material/compare:", query_params=query)
        st.page_link("causal_map.py", label="Causal map", icon=":material/grid_on:", query_params={"run": run_id})
        st.page_link("samples.py", label="Samples", icon=":material/list:", query_params=query)
    said_of(run.status, run.tags.get("debug.error"))
    for heading, make in chapters(run, mean).items():
        part(chapter, run, heading, make)


def mean(run: LoggedRun) -> MeanCausalMap:
    return mean_of(run)[0]


def chapter(run: LoggedRun, heading: str, make) -> None:
    made: Chapter | None = make()
    if made is None:
        return
    st.subheader(heading.partition(":")[0])
    for line in [*filter(None, heading.partition(": ")[2:]), *made.text]:
        prose(line)
    with st.container(horizontal=True, vertical_alignment="top"):
        for place, chart in enumerate(made.charts):
            draw(chart, f"{heading} {place}")
    if made.table is not None:
        st.dataframe(made.table, hide_index=True, width="content", placeholder="")
    if made.code:
        literally(made.code)


page()
