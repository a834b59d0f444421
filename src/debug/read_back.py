"""What the model read where the engine wrote: a few cells of every batch, slice by slice, beside what they claim.

Nothing is looked up the way in which it was written. A cell's tokens are found by what the batch is made of (segments
and positions), its claim comes from whoever will use its logits, heads are slices of channels, and what the model read
is what nnsight's cache saw pass a hook point when all edits were done. Right is the same to the last bit.

Knows how the engine packs cells, and no program, no pair and no map.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from debug.models import LoadedModel

if TYPE_CHECKING:
    from debug.engine import Cell, Cut, Runs, Site, _Packed, _Tail

CELLS = 4  # of every batch
MASK, LAYER = "mask", "layer"  # hook points beside the components: what attention is given, what a layer gives on
NOWHERE = torch.finfo(torch.float32).max  # metrics are finite
NOTHING = torch.empty(0)
NOT_WRITTEN = (NOTHING, torch.empty(1))


@dataclass
class ReadBack:
    """What a sample of cells wrote, and everything else that these cells read at the same hook points.

    ``claims`` gives for the number of a cell the intervention that its logits will be taken for. Cells in ``always``
    are in the sample whatever else is.
    """

    claims: Callable[[int], Cell]
    always: Collection[int] = ()
    max_abs: float = 0.0
    """Largest difference of an activation to what it should be; NOWHERE where it was not written at all."""
    cells: int = 0

    def sample(self, packed: _Packed) -> dict[int, Cell]:
        """Some cells of a batch: the first, the last, and some between them."""
        numbers = _numbers(packed)
        chosen = {numbers[int(i)] for i in np.linspace(0, len(numbers) - 1, CELLS).round()}
        return {number: self.claims(number) for number in sorted(chosen | {*self.always} & {*numbers})}

    def add(self, model: LoadedModel, runs: Runs, seen: Seen) -> None:
        """Compare what a batch's sample read."""
        for number, claim in seen.claims.items():
            self.max_abs = max(self.max_abs, _Reading(model, runs, seen, number, claim).distance())
            self.cells += 1


class Seen:
    """One batch: what was at the hook points of some cells before the engine wrote, and what the model read then."""

    def __init__(self, packed: _Packed, entry: int, tail: _Tail | None, claims: dict[int, Cell]) -> None:
        self.packed, self.entry, self.tail, self.claims = packed, entry, tail, claims
        points = {("residual_stream", entry), ("residual_stream", entry - (tail is not None))}
        points |= {(_component(site), site.layer) for claim in claims.values() for site in claim.sites}
        self.points = sorted(points)
        self.before: dict[tuple[str, int], Tensor] = {}
        self.cache: Any = None
        self.projected: Tensor | None = None

    def keep(self, component: str, layer: int, value: Tensor) -> None:
        """What is at a hook point, before it is written to."""
        if self.claims:
            self.before[component, layer] = value

    @contextmanager
    def projection(self, model: LoadedModel, layer: int) -> Iterator[None]:
        """Keeps what the heads' projection reads last: a layer of which parts run alone projects outside the model."""

        def keep(_: Any, arguments: tuple[Tensor]) -> None:
            self.projected = arguments[0].clone()

        if self.tail is None or not self.claims:
            yield
            return
        hook = model.output_projection(layer)._module.register_forward_pre_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def modules(self, model: LoadedModel) -> list[Any]:
        return [_hook_point(model, *point) for point in self.points]

    def after(self, model: LoadedModel, component: str, layer: int) -> Tensor:
        """What the model read at a hook point; empty where it did not pass there."""
        path = _hook_point(model, component, layer).path
        if path not in self.cache.keys():  # noqa: SIM118 (this is no dict)
            return NOTHING
        visit = self.cache[path]
        if component == MASK:
            value = visit.inputs[1].get("attention_mask")
            return NOTHING if value is None else value
        value = visit.input if component in ("residual_stream", "attention_heads") else visit.output
        return value[0] if isinstance(value, tuple) else value


@dataclass
class _Reading:
    """What one cell's tokens read, beside what its claim says."""

    model: LoadedModel
    runs: Runs
    seen: Seen
    number: int
    claim: Cell

    def __post_init__(self) -> None:
        packed = self.seen.packed
        rows, tokens = np.nonzero(packed.segments == self.number)
        self.row, self.first = int(rows[0]), int(tokens[0])
        self.positions: list[int] = packed.positions[self.row, tokens].tolist()
        self.span = slice(self.first, self.first + len(self.positions))
        self.sites: list[Any] = [site for site in self.claim.sites if _component(site) != MASK]
        self.cuts: list[Any] = [site for site in self.claim.sites if _component(site) == MASK]

    def distance(self) -> float:
        if not {*self.positions} >= {p for site in self.claim.sites for p in site.positions}:
            return NOWHERE  # the cell that ran begins behind the one that is claimed
        worst = [_apart(*both) for both in (*self._stream(), *self._tail(), *self._layers(), *self._masks())]
        return max(worst)

    def _own(self, component: str, layer: int, positions: Sequence[int]) -> Float[Tensor, "position width"]:
        """Activations of the claimed run, unpatched."""
        return self.runs.activations[component][layer][self.claim.run, list(positions)]

    def _written(
        self, base: Float[Tensor, "position width"], component: str, layer: int, positions: Sequence[int]
    ) -> Float[Tensor, "position width"]:
        """What these positions should read: what was there before, and in it what the claim writes."""
        expected = base.clone()
        for site in self.sites:
            for position in site.positions if (site.component, site.layer) == (component, layer) else ():
                if position not in positions:
                    continue
                source = self.runs.activations[component][layer][self.claim.source, position]
                width = len(source) // self.model.n_heads
                for head in [None] if site.heads is None else site.heads:
                    channels = slice(None) if head is None else slice(head * width, (head + 1) * width)
                    expected[positions.index(position), channels] = source[channels]
        return expected

    def _stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the cell's run is taken up: its own residual stream, but for what is claimed there and just below."""
        entry = self.seen.entry
        read = self.seen.after(self.model, "residual_stream", entry)
        expected = self._own("residual_stream", entry, self.positions).clone()
        for position, place in self._places().items():
            if place is not None:
                expected[self.positions.index(position)] = self.seen.before[LAYER, entry - 1][0, place]
        yield self._of_cell(read), self._written(expected, "residual_stream", entry, self.positions)

    def _places(self) -> dict[int, int | None]:
        """Positions that are claimed inside a layer of which parts run alone -> where they are among its tokens."""
        tail, layer = self.seen.tail, self.seen.entry - 1
        inside = [] if tail is None else [site for site in self.sites if site.layer == layer]
        positions = sorted({p for site in inside for p in site.positions})
        tokens = [(self.row, self.first + self.positions.index(p)) for p in positions]
        return {} if tail is None else {p: tail._index.get(at) for p, at in zip(positions, tokens, strict=True)}

    def _tail(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A layer of which parts run alone: its stream, and what is claimed of heads, attention and MLP."""
        seen, layer, places = self.seen, self.seen.entry - 1, self._places()
        if not places or seen.tail is None:
            return
        if None in places.values():
            yield NOT_WRITTEN
            return

        size, positions = len(seen.tail), list(places)

        def of_tail(value: Tensor, at: Sequence[int]) -> Tensor:
            return value.view(size, -1)[[places[p] for p in at]] if value.numel() else value

        stream = seen.after(self.model, "residual_stream", layer)
        yield of_tail(stream, positions), self._own("residual_stream", layer, positions)
        for component in sorted({site.component for site in self.sites if site.layer == layer}):
            at = positions
            if component == "attention_heads":
                read = NOTHING if seen.projected is None else seen.projected
                base = self._own(component, layer, at)
            elif component == "attention":  # elsewhere it may be what is made of other heads
                at = [
                    p
                    for site in self.sites
                    if (site.component, site.layer) == (component, layer)
                    for p in site.positions
                ]
                read, base = seen.after(self.model, component, layer), self._own(component, layer, at)
            else:
                read = seen.after(self.model, component, layer)
                base = of_tail(seen.before.get((component, layer), NOTHING), at)
            yield (of_tail(read, at), self._written(base, component, layer, at)) if base.numel() else NOT_WRITTEN

    def _layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Layers that run whole. The last one goes on with the token that predicts only."""
        seen, top = self.seen, self.model.n_layers - 1
        inside = None if seen.tail is None else seen.entry - 1  # see _tail
        for component, layer in sorted({(site.component, site.layer) for site in self.sites}):
            if (component, layer) == ("residual_stream", seen.entry) or layer == inside:
                continue
            read, before = seen.after(self.model, component, layer), seen.before.get((component, layer))
            if before is None or not read.numel():
                yield NOT_WRITTEN
                continue
            base, positions = self._of_cell(before), self.positions
            if layer == top and component != "residual_stream":
                base, positions = base[-1:], positions[-1:]
                if component == "attention_heads":
                    read = read[0, [_numbers(seen.packed).index(self.number)]]
                else:
                    read = self._of_cell(read)[-1:]
            else:
                read = self._of_cell(read)
            yield read, self._written(base, component, layer, positions)

    def _masks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What attention may see: as before, less the claimed edges, in the columns of their keys' tokens."""
        seen, prefix, n_heads = self.seen, self.seen.packed.prefix, self.model.n_heads
        for layer in sorted({cut.layer for cut in self.cuts}):
            read, before = seen.after(self.model, MASK, layer), seen.before.get((MASK, layer))
            if before is None or not read.numel():
                yield NOT_WRITTEN
                continue
            expected = before[self.row].expand(n_heads, -1, -1)[:, self.span].clone()
            for cut in (cut for cut in self.cuts if cut.layer == layer):
                for query, key in cut.edges:
                    column = prefix + self.first + self.positions.index(key) if key in self.positions else key
                    heads = list(range(n_heads) if cut.heads is None else cut.heads)
                    expected[heads, self.positions.index(query), column] = torch.finfo(expected.dtype).min
            yield read[self.row].expand(n_heads, -1, -1)[:, self.span], expected

    def _of_cell(self, value: Tensor) -> Float[Tensor, "token width"]:
        """Of a whole batch's activations those of the cell's tokens; some modules see the batch flattened."""
        return value.reshape(*self.seen.packed.segments.shape, -1)[self.row, self.span] if value.numel() else value


def _numbers(packed: _Packed) -> list[int]:
    """The numbers of a batch's cells, row by row: so are the tokens that predict gathered."""
    segments = packed.segments.ravel()
    _, first = np.unique(segments, return_index=True)
    return [number for number in segments[np.sort(first)].tolist() if number >= 0]


def _component(site: Site | Cut) -> str:
    return getattr(site, "component", MASK)


def _hook_point(model: LoadedModel, component: str, layer: int) -> Any:
    """The module that reads a component (its input) or gives it on (its output)."""
    if component == "residual_stream":
        return model.final_norm if layer == model.n_layers else model.layer(layer)
    if component == "attention_heads":
        return model.output_projection(layer)
    return model.mlp(layer) if component == "mlp" else model.attention(layer)


def _apart(read: Tensor, expected: Tensor) -> float:
    """The largest difference."""
    if read.shape != expected.shape:
        return NOWHERE
    if torch.equal(read, expected):
        return 0.0
    return float((read.double() - expected.double()).abs().nan_to_num(NOWHERE, NOWHERE).max().clamp(max=NOWHERE))
