"""An intervention as data: sites that are patched, edges that are cut; in which forward pass, and from which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from debug.models.hook_points import COMPONENTS


@dataclass(frozen=True)
class Site:
    """A component of one layer at some positions; of some heads, or of all."""

    component: str
    layer: int
    positions: tuple[int, ...]
    heads: tuple[int, ...] | None = None


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
    """What is changed together in one forward pass, that of row ``base`` of :class:`ForwardPasses`."""

    base: int
    sites: tuple[Site | Cut, ...]
    source: int | None = None
    """The row that patched activations come from; None where edges are only cut."""

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
