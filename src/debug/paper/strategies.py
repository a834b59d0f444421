"""What explains a model's answers: which of them a strategy could have given, and which chance would give.

A strategy is a set of answers to a program: any number of it, those of the shallow heuristics, the right one. Answers
are numbers, None where a model gave none. Knows no model and no run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from debug.models.heuristics import largest_chain
from debug.programs import Program
from debug.statistics import Interval, bootstrap_mean, wilson

SHALLOW = ("line 1 or 2", "largest chain")
"""The heuristics that a transformer in training may take for the rule."""
EARLY = "line 1 or 2, less line drawn"
"""Of wrong answers: how much oftener they are of line 1 or 2 than the value of a line drawn, answer by answer."""


def explanations(program: str) -> dict[str, set[int]]:
    """Which answers each strategy could give: any digit, any number of the program, a number of line 1 or 2, the root
    of the largest chain, and the value that the query's chain leads to."""
    parsed = Program.parse(program)
    numbers = {line.line: int(line.rhs) for line in parsed.assignments if line.source is None}
    return {
        "a digit": set(range(10)),
        "any number": set(numbers.values()),
        "line 1 or 2": {number for line, number in numbers.items() if line < 2},
        "largest chain": {int(largest_chain(program, np.random.RandomState(0)))},
        "dereferencing": {parsed.answer},
    }


def misleads(program: str) -> bool:
    """Whether the right answer is none that line 1 or 2, or the largest chain, would give."""
    by = explanations(program)
    return not by["dereferencing"] & set.union(*(by[name] for name in SHALLOW))


def explained(answers: Sequence[tuple[int | None, str]]) -> dict[str, Interval]:
    """The share of answers, each to its program, that each strategy could have given."""
    fits = [{name: answer in found for name, found in explanations(program).items()} for answer, program in answers]
    return {name: wilson(sum(fit[name] for fit in fits), len(fits)) for name in fits[0]}


def drawn(programs: Sequence[str], pool: str) -> dict[str, Interval]:
    """:func:`explained`, were the answers drawn at random from those of one strategy, each alike."""
    found = [explanations(program) for program in programs]
    return {
        name: bootstrap_mean([len(by[name] & by[pool]) / len(by[pool]) for by in found], is_rate=True)
        for name in found[0]
    }


def wrong_answers(answers: Iterable[tuple[int | None, str]]) -> dict[str, Interval]:
    """What explains the wrong answers that are numbers of their program; empty where there are none.

    For each shallow heuristic the share that it could have given, and that share by chance, twice: of a number drawn
    from the program's, each alike, and of the value of a line drawn, which favours numbers that many lines lead to. The
    right number is left out of all draws.
    """
    columns: dict[str, list[float]] = {}
    for answer, program in answers:
        by = explanations(program)
        right, others = by["dereferencing"], by["any number"] - by["dereferencing"]
        if answer not in others:
            continue
        values: list[int] = []  # of each line: the number that it leads to
        for line in Program.parse(program).assignments:
            values.append(int(line.rhs) if line.source is None else values[line.source])
        values = [value for value in values if value not in right]
        for name in SHALLOW:
            found = by[name] - right
            columns.setdefault(name, []).append(answer in found)
            columns.setdefault(f"{name}, number drawn", []).append(len(found) / len(others))
            columns.setdefault(f"{name}, line drawn", []).append(sum(value in found for value in values) / len(values))
    found = {
        name: wilson(int(sum(column)), len(column)) if name in SHALLOW else bootstrap_mean(column, is_rate=True)
        for name, column in columns.items()
    }
    if found:
        line_drawn = np.subtract(columns["line 1 or 2"], columns["line 1 or 2, line drawn"])
        found[EARLY] = bootstrap_mean(line_drawn, bounds=(-1, 1))
    return found
