"""Generators by name, and programs of a seed drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from debug import checks
from debug.counterfactual import counterfactual
from debug.errors import InputError
from debug.generators.arithmetic import (
    make_arithmetic_sequence,
    make_boolean_program,
    make_counter_program,
    make_counterfactual_pair,
    make_exception_program,
    make_fibonacci_program,
    make_integer_program,
    make_range_program,
    make_range_program_lines,
    make_variable_increments,
)
from debug.generators.base import MAX_SEEDS, GeneratedProgram, Generator, GeneratorError, HopsNotAvailable
from debug.generators.beliefs import beliefs_pair, make_beliefs_program
from debug.generators.binding_arithmetic import make_binding_arithmetic_program
from debug.generators.bindings import make_entity_tracking_program, make_variable_binding_program
from debug.generators.boxes import boxes_pair, make_boxes_program
from debug.generators.conditionals import make_conditional_program
from debug.generators.containers import make_container_program
from debug.generators.functions import make_function_program
from debug.generators.loops import make_loop_program
from debug.generators.permutations import make_permutation_program
from debug.generators.reassignment import make_reassignment_program
from debug.interpreter import Code
from debug.programs import AnyPair, Program

Counterfactual = Callable[[str, str, int | None], AnyPair]
"""(kind, a program's text, its seed) -> its pair; raises ProgramError where it has none."""


def read_by(read: Callable[[str], Program | Code]) -> Counterfactual:
    """Counterfactuals by name of programs that are read so."""
    return partial(counterfactual, read=read)


class Family(NamedTuple):
    """A program family: its generator, the template and the parser that its programs are asked and read with, and the
    counterfactuals that causal runs patch from."""

    make: Generator
    prompt_template: str = "RANGE_TRACKING"
    answer_parser: str = "integer"
    pair: Counterfactual = read_by(partial(Code.parse, query="x"))

    @property
    def is_binding(self) -> bool:
        """Whether its programs are read as variable binding."""
        return self.pair is _BINDING


_ASKED = "VARIABLE_BINDING", "variable_binding"  # programs that end in a query line
_BINDING, _PYTHON = read_by(Program.parse), read_by(Code.parse)
FAMILIES: dict[str, Family] = {
    "variable_binding": Family(make_variable_binding_program, *_ASKED, _BINDING),
    "range": Family(make_range_program),
    "range_lines": Family(make_range_program_lines),
    "variable_increments": Family(make_variable_increments),
    "arithmetic_sequence": Family(make_arithmetic_sequence),
    "counter": Family(make_counter_program),
    "fibonacci": Family(make_fibonacci_program),
    "exception": Family(
        make_exception_program, "EXCEPTION_HANDLING", pair=read_by(partial(Code.parse, query="result"))
    ),
    "boolean": Family(make_boolean_program, "BOOLEAN_LOGIC", "boolean"),
    "integer": Family(make_integer_program),
    "entity_tracking": Family(make_entity_tracking_program, "ENTITY_TRACKING", "variable_binding", _BINDING),
    "counterfactual_pair": Family(make_counterfactual_pair),
    "binding_arithmetic": Family(make_binding_arithmetic_program, *_ASKED, _PYTHON),
    "reassignment": Family(make_reassignment_program, *_ASKED, _PYTHON),
    "conditionals": Family(make_conditional_program, *_ASKED, _PYTHON),
    "loops": Family(make_loop_program, *_ASKED, _PYTHON),
    "functions": Family(make_function_program, *_ASKED, _PYTHON),
    "containers": Family(make_container_program, *_ASKED, _PYTHON),
    "permutations": Family(make_permutation_program, *_ASKED, _PYTHON),
    "boxes": Family(make_boxes_program, "MINIMAL", "word", boxes_pair),
    "beliefs": Family(make_beliefs_program, "MINIMAL", "word", beliefs_pair),
}
"""A new family is its generator function and one line here."""
GENERATORS: dict[str, Generator] = {name: family.make for name, family in FAMILIES.items()}


def get_generator(generator: str | Generator) -> tuple[str, Generator]:
    """Name and function of a generator given as either.

    Raises:
        InputError: no generator of that name; the message lists those there are.
    """
    if callable(generator):
        names = {function: name for name, function in GENERATORS.items()}
        return names.get(generator, getattr(generator, "__name__", type(generator).__name__)), generator
    if generator not in GENERATORS:
        raise InputError(f"unknown generator {generator!r}; there are: {', '.join(GENERATORS)}")
    return generator, GENERATORS[generator]


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
            seed, f"generator failed at seed {seed}, seq_len {seq_len}: {type(error).__name__}: {error}"
        ) from error
    try:
        program, answer, *rest = made
        metadata = dict(*rest)
        answer = answer.item() if isinstance(answer, np.generic) else answer
        checks.text(program)
        checks.answer(answer)
        if not program.strip():
            raise InputError("the program is empty")
        for name, kind, check in (("hops", int, checks.integer), ("chain", list, checks.names)):
            if metadata.get(name) is not None:
                metadata[name] = kind(metadata[name])
                check(metadata[name])
    except (TypeError, ValueError) as error:
        raise GeneratorError(
            seed,
            f"generator returned {checks.shown(made)} at seed {seed}; expected (program, answer) or "
            f"(program, answer, metadata): {error}",
        ) from error
    return GeneratedProgram(seed, seq_len, program, answer, metadata)


def search(
    generator: Generator, seq_len: int, seed: int, num_hops: int | None = None, prompt_template: str = ""
) -> Iterator[GeneratedProgram]:
    """Programs of ``seed``, ``seed + 1``, ..., at most MAX_SEEDS seeds in all.

    Passed over are seeds without ``num_hops``, and programs that stand in ``prompt_template`` as a solved example.
    ``seed`` of each result less ``seed`` of the one before, less 1, is how many were passed over.

    Raises:
        GeneratorError: as :func:`generate`.
    """
    for found in attempts(generator, seq_len, seed, num_hops, prompt_template):
        if isinstance(found, GeneratorError):
            raise found
        yield found


def attempts(
    generator: Generator, seq_len: int, seed: int, num_hops: int | None = None, prompt_template: str = ""
) -> Iterator[GeneratedProgram | GeneratorError]:
    """As :func:`search`, and seeds at which the generator fails as errors, which have that ``seed``."""
    for candidate in range(seed, seed + MAX_SEEDS):
        try:
            generated = generate(generator, seq_len, candidate, num_hops)
        except HopsNotAvailable:
            continue
        except GeneratorError as error:
            yield error
            continue
        if generated.program not in prompt_template:
            yield generated
