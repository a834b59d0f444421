"""Branches: ``if a > 3: / b = 1 / else: / b = 7``."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import Answer, check_knob, check_lengths, interpreted, pick
from debug.kinds import Json

_SIGNS = ("<", ">", "<=", ">=", "==", "!=")


def make_conditional_program(
    seq_len: int, rng: np.random.RandomState, *, variables: int = 2, nesting: int = 1
) -> tuple[str, Answer, dict[str, Json]]:
    """Variables with digits, then seq_len conditionals (``if``, with ``elif`` and ``else`` or without).

    Each compares one variable with a digit, and each of its branches gives one variable another digit; that of the last
    conditional is asked for.

    Args:
        variables: how many, 1 to 26.
        nesting: how deep conditionals may stand in one another, 1 to 4.

    Returns:
        The text, the answer, and ``{"spans", "states"}``; states say which branch was taken.
    """
    check_lengths(seq_len)
    check_knob("variables", variables, 1, 26)
    check_knob("nesting", nesting, 1, 4)
    names = [str(name) for name in rng.choice(list(string.ascii_lowercase), size=variables, replace=False)]
    lines = [f"{name} = {rng.randint(10)}" for name in names]
    target = names[0]
    for _ in range(seq_len):
        target = pick(rng, names)
        lines += _conditional(names, target, nesting, rng)
    return interpreted("\n".join([*lines, f"#{target}: "]))


def _conditional(names: list[str], target: str, nesting: int, rng: np.random.RandomState) -> list[str]:
    heads = [["if"], ["if", "else"], ["if", "elif", "else"]][rng.randint(3)]
    digits = rng.choice(10, size=len(heads), replace=False)
    lines = []
    for head, digit in zip(heads, digits, strict=True):
        test = "" if head == "else" else f" {pick(rng, names)} {pick(rng, _SIGNS)} {rng.randint(10)}"
        lines.append(f"{head}{test}:")
        nested = nesting > 1 and rng.random() < 0.5
        body = _conditional(names, target, nesting - 1, rng) if nested else [f"{target} = {digit}"]
        lines += [f"    {line}" for line in body]
    return lines
