"""Programs with known answers, drawn from a seeded random number generator.

Every generator is ``(seq_len, rng) -> (program, answer)`` or ``(program, answer, metadata)``. Adding one is writing the
function and naming it in ``GENERATORS``; a function of your own works without that. Knows no model and no prompt.

The task of the paper (Wu, Geiger and Millière 2025, arXiv 2505.20896) is :func:`make_variable_binding_program`.
Programs end in a query line, or their answer is the value that ``x`` (in :func:`make_exception_program` ``result``)
has after the last line. Every program is Python, and its answer is Python's; but :func:`make_boxes_program` and
:func:`make_beliefs_program` give English sentences, and the next word is the answer.

Families of a file of their own have difficulties as keyword arguments, and metadata with ``spans`` (role -> [start,
end), in characters) and ``states`` (after each line that ran, or each sentence).
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
    from debug.generators.beliefs import make_beliefs_program
    from debug.generators.binding_arithmetic import make_binding_arithmetic_program
    from debug.generators.bindings import make_entity_tracking_program, make_variable_binding_program
    from debug.generators.boxes import make_boxes_program
    from debug.generators.conditionals import make_conditional_program
    from debug.generators.containers import make_container_program
    from debug.generators.functions import make_function_program
    from debug.generators.loops import make_loop_program
    from debug.generators.permutations import make_permutation_program
    from debug.generators.reassignment import make_reassignment_program
    from debug.generators.registry import FAMILIES, GENERATORS, Family, attempts, generate, get_generator, search

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
