"""The paper's findings on one model: the runs that measure them, and a report of these runs.

:func:`reproduce` carries out accuracy runs, causal runs and, where there is a training run, accuracy runs of its
checkpoints, all in one MLflow experiment and nested under one summary run. That run holds ``report.md`` with its
pictures, ``summary.json``, and as metrics every number of the page that no other run has. The findings are those of
Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); the runners and the engine implement the measurements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.paper.claims import every, surely_above, surely_below
    from debug.paper.heads import moving_heads
    from debug.paper.page import plain
    from debug.paper.report import reproduce
    from debug.paper.reproduction import Reproduction
    from debug.paper.residual_stream import climbed

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
