"""Chains of references in which values are computed: ``c = a + 2``."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import (
    Answer,
    HopsNotAvailable,
    check_chosen,
    check_knob,
    check_lengths,
    check_share,
    interpreted,
    pick,
)
from debug.kinds import Json


def make_binding_arithmetic_program(
    seq_len: int,
    rng: np.random.RandomState,
    num_hops: int | None = None,
    *,
    largest: int = 9,
    arithmetic: float = 0.5,
    operators: tuple[str, ...] = ("+", "-"),
) -> tuple[str, Answer, dict[str, Json]]:
    """Lines that assign a number (three in ten), another variable, or another variable and a number: ``c = a + 2``.

    After 26 lines letters are assigned again. The query is drawn among all referential depths alike.

    Args:
        num_hops: referential depth of the query.
        largest: no value is below 0 or above this.
        arithmetic: share of the references that compute.
        operators: ``+``, ``-`` or both.

    Returns:
        The text (it ends in ``": "``), the answer, and ``{"hops", "chain", "spans", "states"}``.

    Raises:
        HopsNotAvailable: no variable of this draw has ``num_hops``.
    """
    check_lengths(seq_len, num_hops)
    check_knob("largest", largest, 1, 10**6)
    check_share("arithmetic", arithmetic)
    check_chosen("operators", operators, ("+", "-"))
    values: dict[str, int] = {}
    chains: dict[str, list[str]] = {}
    lines = []
    for _ in range(seq_len):
        lhs = pick(rng, [letter for letter in string.ascii_lowercase if letter not in values] or values)
        if not values or rng.random() < 0.3:
            value = int(rng.randint(largest + 1))
            rhs, chain = str(value), []
        else:
            rhs = pick(rng, values)
            value, chain = values[rhs], chains[rhs]
            rooms = {sign: room for sign, room in (("+", largest - value), ("-", value)) if room and sign in operators}
            if rooms and rng.random() < arithmetic:
                sign = pick(rng, rooms)
                operand = int(rng.randint(1, rooms[sign] + 1))
                rhs = f"{rhs} {sign} {operand}"
                value += operand if sign == "+" else -operand
        values[lhs], chains[lhs] = value, [lhs, *chain]
        lines.append(f"{lhs} = {rhs}\n")
    depths = sorted({len(chain) for chain in chains.values()})
    hops = int(rng.choice(depths)) if num_hops is None else num_hops
    if hops not in depths:
        raise HopsNotAvailable(f"no variable of referential depth {hops} in this draw of {seq_len} lines")
    query = pick(rng, [name for name, chain in chains.items() if len(chain) == hops])
    return interpreted("".join(lines) + f"#{query}: ", hops=hops, chain=chains[query])
