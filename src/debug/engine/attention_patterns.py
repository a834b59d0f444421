"""What attention heads look at: their patterns in a prompt, and the share that goes to each role of a program."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.models import LoadedModel
from debug.token_analyzer import TokenizedProgram


@torch.inference_mode()
def attention_pattern(
    model: LoadedModel, token_ids: Int[Tensor, " token"]
) -> Float[np.ndarray, "layer head query key"]:
    """What every head attends to in one prompt. The model computes its attention eagerly for this one pass."""
    before = model.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        output = model.hf(input_ids=token_ids[None].to(model.device), output_attentions=True, use_cache=False)
    finally:
        model.hf.set_attn_implementation(before)
    return model.all_heads(torch.cat(output.attentions).float(), 1).cpu().numpy()


def attention_shares(
    pattern: Float[np.ndarray, "layer head query key"], program: TokenizedProgram, target: str
) -> dict[str, Float[np.ndarray, "layer head"]]:
    """The share of its attention that a target's tokens, on the mean, give to each role, and to ``other lines``."""
    of = pattern[:, :, program.positions(target)].mean(2)
    role_at = {position: role for role, at in program.roles.items() for position in at}
    shares: dict[str, Float[np.ndarray, "layer head"]] = {}
    for position in range(of.shape[-1]):
        role = role_at.get(position, "other lines")
        shares[role] = shares.get(role, 0) + of[..., position]
    return shares
