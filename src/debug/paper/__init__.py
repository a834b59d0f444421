"""The paper's findings on one model: the runs that show them, and a report page of what these runs hold.

:func:`reproduce` carries out accuracy runs, causal runs and, where there is a training run, accuracy runs of its
checkpoints, all in one MLflow experiment and nested under one summary run. That run holds ``report.md`` with its
pictures, ``summary.json``, and as metrics every number of the page that no other run holds. The findings are those of
Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); how they are measured is in the runners and the engine.
"""

from debug.paper.claims import every, surely_above, surely_below
from debug.paper.heads import moving_heads
from debug.paper.page import Reproduction, plain
from debug.paper.reproduce import reproduce
from debug.paper.residual_stream import climbed

__all__ = [
    "Reproduction",
    "climbed",
    "every",
    "moving_heads",
    "plain",
    "reproduce",
    "surely_above",
    "surely_below",
]
