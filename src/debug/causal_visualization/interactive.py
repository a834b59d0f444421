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


def outlined(chart: Any, **fields: object) -> alt.LayerChart:  # a LayerChart, typed as one of several
    """A heatmap with one rectangle outlined, given by the fields of its two axes."""
    axes = chart.layer[0].encoding  # reuse the axes: new ones would be sorted differently
    cell = alt.Chart(pl.DataFrame({name: [value] for name, value in fields.items()}))
    return chart + cell.mark_rect(fillOpacity=0, stroke=_OUTLINE, strokeWidth=3, tooltip=False).encode(
        x=axes.x, y=axes.y
    )


def quick(chart: _Chart, n_cells: int) -> _Chart:
    """The chart, drawn on a canvas where it has very many rectangles."""
    if n_cells <= MOST_SVG_CELLS:
        return chart
    return chart.properties(usermeta={"embedOptions": {"renderer": "canvas"}})
