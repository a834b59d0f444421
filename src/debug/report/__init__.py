"""One study on one page: question, finding, example, accuracy, maps, checks, caveats and the command that repeats it.

:func:`chapters` makes the contents once; the dashboard's Study page draws them, :func:`report` writes them as one HTML
file without scripts. Text of a store is escaped, here and there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.report.contents import Chapter, chapters, found, rate_in_words, rates_in_words
    from debug.report.html import body, report

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
