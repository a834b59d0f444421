"""Patches and knockouts in plain transformers models by torch's own hooks: no engine, no nnsight, no masks of ours.

Where a module is stands here by hand for two families of other structure, so that a wrong path in the library is seen.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

FAMILIES = ("llama", "gpt2")
INPUTS = ("residual_stream", "attention_heads")


def module(hf: Any, family: str, component: str, layer: int) -> nn.Module:
    """The module that reads a component (INPUTS), or gives it on; above all layers, the final norm."""
    layers, norm = (hf.model.layers, hf.model.norm) if family == "llama" else (hf.transformer.h, hf.transformer.ln_f)
    if component == "residual_stream":
        return [*layers, norm][layer]
    attention = layers[layer].self_attn if family == "llama" else layers[layer].attn
    projection = attention.o_proj if family == "llama" else attention.c_proj
    return {"attention_heads": projection, "attention": attention, "mlp": layers[layer].mlp}[component]


@contextmanager
def hook(at: nn.Module, component: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """``change`` is given what the module reads, or gives on, and gives what it shall be."""

    def before(_: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        return ((change(given[0]), *given[1:]), named) if given else (given, named | {"input": change(named["input"])})

    def after(_: nn.Module, __: tuple, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    if component in INPUTS:
        handle = at.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = at.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits(hf: Any, token_ids: Int[Tensor, "token"]) -> Float[Tensor, "vocabulary"]:
    return hf(input_ids=token_ids[None], use_cache=False).logits[0, -1]


def activations(
    hf: Any, family: str, token_ids: Int[Tensor, "token"], component: str, layer: int
) -> Float[Tensor, "token width"]:
    kept = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value[0].clone())
        return value

    with hook(module(hf, family, component, layer), component, keep):
        logits(hf, token_ids)
    return kept[0]


def patched(
    hf: Any,
    family: str,
    token_ids: Int[Tensor, "token"],
    source: Float[Tensor, "token width"],
    component: str,
    layer: int,
    position: int,
    channels: slice,
) -> Float[Tensor, "vocabulary"]:
    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[0, position, channels] = source[position, channels]
        return value

    with hook(module(hf, family, component, layer), component, change):
        return logits(hf, token_ids)


def without_edges(
    hf: Any,
    family: str,
    token_ids: Int[Tensor, "token"],
    layers: Sequence[int],
    edges: Sequence[tuple[int, int]],
    heads: Sequence[int],
) -> Float[Tensor, "vocabulary"]:
    """Attention that is causal, and has not these edges in these heads: -inf is added to their scores."""
    length = len(token_ids)
    mask = torch.full((length, length), -torch.inf).triu(1).repeat(1, hf.config.num_attention_heads, 1, 1)
    for query, key in edges:
        mask[0, list(heads), query, key] = -torch.inf

    def cut(_: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        return given, named | {"attention_mask": mask}

    hooks = [
        module(hf, family, "attention", layer).register_forward_pre_hook(cut, with_kwargs=True) for layer in layers
    ]
    try:
        return logits(hf, token_ids)
    finally:
        for each in hooks:
            each.remove()
