"""What each of the processes that torchrun starts does in test_tensor_parallel: the same plans on a model that is split
over them and on one that is whole, compared; the first says how far they are apart."""

import json
import sys

import numpy as np
import torch

from debug import models
from debug.causal_tracing import run_causal_tracing_experiment as trace
from debug.errors import InputError

PROGRAMS = ["i = 8\nx = i\nh = x\n#h: ", "a = 1\nb = a\nc = b\n#c: ", "a = 1\nb = 5\nc = a\n#c: "]
PLANS = {
    "residual stream": {},
    "attention": {"intervention_type": "attention"},
    "mlp, a window": {"intervention_type": "mlp", "layer_window": 2},
    "heads": {"intervention_type": "attention_heads", "save_attention": 1},
    "heads, in sets": {"intervention_type": "attention_heads", "heads": ["0+3", 2], "positions": "targets"},
    "knockout": {"intervention_type": "attention_knockout"},
    "knockout of heads": {"intervention_type": "attention_knockout", "heads": [1, 3]},
    "mean": {"source": "mean", "positions": "targets"},
}
folder = sys.argv[1]
split, whole = (models.load(folder, device=device, dtype="float32") for device in ("tp", "cpu"))
assert split.unpatchable is None, split.unpatchable
assert split.ranks == 2
own = split.hf.model.layers[0].self_attn.o_proj.weight
own = own.to_local() if hasattr(own, "to_local") else own
found: dict[str, object] = {"weights here": [own.numel(), whole.hf.model.layers[0].self_attn.o_proj.weight.numel()]}
for name, plan in PLANS.items():
    one, other = (trace(model, PROGRAMS, require_correct=False, control=False, **plan) for model in (split, whole))
    maps = list(zip(one.maps, other.maps, strict=True))
    distance = max(float(np.abs(a.z_patched - b.z_patched).max()) for a, b in maps)
    for a, b in zip(one.results, other.results, strict=True):
        if a.attention and b.attention:
            distance = max(distance, float(np.abs(a.attention.weights - b.attention.weights).max()))
    checks = [result.checks for result in one.results if result.checks]
    found[name] = [len(maps), distance, min(check.full_patch_without for check in checks)]
answers = [dict(model.generate(PROGRAMS, max_new_tokens=3)) for model in (split, whole)]
found["answers"] = [answers[0] == answers[1]]
try:
    trace(split, PROGRAMS, require_correct=False, method="attribution")
except InputError as error:
    found["attribution"] = str(error)
if torch.distributed.get_rank() == 0:
    print(json.dumps(found))
