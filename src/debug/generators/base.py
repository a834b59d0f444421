"""What a generator is, what it gives, and how it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from debug.errors import InputError
from debug.interpreter import Code
from debug.kinds import Json
from debug.programs import Answer

Generator = Callable[..., tuple]

MAX_SEEDS = 100_000
"""Seeds that a search for exact hops tries before it gives up."""


class HopsNotAvailable(InputError):
    """This seed's program has no query of the hops asked for; the next seed may have."""


class GeneratorError(InputError):
    """A generator raised, or returned something that is no program with its answer, at this ``seed``."""

    def __init__(self, seed: int, message: str) -> None:
        super().__init__(message)
        self.seed = seed


@dataclass(frozen=True)
class GeneratedProgram:
    """What a generator gave for one seed; ``hops`` is None for programs that have no variable chain."""

    seed: int
    seq_len: int
    program: str
    answer: Answer
    metadata: dict[str, Json] = field(default_factory=dict)

    @property
    def hops(self) -> int | None:
        return self.metadata.get("hops")


def check_lengths(seq_len: int, num_hops: int | None = None) -> None:
    """Refuse a length or a number of hops that no program can have."""
    if isinstance(seq_len, bool) or not isinstance(seq_len, int | np.integer) or seq_len < 1:
        raise InputError(f"seq_len is {seq_len!r}; expected a number of lines, 1 or more")
    if num_hops is not None and (
        isinstance(num_hops, bool) or not isinstance(num_hops, int | np.integer) or not 1 <= num_hops <= seq_len
    ):
        raise InputError(f"num_hops is {num_hops!r}; a program of {seq_len} lines has 1 to {seq_len} hops")


def check_knob(name: str, value: object, least: int, most: int) -> None:
    """Refuse a difficulty that a family does not have."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise InputError(f"{name} is {value!r}; expected a number from {least} to {most}")


def check_chosen(name: str, values: object, known: tuple[str, ...]) -> None:
    """Refuse an empty choice, and what cannot be chosen."""
    if not isinstance(values, tuple | list) or not values or not set(values) <= set(known):
        raise InputError(f"{name} is {values!r}; expected some of {', '.join(known)}")


def check_share(name: str, value: object) -> None:
    """Refuse what is no probability."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}; expected a probability from 0 to 1")


def interpreted(text: str, **metadata: Json) -> tuple[str, Answer, dict[str, Json]]:
    """A program with its answer, the spans of its roles, and its states: those of :class:`debug.interpreter.Code`."""
    code = Code.parse(text)
    spans = {role: list(span) for role, span in code.spans.items()}
    return text, code.answer, metadata | {"spans": spans, "states": [state.to_record() for state in code.states]}


def pick(rng: np.random.RandomState, values: Iterable[str]) -> str:
    return str(rng.choice(list(values)))
