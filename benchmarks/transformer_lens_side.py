"""The TransformerLens side of patching.py, run by it in a virtual environment that has transformer-lens and not debug.

A job comes as JSON on standard input, what was measured goes as the last line of standard output. Reads no network: the
model is a local folder.
"""

import json
import sys
import time
from importlib.metadata import version

import pandas as pd
import torch
from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import]  (installed by who runs this)
from transformer_lens.patching import (  # type: ignore[import]  (installed by who runs this)
    generic_activation_patch,
    layer_pos_patch_setter,
)


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    # Not in compatibility mode, whose forward pass takes longer; the weights are as they are in both.
    model = TransformerBridge.boot_transformers(job["folder"], device="cpu", dtype=torch.float32)
    # In its words the corrupted run is the one that is patched, and the clean run is where activations come from.
    patched, source = (torch.tensor([job[name]]) for name in ("original", "counterfactual"))
    _, cache = model.run_with_cache(source)
    finished: list[float] = []

    def answer_logit(which: int, done: bool):
        def metric(logits: torch.Tensor) -> torch.Tensor:
            if done:
                finished.append(time.perf_counter())
            return logits[0, -1, job["answer_tokens"][which]]

        return metric

    def sweep(cells: list[list[int]]) -> list[list[float]]:
        result = generic_activation_patch(
            model,
            patched,
            cache,
            {"counterfactual": answer_logit(0, False), "original": answer_logit(1, True)},
            layer_pos_patch_setter,
            "resid_pre",
            index_df=pd.DataFrame(cells, columns=["layer", "pos"]),
        )
        return result.values.T.tolist()

    sweep(job["cells"][:2])  # the first forward passes are slower
    finished.clear()
    start = time.perf_counter()
    logits = sweep(job["cells"])
    ends = [start, *finished]
    seconds = [after - before for before, after in zip(ends, finished, strict=False)]
    versions = {name: version(name) for name in ("transformer-lens", "torch", "transformers")}
    print(json.dumps({"seconds": seconds, "logits": logits, "versions": versions}))


if __name__ == "__main__":
    main()
