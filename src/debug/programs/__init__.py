"""What a program is: of variable binding, or any text with its answer; and the pair with its counterfactual.

Pure Python. Knows no tokens, no model, no random numbers. Text is parsed, never executed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.programs.binding import Assignment, Program, VariableChain
    from debug.programs.pairs import (
        GIVEN,
        KEEPS_ANSWER,
        ROOT_VALUE,
        AnyPair,
        AnyProgram,
        Pair,
        ProgramPair,
        TextPair,
        as_given,
        from_given,
        pair_from_record,
    )
    from debug.programs.texts import LINE_END, LONGEST_TEXT, Answer, ProgramError, Span, TextProgram

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
