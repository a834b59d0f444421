"""Maps as rows of a data frame, and the marks of all heatmaps."""

from __future__ import annotations

from collections.abc import Callable

import altair as alt
import numpy as np
import polars as pl

from debug.causal_map import LEGACY, METRICS, CausalMap, MeanCausalMap, TargetCurve, column_of
from debug.causal_visualization.style import (
    GREY,
    MOST_SVG_CELLS,
    Metric,
    Rows,
    colour_of,
    layer_axis,
    shown_target,
    tooltip_dicts,
    tooltip_of,
    visible,
)
from debug.statistics import Interval


def cells(causal_map: CausalMap) -> pl.DataFrame:
    """A map as rows, one per intervention: layer, (head,) token position, token, target, the metrics (named
    ``estimated_...`` for an attribution), the top token as text."""
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
            **({"head": np.array(head_labels(causal_map))[index["head"]]} if "head" in index else {}),
            "position": position,
            "token": token_text[position],
            "target": [target_at.get(p) for p in position.tolist()],
            **{column_of(metric, causal_map): causal_map.grid(metric).ravel() for metric in causal_map.metrics},
            "top_token": [top_text.get(token, f"token {token}") for token in top.ravel().tolist()],
        },
        schema_overrides={"token": pl.Utf8, "target": pl.Utf8},
    ).fill_nan(None)


def control_columns(name: str, value: Interval | None) -> dict[str, float | str | None]:
    return {name: value and value.estimate, "control": str(value) if value else "no value"}


def head_labels(causal_map: CausalMap) -> list[str]:
    """Labels of the head axis: ``3``, or ``3+5`` where heads are patched together."""
    return ["+".join(map(str, heads)) for heads in causal_map.heads]


def labels_of(frame: pl.DataFrame) -> list[str]:
    return frame["label"].unique(maintain_order=True).to_list()


def grid_rows(frame: pl.DataFrame, metric: Metric, x: alt.X, rows: Rows, of_panel: bool = False) -> list[alt.Chart]:
    """Coloured rectangles, and a cross for a missing value; in a panel they use the panel's part of the data."""
    if len(frame) > MOST_SVG_CELLS and not of_panel:
        return _many(frame, metric, lambda name: colour_of(frame, metric, name), x, rows)
    base = alt.Chart() if of_panel else alt.Chart(frame.with_columns(pl.col(metric).cast(pl.Float64)))
    base = base.encode(x=x, y=layer_axis(rows), tooltip=tooltip_of(frame))
    has_value = f"isValid(datum.{metric})"
    return [
        base.transform_filter(has_value).mark_rect().encode(color=colour_of(frame, metric)),
        base.transform_filter(f"!{has_value}").mark_text(text="×", color=GREY),
    ]


def _many(
    frame: pl.DataFrame, metric: str, colour: Callable[[str], alt.Color], x: alt.X, rows: Rows
) -> list[alt.Chart]:
    """The same for very many rectangles. Tooltips show the row itself, prepared here: a browser would evaluate the
    texts and conditions of every rectangle before it draws the first, and unpack every metric that is not drawn.
    ``colour`` returns the colour of a field."""
    frame = frame.select(name for name, kind in frame.schema.items() if name == metric or not kind.is_float())
    titles = {each["field"]: each.get("title", each["field"]) for each in tooltip_dicts(frame)}
    names = titles | {"position": "position", "layer": "layer"}  # fields that a click returns
    names.setdefault(metric, metric)
    shown = frame.select(*names).with_columns(pl.col(pl.Float64, pl.Float32).round(3), pl.col(pl.Utf8).fill_null(""))
    y = layer_axis(rows, sorted(set(frame["layer"]), reverse=True))
    there = frame[metric].is_not_null()

    def drawn(part: pl.Series) -> alt.Chart:
        return alt.Chart(shown.filter(part).rename(names)).encode(x=x, y=y)

    coloured = drawn(there).mark_rect(aria=False, invalid=None, tooltip=alt.TooltipContent("data"))
    coloured = coloured.encode(color=colour(names[metric]))
    return [coloured, *([] if there.all() else [drawn(~there).mark_text(text="×", color=GREY, aria=False)])]


def shown_first(of: CausalMap | MeanCausalMap) -> Metric:
    """The default metric: a signed one for a pair, a rate for a mean; for an imported map the first with values."""
    signed = [metric for metric in of.metrics if METRICS[metric].signed and metric not in LEGACY]
    if isinstance(of, CausalMap):
        known = [metric for metric in of.metrics if not np.isnan(of.values(metric)).all()]
        return next((metric for metric in (*signed, *known) if metric in known), of.metrics[0])
    return of.metrics[0]


def label_of_curve(curve: TargetCurve) -> str:
    return f"{shown_target(curve.target)} (n={curve.n})"


def curve_rows(mean: MeanCausalMap, metric: str) -> pl.DataFrame:
    """The mean map as rows: target (and head), its label with n, layer, the metric, the ends of its 95% CI, both as
    text; and the same-answer control, where there is one."""
    control = f"control_{metric}"
    controls = {curve.target: curve[control] for curve in mean.curves if control in mean.metrics and metric != control}
    rows = []
    for curve in mean.curves:
        names = {"target": visible(curve.place.target), "in_words": shown_target(curve.place.target)}
        names |= {"head": curve.place.head_label, "label": label_of_curve(curve)}
        rows += [
            {
                **names,
                "layer": layer,
                column_of(metric, mean): value and value.estimate,
                "ci_low": value and value.low,
                "ci_high": value and value.high,
                "interval": str(value) if value else "no value",
            }
            | (control_columns(control, controls[curve.target][row]) if curve.target in controls else {})
            for row, (layer, value) in enumerate(zip(mean.layers, curve[metric], strict=True))
        ]
    numbers = dict.fromkeys((column_of(metric, mean), "ci_low", "ci_high"), pl.Float64)  # null in every row, perhaps
    numbers |= {control: pl.Float64} if controls else {}
    return pl.DataFrame(rows, schema_overrides={"head": pl.Utf8} | numbers).fill_nan(None)
