"""The plain way: torch hooks on the plain model, whole prompts; and what rounding may do in this model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from debug.engine.interventions import Cut, Intervention, Site
from debug.engine.unpatched import ForwardPasses
from debug.kinds import Argument
from debug.models import DTYPES, LoadedModel
from debug.models.hook_points import COMPONENTS

SAFETY = 16  # the packed forward pass sums in another order than the two that rounding is measured on
SAFETY_OF_NOISE = 5  # in eleven families nothing was farther from the plain way than 0.9 times what noise does
NOISE_DRAWS = 2  # of each of two programs


@torch.no_grad()
def plain_logits(
    model: LoadedModel, passes: ForwardPasses, interventions: Sequence[Intervention]
) -> tuple[Float[Tensor, "intervention vocabulary"], float]:
    """The patched logits without nnsight, cache, packing or restart; and the tolerance of :func:`rounding`.

    Activations to patch from are recorded by hooks too, where their source is a forward pass of these; a mean, zeros or
    stored activations are taken as they are. Costs a forward pass of a whole prompt for each intervention, base and
    source.
    """
    whole = sorted(
        {
            row
            for intervention in interventions
            for row in (intervention.base, *(site.source for site in intervention.patched))
            if row < len(passes)
        }
    )
    needed = {(site.component, site.layer) for intervention in interventions for site in intervention.patched}
    tolerance, heard = rounding(model, passes, whole, needed)
    rows = {row: number for number, row in enumerate(whole)}
    token_ids = passes.token_ids[[intervention.base for intervention in interventions]]
    patches: dict[tuple[str, int], list[_Patch]] = defaultdict(list)
    cuts: dict[int, list[tuple[int, Cut]]] = defaultdict(list)
    for number, intervention in enumerate(interventions):
        for site in intervention.sites:
            if isinstance(site, Cut):
                cuts[site.layer].append((number, site))
            else:
                at = site.component, site.layer
                stored = passes.activations[site.component][site.layer]
                given = heard[at][rows[site.source]] if site.source in rows else stored[site.source]
                patches[at].append(_Patch(number, site, given))
    forward: dict[str, Argument] = {}
    with model.evaluating(), ExitStack() as hooks:
        for (component, layer), of_place in patches.items():
            edit = partial(_patched, of_place, (len(interventions), passes.length), model.n_heads)
            hooks.enter_context(_hook(model, component, layer, edit))
        for layer, of_layer in cuts.items():
            without = partial(_without_edges, model, of_layer, len(interventions))
            handle = model.attention(layer)._module.register_forward_pre_hook(without, with_kwargs=True)
            hooks.callback(handle.remove)
        if cuts:
            position = torch.arange(passes.length, device=token_ids.device)
            distance = (position[:, None] - position[None])[None].expand(len(interventions), -1, -1)
            mask = model.attention_mask(distance >= 0, distance)
            forward = {"attention_mask": mask, "position_ids": position.expand(len(interventions), -1)}
        logits = model.hf(input_ids=token_ids, use_cache=False, logits_to_keep=1, **forward).logits
    return logits[:, -1].float(), tolerance


def _of_all_heads(model: LoadedModel, edit: Callable[[Tensor], Tensor | None], value: Tensor) -> Tensor | None:
    new = edit(model.all_heads(value, -1))
    return None if new is None else model.own_heads(new, -1)


class _Patch(NamedTuple):
    """What one intervention writes at a site."""

    row: int
    """The intervention's row of the batch."""
    site: Site
    given: Float[Tensor, "token width"]
    """The source's activations at all positions."""


def _patched(patches: Sequence[_Patch], shape: tuple[int, int], n_heads: int, value: Tensor) -> Tensor:
    """A component's activations, of a batch of this shape (row, token), with the patches of all rows; not in place."""
    value = value.clone()
    tokens = value.view(*shape, -1)
    width = tokens.shape[-1] // n_heads
    for row, site, given in patches:
        for position in site.positions:
            if site.heads is None:
                tokens[row, position] = given[position]
            for head in site.heads or ():
                channels = slice(head * width, (head + 1) * width)
                tokens[row, position, channels] = given[position, channels]
    return value


def _without_edges(
    model: LoadedModel, cuts: Sequence[tuple[int, Cut]], n_rows: int, _: object, arguments: tuple, keywords: dict
) -> tuple[tuple, dict]:
    """An attention block's arguments, their mask less the edges that each row (an intervention) of the batch cuts."""
    n_heads = model.n_heads
    mask = keywords["attention_mask"].expand(n_rows, n_heads, -1, -1).clone()
    for row, cut in cuts:
        for query, key in cut.edges:
            for head in range(n_heads) if cut.heads is None else cut.heads:
                mask[row, head, query, key] = torch.finfo(mask.dtype).min
    return arguments, keywords | {"attention_mask": model.own_heads(mask, 1)}


@torch.no_grad()
def rounding(
    model: LoadedModel, passes: ForwardPasses, rows: Sequence[int], needed: Iterable[tuple[str, int]] = ()
) -> tuple[float, dict[tuple[str, int], Float[Tensor, "row token width"]]]:
    """The largest change of a logit that rounding may cause in this model; and these rows' activations, by plain hooks.

    Measured: the logits of the same programs from forward passes that are equal but for the order of their sums: the
    recorded one (all programs in a batch, into a cache), a plain one, and one in two pieces; times SAFETY. Where the
    kernels of a machine sum alike in all three, that is next to nothing: no less than SAFETY_OF_NOISE times what noise
    of one last place does (:func:`_noise`), nor than one last place of the largest logit for each of the 2 x layers
    additions to the residual stream, as a random walk.
    """
    heard: dict[tuple[str, int], Tensor] = {}

    def listen(at: tuple[str, int]) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            heard[at] = value.detach().clone().view(len(rows), passes.length, -1)

        return keep

    token_ids = passes.token_ids[list(rows)]
    with model.evaluating(), ExitStack() as hooks:
        for at in needed:
            hooks.enter_context(_hook(model, *at, listen(at)))
        logits = model.hf(input_ids=token_ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    # Again in two pieces, the second behind the first one's keys and values, with an explicit mask: other kernels.
    token_ids, cache, half = token_ids[:1], DynamicCache(), passes.length // 2
    position = torch.arange(passes.length, device=token_ids.device)
    distance = (position[half:, None] - position[None])[None]
    with model.evaluating():
        model.hf(input_ids=token_ids[:, :half], past_key_values=cache, use_cache=True, logits_to_keep=1)
        pieces = model.hf(
            input_ids=token_ids[:, half:],
            past_key_values=cache,
            position_ids=position[None, half:],
            attention_mask=model.attention_mask(distance >= 0, distance),
            logits_to_keep=1,
        ).logits[:, -1]
    others = torch.cat([logits, pieces.float()]) - passes.logits[[*rows, rows[0]]]
    least = torch.finfo(DTYPES[model.dtype]).eps * logits.abs().max().item() * (2 * model.n_layers) ** 0.5
    difference = others.abs().max().item()
    return max(SAFETY * difference, SAFETY_OF_NOISE * _noise(model, passes, [rows[0], rows[-1]]), least), heard


def _noise(model: LoadedModel, passes: ForwardPasses, rows: Sequence[int]) -> float:
    """The largest change of a logit where noise of one last place is added to the residual stream at every layer.

    One last place of the token's root mean square, which is what a sum of so large numbers is rounded to. How far a
    model carries that is its own affair, and alike on all machines.
    """
    draws = torch.Generator().manual_seed(0)
    eps = torch.finfo(DTYPES[model.dtype]).eps
    rows = [*rows] * NOISE_DRAWS

    def noisy(value: Tensor) -> Tensor:
        drawn = torch.randn(value.shape, generator=draws).to(value.device)
        return (value + eps * value.float().pow(2).mean(-1, keepdim=True).sqrt() * drawn).to(value.dtype)

    with model.evaluating(), ExitStack() as hooks:
        for layer in range(model.n_layers + 1):
            hooks.enter_context(_hook(model, "residual_stream", layer, noisy))
        logits = model.hf(input_ids=passes.token_ids[rows], use_cache=False, logits_to_keep=1).logits[:, -1].float()
    return (logits - passes.logits[rows]).abs().max().item()


@contextmanager
def _hook(model: LoadedModel, component: str, layer: int, edit: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """A plain torch hook where a component is; what ``edit`` returns, where it returns something, is put there."""
    if COMPONENTS[component].per_head and model.ranks > 1:
        edit = partial(_of_all_heads, model, edit)

    def into(_: object, arguments: tuple, keywords: dict) -> tuple[tuple, dict] | None:
        if not arguments:
            name, value = next(iter(keywords.items()))
            new = edit(value)
            return None if new is None else ((), keywords | {name: new})
        new = edit(arguments[0])
        return None if new is None else ((new, *arguments[1:]), keywords)

    def out_of(_: object, __: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
        new = edit(output[0] if isinstance(output, tuple) else output)
        return (new, *output[1:]) if new is not None and isinstance(output, tuple) else new

    module = model.hook_point(component).module(layer)
    if COMPONENTS[component].side == "input":
        handle = module.register_forward_pre_hook(into, with_kwargs=True)
    else:
        handle = module.register_forward_hook(out_of)
    try:
        yield
    finally:
        handle.remove()
