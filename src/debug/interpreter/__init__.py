"""A subset of Python, read with ``ast`` and run by an interpreter of its own in bounded steps: states, roles, literals.

    x = 2
    if x > 1:
        x += 3
    #x:

:meth:`Code.parse` gives the answer, the variables after every line, and the named spans of the text. Python
itself never executes it. Pure Python; knows no tokens, no model, no random numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.interpreter.code import Change, Code
    from debug.interpreter.execution import State, Value
    from debug.interpreter.syntax import Literal

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
