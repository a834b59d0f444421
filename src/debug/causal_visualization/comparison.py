"""Comparisons of runs: rates with confidence intervals, models by hops, slopes of two runs, training curves."""

from __future__ import annotations

import re

import altair as alt
import polars as pl

from debug.causal_visualization.interactive import Chart
from debug.causal_visualization.style import CATEGORIES, INK, axis_of, visible
from debug.errors import InputError

_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
_DASHES = [[1, 0], [6, 3], [2, 2]]


def rates(frame: pl.DataFrame, x: str, title: str, panel: str | None = None, signed: bool = False) -> Chart:
    """A metric with its 95% CI over ``x``; each series has its own colour and shape.

    Where several runs of a series have one place, they are replicates: small points with their own intervals, and a
    large one for their mean, through which the line goes.

    Args:
        frame: one row per cell: series, value, ci_low, ci_high (null: no interval), n, and x and panel as text.
        x: hops, seq_len or model; points of the first two are joined by lines.
        panel: the column to facet by.
        signed: the values are not rates, and their axis does not end at 0 and 1.

    Raises:
        InputError: there are more series than distinguishable combinations of colour and shape.
    """
    frame = frame.with_columns(
        pl.col("series").map_elements(named_series, pl.Utf8), pl.col("model").map_elements(named_series, pl.Utf8)
    )
    series = frame["series"].unique(maintain_order=True).to_list()
    if len(series) > len(CATEGORIES) * len(_SHAPES):  # 8 and 7 are coprime: no combination repeats
        raise InputError(f"{len(series)} series cannot be told apart in one chart; use a facet (Facet by)")
    colours, shapes, dashes = ([of[i % len(of)] for i in range(len(series))] for of in (CATEGORIES, _SHAPES, _DASHES))
    legend = alt.Legend(
        orient="top", labelLimit=260, columns=3, symbolLimit=0, symbolOpacity=1, symbolStrokeWidth=0, title=None
    )
    scale = alt.Scale() if signed else alt.Scale(domain=[0, 1])
    form = ".3f" if signed else ".1%"
    drawn = with_means(frame, [x, *([panel] if panel else [])])
    base = alt.Chart(drawn).encode(
        x=alt.X(
            f"{x}:N", sort=_ordered(frame[x]), axis=alt.Axis(labelAngle=0 if x != "model" else -30, labelLimit=180)
        ).title({"seq_len": "lines (seq_len)"}.get(x, x)),
        color=alt.Color(
            "series:N",
            scale=alt.Scale(domain=series, range=colours),
            legend=legend,
        ),
        tooltip=[
            alt.Tooltip("series:N"),
            alt.Tooltip("hops:N"),
            alt.Tooltip("seq_len:N", title="lines"),
            alt.Tooltip("value:Q", format=form, title=title),
            alt.Tooltip("ci_low:Q", format=form, title="95% CI low"),
            alt.Tooltip("ci_high:Q", format=form, title="95% CI high"),
            alt.Tooltip("n:Q", format=",d", title="n"),
            alt.Tooltip("runs:Q", title="runs (the value is their mean)"),
        ],
    )
    if x == "model" or len(series) > 1:
        base = base.encode(xOffset=alt.XOffset("series:N", sort=series))
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(format="" if signed else "%", tickCount=5, labelFlush=False)).title(
        title
    )
    main = base.transform_filter("!datum.replicate")
    layers = [
        main.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q"),
        main.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, shape=alt.Shape("series:N", scale=alt.Scale(domain=series, range=shapes), legend=legend)
        ),
    ]
    if x != "model":
        dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=series, range=dashes), legend=None)
        layers.insert(0, main.mark_line(opacity=0.5).encode(y=y, strokeDash=dash))
    if drawn["replicate"].any():
        single = base.transform_filter("datum.replicate")
        ends = single.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)")
        shape = alt.Shape("series:N", scale=alt.Scale(domain=series, range=shapes), legend=legend)
        layers += [
            ends.mark_rule(strokeWidth=1, opacity=0.4).encode(y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q"),
            single.mark_point(filled=True, size=20, opacity=0.6).encode(y=y, shape=shape),
        ]
    width = frame[x].n_unique() * max(34, min(90, 14 * len(series) + 16))
    if panel is None:
        return alt.layer(*layers).properties(width=max(420, min(1100, width)), height=260)  # type: ignore[arg-type]  (charts)
    width = max(200, min(1000, width))
    chart = alt.layer(*layers).properties(width=width, height=160)  # type: ignore[arg-type]  (charts)
    columns = max(1, min(4, 1000 // (width + 60)))
    unit = {"seq_len": "lines: ", "hops": "hops: "}.get(panel, "")
    facet = alt.Facet(f"{panel}:N", sort=_ordered(frame[panel]), header=alt.Header(labelExpr=f"'{unit}' + datum.label"))
    return chart.facet(facet.title(None), columns=columns)


def with_means(frame: pl.DataFrame, axes: list[str]) -> pl.DataFrame:
    """The rows of a chart: runs that are alone at their place as they are, with ``runs`` = 1; of others their mean,
    without an interval and without a number of samples (runs may have asked the same ones), and each of them with
    ``replicate`` = True."""
    places = [*axes, "series"]
    frame = frame.with_columns(runs=pl.len().over(places), replicate=pl.len().over(places) > 1)
    several = frame.filter("replicate")
    mean = {"value": pl.col("value").mean(), "runs": pl.len(), "replicate": pl.lit(False)}
    ends = {name: pl.lit(None, frame[name].dtype) for name in ("ci_low", "ci_high", "n") if name in frame.columns}
    others = [pl.col(name).first() for name in frame.columns if name not in (*places, *mean, *ends)]
    means = several.group_by(places, maintain_order=True).agg(*others, **mean, **ends)
    alone = frame.filter(~pl.col("replicate"))
    return pl.concat([alone, means.select(frame.columns), several.with_columns(runs=pl.lit(1))], how="vertical_relaxed")


def models_by_hops(frame: pl.DataFrame, title: str, signed: bool = False) -> Chart:
    """Heatmap of models x hops. Each value is a mean over lengths, with its number of runs, and of samples where all
    are known; the 95% CI where it is a single run. Frame as for :func:`rates`."""
    named = frame.with_columns(pl.col("model").map_elements(named_series, pl.Utf8))
    cells_of = named.group_by("model", "hops", maintain_order=True)
    titles = {"ci_low": "95% CI low", "ci_high": "95% CI high"}
    titles = {end: text for end, text in titles.items() if end in frame.columns}
    ends = [pl.when(pl.len() == 1).then(pl.col(end).first()).alias(end) for end in titles]
    n = pl.when(pl.col("n").is_not_null().all()).then(pl.col("n").sum()).alias("n")
    frame = cells_of.agg(pl.col("value").mean(), pl.len().alias("cells"), n, *ends).with_columns(
        how_many=pl.format("n={}", pl.col("n").cast(pl.Int64))
    )
    end = max(float(frame["value"].abs().max() or 0), 1e-9) if signed else 1.0  # type: ignore[arg-type]  (polars: a number)
    form = ".3f" if signed else ".1%"
    base = alt.Chart(frame).encode(
        x=alt.X("hops:N", sort=_ordered(frame["hops"]), axis=axis_of()),
        y=alt.Y("model:N", sort=None, axis=axis_of(labelLimit=240)).title(None),
        tooltip=[
            "model:N",
            "hops:N",
            alt.Tooltip("value:Q", format=form, title=title),
            *(alt.Tooltip(f"{end}:Q", format=form, title=text) for end, text in titles.items()),
            alt.Tooltip("cells:Q", title="runs"),
            alt.Tooltip("n:Q", format=",d"),
        ],
    )
    legend = legend_of()
    if not signed:
        legend.format = "%"
    colour = alt.Color("value:Q", scale=scale_of(signed, end), legend=legend).title(title)
    ink = alt.when(f"abs(datum.value) > {0.7 * end}").then(alt.value("white")).otherwise(alt.value(INK))
    numbers = base.mark_text(fontSize=11, dy=-5).encode(
        text=alt.Text("value:Q", format=".2f" if signed else ".0%"), color=ink
    )
    sizes = base.mark_text(fontSize=9, dy=7).encode(text="how_many:N", color=ink)
    return alt.layer(base.mark_rect().encode(color=colour), numbers, sizes).properties(
        width=alt.Step(60), height=alt.Step(34)
    )


def slopes(frame: pl.DataFrame, title: str, signed: bool = False) -> Chart:
    """A line from the value of A to the value of B, for each cell that both have.

    Args:
        frame: one row per cell and run: cell, run (a name; the first of two is A), value, ci_low, ci_high (null: none)
            and n.
    """
    sides = frame["run"].unique(maintain_order=True).to_list()
    cells_of, form = frame["cell"].unique(maintain_order=True).to_list(), ".3f" if signed else ".1%"
    scale = alt.Scale(zero=False) if signed else alt.Scale(domain=[0, 1])
    base = alt.Chart(frame).encode(
        x=alt.X(
            "run:N",
            sort=sides,
            scale=alt.Scale(paddingInner=0.75, paddingOuter=0.3),  # most of the width for the lines
            axis=alt.Axis(labelAngle=0, labelLimit=170),
        ).title(None),
        y=alt.Y(
            "value:Q", scale=scale, axis=alt.Axis(format="" if signed else "%", tickCount=5, labelFlush=False)
        ).title(title),
        color=alt.Color("cell:N", scale=alt.Scale(range=CATEGORIES), legend=alt.Legend(title=None, labelLimit=240)),
        tooltip=[
            "cell:N",
            "run:N",
            alt.Tooltip("value:Q", format=form, title=title),
            alt.Tooltip("ci_low:Q", format=form, title="95% CI low"),
            alt.Tooltip("ci_high:Q", format=form, title="95% CI high"),
            alt.Tooltip("n:Q", format=",d"),
        ],
    )
    intervals = base.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)").encode(
        y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q", xOffset=alt.XOffset("cell:N", sort=cells_of)
    )
    offset = base.encode(xOffset=alt.XOffset("cell:N", sort=cells_of))
    return alt.layer(
        intervals.mark_rule(strokeWidth=2, opacity=0.6),
        offset.mark_line(),
        offset.mark_point(filled=True, size=60, opacity=1),
    ).properties(width=190 * len(sides), height=230)


def named_series(text: str) -> str:
    """A name that came from data, in one line; spaces and dots stay what they are."""
    shown = "".join(c if c in " ·" else visible(c) for c in text[:80])
    return shown if len(text) <= 80 else f"{shown}…"


def _ordered(values: pl.Series) -> list[str]:
    """Sorted, numbers in texts by their size."""
    return sorted(values.unique(), key=lambda text: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", text)])


def scale_of(signed: bool, end: float) -> alt.Scale:
    if signed:
        return alt.Scale(scheme="purpleorange", domain=[-end, end], domainMid=0, clamp=True)
    return alt.Scale(scheme={"name": "purpleorange", "extent": [0.5, 1]}, domain=[0, end])


def legend_of() -> alt.Legend:
    return alt.Legend(
        orient="top", direction="horizontal", gradientLength=160, gradientThickness=10, titleLimit=240, offset=8
    )


def over_steps(frame: pl.DataFrame, title: str) -> Chart:
    """Training curves: one colour per series, one facet per panel.

    Args:
        frame: one row per measurement: step, value (a share), ci_low, ci_high and n (null: not known), series, panel.
    """
    series, panels = _ordered(frame["series"]), _ordered(frame["panel"])
    base = alt.Chart(frame).encode(
        x=alt.X("step:Q", axis=alt.Axis(tickCount=5, format="~s")).title("optimizer step"),
        y=alt.Y(
            "value:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, labelFlush=False)
        ).title(title),
        color=alt.Color(
            "series:N",
            sort=series,
            scale=alt.Scale(domain=series, range=CATEGORIES),
            legend=alt.Legend(
                symbolOpacity=1, orient="top"
            ),  # to the right of the charts a narrow page would cut it off
        ).title(None),
        tooltip=[
            "panel:N",
            "series:N",
            alt.Tooltip("step:Q", format=",d"),
            alt.Tooltip("value:Q", format=".1%", title=title),
            alt.Tooltip("ci_low:Q", format=".1%", title="95% CI low"),
            alt.Tooltip("ci_high:Q", format=".1%", title="95% CI high"),
            alt.Tooltip("n:Q", format=",d", title="programs"),
        ],
    )
    bands = base.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)").mark_area(opacity=0.12)
    chart = alt.layer(
        bands.encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q"),
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=30),
    ).properties(width=300, height=200)
    return chart.facet(alt.Facet("panel:N", sort=panels).title(None), columns=2)
