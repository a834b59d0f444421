"""The engine: interventions as data -> logits of the patched runs, with the checks that it makes of itself.

Every patch goes through nnsight. Knows no program, no pair, no map and no file.
"""

from debug.engine.forward import default_batch_tokens, patched_logits
from debug.engine.interventions import Cell, Cut, Site
from debug.engine.runs import Runs, SelfCheckError, gradients, record, unembedded
from debug.models.hook_points import COMPONENTS

__all__ = [
    "COMPONENTS",
    "Cell",
    "Cut",
    "Runs",
    "SelfCheckError",
    "Site",
    "default_batch_tokens",
    "gradients",
    "patched_logits",
    "record",
    "unembedded",
]
