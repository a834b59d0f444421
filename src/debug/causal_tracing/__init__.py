"""The experiment: pairs -> causal maps. Which interventions a plan makes of a pair, and what became of each.

A map is rows of layers (or windows of them) x columns of token positions (x sets of heads); every square of it is an
intervention, data for the engine's one primitive. So are the same-answer control at the targets and the self-checks,
which run packed among them. Knows no MLflow, no Streamlit, no file.
The method is that of Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); attribution patching is Nanda's (2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.causal_tracing.agreement import MATTERS, Agreement, _spearman, agreement_metrics
    from debug.causal_tracing.attribution import AGREEMENT_CELLS, LARGEST_CELLS, LOCALIZED_CELLS
    from debug.causal_tracing.batches import R, T
    from debug.causal_tracing.experiment import WINDOW, run_causal_tracing_experiment, trace_pairs
    from debug.causal_tracing.mapping import ROWS_OF_LENS
    from debug.causal_tracing.pairs import PROBED, StoredRun, StoredRuns, as_written
    from debug.causal_tracing.reference import REFERENCE, Reference
    from debug.causal_tracing.results import CausalTracingResult, PairResult
    from debug.plan import INTERVENTION_TYPES, KNOCKOUT, METHODS, Plan

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
