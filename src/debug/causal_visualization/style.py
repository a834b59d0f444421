"""Shared by all charts: colours, axes, tooltips, the display of tokens, writing charts to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import altair as alt
import polars as pl

from debug.causal_map import ESTIMATED, METRICS, CausalMap, MeanCausalMap, in_words, metric_of
from debug.kinds import Argument, Json

Picture = alt.LayerChart | alt.FacetChart | alt.ConcatChart
Metric = str  # one of METRICS that the map has

# Okabe and Ito's colour-blind-safe palette; yellow darkened for light themes, black replaced by grey for dark themes.
CATEGORIES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#b8a800"]
GREY = "#7a7a7a"  # equal contrast on light and dark backgrounds
TARGET, LINES = "#f2c14e", ("#e4e4ea", "#c9c9d4")  # boxes behind tokens: of a target; of odd and of even lines
INK, NAME = "#22222a", "#9a7000"  # text on a box; a target's name, readable in both themes
MOST_SVG_CELLS = 3000  # above this: drawn on a canvas with few expressions, or a browser takes seconds

alt.data_transformers.disable_max_rows()  # a map of 64 layers x 200 tokens has 13,000 rows


def visible(text: str, longest: int = 40) -> str:
    """A token as printable text: ``·`` for a space, ``⏎`` for a newline, escapes for other unprintable characters."""
    shown = "".join(
        {" ": "·", "\n": "⏎"}.get(c, c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def shown_target(target: str) -> str:
    """A target's name for people, of printable characters only."""
    return in_words(visible(target, longest=80))


def heading(text: str, **settings: Argument) -> alt.TitleParams:
    """A chart's title, close to the chart whatever offset the theme sets."""
    return alt.TitleParams(text, anchor="start", fontSize=13, offset=10, **settings)


def label_of(text: str) -> str:
    """A name from data on one line; spaces stay spaces."""
    return visible(text, longest=60).replace("·", " ")


def save_chart(chart: Picture, folder: Path, stem: str) -> list[Path]:
    """Write ``<stem>.html``, self-contained, and ``<stem>.png``; returns both paths."""
    html, png = folder / f"{stem}.html", folder / f"{stem}.png"
    page = chart.to_html(inline=True, json_kwds={"cls": _ScriptSafeJSON}, embed_options={"actions": {"editor": False}})
    html.write_text(page, encoding="utf-8")
    chart.save(png, scale_factor=2)
    return [html, png]


class _ScriptSafeJSON(json.JSONEncoder):
    """JSON that is safe inside <script>: a token ``</script>`` would otherwise end the script and become HTML."""

    def encode(self, o: object) -> str:
        return super().encode(o).replace("<", "\\u003c")


def on_unit(metric: str) -> bool:
    return metric_of(metric).scale == "share"


def colour_of(frame: pl.DataFrame, metric: str, field: str | None = None) -> alt.Color:
    """Orange: towards the counterfactual answer. Purple: away from the original answer. White: no effect."""
    legend = alt.Legend(
        orient="top", direction="horizontal", gradientLength=160, gradientThickness=10, titleLimit=240, offset=8
    )
    if metric == "rank":  # a log scale: low ranks matter most
        legend.values = [0, *(10**n for n in range(1, 6) if 10**n <= _largest(frame, metric))]
        legend.format = "~s"
        scale = alt.Scale(type="symlog", scheme="viridis", reverse=True, domain=[0, max(1.0, _largest(frame, metric))])
    elif metric == "logit":
        scale = alt.Scale(scheme="viridis", zero=False)
    elif not metric_of(metric).signed:
        side = {"extent": [0.0, 0.5] if metric_of(metric).no_effect else [0.5, 1.0]}
        scale = alt.Scale(scheme={"name": "purpleorange", **side}, domain=[0, 1])
        if "interval" in frame.columns:  # a mean: of one pair it is yes or no
            legend.format = "%"
    else:
        end = 1.0 if on_unit(metric) else _largest(frame, metric) or 1.0
        loses = metric_of(metric).loses
        scale = alt.Scale(scheme="purpleorange", domain=[-end, end], domainMid=0, clamp=True, reverse=loses)
    title = LENS.get(metric) or _title(metric)
    return alt.Color(field=field or metric, type="quantitative", scale=scale, legend=legend).title(title)


def _largest(frame: pl.DataFrame, metric: str) -> float:
    return float(frame[metric].abs().max() or 0.0)  # type: ignore[arg-type]  (a number, of polars' many kinds)


def tooltip_dicts(frame: pl.DataFrame) -> list[dict[str, Json]]:
    return [dict(tooltip.to_dict()) for tooltip in tooltip_of(frame)]  # type: ignore[call-overload]  (altair: a dict)


def tooltip_of(frame: pl.DataFrame) -> list[alt.Tooltip]:
    numbers = {} if "interval" in frame.columns else dict.fromkeys([*METRICS, *(f"{ESTIMATED}_{m}" for m in METRICS)])
    of_metrics = {name: alt.Tooltip(f"{name}:Q", format=".3f", title=_title(name)) for name in numbers}
    of_metrics |= {"success": alt.Tooltip("success:N")} if numbers else {}
    places = [name for name in _TOOLTIPS if name != "top_token"]
    every = {name: _TOOLTIPS[name] for name in places} | of_metrics | {"top_token": _TOOLTIPS["top_token"]}
    return [tooltip for name, tooltip in every.items() if name in frame.columns]


def _title(column: str) -> str:
    how = f"{ESTIMATED} " if column.startswith(f"{ESTIMATED}_") else ""
    return how + metric_of(column).title


NOT_PATCHED = "estimated from gradients, not patched"
_TOOLTIPS = {
    "token": alt.Tooltip("token:N"),
    "position": alt.Tooltip("position:O", title="token position"),
    "layer": alt.Tooltip("layer:O"),
    "head": alt.Tooltip("head:O"),
    "target": alt.Tooltip("target:N"),
    "interval": alt.Tooltip("interval:N", title="mean, 95% CI"),
    "control": alt.Tooltip("control:N", title="same-answer control"),
    "rank": alt.Tooltip("rank:Q", format=",d", title="rank (0: the top token)"),
    "logit": alt.Tooltip("logit:Q", format=".2f"),
    "top_token": alt.Tooltip("top_token:N", title="top token"),
}


def domain_of(values: list[int]) -> list[int] | alt.ExprRef:
    """A scale's domain. Of numbers in a row an expression: Altair copies and checks a long list again and again."""
    step = 1 if values[0] <= values[-1] else -1
    in_a_row = range(values[0], values[-1] + step, step)
    return alt.ExprRef(f"sequence({values[0]}, {in_a_row.stop}, {step})") if values == list(in_a_row) else values


def layer_axis(rows: Rows, layers: list[int] | None = None) -> alt.Y:
    """``layers``, from the top down, save the browser from finding and sorting them."""
    axis = axis_of(labelExpr=rows.label, labelOverlap=True)
    order: dict[str, Argument] = (
        {"scale": alt.Scale(domain=domain_of(layers)), "sort": None} if layers else {"sort": "descending"}
    )
    return alt.Y("layer:O", axis=axis, **order).title("layer" if rows.window == 1 else "layers")


def axis_of(**settings: Argument) -> alt.Axis:
    """An axis of a heatmap: labels close to it, whatever padding the theme sets."""
    near = {"labelAngle": 0, "labelPadding": 4, "labelFlush": False, "titlePadding": 6, "ticks": False, "domain": False}
    return alt.Axis(**(near | settings))


def sized(chart: Picture, rows: Rows, cell_width: int) -> Picture:
    return chart.properties(width=alt.Step(cell_width), height=alt.Step(cell_height(rows)))


def cell_height(rows: Rows) -> int:
    """In pixels."""
    return min(22, max(9, 420 // rows.count))


LEAST_FOR_TEXT = 12
"""Pixels of a row that text of size 10 fits into."""


def title_with(
    of: CausalMap | MeanCausalMap, frame: pl.DataFrame, metric: str, target: str | None = None
) -> alt.TitleParams:
    """The content of the picture as title; missing values and values beyond the scale as subtitle."""
    if isinstance(of, MeanCausalMap):
        which = "one pair" if of.n_pairs == 1 else f"mean over {of.n_pairs} pairs"
    else:
        c, o = (visible(of.vocabulary.get(token, f"token {token}")) for token in of.answer_tokens)
        what = {"knockout": "edges cut", **{name: f"{name} ablation" for name in ("zero", "mean", "resample")}}
        patched = f"patched from answer {c} into answer {o}"
        which = f"pair {of.pair} · " + (f"{what[of.source]}, answer {o}" if of.source in what else patched)
    how = f", {ESTIMATED}" if of.estimated else ""
    parts = [f"{visible(of.intervention_type)}{how}", *([shown_target(target)] if target else []), which]
    notes = [NOT_PATCHED] if of.estimated else []
    normalized = metric_of(metric).interval == "ratio of means"
    if frame[metric].null_count():
        why = " (the counterfactual's own effect is too small to normalize by)" if normalized else ""
        notes.append(f"×: no value{why}")
    if normalized and (beyond := int((frame[metric].abs() > 1.005).sum())):
        notes.append(f"beyond ±1 (end of the colour scale): {beyond} of {len(frame)} values; see the tooltip")
    return heading(" · ".join(parts), subtitle=notes or alt.Undefined, subtitleColor=GREY)


class Rows(NamedTuple):
    """The layer axis: number of rows, the row that the final norm reads, and the layers that a row changes."""

    count: int
    top: int
    window: int = 1

    @classmethod
    def of(cls, of: CausalMap | MeanCausalMap) -> Rows:
        return cls(len(of.layers), of.n_layers, of.layer_window)

    def name(self, layer: int) -> str:
        last = layer + self.window - 1
        return ("final norm" if layer == self.top else str(layer)) if self.window == 1 else f"{layer}–{last}"

    @property
    def room(self) -> int:
        """Width in pixels of a label: a number of two digits, or two of them."""
        return 20 if self.window == 1 else 48

    @property
    def label(self) -> str:
        """The same as a chart expression of numbers only."""
        if self.window > 1:
            return f"datum.value + '–' + (datum.value + {self.window - 1})"
        return f"datum.value == {self.top} ? 'final norm' : datum.value"


LENS = {"rank": "rank of the answer (0: the top token)", "logit": "logit of the answer"}
