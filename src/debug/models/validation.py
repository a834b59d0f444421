"""Whether what causal runs read and write in a model is there, and does what it should: tried once, at load."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.kinds import Traced
from debug.models.hook_points import COMPONENTS, HookPoint
from debug.models.numbers import SELF_CHECK_TOLERANCE, out_of_memory
from debug.models.transformers_model import LoadedModel

TOKENS = 4  # of the one prompt that is in every row


def why_unpatchable(model: LoadedModel) -> str | None:
    """Why nothing can be patched in a model: which module did, or gave, what else than expected. None where it can.

    Three forward passes of a few tokens: the shape of every component in every layer; in the first, a middle and the
    last layer each written back as it is, which must change nothing; and there each changed in a row of its own, which
    must change that row's logits. A model whose logits are not finite is not tried further: runs say so themselves.
    """
    fault = model.unpatchable or _fault(model)
    if fault is None or fault == model.unpatchable:
        return fault
    return (
        f"model {model.id!r} of type {model.hf.config.model_type!r} is unsupported in causal runs: {fault}. "
        "It can be asked in accuracy runs"
    )


@torch.no_grad()
def _fault(model: LoadedModel) -> str | None:
    points = [model.hook_point(name) for name in COMPONENTS]
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    edits = [(point, layer) for layer in layers for point in points]  # in the order in which the model runs them
    prompt = torch.arange(11, 11 + 7 * TOKENS, 7) % model.config.vocab_size
    token_ids = prompt.expand(len(edits), -1)
    try:
        shapes, clean = _read(model, points, token_ids)
        if fault := next(filter(None, (_wrong_shape(*each, token_ids) for each in shapes)), None):
            return fault
        if not clean.isfinite().all():
            return None
        same = (_written(model, edits, token_ids, change=False) - clean).abs().max().item()
        if not same <= SELF_CHECK_TOLERANCE[model.dtype] * max(1.0, clean.abs().max().item()):
            return f"its components written as they were read change a logit by {same:.3g}"
        changes = (_written(model, edits, token_ids, change=True) - clean).abs().amax(-1)
    except Exception as error:  # whatever a model's own code, or nnsight where a module was not run, may raise
        if out_of_memory(error):
            raise
        return _unreadable(model, points, token_ids) or f"{type(error).__name__}: {_line(error)}"
    for (point, layer), change in zip(edits, changes.tolist(), strict=True):
        if not change > same:
            return (
                f"module {point.path(layer)} had its {point.component.side} changed, and the logits stayed as they were"
            )
    return None


Shape = tuple[HookPoint, int, tuple[int, ...] | str]
"""A component of a layer, and the shape in which its module has it; of what is no tensor, the type's name."""


def _read(
    model: LoadedModel, points: list[HookPoint], token_ids: Int[Tensor, "row token"]
) -> tuple[list[Shape], Float[Tensor, "row vocabulary"]]:
    with model.trace(token_ids, use_cache=False, logits_to_keep=1):
        shapes: Traced = []
        for layer in range(model.n_layers + 1):
            for point in points:
                if layer < len(point):
                    value = point.raw(layer)
                    shapes.append(
                        (point, layer, tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__)
                    )
        shapes.save()
        logits = model.logits.save()
    return shapes, logits[:, -1].float()


def _written(
    model: LoadedModel, edits: list[tuple[HookPoint, int]], token_ids: Int[Tensor, "row token"], *, change: bool
) -> Float[Tensor, "row vocabulary"]:
    """Logits with components written as they were read; or each changed in the row that has its number."""
    with model.trace(token_ids, use_cache=False, logits_to_keep=1):
        for row, (point, layer) in enumerate(edits):
            value = point[layer].clone()
            if change:  # by twice what another token has: no norm hides that
                value[row] -= 2 * value[row].roll(1, 0)
            point[layer] = value
        logits = model.logits.save()
    return logits[:, -1].float()


def _wrong_shape(
    point: HookPoint, layer: int, shape: tuple[int, ...] | str, token_ids: Int[Tensor, "row token"]
) -> str | None:
    """What is wrong with the shape in which a module has a component."""
    model, component, (rows, tokens) = point.model, point.component, token_ids.shape
    said = f"module {point.path(layer)} {'was given' if component.side == 'input' else 'gave'} {_listed(shape)}"
    width = model.config.hidden_size
    if component.side == "input" and not isinstance(shape, str):
        module = point.module(layer)
        width = getattr(module, "in_features", getattr(module, "nx", width))  # GPT-2's linear layers call it nx
        own = shape[-1] if shape else 0
        if component.per_head and own % model.n_heads:
            return f"{said}, which {model.n_heads} heads do not divide evenly"
        if component.per_head and own != width:
            return f"{said}, and reads {width}"
    expected: list[tuple[int, ...]] = [(rows, tokens, width)]
    if model.architecture.unflattened:
        expected.append((rows * tokens, width))
    return None if shape in expected else f"{said}; expected was {_listed(expected[0])} (row, token, width)"


def _unreadable(model: LoadedModel, points: list[HookPoint], token_ids: Int[Tensor, "row token"]) -> str | None:
    """The first module whose component cannot be read alone, and what was raised there."""
    for point in points:
        for layer in range(len(point)):
            try:
                with model.trace(token_ids[:1], use_cache=False, logits_to_keep=1):
                    point.raw(layer).shape  # noqa: B018
            except Exception as error:
                return (
                    f"the {point.component.side} of module {point.path(layer)} cannot be read: "
                    f"{type(error).__name__}: {_line(error)}"
                )
    return None


def _listed(shape: tuple[int, ...] | str) -> str:
    return f"an object of type {shape}" if isinstance(shape, str) else str([*shape])


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[-1]
