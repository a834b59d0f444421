"""What one causal experiment found: the grid of layers x token positions (x heads) for a pair, and its mean over pairs.

The engine fills a :class:`CausalMap`, tracking stores it, charts and the dashboard read it. Numpy only: knows no model,
no store and no picture. Maps keep logits of both answer tokens, so that any other metric can be derived later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.causal_map.attention import AttentionPattern
    from debug.causal_map.files import load_maps, save_maps, save_tensors
    from debug.causal_map.grid import (
        CausalMap,
        CausalMapError,
        held_by_construction,
        random_of,
    )
    from debug.causal_map.mean import MeanCausalMap, MeanOverPairs, TargetCurve, mean_over_pairs
    from debug.causal_map.means import ratio_of_means
    from debug.causal_map.metrics import (
        ESTIMATED,
        LEGACY,
        METRICS,
        RANDOM,
        Metric,
        as_metric,
        column_of,
        metric_of,
        title_of,
    )
    from debug.causal_map.names import in_words
    from debug.causal_map.routes import LEADS, hand_overs, peaks
    from debug.causal_map.sentences import findings, route
    from debug.causal_map.sources import DIRECTIONS, PAIR_SOURCES, SCORED_BY, SOURCES

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
