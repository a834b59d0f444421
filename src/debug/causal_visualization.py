"""Altair charts of both kinds of run: accuracy with intervals, causal maps as heatmaps, success rates over layers.

Takes causal maps and data frames, returns charts; :func:`save_chart` writes one as files. Knows no model, no store and
no dashboard. Whatever comes from data (tokens, model names, targets) travels as data: never as a chart expression, a
format string or HTML. Charts set no background and no colour of axes and titles, so that a light or dark theme can.

A map is drawn as in the logit lens: token positions from left to right in the order of the prompt, layers from bottom
to top, so that information flows to the right and upwards; row ``n_layers`` is what the final norm reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import polars as pl

from debug.causal_map import (
    ESTIMATED,
    LOGGED,
    METRICS,
    RANDOM,
    RATES,
    CausalMap,
    MeanCausalMap,
    column_of,
    title_of,
)
from debug.statistics import Interval

Picture = alt.LayerChart | alt.FacetChart
Metric = str  # one of METRICS that the map has

# Okabe and Ito's colours, told apart by colour-blind readers; yellow darkened for white paper, black greyed for dark.
_CATEGORIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#b8a800"]
_GREY = "#7a7a7a"  # as far from white as from the dark theme's background
_TARGET, _LINES = "#f2c14e", ("#e4e4ea", "#c9c9d4")  # chips behind tokens: of a target; of odd and of even lines
_INK, _NAME = "#22222a", "#9a7000"  # text on a chip; a target's name, on paper of either theme
MOST_SVG_CELLS = (
    3000  # more are drawn on a canvas, with as few expressions as can be: a browser takes seconds otherwise
)

alt.data_transformers.disable_max_rows()  # a map of 64 layers x 200 tokens has 13,000 cells, and is drawn at once


def visible(text: str, longest: int = 40) -> str:
    """A token as text that can be seen: ``·`` for a space, ``⏎`` for a newline, escapes for what does not print."""
    shown = "".join(
        {" ": "·", "\n": "⏎"}.get(c, c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def _heading(text: str, **settings: Any) -> alt.TitleParams:
    """A chart's title, close to what it is of, whatever distance the theme would keep."""
    return alt.TitleParams(text, anchor="start", fontSize=13, offset=10, **settings)


def _label(text: str) -> str:
    """A name that came from data, in one line; its spaces stay spaces."""
    return visible(text, longest=60).replace("·", " ")


def save_chart(chart: Picture, folder: Path, stem: str) -> list[Path]:
    """Write ``<stem>.html``, which needs no network to be viewed, and ``<stem>.png``; returns both paths."""
    html, png = folder / f"{stem}.html", folder / f"{stem}.png"
    page = chart.to_html(inline=True, json_kwds={"cls": _ScriptSafeJSON}, embed_options={"actions": {"editor": False}})
    html.write_text(page, encoding="utf-8")
    chart.save(png, scale_factor=2)
    return [html, png]


class _ScriptSafeJSON(json.JSONEncoder):
    """JSON that may stand inside <script>: without it a token ``</script>`` would end the script and become HTML."""

    def encode(self, o: Any) -> str:
        return super().encode(o).replace("<", "\\u003c")


def accuracy_chart(frame: pl.DataFrame) -> Picture:
    """Accuracy with its interval: by hops where there are several, else by seq_len; one colour a model.

    Args:
        frame: one row a cell, with columns model, hops (null: any), seq_len, accuracy, ci_low, ci_high (null where
            there is no interval) and n. Several hops and several seq_lens give one panel a seq_len.
    """
    frame = frame.with_columns(
        pl.col("hops").cast(pl.Utf8).fill_null("any"),
        pl.col("model").map_elements(_label, pl.Utf8),
        panel=pl.format(
            "{} {}", "seq_len", pl.when(pl.col("seq_len") == 1).then(pl.lit("line")).otherwise(pl.lit("lines"))
        ),
    )
    by_hops = frame["hops"].n_unique() > 1
    models = frame["model"].unique(maintain_order=True).to_list()
    x = alt.X("hops:N" if by_hops else "seq_len:O", sort=None, axis=alt.Axis(labelAngle=0, ticks=False)).title(
        "hops" if by_hops else "lines (seq_len)"
    )
    legend = alt.Legend(orient="top", columns=4, labelLimit=0, symbolOpacity=1)
    colour = alt.Color("model:N", scale=alt.Scale(domain=models, range=_CATEGORIES), legend=legend).title(None)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("hops:N"),
        alt.Tooltip("seq_len:Q", title="lines"),
        alt.Tooltip("accuracy:Q", format=".1%"),
        alt.Tooltip("ci_low:Q", format=".1%", title="interval from"),
        alt.Tooltip("ci_high:Q", format=".1%", title="to"),
        alt.Tooltip("n:Q", format=",d", title="samples"),
    ]
    base = alt.Chart(frame.sort("hops", "seq_len")).encode(
        x=x, xOffset=alt.XOffset("model:N", sort=models), color=colour, tooltip=tooltip
    )
    rate = alt.Y(
        "accuracy:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, labelFlush=False)
    ).title("accuracy")
    bars = base.mark_bar(opacity=0.35).encode(y=rate)
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=rate)
    intervals = (
        base.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q")
    )
    chart = alt.layer(bars, intervals, points).properties(width=alt.Step(max(22, 60 // len(models))), height=240)
    title = _heading(f"accuracy, 95% intervals{_programs(frame)}")
    if by_hops and frame["seq_len"].n_unique() > 1:
        panels = [f"{n} {'line' if n == 1 else 'lines'}" for n in frame["seq_len"].unique().sort()]
        faceted = chart.facet(alt.Facet("panel:N", sort=panels).title(None), columns=2)
        return faceted.resolve_axis(x="independent").properties(title=title)
    return chart.properties(title=title)


def _programs(frame: pl.DataFrame) -> str:
    """How many samples are behind each of a chart's points, for its title."""
    sizes = sorted({int(n) for n in frame["n"].drop_nulls()})
    return f", n = {' to '.join(dict.fromkeys(map(str, (sizes[0], sizes[-1]))))}" if sizes else ""


def comparison_chart(frame: pl.DataFrame) -> Picture:
    """Differences of accuracy on the same programs, with intervals: a row a pair of models, a column a number of hops.

    Args:
        frame: one row a comparison, with columns first, second, hops (null: any), seq_len, difference, ci_low, ci_high
            (null where there is no interval), n, only_first, only_second and p_adjusted.
    """
    frame = frame.with_columns(
        hops=pl.format(
            "{} {}",
            pl.col("hops").cast(pl.Utf8).fill_null("any"),
            pl.when(pl.col("hops") == 1).then(pl.lit("hop")).otherwise(pl.lit("hops")),
        ),
        pair=pl.format("{} − {}", *(pl.col(c).map_elements(_label, pl.Utf8) for c in ("first", "second"))),
        holm=pl.when(pl.col("p_adjusted") < 0.05).then(pl.lit("below 0.05")).otherwise(pl.lit("0.05 or more")),
    ).select(
        "hops",
        "seq_len",
        "pair",
        "holm",
        "difference",
        "ci_low",
        "ci_high",
        "n",
        "only_first",
        "only_second",
        "p_adjusted",
    )
    pairs = frame["pair"].unique(maintain_order=True).to_list()
    tooltip = [
        *("pair:N", "hops:N", alt.Tooltip("seq_len:Q", title="lines"), alt.Tooltip("difference:Q", format="+.1%")),
        alt.Tooltip("ci_low:Q", format="+.1%", title="interval from"),
        alt.Tooltip("ci_high:Q", format="+.1%", title="to"),
        *(
            alt.Tooltip("only_first:Q", title="correct by the first alone"),
            alt.Tooltip("only_second:Q", title="by the second alone"),
        ),
        *(alt.Tooltip("p_adjusted:Q", format=".2g", title="p, Holm"), alt.Tooltip("n:Q", title="programs")),
    ]
    base = alt.Chart(frame).encode(
        x=alt.X("seq_len:O", axis=alt.Axis(labelAngle=0, ticks=False)).title("lines (seq_len)"),
        color=alt.Color(
            "holm:N",
            scale=alt.Scale(domain=["below 0.05", "0.05 or more"], range=[_CATEGORIES[1], _GREY]),
            legend=alt.Legend(orient="top", titleOrient="left", titleLimit=0),
        ).title("p of exact McNemar tests, Holm's correction"),
        tooltip=tooltip,
    )
    signed = alt.Axis(labelExpr="datum.value ? format(datum.value, '+.0%') : '0'", values=[-1, 0, 1])
    shared = {"scale": alt.Scale(domain=[-1, 1]), "axis": signed, "title": None}
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=alt.Y("difference:Q", **shared))
    intervals = (
        base.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ci_low:Q", **shared), y2="ci_high:Q")
    )
    chart = alt.layer(intervals, points).properties(width=alt.Step(26), height=64)
    title = (
        f"difference of accuracies on the same programs (first − second), 95% intervals of each alone{_programs(frame)}"
    )
    return chart.facet(
        column=alt.Column("hops:N").title(None),
        row=alt.Row("pair:N", sort=pairs, header=alt.Header(labelAngle=0, labelAlign="left", labelLimit=0)).title(None),
        spacing={"row": 8, "column": 10},
    ).properties(title=_heading(title))


def cells(causal_map: CausalMap) -> pl.DataFrame:
    """The cells of a map as rows: layer, (head,) token position, token, target, the metrics (of an attribution named
    ``estimated_...``), the top token as text."""
    top = causal_map.top_token
    axes = ("layer", "head", "position") if top.ndim == 3 else ("layer", "position")
    index = {axis: values.ravel() for axis, values in zip(axes, np.indices(top.shape), strict=True)}
    position = np.array(causal_map.positions)[index["position"]]
    target_at = {p: visible(name) for name, positions in causal_map.targets.items() for p in positions}
    token_text = np.array([visible(token) for token in causal_map.tokens], dtype=object)
    top_text = {token: visible(text) for token, text in causal_map.vocabulary.items()}
    return pl.DataFrame(
        {
            "layer": np.array(causal_map.layers)[index["layer"]],
            **({"head": np.array(_head_labels(causal_map))[index["head"]]} if "head" in index else {}),
            "position": position,
            "token": token_text[position],
            "target": [target_at.get(p) for p in position.tolist()],
            **{column_of(metric, causal_map): causal_map.grid(metric).ravel() for metric in causal_map.metrics},
            "top_token": [top_text.get(token, f"token {token}") for token in top.ravel().tolist()],
        },
        schema_overrides={"token": pl.Utf8, "target": pl.Utf8},
    ).fill_nan(None)


def pictures(first: CausalMap, mean: MeanCausalMap | None) -> dict[str, Picture]:
    """The charts that a causal run keeps, by the names of their files: of its first pair, and of the mean over all."""
    charts: dict[str, Picture] = {}
    how = f"{ESTIMATED}_" if first.estimated else ""
    if first.positions and not first.heads:
        charts[f"{how}causal_map_first_pair"] = causal_heatmap(first)
    if first.lens_ranks is not None:
        charts["logit_lens_first_pair"] = lens_heatmap(first)
    if mean is None:
        return charts
    if mean.against_random and len(mean.layers) == 1:
        return charts | {"knockout": knockout_chart(mean)}
    if any(known is not None for curve in mean.curves for known in curve[mean.metrics[0]]):
        charts[f"{how}causal_map_mean"] = mean_heatmap(mean)
        charts[f"{how}curves_by_layer"] = curves_by_layer(mean)
    return charts


def shown_first(of: CausalMap | MeanCausalMap) -> Metric:
    """The metric that says most of a cell: of one pair a signed one, of a mean a rate; of an import what has values."""
    signed = [metric for metric in of.metrics if metric in ("normalized_logit_diff", "answer_logit_drop")]
    if isinstance(of, CausalMap):
        known = [metric for metric in of.metrics if not np.isnan(of.values(metric)).all()]
        return next((metric for metric in (*signed, *known) if metric in known), of.metrics[0])
    return of.metrics[0]


def causal_heatmap(causal_map: CausalMap, metric: Metric | None = None) -> Picture:
    """One pair: layers x token positions.

    Below the map stand the tokens, shaded by line of the prompt, those of the targets in yellow and named. Signed
    metrics have a scale that is symmetric around zero; the normalized one always ends at -1 and 1, and the subtitle
    tells where cells lie beyond. A cell without a value shows a cross. Cells before the first difference of the two
    prompts are drawn as what they are by construction: zeros.

    Raises:
        ValueError: the map has heads: :func:`head_heatmap` draws those.
    """
    if causal_map.top.ndim == 3:
        raise ValueError("the map has heads (layers x heads x positions); draw a target of it with head_heatmap")
    metric, frame = column_of(metric or shown_first(causal_map), causal_map), cells(causal_map)
    return _over_tokens(causal_map, frame, metric, _Rows.of(causal_map), _title(causal_map, frame, metric))


def lens_heatmap(causal_map: CausalMap, answer: str = "original", value: str = "rank") -> Picture:
    """The logit lens of the clean run: layers x token positions, read off the residual stream going into each layer.

    Args:
        answer: "original", the run's own answer, or "counterfactual".
        value: "rank", how many tokens have a higher logit (0: the top token), or "logit".

    Raises:
        ValueError: the map has no logit lens, or there is no such answer or value.
    """
    options = {"answer": (answer, ("counterfactual", "original")), "value": (value, ("rank", "logit"))}
    for name, (given, expected) in options.items():
        if given not in expected:
            raise ValueError(f"{name} is {given!r}; expected one of {', '.join(expected)}")
    read = causal_map.lens_ranks if value == "rank" else causal_map.lens_logits
    if read is None:
        raise ValueError("the map has no logit lens: it was not read, or the map is of a run without one")
    which = options["answer"][1].index(answer)
    row, place = (index.ravel() for index in np.indices(read.shape[:2]))
    tokens = [visible(causal_map.tokens[p]) for p in causal_map.positions]
    frame = pl.DataFrame(
        {
            "layer": row,
            "position": np.array(causal_map.positions)[place],
            "token": np.array(tokens, dtype=object)[place],
            value: read[..., which].ravel(),
        },
        schema_overrides={"token": pl.Utf8},
    )
    token = causal_map.answer_tokens[which]
    text = visible(causal_map.vocabulary.get(token, f"token {token}"))
    title = f"logit lens · pair {causal_map.pair} · {value} of the {answer} answer {text}, in the run as it is"
    rows = _Rows(causal_map.n_layers + 1, causal_map.n_layers)
    return _over_tokens(causal_map, frame, value, rows, _heading(title))


def _over_tokens(causal_map: CausalMap, frame: pl.DataFrame, metric: str, rows: _Rows, title: Any) -> Picture:
    """A heatmap of layers x token positions, with the prompt below it."""
    x = alt.X(
        "position:O",
        scale=alt.Scale(domain=causal_map.positions),
        axis=_axis(orient="top", titleAnchor="start", labelOverlap="greedy", labelSeparation=4),
    ).title("token position")
    cell_width = min(24, max(14, 1100 // len(causal_map.positions)))  # seventeen lines fit on a page of 1280 pixels
    layers = [*_grid(frame, metric, x, rows), *_token_strip(causal_map, cell_width)]
    return _sized(alt.layer(*layers).properties(title=title), rows, cell_width)


def head_heatmap(causal_map: CausalMap, target: str, metric: Metric | None = None) -> Picture:
    """One pair and one target of a map with heads: layers x heads, the target's tokens patched together.

    Raises:
        ValueError: the map has no heads, or not this target.
    """
    if causal_map.top.ndim != 3:
        raise ValueError("the map has no heads (layers x positions); draw it with causal_heatmap")
    if target not in causal_map.targets:
        raise ValueError(f"the map has no target {target!r}; its targets: {', '.join(causal_map.targets)}")
    metric, labels = column_of(metric or shown_first(causal_map), causal_map), _head_labels(causal_map)
    layer, head = (index.ravel() for index in np.indices(causal_map.top.shape[:2]))
    names = causal_map.target_metrics
    values = {column_of(name, causal_map): causal_map.at_target(target, name).ravel() for name in names}
    columns = {"layer": np.array(causal_map.layers)[layer], "head": np.array(labels)[head], **values}
    frame = pl.DataFrame(columns).fill_nan(None)
    x = alt.X("head:N", sort=labels, axis=_axis()).title("head")
    chart = alt.layer(*_grid(frame, metric, x, _Rows.of(causal_map)))
    title = _title(causal_map, frame, metric, target)
    return _sized(chart.properties(title=title), _Rows.of(causal_map), min(44, max(18, 700 // len(labels))))


def mean_heatmap(mean: MeanCausalMap, metric: Metric | None = None) -> Picture:
    """The mean over pairs: layers x targets in the order of the text, each with its n; of a map with heads a panel a
    target, layers x heads."""
    metric = metric or shown_first(mean)
    frame, rows = _curves(mean, metric), _Rows.of(mean)
    metric = column_of(metric, mean)
    if frame["head"].null_count() == 0:
        labels = frame["head"].unique(maintain_order=True).to_list()
        x = alt.X("head:N", sort=labels, axis=_axis()).title("head")
        cells_of_panel = _grid(frame, metric, x, rows, of_panel=True)
        panel = _sized(alt.layer(*cells_of_panel, data=frame), rows, 22 if len(labels) > 1 else 44)
        targets = frame["target"].unique(maintain_order=True).to_list()
        facet = alt.Facet("target:N", sort=targets, header=alt.Header(labelFontSize=11, labelLimit=160)).title(None)
        wide = max(1, 1120 // max(150, 22 * len(labels) + 20))
        return panel.facet(facet, columns=wide).properties(title=_title(mean, frame, metric))
    x = alt.X("label:N", sort=_labels(frame), axis=_axis(labelAngle=-45, labelLimit=240, labelOverlap=False)).title(
        None
    )
    dark = f"datum.{metric} < 0.3" if metric in _KEPT else f"abs(datum.{metric}) > 0.7"
    numbers = (
        alt.Chart(frame.drop_nulls(metric))
        .mark_text(fontSize=10)
        .encode(
            x=x,
            y=_layer_axis(rows),
            text=alt.Text(f"{metric}:Q", format=".0%" if metric in RATES else ".2f"),
            color=alt.when(dark).then(alt.value("white")).otherwise(alt.value(_INK)),
        )
    )
    chart = alt.layer(*_grid(frame, metric, x, rows), *([numbers] if metric in RATES or _on_unit(metric) else []))
    return _sized(chart.properties(title=_title(mean, frame, metric)), rows, cell_width=44)


def curves_by_layer(mean: MeanCausalMap, metric: Metric | None = None) -> Picture:
    """A metric over layers: for each target a curve with its interval, and the same-answer control's dotted beside it;
    dashed lines at hand-over layers.

    Of more targets than there are colours to tell them apart, those that differ most from no effect are drawn, none
    that has less than a hundredth of the largest throughout, and the subtitle says so.
    """
    metric = metric or shown_first(mean)
    nothing = 1.0 if metric in _KEPT else 0.0
    effect = {
        curve.target: max((abs(v.estimate - nothing) for v in curve[metric] if v), default=0.0) for curve in mean.curves
    }
    drawn = list(effect)
    if len(drawn) > len(_CATEGORIES):
        seen = [target for target in effect if effect[target] > 0.01 * max(effect.values())]
        drawn = sorted(seen, key=lambda target: -effect[target])[: len(_CATEGORIES)] or drawn
    shown = replace(mean, curves=[curve for curve in mean.curves if curve.target in drawn])
    frame, rows = _curves(shown, metric), _Rows.of(mean)
    step = min(60, max(14, 560 // len(mean.layers)))
    last, count = mean.layers[-1], len(mean.layers)
    room = 36 if last == rows.top else rows.room  # a greedy axis would leave out the last name, which is the widest
    some = range(0, count, math.ceil(rows.room / step))
    named = [mean.layers[row] for row in some if (count - 1 - row) * step >= room]
    axis = alt.Axis(labelAngle=0, labelExpr=rows.label, labelOverlap=False, values=[*named, last])
    x = alt.X("layer:O", axis=axis).title("layer")
    name = LOGGED.get(metric, title_of(metric, mean)).replace("_", " ")
    y = alt.Y(f"{column_of(metric, mean)}:Q", title=name)
    if metric in RATES:
        y = alt.Y(
            f"{metric}:Q",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format="%", tickCount=5, labelFlush=False),
            title=name,
        )
    colour = alt.Color(
        "label:N",
        scale=alt.Scale(domain=_labels(frame), range=_CATEGORIES),
        legend=alt.Legend(symbolOpacity=1, labelLimit=240, orient="top", columns=3),
    )
    base = alt.Chart(frame).encode(x=x, color=colour.title(None), tooltip=_tooltip(frame))
    bands = base.transform_filter("isValid(datum.ci_low)").mark_area(opacity=0.12)
    moves = pl.DataFrame(
        [{"layer": layer, "hand_over": f"{visible(a)} → {visible(b)}"} for a, b, layer in mean.hand_overs()]
        if metric == "success"
        else [],
        schema={"layer": pl.Int64, "hand_over": pl.Utf8},
    )
    moves = moves.group_by("layer", maintain_order=True).agg(pl.col("hand_over").str.join(", "))
    layers = [
        alt.Chart(moves)
        .mark_rule(color=_GREY, strokeDash=[4, 3])
        .encode(x=x, tooltip=[alt.Tooltip("layer:O"), alt.Tooltip("hand_over:N", title="hand-over")]),
        *([bands.encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q")] if mean.n_pairs > 1 else []),
        base.mark_line(strokeWidth=2, point={"filled": True, "size": 50}).encode(y=y),
    ]
    title, notes = _title(mean, frame, column_of(metric, mean)), [_NOT_PATCHED] if mean.estimated else []
    if (control := f"control_{metric}") in frame.columns:
        layers.insert(0, base.mark_line(strokeWidth=1.5, strokeDash=[2, 3]).encode(y=alt.Y(f"{control}:Q")))
        notes.append("dotted: the same cells patched from a program of the same answer")
    if not moves.is_empty():
        notes.append("dashed: a hand-over layer, the first where the next target's rate passes the previous one's")
    if left_out := [value for target, value in effect.items() if target not in drawn]:
        most = f"{max(left_out):.0%}" if metric in RATES else f"{max(left_out):.2g}"
        notes.append(f"not drawn: {len(left_out)} targets that are nowhere further than {most} from no effect")
    if mean.n_pairs == 1:  # bands of all curves would lie upon one another, from 0 to 79% and from 21 to 100%
        notes.append("n = 1: intervals are too wide to be drawn; the tooltip has them")
    title.subtitle = notes or alt.Undefined
    return alt.layer(*layers).properties(width=alt.Step(step), height=260, title=title)


def knockout_chart(mean: MeanCausalMap) -> Picture:
    """In which share of the pairs the answer is kept: each hypothesis beside as many random edges cut in the same
    pairs, with intervals; of a mean whose one row cuts all layers that it cuts together."""
    cut = ("edges of the hypothesis", "as many random edges")
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
    numbers: dict[str, Any] = dict.fromkeys(("answer_kept", "ci_low", "ci_high"), pl.Float64)
    x = alt.X("hypothesis:N", sort=None, axis=alt.Axis(labelAngle=0, ticks=False)).title(None)
    base = alt.Chart(pl.DataFrame(rows, schema_overrides=numbers)).encode(
        x=x,
        xOffset=alt.XOffset("cut:N", sort=list(cut)),
        color=alt.Color(
            "cut:N",
            scale=alt.Scale(domain=list(cut), range=[_CATEGORIES[1], _GREY]),
            legend=alt.Legend(symbolOpacity=1),
        ).title("cut"),
        tooltip=["hypothesis:N", "cut:N", alt.Tooltip("interval:N", title=METRICS["answer_kept"])],
    )
    rate = alt.Y(
        "answer_kept:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, labelFlush=False)
    )
    layers = [
        base.mark_bar(opacity=0.35).encode(y=rate.title(LOGGED["answer_kept"].replace("_", " "))),
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
    parts = ["attention knockout", which, f"layers {_Rows.of(mean).name(mean.layers[0])}"]
    title = _heading(" · ".join(parts), subtitle=notes, subtitleColor=_GREY)
    return alt.layer(*layers).properties(width=alt.Step(60), height=240, title=title)


def trajectory_chart(frame: pl.DataFrame, title: str) -> Picture:
    """Which share of a model's answers each strategy explains, over the checkpoints of its training.

    Args:
        frame: one row a strategy and checkpoint, with columns step, explanation, share, ci_low and ci_high. Steps stand
            at equal distances: checkpoints are dense where the trajectory turns.
    """
    names = frame["explanation"].unique(maintain_order=True).to_list()
    base = alt.Chart(frame).encode(
        x=alt.X("step:O", axis=alt.Axis(labelAngle=0, labelOverlap="greedy")).title("training step"),
        color=alt.Color(
            "explanation:N", scale=alt.Scale(domain=names, range=_CATEGORIES), legend=alt.Legend(symbolOpacity=1)
        ).title("explained by"),
        tooltip=["step:O", "explanation:N", alt.Tooltip("share:Q", format=".1%")],
    )
    share = alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, labelFlush=False))
    bands = base.transform_filter("isValid(datum.ci_low)").mark_area(opacity=0.12)
    return alt.layer(
        bands.encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q"),
        base.mark_line(strokeWidth=2, point={"filled": True, "size": 50}).encode(y=share.title("share of answers")),
    ).properties(width=alt.Step(44), height=240, title=_heading(title))


def _curves(mean: MeanCausalMap, metric: str) -> pl.DataFrame:
    """The mean map as rows: target (and head), its label with n, layer, the metric, the ends of its interval, both as
    text; beside it the same-answer control's, where there is one."""
    control = f"control_{metric}"
    controls = {curve.target: curve[control] for curve in mean.curves if control in mean.metrics and metric != control}
    rows = [
        {
            "target": visible(curve.target.partition("/")[0]),
            "head": curve.target.partition("/head")[2].lstrip("s_").replace("_", "+") or None,
            "label": f"{visible(curve.target)} (n={curve.n})",
            "layer": layer,
            column_of(metric, mean): value and value.estimate,
            "ci_low": value and value.low,
            "ci_high": value and value.high,
            "interval": str(value) if value else "no value",
        }
        | (_control(control, controls[curve.target][row]) if curve.target in controls else {})
        for curve in mean.curves
        for row, (layer, value) in enumerate(zip(mean.layers, curve[metric], strict=True))
    ]
    numbers = dict.fromkeys((column_of(metric, mean), "ci_low", "ci_high"), pl.Float64)  # null in every row, perhaps
    numbers |= {control: pl.Float64} if controls else {}
    return pl.DataFrame(rows, schema_overrides={"head": pl.Utf8} | numbers).fill_nan(None)


def _control(name: str, value: Interval | None) -> dict[str, Any]:
    return {name: value and value.estimate, "control": str(value) if value else "no value"}


def _head_labels(causal_map: CausalMap) -> list[str]:
    """Names of the steps of the head axis: ``3``, or ``3+5`` where heads are patched together."""
    return ["+".join(map(str, heads)) for heads in causal_map.heads]


class _Rows(NamedTuple):
    """The layer axis: how many rows, which of them is what the final norm reads, and how many layers each changes."""

    count: int
    top: int
    window: int = 1

    @classmethod
    def of(cls, of: CausalMap | MeanCausalMap) -> _Rows:
        return cls(len(of.layers), of.n_layers, of.layer_window)

    def name(self, layer: int) -> str:
        last = layer + self.window - 1
        return ("final norm" if layer == self.top else str(layer)) if self.window == 1 else f"{layer}–{last}"

    @property
    def room(self) -> int:
        """Pixels that a name of two digits, or two of them, takes."""
        return 20 if self.window == 1 else 48

    @property
    def label(self) -> str:
        """The same as a chart expression of numbers alone."""
        if self.window > 1:
            return f"datum.value + '–' + (datum.value + {self.window - 1})"
        return f"datum.value == {self.top} ? 'final norm' : datum.value"


def _labels(frame: pl.DataFrame) -> list[str]:
    return frame["label"].unique(maintain_order=True).to_list()


def _grid(frame: pl.DataFrame, metric: Metric, x: alt.X, rows: _Rows, of_panel: bool = False) -> list[alt.Chart]:
    """The coloured cells, and a cross where a cell has no value; those of a panel take its part of the data."""
    if len(frame) > MOST_SVG_CELLS and not of_panel:
        return _many(frame, metric, lambda name: _colour(frame, metric, name), x, rows)
    base = alt.Chart() if of_panel else alt.Chart(frame.with_columns(pl.col(metric).cast(pl.Float64)))
    base = base.encode(x=x, y=_layer_axis(rows), tooltip=_tooltip(frame))
    has_value = f"isValid(datum.{metric})"
    return [
        base.transform_filter(has_value).mark_rect().encode(color=_colour(frame, metric)),
        base.transform_filter(f"!{has_value}").mark_text(text="×", color=_GREY),
    ]


def _many(
    frame: pl.DataFrame, metric: str, colour: Callable[[str], alt.Color], x: alt.X, rows: _Rows
) -> list[alt.Chart]:
    """The same of very many cells. What a tooltip shows is the row itself, made ready here: a browser would evaluate
    texts and conditions of each cell before the first is drawn. ``colour`` is of the field of a name."""
    titles = {each["field"]: each.get("title", each["field"]) for each in _tooltip_dicts(frame)}
    names = titles | {"position": "position", "layer": "layer"}  # by which a click is known
    names.setdefault(metric, metric)
    shown = frame.select(*names).with_columns(pl.col(pl.Float64, pl.Float32).round(3), pl.col(pl.Utf8).fill_null(""))
    y = _layer_axis(rows, sorted(set(frame["layer"]), reverse=True))
    there = frame[metric].is_not_null()

    def drawn(part: pl.Series) -> alt.Chart:
        return alt.Chart(shown.filter(part).rename(names)).encode(x=x, y=y)

    coloured = (
        drawn(there).mark_rect(aria=False, tooltip=alt.TooltipContent("data")).encode(color=colour(names[metric]))
    )
    return [coloured, *([] if there.all() else [drawn(~there).mark_text(text="×", color=_GREY, aria=False)])]


_KEPT = ("answer_kept", "control_answer_kept")  # of these 1 is no effect
_LENS = {"rank": "rank of the answer (0: the top token)", "logit": "logit of the answer"}


def _on_unit(metric: str) -> bool:
    return metric.removeprefix(f"{ESTIMATED}_") in ("normalized_logit_diff", "legacy_normalized_logit_difference")


def _colour(frame: pl.DataFrame, metric: str, field: str | None = None) -> alt.Color:
    """Orange: towards the counterfactual's answer. Purple: away from the original's. White: no effect."""
    legend = alt.Legend(
        orient="top", direction="horizontal", gradientLength=160, gradientThickness=10, titleLimit=240, offset=8
    )
    if metric == "rank":  # of tens of thousands of tokens the first few matter
        legend.values = [0, *(10**n for n in range(1, 6) if 10**n <= _largest(frame, metric))]
        legend.format = "~s"
        scale = alt.Scale(type="symlog", scheme="viridis", reverse=True, domain=[0, max(1.0, _largest(frame, metric))])
    elif metric == "logit":
        scale = alt.Scale(scheme="viridis", zero=False)
    elif metric in RATES:
        side = {"extent": [0.0, 0.5]} if metric in _KEPT else {"extent": [0.5, 1.0]}
        scale = alt.Scale(scheme={"name": "purpleorange", **side}, domain=[0, 1])
        if "interval" in frame.columns:  # a mean: of one pair it is yes or no
            legend.format = "%"
    else:
        end = 1.0 if _on_unit(metric) else _largest(frame, metric) or 1.0
        loses = metric == "answer_logit_drop"
        scale = alt.Scale(scheme="purpleorange", domain=[-end, end], domainMid=0, clamp=True, reverse=loses)
    title = _LENS.get(metric) or _TITLES[metric]
    return alt.Color(field=field or metric, type="quantitative", scale=scale, legend=legend).title(title)


def _largest(frame: pl.DataFrame, metric: str) -> float:
    return float(frame[metric].abs().max() or 0.0)  # type: ignore[arg-type]


def _tooltip_dicts(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [dict(tooltip.to_dict()) for tooltip in _tooltip(frame)]  # type: ignore[call-overload]


def _tooltip(frame: pl.DataFrame) -> list[alt.Tooltip]:
    shown = set(frame.columns) - (set(_TITLES) if "interval" in frame.columns else set())
    return [tooltip for name, tooltip in _TOOLTIPS.items() if name in shown]


_TITLES = METRICS | {f"{ESTIMATED}_{metric}": f"{ESTIMATED} {title}" for metric, title in METRICS.items()}
_NOT_PATCHED = "estimated from gradients, not patched"
_TOOLTIPS = {
    "token": alt.Tooltip("token:N"),
    "position": alt.Tooltip("position:O", title="token position"),
    "layer": alt.Tooltip("layer:O"),
    "head": alt.Tooltip("head:O"),
    "target": alt.Tooltip("target:N"),
    "interval": alt.Tooltip("interval:N", title="mean and 95% interval"),
    "control": alt.Tooltip("control:N", title="same-answer control"),
    "rank": alt.Tooltip("rank:Q", format=",d", title="rank (0: the top token)"),
    "logit": alt.Tooltip("logit:Q", format=".2f"),
    **{metric: alt.Tooltip(f"{metric}:Q", format=".3f", title=title) for metric, title in _TITLES.items()},
    "success": alt.Tooltip("success:N"),
    "top_token": alt.Tooltip("top_token:N", title="top token"),
}


def _layer_axis(rows: _Rows, layers: list[int] | None = None) -> alt.Y:
    """``layers`` from the top down spare the browser to look for them."""
    axis = _axis(labelExpr=rows.label, labelOverlap=True)
    order: dict[str, Any] = {"scale": alt.Scale(domain=layers), "sort": None} if layers else {"sort": "descending"}
    return alt.Y("layer:O", axis=axis, **order).title("layer" if rows.window == 1 else "layers")


def _axis(**settings: Any) -> alt.Axis:
    """An axis of a heatmap: labels close to the cells, whatever distance the theme would keep."""
    near = {"labelAngle": 0, "labelPadding": 4, "labelFlush": False, "titlePadding": 6, "ticks": False, "domain": False}
    return alt.Axis(**(near | settings))


def _sized(chart: Picture, rows: _Rows, cell_width: int) -> Picture:
    cell_height = min(22, max(9, 420 // rows.count))
    return chart.properties(width=alt.Step(cell_width), height=alt.Step(cell_height))


def _title(
    of: CausalMap | MeanCausalMap, frame: pl.DataFrame, metric: str, target: str | None = None
) -> alt.TitleParams:
    """What the picture is of; the subtitle says what colours hide."""
    if isinstance(of, MeanCausalMap):
        which = "one pair" if of.n_pairs == 1 else f"mean over {of.n_pairs} pairs"
    else:
        c, o = (visible(of.vocabulary.get(token, f"token {token}")) for token in of.answer_tokens)
        patched = {"zero": "zeros", "mean": "means", "resample": "another pair's activations"}.get(of.source, c)
        what = "edges cut in" if of.source == "knockout" else f"{patched} patched into"
        which = f"pair {of.pair} · {what} a program whose answer is {o}"
    how = f", {ESTIMATED}" if of.estimated else ""
    parts = [f"{visible(of.intervention_type)}{how}", *([visible(target)] if target else []), which]
    notes = [_NOT_PATCHED] if of.estimated else []
    normalized = metric.removeprefix(f"{ESTIMATED}_") == "normalized_logit_diff"
    if frame[metric].null_count():
        why = ", the pair's own effect is too small to divide by" if normalized else ""
        notes.append(f"×: no value{why}")
    if normalized and (beyond := int((frame[metric].abs() > 1.005).sum())):
        notes.append(f"beyond ±1, where the colour ends: {beyond} of {len(frame)} cells; the tooltip has their values")
    return _heading(" · ".join(parts), subtitle=notes or alt.Undefined, subtitleColor=_GREY)


def _token_strip(causal_map: CausalMap, cell_width: int) -> list[alt.Chart]:
    """Below the map: a chip for each token, the names of the targets, and a rule where a line of the prompt ends."""
    line_of = np.cumsum([0, *("\n" in token for token in causal_map.tokens)]).tolist()
    in_target = {p for positions in causal_map.targets.values() for p in positions}
    strip = pl.DataFrame(
        {
            "position": causal_map.positions,
            "token": [visible(causal_map.tokens[p]) for p in causal_map.positions],
            "label": [visible(causal_map.tokens[p], 12) for p in causal_map.positions],
            "chip": [_TARGET if p in in_target else _LINES[line_of[p] % 2] for p in causal_map.positions],
            "ends_line": [line_of[p + 1] > line_of[p] for p in causal_map.positions],
        }
    )
    names: dict[int, list[str]] = {}
    for name, positions in causal_map.targets.items():
        names.setdefault(min(positions), []).append(visible(name))
    targets = pl.DataFrame({"position": names.keys(), "target": [" = ".join(of) for of in names.values()]})
    targets = targets.filter(pl.col("position").is_in(causal_map.positions))

    width = pl.col("label").str.len_chars() * 6  # pixels, in a monospaced font of size 10
    strip = strip.with_columns(angle=pl.when(width <= cell_width).then(0).otherwise(270))
    height = max([20, *strip.filter(pl.col("angle") > 0).select(width + 8).to_series()])
    size = 11 if cell_width > 16 else 10  # names of neighbours, slanting, keep clear of one another
    bottom = alt.value("height")
    x = alt.X("position:O")
    base = alt.Chart(strip).encode(
        x=x, y=bottom, tooltip=["token:N", alt.Tooltip("position:O", title="token position")]
    )
    return [
        alt.Chart(strip.filter("ends_line")).mark_rule(color=_GREY).encode(x=alt.X("position:O", bandPosition=1)),
        base.mark_rect(yOffset=5, y2Offset=5 + height).encode(y2=bottom, fill=alt.Fill("chip:N", scale=None)),
        base.mark_text(font="monospace", fontSize=10, color=_INK, yOffset=5 + height / 2).encode(
            text="label:N", angle=alt.Angle("angle:Q", scale=None)
        ),
        alt.Chart(targets)
        .mark_text(
            color=_NAME,
            fontSize=size,
            align="left",
            baseline="middle",
            angle=45,
            yOffset=12 + height,
        )
        .encode(x=x, y=bottom, text="target:N"),
    ]
