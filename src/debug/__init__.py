"""Do language models track the state of variables in programs, and where inside the model does that happen?

    from debug import quick_experiment, ExperimentRunner, generators, prompts

Importing this package imports none of its modules: each name is looked up when it is first used, so that a chart or a
program costs no torch and no mlflow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from debug import generators, prompts
    from debug.core import ExperimentConfig, quick_experiment
    from debug.runner import ExperimentRunner

__all__ = ["ExperimentConfig", "ExperimentRunner", "generators", "prompts", "quick_experiment"]

_HOME = {"ExperimentConfig": "debug.core", "quick_experiment": "debug.core", "ExperimentRunner": "debug.runner"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in __all__:
        return import_module(f"debug.{name}")
    raise AttributeError(f"module 'debug' has no attribute {name!r}")
