"""An intervention as data: sites that are patched, each from a forward pass of its own; edges that are cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

from debug.errors import InputError
from debug.models.hook_points import COMPONENTS


@dataclass(frozen=True)
class Site:
    """A component of one layer at some positions; of some heads, or of all. Its activations become the source's."""

    component: str
    layer: int
    positions: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    source: int = field(kw_only=True)
    """The row of :class:`ForwardPasses` that they come from. The intervention's own ``base`` freezes the site: it keeps
    its clean value, whatever is patched below it."""

    def meets(self, other: Site) -> bool:
        """Whether both write to the same activation."""
        if (self.component, self.layer) != (other.component, other.layer):
            return False
        of_heads = self.heads is None or other.heads is None or {*self.heads} & {*other.heads}
        return bool(of_heads and {*self.positions} & {*other.positions})


@dataclass(frozen=True)
class Cut:
    """Attention edges of a layer, removed before the softmax: (query position, key position); of some heads, or all."""

    layer: int
    edges: tuple[tuple[int, int], ...]
    heads: tuple[int, ...] | None = None

    @property
    def positions(self) -> tuple[int, ...]:
        """Where something changes: at the queries."""
        return tuple(query for query, _ in self.edges)


@dataclass(frozen=True)
class Intervention:
    """What is changed together in one forward pass, that of row ``base`` of :class:`ForwardPasses`.

    Raises:
        InputError: two sites write to the same activation from two sources.
    """

    base: int
    sites: tuple[Site | Cut, ...]

    def __post_init__(self) -> None:
        for one, other in combinations(self.patched, 2):
            if one.source != other.source and one.meets(other):
                raise InputError(f"{one} and {other} write to the same activations; give each one source")

    @property
    def patched(self) -> list[Site]:
        return [site for site in self.sites if isinstance(site, Site)]

    @cached_property
    def layer(self) -> int:
        return min(site.layer for site in self.sites)

    @cached_property
    def start(self) -> int:
        return min(position for site in self.sites for position in site.positions)

    @cached_property
    def patches_parts_first(self) -> bool:
        """Whether its first layer is changed inside only, at single positions: its attention need not run there."""
        first = [site for site in self.sites if site.layer == self.layer]
        return all(isinstance(site, Site) and COMPONENTS[site.component].positions_alone for site in first)
