"""Programs with known answers, drawn from a seeded random number generator.

Every generator is ``(seq_len, rng) -> (program, answer)`` or ``(program, answer, metadata)``. Adding one is writing the
function and naming it in ``GENERATORS``; a function of your own works without that. Knows no model and no prompt.

The task of the paper (Wu, Geiger and Millière 2025, arXiv 2505.20896) is :func:`make_variable_binding_program`; it and
:func:`make_entity_tracking_program` end in a query line. Elsewhere the answer is the value that ``x`` (in
:func:`make_exception_program` ``result``) has after the last line. Every program is Python, and its answer is Python's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
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
    from debug.generators.base import (
        MAX_SEEDS,
        GeneratedProgram,
        Generator,
        GeneratorError,
        HopsNotAvailable,
        check_lengths,
    )
    from debug.generators.bindings import make_entity_tracking_program, make_variable_binding_program
    from debug.generators.registry import FAMILIES, GENERATORS, Family, attempts, generate, get_generator, search

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
