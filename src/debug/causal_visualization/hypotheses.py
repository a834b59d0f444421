"""Rival hypotheses: one map for each on one scale, and a map of the best."""

from __future__ import annotations

import altair as alt
import polars as pl

from debug.causal_visualization.comparison import legend_of, scale_of
from debug.causal_visualization.style import (
    CATEGORIES,
    GREY,
    INK,
    Picture,
    Rows,
    axis_of,
    heading,
    layer_axis,
    shown_target,
)
from debug.hypotheses import HypothesisScores
from debug.hypotheses.models import NONE
from debug.hypotheses.scoring import NOBODY, TIE

_NONE, _UNTOLD, _NOBODY = "#c9c9d4", "#7a7a7a", "#f3eeea"
_SHOWN = {TIE: "tie: not told apart", NOBODY: "none: no more than half of the pairs"}


def _frame(scores: HypothesisScores) -> pl.DataFrame:
    """One row for each hypothesis and square: its agreement with 95% CI, and who is best there."""
    rows = [
        (
            *(layer, shown_target(each.place.name), name.replace("_", " "), value.estimate, str(value), each.n),
            *(best.winner, ", ".join(best.names).replace("_", " "), best.compared.p_value if best.compared else None),
        )
        for each in scores.places
        for name, by_layer in each.agreement.items()
        for layer, value, best in zip(scores.layers, by_layer, each.best, strict=True)
    ]
    names = ("layer", "target", "hypothesis", "agreement", "interval", "n", "winner", "names", "p")
    types = (pl.Int64, pl.Utf8, pl.Utf8, pl.Float64, pl.Utf8, pl.Int64, pl.Utf8, pl.Utf8, pl.Float64)
    return pl.DataFrame(rows, dict(zip(names, types, strict=True)), orient="row")


def _axes(scores: HypothesisScores) -> tuple[alt.X, alt.Y, Rows]:
    rows = Rows(len(scores.layers), scores.n_layers, scores.layer_window)
    targets = [shown_target(each.place.name) for each in scores.places]
    axis = axis_of(labelAngle=-90, labelLimit=160, labelOverlap=False)
    x = alt.X("target:N", sort=targets, scale=alt.Scale(domain=targets), axis=axis).title(None)
    return x, layer_axis(rows, sorted(scores.layers, reverse=True)), rows


def hypothesis_maps(scores: HypothesisScores) -> alt.ConcatChart:
    """Small multiples: for each hypothesis layers x targets, coloured by the share of the distinguishing pairs whose
    patched top token is the one that it predicts. All have one scale."""
    frame, (x, y, rows) = _frame(scores), _axes(scores)
    legend = legend_of()
    legend.format = "%"
    panels = [
        alt.Chart(frame.filter(pl.col("hypothesis") == (shown := name.replace("_", " "))))
        .mark_rect()
        .encode(
            x=x,
            y=y,
            color=alt.Color("agreement:Q", scale=scale_of(False, 1.0), legend=legend).title(
                "agreement with the patched top token"
            ),
            tooltip=[
                *("target:N", "layer:O", "hypothesis:N"),
                alt.Tooltip("interval:N", title="agreement, 95% CI"),
                alt.Tooltip("n:Q", title="distinguishing pairs"),
            ],
        )
        .properties(width=alt.Step(22), height=_height(rows), title=heading(shown))
        for name in scores.hypotheses
    ]
    return alt.concat(*panels, columns=4).resolve_scale(color="shared")


def winner_map(scores: HypothesisScores) -> Picture:
    """Layers x targets, coloured by the hypothesis that the patched runs agree with most; ties and "none" as such."""
    frame, (x, y, rows) = _frame(scores), _axes(scores)
    frame = frame.unique(["layer", "target"], maintain_order=True, keep="first").with_columns(
        best=pl.col("winner").replace(_SHOWN).str.replace_all("_", " ")
    )
    others = iter(CATEGORIES)
    colours = {name.replace("_", " "): _NONE if name == NONE else next(others) for name in scores.hypotheses}
    colours |= {_SHOWN[TIE]: _UNTOLD, _SHOWN[NOBODY]: _NOBODY}
    base = alt.Chart(frame).encode(
        x=x,
        y=y,
        tooltip=[
            *("target:N", "layer:O"),
            alt.Tooltip("best:N", title="best"),
            alt.Tooltip("names:N", title="first, and what it is not told from"),
            alt.Tooltip("p:Q", format=".2g", title="McNemar's p, best two that differ"),
            alt.Tooltip("n:Q", title="distinguishing pairs"),
        ],
    )
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    legend = alt.Legend(
        orient="right",
        labelLimit=300,
        symbolType="square",
        symbolStrokeColor=GREY,
        symbolStrokeWidth=0.5,
        symbolOpacity=1,
    )
    colour = alt.Color("best:N", scale=scale, legend=legend).title("best hypothesis")
    cells = base.mark_rect(stroke=GREY, strokeWidth=0.3).encode(color=colour)
    marks = [
        base.transform_filter(alt.datum.winner == which).mark_text(text=text, color=INK)
        for which, text in ((TIE, "="), (NOBODY, "×"))
    ]
    title = heading(f"best hypothesis · {scores.n_pairs} pairs", subtitle=[f"n: {_ns(scores)}"], subtitleColor=GREY)
    return alt.layer(cells, *marks).properties(width=alt.Step(30), height=_height(rows), title=title)


def _ns(scores: HypothesisScores) -> str:
    """How many pairs distinguish, at the targets."""
    ns = sorted({each.n for each in scores.places})
    return f"{ns[0]} distinguishing pairs" if len(ns) == 1 else f"{ns[0]} to {ns[-1]} distinguishing pairs"


def _height(rows: Rows) -> alt.Step:
    return alt.Step(min(22, max(9, 420 // rows.count)))
