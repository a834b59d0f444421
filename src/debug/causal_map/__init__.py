"""What one causal experiment found: the grid of layers x token positions (x heads) for a pair, and its mean over pairs.

The engine fills a :class:`CausalMap`, tracking stores it, charts and the dashboard read it. Numpy only: knows no model,
no store and no picture. Maps keep logits of both answer tokens, so that any other metric can be derived later.
"""

from debug.causal_map.files import load_maps, save_maps, save_tensors
from debug.causal_map.grid import (
    CausalMap,
    CausalMapError,
    held_by_construction,
    random_of,
)
from debug.causal_map.header import DIRECTIONS, PAIR_SOURCES, SOURCES
from debug.causal_map.mean import MeanCausalMap, MeanOverPairs, mean_over_pairs
from debug.causal_map.means import ratio_of_means
from debug.causal_map.metrics import ESTIMATED, LEGACY, LOGGED, METRICS, RANDOM, RATES, column_of, title_of
from debug.causal_map.routes import LEADS, hand_overs, peaks

__all__ = [
    "DIRECTIONS",
    "ESTIMATED",
    "LEADS",
    "LEGACY",
    "LOGGED",
    "METRICS",
    "PAIR_SOURCES",
    "RANDOM",
    "RATES",
    "SOURCES",
    "CausalMap",
    "CausalMapError",
    "MeanCausalMap",
    "MeanOverPairs",
    "column_of",
    "hand_overs",
    "held_by_construction",
    "load_maps",
    "mean_over_pairs",
    "peaks",
    "random_of",
    "ratio_of_means",
    "save_maps",
    "save_tensors",
    "title_of",
]
