"""Claims, and when an interval decides one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from debug.statistics import Interval

SMALLEST = 10  # programs or pairs below which no interval decides a claim


@dataclass(frozen=True)
class Claim:
    """A claim on this model; ``holds`` is None where the runs cannot tell."""

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
    """Whether the whole interval is above a bound (True), or below it (False); None where it is on both sides, or of
    fewer than ``SMALLEST``."""
    if value is None or value.low is None or value.high is None or value.n < SMALLEST:
        return None
    return True if value.low > bound else False if value.high < bound else None


def surely_below(value: Interval | None, bound: float) -> bool | None:
    above = surely_above(value, bound)
    return None if above is None else not above


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """One that does not decides; else one that is undecided leaves all undecided, as none at all does."""
    known = list(verdicts)
    return False if False in known else True if known and None not in known else None


SOLVED = 0.95  # accuracy that a solved depth is surely above
ANSWERS = 0.5  # what goes on inside is asked where accuracy is surely above this: else right answers are luck


NOTHING = 0.05  # a difference of rates that is surely smaller counts as none
