"""What a notebook shows of a result: one line as its repr, a picture, and HTML in which all text is escaped."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from debug.kinds import Argument

if TYPE_CHECKING:
    import altair as alt


class Shown:
    """A base class. How something is drawn is no affair of the results themselves: it is looked up when it is asked
    for, in :mod:`debug.causal_visualization.notebook`, so that a result costs no chart library."""

    def _in_short(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._in_short()})"

    def plot(self, **settings: Argument) -> alt.TopLevelMixin:
        """Its picture, an Altair chart. Of a map: ``metric``, and of one with heads ``target``.

        Raises:
            debug.InputError: it has no picture; says why.
        """
        return import_module("debug.causal_visualization.notebook").picture(self, **settings)

    def _repr_html_(self) -> str:
        """What a notebook shows, and what is left of it in a file that nbconvert writes: no script, no server."""
        return import_module("debug.causal_visualization.notebook").html(self)
