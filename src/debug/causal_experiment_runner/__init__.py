"""Causal runs: many pairs through the engine, as runs in the tracking store.

One call is a study; each (model, hops, seq_len) under it is a cell with its causal maps, its mean over pairs with
intervals, the engine's self-checks and the pictures. Results are streamed: what is done is kept when a run is stopped.
The method is in ``causal_tracing``, the formats are in ``tracking``; this file only joins them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.causal_experiment_runner.config import CausalConfig
    from debug.causal_experiment_runner.cost import CellPlan, dry_run
    from debug.causal_experiment_runner.results import CausalExperimentResult, CellResult, NoPairLeft
    from debug.causal_experiment_runner.runner import CausalExperimentRunner
    from debug.causal_experiment_runner.writer import SHARD

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
