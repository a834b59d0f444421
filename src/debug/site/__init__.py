"""A store as a static site: studies, accuracy, maps, pairs, states, training; no server, opened from a disk too.

:func:`write_site` writes a folder: one page (``index.html``), its styles and scripts, Vega, and a data file for
each study, run and view, which the page loads when it shows it. A data file is a script that hands over a text, as
pages that were opened from a disk may not fetch JSON; what is in the text is data and never becomes HTML. Charts are
those of :mod:`debug.causal_visualization`, drawn here and kept as Vega-Lite. Reads a store through
:mod:`debug.tracking`; only :mod:`debug.site.measuring` runs models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.site.measuring import measure_checkpoints
    from debug.site.writing import Limits, SiteError, write_site

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
