"""The slow, obvious way, against which the engine is tested: one nnsight trace per cell, the whole prompt, no cache."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.engine import COMPONENTS, Cut, Site
from debug.models import LoadedModel


def run(model: LoadedModel, token_ids: Int[Tensor, "token"], component: str) -> tuple[Tensor, list[Tensor]]:
    """Logits of the last position, and the component's activations at every layer."""
    with torch.no_grad(), model.nnsight.trace(token_ids[None]):
        kept = []
        for layer in range(model.n_layers):
            kept.append(COMPONENTS[component].read(model, layer))
        if component == "residual_stream":
            kept.append(model.final_norm.input)
        kept.save()
        logits = model.nnsight.output.logits[0, -1].save()
    return logits, kept


def patch(
    model: LoadedModel, token_ids: Int[Tensor, "token"], sites: list[Site], source: dict[str, list[Tensor]]
) -> Float[Tensor, "vocabulary"]:
    """Logits of the last position with the sites' activations replaced by the source's."""
    with torch.no_grad(), model.nnsight.trace(token_ids[None]):
        for layer in range(model.n_layers + 1):
            for name, component in COMPONENTS.items():
                for site in sites:
                    if (site.component, site.layer) != (name, layer):
                        continue
                    top = layer == model.n_layers
                    original = model.final_norm.input if top else component.read(model, layer)
                    value = original.clone().view(1, len(token_ids), -1)
                    width = value.shape[-1] // model.n_heads
                    for position in site.positions:
                        if site.heads is None:
                            value[0, position] = source[name][layer].view(value.shape)[0, position]
                        for head in site.heads or ():
                            channels = slice(head * width, (head + 1) * width)
                            value[0, position, channels] = source[name][layer].view(value.shape)[0, position, channels]
                    if top:
                        model.final_norm.input = value
                    else:
                        component.write(model, layer, value.view_as(original))
        logits = model.nnsight.output.logits[0, -1].save()
    return logits  # noqa: RET504 (what a trace saves exists after it)


def knock_out(model: LoadedModel, token_ids: Int[Tensor, "token"], cuts: list[Cut]) -> Float[Tensor, "vocabulary"]:
    """Logits of the last position with the attention edges cut, one at a time, in a mask of the whole prompt."""
    length = len(token_ids)
    position = torch.arange(length)
    distance = (position[:, None] - position[None])[None]
    lowest = torch.finfo(torch.float32).min
    mask = model.attention_mask(distance >= 0, distance)
    with torch.no_grad(), model.trace(token_ids[None], attention_mask=mask, position_ids=position[None]):
        for layer in range(model.n_layers):
            arguments, keywords = model.attention(layer).inputs
            mask = keywords["attention_mask"].repeat(1, model.n_heads, 1, 1)
            for cut in cuts:
                for query, key in cut.edges if cut.layer == layer else ():
                    for head in range(model.n_heads) if cut.heads is None else cut.heads:
                        mask[0, head, query, key] = lowest
            model.attention(layer).inputs = (arguments, {**keywords, "attention_mask": mask})
        logits = model.nnsight.output.logits[0, -1].save()
    return logits  # noqa: RET504
