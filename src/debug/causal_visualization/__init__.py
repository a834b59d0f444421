"""Altair charts of both kinds of run: accuracy with 95% CIs, causal maps as heatmaps, success rates over layers.

Takes causal maps and data frames, returns charts; :func:`save_chart` writes one as files. Independent of models, stores
and the dashboard. Text from data (tokens, model names, targets) stays data: it is never part of a chart expression, a
format string or HTML. Charts set no background and no colour of axes and titles, so that a light or dark theme can.

A map has token positions on the X axis in the order of the prompt, and layers from bottom to top, so that information
flows to the right and upwards. Row l is resid_pre of layer l; row ``n_layers`` is what the final norm reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.causal_visualization.accuracy import accuracy_chart, comparison_chart
    from debug.causal_visualization.attention import attention_chart, attention_overview, attention_rows
    from debug.causal_visualization.curves import curves_by_layer, knockout_chart, trajectory_chart
    from debug.causal_visualization.drawing import begin, draw
    from debug.causal_visualization.heatmaps import causal_heatmap, head_heatmap, lens_heatmap, mean_heatmap
    from debug.causal_visualization.hypotheses import hypothesis_maps, winner_map
    from debug.causal_visualization.logged import pictures
    from debug.causal_visualization.rows import cells, shown_first
    from debug.causal_visualization.style import MOST_SVG_CELLS, Metric, Picture, save_chart, visible

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
