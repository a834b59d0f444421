"""What is known of a patch without the engine: the plain model, its own hooks, and arithmetic by hand.

The engine's other checks cannot see *where* it writes: a run's own activations change nothing anywhere, and what is
patched everywhere is patched in the right places too. Here single places are patched in the plain transformers model,
one row each, without nnsight, packing, masks or indices of the engine:

- the root's tokens alone into layer 0 give the counterfactual's logits;
- of a head, what the output projection makes of its slice's change is added to what its attention block gives on;
- an edge is cut by hand: without key k, of weight a and value v, a head gives on (o - a v) / (1 - a) instead of o.

And what rounding does to this model's logits, which is all by which the engine may differ. Knows no program and no map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from debug.engine import COMPONENTS, Cell, Check, Cut, Runs, SelfCheckError, Site, default_batch_tokens
from debug.models import LoadedModel

DRAWS = 4  # of roundings
SAFETY = 4  # the engine was off by 0.05 to 1.3 times the largest of so many draws, on 17 models in three dtypes
AMPLIFIED = 256  # roundings of a layer of which logits make more than this is no rounding any more
LARGEST_WEIGHT = 0.9  # of an edge that is cut by hand: the rest is divided by


class Edit(NamedTuple):
    """Of one row of a forward pass: what a module is given, or gives on, from the first of its tokens on."""

    module: nn.Module
    at_input: bool
    change: Callable[[Float[Tensor, "token width"]], Float[Tensor, "token width"]]


@torch.no_grad()
def known_answers(
    model: LoadedModel, runs: Runs, component: str, pair: tuple[int, int], changed: Sequence[int]
) -> tuple[list[Check], float]:
    """Checks of single places in a first, a middle and the last layer, and the tolerance of this model's checks.

    Places are where the two programs' activations, or a cut, differ most. Costs forward passes of some ten rows, from
    the first difference on.

    Args:
        component: one of COMPONENTS; anything else is a knockout of attention edges.
        pair: rows of a program's run and of its counterfactual's.
        changed: positions of the tokens that differ.

    Raises:
        SelfCheckError: logits are not finite.
    """
    plain = _Plain(model, runs, pair[0], changed[0])
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    if component in COMPONENTS:
        keep = [_kept(*_module(model, component, layer), kept[layer]) for layer in layers]
        unpatched, counterfactual = plain.logits(pair, [keep, keep])
        places = [_patch(plain, component, pair, *of) for of in kept.items()]
    else:
        unpatched = plain.logits([pair[0]], [[]])[0]
        places = _cuts(plain, pair[0], layers)
    edits = [[edit] for _, edit in places]
    logits = plain.logits([pair[0]] * (len(edits) + DRAWS), [*edits, *map(plain.rounded, range(DRAWS))])
    if not logits.isfinite().all():
        raise SelfCheckError(
            f"logits of model {model.id!r} ({model.dtype}) are not finite where its activations are moved by "
            "their last bit, or a single place is patched: they may be at the end of what the dtype holds"
        )
    checks = [Check("localized_max_abs", cell, of) for (cell, _), of in zip(places, logits, strict=False)]
    if component == "residual_stream":  # the whole counterfactual, run by itself
        everything = {0: tuple(changed), model.n_layers: (runs.length - 1,)}
        cells = [Cell(pair[0], (Site(component, *at),), pair[1]) for at in everything.items()]
        checks += [Check("localized_max_abs", cell, counterfactual) for cell in cells]
    eps = torch.finfo(runs.activations["residual_stream"][0].dtype).eps
    return checks, _tolerance(eps, model.n_layers, unpatched, logits[len(edits) :])


def _tolerance(
    eps: float, n_layers: int, unpatched: Float[Tensor, "vocabulary"], rounded: Float[Tensor, "draw vocabulary"]
) -> float:
    """What rounding may do to a logit: SAFETY times what it did when the last bit of the residual stream was drawn at
    random, at every layer (Monte Carlo arithmetic, Parker 1997), but no less than one rounding a layer does.

    And no more than AMPLIFIED times that, so that a model that answers otherwise each time it is asked does not define
    its own tolerance.
    """
    one = eps * unpatched.abs().max().item() * n_layers**0.5
    return float(np.clip(SAFETY * (rounded - unpatched).abs().max().item(), one, AMPLIFIED * one))


class _Plain:
    """Forward passes of the plain model over some runs' tokens from ``start`` on, behind a prefix that they share."""

    def __init__(self, model: LoadedModel, runs: Runs, prefix: int, start: int) -> None:
        self.model, self.runs, self.prefix, self.start = model, runs, prefix, start

    def logits(self, rows: Sequence[int], edits: Sequence[Sequence[Edit]]) -> Float[Tensor, "row vocabulary"]:
        """Of runs, each with its edits: the logits at the last position."""
        at_once = max(1, default_batch_tokens(self.model) // (self.runs.length - self.start))
        parts = range(0, len(rows), at_once)
        return torch.cat([self._part(rows[i : i + at_once], edits[i : i + at_once]) for i in parts])

    def _part(self, rows: Sequence[int], edits: Sequence[Sequence[Edit]]) -> Float[Tensor, "row vocabulary"]:
        cache: Any = None
        if self.start:
            before = [
                (keys[[self.prefix] * len(rows), :, : self.start], values[[self.prefix] * len(rows), :, : self.start])
                for keys, values in self.runs.keys_values
            ]
            cache = DynamicCache(before)
        with hooked([(row, edit) for row, of_row in enumerate(edits) for edit in of_row], len(rows)):
            token_ids = self.runs.token_ids[list(rows), self.start :]
            output = self.model.hf(
                input_ids=token_ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1
            )
        return output.logits[:, -1].float()

    def rounded(self, draw: int) -> list[Edit]:
        """Everything in the residual stream up or down by its last bit, going into each layer and the final norm."""
        random = torch.Generator().manual_seed(draw)

        def jog(value: Tensor) -> Tensor:
            sign = torch.randint(0, 2, value.shape, generator=random).mul_(2).sub_(1).to(value)
            return value * (1 + torch.finfo(value.dtype).eps * sign)

        modules = [*map(self.model.layer, range(self.model.n_layers)), self.model.final_norm]
        return [Edit(module._module, True, jog) for module in modules]


@contextmanager
def hooked(edits: Sequence[tuple[int, Edit]], rows: int) -> Iterator[None]:
    """Plain torch hooks that make edits to rows of a forward pass."""

    def changed(row: int, edit: Edit, value: Tensor) -> Tensor:
        by_row = value.reshape(rows, -1, value.shape[-1]).clone()  # OPT's MLP sees the batch flattened
        by_row[row] = edit.change(by_row[row])
        return by_row.view_as(value)

    def at_input(row: int, edit: Edit) -> Any:
        def hook(_: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
            if arguments:
                return (changed(row, edit, arguments[0]), *arguments[1:]), keywords
            return arguments, keywords | {"hidden_states": changed(row, edit, keywords["hidden_states"])}

        return edit.module.register_forward_pre_hook(hook, with_kwargs=True)

    def at_output(row: int, edit: Edit) -> Any:
        def hook(_: nn.Module, __: tuple, output: Any) -> Any:
            if isinstance(output, tuple):
                return (changed(row, edit, output[0]), *output[1:])
            return changed(row, edit, output)

        return edit.module.register_forward_hook(hook)

    hooks = [(at_input if edit.at_input else at_output)(row, edit) for row, edit in edits]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kept(module: nn.Module, at_input: bool, store: list[Tensor]) -> Edit:
    def keep(value: Tensor) -> Tensor:
        store.append(value)
        return value

    return Edit(module, at_input, keep)


def _module(model: LoadedModel, component: str, layer: int) -> tuple[nn.Module, bool]:
    """Where the plain model has a component, and whether it is the module's input."""
    if component == "residual_stream":
        return model.layer(layer)._module, True
    if component == "attention_heads":
        return model.output_projection(layer)._module, True
    return (model.attention(layer) if component == "attention" else model.mlp(layer))._module, False


def _patch(
    plain: _Plain, component: str, pair: tuple[int, int], layer: int, kept: Sequence[Float[Tensor, "token width"]]
) -> tuple[Cell, Edit]:
    """The place of a layer where the two programs differ most; in the last one, what the last position still reads."""
    model, start, (clean, counterfactual) = plain.model, plain.start, kept
    change, per_head = counterfactual - clean, COMPONENTS[component].per_head
    slices = change.float().unflatten(-1, (model.n_heads if per_head else 1, -1))
    size = slices.norm(dim=-1)
    if layer == model.n_layers - 1:
        size[:-1] = 0
    position, head = divmod(int(size.argmax()), size.shape[1])
    cell = Cell(pair[0], (Site(component, layer, (start + position,), (head,) if per_head else None),), pair[1])
    if not per_head:
        return cell, Edit(*_module(model, component, layer), _changed(position, slice(None), counterfactual[position]))
    alone, channels = torch.zeros_like(change[:1]), _channels(head, slices.shape[-1])
    alone[0, channels] = change[position, channels]
    projection = model.output_projection(layer)._module
    added = projection(alone[None]) - projection(torch.zeros_like(alone)[None])  # less its bias
    return cell, Edit(*_module(model, "attention", layer), _added(position, added[0, 0]))


def _added(position: int, what: Float[Tensor, "width"]) -> Callable[[Tensor], Tensor]:
    return lambda value: torch.cat([value[:position], (value[position] + what)[None], value[position + 1 :]])


def _channels(head: int, width: int) -> slice:
    return slice(head * width, (head + 1) * width)


def _cuts(plain: _Plain, row: int, layers: Sequence[int]) -> list[tuple[Cell, Edit]]:
    """The heaviest edge of each layer; above the first one, of those that the last position looks along."""
    model, start, token_ids = plain.model, plain.start, plain.runs.token_ids[[row]]
    before = model.config._attn_implementation
    heads: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    weights: dict[int, Tensor] = {}
    keep = [(0, _kept(*_module(model, "attention_heads", layer), heads[layer])) for layer in layers]

    def weights_of(layer: int) -> Any:
        def hook(_: nn.Module, __: tuple, output: tuple[Tensor, Tensor]) -> None:
            weights[layer] = output[1][0]

        return model.attention(layer)._module.register_forward_hook(hook)

    cache: Any = DynamicCache()
    model.hf.set_attn_implementation("eager")  # which gives its weights away
    hooks = [weights_of(layer) for layer in layers]
    try:
        with hooked(keep, 1):
            model.hf(input_ids=token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    finally:
        model.hf.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    places = []
    for layer in layers:
        first = max(1, start) if layer == 0 else plain.runs.length - 1
        weight = weights[layer].float()[:, first:].tril(first - 1)  # no token's edge to itself
        weight = weight.where(weight <= LARGEST_WEIGHT, 0)
        head, query, key = np.unravel_index(int(weight.argmax()), weight.shape)
        a, query = weight[head, query, key], int(query) + first
        values = cache.layers[layer].values[0]
        value = values[int(head) * len(values) // model.n_heads, int(key)]
        channels = _channels(int(head), len(value))
        left = heads[layer][0][query].clone()
        left[channels] = ((left[channels].float() - a * value.float()) / (1 - a)).to(left.dtype)
        cut = Cut(layer, ((query, int(key)),), (int(head),))
        edit = Edit(*_module(model, "attention_heads", layer), _changed(query - start, channels, left[channels]))
        places.append((Cell(row, (cut,)), edit))
    return places


def _changed(position: int, channels: slice, by: Float[Tensor, "channel"]) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[position, channels] = by
        return value

    return change
