"""Patches that land somewhere else, as a bug would have it: each takes a monkeypatch, and then every one does.

By where the bug is: in the cells that the engine is given, in what it writes and where, in the part that runs a layer
at single positions only, in the mask of a knockout, in what is recorded, in which cell a number of a map is taken from.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from debug import causal_tracing, engine
from debug.engine import COMPONENTS, Cell, Cut, Runs, Site
from debug.models import LoadedModel

KNOCKOUT = "attention_knockout"
HEADS, PARTS = ("attention_heads",), ("attention_heads", "attention", "mlp")
EVERY = ("residual_stream", *PARTS)
Redirection = Callable[[pytest.MonkeyPatch], None]


def moved(site: Site | Cut, what: str, model: LoadedModel, length: int) -> Site | Cut:
    """A site or cut one layer up, one position on, one head further: round the end where there is none."""
    layers, n_heads = model.n_layers, model.n_heads
    if isinstance(site, Cut):
        return {
            "layer": lambda: replace(site, layer=(site.layer + 1) % layers),
            "head": lambda: replace(site, heads=tuple((h + 1) % n_heads for h in site.heads or range(n_heads - 1))),
            "query": lambda: replace(site, edges=tuple((min(q + 1, length - 1), k) for q, k in site.edges)),
            "key": lambda: replace(
                site, edges=tuple((q, k + 1 if k + 1 < q else max(k - 1, 0)) for q, k in site.edges)
            ),
        }[what]()
    rows = layers + (site.component == "residual_stream")
    return {
        "layer": lambda: replace(site, layer=(site.layer + 1) % rows),
        "position": lambda: replace(site, positions=tuple((p + 1) % length for p in site.positions)),
        "head": lambda: replace(site, heads=site.heads and tuple((h + 1) % n_heads for h in site.heads)),
    }[what]()


def cells(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine.patched_logits

    def redirected(model: LoadedModel, runs: Runs, given: list[Cell], *rest: Any, **named: Any) -> Any:
        n = len(runs)
        if what == "source":
            given = [replace(cell, source=cell.source and (cell.source + 1) % n) for cell in given]
        elif what == "run":
            given = [replace(cell, run=(cell.run + 1) % n) for cell in given]
        else:
            by = [tuple(moved(site, what, model, runs.length) for site in cell.sites) for cell in given]
            given = [replace(cell, sites=sites) for cell, sites in zip(given, by, strict=True)]
        return run(model, runs, given, *rest, **named)

    for module in (engine, causal_tracing):
        monkeypatch.setattr(module, "patched_logits", redirected)


def written(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overwrite = engine._overwrite

    def redirected(model: LoadedModel, runs: Runs, component: str, layer: int, value: Tensor, hits: list) -> None:
        rows, tokens, layers = *value.shape[:2], runs.activations[component]
        of_hit = {
            "head": lambda hit: {"heads": hit.heads and tuple((h + 1) % model.n_heads for h in hit.heads)},
            "source": lambda hit: {"source": (hit.source + 1) % len(runs)},
            "source's position": lambda hit: {"position": (hit.position + 1) % runs.length},
            "token": lambda hit: {"token": (hit.token + 1) % tokens},
            "row": lambda hit: {"row": (hit.row + 1) % rows},
        }
        if what == "source's layer":
            layers = layers[1:] + layers[:1]
        elif what == "source's head":
            layers = [at.unflatten(-1, (model.n_heads, -1)).roll(-1, -2).flatten(-2) for at in layers]
        else:
            hits = [hit._replace(**of_hit[what](hit)) for hit in hits]
        runs = replace(runs, activations=runs.activations | {component: layers})
        overwrite(model, runs, component, layer, value, hits)

    monkeypatch.setattr(engine, "_overwrite", redirected)


def write(monkeypatch: pytest.MonkeyPatch) -> None:
    def above(original: Callable, model: LoadedModel, layer: int, value: Tensor) -> None:
        original(model, min(layer + 1, model.n_layers - 1), value)

    for name, component in list(COMPONENTS.items()):
        monkeypatch.setitem(COMPONENTS, name, component._replace(write=partial(above, component.write)))


def packed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = engine._Packed.token

    def redirected(self: engine._Packed, cell: int, position: int) -> tuple[int, int]:
        row, at = token(self, cell, position)
        return (row, at + (position < self.length - 1)) if what == "token" else ((row + 1) % len(self.runs), at)

    monkeypatch.setattr(engine._Packed, "token", redirected)


def tail(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add = engine._Tail.add

    def redirected(self: engine._Tail, batch: engine._Packed, index: int, site: Site) -> None:
        before = batch.cells[index].start
        if what == "head":
            site = replace(site, heads=site.heads and tuple((h + 1) % 4 for h in site.heads))
        elif what == "position":
            site = replace(site, positions=tuple(p + 1 if p < batch.length - 1 else before for p in site.positions))
        elif batch.cells[other := (index + 1) % len(batch.cells)].start <= before:
            index = other
        add(self, batch, index, site)

    monkeypatch.setattr(engine._Tail, "add", redirected)


def joined(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ran alone is put back at another's place."""

    def redirected(self: engine._Tail) -> list[int]:
        places = [place[what == "tokens"] for place in self._index]
        return places[1:] + places[:1]

    monkeypatch.setattr(engine._Tail, what, property(redirected))


def edges(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without = engine._without_edges

    def redirected(model: LoadedModel, batch: engine._Packed, mask: Tensor, cuts: list, prefix: int) -> Tensor:
        if what == "prefix":
            return without(model, batch, mask, cuts, max(0, prefix - 1))
        if what == "cell":
            after = [(index + 1) % len(batch.cells) for index, _ in cuts]
            fits = [batch.cells[other].start <= min(cut.positions) for other, (_, cut) in zip(after, cuts, strict=True)]
            cuts = [(o if fit else i, cut) for o, fit, (i, cut) in zip(after, fits, cuts, strict=True)]
        else:
            cuts = [(index, moved(cut, what, model, batch.length)) for index, cut in cuts]
        return without(model, batch, mask, cuts, prefix)

    monkeypatch.setattr(engine, "_without_edges", redirected)


def logits(monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine._run_batch
    monkeypatch.setattr(engine, "_run_batch", lambda *given, **named: run(*given, **named).roll(1, 0))


def recorded(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = engine.record

    def redirected(model: LoadedModel, token_ids: Tensor, components: tuple[str, ...]) -> Runs:
        runs = record(model, token_ids, components)
        activations = dict(runs.activations)
        for name in {*components} - {"residual_stream"}:
            layers = activations[name]
            if what == "layer":
                activations[name] = layers[1:] + layers[:1]
            elif what == "position":
                activations[name] = [at.roll(1, 1) for at in layers]
            elif name == "attention_heads":
                activations[name] = [at.unflatten(-1, (model.n_heads, -1)).roll(1, -2).flatten(-2) for at in layers]
        return replace(runs, activations=activations)

    monkeypatch.setattr(causal_tracing, "record", redirected)


def mapped(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine does right what it is asked; what it is asked is not what the map says."""
    of_pair = causal_tracing._Group._cells

    def redirected(self: causal_tracing._Group, number: int) -> Iterator[tuple[tuple[int, ...], Cell]]:
        both = list(of_pair(self, number))
        for (at, cell), (_, after) in zip(both, both[1:] + both[:1], strict=True):
            if what == "layer":
                sites = tuple(moved(site, what, self.model, self.runs.length) for site in cell.sites)
                yield at, replace(cell, sites=sites)
            elif what == "source":
                n = len(self.given)
                yield at, replace(cell, source=n + ((cell.source or 0) + 1) % n)
            else:
                yield at, after

    monkeypatch.setattr(causal_tracing._Group, "_cells", redirected)


def rows(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair's source, or its control, is the next pair's."""
    start = causal_tracing._Group.__init__

    def redirected(self: causal_tracing._Group, *given: Any, **named: Any) -> None:
        start(self, *given, **named)
        of = getattr(self, what)
        numbers = list(of.values())
        of |= dict(zip(of, numbers[1:] + numbers[:1], strict=True))

    monkeypatch.setattr(causal_tracing._Group, "__init__", redirected)


def _of(how: Callable[[str, pytest.MonkeyPatch], None], *what: str) -> list[tuple[str, Redirection]]:
    return [(f"{how.__name__}: {each}", partial(how, each)) for each in what]


REDIRECTIONS: list[tuple[str, str, Redirection]] = [
    (component, name, redirection)
    for components, given in [
        (EVERY, _of(cells, "layer", "position", "source", "run")),
        (EVERY, _of(written, "source", "source's position", "source's layer", "token", "row")),
        (EVERY, _of(packed, "token", "row")),
        (EVERY, _of(mapped, "layer", "next cell", "source")),
        (EVERY, _of(rows, "source_row", "control_row")),
        (EVERY, [("logits", logits)]),
        (PARTS, _of(tail, "position", "cell")),
        (PARTS, _of(joined, "rows", "tokens")),
        (PARTS, _of(recorded, "layer", "position")),
        (HEADS, [*_of(cells, "head"), *_of(written, "head", "source's head"), *_of(tail, "head")]),
        (HEADS, _of(recorded, "head")),
        ((KNOCKOUT,), _of(cells, "layer", "head", "query", "key", "run")),
        ((KNOCKOUT,), [*_of(edges, "head", "query", "key", "cell", "prefix"), *_of(mapped, "next cell")]),
        ((KNOCKOUT,), [("logits", logits)]),
    ]
    for component in components
    for name, redirection in given
]
"""(component, name, redirection)."""
