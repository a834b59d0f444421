"""The limit that benchmarks are held against: what must be multiplied, and how fast this machine multiplies it.

Both are of a model's own matrices, in its dtype, on its device. Attention's own products are left out.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from operator import attrgetter

import torch
from torch import nn

from debug.models import LoadedModel


def linear_layers(model: LoadedModel) -> list[dict[str, torch.Tensor]]:
    """Weight matrices of each layer, by name."""
    layers = attrgetter(model.architecture.layers)(model.hf)
    return [{n: m.weight for n, m in layer.named_modules() if isinstance(m, nn.Linear)} for layer in layers]


@torch.no_grad()
def matrix_products(model: LoadedModel, tokens: int, sets: int) -> list[float]:
    """FLOP/s of sets of products: ``tokens`` tokens times all matrices of one layer, the next layer each time."""
    layers = linear_layers(model)
    inputs = {w.shape[1]: torch.randn(tokens, w.shape[1]).to(w) for w in layers[0].values()}
    speeds = []
    for number in range(-1, sets):  # the first is not counted
        weights = layers[number % len(layers)].values()
        wait(model)
        start = time.perf_counter()
        for weight in weights:
            nn.functional.linear(inputs[weight.shape[1]], weight)
        wait(model)
        seconds = time.perf_counter() - start
        speeds.append(2 * tokens * sum(weight.numel() for weight in weights) / seconds)
    return speeds[1:]


def wait(model: LoadedModel) -> None:
    """Until a GPU has done what it was given."""
    if model.device.startswith("cuda"):
        torch.cuda.synchronize(model.device)


def unavoidable_flop(model: LoadedModel, component: str, cells: Counter[tuple[int, int]]) -> float:
    """FLOP of patches, each at a (layer, tokens at and after the position): 2 for each weight that a token meets.

    Layers above the patch (of the residual stream, the patched one too) at all these tokens, but of the last layer only
    keys and values, and the rest for the token that predicts; the unembedding of that token; and what the patched token
    meets behind the patch in its own layer. Attention's own products are left out: the limit is a little low.
    """
    sizes = {name: weight.numel() for name, weight in linear_layers(model)[0].items()}
    whole, keys_values, output, mlp = (
        sum(size for name, size in sizes.items() if re.search(pattern, name))
        for pattern in ("", "[kv]_proj", "o_proj", "mlp")
    )
    behind = {"attention_heads": output / model.n_heads + mlp, "attention": mlp}.get(component, 0)
    always = attrgetter(model.architecture.unembedding)(model.hf).weight.numel() + behind
    weights = 0.0
    for (layer, tokens), count in cells.items():
        above = model.n_layers - layer - (component != "residual_stream")
        weights += count * always
        if above:
            weights += count * ((above - 1) * whole * tokens + keys_values * tokens + whole - keys_values)
    return 2 * weights
