"""Compare: what the chosen runs reached, by hops, length and model; and two of them program by program."""

from __future__ import annotations

from collections import Counter

import polars as pl
import streamlit as st
from store import load, samples_of
from view import all_runs, choice, chosen_runs, downloads, draw, in_url, literally, part, problem, put, run_label, yes

from debug.core import shared_programs
from debug.dashboard_charts import models_by_hops, rates, slopes
from debug.statistics import mcnemar
from debug.tracking import TrackingError

MEASURES = {
    "accuracy": "accuracy",
    "patch_success_rate": "patch success rate",
    "peak_patch_success_rate": "peak patch success rate",
    "answer_kept_rate": "answers kept",
    "normalized_logit_diff": "normalized logit difference",
}
SIGNED = ("normalized_logit_diff",)
AXES = {"hops": "hops", "seq_len": "lines (seq_len)", "model": "model"}
MOST = 400  # cells of one comparison


def page() -> None:
    st.title("Compare")
    runs = all_runs()
    if runs is None:
        return
    ids = chosen_runs(runs)
    if not ids:
        put(runs=newest_study(runs))
        ids = chosen_runs(runs)
        if ids:
            st.caption("No runs were chosen on the page Runs: this is the newest study that has some to compare.")
    if missing := [run_id for run_id in in_url("runs") if run_id not in set(runs["run_id"])]:
        problem("The link names runs that are not in this store.", "\n".join(missing))
    chosen = runs.filter(pl.col("run_id").is_in(ids))
    measures = [name for name in MEASURES if chosen[f"metrics.{name}"].count()]
    if not measures:
        st.info("None of the chosen runs has a rate to compare. Choose accuracy or causal runs on the page Runs.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure = choice("measure", "Measure", measures, MEASURES.__getitem__, width=260)
        by = choice("by", "From left to right", list(AXES), AXES.__getitem__, width=200)
        each = choice(
            "each",
            "A small chart for each",
            ["", *(name for name in AXES if name != by)],
            lambda n: AXES.get(n, "(one chart)"),
            width=220,
        )
        zoom = yes("raw", "Show the table")
    frame = measured(chosen, measure)
    if len(frame) > MOST:
        st.caption(f"The newest {MOST} of {len(frame):,} cells.")
        frame = frame.head(MOST)
    frame = frame.with_columns(series=series(frame, by, each))
    numbers = (pl.col(name).cast(pl.Int64, strict=False) for name in ("seq_len", "hops"))
    in_order = frame.sort("model", *numbers, "series")
    signed, title = measure in SIGNED, MEASURES[measure]
    part(lambda: draw(rates(in_order, by, title, each or None, signed), "rates", frame))
    cells = chosen.filter(pl.col("run_id").is_in(frame["run_id"].implode())).select(
        pl.col("params.generator").fill_null("?"),
        *(pl.col(f"params.{n}").fill_null("any") for n in ("hops", "seq_len")),
        pl.col("params.seed").cast(pl.Int64, strict=False),
    )
    if note := shared_programs(cells.drop_nulls().iter_rows()):
        st.caption(note)
    if zoom:
        st.dataframe(frame.drop("series"), hide_index=True)
        downloads("table", frame)
    if frame["model"].n_unique() > 1 or frame["hops"].n_unique() > 1:
        st.subheader("Models by hops, mean over lengths")
        part(draw, models_by_hops(in_order, title, signed), "models-by-hops", frame)
    if len(frame) > 1:
        part(two_runs, chosen.filter(pl.col("run_id").is_in(frame["run_id"].implode())), frame, title, signed)


def newest_study(runs: pl.DataFrame) -> list[str]:
    """Of the studies whose cells have accuracies the newest, with more than one such cell where there is one."""
    cells = runs.filter(pl.col("metrics.accuracy").is_not_null() & pl.col("parent_run_id").is_not_null())
    studies = cells.group_by("parent_run_id", maintain_order=True).len().sort(pl.col("len") < 2, maintain_order=True)
    return studies["parent_run_id"].head(1).to_list()


def measured(chosen: pl.DataFrame, measure: str) -> pl.DataFrame:
    """A row a run that has the measure: its coordinates as text, value, interval, n."""
    n = "metrics.num_samples" if measure == "accuracy" else "metrics.pairs_used"
    frame = chosen.filter(pl.col(f"metrics.{measure}").is_not_null()).select(
        "run_id",
        pl.coalesce("params.label", "params.model", pl.lit("(no model)")).alias("model"),
        pl.col("params.hops").fill_null("any").alias("hops"),
        pl.col("params.seq_len").fill_null("any").alias("seq_len"),
        pl.col("params.intervention_type").fill_null("").alias("component"),
        pl.col("experiment"),
        pl.col("name"),
        pl.col(f"metrics.{measure}").alias("value"),
        pl.col(f"metrics.{measure}_ci_low").alias("ci_low"),
        pl.col(f"metrics.{measure}_ci_high").alias("ci_high"),
        pl.coalesce(n, "metrics.num_samples").alias("n"),
        pl.col("weights_digest"),
    )
    weights = pl.col("weights_digest")
    several = weights.drop_nulls().n_unique().over("model") > 1  # two folders of one name are two models
    own = pl.format("{} ({})", "model", weights.str.slice(0, 6))
    return frame.with_columns(model=pl.when(several & weights.is_not_null()).then(own).otherwise("model")).drop(
        "weights_digest"
    )


def series(frame: pl.DataFrame, by: str, each: str) -> pl.Series:
    """What tells the points of a chart apart: what varies and is on neither axis; the experiment, then run ids, only
    where all that is alike."""
    words = {"model": "{}", "hops": "hops {}", "seq_len": "{} lines", "component": "{}"}
    told = [name for name in words if name not in (by, each) and frame[name].n_unique() > 1]
    shown = [pl.format(words[name], name) for name in told]
    axes = [by, *([each] if each else [])]
    for name, text in (("experiment", pl.col("experiment")), ("run_id", pl.col("run_id").str.slice(0, 6))):
        if frame.select(*axes, *told).is_unique().all():
            break
        if frame[name].n_unique() > 1:
            told.append(name)
            shown.append(text)
    if not shown:
        return pl.Series("series", frame["model"])
    return frame.select(pl.concat_str(shown, separator=" · "))[:, 0].alias("series")


def two_runs(cells: pl.DataFrame, frame: pl.DataFrame, title: str, signed: bool) -> None:
    """A slope for each cell that two models (or two runs) share; and the paired difference of two runs."""
    st.subheader("Two of them")
    rows = {row["run_id"]: row for row in cells.iter_rows(named=True)}
    options = [run_id for run_id in frame["run_id"].to_list() if run_id in rows]
    shapes = Counter(shape(rows[run_id]) for run_id in options)
    options.sort(key=lambda run_id: shapes[shape(rows[run_id])] < 2)  # those that another one is comparable with
    left, right = st.columns(2)
    with left:
        first = choice("first", "First", options, lambda run_id: run_label(rows[run_id]))
    with right:
        rest = [run_id for run_id in options if run_id != first]
        rest.sort(key=lambda run_id: shape(rows[run_id]) != shape(rows[first]))
        second = choice("second", "Second", rest, lambda run_id: run_label(rows[run_id]))
    slope = slope_frame(frame, first, second)
    if slope is not None:
        part(draw, slopes(slope, title, signed), "slopes", slope)
    part(paired, first, second)


def shape(row: dict) -> tuple:
    """What two runs have in common whose programs are alike."""
    return row["params.hops"], row["params.seq_len"], row["kind"]


def slope_frame(frame: pl.DataFrame, first: str, second: str) -> pl.DataFrame | None:
    """All cells of the two runs' models where these differ, else the two runs alone."""
    one, other = (frame.row(by_predicate=pl.col("run_id") == run_id, named=True) for run_id in (first, second))
    if one["model"] == other["model"]:
        sides = frame.filter(pl.col("run_id").is_in([first, second])).with_columns(
            run=pl.format("hops {} · {} lines · {}", "hops", "seq_len", pl.col("run_id").str.slice(0, 6)),
            cell=pl.lit("these two"),
        )
    else:
        sides = frame.filter(pl.col("model").is_in([one["model"], other["model"]])).with_columns(
            run=pl.col("model"), cell=pl.format("hops {} · {} lines", "hops", "seq_len")
        )
        sides = sides.unique(["run", "cell"], keep="first", maintain_order=True)
        sides = sides.filter(pl.len().over("cell") == 2)
        sides = sides.sort(pl.col("model") != one["model"], maintain_order=True)
    return sides.select("run", "cell", "value", "ci_low", "ci_high", "n") if len(sides) else None


def paired(first: str, second: str) -> None:
    """The difference on the programs that both were asked, its test, and the programs on which they disagree."""
    try:
        one, other = (answered(run_id) for run_id in (first, second))
    except TrackingError as error:
        problem("The two cannot be compared program by program.", error)
        return
    both = one.join(other, on="program", how="inner", suffix="_second", maintain_order="left")
    if both.is_empty():
        st.info("The two runs share no program: their difference is not paired, and is not tested here.")
        return
    result = mcnemar(both["correct"].to_numpy(), both["correct_second"].to_numpy())
    st.caption("Accuracy on the same programs: first less second, correct by one alone, exact McNemar test")
    literally(result)
    apart = both.filter(pl.col("correct") != pl.col("correct_second")).select(
        "program",
        "expected",
        first="parsed",
        second="parsed_second",
        correct=pl.when("correct").then(pl.lit("first")).otherwise(pl.lit("second")),
    )
    if apart.is_empty():
        st.caption(f"They agree on each of {len(both):,} programs.")
        return
    st.caption(f"{len(apart):,} of {len(both):,} programs on which one is right and the other is not")
    table = apart.with_columns(pl.col(pl.String).str.slice(0, 500).str.replace_all("\n", " ⏎ ", literal=True))
    st.dataframe(table.head(1000), hide_index=True, height=min(300, 40 + 35 * len(apart)))
    downloads("disagreements", apart)


def answered(run_id: str) -> pl.DataFrame:
    """The programs of a run that were asked and read, each once."""
    samples = samples_of(load(run_id)).filter(pl.col("correct").is_not_null(), pl.col("program").is_not_null())
    return samples.unique("program", keep="first", maintain_order=True).select(
        "program", "correct", pl.col("expected", "parsed").cast(pl.String)
    )


page()
