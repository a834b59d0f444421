"""Packages whose names are imported when they are first used, so that a chart or a program costs no torch."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def names_of(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:  # of any kind
    """``__getattr__``, ``__dir__``, ``__all__`` of a package, from the imports under ``if TYPE_CHECKING`` in its file.

    Type checkers read these imports as they stand; here each name is looked up where they say it is (PEP 562).
    """
    homes: dict[str, tuple[str, str]] = {}
    blocks = [block for block in ast.parse(Path(file).read_text("utf-8")).body if isinstance(block, ast.If)]
    for line in (line for block in blocks for line in block.body if isinstance(line, ast.ImportFrom)):
        homes |= {name.asname or name.name: (line.module or "", name.name) for name in line.names}

    def find(name: str) -> Any:  # a function, class, module or value of the package
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, its_name = homes[name]
        if module == package:
            return import_module(f"{package}.{its_name}")
        return getattr(import_module(module), its_name)

    return find, lambda: sorted(homes), sorted(homes)
