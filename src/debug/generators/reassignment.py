"""Variables that are assigned again: the last assignment counts, and a copy does not follow what it was copied from."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import Answer, check_knob, check_lengths, check_share, interpreted, pick
from debug.kinds import Json


def make_reassignment_program(
    seq_len: int, rng: np.random.RandomState, *, variables: int = 3, copies: float = 0.5
) -> tuple[str, Answer, dict[str, Json]]:
    """A few variables, each assigned a digit or another's value again and again: ``a = 3 / b = a / a = 5 / #b: ``.

    Asked for is, where there is one, a variable for which a wrong reading gives another answer: ``alias`` (a copy is
    a reference, looked up in the end; None where that goes in circles), else ``first_write`` (the first one counts).

    Args:
        variables: how many, 2 to 26.
        copies: share of the lines that copy another variable.

    Returns:
        The text, the answer, and ``{"first_write", "alias", "spans", "states"}``.
    """
    check_lengths(seq_len)
    check_knob("variables", variables, 2, 26)
    check_share("copies", copies)
    names = [str(name) for name in rng.choice(list(string.ascii_lowercase), size=variables, replace=False)]
    values: dict[str, int] = {}
    first: dict[str, int] = {}
    written: dict[str, str] = {}  # variable -> right-hand side of its last assignment
    lines = []
    for _ in range(seq_len):
        lhs = pick(rng, names)
        others = [name for name in values if name != lhs]
        rhs = pick(rng, others) if others and rng.random() < copies else str(rng.randint(10))
        values[lhs] = values[rhs] if rhs in values else int(rhs)
        written[lhs] = rhs
        first.setdefault(lhs, values[lhs])
        lines.append(f"{lhs} = {rhs}\n")
    alias = {name: _looked_up(name, written) for name in values}
    telling = [name for name in values if values[name] != alias[name]]
    telling = telling or [name for name in values if values[name] != first[name]] or list(values)
    query = pick(rng, telling)
    return interpreted("".join(lines) + f"#{query}: ", first_write=first[query], alias=alias[query])


def _looked_up(name: str, written: dict[str, str]) -> int | None:
    """The value that a variable would have if copies were references."""
    for _ in written:
        name = written[name]
        if name.isdecimal():
            return int(name)
    return None
