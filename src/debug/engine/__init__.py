"""The engine: interventions as data -> logits of the patched forward passes, with the checks that it makes of itself.

Every patch goes through nnsight. Knows no program, no pair, no map and no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from debug import lazy

if TYPE_CHECKING:
    from debug.engine.continuing import answer_log_probabilities, continued, next_logits
    from debug.engine.forward import default_batch_tokens, patched_logits
    from debug.engine.interventions import Cut, Intervention, Site
    from debug.engine.unpatched import ForwardPasses, SelfCheckError, forward_passes, gradients, unembedded
    from debug.models.hook_points import COMPONENTS

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
