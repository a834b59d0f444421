"""From a program to its pair: the same program with another root value, drawn from the program's own seed."""

from __future__ import annotations

import re
import string
from typing import Any

import numpy as np

from debug.programs import Program, ProgramError, ProgramPair


def make_pair(program: str | Program, seed: int | None = None, root_value: int | None = None) -> ProgramPair:
    """The pair of a program.

    The counterfactual's root is ``root_value`` where given. Else it is drawn by ``RandomState([seed, 1])`` from the
    digits that do not occur in the program (all other digits where every digit occurs), so that one integer names the
    whole pair; without a seed, 0 is used for that draw.

    Raises:
        ProgramError: the text is no program, or ``root_value`` is the root value that it has.
    """
    original = program if isinstance(program, Program) else Program.parse(program)
    if root_value is None:
        used = set(re.findall(r"\d", original.text))
        free = [d for d in string.digits if d not in used] or [d for d in string.digits if int(d) != original.answer]
        root_value = int(np.random.RandomState([seed or 0, 1]).choice(free))
    return ProgramPair(original, original.with_root(root_value), seed)


def as_pair(program: ProgramPair | dict[str, Any] | str) -> ProgramPair:
    """A pair from what users have: a pair, a program's text, or a dict of which only ``original`` is required.

    Raises:
        ProgramError: the text is no program, or the dict's fields contradict it.
    """
    if isinstance(program, ProgramPair):
        return program
    if isinstance(program, str):
        return make_pair(program)
    if not isinstance(program, dict) or not isinstance(program.get("original"), str):
        raise ProgramError(f"expected a pair, a program's text or a dict with 'original', given {program!r:.200}")
    if program.get("counterfactual") is not None:
        return ProgramPair.from_record(program)
    derived = make_pair(program["original"], program.get("seed"), program.get("expected_counterfactual"))
    return ProgramPair.from_record({**program, "counterfactual": derived.counterfactual.text})
