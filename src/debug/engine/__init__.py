"""The engine: interventions as data -> logits of the patched runs, with the checks that it makes of itself.

Every patch goes through nnsight. Knows no program, no pair, no map and no file.
"""

from debug.engine.forward import default_batch_tokens, patched_logits
from debug.engine.interventions import Cut, Intervention, Site
from debug.engine.unpatched import ForwardPasses, SelfCheckError, forward_passes, gradients, unembedded
from debug.models.hook_points import COMPONENTS

__all__ = [
    "COMPONENTS",
    "Cut",
    "ForwardPasses",
    "Intervention",
    "SelfCheckError",
    "Site",
    "default_batch_tokens",
    "forward_passes",
    "gradients",
    "patched_logits",
    "unembedded",
]
