"""Comparisons of runs: rates with confidence intervals, models by hops, slopes of two runs, training curves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from debug.causal_visualization.interactive import Chart
from debug.causal_visualization.style import CATEGORIES, INK, axis_of, visible
from debug.errors import InputError
from debug.kinds import Argument

_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
_DASHES = [[1, 0], [6, 3], [2, 2], [10, 3, 2, 3]]
_FILLS = [1.0, 0.0, 0.5, 0.2]
MOST_COLOURS, MOST_DASHES = len(CATEGORIES) * len(_SHAPES), len(_DASHES)
"""How many values can be told apart in one chart: 8 colours and 7 shapes are coprime, no combination repeats."""


def rates(
    frame: pl.DataFrame,
    x: str,
    title: str,
    *,
    colour: str = "model",
    dash: str | None = None,
    panel: str | None = None,
    names: Mapping[str, str] | None = None,
    signed: bool = False,
    width: int = 1000,
) -> Chart:
    """A metric with its 95% CI over ``x``. Colour and shape tell one parameter, dashes and filling another.

    Where several runs have one place, they are replicates: small points with their own intervals, and a large one for
    their mean, through which the line goes.

    Args:
        frame: one row per run: value, ci_low, ci_high (null: no interval), n, and x, colour, dash and panel as text.
        x: points are joined by lines, unless it is model.
        panel: the column to facet by.
        names: column -> its name on screen, where that is another.
        signed: the values are not rates, and their axis does not end at 0 and 1.
        width: pixels that there are.

    Raises:
        InputError: there are more values of colour, or of dash, than can be told apart.
    """
    text = {each: pl.col(each).map_elements(named_series, pl.Utf8) for each in {x, colour, dash, panel} - {None}}
    frame = frame.with_columns(**text)  # type: ignore[arg-type]  (None is no key)
    for column, most in ((colour, MOST_COLOURS), (dash, MOST_DASHES)):
        if column is not None and frame[column].n_unique() > most:
            raise InputError(
                f"{frame[column].n_unique()} values of {column} cannot be told apart in one chart; at most {most} can: "
                "filter them, or put them on the x axis or into panels"
            )
    told = {**{each: each for each in (x, colour, dash, panel) if each}, **(names or {})}
    scale = alt.Scale() if signed else alt.Scale(domain=[0, 1])
    form = ".3f" if signed else ".1%"
    drawn = with_means(frame, list(dict.fromkeys(each for each in (x, colour, dash, panel) if each)))
    places, panels = ordered(frame[x]), ordered(frame[panel]) if panel else [""]
    columns = max(1, min(len(panels), width // max(300, 22 * len(places) + 80)))
    own = min(1200, (width - 40) // columns - 45 if panel else width - 90)
    of_colour, of_dash = ordered(frame[colour]), ordered(frame[dash]) if dash else []
    across = 1 if x == colour else len(of_colour)
    colours, shapes = ([of[i % len(of)] for i in range(len(of_colour))] for of in (CATEGORIES, _SHAPES))
    legend = None if x == colour else _legend(told[colour], max(1, width // (7 * max(map(len, of_colour)) + 60)))
    many = frame[x].str.len_chars().max() * 7 > own / len(places)  # type: ignore[operator]  (a number)
    base = alt.Chart(drawn).encode(
        x=alt.X(
            f"{x}:N", sort=places, axis=alt.Axis(labelAngle=-35 if many else 0, labelLimit=200, labelOverlap=False)
        ).title(told[x]),
        color=alt.Color(f"{colour}:N", scale=alt.Scale(domain=of_colour, range=colours)).legend(legend),
        tooltip=[
            *(alt.Tooltip(f"{each}:N", title=name) for each, name in told.items() if each in frame.columns),
            alt.Tooltip("value:Q", format=form, title=title),
            alt.Tooltip("ci_low:Q", format=form, title="95% CI low"),
            alt.Tooltip("ci_high:Q", format=form, title="95% CI high"),
            alt.Tooltip("n:Q", format=",d", title="n"),
            alt.Tooltip("runs:Q", title="runs (the value is their mean)"),
        ],
    )
    if across > 1 or of_dash:  # beside each other: intervals would hide one another
        beside = pl.concat_str([each for each in (colour, dash) if each], separator=" · ")
        drawn = drawn.with_columns(beside=beside)
        order = [f"{one} · {other}" if dash else one for one in of_colour for other in (of_dash or [""])]
        base = base.properties(data=drawn).encode(xOffset=alt.XOffset("beside:N", sort=order))
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(format="" if signed else "%", tickCount=5, labelFlush=False)).title(
        title
    )
    looks: dict[str, Any] = {  # encodings, of many types
        "shape": alt.Shape(f"{colour}:N", scale=alt.Scale(domain=of_colour, range=shapes)).legend(legend)
    }
    lines: dict[str, Any] = {}  # the same
    if dash:
        dashes = alt.Scale(domain=of_dash, range=_DASHES[: len(of_dash)])
        lines["strokeDash"] = alt.StrokeDash(f"{dash}:N", scale=dashes).legend(
            _legend(told[dash], 4, symbolType="stroke", symbolSize=600)
        )
        looks["fill"] = alt.Fill(f"{colour}:N", scale=alt.Scale(domain=of_colour, range=colours)).legend(None)
        looks["fillOpacity"] = alt.FillOpacity(
            f"{dash}:N", scale=alt.Scale(domain=of_dash, range=_FILLS[: len(of_dash)])
        ).legend(None)
    main = base.transform_filter("!datum.replicate")
    known = "isValid(datum.ci_low) && isValid(datum.ci_high)"
    ends = {"y": alt.Y("ci_low:Q", scale=scale), "y2": "ci_high:Q"}
    layers = [
        main.transform_filter(known).mark_rule(strokeWidth=2).encode(**ends, **lines),
        main.mark_point(size=60, opacity=1, strokeWidth=2, filled=not dash).encode(y=y, **looks),
    ]
    if x != "model":
        layers.insert(0, main.mark_line(opacity=0.6).encode(y=y, **lines))
    if drawn["replicate"].any():
        single = base.transform_filter("datum.replicate")
        layers += [
            single.transform_filter(known).mark_rule(strokeWidth=1, opacity=0.4).encode(**ends),
            single.mark_point(filled=True, size=20, opacity=0.6).encode(y=y, shape=looks["shape"]),
        ]
    if panel is None:
        return alt.layer(*layers).properties(width=own, height=320)  # type: ignore[arg-type]  (charts)
    chart = alt.layer(*layers).properties(width=own, height=200)  # type: ignore[arg-type]  (charts)
    header = alt.Header(labelExpr=f"'{told[panel]}: ' + datum.label", labelLimit=own)
    return chart.facet(alt.Facet(f"{panel}:N", sort=panels, header=header).title(None), columns=columns)


def _legend(title: str, columns: int, **settings: Argument) -> alt.Legend:
    return alt.Legend(
        orient="top", labelLimit=320, columns=min(6, columns), symbolLimit=0, symbolOpacity=1, title=title, **settings
    )


def with_means(frame: pl.DataFrame, places: list[str]) -> pl.DataFrame:
    """The rows of a chart: runs that are alone at their place as they are, with ``runs`` = 1; of others their mean,
    without an interval and without a number of samples (runs may have asked the same ones), and each of them with
    ``replicate`` = True."""
    frame = frame.with_columns(runs=pl.len().over(places), replicate=pl.len().over(places) > 1)
    several = frame.filter("replicate")
    mean = {"value": pl.col("value").mean(), "runs": pl.len(), "replicate": pl.lit(False)}
    ends = {name: pl.lit(None, frame[name].dtype) for name in ("ci_low", "ci_high", "n") if name in frame.columns}
    others = [pl.col(name).first() for name in frame.columns if name not in (*places, *mean, *ends)]
    means = several.group_by(places, maintain_order=True).agg(*others, **mean, **ends)
    alone = frame.filter(~pl.col("replicate"))
    return pl.concat([alone, means.select(frame.columns), several.with_columns(runs=pl.lit(1))], how="vertical_relaxed")


def models_by(by: str, frame: pl.DataFrame, title: str, signed: bool = False) -> Chart:
    """Heatmap of models x ``by`` (hops or seq_len). Each value is a mean over the other one, with its number of runs,
    and of samples where all are known; the 95% CI where it is a single run. Frame as for :func:`rates`."""
    named = frame.with_columns(pl.col("model").map_elements(named_series, pl.Utf8))
    cells_of = named.group_by("model", by, maintain_order=True)
    titles = {"ci_low": "95% CI low", "ci_high": "95% CI high"}
    titles = {end: text for end, text in titles.items() if end in frame.columns}
    ends = [pl.when(pl.len() == 1).then(pl.col(end).first()).alias(end) for end in titles]
    n = pl.when(pl.col("n").is_not_null().all()).then(pl.col("n").sum()).alias("n")
    frame = cells_of.agg(pl.col("value").mean(), pl.len().alias("cells"), n, *ends).with_columns(
        how_many=pl.format("n={}", pl.col("n").cast(pl.Int64).map_elements("{:,}".format, pl.String))
    )
    end = max(float(frame["value"].abs().max() or 0), 1e-9) if signed else 1.0  # type: ignore[arg-type]  (polars: a number)
    form = ".3f" if signed else ".1%"
    base = alt.Chart(frame).encode(
        x=alt.X(f"{by}:N", sort=ordered(frame[by]), axis=axis_of()).title({"seq_len": "lines"}.get(by, by)),
        y=alt.Y("model:N", sort=None, axis=axis_of(labelLimit=300)).title(None),
        tooltip=[
            "model:N",
            alt.Tooltip(f"{by}:N", title={"seq_len": "lines"}.get(by, by)),
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
        width=alt.Step(68), height=alt.Step(36)
    )


def slopes(frame: pl.DataFrame, title: str, signed: bool = False, width: int = 1000) -> Chart:
    """A line from the value of A to the value of B, for each cell that both have.

    Args:
        frame: one row per cell and run: cell, run (a name; the first of two is A), value, ci_low, ci_high (null: none)
            and n.
        width: pixels that there are.
    """
    sides = frame["run"].unique(maintain_order=True).to_list()
    cells_of, form = ordered(frame["cell"]), ".3f" if signed else ".1%"
    colours, shapes = ([of[i % len(of)] for i in range(len(cells_of))] for of in (CATEGORIES, _SHAPES))
    columns, each = 1 + (len(cells_of) - 1) // 12, 7 * max(map(len, cells_of)) + 60
    beside = 190 * len(sides) + 60 + columns * each <= width
    legend = alt.Legend(title=None, labelLimit=300, symbolLimit=0, symbolOpacity=1, columns=columns)
    if not beside:
        legend.orient, legend.columns = "bottom", max(1, width // each)
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
        color=alt.Color("cell:N", scale=alt.Scale(domain=cells_of, range=colours), legend=legend),
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
        offset.mark_point(filled=True, size=60, opacity=1).encode(
            shape=alt.Shape("cell:N", scale=alt.Scale(domain=cells_of, range=shapes), legend=legend)
        ),
    ).properties(width=190 * len(sides), height=max(230, 16 * min(12, len(cells_of))))


def named_series(text: str) -> str:
    """A name that came from data, in one line; spaces and dots stay what they are."""
    shown = "".join(c if c in " ·" else visible(c) for c in text[:80])
    return shown if len(text) <= 80 else f"{shown}…"


def ordered(values: pl.Series) -> list[str]:
    """Sorted, numbers in texts by their size: 2 before 10, 1.5B before 14B."""
    return sorted(values.unique(), key=natural)


def natural(text: str) -> list[tuple[float, str]]:
    """A key for sorting texts, numbers in them by their size."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part[:300]), "") if number % 2 else (0, part) for number, part in enumerate(parts)]


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
    series, panels = ordered(frame["series"]), ordered(frame["panel"])
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
