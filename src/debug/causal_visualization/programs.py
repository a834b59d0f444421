"""A program as a graph: which line refers to which."""

from __future__ import annotations

import altair as alt
import polars as pl

from debug.causal_visualization.interactive import CHAIN, Chart
from debug.causal_visualization.style import GREY, visible
from debug.programs import Program


def program_graph(program: Program) -> Chart:
    """The assignments as a graph: line number on the Y axis (top to bottom), referential depth on the X axis; the
    queried chain, from the root value to the query, in orange."""
    chain = {assignment.line for assignment in program.chain.assignments}
    nodes = pl.DataFrame(
        [
            {
                "line": a.line + 1,
                "depth": a.ref_depth,
                "text": visible(f"{a.lhs} = {a.rhs}", 24).replace("·", " "),
                "of": "queried chain" if a.line in chain else "other",
            }
            for a in program.assignments
        ]
    )
    edges = pl.DataFrame(
        [
            {
                "line": program.assignments[a.source].line + 1,
                "depth": program.assignments[a.source].ref_depth,
                "line2": a.line + 1,
                "depth2": a.ref_depth,
                "of": "queried chain" if a.line in chain else "other",
            }
            for a in program.assignments
            if a.source is not None
        ],
        schema={"line": pl.Int64, "depth": pl.Int64, "line2": pl.Int64, "depth2": pl.Int64, "of": pl.Utf8},
    )
    deepest = max(a.ref_depth for a in program.assignments)
    x_scale, y_scale = (
        alt.Scale(domain=[0.8, deepest + 0.8], nice=False),
        alt.Scale(domain=[len(nodes) + 0.6, 0.4], nice=False),
    )
    x = alt.X(
        "depth:Q",
        scale=x_scale,
        axis=alt.Axis(values=list(range(1, deepest + 1)), format="d", grid=False, orient="top"),
    )
    y = alt.Y("line:Q", scale=y_scale, axis=alt.Axis(values=list(range(1, len(nodes) + 1)), format="d", grid=False))
    colour = alt.Color(
        "of:N",
        scale=alt.Scale(domain=["queried chain", "other"], range=[CHAIN, GREY]),
        legend=alt.Legend(orient="bottom", title=None),
    )
    rules = (
        alt.Chart(edges)
        .mark_rule(strokeWidth=1.5, opacity=0.8)
        .encode(x=x.title("referential depth"), y=y.title("line"), x2="depth2:Q", y2="line2:Q", color=colour)
    )
    points = alt.Chart(nodes).mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, color=colour)
    texts = points.mark_text(align="left", baseline="bottom", dx=6, dy=-2, font="monospace", fontSize=12).encode(
        text="text:N"
    )
    width = min(max(260, 120 * deepest), 500)  # half of a page of 1280 pixels, with the axis
    return alt.layer(rules, points, texts).properties(width=width, height=100 + 30 * len(nodes))
