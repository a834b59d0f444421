"""Targets and heads as parts of names, and their order in the program's text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PARTS = ("lhs", "equals", "rhs", "newline", "hash", "var", "colon")


def logged_name(target: str) -> str:
    """A target, or a hypothesis, as a part of a metric's name: MLflow has no ``+`` and no ``>`` in these."""
    return re.sub(r"[^\w./: -]", "_", target.replace("->", "_to_").replace("+", "_and_"))


def head_name(heads: Sequence[int]) -> str:
    """``head_3``; of several heads patched together ``heads_3_5``."""
    return f"head{'s' if len(heads) > 1 else ''}_{'_'.join(map(str, heads))}"


def text_order(target: str) -> tuple:
    """Where a target stands in any program: chain lines by referential depth, the query line, ``final``; then heads.

    Positions by number come first, in theirs.
    """
    name, _, head = target.replace("/heads_", "/head_").partition("/head_")
    kind, *rest = name.split("_")
    line = {"position": 0, "ref": 1, "query": 2}.get(kind, 3)
    numbers = [int(part) for part in rest if part.isdecimal()]
    part = _PARTS.index(rest[-1]) if rest and rest[-1] in _PARTS else 0
    return line, numbers, part, [int(number) for number in head.split("_") if number]
