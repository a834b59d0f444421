"""Compare: a metric of the selected runs over the parameter that varies most; and a paired comparison of two runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import polars as pl
import streamlit as st
from cells import (
    FACTORS,
    SETTING,
    Layout,
    common,
    file_name,
    layout,
    measured,
    not_drawn,
    one_value_each,
    setting,
    shown,
    sizes,
    that_fit,
    varying,
)
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
    several,
    yes,
)
from window import ROOM, window

from debug.causal_map import ESTIMATED, LEGACY, METRICS
from debug.causal_visualization.comparison import models_by, ordered, rates, slopes
from debug.core import shared_programs
from debug.errors import InputError
from debug.statistics import mcnemar, paired_means
from debug.tracking import LoggedRun

# Metrics of maps whose means compare: rates, and shares of the whole effect. (Comments: Streamlit prints docstrings.)
SHARED = [m for m in METRICS.values() if m.scale != "logit" and not m.of_control and m.name not in LEGACY]
PEAK = "peak_patch_success_rate"
MEASURES = {"accuracy": "accuracy", "patch_success_rate": "", PEAK: "peak patch success rate"}
MEASURES |= {m.in_store: m.stored.replace("_", " ") if m.stored else m.title for m in SHARED}
SIGNED = [m.in_store for m in SHARED if m.signed]
# Rates that each pair of programs has -> the metric of a map behind it.
OF_PAIRS = {m.in_store: m.name for m in SHARED if not m.signed}
T = TypeVar("T")
OVER = {"hops": "seq_len", "seq_len": "hops"}  # the axis of the table of models -> what its values are means over
AUTO, NONE = "auto", "none"
MOST = 2000  # cells of one comparison


def page() -> None:
    st.title("Compare")
    width, _ = window()
    runs = all_runs()
    if runs is None:
        return
    ids = chosen_runs(runs)
    if not ids:
        put(runs=newest_study(runs.filter(pl.col("archived").is_null())))
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
        measure = choice("measure", "Metric", measures, MEASURES.__getitem__, width=250)
        every = measured(chosen, measure)
        frame, of, left_out = arranged(every.head(MOST))
        zoom = yes("raw", "Show the table")
    if frame.is_empty():
        st.info("No cell is left. Take a filter away.")
        return
    signed, title = measure in SIGNED, title_of(measure, frame)
    names = {name: text for name, text in FACTORS.items() if name in of.places}
    if len(every) > MOST:
        left_out.append(f"all but the newest {MOST:,} of {len(every):,} cells")
    drawn = shown(frame)
    part(
        lambda: draw(
            rates(
                drawn,
                of.x,
                title,
                colour=of.colour,
                dash=of.dash,
                panel=of.panel,
                names=names,
                signed=signed,
                width=ROOM[width],
            ),
            file_name("rates", measure, frame),
            frame,
        )
    )
    said(frame, of, measure, left_out)
    cells = chosen.filter(pl.col("run_id").is_in(frame["run_id"].implode())).select(
        pl.col("params.generator").fill_null("?"),
        *(pl.col(f"params.{n}").fill_null("any") for n in ("hops", "seq_len")),
        pl.col("params.seed").cast(pl.Int64, strict=False),
    )
    if note := shared_programs(cells.drop_nulls().iter_rows()):
        st.caption(note)
    if zoom:
        st.dataframe(frame, hide_index=True)
        downloads(file_name("table", measure, frame), frame)
    if varying(frame, ("model", "hops", *SETTING)):
        part(by_model, frame, of, title, signed, measure)
    if len(frame) > 1:
        part(two_runs, chosen.filter(pl.col("run_id").is_in(frame["run_id"].implode())), frame, measure, ROOM[width])


def arranged(every: pl.DataFrame) -> tuple[pl.DataFrame, Layout, list[str]]:
    """The cells that are drawn, where each parameter goes (as the URL says, else what suits), and what is left out."""
    vary = varying(every)
    axes = st.container(horizontal=True, width="content")
    with st.popover("Filter"):
        frame = every
        for name in vary:
            picked = several(f"only_{name}", FACTORS[name], ordered(every[name]), as_value, placeholder="all")
            if picked:
                frame = frame.filter(pl.col(name).is_in(picked))
        if not vary:
            st.caption("The cells differ in no parameter.")
    asked: dict[str, str | None] = {}
    # Those that the URL names are known before the others are chosen, which follow from them.
    for widget, role in (("by", "x"), ("colour", "colour"), ("dash", "dash"), ("each", "panel")):
        given = next(iter(in_url(widget)), AUTO)
        if given in FACTORS or (given == NONE and role in ("dash", "panel")):
            asked[role] = None if given == NONE else given
    of = layout(frame, asked) if len(frame) else Layout("hops", "model")
    picks = (("by", "X axis", of.x), ("colour", "Colour", of.colour))
    picks += (("dash", "Dashes", of.dash), ("each", "Panels", of.panel))  # type: ignore[assignment]  (texts)
    for widget, label, now in picks:
        free = (NONE,) if widget in ("dash", "each") else ()
        options = list(dict.fromkeys([AUTO, *vary, "hops", "seq_len", "model", *free, *in_url(widget)[:1]]))
        options = [each for each in options if each in (AUTO, *FACTORS, *free)]
        with axes:
            choice(widget, label, options, shows(now), width=150)
    mixed = not_drawn(frame, of)
    frame, left_out = one_value_each(frame, mixed)
    frame, too_many = that_fit(frame, of)
    return frame, of, left_out + too_many


def shows(now: str | None) -> Callable[[str], str]:
    """An option in words; that of the automatic choice says what was chosen."""
    return lambda name: {AUTO: f"auto: {FACTORS.get(now or '', 'none')}", NONE: "none"}.get(name) or FACTORS[name]


def as_value(value: str) -> str:
    return value or "not recorded"


def said(frame: pl.DataFrame, of: Layout, measure: str, left_out: Sequence[str]) -> None:
    """Below the chart: what its values are of, and what it does not show."""
    if (repeated := frame.group_by(of.places).len()["len"].max()) and repeated > 1:  # type: ignore[operator]  (a number)
        st.caption(f"Runs of the same cells (up to {repeated}) are drawn small; the large points are their means.")
    if (told := sizes(frame)) is not None:
        st.text(told)
    if "patch_success_rate" in measure:
        st.caption("Patch success rate: interchange-intervention accuracy (IIA).")
    if left_out:
        st.caption("Not in this chart (choose under Filter, or another parameter for an axis):")
        literally("\n".join(left_out))


def by_model(frame: pl.DataFrame, of: Layout, title: str, signed: bool, measure: str) -> None:
    """The models on the cells that all of them have, and which cells are excluded for that."""
    by = (
        of.x
        if of.x in OVER
        else "seq_len"
        if frame["hops"].n_unique() < 2 and frame["seq_len"].n_unique() > 1
        else "hops"
    )
    over = OVER[by]
    st.subheader("Models by lines, mean over hops" if by == "seq_len" else "Models by hops, mean over lengths")
    shared, left_out = common(frame)
    if shared.is_empty():
        st.info("The selected models have no cell in common (same task, prompt, kind of run, hops and lines).")
    else:
        shared = shared.with_columns(model="row").drop("row")
        shared = shared.sort(in_order(shared, "model"), in_order(shared, "seq_len"), in_order(shared, "hops"))
        values = ordered(shared[over])
        if len(values) > 1:
            st.text(f"Each value is the mean over these {FACTORS[over]}: {', '.join(values)}")
        elif values[0].isdecimal():
            st.text(f"Each value is of programs of {values[0]} {FACTORS[over]}.")
        draw(models_by(by, shared, title, signed), file_name(f"models by {FACTORS[by]}", measure, frame), shared)
    if left_out:
        st.caption("Excluded:")
        literally("\n".join(left_out))


def in_order(frame: pl.DataFrame, name: str) -> pl.Series:
    """Ranks of the values of a column in natural order."""
    rank: Mapping[str, int] = {value: number for number, value in enumerate(ordered(frame[name]))}
    return frame[name].replace_strict(rank, return_dtype=pl.Int64).alias(f"rank of {name}")


def title_of(measure: str, frame: pl.DataFrame) -> str:
    """The metric's name; with "estimated" where all values are estimates. Where only some are, their series say so."""
    return f"{ESTIMATED} {MEASURES[measure]}" if set(frame["kind"]) == {"attribution"} else MEASURES[measure]


def newest_study(runs: pl.DataFrame) -> list[str]:
    """The newest study whose cells have accuracies, else any rate; one with several such cells is preferred."""
    for measure in MEASURES:
        cells = runs.filter(pl.col(f"metrics.{measure}").is_not_null() & pl.col("parent_run_id").is_not_null())
        studies = cells.group_by("parent_run_id", maintain_order=True).len()
        if len(studies):
            return studies.sort(pl.col("len") < 2, maintain_order=True)["parent_run_id"].head(1).to_list()
    return []


def two_runs(cells: pl.DataFrame, frame: pl.DataFrame, measure: str, room: int) -> None:
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
        chart = slopes(named, title_of(measure, frame), measure in SIGNED, room)
        part(draw, chart, file_name("slopes", measure, frame), slope)
    part(paired, first, second, measure)


def shape(row: dict) -> tuple:
    """Equal for two runs whose programs can be compared."""
    names = ("hops", "seq_len", "generator", "seed")
    return row["kind"], *(row.get(f"params.{name}") for name in names)


def slope_frame(frame: pl.DataFrame, first: str, second: str) -> pl.DataFrame | None:
    """A and B as the sides of slopes: of different models the cells that both have, of one model the two runs alone."""
    one, other = (frame.row(by_predicate=pl.col("run_id") == run_id, named=True) for run_id in (first, second))
    if one["model"] == other["model"]:
        sides = frame.filter(pl.col("run_id").is_in([first, second]))
        name = pl.format("hops {} · {} lines · {}", "hops", "seq_len", pl.col("run_id").str.slice(0, 6))
        if names := varying(sides, tuple(SETTING)):
            name = pl.concat_str(name, setting(names), separator=" · ")
        sides = sides.with_columns(run=name, cell=pl.lit("A and B"))
        sides = sides.sort(pl.col("run_id") != first, maintain_order=True)
    else:
        sides, _ = common(frame.filter(pl.col("model").is_in([one["model"], other["model"]])))
        cell = pl.format("hops {} · {} lines", "hops", "seq_len")
        if names := varying(sides, tuple(SETTING)):
            cell = pl.concat_str(cell, setting(names), separator=" · ")
        sides = sides.with_columns(run=pl.col("model"), cell=cell).sort(
            pl.col("model") != one["model"], maintain_order=True
        )
    return sides.select("run", "cell", "value", "ci_low", "ci_high", "n") if len(sides) else None


def paired(first: str, second: str, measure: str) -> None:
    """The difference on the programs that both runs have, and its paired test."""
    try:
        if measure == "accuracy":
            by_program(first, second)
        else:
            by_pair(first, second, measure)
    except READING as error:
        problem("The two runs cannot be compared program by program.", error)


def by_pair(first: str, second: str, measure: str) -> None:
    """Of causal runs: the difference on the pairs that both runs patched, and its test."""
    one, other = load(first), load(second)
    name = MEASURES[measure].capitalize()
    if measure == PEAK:
        sides = in_both(at_peak(one), at_peak(other))
        told = f"{name} on the same pairs, of odd number: A − B, each at its own peak, which pairs of even number chose"
        test = "successful only in A : only in B, exact McNemar test"
    elif measure in OF_PAIRS:
        metric = OF_PAIRS[measure]
        sides = in_both(*(of_each(run, mean_of(run)[1].of_each(metric)) for run in (one, other)))
        told = f"{name} on the same pairs of programs: A − B, the mean over pairs of each pair's own rate"
        test = "paired sign-flip test"
    else:
        sides = [influences(side) for side in in_both(parts_of_ratio(one), parts_of_ratio(other))]
        told = (
            f"{name} on the same pairs of programs: A − B, each the ratio of its mean change to its mean whole effect"
        )
        test = "paired sign-flip test"
    if not len(sides[0]):
        st.info("A and B have no pair of programs in common, so there is no paired comparison.")
        return
    st.caption(f"{told}. 95% CI, {test}")
    if measure == PEAK:
        literally(mcnemar(*(np.array(side, dtype=bool) for side in sides)))
    elif measure in OF_PAIRS:
        literally(paired_means(*sides, is_rate=True, bounds=(-1, 1)))
    else:
        literally(paired_means(*sides))


def in_both(one: Mapping[tuple[str, str], T], other: Mapping[tuple[str, str], T]) -> list[Sequence[T]]:
    """The values of A and of B on the pairs that both have, in one order."""
    both = [pair for pair in one if pair in other]
    return [[side[pair] for pair in both] for side in (one, other)]


def of_each(run: LoggedRun, values: Mapping[int, T]) -> dict[tuple[str, str], T]:
    """(Original, counterfactual) -> the value of the map of that pair."""
    pairs, maps = run.pairs, run.maps
    at = {number: maps[number].pair for number in values}
    known = {number: pairs[pair] for number, pair in at.items() if 0 <= pair < len(pairs)}
    return {(pair.original.text, pair.counterfactual.text): values[number] for number, pair in known.items()}


def at_peak(run: LoggedRun) -> dict[tuple[str, str], float]:
    """Whether each pair of odd number succeeds at the run's peak; nothing where it has none."""
    mean, over_pairs = mean_of(run)
    if (peak := mean.peak()) is None:
        return {}
    numbers, values = over_pairs.behind(peak.target, peak.layer)
    found = dict(zip(numbers, values["success"].tolist(), strict=True))
    return of_each(run, {number: value for number, value in found.items() if number % 2 and value == value})


def parts_of_ratio(run: LoggedRun) -> dict[tuple[str, str], tuple[float, float]]:
    """Each pair's change, and its whole effect as often: the overall value is the ratio of their sums."""
    return of_each(run, mean_of(run)[1].effects_of_each())


def influences(parts: Sequence[tuple[float, float]]) -> np.ndarray:
    """Values, one a pair, whose mean is the ratio of the sums, and whose spread is that ratio's (its linearization)."""
    if not parts:
        return np.zeros(0)
    change, whole = np.array(parts, dtype=float).T
    if not (total := whole.sum()):
        raise InputError("the whole effects of the pairs in common add up to 0: no change is a share of nothing")
    ratio = change.sum() / total
    return ratio + (change - ratio * whole) * len(whole) / total


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
