"""Components: what can be read and written inside a layer. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from debug.models.transformers_model import LoadedModel


class Component(NamedTuple):
    """How nnsight reads and writes a component of a layer inside a trace."""

    read: Callable[[LoadedModel, int], Tensor]
    write: Callable[[LoadedModel, int, Tensor], None]
    full_patch: tuple[str, ...]
    """Components that, patched together in all layers, leave nothing of the original; see :func:`checks_of`."""
    per_head: bool = False
    """Its width is n_heads slices, each of which can be patched alone."""


def _write_residual(model: LoadedModel, layer: int, value: Tensor) -> None:
    model.layer(layer).input = value


def _write_heads(model: LoadedModel, layer: int, value: Tensor) -> None:
    model.output_projection(layer).input = value


def _read_attention(model: LoadedModel, layer: int) -> Tensor:
    output = model.attention(layer).output
    return output[0] if isinstance(output, tuple) else output


def _write_attention(model: LoadedModel, layer: int, value: Tensor) -> None:
    output = model.attention(layer).output
    model.attention(layer).output = (value, *output[1:]) if isinstance(output, tuple) else value


def _write_mlp(model: LoadedModel, layer: int, value: Tensor) -> None:
    model.mlp(layer).output = value


COMPONENTS: dict[str, Component] = {
    "residual_stream": Component(lambda model, layer: model.layer(layer).input, _write_residual, ("residual_stream",)),
    "attention_heads": Component(
        lambda model, layer: model.output_projection(layer).input,
        _write_heads,
        ("attention_heads", "mlp"),
        per_head=True,
    ),
    "attention": Component(_read_attention, _write_attention, ("attention", "mlp")),
    "mlp": Component(lambda model, layer: model.mlp(layer).output, _write_mlp, ("attention", "mlp")),
}
"""What can be patched, in the order in which a layer runs it; the residual stream is first, and has one row more: what
the final norm reads."""
