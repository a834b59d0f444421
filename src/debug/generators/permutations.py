"""Swaps of a few items: ``a, c = c, a``. The state is a permutation."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import Answer, check_knob, check_lengths, interpreted, pick
from debug.kinds import Json


def make_permutation_program(
    seq_len: int, rng: np.random.RandomState, *, items: int = 5
) -> tuple[str, Answer, dict[str, Json]]:
    """Variables with numbers of their own (from 0), and seq_len swaps of two of them; one is asked for.

    Args:
        items: how many variables, 2 to 26; up to 10 of them have one digit each.

    Returns:
        The text, the answer, and ``{"permutation", "spans", "states"}``: for each variable, in the order of their
        lines, the number (from 0) of the line whose value it has in the end.
    """
    check_lengths(seq_len)
    check_knob("items", items, 2, 26)
    names = list(string.ascii_lowercase[:items])
    numbers = [int(number) for number in rng.permutation(max(items, 10))[:items]]
    lines = [f"{name} = {number}" for name, number in zip(names, numbers, strict=True)]
    held = list(range(items))
    for _ in range(seq_len):
        one, other = (int(index) for index in rng.choice(items, size=2, replace=False))
        held[one], held[other] = held[other], held[one]
        a, b = names[one], names[other]
        lines.append(f"{a}, {b} = {b}, {a}")
    return interpreted("\n".join([*lines, f"#{pick(rng, names)}: "]), permutation=held)
