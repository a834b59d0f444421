"""A logged run repeated: exactly, or with what is named changed; the repetition is compared with what the log says.

    print(rerun("3f2a91c0"))                                   # identical, within tolerance, or different, and why
    rerun("3f2a91c0", intervention_type="mlp", layers=[0, 1])  # the same programs, another question

Everything that a repetition needs is in the run: the programs in samples.jsonl, the plan or configuration in
config.json, model, dtype and device in params and tags. Knows no engine: runs go through the two runners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.rerun.causal import compare_maps
    from debug.rerun.repeat import rerun
    from debug.rerun.verdict import Rerun, RerunError, _shown

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
