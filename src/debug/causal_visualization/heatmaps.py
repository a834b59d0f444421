"""Causal maps as heatmaps: over tokens, over heads, the mean over targets, the logit lens."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from debug.causal_map import CausalMap, MeanCausalMap, column_of, metric_of
from debug.causal_visualization.rows import cells, curve_rows, grid_rows, head_labels, labels_of, shown_first
from debug.causal_visualization.style import (
    GREY,
    INK,
    LEAST_FOR_TEXT,
    LINES,
    MOST_SVG_CELLS,
    NAME,
    TARGET,
    Metric,
    Picture,
    Rows,
    axis_of,
    cell_height,
    domain_of,
    heading,
    layer_axis,
    shown_target,
    sized,
    title_with,
    visible,
)
from debug.errors import InputError


def causal_heatmap(causal_map: CausalMap, metric: Metric | None = None, cell_width: int | None = None) -> Picture:
    """One pair: layers x token positions.

    The tokens are below the map, shaded by line of the prompt; those of targets are yellow and named. Signed metrics
    have a scale that is symmetric around zero; the normalized one ends at -1 and 1, and the subtitle says how many
    values lie beyond. A missing value is a cross. Positions before the first difference of the two prompts are zero by
    construction.

    Args:
        cell_width: of a square, in pixels (default: 14 to 24, so that a program of 17 lines fits on 1280 pixels).

    Raises:
        InputError: the map has heads: :func:`head_heatmap` draws those.
    """
    if causal_map.top.ndim == 3:
        raise InputError("the map has heads (layers x heads x positions); draw a target of it with head_heatmap")
    metric, frame = column_of(metric or shown_first(causal_map), causal_map), cells(causal_map)
    title = title_with(causal_map, frame, metric)
    return _over_tokens(causal_map, frame, metric, Rows.of(causal_map), title, cell_width)


def lens_heatmap(causal_map: CausalMap, answer: str = "original", value: str = "rank") -> Picture:
    """The logit lens of the clean forward pass: layers x token positions, applied to resid_pre of each layer.

    Args:
        answer: "original", the run's own answer, or "counterfactual".
        value: "rank", the number of tokens with a higher logit (0: the top token), or "logit".

    Raises:
        InputError: the map has no logit lens, or there is no such answer or value.
    """
    options = {"answer": (answer, ("counterfactual", "original")), "value": (value, ("rank", "logit"))}
    for name, (given, expected) in options.items():
        if given not in expected:
            raise InputError(f"{name} is {given!r}; expected one of {', '.join(expected)}")
    read = causal_map.lens_ranks if value == "rank" else causal_map.lens_logits
    if read is None:
        raise InputError("the map has no logit lens: it was not read, or the map is of a run without one")
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
    title = f"logit lens · pair {causal_map.pair} · {value} of the {answer} answer {text}, clean forward pass"
    rows = Rows(causal_map.n_layers + 1, causal_map.n_layers)
    return _over_tokens(causal_map, frame, value, rows, heading(title))


def _over_tokens(
    causal_map: CausalMap,
    frame: pl.DataFrame,
    metric: str,
    rows: Rows,
    title: alt.TitleParams,
    cell_width: int | None = None,
) -> Picture:
    """A heatmap of layers x token positions, with the prompt below it."""
    positions = causal_map.positions
    x = alt.X(
        "position:O",
        scale=alt.Scale(domain=domain_of(positions) if len(frame) > MOST_SVG_CELLS else positions),
        axis=axis_of(orient="top", titleAnchor="start", labelOverlap="greedy", labelSeparation=4),
    ).title("token position")
    cell_width = cell_width or min(24, max(14, 1100 // len(causal_map.positions)))
    layers = [*grid_rows(frame, metric, x, rows), *token_strip(causal_map, cell_width)]
    return sized(alt.layer(*layers).properties(title=title), rows, cell_width)


def head_heatmap(causal_map: CausalMap, target: str, metric: Metric | None = None) -> Picture:
    """One pair and one target of a map with heads: layers x heads, the target's tokens patched together.

    Raises:
        InputError: the map has no heads, or not this target.
    """
    if causal_map.top.ndim != 3:
        raise InputError("the map has no heads (layers x positions); draw it with causal_heatmap")
    if target not in causal_map.targets:
        raise InputError(f"the map has no target {target!r}; its targets: {', '.join(causal_map.targets)}")
    metric, labels = column_of(metric or shown_first(causal_map), causal_map), head_labels(causal_map)
    layer, head = (index.ravel() for index in np.indices(causal_map.top.shape[:2]))
    names = causal_map.target_metrics
    values = {column_of(name, causal_map): causal_map.at_target(target, name).ravel() for name in names}
    columns = {"layer": np.array(causal_map.layers)[layer], "head": np.array(labels)[head], **values}
    frame = pl.DataFrame(columns).fill_nan(None)
    x = alt.X("head:N", sort=labels, axis=axis_of()).title("head")
    chart = alt.layer(*grid_rows(frame, metric, x, Rows.of(causal_map)))
    title = title_with(causal_map, frame, metric, target)
    return sized(chart.properties(title=title), Rows.of(causal_map), min(44, max(18, 700 // len(labels))))


def mean_heatmap(mean: MeanCausalMap, metric: Metric | None = None, cell_width: int = 44) -> Picture:
    """The mean over pairs: layers x targets in the order of the text, each with its n; for maps with heads one panel of
    layers x heads per target. Values are written into the squares where a row is high enough for text.

    Args:
        cell_width: of a square without heads, in pixels.
    """
    metric = metric or shown_first(mean)
    frame, rows = curve_rows(mean, metric), Rows.of(mean)
    metric = column_of(metric, mean)
    if frame["head"].null_count() == 0:
        labels = frame["head"].unique(maintain_order=True).to_list()
        x = alt.X("head:N", sort=labels, axis=axis_of()).title("head")
        cells_of_panel = grid_rows(frame, metric, x, rows, of_panel=True)
        panel = sized(alt.layer(*cells_of_panel, data=frame), rows, 22 if len(labels) > 1 else 44)
        targets = frame["in_words"].unique(maintain_order=True).to_list()
        facet = alt.Facet("in_words:N", sort=targets, header=alt.Header(labelFontSize=11, labelLimit=160)).title(None)
        wide = max(1, 1120 // max(150, 22 * len(labels) + 20))
        return panel.facet(facet, columns=wide).properties(title=title_with(mean, frame, metric))
    x = alt.X("label:N", sort=labels_of(frame), axis=axis_of(labelAngle=-45, labelLimit=240, labelOverlap=False)).title(
        None
    )
    dark = f"datum.{metric} < 0.3" if metric_of(metric).no_effect else f"abs(datum.{metric}) > 0.7"
    numbers = (
        alt.Chart(frame.drop_nulls(metric))
        .mark_text(fontSize=10)
        .encode(
            x=x,
            y=layer_axis(rows),
            text=alt.Text(f"{metric}:Q", format=".2f" if metric_of(metric).signed else ".0%"),
            color=alt.when(dark).then(alt.value("white")).otherwise(alt.value(INK)),
        )
    )
    written = metric_of(metric).scale != "logit" and cell_height(rows) >= LEAST_FOR_TEXT
    chart = alt.layer(*grid_rows(frame, metric, x, rows), *([numbers] if written else []))
    return sized(chart.properties(title=title_with(mean, frame, metric)), rows, cell_width)


def token_strip(causal_map: CausalMap, cell_width: int) -> list[alt.Chart]:
    """Below the map: a box per token, the names of the targets, and a rule where a line of the prompt ends."""
    line_of = np.cumsum([0, *("\n" in token for token in causal_map.tokens)]).tolist()
    in_target = {p for positions in causal_map.targets.values() for p in positions}
    strip = pl.DataFrame(
        {
            "position": causal_map.positions,
            "token": [visible(causal_map.tokens[p]) for p in causal_map.positions],
            "label": [visible(causal_map.tokens[p], 12) for p in causal_map.positions],
            "chip": [TARGET if p in in_target else LINES[line_of[p] % 2] for p in causal_map.positions],
            "ends_line": [line_of[p + 1] > line_of[p] for p in causal_map.positions],
        }
    )
    names: dict[int, list[str]] = {}
    for name, positions in causal_map.targets.items():
        names.setdefault(min(positions), []).append(shown_target(name))
    targets = pl.DataFrame({"position": names.keys(), "target": [" = ".join(of) for of in names.values()]})
    targets = targets.filter(pl.col("position").is_in(causal_map.positions))

    width = pl.col("label").str.len_chars() * 6  # pixels, in a monospaced font of size 10
    strip = strip.with_columns(angle=pl.when(width <= cell_width).then(0).otherwise(270))
    height = max([20, *strip.filter(pl.col("angle") > 0).select(width + 8).to_series()])
    size = 11 if cell_width > 16 else 10  # slanted names of neighbours must not overlap
    bottom = alt.value("height")
    x = alt.X("position:O")
    base = alt.Chart(strip).encode(
        x=x, y=bottom, tooltip=["token:N", alt.Tooltip("position:O", title="token position")]
    )
    return [
        alt.Chart(strip.filter("ends_line")).mark_rule(color=GREY).encode(x=alt.X("position:O", bandPosition=1)),
        base.mark_rect(yOffset=5, y2Offset=5 + height).encode(y2=bottom, fill=alt.Fill("chip:N", scale=None)),
        base.mark_text(font="monospace", fontSize=10, color=INK, yOffset=5 + height / 2).encode(
            text="label:N", angle=alt.Angle("angle:Q", scale=None)
        ),
        alt.Chart(targets)
        .mark_text(
            color=NAME,
            fontSize=size,
            align="left",
            baseline="middle",
            angle=45,
            yOffset=12 + height,
        )
        .encode(x=x, y=bottom, text="target:N"),
    ]
