"""Claims, and when a confidence interval decides one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from debug.statistics import Interval

SMALLEST = 10  # fewer programs or pairs than this decide no claim


@dataclass(frozen=True)
class Claim:
    """A claim about this model; ``holds`` is None where the runs do not decide it."""

    name: str
    text: str
    criterion: str
    holds: bool | None
    number: str
    runs: Sequence[str]

    @property
    def verdict(self) -> str:
        return {True: "holds", False: "does not", None: "undecided"}[self.holds]


def surely_above(value: Interval | None, bound: float) -> bool | None:
    """Whether the 95% CI is above a bound (True), or below it (False); None where it contains the bound, or n is below
    ``SMALLEST``."""
    if value is None or value.low is None or value.high is None or value.n < SMALLEST:
        return None
    return True if value.low > bound else False if value.high < bound else None


def surely_below(value: Interval | None, bound: float) -> bool | None:
    above = surely_above(value, bound)
    return None if above is None else not above


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """False where any is False; else None where any is None or there is none; else True."""
    known = list(verdicts)
    return False if False in known else True if known and None not in known else None


SOLVED = 0.95  # a number of hops is solved where the 95% CI of the accuracy is above this
ANSWERS = 0.5  # internal mechanisms are judged where the 95% CI of the accuracy is above this: else answers are luck


NOTHING = 0.05  # a difference of rates whose 95% CI is below this counts as none
