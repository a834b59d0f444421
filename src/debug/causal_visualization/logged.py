"""The pictures that a causal run logs."""

from __future__ import annotations

from debug.causal_map import ESTIMATED, CausalMap, MeanCausalMap
from debug.causal_visualization.curves import curves_by_layer, knockout_chart
from debug.causal_visualization.heatmaps import causal_heatmap, lens_heatmap, mean_heatmap
from debug.causal_visualization.hypotheses import hypothesis_maps, winner_map
from debug.causal_visualization.style import Picture
from debug.hypotheses import HypothesisScores


def pictures(
    first: CausalMap, mean: MeanCausalMap | None, scores: HypothesisScores | None = None
) -> dict[str, Picture]:
    """The charts that a causal run logs, by file name: of its first pair, of the mean over all pairs, and of the
    hypotheses, where there is more to tell than success and the answer kept."""
    charts: dict[str, Picture] = {}
    if scores is not None and scores.beyond_success:
        charts |= {"hypotheses": hypothesis_maps(scores), "best_hypothesis": winner_map(scores)}
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
