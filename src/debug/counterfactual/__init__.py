"""From a program to its pair: the counterfactual by name, pairs that are given, files of pairs and of programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.counterfactual.kinds import KINDS, Kind, choose, counterfactual
    from debug.counterfactual.pairs import (
        PairLike,
        as_pair,
        make_pair,
        python_pair,
        python_pairs,
        read_pairs,
        read_program,
        same_answer_program,
    )

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
