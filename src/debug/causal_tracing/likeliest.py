"""The likeliest tokens of forward passes, with the logarithms of their probabilities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

RANKS = 5
"""So many are kept."""


class Likeliest(NamedTuple):
    """The likeliest first; which of equals comes first is left open."""

    tokens: Int[Tensor, "*pass rank"]
    """As int32."""
    logs: Float[Tensor, "*pass rank"]
    """Natural logarithms of probabilities over the whole vocabulary, as float16: off by 1 in 2,048 at most."""


def likeliest(logits: Float[Tensor, "pass vocabulary"]) -> Likeliest:
    """Memory: a copy of the logits. On the CPU whatever these are on."""
    highest, tokens = logits.topk(min(RANKS, logits.shape[-1]))
    logs = (highest - logits.logsumexp(-1, keepdim=True)).clamp(max=0)
    return Likeliest(tokens.to(torch.int32).cpu(), logs.half().cpu())
