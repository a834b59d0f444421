"""Attention of the clean forward pass: of one head to all tokens, and of all heads to one token."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from debug.causal_map import AttentionPattern, CausalMap
from debug.causal_visualization.style import (
    GREY,
    INK,
    LINES,
    TARGET,
    Picture,
    Rows,
    axis_of,
    heading,
    layer_axis,
    shown_target,
    visible,
)
from debug.errors import InputError

_BAR = "#0072b2"


def attention_rows(causal_map: CausalMap, pattern: AttentionPattern, target: str) -> pl.DataFrame:
    """What each head pays to each token, from a target (the mean over its tokens): layer, head, position, token,
    attention.

    Raises:
        InputError: the map has not this target, or is of another prompt.
    """
    if target not in causal_map.targets:
        raise InputError(f"the map has no target {target!r}; its targets: {', '.join(causal_map.targets)}")
    if pattern.weights.shape[-1] != len(causal_map.tokens):
        raise InputError(
            f"the attention is to {pattern.weights.shape[-1]} tokens, and the map has {len(causal_map.tokens)}"
        )
    paid = pattern.of(causal_map.targets[target])
    layer, head, position = (index.ravel() for index in np.indices(paid.shape))
    tokens = np.array([visible(token) for token in causal_map.tokens], dtype=object)[position]
    columns = {"layer": layer, "head": head, "position": position, "token": tokens, "attention": paid.ravel()}
    return pl.DataFrame(columns, schema_overrides={"token": pl.String})


def attention_chart(causal_map: CausalMap, rows: pl.DataFrame, target: str, layer: int, head: int) -> Picture:
    """One head: bars over the tokens of the prompt, as tall as the attention that the target pays to each.

    Args:
        rows: of :func:`attention_rows`.
    """
    own = rows.filter((pl.col("layer") == layer) & (pl.col("head") == head))
    count = len(causal_map.tokens)
    cell = min(24, max(14, 1100 // max(count, 1)))
    x = alt.X("position:O", axis=axis_of(orient="top", titleAnchor="start", labelOverlap="greedy", labelSeparation=4))
    y = alt.Y("attention:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)).title("attention")
    bars = alt.Chart(own).mark_bar(color=_BAR).encode(x=x.title("token position"), y=y, tooltip=_TOOLTIP[2:])
    line_of = np.cumsum([0, *("\n" in token for token in causal_map.tokens)]).tolist()
    at = {*causal_map.targets[target]}
    strip = pl.DataFrame(
        {
            "position": range(count),
            "label": [visible(token, 12) for token in causal_map.tokens],
            "token": [visible(token) for token in causal_map.tokens],
            "chip": [TARGET if p in at else LINES[line_of[p] % 2] for p in range(count)],
        },
        schema_overrides={"label": pl.String, "token": pl.String, "chip": pl.String},
    )
    width = pl.col("label").str.len_chars() * 6  # pixels, in a monospaced font of size 10
    strip = strip.with_columns(angle=pl.when(width <= cell).then(0).otherwise(270))
    height = max([20, *strip.filter(pl.col("angle") > 0).select(width + 8).to_series()])
    bottom = alt.value("height")
    base = alt.Chart(strip).encode(x=alt.X("position:O"), y=bottom, tooltip=_TOOLTIP[2:4])
    boxes = base.mark_rect(yOffset=5, y2Offset=5 + height).encode(y2=bottom, fill=alt.Fill("chip:N", scale=None))
    texts = base.mark_text(font="monospace", fontSize=10, color=INK, yOffset=5 + height / 2)
    labels = texts.encode(text="label:N", angle=alt.Angle("angle:Q", scale=None))
    title = f"attention of layer {layer}, head {head} · from {shown_target(target)} (yellow) to all tokens"
    title = f"{title} · pair {causal_map.pair}, clean forward pass"
    return alt.layer(bars, boxes, labels).properties(title=heading(title), width=alt.Step(cell), height=160)


def attention_overview(causal_map: CausalMap, rows: pl.DataFrame, target: str, position: int) -> Picture:
    """Layers x heads: how much of its attention a target pays to one token; the scale begins at zero."""
    own = rows.filter(pl.col("position") == position)
    n_layers, heads = own["layer"].n_unique(), own["head"].unique().sort().to_list()
    most = float(own["attention"].max() or 0.0)  # type: ignore[arg-type]  (a number, of polars' many kinds)
    legend = alt.Legend(orient="top", direction="horizontal", gradientLength=160, gradientThickness=10, format=".0%")
    scale = alt.Scale(scheme="viridis", domain=[0, most or 1.0])
    token = visible(causal_map.tokens[position])
    drawn = Rows(max(1, n_layers), n_layers)
    chart = (
        alt.Chart(own)
        .mark_rect(stroke=GREY, strokeWidth=0.3)
        .encode(
            x=alt.X("head:O", sort=heads, axis=axis_of()).title("head"),
            y=layer_axis(drawn),
            color=alt.Color("attention:Q", scale=scale, legend=legend).title("attention"),
            tooltip=_TOOLTIP,
        )
    )
    title = f"attention from {shown_target(target)} to {token} at {position}"
    size = {
        "width": alt.Step(min(44, max(18, 500 // max(1, len(heads))))),
        "height": alt.Step(min(22, max(9, 420 // drawn.count))),
    }
    return alt.layer(chart).properties(title=heading(title), **size)


_TOOLTIP = [
    alt.Tooltip("layer:O"),
    alt.Tooltip("head:O"),
    alt.Tooltip("token:N"),
    alt.Tooltip("position:O", title="token position"),
    alt.Tooltip("attention:Q", format=".1%"),
]
