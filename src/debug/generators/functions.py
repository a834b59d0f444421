"""Functions with arguments, each of which calls the one above it."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import Answer, check_knob, check_lengths, interpreted, pick
from debug.kinds import Json

_FUNCTIONS, _PARAMETERS, _LOCAL = "fghk", "abc", "r"


def make_function_program(
    seq_len: int, rng: np.random.RandomState, *, depth: int = 2, arguments: int = 1
) -> tuple[str, Answer, dict[str, Json]]:
    """Definitions of ``f``, ``g``, ... and seq_len lines that assign digits and calls: ``x = g(3)``, ``y = f(x)``.

    The innermost function computes with its arguments; each of the others calls the one before it. The last line is a
    call, and asked for.

    Args:
        depth: how many functions call one another, 1 to 4.
        arguments: how many each has, 1 to 3.

    Returns:
        The text, the answer, and ``{"spans", "states"}``; states have the call depth of each line.
    """
    check_lengths(seq_len)
    check_knob("depth", depth, 1, 4)
    check_knob("arguments", arguments, 1, 3)
    parameters = list(_PARAMETERS[:arguments])
    lines: list[str] = []
    for number, name in enumerate(_FUNCTIONS[:depth]):
        inner = f"{_FUNCTIONS[number - 1]}({', '.join(map(str, rng.permutation(parameters)))})" if number else "a"
        computed = f"{inner} {pick(rng, '+-')} {rng.randint(1, 10)}"
        returned = pick(rng, [_LOCAL, *(f"{_LOCAL} {sign} {other}" for sign in "+-" for other in parameters[1:])])
        lines += [f"def {name}({', '.join(parameters)}):", f"    {_LOCAL} = {computed}", f"    return {returned}"]
    free = [letter for letter in string.ascii_lowercase if letter not in _FUNCTIONS + _PARAMETERS + _LOCAL]
    assigned: list[str] = []
    query = ""
    for number in range(seq_len):
        query = pick(rng, [letter for letter in free if letter not in assigned] or free)
        rhs = str(rng.randint(10))
        if number == seq_len - 1 or rng.random() < 0.6:
            # The last line calls the outermost function, so that every depth runs.
            function = _FUNCTIONS[depth - 1] if number == seq_len - 1 else pick(rng, _FUNCTIONS[:depth])
            digits = map(str, rng.randint(0, 10, size=arguments))
            given = [pick(rng, assigned) if assigned and rng.random() < 0.5 else digit for digit in digits]
            rhs = f"{function}({', '.join(given)})"
        assigned = list(dict.fromkeys([*assigned, query]))
        lines.append(f"{query} = {rhs}")
    return interpreted("\n".join([*lines, f"#{query}: "]))
