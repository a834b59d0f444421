"""Compare: a metric of the selected runs by hops, length and model; and a paired comparison of two runs, A and B."""

from __future__ import annotations

from collections import Counter

import polars as pl
import streamlit as st
from store import load, mean_of, samples_of
from view import (
    READING,
    all_runs,
    choice,
    chosen_runs,
    downloads,
    draw,
    in_url,
    literally,
    part,
    problem,
    put,
    run_label,
    yes,
)

from debug.causal_map import ESTIMATED, LEGACY, METRICS
from debug.causal_visualization.comparison import models_by_hops, rates, slopes
from debug.core import shared_programs
from debug.statistics import bootstrap_mean, mcnemar
from debug.tracking import LoggedRun

# Metrics of maps whose means compare: rates, and shares of the whole effect. (Comments: Streamlit prints docstrings.)
SHARED = [m for m in METRICS.values() if m.scale != "logit" and not m.of_control and m.name not in LEGACY]
MEASURES = {"accuracy": "accuracy", "patch_success_rate": "", "peak_patch_success_rate": "peak patch success rate"}
MEASURES |= {m.in_store: m.stored.replace("_", " ") if m.stored else m.title for m in SHARED}
SIGNED = [m.in_store for m in SHARED if m.signed]
# Rates that each pair of programs has -> the metric of a map behind it.
OF_PAIRS = {m.in_store: m.name for m in SHARED if not m.signed}
AXES = {"hops": "hops", "seq_len": "lines (seq_len)", "model": "model"}
ONE = "one"
# Settings of a cell besides model, hops and lines. Cells that differ in one of these are never averaged.
SETTING = {
    "kind": "{}",
    "generator": "{}",
    "prompt_template": "prompt {}",
    "few_shot": "{}-shot",
    "chat": "chat {}",
    "scoring": "scoring {}",
    "answer_parser": "parser {}",
    "component": "{}",
    "source": "source {}",
    "direction": "{}",
    "layer_window": "layer window {}",
    "positions": "positions {}",
}
ABLATIONS = {source: f"{source} ablation" for source in ("zero", "mean", "resample")}
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
            st.caption("No runs are selected on the Runs page. This is the newest study with cells to compare.")
    if missing := [run_id for run_id in in_url("runs") if run_id not in set(runs["run_id"])]:
        problem("The link names runs that are not in this store.", "\n".join(missing))
    chosen = runs.filter(pl.col("run_id").is_in(ids))
    measures = [name for name in MEASURES if chosen[f"metrics.{name}"].count()]
    if not measures:
        st.info("None of the selected runs has a metric to compare. Select accuracy or causal runs on the Runs page.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        measure = choice("measure", "Metric", measures, MEASURES.__getitem__, width=260)
        by = choice("by", "X axis", list(AXES), AXES.__getitem__, width=200)
        every = measured(chosen, measure)
        frame = every.head(MOST)
        # Facet at first by what varies and is not on the X axis: a series is a model or a run, not a cell.
        others = sorted((n for n in AXES if n != by), key=lambda n: n == "model" or frame[n].n_unique() < 2)
        at_first = [others[0]] if others[0] != "model" and frame[others[0]].n_unique() > 1 else []
        each = choice(
            "each",
            "Facet by",
            list(dict.fromkeys([*at_first, ONE, *others])),
            lambda n: AXES.get(n, "(none)"),
            width=220,
        )
        zoom = yes("raw", "Show the table")
    each = "" if each == ONE else each
    if len(every) > MOST:
        st.caption(f"The newest {MOST} of {len(every):,} cells.")
    frame = frame.with_columns(series=series(frame, by, each))
    numbers = (pl.col(name).cast(pl.Int64, strict=False) for name in ("seq_len", "hops"))
    in_order = frame.sort("model", *numbers, "series")
    signed, title = measure in SIGNED, title_of(measure, frame)
    part(lambda: draw(rates(in_order, by, title, each or None, signed), "rates", frame))
    cells = chosen.filter(pl.col("run_id").is_in(frame["run_id"].implode())).select(
        pl.col("params.generator").fill_null("?"),
        *(pl.col(f"params.{n}").fill_null("any") for n in ("hops", "seq_len")),
        pl.col("params.seed").cast(pl.Int64, strict=False),
    )
    places = [by, *([each] if each else []), "series"]
    if (repeated := frame.group_by(places).len()["len"].max()) and repeated > 1:  # type: ignore[operator]  (a number)
        st.caption(f"Runs of the same cells (up to {repeated}) are drawn small; the large points are their means.")
    if "patch_success_rate" in measure:
        st.caption("Patch success rate: interchange-intervention accuracy (IIA).")
    if note := shared_programs(cells.drop_nulls().iter_rows()):
        st.caption(note)
    if zoom:
        st.dataframe(frame.drop("series"), hide_index=True)
        downloads("table", frame)
    if any(frame[name].n_unique() > 1 for name in ("model", "hops", *SETTING)):
        part(by_hops, frame, title, signed)
    if len(frame) > 1:
        part(two_runs, chosen.filter(pl.col("run_id").is_in(frame["run_id"].implode())), frame, measure)


def by_hops(frame: pl.DataFrame, title: str, signed: bool) -> None:
    """The models on the cells that all of them have, and which cells are excluded for that."""
    st.subheader("Models by hops, mean over lengths")
    shared, left_out = common(frame)
    if shared.is_empty():
        st.info("The selected models have no cell in common (same task, prompt, kind of run, hops and lines).")
    else:
        numbers = (pl.col(name).cast(pl.Int64, strict=False) for name in ("seq_len", "hops"))
        shared = shared.with_columns(model="row").drop("row").sort("model", *numbers)
        lengths = shared["seq_len"].unique(maintain_order=True).to_list()
        if len(lengths) == 1 and lengths[0].isdecimal():
            st.caption(f"Each value is of programs of {lengths[0]} lines.")
        else:
            st.caption("Each value is the mean over these numbers of lines:")
            literally(", ".join(lengths))
        draw(models_by_hops(shared, title, signed), "models-by-hops", shared)
    if left_out:
        st.caption("Excluded:")
        literally("\n".join(left_out))


def title_of(measure: str, frame: pl.DataFrame) -> str:
    """The metric's name; with "estimated" where all values are estimates. Where only some are, their series say so."""
    return f"{ESTIMATED} {MEASURES[measure]}" if set(frame["kind"]) == {"attribution"} else MEASURES[measure]


def newest_study(runs: pl.DataFrame) -> list[str]:
    """The newest study whose cells have accuracies; one with several such cells is preferred."""
    cells = runs.filter(pl.col("metrics.accuracy").is_not_null() & pl.col("parent_run_id").is_not_null())
    studies = cells.group_by("parent_run_id", maintain_order=True).len().sort(pl.col("len") < 2, maintain_order=True)
    return studies["parent_run_id"].head(1).to_list()


def measured(chosen: pl.DataFrame, measure: str) -> pl.DataFrame:
    """One row per run that has the metric, newest first: its coordinates and settings as text, value, 95% CI and n.

    ``model`` is the label, which may name prompt settings; ``of`` is the model alone.
    """
    estimated = pl.when(pl.col("kind") == "attribution").then(pl.lit(f" ({ESTIMATED})")).otherwise(pl.lit(""))
    params = [name for name in SETTING if name not in ("kind", "component")]
    frame = chosen.filter(pl.col(f"metrics.{measure}").is_not_null()).select(
        "run_id",
        pl.coalesce("params.label", "params.model", pl.lit("(no model)")).alias("model"),
        pl.coalesce("params.model", "params.label", pl.lit("(no model)")).alias("of"),
        pl.col("params.hops").fill_null("any").alias("hops"),
        pl.col("params.seq_len").fill_null("any").alias("seq_len"),
        pl.col("kind").fill_null(""),
        pl.format("{}{}", pl.col("params.intervention_type").fill_null(""), estimated).alias("component"),
        *(pl.col(f"params.{name}").fill_null("").alias(name) for name in params),
        pl.col("experiment"),
        pl.coalesce("parent_run_id", "run_id").alias("study"),
        pl.col("name"),
        pl.col(f"metrics.{measure}").alias("value"),
        pl.col(f"metrics.{measure}_ci_low").alias("ci_low"),
        pl.col(f"metrics.{measure}_ci_high").alias("ci_high"),
        pl.col(f"metrics.{measure}_n").alias("n"),
        pl.col("weights_digest"),
    )
    weights = pl.col("weights_digest")
    several = weights.drop_nulls().n_unique().over("model") > 1  # two folders of one name are two models
    own = {name: pl.format("{} ({})", name, weights.str.slice(0, 6)) for name in ("model", "of")}
    return frame.with_columns(
        pl.when(several & weights.is_not_null()).then(text).otherwise(name).alias(name) for name, text in own.items()
    ).drop("weights_digest")


def common(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The cells that can be compared, with the column ``row`` (a model in one setting), and what is excluded.

    Every row has the same numbers of hops, each on the same numbers of lines, and one run per cell: the newest.
    Settings are those that all models have.
    """
    left_out = []
    newest = frame.unique(["of", *SETTING, "hops", "seq_len"], keep="first", maintain_order=True)
    if older := len(frame) - len(newest):
        left_out.append(f"older runs of repeated cells: {older}")
    asked = pl.struct(*SETTING)
    alike = newest.filter(pl.col("of").n_unique().over(asked) == newest["of"].n_unique())
    if len(alike) < len(newest):
        others = newest.join(alike, on="run_id", how="anti")
        told = others.select(setting(varying(newest))).to_series().unique(maintain_order=True)
        left_out.append(f"cells with settings that not all models have: {len(others)} ({'; '.join(told)})")
    if alike.is_empty():
        return alike.with_columns(row=pl.lit("")), left_out
    names = varying(alike)
    alike = alike.with_columns(row=pl.concat_str("of", setting(names), separator=" · ") if names else pl.col("of"))
    rows = alike["row"].n_unique()
    shared = alike.filter(pl.col("row").n_unique().over("hops", "seq_len") == rows)
    on_all = shared.filter(pl.col("hops").n_unique().over("seq_len") == shared["hops"].n_unique())
    if on_all.is_empty() and len(shared):  # no number of lines has all hops: that with the most of them
        most = pl.col("hops").n_unique().over("seq_len")
        on_all = shared.filter(
            pl.col("seq_len") == shared.sort(most, descending=True, maintain_order=True)["seq_len"][0]
        )
    if len(on_all) < len(alike):
        others = alike.join(on_all, on="run_id", how="anti")
        cells = others.select(pl.format("hops {} · {} lines", "hops", "seq_len")).to_series().unique().sort()
        left_out.append(f"cells with hops and lines that not all models have: {len(others)} ({'; '.join(cells)})")
    return on_all, left_out


def varying(frame: pl.DataFrame) -> list[str]:
    """The settings in which cells differ."""
    return [name for name in SETTING if frame[name].n_unique() > 1]


def setting(names: list[str]) -> pl.Expr:
    words = [pl.when(pl.col(n) != "").then(as_words(n)).otherwise(pl.lit(f"no {n}")) for n in names]
    return pl.concat_str(words, separator=" · ") if words else pl.lit("")


def as_words(name: str) -> pl.Expr:
    """A setting of a cell as text."""
    value = pl.col(name).replace(ABLATIONS) if name == "source" else pl.col(name)
    return pl.format(SETTING[name], value)


def series(frame: pl.DataFrame, by: str, each: str) -> pl.Series:
    """The name of each point's series: what varies and is on no axis, and the settings in which runs of one model
    differ; the experiment only where all of these are equal. Runs of one series at one place are replicates."""
    words = {"model": "{}", "hops": "hops {}", "seq_len": "{} lines"}
    told = [name for name in words if name not in (by, each) and frame[name].n_unique() > 1]
    asked = [name for name in SETTING if frame.select(pl.col(name).n_unique().over("model").max()).item() > 1]
    shown = [pl.format(text, name) for name, text in words.items() if name in told]
    shown += [as_words(name) for name in asked]
    told += asked
    axes = [by, *([each] if each else [])]
    if frame["experiment"].n_unique() > 1 and not frame.select(*axes, *told).is_unique().all():
        shown.append(pl.col("experiment"))
    if not shown:
        return pl.Series("series", frame["model"])
    return frame.select(pl.concat_str(shown, separator=" · "))[:, 0].alias("series")


def two_runs(cells: pl.DataFrame, frame: pl.DataFrame, measure: str) -> None:
    """A slope for each cell that two models (or two runs) share; and the paired difference of two runs."""
    st.subheader("Paired comparison")
    rows = {row["run_id"]: row for row in cells.iter_rows(named=True)}
    options = [run_id for run_id in frame["run_id"].to_list() if run_id in rows]
    shapes = Counter(shape(rows[run_id]) for run_id in options)
    options.sort(key=lambda run_id: shapes[shape(rows[run_id])] < 2)  # comparable runs first
    left, right = st.columns(2)
    with left:
        first = choice("first", "Run A", options, lambda run_id: run_label(rows[run_id]))
    with right:
        rest = [run_id for run_id in options if run_id != first]
        rest.sort(key=lambda run_id: shape(rows[run_id]) != shape(rows[first]))
        second = choice("second", "Run B", rest, lambda run_id: run_label(rows[run_id]))
    slope = slope_frame(frame, first, second) if shape(rows[first]) == shape(rows[second]) else None
    if slope is not None:
        sides = dict(zip(slope["run"].unique(maintain_order=True), "AB", strict=False))
        named = slope.with_columns(run=pl.format("{}: {}", pl.col("run").replace_strict(sides), "run"))
        part(draw, slopes(named, title_of(measure, frame), measure in SIGNED), "slopes", slope)
    part(paired, first, second, measure)


def shape(row: dict) -> tuple:
    """Equal for two runs whose programs can be compared."""
    names = ("hops", "seq_len", "generator", "seed")
    return row["kind"], *(row.get(f"params.{name}") for name in names)


def slope_frame(frame: pl.DataFrame, first: str, second: str) -> pl.DataFrame | None:
    """A and B as the sides of slopes: of different models the cells that both have, of one model the two runs alone."""
    one, other = (frame.row(by_predicate=pl.col("run_id") == run_id, named=True) for run_id in (first, second))
    if one["of"] == other["of"]:
        sides = frame.filter(pl.col("run_id").is_in([first, second]))
        name = pl.format("hops {} · {} lines · {}", "hops", "seq_len", pl.col("run_id").str.slice(0, 6))
        if names := varying(sides):
            name = pl.concat_str(name, setting(names), separator=" · ")
        sides = sides.with_columns(run=name, cell=pl.lit("A and B"))
        sides = sides.sort(pl.col("run_id") != first, maintain_order=True)
    else:
        sides, _ = common(frame.filter(pl.col("of").is_in([one["of"], other["of"]])))
        cell = pl.format("hops {} · {} lines", "hops", "seq_len")
        if names := varying(sides):
            cell = pl.concat_str(cell, setting(names), separator=" · ")
        sides = sides.with_columns(run=pl.col("of"), cell=cell).sort(pl.col("of") != one["of"], maintain_order=True)
    return sides.select("run", "cell", "value", "ci_low", "ci_high", "n") if len(sides) else None


def paired(first: str, second: str, measure: str) -> None:
    """The difference on the programs that both runs have, and its paired test, where there is one."""
    try:
        if measure == "accuracy":
            by_program(first, second)
        elif measure in OF_PAIRS:
            by_pair(first, second, measure)
        else:
            st.info(f"There is no paired test of the {MEASURES[measure]}. Compare the 95% CIs of the runs.")
    except READING as error:
        problem("The two runs cannot be compared program by program.", error)


def by_pair(first: str, second: str, measure: str) -> None:
    """Of causal runs: the difference on the pairs that both runs patched."""
    one, other = (shares(load(run_id), OF_PAIRS[measure]) for run_id in (first, second))
    both = [pair for pair in one if pair in other]
    if not both:
        st.info("A and B have no pair of programs in common, so there is no paired comparison.")
        return
    st.caption(
        f"{MEASURES[measure].capitalize()} on the same pairs of programs: A − B, the mean over pairs of "
        "each pair's own rate, 95% CI"
    )
    literally(bootstrap_mean([one[pair] - other[pair] for pair in both], is_rate=True, bounds=(-1, 1)))


def shares(run: LoggedRun, metric: str) -> dict[tuple[str, str], float]:
    """(Original, counterfactual) -> the pair's own rate: the share of interventions at its targets with the metric."""
    pairs, maps = run.pairs, run.maps
    of_map = mean_of(run)[1].of_each(metric)
    at = {number: maps[number].pair for number in of_map}
    known = {number: pairs[pair] for number, pair in at.items() if 0 <= pair < len(pairs)}
    return {(known[n].original.text, known[n].counterfactual.text): of_map[n] for n in known}


def by_program(first: str, second: str) -> None:
    """The difference in accuracy, its test, and the programs on which the two runs disagree."""
    one, other = (answered(run_id) for run_id in (first, second))
    both = one.join(other, on="program", how="inner", suffix="_second", maintain_order="left")
    if both.is_empty():
        st.info("A and B have no program in common, so there is no paired comparison.")
        return
    result = mcnemar(both["correct"].to_numpy(), both["correct_second"].to_numpy())
    st.caption("Accuracy on the same programs: A − B with 95% CI, correct only in A : only in B, exact McNemar test")
    literally(result)
    apart = both.filter(pl.col("correct") != pl.col("correct_second")).select(
        "program",
        "expected",
        first="parsed",
        second="parsed_second",
        correct=pl.when("correct").then(pl.lit("first")).otherwise(pl.lit("second")),
    )
    if apart.is_empty():
        st.caption(f"A and B agree on all programs ({len(both):,}).")
        return
    st.caption(f"{len(apart):,} of {len(both):,} programs that only one of A and B answers correctly")
    table = apart.with_columns(pl.col(pl.String).str.slice(0, 500).str.replace_all("\n", " ⏎ ", literal=True))
    named = {"first": "answer of A", "second": "answer of B", "correct": "correct run"}
    st.dataframe(
        table.head(1000).with_columns(pl.col("correct").replace({"first": "A", "second": "B"})),
        hide_index=True,
        height=min(300, 40 + 35 * len(apart)),
        column_config={name: st.column_config.Column(label) for name, label in named.items()},
    )
    downloads("disagreements", apart)


def answered(run_id: str) -> pl.DataFrame:
    """The programs of a run that were prompted and scored, each once."""
    samples = samples_of(load(run_id)).filter(pl.col("correct").is_not_null(), pl.col("program").is_not_null())
    return samples.unique("program", keep="first", maintain_order=True).select(
        "program", "correct", pl.col("expected", "parsed").cast(pl.String)
    )


page()
