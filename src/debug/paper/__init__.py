"""The paper's findings on one model: the runs that measure them, and a report of these runs.

:func:`reproduce` carries out accuracy runs, causal runs and, where there is a training run, accuracy runs of its
checkpoints, all in one MLflow experiment and nested under one summary run. That run holds ``report.md`` with its
pictures, ``summary.json``, and as metrics every number of the page that no other run has. The findings are those of
Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); the runners and the engine implement the measurements.
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
