"""What makes accuracy runs in batches faster on a CPU: private operators of torch, and caches that copy no keys.

Nothing else depends on it; transformers' own way is taken where a model, dtype or device does not suit, and everywhere
where the environment says ``DEBUG_PLAIN_CPU=1``: should a release of torch change what is private to it.
"""

import os


def switched_on() -> bool:
    return os.environ.get("DEBUG_PLAIN_CPU") != "1"
