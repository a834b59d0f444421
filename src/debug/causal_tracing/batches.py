"""So many items at a time; fewer where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from debug.models import out_of_memory

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


def in_parts(items: Sequence[T], size: int, run: Callable[[Sequence[T]], R]) -> Iterator[R]:
    """Run so many items at a time; half as many where memory runs out."""
    start = 0
    while start < len(items):
        part = items[start : start + size]
        try:
            result = run(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
            size = len(part) // 2
            logger.warning("out of memory: going on with %d programs at a time", size)
            continue
        start += len(part)
        yield result
