"""Rival hypotheses of what a patch moves: what each predicts, and which of them the patched runs agree with.

A hypothesis is a small causal model: a function of the original, the source and a target to the answer that the patched
run should give. Knows no model and no tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.hypotheses.models import HYPOTHESES, Hypothesis, candidates, prediction
    from debug.hypotheses.scoring import Best, HypothesisScores, PlaceScores, ScoresOverPairs, scores_of

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
