"""Charts drawn by a process of their own beside the one that computes: what draws takes seconds to import."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from debug.causal_visualization.style import Picture

logger = logging.getLogger(__name__)
_beside: ProcessPoolExecutor | None = None


def begin() -> None:
    """Start the process that draws, and what it imports. For a command's own process, before it has any thread: it is
    forked. Where processes cannot be, :func:`draw` draws in the caller's."""
    global _beside
    if _beside is None and "fork" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("fork")
        _beside = ProcessPoolExecutor(1, context, initializer=_alone, initargs=(os.getpid(),))
        _beside.submit(_warm)


def draw(charts: str, folder: Path, *of: object) -> Callable[[], list[str]]:
    """Begin to draw, as files of a folder, the charts that a function makes of its arguments.

    Args:
        charts: ``module:function``, to be imported where it is drawn; returns charts by file name, without ending.
        of: what pickle can take.

    Returns:
        Waits until they are there and returns their names; raises what the function raised.
    """
    if _beside is None:
        drawn = _draw(charts, folder, of)
        return lambda: drawn
    try:
        begun = _beside.submit(_draw, charts, folder, of)
    except BrokenProcessPool as error:
        begun = Future()
        begun.set_exception(error)

    def finish() -> list[str]:
        try:
            return begun.result()
        except BrokenProcessPool as error:
            logger.debug("the process that draws has ended (%s); drawing here", error)
            return _draw(charts, folder, of)

    return finish


def _draw(charts: str, folder: Path, of: tuple[object, ...]) -> list[str]:
    from debug.causal_visualization.style import save_chart

    module, _, function = charts.partition(":")
    made: dict[str, Picture] = getattr(import_module(module), function)(*of)
    for stem, chart in made.items():
        save_chart(chart, folder, stem)
    return list(made)


def _alone(parent: int) -> None:
    """Ctrl-C is the parent's affair; without a parent there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)

    def leave() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=leave, daemon=True).start()


def _warm() -> None:
    import altair as alt
    import polars as pl

    from debug.causal_visualization import accuracy, logged  # noqa: F401  (imported for what comes)

    chart = alt.Chart(pl.DataFrame({"x": [0]})).mark_rect().encode(x="x:Q")
    chart.to_html(inline=True)
    chart.save(io.BytesIO(), "png")
