"""A program as the model reads it: its tokens line by line, those of targets named."""

from __future__ import annotations

import altair as alt
import polars as pl

from debug.causal_map import CausalMap
from debug.causal_visualization.style import GREY, INK, NAME, TARGET, Picture, heading, shown_target, visible

MOST_LINES = 40


def tokens_and_roles(causal_map: CausalMap) -> Picture:
    """The prompt's tokens in boxes, a row a line. Targets are yellow and have their role's name below them, so that
    "hop 2 · value" shows what it means; what differs from the counterfactual begins at the orange frame.

    The lines before the first target and the first difference are left out, and lines beyond 40.
    """
    role = {place: name for name, places in causal_map.targets.items() for place in places}
    rows, line, column = [], 0, 0
    for place, token in enumerate(causal_map.tokens):
        name = shown_target(role[place]) if place in role else ""
        rows.append((place, line, column, visible(token, 12), name, place == causal_map.first_difference))
        line, column = (line + 1, 0) if "\n" in token else (line, column + 1)
    names = ("position", "line", "column", "token", "role", "first")
    frame = pl.DataFrame(rows, names, orient="row")
    begins = frame.filter((pl.col("role") != "") | pl.col("first"))["line"].min() or 0
    frame = frame.filter(pl.col("line").is_between(begins, begins + MOST_LINES - 1))  # type: ignore[operator]  (a number)
    # One name over neighbouring places of a row that share it, else a whole line would repeat it in every box.
    frame = frame.with_columns(
        shown=pl.when(pl.col("role") == pl.col("role").shift(1).over("line")).then(pl.lit("")).otherwise("role")
    )
    axis = alt.Axis(ticks=False, domain=False, labelExpr="datum.value + 1", labelOffset=-8)
    base = alt.Chart(frame).encode(
        x=alt.X("column:O", axis=None),
        y=alt.Y("line:O", axis=axis).title("line"),
        tooltip=["token:N", alt.Tooltip("position:O", title="token position"), alt.Tooltip("role:N")],
    )
    target = alt.when("datum.role != ''").then(alt.value(TARGET)).otherwise(alt.value("#e4e4ea"))
    layers = [
        base.mark_rect(cornerRadius=3, height=20, yOffset=-8, width=84).encode(color=target),
        base.transform_filter("datum.first").mark_rect(
            cornerRadius=3, height=20, yOffset=-8, width=84, fillOpacity=0, stroke="#d55e00", strokeWidth=2
        ),
        base.mark_text(font="monospace", fontSize=12, color=INK, yOffset=-8).encode(text="token:N"),
        base.mark_text(fontSize=10, color=NAME, yOffset=11, limit=90).encode(text="shown:N"),
    ]
    note = "orange frame: the first token that differs from the counterfactual"
    title = heading("the program as tokens, with the roles of its targets", subtitle=note, subtitleColor=GREY)
    return alt.layer(*layers).properties(width=alt.Step(90), height=alt.Step(42), title=title)
