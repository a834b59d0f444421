"""How sure a number is: intervals of rates, means, differences; paired tests of two models. The arithmetic is scipy's.

Knows no run and no model. Every result carries n, the number of independent things it was computed from, and a warning
where that is too few for what a reader would conclude. docs/statistics.md: how often each interval holds the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.statistics.intervals import Interval, bootstrap_mean, bootstrap_means, rate_until, wilson
    from debug.statistics.paired import Comparison, _paired, _sign_flip, holm, mcnemar

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
