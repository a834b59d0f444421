"""Confidence intervals of rates, means and differences; paired tests of two models. The arithmetic is scipy's.

Independent of runs and models. Every result carries n, the number of independent units behind it, and a warning where n
is too small to conclude from. docs/statistics.md has the measured coverage of each interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.statistics.intervals import Interval, bootstrap_mean, bootstrap_means, rate_until, wilson
    from debug.statistics.paired import Comparison, MeanComparison, _paired, _sign_flip, holm, mcnemar, paired_means

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
