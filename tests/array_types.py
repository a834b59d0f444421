"""Shapes and dtypes of arrays, as the signatures in ``debug`` say them, are checked while the tests run.

jaxtyping and beartype check; plain types are pyright's task, and a stand-in for a model may be given anywhere. This is
jaxtyping's own import hook but for two things. That one wraps below a function's other decorators, so that torch's
``no_grad`` takes a generator for a function and its body runs with gradients; here a function is wrapped when its
module is complete. And pytest's option for that one does not reach the workers of pytest-xdist.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any, get_args

import jaxtyping
import torch
from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

KINDS = ("Bool", "Float", "Int", "Num", "Shaped")
HIDDEN = {name: getattr(jaxtyping, name) for name in KINDS} | {"Tensor": torch.Tensor}
"""What a module may import for type checkers alone, because it must not import torch."""


class ArrayTypes(MetaPathFinder):
    """Put before the other finders of modules: those of ``package`` are checked from their import on."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        own = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__]
        for holder in (module, *own):
            for name, value in [*vars(holder).items()]:
                function = getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value)))
                if isinstance(function, FunctionType) and function.__globals__ is vars(module):
                    setattr(holder, name, checked(value))


def checked(value: Any) -> Any:  # whatever stands in a module or class
    """A function, method or property whose arrays are checked; the same value where it says none."""
    if isinstance(value, classmethod | staticmethod):
        return type(value)(checked(value.__func__))
    if isinstance(value, property):
        return property(checked(value.fget), value.fset, value.fdel, value.__doc__)
    if isinstance(value, functools.cached_property):
        value.func = checked(value.func)
        return value
    if not isinstance(value, FunctionType):
        return value
    signature = inspect.signature(value)
    hints = {name: hint for name, hint in _hints(value).items() if any(_arrays(hint))}
    if not hints:
        return value
    value.__signature__ = signature.replace(
        parameters=[
            each.replace(annotation=hints.get(name, each.empty)) for name, each in signature.parameters.items()
        ],
        return_annotation=hints.get("return", signature.empty),
    )
    wrapped = jaxtyped(value, typechecker=beartype)
    for each in (value, wrapped):  # to whoever asks later, the signature is the function's own
        each.__dict__.pop("__signature__", None)
    return wrapped


def _hints(function: FunctionType) -> dict[str, object]:
    """A function's hints as objects, less those that name what is imported for type checkers alone and no array."""
    hints = {}
    for name, hint in function.__annotations__.items():
        try:
            hints[name] = eval(hint, HIDDEN | function.__globals__) if isinstance(hint, str) else hint
        except NameError as error:
            if any(f"{kind}[" in hint for kind in KINDS):
                raise NameError(f"{function.__qualname__}: {hint}: {error}") from error
    return hints


def _arrays(hint: object) -> Iterator[type[AbstractArray]]:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        yield hint
    for part in get_args(hint):
        yield from _arrays(part)
