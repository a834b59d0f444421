"""Result folders of the older format, read into runs of kind ``imported``.

The format: a JSON list of interventions (``intervention_results.json``, ``patch_results.json``) under
``EXPERIMENT/TIMESTAMP/MODEL/``, perhaps with ``experiment_metadata.json`` beside it, or of samples (``results.json``,
with ``summary.json``) under ``NAME_TIMESTAMP/``. What it does not record (seeds, model answers, logits) is null here.

- Its residual stream at layer l is what layer l puts out: this project's l + 1. Numbers stay as the files have them.
- Its success rate says that the top token changed at all, its normalized logit difference is the change of the new top
  token's logit over the range of the clean logits. Both keep their names under ``legacy_``.
- This project's success needs the token id of the counterfactual's answer. Byte-level vocabularies (token labels with
  ``Ġ`` and ``Ċ``) begin with the bytes, in one order, in which the digit d is token 15 + d. Where the clean run's top
  token is the original's answer under that numbering, success is derived; elsewhere it is null.

Rows that make no sense are reported with file and index, and the rest is imported. Untrusted: see ``checks``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.legacy.importing import Imported, import_results
    from debug.legacy.source import LegacyError

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
