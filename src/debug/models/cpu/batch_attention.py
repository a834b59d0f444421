"""Attention of a batch on the CPU that copies no keys and values: not those of a prefix, nor for grouped queries.

transformers copies the keys and values of a prefix that all prompts share (solved examples: the greater part of a
few-shot prompt) for every row, repeats all of them for grouped queries, and copies all of them again to append a token.
Here the queries of all rows read the prefix together, and what they find is merged with what each row reads from its
own tokens by the two sums of the softmax (Juravsky et al., "Hydragen", 2024, arXiv 2402.05099); heads that share keys
are queries side by side; a row's keys are written into room made for them once. Equal to transformers but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.masking_utils import sdpa_mask

from debug.kinds import Module
from debug.models.cpu import switched_on

NAME = "debug_batch_attention"


class _Rows(DynamicLayer):
    """A layer's keys and values of the rows' own tokens; those of the prefix go along with them to the attention."""

    def __init__(self, prefix: Any, room: int) -> None:  # a DynamicLayer with keys, or None
        super().__init__()
        self.prefix = None if prefix is None else (prefix.keys, prefix.values)
        self.room, self.used = room, 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        before, self.used = self.used, self.used + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys = key_states.new_empty((*key_states.shape[:2], self.room, key_states.shape[-1]))
            self.values = value_states.new_empty((*value_states.shape[:2], self.room, value_states.shape[-1]))
        assert self.keys is not None
        assert self.values is not None
        self.keys[:, :, before : self.used] = key_states
        self.values[:, :, before : self.used] = value_states
        keys, values = self.keys[:, :, : self.used], self.values[:, :, : self.used]
        keys.prefix = self.prefix  # type: ignore[attr-defined]  # the one way from a cache to the attention function
        return keys, values

    def get_seq_length(self) -> int:
        return self.used + (0 if self.prefix is None else self.prefix[0].shape[-2])


def suits(model: Module) -> bool:
    """Whether a model's attention can be done so: PyTorch's own, on a CPU, plain keys and values in every layer."""
    return (
        switched_on()
        and model.config._attn_implementation == "sdpa"
        and model.device.type == "cpu"
        and {type(layer) for layer in DynamicCache(config=model.config).layers} == {DynamicLayer}
    )


@contextmanager
def batch_cache(model: Module, prefix: DynamicCache | None, room: int) -> Iterator[DynamicCache]:
    """A cache of any number of rows, each with room for so many tokens behind those in ``prefix`` (a cache of one row).

    While it lasts, the model's attention takes this cache and no other.
    """
    cache, before = DynamicCache(config=model.config), model.config._attn_implementation
    cache.layers[:] = [_Rows(prefix and prefix.layers[n], room) for n in range(len(cache.layers))]
    model.set_attn_implementation(NAME)
    try:
        yield cache
    finally:
        model.set_attn_implementation(before)


def _attend(
    module: torch.nn.Module,
    query: Float[Tensor, "row head token width"],
    key: Float[Tensor, "row group own width"],
    value: Float[Tensor, "row group own width"],
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Float[Tensor, "row token head width"], None]:
    rows, heads, tokens, width = query.shape
    groups, own = key.shape[1:3]
    grouped = query.reshape(rows, groups, -1, width)  # heads that share a key, one after the other
    if attention_mask is None:
        allowed = torch.ones(tokens, own, dtype=torch.bool).tril(own - tokens).expand(rows, 1, -1, -1)
    else:
        allowed = attention_mask[..., -own:]
    # Far below any score, and finite: padding may attend to nothing of its own, and none of it may become nan.
    mask = torch.zeros_like(allowed, dtype=query.dtype).masked_fill_(~allowed, torch.finfo(query.dtype).min / 4)
    found, own_sum = _flash(grouped, key, value, mask.repeat(1, 1, heads // groups, 1), scaling)
    if (prefix := key.prefix) is not None:  # type: ignore[attr-defined]  (what update set)
        together = grouped.transpose(0, 1).reshape(1, groups, -1, width)
        of_prefix, prefix_sum = _flash(together, prefix[0], prefix[1], None, scaling)
        of_prefix = of_prefix.reshape(groups, rows, -1, width).transpose(0, 1)
        prefix_sum = prefix_sum.reshape(groups, rows, -1).transpose(0, 1)
        found = of_prefix.lerp(found, (own_sum - prefix_sum).sigmoid().to(query.dtype)[..., None])
    return found.reshape(rows, heads, tokens, width).transpose(1, 2), None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of the sum that its softmax divided by."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, scale=scaling)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
