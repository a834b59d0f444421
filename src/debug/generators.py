"""Programs with known answers, drawn from a seeded random number generator.

Every generator is ``(seq_len, rng) -> (program, answer)`` or ``(program, answer, metadata)``. Adding one is writing the
function and naming it in ``GENERATORS``; a function of your own works without that. Knows no model and no prompt.

The task of the paper (Wu, Geiger and Millière 2025, arXiv 2505.20896) is :func:`make_variable_binding_program`; it and
:func:`make_entity_tracking_program` end in a query line. Elsewhere the answer is the value that ``x`` (in
:func:`make_exception_program` ``result``) has after the last line. Every program is Python, and its answer is Python's.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from debug import checks
from debug.programs import Program

Generator = Callable[..., tuple]

MAX_SEEDS = 100_000
"""Seeds that a search for exact hops tries before it gives up."""


class HopsNotAvailable(ValueError):
    """This seed's program has no query of the hops asked for; the next seed may have."""


class GeneratorError(ValueError):
    """A generator raised, or returned something that is no program with its answer."""


@dataclass(frozen=True)
class GeneratedProgram:
    """What a generator gave for one seed; ``hops`` is None for programs that have no variable chain."""

    seed: int
    seq_len: int
    program: str
    answer: int | str | bool
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def hops(self) -> int | None:
        return self.metadata.get("hops")


def make_variable_binding_program(
    seq_len: int, rng: np.random.RandomState, num_hops: int | None = None
) -> tuple[str, int, dict[str, Any]]:
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
        ValueError: seq_len or num_hops cannot be.
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


def make_entity_tracking_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int, dict[str, Any]]:
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
) -> tuple[str, int, dict[str, Any]]:
    """:func:`make_variable_increments`, with a counterfactual that adds another number at one line, and the values.

    Args:
        diverge_at: the first line at which the two differ, 0 for the first that adds; drawn where None.

    Returns:
        The program, its answer, and ``{"diverge_at", "values", "counterfactual", "counterfactual_answer",
        "counterfactual_values"}``; values are those of ``x`` after each line that adds, the same below ``diverge_at``.

    Raises:
        ValueError: there is no such line.
    """
    check_lengths(seq_len)
    if diverge_at is None:
        diverge_at = int(rng.randint(seq_len))
    elif isinstance(diverge_at, bool) or not 0 <= diverge_at < seq_len:
        raise ValueError(f"diverge_at is {diverge_at!r}; {seq_len} lines that add have indices 0 to {seq_len - 1}")
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


GENERATORS: dict[str, Generator] = {
    "variable_binding": make_variable_binding_program,
    "range": make_range_program,
    "range_lines": make_range_program_lines,
    "variable_increments": make_variable_increments,
    "arithmetic_sequence": make_arithmetic_sequence,
    "counter": make_counter_program,
    "fibonacci": make_fibonacci_program,
    "exception": make_exception_program,
    "boolean": make_boolean_program,
    "integer": make_integer_program,
    "entity_tracking": make_entity_tracking_program,
    "counterfactual_pair": make_counterfactual_pair,
}


def get_generator(generator: str | Generator) -> tuple[str, Generator]:
    """Name and function of a generator given as either.

    Raises:
        ValueError: no generator of that name; the message lists those there are.
    """
    if callable(generator):
        names = {function: name for name, function in GENERATORS.items()}
        return names.get(generator, getattr(generator, "__name__", type(generator).__name__)), generator
    if generator not in GENERATORS:
        raise ValueError(f"unknown generator {generator!r}; there are: {', '.join(GENERATORS)}")
    return generator, GENERATORS[generator]


def check_lengths(seq_len: int, num_hops: int | None = None) -> None:
    """Refuse a length or a number of hops that no program can have."""
    if isinstance(seq_len, bool) or not isinstance(seq_len, int | np.integer) or seq_len < 1:
        raise ValueError(f"seq_len is {seq_len!r}; expected a number of lines, 1 or more")
    if num_hops is not None and (
        isinstance(num_hops, bool) or not isinstance(num_hops, int | np.integer) or not 1 <= num_hops <= seq_len
    ):
        raise ValueError(f"num_hops is {num_hops!r}; a program of {seq_len} lines has 1 to {seq_len} hops")


def generate(generator: Generator, seq_len: int, seed: int, num_hops: int | None = None) -> GeneratedProgram:
    """The program of one seed, whichever of the two forms the generator returns.

    Raises:
        HopsNotAvailable: the seed's program has other hops than asked for.
        GeneratorError: the generator raised something else, or returned no (program, answer).
    """
    options = {} if num_hops is None else {"num_hops": num_hops}
    try:
        made = generator(seq_len, np.random.RandomState(seed), **options)
    except HopsNotAvailable:
        raise
    except Exception as error:
        raise GeneratorError(
            f"generator failed at seed {seed}, seq_len {seq_len}: {type(error).__name__}: {error}"
        ) from error
    try:
        program, answer, *rest = made
        metadata = dict(*rest)
        answer = answer.item() if isinstance(answer, np.generic) else answer
        checks.text(program)
        checks.answer(answer)
        if not program.strip():
            raise ValueError("the program is empty")
        for name, kind, check in (("hops", int, checks.integer), ("chain", list, checks.names)):
            if metadata.get(name) is not None:
                metadata[name] = kind(metadata[name])
                check(metadata[name])
    except (TypeError, ValueError) as error:
        raise GeneratorError(
            f"generator returned {checks.shown(made)} at seed {seed}; expected (program, answer) or "
            f"(program, answer, metadata): {error}"
        ) from error
    return GeneratedProgram(seed, seq_len, program, answer, metadata)


def search(
    generator: Generator, seq_len: int, seed: int, num_hops: int | None = None, prompt_template: str = ""
) -> Iterator[GeneratedProgram]:
    """Programs of ``seed``, ``seed + 1``, ..., at most MAX_SEEDS seeds in all.

    Passed over are seeds without ``num_hops``, and programs that stand in ``prompt_template`` as a solved example.
    ``seed`` of each result less ``seed`` of the one before, less 1, is how many were passed over.
    """
    for candidate in range(seed, seed + MAX_SEEDS):
        try:
            generated = generate(generator, seq_len, candidate, num_hops)
        except HopsNotAvailable:
            continue
        if generated.program not in prompt_template:
            yield generated
