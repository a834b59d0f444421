"""Strategies that explain a model's answers: the share that each could have given, and its chance level.

A strategy is a set of answers to a program: any of its numbers, those of the shallow heuristics, the right one. Answers
are numbers, or None where the output is unparseable. Independent of models and runs.
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
"""Name in the store of the paired difference, over wrong answers: share on line 1 or 2 minus that of a random line."""
EXCESS = "line 1 or 2 − line drawn"
"""The same on the page."""


def explanations(program: str) -> dict[str, set[int]]:
    """Strategy -> the answers that it could give: any digit, any number of the program, a number on line 1 or 2, the
    root of the largest chain, and the value that the query's chain leads to."""
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
    """Whether both heuristics are wrong: the right answer is not on line 1 or 2, nor the root of the largest chain."""
    by = explanations(program)
    return not by["dereferencing"] & set.union(*(by[name] for name in SHALLOW))


def explained(answers: Sequence[tuple[int | None, str]]) -> dict[str, Interval]:
    """The share of (answer, program) whose answer each strategy could have given."""
    fits = [{name: answer in found for name, found in explanations(program).items()} for answer, program in answers]
    return {name: wilson(sum(fit[name] for fit in fits), len(fits)) for name in fits[0]}


def drawn(programs: Sequence[str], pool: str) -> dict[str, Interval]:
    """The chance level of :func:`explained`: answers drawn uniformly from those of one strategy, ``pool``."""
    found = [explanations(program) for program in programs]
    return {
        name: bootstrap_mean([len(by[name] & by[pool]) / len(by[pool]) for by in found], is_rate=True)
        for name in found[0]
    }


def wrong_answers(answers: Iterable[tuple[int | None, str]]) -> dict[str, Interval]:
    """What explains the wrong answers that are numbers of their program; empty where there are none.

    For each shallow heuristic: the share that it could have given, and two chance levels: of a number drawn uniformly
    from the program's, and of the value of a line drawn uniformly, which favours numbers that many lines lead to. The
    right number is excluded from all draws.
    """
    columns: dict[str, list[float]] = {}
    for answer, program in answers:
        by = explanations(program)
        right, others = by["dereferencing"], by["any number"] - by["dereferencing"]
        if answer not in others:
            continue
        values: list[int] = []  # for each line, the number that it leads to
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
