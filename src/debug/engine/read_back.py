"""Read-back: what the modules of the model were really given in the batches of interventions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from debug.engine.interventions import Cut
from debug.engine.packing import Packed
from debug.engine.unpatched import ForwardPasses
from debug.engine.writing import Tail
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS

READ_BACK = {"float32": 3e-5, "bfloat16": 0.125, "float16": 0.016}
"""How far rounding may take an activation from the recorded one, as a share of its size: some last places."""


class ReadBack:
    """What the modules of a model were given in batches of interventions, where some of these wrote and beside it.

    Heard by torch hooks of its own, at the first place that an intervention writes to, where all else must be as in the
    unpatched forward pass: the input of a layer as its first module gets it, the output of an output projection
    (against a projection of what its heads should be), of an attention block, of an MLP, of the final norm. ``worst``
    is the largest difference, as a share of the largest number of its token's activation; None where nothing was
    written.
    """

    CELLS = 2  # of a batch

    def __init__(self, model: LoadedModel, passes: ForwardPasses) -> None:
        self.model, self.passes = model, passes
        self.worst: float | None = None

    @contextmanager
    def __call__(self, packed: Packed, tail: Tail | None) -> Iterator[None]:
        """The engine's ``listen``."""
        asked: list[tuple[tuple[str, int], int, Tokens]] = []
        for number in sorted({0, len(packed.interventions) // 2, len(packed.interventions) - 1})[-self.CELLS :]:
            intervention, alone = (
                packed.interventions[number],
                tail if tail and packed.interventions[number].layer == tail.layer else None,
            )
            first = [site for site in intervention.sites if site.layer == intervention.layer]
            if any(isinstance(site, Cut) for site in first):
                continue
            names = {site.component for site in intervention.patched if site.layer == intervention.layer}
            component = next(name for name in COMPONENTS if name in names)
            asked.append(((component, intervention.layer), number, _at(packed, alone, number)))
            if alone is not None and len(first) == len(intervention.sites):
                asked.append((("residual_stream", intervention.layer + 1), number, _beside(packed, alone, number)))
        heard: dict[tuple[str, int], Tensor] = {}
        with ExitStack() as hooks:
            for place in {place for place, _, _ in asked}:
                for handle in self._listen(place, heard):
                    hooks.callback(handle.remove)
            yield
        for place, number, tokens in asked:
            self._compare(packed, number, place, tokens, heard[place])

    def _listen(self, place: tuple[str, int], heard: dict[tuple[str, int], Tensor]) -> list[RemovableHandle]:
        """Keep what the module at a place is given or gives."""
        (component, layer), model = place, self.model

        def first_input(_: object, arguments: tuple, keywords: dict) -> None:
            heard.setdefault(place, arguments[0] if arguments else next(iter(keywords.values())))

        def output(_: object, __: tuple, value: Tensor | tuple[Tensor, ...]) -> None:
            heard[place] = value[0] if isinstance(value, tuple) else value

        module = model.hook_point(component).module(layer)
        if COMPONENTS[component].whole and layer < model.n_layers:
            inside = list(module.modules())[1:]
            return [module.register_forward_pre_hook(first_input, with_kwargs=True) for module in inside]
        return [module.register_forward_hook(output)]

    def _compare(self, packed: Packed, number: int, place: tuple[str, int], which: Tokens, value: Tensor) -> None:
        """What was heard at these tokens of an intervention against what its place should have."""
        (component, layer), (shape, tokens, positions) = place, which
        model, intervention = self.model, packed.interventions[number]
        if shape == packed.shape and layer == model.n_layers - 1 and self._for_predictions_only(component):
            last = positions == packed.length - 1
            tokens, positions = tokens[:, last], positions[last]
        stored = self.passes.activations[component][layer]
        expected = stored[intervention.base, positions].clone()
        place_of = {position: i for i, position in enumerate(positions.tolist())}
        for site in intervention.patched:
            if (site.component, site.layer) != place:
                continue
            for position in site.positions:
                if position not in place_of:
                    continue
                given = stored[site.source, position]
                width = given.shape[-1] // model.n_heads
                for start, end in (
                    [(0, len(given))] if site.heads is None else [(h * width, (h + 1) * width) for h in site.heads]
                ):
                    expected[place_of[position], start:end] = given[start:end]
        if COMPONENTS[component].side == "input" and (layer == model.n_layers or not COMPONENTS[component].whole):
            given = model.own_heads(expected, -1) if COMPONENTS[component].per_head else expected
            expected = model.hook_point(component).module(layer)(given)
        found = value.view(*shape, -1)[tuple(torch.as_tensor(tokens))].float()
        expected = expected.to(found.device)
        size = expected.float().abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)
        worst = ((found - expected.float()).abs().amax(-1) / size).max().item() if len(found) else 0.0
        self.worst = worst if self.worst is None else float(np.maximum(self.worst, worst))

    def _for_predictions_only(self, component: str) -> bool:
        """Whether the last layer runs what makes a module's output for the tokens that predict only."""
        made_by = {each.made_by for each in COMPONENTS.values() if each.made_by}
        return any(self.model.architecture.within(part, COMPONENTS[component].part) for part in made_by)


Tokens = tuple[tuple[int, int], Int[np.ndarray, "2 token"], Int[np.ndarray, " token"]]
"""Shape of what modules are given, less its width; (row, token) of some tokens in it; their positions in the prompt."""


def _at(packed: Packed, tail: Tail | None, number: int) -> Tokens:
    """The tokens of an intervention; of those that run alone at first, where there are such. As the mask has them."""
    own = packed.segments == packed.numbers[number]
    if tail is None:
        return packed.shape, np.argwhere(own).T, packed.positions[own]
    index = [i for i, at in enumerate(zip(tail.rows, tail.tokens, strict=True)) if own[at]]
    positions = [packed.positions[tail.rows[i], tail.tokens[i]] for i in index]
    return (1, len(tail)), np.array([[0] * len(index), index]), np.array(positions)


def _beside(packed: Packed, tail: Tail, number: int) -> Tokens:
    """The tokens of an intervention that do not run alone at first, behind which nothing may have changed."""
    own = packed.segments == packed.numbers[number]
    own[tail.rows, tail.tokens] = False
    return packed.shape, np.argwhere(own).T, packed.positions[own]
