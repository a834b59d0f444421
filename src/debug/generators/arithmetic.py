"""Program families whose variables are computed: loops, increments, operators, exceptions, booleans."""

from __future__ import annotations

import numpy as np

from debug.errors import InputError
from debug.generators.base import check_lengths
from debug.kinds import Json


def make_range_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """A loop that adds one number seq_len times: ``x = 0 / for i in range(seq_len): / x += 3``."""
    check_lengths(seq_len)
    step = int(rng.randint(1, 10))
    return f"x = 0\nfor i in range({seq_len}):\n    x += {step}", seq_len * step


def make_range_program_lines(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """:func:`make_range_program` without the loop: ``x += 3`` stands there seq_len times."""
    check_lengths(seq_len)
    step = int(rng.randint(1, 10))
    return "\n".join(["x = 0"] + [f"x += {step}"] * seq_len), seq_len * step


def make_variable_increments(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """seq_len lines, each of which adds a number of its own to ``x``."""
    check_lengths(seq_len)
    steps = [int(step) for step in rng.randint(1, 10, size=seq_len)]
    return "\n".join(["x = 0"] + [f"x += {step}" for step in steps]), sum(steps)


def make_arithmetic_sequence(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """A loop from a start other than 0, upwards or downwards: the term of an arithmetic sequence."""
    check_lengths(seq_len)
    start, step = int(rng.randint(1, 21)), int(rng.randint(1, 10))
    sign = rng.choice(["+", "-"])
    answer = start + seq_len * (step if sign == "+" else -step)
    return f"x = {start}\nfor i in range({seq_len}):\n    x {sign}= {step}", answer


def make_counter_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """A loop that counts the numbers below seq_len with one remainder: ``if i % 3 == 1: / x += 1``."""
    check_lengths(seq_len)
    divisor = int(rng.randint(2, 5))
    remainder = int(rng.randint(divisor))
    program = f"x = 0\nfor i in range({seq_len}):\n    if i % {divisor} == {remainder}:\n        x += 1"
    return program, len(range(remainder, seq_len, divisor))


def make_fibonacci_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """A Fibonacci sequence from two numbers of its own, seq_len steps on."""
    check_lengths(seq_len)
    first, second = (int(number) for number in rng.randint(0, 6, size=2))
    a, b = first, second
    for _ in range(seq_len):
        a, b = b, a + b
    return f"a = {first}\nb = {second}\nfor i in range({seq_len}):\n    a, b = b, a + b\nx = a", a


def make_exception_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """seq_len steps, each a division that adds its quotient, or a fallback where it raises ZeroDivisionError.

    One divisor in three is 0; the others divide without remainder.
    """
    check_lengths(seq_len)
    lines, answer = ["result = 0"], 0
    for _ in range(seq_len):
        numerator, fallback = int(rng.randint(1, 11)), int(rng.randint(-5, 0))
        divisors = [d for d in range(1, numerator + 1) if numerator % d == 0]
        divisor = 0 if rng.random() < 1 / 3 else int(rng.choice(divisors))
        lines += ["try:", f"    result += {numerator} // {divisor}"]
        lines += ["except ZeroDivisionError:", f"    result += {fallback}"]
        answer += numerator // divisor if divisor else fallback
    return "\n".join(lines), answer


def make_boolean_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, bool]:
    """seq_len lines of ``and``, ``or``, ``not`` and exclusive or (``^``) over True and False."""
    check_lengths(seq_len)
    answer = bool(rng.randint(2))
    lines = [f"x = {answer}"]
    for _ in range(seq_len):
        operator, operand = str(rng.choice(["and", "or", "not", "^"])), bool(rng.randint(2))
        lines.append("x = not x" if operator == "not" else f"x = x {operator} {operand}")
        answer = {"and": answer and operand, "or": answer or operand, "not": not answer, "^": answer ^ operand}[
            operator
        ]
    return "\n".join(lines), answer


def make_integer_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """seq_len lines of ``+=``, ``-=``, ``*=``, ``//=``, ``%=`` and ``abs``; beyond 99 nothing is multiplied."""
    check_lengths(seq_len)
    value = int(rng.randint(-9, 10))
    lines = [f"x = {value}"]
    for _ in range(seq_len):
        operators = ["+", "-", "//", "%", "abs"] + (["*"] if abs(value) <= 99 else [])
        operator, operand = str(rng.choice(operators)), int(rng.randint(2, 10))
        lines.append("x = abs(x)" if operator == "abs" else f"x {operator}= {operand}")
        match operator:
            case "+":
                value += operand
            case "-":
                value -= operand
            case "*":
                value *= operand
            case "//":
                value //= operand
            case "%":
                value %= operand
            case "abs":
                value = abs(value)
    return "\n".join(lines), value


def make_counterfactual_pair(
    seq_len: int, rng: np.random.RandomState, diverge_at: int | None = None
) -> tuple[str, int, dict[str, Json]]:
    """:func:`make_variable_increments`, with a counterfactual that adds another number at one line, and the values.

    Args:
        diverge_at: the first line at which the two differ, 0 for the first that adds; drawn where None.

    Returns:
        The program, its answer, and ``{"diverge_at", "values", "counterfactual", "counterfactual_answer",
        "counterfactual_values"}``; values are those of ``x`` after each line that adds, the same below ``diverge_at``.

    Raises:
        InputError: there is no such line.
    """
    check_lengths(seq_len)
    if diverge_at is None:
        diverge_at = int(rng.randint(seq_len))
    elif isinstance(diverge_at, bool) or not 0 <= diverge_at < seq_len:
        raise InputError(f"diverge_at is {diverge_at!r}; {seq_len} lines that add have indices 0 to {seq_len - 1}")
    steps = [int(step) for step in rng.randint(1, 10, size=seq_len)]
    other = int(rng.choice([step for step in range(1, 10) if step != steps[diverge_at]]))
    programs, values = [], []
    for added in (steps, [*steps[:diverge_at], other, *steps[diverge_at + 1 :]]):
        programs.append("\n".join(["x = 0"] + [f"x += {step}" for step in added]))
        values.append([int(value) for value in np.cumsum(added)])
    metadata = {
        "diverge_at": diverge_at,
        "values": values[0],
        "counterfactual": programs[1],
        "counterfactual_answer": values[1][-1],
        "counterfactual_values": values[1],
    }
    return programs[0], values[0][-1], metadata
