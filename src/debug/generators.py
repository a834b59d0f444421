"""Programs with known answers, drawn from a seeded random number generator.

Every generator is ``(seq_len, rng) -> (program, answer)`` or ``(program, answer, metadata)``. Adding one is writing the
function and naming it in ``GENERATORS``; a function of your own works without that. Knows no model and no prompt.

The task of the paper (Wu, Geiger and Millière 2025, arXiv 2505.20896) is :func:`make_variable_binding_program`.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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


def make_range_program(seq_len: int, rng: np.random.RandomState) -> tuple[str, int]:
    """A loop that adds one number seq_len times: ``x = 0 / for i in range(seq_len): / x += 3``."""
    check_lengths(seq_len)
    step = int(rng.randint(1, 10))
    return f"x = 0\nfor i in range({seq_len}):\n    x += {step}", seq_len * step


GENERATORS: dict[str, Generator] = {
    "variable_binding": make_variable_binding_program,
    "range": make_range_program,
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
    match made:
        case (str(program), int() | str() | np.integer() | np.bool_() as answer):
            metadata: dict[str, Any] = {}
        case (str(program), int() | str() | np.integer() | np.bool_() as answer, dict(metadata)):
            pass
        case _:
            raise GeneratorError(
                f"generator returned {made!r:.200} at seed {seed}; "
                "expected (program, answer) or (program, answer, metadata)"
            )
    answer = answer.item() if isinstance(answer, np.generic) else answer
    return GeneratedProgram(seed, seq_len, program, answer, dict(metadata))


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
