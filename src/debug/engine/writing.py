"""Activations written into a batch: at all tokens, or where a layer runs at the patched positions alone; edges cut."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from debug.engine.interventions import Cut, Site
from debug.engine.packing import Packed
from debug.engine.unpatched import ForwardPasses
from debug.errors import InputError
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS


class Hit(NamedTuple):
    """One token that a site writes to: where it lies in a batch, and whose activation it gets."""

    row: int
    token: int
    source: int
    position: int
    heads: tuple[int, ...] | None


def patch(model: LoadedModel, passes: ForwardPasses, component: str, layer: int, hits: list[Hit]) -> None:
    """Write the sources' activations, inside a trace."""
    point = model.hook_point(component)
    value = point[layer].clone(memory_format=torch.contiguous_format)
    overwrite(model, passes, component, layer, value.view(*value.shape[:2], -1), hits)
    point[layer] = value


def overwrite(
    model: LoadedModel, passes: ForwardPasses, component: str, layer: int, value: Tensor, hits: list[Hit]
) -> None:
    """Write the sources' activations into ``value`` [row, token, width], in place."""
    row, token, source, position, heads = (list(column) for column in zip(*hits, strict=True))
    stored = passes.activations[component][layer]
    if not COMPONENTS[component].per_head:
        value[row, token] = stored[source, position].to(value)
        return
    every = tuple(range(model.n_heads))
    chosen = [(hit, head) for hit, of_hit in enumerate(heads) for head in (every if of_hit is None else of_hit)]
    hit, head = (list(column) for column in zip(*chosen, strict=True))
    slices = stored[source, position].to(value).unflatten(-1, (model.n_heads, -1))
    at = [[numbers[i] for i in hit] for numbers in (row, token)]
    value.unflatten(-1, (model.n_heads, -1))[*at, head] = slices[hit, head]


class Tail:
    """The patched positions of layer ``layer``, where only parts of it are patched: they alone run there."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self._index: dict[tuple[int, int], int] = {}  # (row, token) of the batch -> which of the tail's tokens
        self.bases: list[int] = []
        self.positions: list[int] = []
        self.hits: dict[str, list[Hit]] = {name: [] for name in COMPONENTS}

    def __len__(self) -> int:
        return len(self._index)

    @classmethod
    def of(cls, packed: Packed, layer: int) -> Tail:
        tail = cls(layer)
        for index, intervention in enumerate(packed.interventions):
            for site in intervention.patched:
                if site.layer == layer:
                    tail.add(packed, index, site)
        return tail

    def add(self, packed: Packed, index: int, site: Site) -> None:
        for position in site.positions:
            at = packed.token(index, position)
            if at not in self._index:
                self._index[at] = len(self._index)
                self.bases.append(packed.interventions[index].base)
                self.positions.append(position)
            self.hits[site.component].append(Hit(0, self._index[at], site.source, position, site.heads))

    @property
    def rows(self) -> list[int]:
        return [row for row, _ in self._index]

    @property
    def tokens(self) -> list[int]:
        return [token for _, token in self._index]

    def hidden(self, passes: ForwardPasses, layer: int) -> Float[Tensor, "1 token width"]:
        return passes.activations["residual_stream"][layer][self.bases, self.positions][None]

    def attention(self, model: LoadedModel, passes: ForwardPasses, layer: int) -> Float[Tensor, "1 token width"]:
        """The attention block's output, which is known without running it: heads only need to be projected."""
        output = passes.activations["attention"][layer][self.bases, self.positions][None]
        for name, hits in self.hits.items():
            if not hits or not model.hook_point(name).in_attention:
                continue
            if COMPONENTS[name].side == "output":
                overwrite(model, passes, name, layer, output, hits)
                continue
            given, project = passes.activations[name][layer][self.bases, self.positions][None], model.hook_point(name)
            before = project.module(layer)(model.own_heads(given, -1))
            overwrite(model, passes, name, layer, given, hits)
            output = output + (project.module(layer)(model.own_heads(given, -1)) - before).to(output.device)
        return output


def without_edges(
    model: LoadedModel, packed: Packed, mask: Tensor, cuts: list[tuple[int, Cut]], prefix: int
) -> Float[Tensor, "row head query key"]:
    """A layer's mask less the edges that are cut in it."""
    lowest = torch.finfo(mask.dtype).min
    mask = mask.expand(-1, model.n_heads, -1, -1).clone()
    for index, cut in cuts:
        if not cut.edges:
            continue
        intervention = packed.interventions[index]
        row, offset = packed.offsets[index]
        query = torch.tensor([offset + q - intervention.start for q, _ in cut.edges], device=mask.device)
        key = torch.tensor(
            [prefix + offset + k - intervention.start if k >= intervention.start else k for _, k in cut.edges],
            device=mask.device,
        )
        chosen = range(model.n_heads) if cut.heads is None else cut.heads
        heads = torch.tensor(chosen, dtype=torch.long, device=mask.device)
        mask[row, heads[:, None], query, key] = lowest
        if (mask[row, heads[:, None], query] == lowest).all(-1).any():
            raise InputError(f"cutting these edges of layer {cut.layer} leaves a query without any key: {cut}")
    return model.own_heads(mask, 1)
