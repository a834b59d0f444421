"""Program families whose variables are assigned digits or one another."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import HopsNotAvailable, check_lengths
from debug.kinds import Json
from debug.programs import Program


def make_variable_binding_program(
    seq_len: int, rng: np.random.RandomState, num_hops: int | None = None
) -> tuple[str, int, dict[str, Json]]:
    """Assignment lines and a query, as published: chains of references among distractor chains.

    Each line assigns a letter either a digit (with probability 0.3) or a variable assigned above it, drawn with
    probability proportional to its referential depth cubed; the query is drawn alike among variables of depth 1 to 4.

    Args:
        seq_len: number of assignment lines, at least 1. After 26 lines letters are assigned again.
        rng: the order of the draws is part of the definition: RandomState(11), 5 lines, gives the published program.
        num_hops: None for the published draw. 1 to 4: the published draw must have that depth. More than 4: the query
            is drawn among the variables of that depth.

    Returns:
        The text (it ends in ``": "``), the answer, and ``{"hops", "chain"}``.

    Raises:
        InputError: seq_len or num_hops cannot be.
        HopsNotAvailable: this draw does not have ``num_hops``.
    """
    check_lengths(seq_len, num_hops)
    depths: dict[str, int] = {}  # variable -> referential depth of its last assignment, in order of first assignment
    lines = []
    for _ in range(seq_len):
        free = [letter for letter in string.ascii_lowercase if letter not in depths]
        lhs = str(rng.choice(free or list(string.ascii_lowercase)))
        if rng.random() < 0.3 or not depths:  # the draw is made on the first line too
            rhs, depth = str(rng.choice(list(string.digits))), 1
        else:
            rhs = _choice_by_depth(list(depths), depths, rng)
            depth = depths[rhs] + 1
        lines.append(f"{lhs} = {rhs}\n")
        depths[lhs] = depth
    if num_hops is not None and num_hops > 4:
        candidates = [name for name, depth in depths.items() if depth == num_hops]
        if not candidates:
            raise HopsNotAvailable(f"no variable of referential depth {num_hops} in this draw of {seq_len} lines")
    else:
        candidates = [name for name, depth in depths.items() if depth <= 4] or list(depths)
    query = _choice_by_depth(candidates, depths, rng)
    if num_hops is not None and depths[query] != num_hops:
        raise HopsNotAvailable(f"this draw of {seq_len} lines queries {depths[query]} hops, not {num_hops}")
    text = "".join(lines) + f"#{query}: "
    program = Program.parse(text)
    return text, program.answer, {"hops": program.hops, "chain": list(program.chain.names)}


def _choice_by_depth(names: list[str], depths: dict[str, int], rng: np.random.RandomState) -> str:
    weights = np.array([depths[name] for name in names], dtype=float) ** 3
    return str(rng.choice(names, p=weights / weights.sum()))


def make_entity_tracking_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int, dict[str, Json]]:
    """Two to four variables that are assigned again and again (``a = 3 / b = 5 / a = b / #b: ``); one is asked for.

    Each line assigns one of them a digit (with probability 0.7, and where no other has a value) or another's value.
    """
    check_lengths(seq_len)
    names = [str(name) for name in rng.choice(list(string.ascii_lowercase), size=rng.randint(2, 5), replace=False)]
    lines: list[str] = []
    assigned: list[str] = []
    for _ in range(seq_len):
        lhs = str(rng.choice(names))
        others = [name for name in assigned if name != lhs]
        rhs = str(rng.randint(10)) if not others or rng.random() < 0.7 else str(rng.choice(others))
        lines.append(f"{lhs} = {rhs}\n")
        assigned = list(dict.fromkeys([*assigned, lhs]))
    program = Program.parse("".join(lines) + f"#{rng.choice(assigned)}: ")
    return program.text, program.answer, {"hops": program.hops, "chain": list(program.chain.names)}
