"""What commands import before a model runs, in a third of the time: without what libraries import for other uses.

transformers and MLflow import scikit-learn, pandas, torch's compiler and its distributed tensors where these are there,
and do without where they are not. Here they are told that they are not, while they are imported; then all is as it was:
whoever imports one of these afterwards has it. Only a command's own process is told so, before it has imported torch.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

from debug.causal_visualization import drawing
from debug.models import heuristics
from debug.models.backends import has_gpu

_OF_MLFLOW = ("debug.tracking.store",)
_OF_MODELS = ("debug.models.loading", "debug.causal_experiment_runner.runner", "debug.causal_experiment_runner.writer")


def prepare(models: Sequence[str] = (), *, draws: bool = True, served: bool = False) -> None:
    """Import what a command is going to use, its options once known to be good: MLflow; what runs these models, where
    they are more than rules, and not ``served``; and, in a process beside this one, what ``draws`` the pictures that
    are logged.

    Nothing happens where torch, transformers or MLflow are imported already: their importer may rely on all of them.
    """
    if {"torch", "transformers", "mlflow"} & sys.modules.keys():
        return
    if models and draws:
        drawing.begin()
    collects = gc.isenabled()
    gc.disable()  # nothing that is imported is garbage; looking for it takes an eighth of the time
    try:
        import_module("polars")  # which looks for pandas, too
        with _hidden("pandas"):  # as where MLflow is installed as mlflow-skinny
            import_module("mlflow")
        for name in _OF_MLFLOW:
            import_module(name)
        if not served and not all(model.startswith(heuristics.PREFIX) for model in models):
            if not has_gpu() and not {"RANK", "WORLD_SIZE"} & os.environ.keys():
                _import_transformers()
            for name in _OF_MODELS:
                import_module(name)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        if collects:
            gc.enable()


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Where a package was not imported yet, an import of it says that it is not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  (what the import system takes for "is not there")
    try:
        yield
    finally:
        del sys.modules[package]


_ABSENT = ("is_sklearn_available", "is_scipy_available", "is_torch_distributed_available")
_COMPILER, _TRACE = "torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op"


def _import_transformers() -> None:
    """Import of transformers what runs a model on one CPU: without scikit-learn and scipy, which are for an assistant
    model's confidence and for a loss; without distributed tensors; without the compiler, until somebody asks for it."""
    import torch
    from transformers import utils
    from transformers.utils import import_utils

    if _COMPILER not in sys.modules:
        torch.__dict__["_dynamo"] = sys.modules[_COMPILER] = _Compiler()
    places = [(module, name) for module in (utils, import_utils) for name in _ABSENT]
    answers = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, lambda: False)
    try:
        for name in ("modeling_utils", "generation.utils", "models.auto.modeling_auto", "models.qwen3.modeling_qwen3"):
            import_module(f"transformers.{name}")
    finally:
        for (module, name), answer in zip(places, answers, strict=True):
            setattr(module, name, answer)


class _Compiler(ModuleType):
    """In the place of torch._dynamo, which takes a second to import and is asked only how *not* to compile a function.

    Functions stay as they are, for nothing is compiled. Asked for anything else it makes room for the real one.
    """

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        trace = ModuleType(_TRACE)
        trace.__dict__["TransformGetItemToIndex"] = lambda: self._real(_TRACE).TransformGetItemToIndex()
        self.__dict__["_stand_ins"] = {_COMPILER: self, _TRACE: trace}
        sys.modules[_TRACE] = trace

    def disable(self, fn: Callable | None = None, *_: object, **__: object) -> Any:  # the function, or a decorator
        return self.disable if fn is None else fn

    assume_constant_result = allow_in_graph = disable

    def _real(self, name: str) -> ModuleType:
        import torch

        for of, stand_in in self.__dict__["_stand_ins"].items():
            if sys.modules.get(of) is stand_in:
                del sys.modules[of]
        if torch.__dict__.get("_dynamo") is self:
            del torch.__dict__["_dynamo"]
        return import_module(name)

    def __getattr__(self, name: str) -> Any:  # whatever torch._dynamo has
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(self._real(_COMPILER), name)
