"""Robust seeds: the first RNG seeds whose program, and its counterfactual, every model answers correctly.

    found = find_robust_seeds(RobustSearch(models=["tiny"], hops=[3], seq_lens=[5], count=10))
    found[0].seeds

Causal runs over robust seeds compare models on the same programs, each of which all of them can do. Each model is
loaded once. Seeds go through in batches, one model after another, and one that a model fails is not shown to the next.
With ``all_incorrect`` it is the opposite: programs and counterfactuals that every model answers, and answers wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.robust_seeds.search_config import KIND, RobustSearch
    from debug.robust_seeds.searching import RobustSeeds, find_robust_seeds

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
