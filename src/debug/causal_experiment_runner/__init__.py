"""Causal runs: many pairs through the engine, as runs in the tracking store.

One call is a study; each (model, hops, seq_len) under it is a cell with its causal maps, its mean over pairs with
intervals, the engine's self-checks and the pictures. Results are streamed: what is done is kept when a run is stopped.
The method is in ``causal_tracing``, the formats are in ``tracking``; this file only joins them.
"""

from debug.causal_experiment_runner.config import CausalConfig
from debug.causal_experiment_runner.results import CausalExperimentResult, CellResult, NoPairLeft
from debug.causal_experiment_runner.runner import CausalExperimentRunner
from debug.causal_experiment_runner.writer import SHARD

__all__ = [
    "SHARD",
    "CausalConfig",
    "CausalExperimentResult",
    "CausalExperimentRunner",
    "CellResult",
    "NoPairLeft",
]
