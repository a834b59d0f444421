"""Components: what can be read and written inside a layer, as data; and the hook points of a model, by layer.

    with model.trace(token_ids):                       # token ids [row, token]; any trace of ``model.nnsight`` does
        clean = model.residual[2].save()               # read: [row, token, width]
        model.heads[3][:, -1, 4] = 0                   # edit in place: [row, token, head, width]
        model.mlp_out[3] = other                       # write
        logits = model.logits.save()                   # [row, token, vocabulary]

Read and write in the order in which the model computes; what is saved outlives the trace. The engine, its plain hooks
and its self-checks read and write where :data:`COMPONENTS` says. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from debug.errors import InputError
from debug.kinds import Module, Traced
from debug.models.architectures import follow

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Component:
    """Where a component is in every layer, and what follows from that."""

    title: str
    """On screens."""
    transformer_lens: str
    """The name of the same activation in TransformerLens."""
    part: str
    """The module: ``layer`` itself, or the part of it that a field of :class:`Architecture` is the path of."""
    side: Literal["input", "output"]
    """Whether the component is what the module is given, first, or what it gives."""
    full_patch: tuple[str, ...]
    """Components that, patched together in all layers, leave nothing of the original; see :func:`checks_of`."""
    per_head: bool = False
    """Its width is n_heads slices, each of which can be patched alone."""
    above: str = ""
    """The part of the model, above all layers, whose same side is row n_layers."""
    positions_alone: bool = True
    """Whether a layer of which only this is patched may run at the patched positions alone, from its recorded attention
    output. No for what changes the attention that later positions pay; within the attention block yes only for its
    output, and for the input of the module that makes its output."""
    made_by: str = ""
    """The part that alone makes the component of its input, token by token: the last layer runs it only for tokens that
    predict."""

    @property
    def whole(self) -> bool:
        """Whether it is all that a layer is given, so that one layer's patch is a full one."""
        return self.part == "layer"


COMPONENTS: dict[str, Component] = {
    "residual_stream": Component(
        "residual stream",
        "resid_pre",
        "layer",
        "input",
        full_patch=("residual_stream",),
        above="final_norm",
        positions_alone=False,
    ),
    "attention_heads": Component(
        "attention heads", "z", "output_projection", "input", full_patch=("attention_heads", "mlp"), per_head=True
    ),
    "attention": Component(
        "attention", "attn_out", "attention", "output", full_patch=("attention", "mlp"), made_by="output_projection"
    ),
    "mlp": Component("MLP", "mlp_out", "mlp", "output", full_patch=("attention", "mlp"), made_by="mlp"),
}
"""What can be patched, in the order in which a layer runs it. A new component is one entry, and where its module is in
each architecture one field of :class:`Architecture`, if it is none of those that are there."""


@dataclass(frozen=True)
class HookPoint:
    """A component of a model, by layer: ``point[3]`` reads it, ``point[3] = value`` writes it, inside an nnsight trace.

    Values are [row, token, width]; of components by head [row, token, head, width of a head]. What is read is a view of
    what the model computes with, so that ``point[3][:, -1] = 0`` changes it. Negative layers count from the end, in the
    residual stream from what the final norm reads. For gradients by a value, write back what was read
    (``point[3] = value = point[3]``): the model then goes on from this very tensor.

    Raises:
        InputError: no such layer, or a value of another shape.
    """

    model: Any  # a LoadedModel, which imports this file
    name: str

    @property
    def component(self) -> Component:
        return COMPONENTS[self.name]

    @property
    def in_attention(self) -> bool:
        """Whether it is a side of the attention block, or of a module inside of it."""
        return self.model.architecture.within(self.component.part, "attention")

    def __len__(self) -> int:
        """Layers; of the residual stream one more."""
        return self.model.n_layers + bool(self.component.above)

    def __iter__(self) -> Iterator[Traced]:
        """All layers' values, one after another."""
        return (self[layer] for layer in range(len(self)))

    def __getitem__(self, layer: int) -> Traced:
        return self._by_token(self.raw(layer), layer)

    def __setitem__(self, layer: int, value: Float[Tensor, "row token *width"]) -> None:
        envoy, old = self.envoy(layer), self.raw(layer)
        expected = self._by_token(old, layer).shape
        if value.shape != expected:
            raise InputError(
                f"{self.component.title} of layer {layer}: expected {[*expected]}, was given {[*value.shape]}"
            )
        new = value.to(old.device, old.dtype).reshape(old.shape)
        if self.component.side == "input":
            envoy.input = new
        else:
            output = envoy.output
            envoy.output = (new, *output[1:]) if isinstance(output, tuple) else new

    def raw(self, layer: int) -> Tensor:
        """The value in the shape in which the module is given it, or gives it."""
        envoy = self.envoy(layer)
        value = envoy.input if self.component.side == "input" else envoy.output
        return value[0] if isinstance(value, tuple) else value

    def envoy(self, layer: int) -> Module:
        """nnsight's handle on the module that the component is a side of."""
        return self._find(self.model.nnsight, layer)

    def module(self, layer: int) -> Module:
        """The module itself."""
        return self._find(self.model.hf, layer)

    def path(self, layer: int) -> str:
        """The module's name in the model: ``model.layers.3.mlp``."""
        row, architecture = self._row(layer), self.model.architecture
        if row == self.model.n_layers:
            return getattr(architecture, self.component.above)
        return ".".join(filter(None, (architecture.layers, str(row), architecture.path(self.component.part))))

    def _find(self, start: Module, layer: int) -> Module:
        row, architecture = self._row(layer), self.model.architecture
        if row == self.model.n_layers:
            return follow(start, getattr(architecture, self.component.above))
        return follow(follow(start, architecture.layers)[row], architecture.path(self.component.part))

    def _by_token(self, value: Tensor, layer: int) -> Float[Tensor, "row token *width"]:
        if value.ndim == 2:  # some modules are given the tokens of all rows behind one another
            value = value.view(*self.model.batch_shape(self._row(layer)), -1)
        return value.unflatten(-1, (self.model.n_heads, -1)) if self.component.per_head else value

    def _row(self, layer: int) -> int:
        if not -len(self) <= layer < len(self):
            above = f"; {self.component.title} {self.model.n_layers} is what the final norm reads"
            raise InputError(
                f"layer {layer}: model {self.model.id!r} has {self.model.n_layers} layers, "
                f"0 to {self.model.n_layers - 1}{above if self.component.above else ''}"
            )
        return layer % len(self)
