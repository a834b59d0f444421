"""Interactive features of the dashboard's charts: clicks, an outlined rectangle, drawing on a canvas."""

from __future__ import annotations

from typing import Any, TypeVar

import altair as alt
import polars as pl

from debug.causal_visualization.style import MOST_SVG_CELLS

Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.ConcatChart | alt.VConcatChart
_Chart = TypeVar("_Chart", bound=Chart)
CHAIN, _OUTLINE = "#d55e00", "#009e73"


def clickable(chart: _Chart, *fields: str) -> _Chart:
    """The chart with a selection named ``cell``: a click on a mark returns these fields of its row."""
    return chart.add_params(alt.selection_point(name="cell", fields=list(fields), on="click", clear=False))


def outlined(chart: Any, **fields: int | str | None) -> alt.LayerChart:  # a LayerChart, typed as one of several
    """A heatmap with one rectangle outlined, given by the fields of its two axes; none where a field is None.

    The outline is data, also where there is none: a browser that shows the chart moves it, and draws no new chart.
    """
    axes = chart.layer[0].encoding  # reuse the axes: new ones would be sorted differently
    known = None not in fields.values()
    cell = alt.Chart(pl.DataFrame({name: [value] if known else [] for name, value in fields.items()}))
    return chart + cell.mark_rect(fillOpacity=0, stroke=_OUTLINE, strokeWidth=3, tooltip=False, aria=False).encode(
        x=axes.x, y=axes.y
    )


def quick(chart: _Chart, n_cells: int) -> _Chart:
    """The chart, drawn on a canvas where it has very many rectangles: of a map over tokens a browser is then given one
    row a token, with lists over layers, as text that it parses at once, and the size of a rectangle as numbers."""
    if n_cells <= MOST_SVG_CELLS:
        return chart
    whole: Any = chart.copy()  # as in outlined
    if isinstance(chart, alt.LayerChart) and "position" in whole.layer[0].data.columns:
        whole.layer[0] = _by_token(whole.layer[0], whole.width.step, whole.height.step)
    return whole.configure_mark(aria=False).properties(usermeta={"embedOptions": {"renderer": "canvas"}})


def _by_token(squares: Any, width: int, height: int) -> alt.Chart:  # altair types its parts as one of several
    frame = squares.data
    lists = [name for name in frame.columns if name not in ("position", "token", "target")]
    by_token = frame.group_by(pl.exclude(lists), maintain_order=True).all().select(frame.columns)
    squares = squares.transform_flatten(lists)
    squares.data = alt.InlineData(by_token.write_json(), format=alt.JsonDataFormat(type="json"), name="squares")
    size = {"width": width, "height": height, "align": "left", "baseline": "top"}
    squares.mark = alt.MarkDef(**(squares.mark.to_dict() | size))
    return squares
