"""Unpatched forward passes, with what patches need from them; their gradients; hidden states, unembedded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from debug.errors import DebugError
from debug.kinds import Traced
from debug.models import LoadedModel
from debug.models.backends import is_remote
from debug.models.hook_points import COMPONENTS


class SelfCheckError(DebugError, RuntimeError):
    """The engine's own checks failed: the numbers of this run would not mean what they say."""


@dataclass(frozen=True)
class ForwardPasses:
    """Unpatched forward passes of programs of one length, with what patches need from them.

    Memory: (2 x layers x key-value width + recorded components x layers x their width) numbers per token.
    """

    token_ids: Int[Tensor, "program token"]
    logits: Float[Tensor, "program vocabulary"]
    activations: dict[str, list[Float[Tensor, "source token width"]]]
    """component -> layer -> activations; for the residual stream one layer more. The first rows are the programs';
    those behind them (:meth:`with_sources`) are of no program here, and can only be patched from."""
    keys_values: list[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @property
    def length(self) -> int:
        return self.token_ids.shape[1]

    def with_sources(self, activations: dict[str, list[Float[Tensor, "source token width"]]]) -> ForwardPasses:
        """The same, with activations to patch from that are of none of these programs: a mean, zeros, stored ones."""
        joined = {
            name: [torch.cat([own, more]) for own, more in zip(layers, activations[name], strict=True)]
            for name, layers in self.activations.items()
        }
        return replace(self, activations=joined)


@torch.no_grad()
def forward_passes(
    model: LoadedModel, token_ids: Int[Tensor, "program token"], components: Iterable[str]
) -> ForwardPasses:
    """Run programs unpatched, in one forward pass, and keep what patching ``components`` needs, at every layer.

    Of a model that lies on several devices it is kept on the first, keys and values where their layers are; of one that
    is elsewhere nothing but the logits is, see :mod:`.remote`.
    """
    if is_remote(model.device):
        from debug.engine import remote

        return remote.forward_passes(model, token_ids)  # type: ignore[arg-type]  (which is a RemoteModel)
    needed = {"residual_stream", *components}
    if any(COMPONENTS[name].positions_alone for name in needed):
        needed.add("attention")  # what a layer goes on with, where a part of it is patched
    wanted = {name: model.hook_point(name) for name in COMPONENTS if name in needed}
    token_ids = token_ids.to(model.device)
    cache: Any = DynamicCache()  # transformers types its keys and values as optional
    with model.trace(token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1):
        kept: Traced = {name: [] for name in wanted}
        for layer in range(model.n_layers + 1):
            for name, point in wanted.items():
                if layer < len(point):
                    kept[name].append(point[layer])
        kept.save()
        logits = model.logits.save()
    kept = {
        name: [value.to(model.device).view(*token_ids.shape, -1) for value in values] for name, values in kept.items()
    }
    logits = logits[:, -1].float().to(model.device)
    return ForwardPasses(token_ids, logits, kept, [(keys, values) for keys, values, *_ in cache])


def gradients(
    model: LoadedModel, token_ids: Int[Tensor, "program token"], answers: Int[Tensor, "program"], component: str
) -> list[Float[Tensor, "program token width"]]:
    """Slopes of the logit of each program's answer at the last position, by each activation of a component, by layer.

    One forward and one backward. Memory: all intermediates of the forward pass, which the backward reads.

    Raises:
        SelfCheckError: slopes are not finite.
    """
    token_ids, answers, point = token_ids.to(model.device), answers.to(model.device), model.hook_point(component)
    with torch.enable_grad(), model.trace(token_ids, use_cache=False, logits_to_keep=1):
        kept: Traced = []
        model.residual[0].requires_grad_(True)  # weights of some models need no gradients
        for layer in range(len(point)):
            kept.append(point[layer])
            point[layer] = kept[-1]  # what was read may be a view: the model goes on from it
        kept.save()
        logits = model.logits.save()
    effect = logits.to(model.device)[torch.arange(len(answers)), -1, answers].float().sum()
    slopes = [slope.to(model.device).view(*token_ids.shape, -1) for slope in torch.autograd.grad(effect, list(kept))]
    if not all(slope.isfinite().all() for slope in slopes):
        raise SelfCheckError(f"gradients of model {model.id!r} ({model.dtype}) are not finite; float32 may do")
    return slopes


@torch.no_grad()
def unembedded(model: LoadedModel, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row vocabulary"]:
    """Logits of hidden states that the final norm reads: all layers are skipped."""
    token_ids = torch.zeros(1, len(hidden), dtype=torch.long, device=model.device)
    with model.trace(token_ids, position_ids=token_ids):
        for layer in range(model.n_layers):
            model.layer(layer).skip(hidden[None])
        logits = model.logits.save()
    return logits[0].float().to(model.device)
