"""Do language models track the state of variables in programs, and where inside the model does that happen?

    from debug import quick_experiment, ExperimentRunner, generators, prompts

Importing this package imports none of its modules: each name is looked up when it is first used, so that a chart or a
program costs no torch and no mlflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug import (
        causal_experiment_runner,
        causal_map,
        causal_tracing,
        causal_visualization,
        counterfactual,
        engine,
        generators,
        hypotheses,
        models,
        programs,
        prompts,
        rerun,
        statistics,
        tracking,
        training,
    )
    from debug.core import ExperimentConfig, quick_experiment
    from debug.errors import DebugError, InputError
    from debug.runner import ExperimentRunner
    from debug.tracking import find_runs, load_run

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
