"""Small charts for cards: the shape of a result at a glance, the numbers in tooltips."""

from __future__ import annotations

import altair as alt
import polars as pl

from debug.causal_map import MeanCausalMap, column_of
from debug.causal_visualization.rows import curve_rows, shown_first
from debug.causal_visualization.style import CATEGORIES, Picture, Rows, colour_of, label_of, layer_axis, tooltip_of

WIDTH, HEIGHT = 240, 96  # pixels, without axes


def map_thumbnail(mean: MeanCausalMap) -> alt.Chart:
    """Layers x targets of a mean (of one with heads: layers x heads of all targets), in the order of the text."""
    metric = column_of(shown_first(mean), mean)
    frame = curve_rows(mean, shown_first(mean))
    colour = colour_of(frame, metric)
    return (
        alt.Chart(frame)
        .mark_rect()
        .encode(
            x=alt.X("label:N", sort=None, axis=alt.Axis(labels=False, ticks=False)).title("targets, in text order"),
            y=layer_axis(Rows.of(mean)),
            color=colour.legend(None),
            tooltip=tooltip_of(frame),
        )
        .properties(
            width=alt.Step(max(3, WIDTH // len(mean.curves))), height=alt.Step(max(2, HEIGHT // len(mean.layers)))
        )
    )


def accuracy_thumbnail(frame: pl.DataFrame) -> Picture:
    """Accuracy by hops (by lines where hops are one) with its 95% CI, a colour and a shape each model.

    Args:
        frame: As :func:`accuracy_chart` takes it.
    """
    frame = frame.with_columns(pl.col("hops").fill_null("any"), pl.col("model").map_elements(label_of, pl.Utf8))
    x, title = ("hops", "hops") if frame["hops"].n_unique() > 1 else ("seq_len", "lines")
    order = sorted(frame[x].unique().to_list(), key=lambda value: (not str(value).isdecimal(), len(str(value)), value))
    models = frame["model"].unique(maintain_order=True).to_list()
    legend = None if len(models) == 1 else alt.Legend(orient="right", title=None, labelLimit=110, symbolOpacity=1)
    base = alt.Chart(frame).encode(
        x=alt.X(f"{x}:N", sort=order, axis=alt.Axis(labelAngle=0, ticks=False)).title(title),
        xOffset=alt.XOffset("model:N", sort=models),
        color=alt.Color("model:N", scale=alt.Scale(domain=models, range=CATEGORIES), legend=legend),
        shape=alt.Shape("model:N", scale=alt.Scale(domain=models), legend=legend),
        tooltip=[
            "model:N",
            "hops:N",
            alt.Tooltip("seq_len:Q", title="lines"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("n:Q", title="samples"),
        ],
    )
    axis = alt.Axis(format="%", values=[0, 0.5, 1])
    rate = alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1]), axis=axis).title("accuracy")
    known = "isValid(datum.ci_low) && isValid(datum.ci_high)"
    return alt.layer(
        base.transform_filter(known).mark_rule(strokeWidth=2).encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(y=rate),
    ).properties(width=WIDTH if len(models) == 1 else WIDTH - 110, height=HEIGHT)
