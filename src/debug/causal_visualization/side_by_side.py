"""Two maps on one scale, their difference, and maps of top tokens."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from debug.causal_map import ESTIMATED, CausalMap, MeanCausalMap, metric_of, title_of
from debug.causal_visualization.comparison import legend_of, named_series, scale_of
from debug.causal_visualization.heatmaps import token_strip
from debug.causal_visualization.interactive import Chart, outlined
from debug.causal_visualization.rows import cells
from debug.causal_visualization.style import (
    GREY,
    INK,
    MOST_SVG_CELLS,
    Picture,
    Rows,
    axis_of,
    heading,
    layer_axis,
    shown_target,
    sized,
    visible,
)
from debug.errors import InputError

_WHOSE = {
    "counterfactual answer": "#e08214",
    "original answer": "#f3eeea",
    "another token": "#b2abd2",
    "not recorded": "#7a7a7a",
}
_MOST_ABREAST = 30  # columns of maps that fit side by side on 1280 pixels; wider maps are stacked


def side_by_side(
    first: CausalMap | MeanCausalMap,
    second: CausalMap | MeanCausalMap,
    metric: str,
    names: tuple[str, str],
    place: tuple[str | int, int] | None = None,
    difference: bool = True,
) -> Chart:
    """Two maps A and B on one scale, both means or both of the same pair; and A − B where both have a value.

    ``place`` is a target or a token position, and a layer: its rectangle is outlined. Without ``difference`` only the
    two maps are drawn: see :func:`no_difference`.

    Raises:
        InputError: a map has heads (three axes), or the difference has no meaning.
    """
    if difference and (why := no_difference(first, second)):
        raise InputError(why)
    one, other = _values(first, metric), _values(second, metric)
    of_logits = metric_of(metric).scale == "logit"
    end = max([_largest(one), _largest(other)] if of_logits else [1.0])
    apart = one.join(other, on=["layer", "column", *_PLACE], how="inner", suffix="_second", maintain_order="left")
    apart = apart.with_columns(
        value=pl.col("value") - pl.col("value_second"), shown=pl.format("{} − {}", "shown", "shown_second")
    )
    spread = _largest(apart) if of_logits else end
    columns = pl.concat([one, other])["column"].unique(maintain_order=True).to_list()
    if isinstance(first, MeanCausalMap):  # in the order of the text, also where a map lacks some
        columns = sorted(columns, key=lambda name: [*one["column"], *other["column"]].index(name))
    depths = (first.n_layers, second.n_layers, min(first.n_layers, second.n_layers))
    rows = [sorted(set(frame["layer"]), reverse=True) for frame in (one, other, apart)]
    if first.n_layers == second.n_layers:  # the same row at the same height, also where a map lacks some
        rows = [sorted({*rows[0], *rows[1]}, reverse=True)] * 3
    signed, shown = metric_of(metric).signed, [title_of(metric, of) for of in (first, second)]
    titles = (*shown, f"difference in {' and '.join(dict.fromkeys(shown))}")
    heads = [f"{which}: {name}" for which, name in zip("AB", names, strict=True)]
    heads = [f"{head}, {ESTIMATED}" if of.estimated else head for head, of in zip(heads, (first, second), strict=True)]
    scales = (scale_of(signed, end), scale_of(signed, end), scale_of(True, spread or 1))
    panels = [
        _panel(frame, columns, layers, depth, name, title, scale, percent=not signed)
        for frame, layers, depth, name, title, scale in zip(
            (one, other, apart), rows, depths, (*heads, "A − B"), titles, scales, strict=True
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
    """Why the difference A − B has no meaning, as a sentence; None where it has one.

    Layers of models of different depth do not correspond, nor do different components, layer windows or numbers of
    hops. ``hops`` are those of the two maps' programs, as logged by their runs.
    """
    facts = {
        "numbers of layers": (first.n_layers, second.n_layers),
        "components": (first.intervention_type, second.intervention_type),
        "layer windows": (first.layer_window, second.layer_window),
        "hops": hops or ("", ""),
    }
    differ = [f"{name} ({one} and {other})" for name, (one, other) in facts.items() if one != other]
    if not differ:
        return None
    return f"A − B is not shown: A and B have different {', different '.join(differ)}."


_PLACE = ("target", "position", "token")


def _values(of: CausalMap | MeanCausalMap, metric: str) -> pl.DataFrame:
    """One row per intervention: layer, column (axis label), value (null: none), its text (of a mean with 95% CI and n),
    and the fields that a click returns: the target of a mean, the token position of a pair."""
    if isinstance(of, MeanCausalMap):
        rows = [
            (
                layer,
                shown_target(curve.target),
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
            raise InputError("a map with heads (layers x heads x positions); compare the means, or one without heads")
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
) -> Picture:
    abreast, of_mean = len(columns) <= _MOST_ABREAST, set(frame["position"]) <= {-1}
    width = min(36, 285 // len(columns)) if abreast else max(8, min(15, 1000 // len(columns)))
    height = min(18, max(8, 420 // max(1, len(layers))))
    label = f"datum.value == {top} ? 'final norm' : datum.value"
    x = alt.X(
        "column:N",
        sort=columns,
        scale=alt.Scale(domain=columns),
        axis=axis_of(labelAngle=-90, labelLimit=130, labelOverlap=False),
    )
    y = alt.Y("layer:O", sort=None, scale=alt.Scale(domain=layers), axis=axis_of(labelExpr=label, labelOverlap=True))
    place = ["target:N"] if of_mean else ["token:N", alt.Tooltip("position:O", title="token position")]
    base = alt.Chart(frame).encode(
        x=x.title(None),
        y=y.title("layer"),
        tooltip=[
            *place,
            "layer:O",
            alt.Tooltip("value:Q", format="+.3f", title=title),
            alt.Tooltip("shown:N", title="mean, 95% CI" if of_mean else "value"),
        ],
    )
    cells = base.transform_filter("isValid(datum.value)").mark_rect()
    missing = base.transform_filter("!isValid(datum.value)").mark_text(text="×", color=GREY)
    legend = legend_of()
    if percent and of_mean:  # of one pair it is yes or no
        legend.format = "%"
    chart = alt.layer(cells.encode(color=alt.Color("value:Q", scale=scale, legend=legend).title(title)), missing)
    return chart.properties(width=alt.Step(width), height=alt.Step(height), title=heading(named_series(name)))


def top_tokens(causal_map: CausalMap, cell_width: int | None = None) -> Chart:
    """The top token of every patched forward pass: layers x token positions, coloured by which answer it is.

    Args:
        cell_width: of a square, in pixels (default: 14 to 24).

    Raises:
        InputError: the map has heads.
    """
    if causal_map.top.ndim == 3:
        raise InputError("a map with heads (layers x heads x positions) has no picture of top tokens")
    c, o = causal_map.answer_tokens
    whose = np.select(
        [causal_map.top_token == c, causal_map.top_token == o, causal_map.top_token >= 0],
        list(_WHOSE)[:3],
        "not recorded",
    )
    frame = cells(causal_map).with_columns(whose=pl.Series(whose.ravel(), dtype=pl.Utf8))
    frame = frame.select("layer", "position", "token", "top_token", "whose")
    rows, width = Rows.of(causal_map), cell_width or min(24, max(14, 1000 // len(causal_map.positions)))
    base = alt.Chart(frame).encode(
        x=alt.X(
            "position:O",
            scale=alt.Scale(domain=causal_map.positions),
            axis=axis_of(orient="top", labelOverlap="greedy"),
        ).title("token position"),
        y=layer_axis(rows),
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
    few = len(frame) <= MOST_SVG_CELLS
    layers: list[alt.Chart] = [base.mark_rect(aria=few).encode(color=colour)]
    if few:
        layers.append(base.mark_text(fontSize=9, color=INK, limit=width).encode(text="top_token:N"))
    title = heading(f"top token of each patched forward pass · pair {causal_map.pair}")
    return sized(alt.layer(*layers, *token_strip(causal_map, width)).properties(title=title), rows, width)


def _largest(frame: pl.DataFrame) -> float:
    return float(frame["value"].abs().max() or 0)  # type: ignore[arg-type]  (a number, of polars' many kinds)
