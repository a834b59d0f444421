"""``for`` and ``while`` loops with accumulators."""

from __future__ import annotations

import string

import numpy as np

from debug.generators.base import Answer, check_chosen, check_knob, check_lengths, interpreted, pick
from debug.kinds import Json


def make_loop_program(
    seq_len: int,
    rng: np.random.RandomState,
    *,
    kinds: tuple[str, ...] = ("for", "while"),
    accumulators: int = 2,
    nesting: int = 1,
) -> tuple[str, Answer, dict[str, Json]]:
    """A loop of seq_len iterations, each of which updates every accumulator; one of them is asked for.

    An update adds or subtracts a digit, adds the loop variable or an accumulator above it, or adds a digit only where
    the loop variable has one remainder.

    Args:
        kinds: ``for``, ``while`` or both, one of which is drawn.
        accumulators: how many, 1 to 3.
        nesting: 1; 2 for an inner loop of two or three iterations around the updates.

    Returns:
        The text, the answer, and ``{"spans", "states"}``.
    """
    check_lengths(seq_len)
    check_chosen("kinds", kinds, ("for", "while"))
    check_knob("accumulators", accumulators, 1, 3)
    check_knob("nesting", nesting, 1, 2)
    free = [letter for letter in string.ascii_lowercase if letter not in "ij"]
    names = [str(name) for name in rng.choice(free, size=accumulators, replace=False)]
    kind = pick(rng, kinds)
    lines = [f"{name} = {rng.randint(10)}" for name in names]
    body = [line for number in range(accumulators) for line in _update(names[: number + 1], rng)]
    if nesting == 2:
        body = [f"for j in range({rng.randint(2, 4)}):", *(f"    {line}" for line in body)]
    if kind == "for":
        lines += [f"for i in range({seq_len}):", *(f"    {line}" for line in body)]
    else:
        lines += ["i = 0", f"while i < {seq_len}:", *(f"    {line}" for line in body), "    i += 1"]
    return interpreted("\n".join([*lines, f"#{pick(rng, names)}: "]))


def _update(names: list[str], rng: np.random.RandomState) -> list[str]:
    """Lines that update the last of the names, perhaps by one before it: sums stay polynomial in the iterations."""
    *others, name = names
    kind = pick(rng, ["+", "-", "i", "if", *(["other"] if others else [])])
    digit = int(rng.randint(1, 10))
    if kind == "if":
        divisor = int(rng.randint(2, 4))
        return [f"if i % {divisor} == {rng.randint(divisor)}:", f"    {name} += {digit}"]
    added = {"i": "i", "other": pick(rng, others) if others else ""}.get(kind, str(digit))
    return [f"{name} {'-' if kind == '-' else '+'}= {added}"]
