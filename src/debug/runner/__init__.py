"""Accuracy runs: programs into a model, answers parsed and scored, every cell of the sweep a run in the tracking store.

    result = ExperimentRunner().run(quick_experiment(...))

One :meth:`ExperimentRunner.run` is one parent run; each (model, hops, seq_len) under it is a cell, a nested run.
Samples are stored as they come, so that what is done stays, however the run ends. A sample is correct, wrong, without
an answer (nothing in the text is one: not correct, and counted apart), or has an error: the model was not asked, or its
answer not read, and the sample counts in no rate. Knows no causal run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.runner.asking import given
    from debug.runner.labels import told_apart
    from debug.runner.programs import Drawn, NotGenerated, TooFewPrograms, draw_programs
    from debug.runner.results import MOST_PRINTED, CellKey, ExperimentResult
    from debug.runner.runner import ExperimentRunner, NothingScored
    from debug.runner.study import KIND

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
