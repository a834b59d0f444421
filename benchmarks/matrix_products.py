"""How fast this machine multiplies a model's own matrices: the limit that benchmarks of the model are held against."""

from __future__ import annotations

import time
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
    inputs = {weight.shape[1]: torch.randn(tokens, weight.shape[1]) for weight in layers[0].values()}
    speeds = []
    for number in range(-1, sets):  # the first is not counted
        weights = layers[number % len(layers)].values()
        start = time.perf_counter()
        for weight in weights:
            nn.functional.linear(inputs[weight.shape[1]], weight)
        seconds = time.perf_counter() - start
        speeds.append(2 * tokens * sum(weight.numel() for weight in weights) / seconds)
    return speeds[1:]
