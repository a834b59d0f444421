"""Progress of long work: a bar in a terminal or a notebook; elsewhere, as in a log file, a plain line every 30 s."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

EVERY = 30.0  # seconds


def hidden() -> bool | None:
    """tqdm's ``disable``: bars are shown in a terminal, and in a notebook, there as text that a saved notebook keeps
    (widgets are lost)."""
    return False if "ipykernel" in sys.modules else None


class Progress:
    """Counts what is done of ``total``; a context manager. ``brief``: a bar that leaves no trace, after two seconds."""

    def __init__(self, total: int, description: str, unit: str, *, brief: bool = False) -> None:
        self.bar = tqdm(
            total=total, desc=description, unit=unit, disable=hidden(), leave=not brief, delay=2 if brief else 0
        )
        self.total, self.description, self.unit, self.done = total, description, unit, 0
        self.started = self.said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def set_description(self, description: str) -> None:
        self.description = description
        self.bar.set_description(description)

    def update(self, n: int = 1) -> None:
        self.done += n
        self.bar.update(n)
        now = time.monotonic()
        if self.bar.disable and now - self.said >= EVERY:
            self.said = now
            spent = now - self.started
            # The first one's time is that of beginning, and of those that are computed together with it.
            left = f", about {_shown(spent / self.done * (self.total - self.done))} left" if self.done > 1 else ""
            logger.info(
                "%s: %d of %d %ss in %s%s", self.description, self.done, self.total, self.unit, _shown(spent), left
            )


def _shown(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
