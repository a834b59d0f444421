"""Altair charts that only the dashboard draws: runs compared, two maps on one scale, a program as a graph.

The same rules as in ``causal_visualization``: what comes from data travels as data, never as an expression or HTML;
no background and no colour of axes, so that a light or dark theme can; rates end at 0 and 1, signed values are centred
on zero, and what stands side by side has one scale. Knows no store and no dashboard.
"""

from __future__ import annotations

import re
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from debug.causal_map import ESTIMATED, RATES, CausalMap, MeanCausalMap, title_of
from debug.causal_visualization import (
    _CATEGORIES,
    _GREY,
    _INK,
    MOST_SVG_CELLS,
    _axis,
    _heading,
    _layer_axis,
    _Rows,
    _sized,
    _token_strip,
    cells,
    visible,
)
from debug.programs import Program

Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart | alt.VConcatChart
_CHAIN, _OUTLINE = "#d55e00", "#009e73"
_WHOSE = {
    "counterfactual's answer": "#e08214",
    "original's answer": "#f3eeea",
    "another token": "#b2abd2",
    "not recorded": "#7a7a7a",
}
_SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
_DASHES = [[1, 0], [6, 3], [2, 2]]
_MOST_ABREAST = 30  # columns of maps that stand side by side on 1280 pixels; wider ones stand below one another


# --- of any chart ----------------------------------------------------------------------------------------------------


def clickable(chart: Any, *fields: str) -> Any:
    """The chart with a selection called ``cell``: a click on a mark gives these fields of its row."""
    return chart.add_params(alt.selection_point(name="cell", fields=list(fields), on="click", clear=False))


def outlined(chart: Any, **fields: Any) -> Any:
    """A heatmap with one cell outlined, given by the fields of its two axes."""
    axes = chart.layer[0].encoding  # the very axes: others would have another order
    cell = alt.Chart(pl.DataFrame({name: [value] for name, value in fields.items()}))
    return chart + cell.mark_rect(fillOpacity=0, stroke=_OUTLINE, strokeWidth=3, tooltip=False).encode(
        x=axes.x, y=axes.y
    )


def quick(chart: Any, n_cells: int) -> Any:
    """The chart, drawn on a canvas where it has very many cells."""
    if n_cells <= MOST_SVG_CELLS:
        return chart
    return chart.properties(usermeta={"embedOptions": {"renderer": "canvas"}})


# --- runs compared ---------------------------------------------------------------------------------------------------


def rates(frame: pl.DataFrame, x: str, title: str, panel: str | None = None, signed: bool = False) -> Chart:
    """A measurement with its interval: x from left to right, a colour and a shape for each series.

    Args:
        frame: a row a cell: series, value, ci_low, ci_high (null: no interval), n, and the columns x and panel as text.
        x: hops, seq_len or model; the first two are joined by lines.
        panel: a column with a small chart for each of its values.
        signed: the values are no rates, and their axis does not end at 0 and 1.

    Raises:
        ValueError: there are more series than looks that can be told apart.
    """
    frame = frame.with_columns(
        pl.col("series").map_elements(_named, pl.Utf8), pl.col("model").map_elements(_named, pl.Utf8)
    )
    series = frame["series"].unique(maintain_order=True).to_list()
    if len(series) > len(_CATEGORIES) * len(_SHAPES):  # whose numbers share no divisor: each has a look of its own
        raise ValueError(f"{len(series)} series cannot be told apart in one chart; take a small chart for each")
    colours, shapes, dashes = ([of[i % len(of)] for i in range(len(series))] for of in (_CATEGORIES, _SHAPES, _DASHES))
    legend = alt.Legend(
        orient="top", labelLimit=260, columns=3, symbolLimit=0, symbolOpacity=1, symbolStrokeWidth=0, title=None
    )
    scale = alt.Scale() if signed else alt.Scale(domain=[0, 1])
    form = ".3f" if signed else ".1%"
    base = alt.Chart(frame).encode(
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
            alt.Tooltip("ci_low:Q", format=form, title="95% interval from"),
            alt.Tooltip("ci_high:Q", format=form, title="to"),
            alt.Tooltip("n:Q", format=",d", title="n"),
        ],
    )
    if x == "model" or len(series) > 1:
        base = base.encode(xOffset=alt.XOffset("series:N", sort=series))
    y = alt.Y("value:Q", scale=scale, axis=alt.Axis(format="" if signed else "%", tickCount=5, labelFlush=False)).title(
        title
    )
    layers = [
        base.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ci_low:Q", scale=scale), y2="ci_high:Q"),
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, shape=alt.Shape("series:N", scale=alt.Scale(domain=series, range=shapes), legend=legend)
        ),
    ]
    if x != "model":
        dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=series, range=dashes), legend=None)
        layers.insert(0, base.mark_line(opacity=0.5).encode(y=y, strokeDash=dash))
    width = frame[x].n_unique() * max(34, min(90, 14 * len(series) + 16))
    if panel is None:
        return alt.layer(*layers).properties(width=max(420, min(1100, width)), height=260)  # type: ignore[arg-type]
    width = max(200, min(1000, width))
    chart = alt.layer(*layers).properties(width=width, height=160)  # type: ignore[arg-type]
    columns = max(1, min(4, 1000 // (width + 60)))
    return chart.facet(alt.Facet(f"{panel}:N", sort=_ordered(frame[panel])).title(None), columns=columns)


def models_by_hops(frame: pl.DataFrame, title: str, signed: bool = False) -> Chart:
    """Models x hops, one cell a mean over lengths, with how many runs and samples that is, where that is known of all;
    the interval where it is one run's. Frame as for :func:`rates`."""
    named = frame.with_columns(pl.col("model").map_elements(_named, pl.Utf8))
    cells_of = named.group_by("model", "hops", maintain_order=True)
    titles = {"ci_low": "95% interval from", "ci_high": "to"}
    titles = {end: text for end, text in titles.items() if end in frame.columns}
    ends = [pl.when(pl.len() == 1).then(pl.col(end).first()).alias(end) for end in titles]
    n = pl.when(pl.col("n").is_not_null().all()).then(pl.col("n").sum()).alias("n")
    frame = cells_of.agg(pl.col("value").mean(), pl.len().alias("cells"), n, *ends).with_columns(
        how_many=pl.format("n={}", pl.col("n").cast(pl.Int64))
    )
    end = max(float(frame["value"].abs().max() or 0), 1e-9) if signed else 1.0  # type: ignore[arg-type]
    form = ".3f" if signed else ".1%"
    base = alt.Chart(frame).encode(
        x=alt.X("hops:N", sort=_ordered(frame["hops"]), axis=_axis()),
        y=alt.Y("model:N", sort=None, axis=_axis(labelLimit=240)).title(None),
        tooltip=[
            "model:N",
            "hops:N",
            alt.Tooltip("value:Q", format=form, title=title),
            *(alt.Tooltip(f"{end}:Q", format=form, title=text) for end, text in titles.items()),
            alt.Tooltip("cells:Q", title="runs"),
            alt.Tooltip("n:Q", format=",d"),
        ],
    )
    legend = _legend()
    if not signed:
        legend.format = "%"
    colour = alt.Color("value:Q", scale=_scale(signed, end), legend=legend).title(title)
    ink = alt.when(f"abs(datum.value) > {0.7 * end}").then(alt.value("white")).otherwise(alt.value(_INK))
    numbers = base.mark_text(fontSize=11, dy=-5).encode(
        text=alt.Text("value:Q", format=".2f" if signed else ".0%"), color=ink
    )
    sizes = base.mark_text(fontSize=9, dy=7).encode(text="how_many:N", color=ink)
    return alt.layer(base.mark_rect().encode(color=colour), numbers, sizes).properties(
        width=alt.Step(60), height=alt.Step(34)
    )


def slopes(frame: pl.DataFrame, title: str, signed: bool = False) -> Chart:
    """A line from the first run's value to the second's, for each cell that both have.

    Args:
        frame: a row a cell and run: cell, run ("first", "second" by name), value, ci_low, ci_high (null: none), n.
    """
    sides = frame["run"].unique(maintain_order=True).to_list()
    cells_of, form = frame["cell"].unique(maintain_order=True).to_list(), ".3f" if signed else ".1%"
    scale = alt.Scale(zero=False) if signed else alt.Scale(domain=[0, 1])
    base = alt.Chart(frame).encode(
        x=alt.X(
            "run:N",
            sort=sides,
            scale=alt.Scale(paddingInner=0.75, paddingOuter=0.3),  # the lines take the room, not the points of a side
            axis=alt.Axis(labelAngle=0, labelLimit=170),
        ).title(None),
        y=alt.Y(
            "value:Q", scale=scale, axis=alt.Axis(format="" if signed else "%", tickCount=5, labelFlush=False)
        ).title(title),
        color=alt.Color("cell:N", scale=alt.Scale(range=_CATEGORIES), legend=alt.Legend(title=None, labelLimit=240)),
        tooltip=[
            "cell:N",
            "run:N",
            alt.Tooltip("value:Q", format=form, title=title),
            alt.Tooltip("ci_low:Q", format=form, title="95% interval from"),
            alt.Tooltip("ci_high:Q", format=form, title="to"),
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


def _named(text: str) -> str:
    """A name that came from data, in one line; spaces and dots stay what they are."""
    shown = "".join(c if c in " ·" else visible(c) for c in text[:80])
    return shown if len(text) <= 80 else f"{shown}…"


def _ordered(values: pl.Series) -> list[str]:
    """Sorted, numbers in texts by their size."""
    return sorted(values.unique(), key=lambda text: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", text)])


def _scale(signed: bool, end: float) -> alt.Scale:
    if signed:
        return alt.Scale(scheme="purpleorange", domain=[-end, end], domainMid=0, clamp=True)
    return alt.Scale(scheme={"name": "purpleorange", "extent": [0.5, 1]}, domain=[0, end])


def _legend() -> alt.Legend:
    return alt.Legend(
        orient="top", direction="horizontal", gradientLength=160, gradientThickness=10, titleLimit=240, offset=8
    )


# --- maps ------------------------------------------------------------------------------------------------------------


def side_by_side(
    first: CausalMap | MeanCausalMap,
    second: CausalMap | MeanCausalMap,
    metric: str,
    names: tuple[str, str],
    place: tuple[str | int, int] | None = None,
    difference: bool = True,
) -> Chart:
    """Two maps, of pairs of one program or means, on one scale; and the first less the second where both have a value.

    ``place`` is a target or a token position, and a layer: its cell is outlined. Without a ``difference`` there are
    the two maps alone: see :func:`no_difference`.

    Raises:
        ValueError: a map has heads: no picture has room for three axes twice; or a difference of maps is asked for that
            has no meaning.
    """
    if difference and (why := no_difference(first, second)):
        raise ValueError(why)
    one, other = _values(first, metric), _values(second, metric)
    end = max([1.0] if metric != "logit_diff" else [float(frame["value"].abs().max() or 0) for frame in (one, other)])  # type: ignore[arg-type]
    apart = one.join(other, on=["layer", "column", *_PLACE], how="inner", suffix="_second", maintain_order="left")
    apart = apart.with_columns(
        value=pl.col("value") - pl.col("value_second"), shown=pl.format("{} less {}", "shown", "shown_second")
    )
    spread = float(apart["value"].abs().max() or 0) if metric == "logit_diff" else end  # type: ignore[arg-type]
    columns = pl.concat([one, other])["column"].unique(maintain_order=True).to_list()
    if isinstance(first, MeanCausalMap):  # in the order of the text, also where one of them lacks some
        columns = sorted(columns, key=lambda name: [*one["column"], *other["column"]].index(name))
    depths = (first.n_layers, second.n_layers, min(first.n_layers, second.n_layers))
    rows = [sorted(set(frame["layer"]), reverse=True) for frame in (one, other, apart)]
    if first.n_layers == second.n_layers:  # the same row at the same height, also where one of them lacks some
        rows = [sorted({*rows[0], *rows[1]}, reverse=True)] * 3
    signed, shown = metric not in RATES, [title_of(metric, of) for of in (first, second)]
    titles = (*shown, f"difference of {' and '.join(dict.fromkeys(shown))}")
    heads = [f"{name}, {ESTIMATED}" if of.estimated else name for name, of in zip(names, (first, second), strict=True)]
    scales = (_scale(signed, end), _scale(signed, end), _scale(True, spread or 1))
    panels = [
        _panel(frame, columns, layers, depth, name, title, scale, percent=not signed)
        for frame, layers, depth, name, title, scale in zip(
            (one, other, apart), rows, depths, (*heads, "first less second"), titles, scales, strict=True
        )
    ][: 3 if difference else 2]
    if place is not None:
        at = pl.col("target") == visible(place[0]) if isinstance(place[0], str) else pl.col("position") == place[0]
        for column in pl.concat([one, other]).filter(at)["column"].head(1):
            panels = [outlined(panel, column=column, layer=place[1]) for panel in panels]
    return alt.concat(*panels, columns=len(panels) if len(columns) <= _MOST_ABREAST else 1).resolve_scale(
        color="independent"
    )


def no_difference(
    first: CausalMap | MeanCausalMap,
    second: CausalMap | MeanCausalMap,
    hops: tuple[str | None, str | None] | None = None,
) -> str | None:
    """Why one map less the other would say nothing, in a sentence; None where it says something.

    A layer of six is not the same layer of four, nor a head's row a stream's, nor the second line of a chain of two the
    second of three. ``hops`` are those of the two maps' programs, as their runs have logged them.
    """
    facts = {
        "number of layers": (first.n_layers, second.n_layers),
        "component": (first.intervention_type, second.intervention_type),
        "layers changed together": (first.layer_window, second.layer_window),
        "hops": hops or ("", ""),
    }
    differ = [f"{name} ({one} and {other})" for name, (one, other) in facts.items() if one != other]
    if not differ:
        return None
    return f"There is no difference of the two: they are not of the same {', nor of the same '.join(differ)}."


_PLACE = ("target", "position", "token")


def _values(of: CausalMap | MeanCausalMap, metric: str) -> pl.DataFrame:
    """layer, column (a name for the axis), value (null: none), what is shown of it: of a mean its interval and n; and
    by which a click is known: the target of a mean, the token position of a pair."""
    if isinstance(of, MeanCausalMap):
        rows = [
            (
                layer,
                visible(curve.target),
                value and value.estimate,
                str(value or "no value"),
                visible(curve.target),
                -1,
                "",
            )
            for curve in of.curves
            for layer, value in zip(of.layers, curve[metric], strict=True)
        ]
    else:
        if of.top.ndim == 3:
            raise ValueError("a map with heads (layers x heads x positions); compare the means, or one without heads")
        grid = of.grid(metric)
        tokens = {position: visible(of.tokens[position]) for position in of.positions}
        rows = [
            (layer, f"{at} {visible(of.tokens[at], 12)}", value, f"{value:.3f}", "", at, tokens[at])
            for layer, row in zip(of.layers, grid.tolist(), strict=True)
            for at, value in zip(of.positions, row, strict=True)
        ]
    schema = {"layer": pl.Int64, "column": pl.Utf8, "value": pl.Float64, "shown": pl.Utf8}
    place = {"target": pl.Utf8, "position": pl.Int64, "token": pl.Utf8}
    return pl.DataFrame(rows, schema | place, orient="row").fill_nan(None)


def _panel(
    frame: pl.DataFrame,
    columns: list[str],
    layers: list[int],
    top: int,
    name: str,
    title: str,
    scale: alt.Scale,
    percent: bool,
) -> Any:
    abreast, of_mean = len(columns) <= _MOST_ABREAST, set(frame["position"]) <= {-1}
    width = min(36, 285 // len(columns)) if abreast else max(8, min(15, 1000 // len(columns)))
    height = min(18, max(8, 420 // max(1, len(layers))))
    label = f"datum.value == {top} ? 'final norm' : datum.value"
    x = alt.X(
        "column:N",
        sort=columns,
        scale=alt.Scale(domain=columns),
        axis=_axis(labelAngle=-90, labelLimit=130, labelOverlap=False),
    )
    y = alt.Y("layer:O", sort=None, scale=alt.Scale(domain=layers), axis=_axis(labelExpr=label, labelOverlap=True))
    place = ["target:N"] if of_mean else ["token:N", alt.Tooltip("position:O", title="token position")]
    base = alt.Chart(frame).encode(
        x=x.title(None),
        y=y.title("layer"),
        tooltip=[
            *place,
            "layer:O",
            alt.Tooltip("value:Q", format="+.3f", title=title),
            alt.Tooltip("shown:N", title="of"),
        ],
    )
    cells = base.transform_filter("isValid(datum.value)").mark_rect()
    missing = base.transform_filter("!isValid(datum.value)").mark_text(text="×", color=_GREY)
    legend = _legend()
    if percent and of_mean:  # of one pair it is yes or no
        legend.format = "%"
    chart = alt.layer(cells.encode(color=alt.Color("value:Q", scale=scale, legend=legend).title(title)), missing)
    return chart.properties(width=alt.Step(width), height=alt.Step(height), title=_heading(_named(name)))


def top_tokens(causal_map: CausalMap) -> Chart:
    """The top token of every patched run: layers x token positions, coloured by whose answer it is.

    Raises:
        ValueError: the map has heads.
    """
    if causal_map.top.ndim == 3:
        raise ValueError("a map with heads (layers x heads x positions) has no picture of top tokens")
    c, o = causal_map.answer_tokens
    whose = np.select(
        [causal_map.top_token == c, causal_map.top_token == o, causal_map.top_token >= 0],
        list(_WHOSE)[:3],
        "not recorded",
    )
    frame = cells(causal_map).with_columns(whose=pl.Series(whose.ravel(), dtype=pl.Utf8))
    rows, width = _Rows.of(causal_map), min(24, max(14, 1000 // len(causal_map.positions)))
    base = alt.Chart(frame).encode(
        x=alt.X(
            "position:O", scale=alt.Scale(domain=causal_map.positions), axis=_axis(orient="top", labelOverlap="greedy")
        ).title("token position"),
        y=_layer_axis(rows),
        tooltip=[
            "token:N",
            alt.Tooltip("position:O", title="token position"),
            "layer:O",
            alt.Tooltip("top_token:N", title="top token"),
            "whose:N",
        ],
    )
    colour = alt.Color(
        "whose:N",
        scale=alt.Scale(domain=list(_WHOSE), range=list(_WHOSE.values())),
        legend=alt.Legend(orient="top", title=None),
    )
    layers: list[Any] = [base.mark_rect().encode(color=colour)]
    if len(frame) <= MOST_SVG_CELLS:
        layers.append(base.mark_text(fontSize=9, color=_INK, limit=width).encode(text="top_token:N"))
    title = _heading(f"top token of each patched run · pair {causal_map.pair}")
    return _sized(alt.layer(*layers, *_token_strip(causal_map, width)).properties(title=title), rows, width)


# --- programs, training ----------------------------------------------------------------------------------------------


def program_graph(program: Program) -> Chart:
    """The assignments as a graph: lines from top to bottom, referential depth from left to right; the queried chain in
    orange, from the root value to the query."""
    chain = {assignment.line for assignment in program.chain.assignments}
    nodes = pl.DataFrame(
        [
            {
                "line": a.line + 1,
                "depth": a.ref_depth,
                "text": visible(f"{a.lhs} = {a.rhs}", 24).replace("·", " "),
                "of": "queried chain" if a.line in chain else "other",
            }
            for a in program.assignments
        ]
    )
    edges = pl.DataFrame(
        [
            {
                "line": program.assignments[a.source].line + 1,
                "depth": program.assignments[a.source].ref_depth,
                "line2": a.line + 1,
                "depth2": a.ref_depth,
                "of": "queried chain" if a.line in chain else "other",
            }
            for a in program.assignments
            if a.source is not None
        ],
        schema={"line": pl.Int64, "depth": pl.Int64, "line2": pl.Int64, "depth2": pl.Int64, "of": pl.Utf8},
    )
    deepest = max(a.ref_depth for a in program.assignments)
    x_scale, y_scale = (
        alt.Scale(domain=[0.8, deepest + 0.8], nice=False),
        alt.Scale(domain=[len(nodes) + 0.6, 0.4], nice=False),
    )
    x = alt.X(
        "depth:Q",
        scale=x_scale,
        axis=alt.Axis(values=list(range(1, deepest + 1)), format="d", grid=False, orient="top"),
    )
    y = alt.Y("line:Q", scale=y_scale, axis=alt.Axis(values=list(range(1, len(nodes) + 1)), format="d", grid=False))
    colour = alt.Color(
        "of:N",
        scale=alt.Scale(domain=["queried chain", "other"], range=[_CHAIN, _GREY]),
        legend=alt.Legend(orient="bottom", title=None),
    )
    rules = (
        alt.Chart(edges)
        .mark_rule(strokeWidth=1.5, opacity=0.8)
        .encode(x=x.title("referential depth"), y=y.title("line"), x2="depth2:Q", y2="line2:Q", color=colour)
    )
    points = alt.Chart(nodes).mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, color=colour)
    texts = points.mark_text(align="left", baseline="bottom", dx=6, dy=-2, font="monospace", fontSize=12).encode(
        text="text:N"
    )
    width = min(max(260, 120 * deepest), 500)  # half of a page of 1280 pixels, with the axis
    return alt.layer(rules, points, texts).properties(width=width, height=100 + 30 * len(nodes))


def over_steps(frame: pl.DataFrame, title: str) -> Chart:
    """Training curves: a colour for each series, a small chart for each panel.

    Args:
        frame: a row a measurement: step, value (a share), ci_low, ci_high and n (null: not known), series, panel.
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
            scale=alt.Scale(domain=series, range=_CATEGORIES),
            legend=alt.Legend(symbolOpacity=1, orient="top"),  # beside the charts a narrow page would cut it off
        ).title(None),
        tooltip=[
            "panel:N",
            "series:N",
            alt.Tooltip("step:Q", format=",d"),
            alt.Tooltip("value:Q", format=".1%", title=title),
            alt.Tooltip("ci_low:Q", format=".1%", title="95% interval from"),
            alt.Tooltip("ci_high:Q", format=".1%", title="to"),
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
