"""Rates over layers, knockouts with their controls, and training trajectories."""

from __future__ import annotations

import math
from dataclasses import replace
from textwrap import wrap

import altair as alt
import numpy as np
import polars as pl

from debug.causal_map import METRICS, RANDOM, MeanCausalMap, column_of, metric_of, title_of
from debug.causal_visualization.rows import curve_rows, labels_of, shown_first
from debug.causal_visualization.style import (
    CATEGORIES,
    GREY,
    NOT_PATCHED,
    Metric,
    Picture,
    Rows,
    heading,
    title_with,
    tooltip_of,
    visible,
)


def curves_by_layer(mean: MeanCausalMap, metric: Metric | None = None) -> Picture:
    """A metric over layers: one curve with its 95% CI per target, the same-answer control dotted, hand-over layers as
    dashed lines.

    Where there are more targets than colours, those with the largest effects are drawn, but none whose effect stays
    below a hundredth of the largest; the subtitle says so.
    """
    metric = metric or shown_first(mean)
    effect, drawn = _drawn(mean, metric)
    shown = replace(mean, curves=[curve for curve in mean.curves if curve.target in drawn])
    frame, step = curve_rows(shown, metric), min(48, max(14, 480 // len(mean.layers)))
    x = _by_layer(mean, step)
    name = (metric_of(metric).stored or title_of(metric, mean)).replace("_", " ")
    y = alt.Y(f"{column_of(metric, mean)}:Q", title=name)
    if not metric_of(metric).signed:
        y = alt.Y(
            f"{metric}:Q",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5, labelFlush=False),
            title=name,
        )
    colour = alt.Color(
        "label:N",
        scale=alt.Scale(domain=labels_of(frame), range=CATEGORIES),
        legend=alt.Legend(symbolOpacity=1, labelLimit=240, orient="top", columns=2),
    )
    base = alt.Chart(frame).encode(x=x, color=colour.title(None), tooltip=tooltip_of(frame))
    bands = base.transform_filter("isValid(datum.ci_low)").mark_area(opacity=0.12)
    moves = _hand_overs(mean, metric)
    rules = (
        alt.Chart(moves)
        .mark_rule(color=GREY, strokeDash=[4, 3])
        .encode(x=x, tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("hand_over:N", title="hand-over")])
    )
    layers = [
        *([] if moves.is_empty() else [rules]),  # an empty one has no name for a screen reader
        *([bands.encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q")] if mean.n_pairs > 1 else []),
        base.mark_line(strokeWidth=2, point={"filled": True, "size": 50}).encode(y=y),
    ]
    title, notes = title_with(mean, frame, column_of(metric, mean)), [NOT_PATCHED] if mean.estimated else []
    if (control := f"control_{metric}") in frame.columns:
        layers.insert(0, base.mark_line(strokeWidth=1.5, strokeDash=[2, 3]).encode(y=alt.Y(f"{control}:Q")))
        notes.append("dotted: same-answer control (patched from a program with the same answer)")
    if not moves.is_empty():
        notes.append("dashed: hand-over layer, the first at which the next target's rate exceeds the previous target's")
    if left_out := [value for target, value in effect.items() if target not in drawn]:
        most = f"{max(left_out):.0%}" if not metric_of(metric).signed else f"{max(left_out):.2g}"
        notes.append(f"not drawn: {len(left_out)} targets whose effect is at most {most} at every layer")
    if mean.n_pairs == 1:  # the bands would all overlap: from 0 to 79% and from 21 to 100%
        notes.append("n = 1: the 95% CIs are too wide to draw; see the tooltip")
    title.subtitle = [line for note in notes for line in wrap(note, 80)] or alt.Undefined  # no wider than the curves
    return alt.layer(*layers).properties(width=alt.Step(step), height=260, title=title)


def _drawn(mean: MeanCausalMap, metric: Metric) -> tuple[dict[str, float], list[str]]:
    """Target -> its largest effect at any layer; and the targets that are drawn."""
    nothing = metric_of(metric).no_effect
    if nothing is None:  # most targets do nothing at most layers
        nothing = float(np.median([v.estimate for curve in mean.curves for v in curve[metric] if v] or [0.0]))
    effect = {
        curve.target: max((abs(v.estimate - nothing) for v in curve[metric] if v), default=0.0) for curve in mean.curves
    }
    if len(effect) <= len(CATEGORIES):
        return effect, list(effect)
    seen = [target for target in effect if effect[target] > 0.01 * max(effect.values())]
    return effect, sorted(seen, key=lambda target: -effect[target])[: len(CATEGORIES)] or list(effect)


def _by_layer(mean: MeanCausalMap, step: int) -> alt.X:
    """The X axis, ``step`` pixels per layer: as many labels as fit, and the last layer's."""
    rows = Rows.of(mean)
    last, count = mean.layers[-1], len(mean.layers)
    room = 36 if last == rows.top else rows.room  # a greedy axis would drop the last label, which is the widest
    some = range(0, count, math.ceil(rows.room / step))
    named = [mean.layers[row] for row in some if (count - 1 - row) * step >= room]
    axis = alt.Axis(labelAngle=0, labelExpr=rows.label, labelOverlap=False, values=[*named, last])
    return alt.X("layer:O", axis=axis).title("layer")


def _hand_overs(mean: MeanCausalMap, metric: Metric) -> pl.DataFrame:
    """Columns layer and hand_over (which targets); of success only, as a hand-over is a comparison of rates."""
    moves = pl.DataFrame(
        [{"layer": layer, "hand_over": f"{visible(a)} → {visible(b)}"} for a, b, layer in mean.hand_overs()]
        if metric == "success"
        else [],
        schema={"layer": pl.Int64, "hand_over": pl.Utf8},
    )
    return moves.group_by("layer", maintain_order=True).agg(pl.col("hand_over").str.join(", "))


def knockout_chart(mean: MeanCausalMap) -> Picture:
    """The share of pairs whose answer is kept, with 95% CIs: each hypothesis, and as many random edges cut in the same
    pairs. For means with a single row, in which all layers are cut together."""
    cut = ("edges of the hypothesis", "random edges, same number")
    rows = [
        {
            "hypothesis": visible(name).replace("_", " "),
            "cut": cut[which],
            "answer_kept": value.estimate,
            "ci_low": value.low,
            "ci_high": value.high,
            "interval": str(value),
            "n": value.n,
        }
        for name in mean.against_random
        for which, target in enumerate((name, name + RANDOM))
        if (value := mean[target]["answer_kept"][0]) is not None
    ]
    numbers: dict[str, type[pl.Float64]] = dict.fromkeys(("answer_kept", "ci_low", "ci_high"), pl.Float64)
    x = alt.X("hypothesis:N", sort=None, axis=alt.Axis(labelAngle=0, ticks=False)).title(None)
    base = alt.Chart(pl.DataFrame(rows, schema_overrides=numbers)).encode(
        x=x,
        xOffset=alt.XOffset("cut:N", sort=list(cut)),
        color=alt.Color(
            "cut:N",
            scale=alt.Scale(domain=list(cut), range=[CATEGORIES[1], GREY]),
            legend=alt.Legend(symbolOpacity=1, labelLimit=240),
        ).title("cut"),
        tooltip=["hypothesis:N", "cut:N", alt.Tooltip("interval:N", title=METRICS["answer_kept"].title)],
    )
    rate = alt.Y(
        "answer_kept:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, labelFlush=False)
    )
    layers = [
        base.mark_bar(opacity=0.35).encode(y=rate.title(METRICS["answer_kept"].in_store.replace("_", " "))),
        base.transform_filter("isValid(datum.ci_low)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(y=rate),
    ]
    notes = [
        f"{visible(name).replace('_', ' ')} − random: {compared.difference}, p = {compared.p_value:.2g} (exact McNemar)"
        for name, by_layer in mean.against_random.items()
        for compared in by_layer[:1]
    ]
    which = "one pair" if mean.n_pairs == 1 else f"mean over {mean.n_pairs} pairs"
    parts = ["attention knockout", which, f"layers {Rows.of(mean).name(mean.layers[0])}"]
    title = heading(" · ".join(parts), subtitle=notes, subtitleColor=GREY)
    return alt.layer(*layers).properties(width=alt.Step(60), height=240, title=title)


def trajectory_chart(frame: pl.DataFrame, title: str) -> Picture:
    """The share of a model's answers that each strategy explains, over training checkpoints.

    Args:
        frame: one row per strategy and checkpoint, with columns step, explanation, share, ci_low and ci_high. Steps are
            equally spaced: checkpoints are dense where the trajectory changes.
    """
    names = frame["explanation"].unique(maintain_order=True).to_list()
    base = alt.Chart(frame).encode(
        x=alt.X("step:O", axis=alt.Axis(labelAngle=0, labelOverlap="greedy")).title("training step"),
        color=alt.Color(
            "explanation:N", scale=alt.Scale(domain=names, range=CATEGORIES), legend=alt.Legend(symbolOpacity=1)
        ).title("explained by"),
        tooltip=["step:O", "explanation:N", alt.Tooltip("share:Q", format=".1%")],
    )
    share = alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, labelFlush=False))
    bands = base.transform_filter("isValid(datum.ci_low)").mark_area(opacity=0.12)
    return alt.layer(
        bands.encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q"),
        base.mark_line(strokeWidth=2, point={"filled": True, "size": 50}).encode(y=share.title("share of answers")),
    ).properties(width=alt.Step(44), height=240, title=heading(title))
