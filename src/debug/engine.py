"""The engine's one primitive: cells of patched activations and cut attention edges -> logits of the patched runs.

A *cell* is data: what is changed together in one run (sites: component, layer, positions, heads; or cut edges), and the
run that patched activations come from. :func:`patched_logits` runs any number of them; every intervention of the method
is composed of that. What makes it fast:

- **Restart.** A cell whose first site is in layer l starts there, from the run's own hidden states; nnsight skips the
  layers below. Where only parts of layer l are patched (heads, attention, MLP), layer l itself runs at the patched
  positions alone, without its attention: nothing else of it changes. From layer l + 1 on it is as with any other cell.
- **Few cells.** Where few enter at a layer, those of the next layers enter there too, and run it as their run does.
- **Clean prefix.** Positions before a cell's first position are the run's own, so its tokens are those from there on;
  they read the prefix from the run's key-value cache.
- **Packing.** The token sequences of many cells lie behind one another in one row of the batch, each with its own
  positions, each seeing the clean prefix and itself only. No cell pays for the length of another; rows are short,
  because attention costs tokens times the length of the row.
- **The last layer** runs its output projection and its MLP for the tokens that predict only.

Every patch goes through nnsight. Knows no program, no pair, no map and no file.
Activation patching as in Vig et al. 2020; knockout of attention edges as in Geva et al. 2023 (arXiv 2304.14767).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from debug.models import LoadedModel
from debug.read_back import ReadBack, Seen

logger = logging.getLogger(__name__)

ROW_TOKENS = 64  # attention costs tokens x row length, so rows of packed cells are short
CHECK_STRIDE = 4  # a pair is checked at every so many layers, the next pair at the layers behind them
FORWARD_TOKENS = 30  # a layer of a forward pass costs what so many tokens of it cost, however few it has
MOST_LOGITS = 2**26  # numbers that a batch of cells may have as logits
FAR = 2  # so many times the tolerance are the two programs' logits apart, or a check that compares them proves nothing


class SelfCheckError(RuntimeError):
    """The engine's own checks failed: the numbers of this run would not mean what they say."""


# --- Components: what can be read and written inside a layer, in the order in which a layer runs ----------------------


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
class Cell:
    """One intervention: what is changed together in a run. ``run`` and ``source`` are rows of :class:`Runs`."""

    run: int
    sites: tuple[Site | Cut, ...]
    source: int | None = None
    """Where patched activations come from; None where edges are only cut."""

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
        return not any(isinstance(site, Cut) or site.component == "residual_stream" for site in first)


# --- The primitive ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Unpatched runs of programs of one length, with what patches need from them.

    Memory: (2 x layers x key-value width + recorded components x layers x their width) numbers per token.
    """

    token_ids: Int[Tensor, "run token"]
    logits: Float[Tensor, "run vocabulary"]
    activations: dict[str, list[Float[Tensor, "source token width"]]]
    """component -> layer -> activations; for the residual stream one layer more. The first rows are the runs'; those
    behind them (:meth:`with_sources`) are of no run, and can only be patched from."""
    keys_values: list[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        return self.token_ids.shape[0]

    @property
    def length(self) -> int:
        return self.token_ids.shape[1]

    def with_sources(self, activations: dict[str, list[Float[Tensor, "source token width"]]]) -> Runs:
        """The same runs, with activations to patch from that are no run's: a mean, zeros, those of a stored run."""
        joined = {
            name: [torch.cat([own, more]) for own, more in zip(layers, activations[name], strict=True)]
            for name, layers in self.activations.items()
        }
        return replace(self, activations=joined)


@torch.no_grad()
def record(model: LoadedModel, token_ids: Int[Tensor, "run token"], components: Iterable[str]) -> Runs:
    """Run programs unpatched, in one forward pass, and keep what patching ``components`` needs, at every layer."""
    needed = {"residual_stream", *components}
    if needed > {"residual_stream"}:
        needed.add("attention")  # what a layer goes on with, where a part of it is patched
    wanted = [name for name in COMPONENTS if name in needed]
    token_ids = token_ids.to(model.device)
    cache: Any = DynamicCache()
    with model.trace(token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1):
        kept: Any = {name: [] for name in wanted}
        for layer in range(model.n_layers):
            for name in wanted:
                kept[name].append(COMPONENTS[name].read(model, layer))
        kept["residual_stream"].append(model.final_norm.input)
        kept.save()
        logits = model.nnsight.output.logits.save()
    kept = {name: [value.view(*token_ids.shape, -1) for value in values] for name, values in kept.items()}
    return Runs(token_ids, logits[:, -1].float(), kept, [(keys, values) for keys, values, *_ in cache])


def gradients(
    model: LoadedModel, token_ids: Int[Tensor, "run token"], answers: Int[Tensor, "run"], component: str
) -> list[Float[Tensor, "run token width"]]:
    """Slopes of the logit of each run's answer at the last position, by each activation of a component, layer by layer.

    One forward and one backward. Memory: all intermediates of the forward pass, which the backward reads.
    """
    token_ids, answers = token_ids.to(model.device), answers.to(model.device)
    with torch.enable_grad(), model.trace(token_ids, use_cache=False, logits_to_keep=1):
        kept: Any = []
        for layer in range(model.n_layers):
            if layer == 0:
                model.layer(0).input.requires_grad_(True)  # weights of some models need no gradients
            kept.append(COMPONENTS[component].read(model, layer))
        if component == "residual_stream":
            kept.append(model.final_norm.input)
        kept.save()
        logits = model.nnsight.output.logits.save()
    effect = logits[torch.arange(len(answers)), -1, answers].float().sum()
    return [slope.view(*token_ids.shape, -1) for slope in torch.autograd.grad(effect, list(kept))]


@torch.no_grad()
def patched_logits(
    model: LoadedModel,
    runs: Runs,
    cells: Sequence[Cell],
    batch_tokens: int | None = None,
    read_back: ReadBack | None = None,
) -> Iterator[tuple[list[int], Float[Tensor, "cell vocabulary"]]]:
    """Run every cell's run with its sites replaced by its source's activations; the logits that predict the answer.

    Cells come back in batches, in an order of the engine's own: (indices into ``cells``, their logits at the last
    position). A batch holds at most ``batch_tokens`` tokens; it is halved when memory runs out. ``read_back`` sees some
    cells of every batch.

    Raises:
        SelfCheckError: logits are not finite.
    """
    batch_tokens = batch_tokens or default_batch_tokens(model)
    for (layer, parts_first), indices in _together(model, cells, runs.length, batch_tokens):
        rows = _pack(cells, indices, runs.length)
        while rows:
            batch = _next_batch(rows, cells, runs, batch_tokens)
            try:
                logits = _run_batch(model, runs, _Packed.of(batch, cells, runs), layer, parts_first, read_back)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if len(batch) == 1 or "memory" not in str(error):
                    raise
                batch_tokens = sum(_row_length(row, cells, runs.length) for row in batch) // 2
                logger.warning("out of memory: going on with batches of %d tokens", batch_tokens)
                continue
            rows = rows[len(batch) :]
            if not logits.isfinite().all():
                raise SelfCheckError(
                    f"patched logits of model {model.id!r} ({model.dtype}) at layer {layer} are not finite"
                )
            yield [index for row in batch for index in row], logits


def _together(
    model: LoadedModel, cells: Sequence[Cell], length: int, batch_tokens: int
) -> list[tuple[tuple[int, bool], list[int]]]:
    """The layer at which cells enter, whether only parts of it run, and the numbers of these cells.

    Where few cells enter at a layer, those of the next layers enter there too: they run some layers more, as the run
    itself does, for the sake of fewer and larger forward passes.
    """
    by_layer: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        by_layer[cell.patches_parts_first, cell.layer].append(index)
    groups: list[tuple[tuple[int, bool], list[int], int]] = []  # entry, cells, their tokens
    for (parts_first, layer), indices in sorted(by_layer.items()):
        tokens = sum(length - cells[index].start for index in indices)
        if groups:
            (entry, parts), group, in_group = groups[-1]
            wasted, saved = (layer - entry) * tokens, (model.n_layers - layer) * FORWARD_TOKENS
            if parts == parts_first and in_group + tokens <= batch_tokens and wasted < saved:
                groups[-1] = (entry, parts), group + indices, in_group + tokens
                continue
        groups.append(((layer, parts_first), indices, tokens))
    return [(entry, group) for entry, group, _ in groups]


@torch.no_grad()
def unembedded(model: LoadedModel, hidden: Float[Tensor, "row width"]) -> Float[Tensor, "row vocabulary"]:
    """Logits of hidden states that the final norm reads: all layers are skipped."""
    token_ids = torch.zeros(1, len(hidden), dtype=torch.long, device=model.device)
    with model.trace(token_ids, position_ids=token_ids):
        for layer in range(model.n_layers):
            model.layer(layer).skip(hidden[None])
        logits = model.nnsight.output.logits.save()
    return logits[0].float()


def default_batch_tokens(model: LoadedModel) -> int:
    """Tokens of one forward pass: as many as keep the processor busy, in no more than a quarter of the free memory."""
    cuda = model.device.startswith("cuda")
    free = torch.cuda.mem_get_info(model.device)[0] if cuda else psutil.virtual_memory().available
    width = model.config.hidden_size
    # What is alive at once: some wide intermediates, and the keys and values of all layers with their prefix.
    numbers = 48 * width + 6 * model.n_layers * width
    affordable = free // 4 // (numbers * (4 if model.dtype == "float32" else 2))
    return max(ROW_TOKENS, min((2**24 if cuda else 2**20) // width, affordable))


def _pack(cells: Sequence[Cell], indices: Iterable[int], length: int) -> list[list[int]]:
    """Cells into rows; a row belongs to one run. The longest rows first."""
    by_run: dict[int, list[int]] = defaultdict(list)
    for index in sorted(indices, key=lambda index: cells[index].start):
        by_run[cells[index].run].append(index)
    rows = []
    for chosen in by_run.values():
        tokens = [length - cells[index].start for index in chosen]
        most = max(ROW_TOKENS, tokens[0])
        # Rows of like length have no padding: as many as are needed, each as short as that allows, give or take some.
        even = max(tokens[0], -(-sum(tokens) // -(-sum(tokens) // most)))
        tries = [_first_fit(tokens, capacity) for capacity in sorted({even, even + 1, even + 3, even + 6, most})]
        best = min(tries, key=lambda packed: len(packed) * max(sum(tokens[i] for i in row) for row in packed))
        rows += [[chosen[i] for i in row] for row in best]
    return sorted(rows, key=lambda row: -_row_length(row, cells, length))


def _first_fit(tokens: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of things, given longest first, in rows of no more than ``capacity``."""
    free: list[int] = []  # of each row
    rows: list[list[int]] = []
    first_open = 0
    for number, size in enumerate(tokens):
        row = next((row for row in range(first_open, len(rows)) if free[row] >= size), len(rows))
        if row == len(rows):
            free.append(capacity)
            rows.append([])
        free[row] -= size
        rows[row].append(number)
        while first_open < len(rows) and free[first_open] == 0:
            first_open += 1
    return rows


def _row_length(row: Sequence[int], cells: Sequence[Cell], length: int) -> int:
    return sum(length - cells[index].start for index in row)


def _next_batch(rows: list[list[int]], cells: Sequence[Cell], runs: Runs, batch_tokens: int) -> list[list[int]]:
    """The first rows, as many as a batch may have tokens, and cells whose logits are kept."""
    most = max(1, batch_tokens // _row_length(rows[0], cells, runs.length))
    logits = np.cumsum([len(row) for row in rows[:most]]) * runs.logits.shape[1]
    return rows[: max(1, int((logits <= MOST_LOGITS).sum()))]


@dataclass(frozen=True)
class _Packed:
    """Cells packed into the rows of a batch: where the tokens of each lie, and what they may see."""

    cells: list[Cell]
    offsets: list[tuple[int, int]]
    """Of each cell: its row, and the token of the row at which it begins."""
    length: int
    positions: Int[np.ndarray, "row token"]
    starts: Int[np.ndarray, "row token"]
    segments: Int[np.ndarray, "row token"]
    """Which cell a token belongs to; -1 is padding, which sees padding only."""
    runs: list[int]
    """Of each row: the run whose cells it has."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], cells: Sequence[Cell], runs: Runs) -> _Packed:
        shape = (len(rows), max(_row_length(row, cells, runs.length) for row in rows))
        positions, starts = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        segments = np.full(shape, -1)
        offsets = []
        for r, row in enumerate(rows):
            offset = 0
            for index in row:
                start = cells[index].start
                end = offset + runs.length - start
                positions[r, offset:end] = np.arange(start, runs.length)
                starts[r, offset:end] = start
                segments[r, offset:end] = index
                offsets.append((r, offset))
                offset = end
        packed = [cells[index] for row in rows for index in row]
        return cls(packed, offsets, runs.length, positions, starts, segments, [cells[row[0]].run for row in rows])

    def token(self, cell: int, position: int) -> tuple[int, int]:
        """Row and token at which a cell has a position of its run."""
        row, offset = self.offsets[cell]
        return row, offset + position - self.cells[cell].start

    @property
    def shape(self) -> tuple[int, int]:
        return self.positions.shape  # type: ignore[return-value]

    @property
    def prefix(self) -> int:
        """Positions of the clean prefix that some row reads."""
        return int(self.starts.max())

    def mask(self, model: LoadedModel, device: torch.device) -> Any:
        own = (self.segments[:, :, None] == self.segments[:, None, :]) & (
            self.positions[:, None, :] <= self.positions[:, :, None]
        )
        prefix = np.arange(self.prefix)
        allowed = np.concatenate([prefix < self.starts[:, :, None], own], axis=2)
        key_positions = np.concatenate([np.broadcast_to(prefix, (len(self.runs), len(prefix))), self.positions], axis=1)
        distance = self.positions[:, :, None] - key_positions[:, None, :]
        return model.attention_mask(torch.from_numpy(allowed).to(device), torch.from_numpy(distance).to(device))


class _Hit(NamedTuple):
    """One token that a site writes to: where it lies in a batch, and whose activation it gets."""

    row: int
    token: int
    source: int
    position: int
    heads: tuple[int, ...] | None


def _overwrite(model: LoadedModel, runs: Runs, component: str, layer: int, value: Tensor, hits: list[_Hit]) -> None:
    """Write the sources' activations into ``value`` [row, token, width], in place."""
    row, token, source, position, heads = (list(column) for column in zip(*hits, strict=True))
    stored = runs.activations[component][layer]
    if not COMPONENTS[component].per_head:
        value[row, token] = stored[source, position].to(value.dtype)
        return
    every = tuple(range(model.n_heads))
    chosen = [(hit, head) for hit, of_hit in enumerate(heads) for head in (every if of_hit is None else of_hit)]
    hit, head = (list(column) for column in zip(*chosen, strict=True))
    slices = stored[source, position].to(value.dtype).unflatten(-1, (model.n_heads, -1))
    at = [[numbers[i] for i in hit] for numbers in (row, token)]
    value.unflatten(-1, (model.n_heads, -1))[*at, head] = slices[hit, head]


def _run_batch(
    model: LoadedModel, runs: Runs, packed: _Packed, layer: int, parts_first: bool, read_back: ReadBack | None = None
) -> Float[Tensor, "cell vocabulary"]:
    """One forward pass over packed cells whose first site is in ``layer``; see this file's docstring for its parts."""
    device, shape, n_layers = runs.token_ids.device, packed.shape, model.n_layers
    hits: dict[tuple[str, int], list[_Hit]] = defaultdict(list)
    cuts: dict[int, list[tuple[int, Cut]]] = defaultdict(list)
    tail = _Tail() if parts_first else None
    for index, cell in enumerate(packed.cells):
        for site in cell.sites:
            if isinstance(site, Cut):
                cuts[site.layer].append((index, site))
            elif cell.source is None:
                raise ValueError(f"{site} is patched, but its cell has no source")
            elif tail is not None and site.layer == layer:
                tail.add(packed, index, site)
            else:
                hits[site.component, site.layer].extend(
                    _Hit(*packed.token(index, p), cell.source, p, site.heads) for p in site.positions
                )
    positions = torch.from_numpy(packed.positions).to(device)
    row_runs = torch.tensor(packed.runs, device=device)
    lasts = tuple(torch.tensor([packed.token(i, packed.length - 1) for i in range(len(packed.cells))], device=device).T)
    prefix, cache = packed.prefix, None
    if prefix:
        cache = DynamicCache(
            [(keys[row_runs, :, :prefix], values[row_runs, :, :prefix]) for keys, values in runs.keys_values]
        )
    entry = layer + parts_first  # the first layer that runs at all tokens, going into which they are:
    hidden = runs.activations["residual_stream"][entry][row_runs[:, None], positions]
    seen = Seen(packed, entry, tail, {} if read_back is None else read_back.sample(packed))
    if ("residual_stream", entry) in hits and not parts_first:
        _overwrite(model, runs, "residual_stream", entry, hidden, hits.pop(("residual_stream", entry)))

    def patch(component: str, at: int) -> None:
        if (component, at) in hits:
            original = COMPONENTS[component].read(model, at)
            seen.keep(component, at, original)
            value = original.clone()  # OPT's MLP sees the batch flattened
            _overwrite(model, runs, component, at, value.view(*shape, -1), hits[component, at])
            COMPONENTS[component].write(model, at, value)

    def for_lasts_only(module: Any) -> None:
        """Run a module of the last layer for the tokens that predict, and leave zeros elsewhere: nobody reads them."""
        value = module.input
        module.input = value.view(*shape, -1)[lasts][None]
        output = module.output
        full = output.new_zeros(*shape, output.shape[-1])
        full[lasts] = output[0]
        module.output = full.view(*value.shape[:-1], -1)

    # Before the trace: modules that are called inside one count as the model's own calls.
    before = tail.hidden(runs, layer) if tail is not None else hidden
    with seen.projection(model, layer):
        attention = tail.attention(model, runs, layer) if tail is not None else None
    with model.trace(
        runs.token_ids[row_runs[:, None], positions],
        attention_mask=packed.mask(model, device),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    ) as tracer:
        if seen.claims:
            seen.cache = tracer.cache(seen.modules(model), device=None, include_inputs=True)
        for below in range(layer):
            model.layer(below).skip(before)
        if layer == 0:
            model.layer(0).input = before
        if tail is not None:
            model.attention(layer).skip((attention, None))
            if tail.hits["mlp"]:
                original = model.mlp(layer).output
                seen.keep("mlp", layer, original)
                value = original.clone()
                _overwrite(model, runs, "mlp", layer, value.view(1, len(tail), -1), tail.hits["mlp"])
                model.mlp(layer).output = value
            of_tail = model.layer(layer).output
            seen.keep("layer", layer, of_tail)
            hidden[tail.rows, tail.tokens] = of_tail[0]
            if ("residual_stream", entry) in hits:
                _overwrite(model, runs, "residual_stream", entry, hidden, hits.pop(("residual_stream", entry)))
            model.layer(layer).output = hidden
        for at in range(entry, n_layers):
            if at > entry:
                patch("residual_stream", at)
            if at in cuts:
                arguments, keywords = model.attention(at).inputs
                seen.keep("mask", at, keywords["attention_mask"])
                mask = _without_edges(model, packed, keywords["attention_mask"], cuts[at], prefix)
                model.attention(at).inputs = (arguments, keywords | {"attention_mask": mask})
            patch("attention_heads", at)
            if at == n_layers - 1:
                for_lasts_only(model.output_projection(at))
            patch("attention", at)
            if at == n_layers - 1:
                for_lasts_only(model.mlp(at))
            patch("mlp", at)
        if ("residual_stream", n_layers) in hits:
            original = model.final_norm.input
            seen.keep("residual_stream", n_layers, original)
            value = original.clone()
            _overwrite(model, runs, "residual_stream", n_layers, value, hits["residual_stream", n_layers])
            model.final_norm.input = value
        model.unembedding.input = model.unembedding.input[lasts][None]  # only the tokens that predict
        logits = model.nnsight.output.logits.save()
    if read_back is not None:
        read_back.add(model, runs, seen)
    return logits[0].float()


class _Tail:
    """The patched positions of layer ``layer``, where only parts of it are patched: they alone run there."""

    def __init__(self) -> None:
        self._index: dict[tuple[int, int], int] = {}  # (row, token) of the batch -> which of the tail's tokens
        self.runs: list[int] = []
        self.positions: list[int] = []
        self.hits: dict[str, list[_Hit]] = {name: [] for name in COMPONENTS}

    def __len__(self) -> int:
        return len(self._index)

    def add(self, packed: _Packed, index: int, site: Site) -> None:
        cell = packed.cells[index]
        assert cell.source is not None
        for position in site.positions:
            at = packed.token(index, position)
            if at not in self._index:
                self._index[at] = len(self._index)
                self.runs.append(cell.run)
                self.positions.append(position)
            self.hits[site.component].append(_Hit(0, self._index[at], cell.source, position, site.heads))

    @property
    def rows(self) -> list[int]:
        return [row for row, _ in self._index]

    @property
    def tokens(self) -> list[int]:
        return [token for _, token in self._index]

    def hidden(self, runs: Runs, layer: int) -> Float[Tensor, "1 token width"]:
        return runs.activations["residual_stream"][layer][self.runs, self.positions][None]

    def attention(self, model: LoadedModel, runs: Runs, layer: int) -> Float[Tensor, "1 token width"]:
        """The attention block's output, which is known without running it: heads only need to be projected."""
        output = runs.activations["attention"][layer][self.runs, self.positions][None]
        if hits := self.hits["attention_heads"]:
            heads = runs.activations["attention_heads"][layer][self.runs, self.positions][None]
            before = model.project_heads(layer, heads)
            _overwrite(model, runs, "attention_heads", layer, heads, hits)
            output = output + (model.project_heads(layer, heads) - before)
        if hits := self.hits["attention"]:
            _overwrite(model, runs, "attention", layer, output, hits)
        return output


def _without_edges(
    model: LoadedModel, packed: _Packed, mask: Tensor, cuts: list[tuple[int, Cut]], prefix: int
) -> Float[Tensor, "row head query key"]:
    """A layer's mask less the edges that are cut in it."""
    lowest = torch.finfo(mask.dtype).min
    mask = mask.expand(-1, model.n_heads, -1, -1).clone()
    for index, cut in cuts:
        if not cut.edges:
            continue
        cell = packed.cells[index]
        row, offset = packed.offsets[index]
        query = torch.tensor([offset + q - cell.start for q, _ in cut.edges], device=mask.device)
        key = torch.tensor(
            [prefix + offset + k - cell.start if k >= cell.start else k for _, k in cut.edges], device=mask.device
        )
        chosen = range(model.n_heads) if cut.heads is None else cut.heads
        heads = torch.tensor(chosen, dtype=torch.long, device=mask.device)
        mask[row, heads[:, None], query, key] = lowest
        if (mask[row, heads[:, None], query] == lowest).all(-1).any():
            raise ValueError(f"cutting these edges of layer {cut.layer} leaves a query without any key: {cut}")
    return mask


# --- Self-checks: a patch that silently does nothing is the classic bug of this field ---------------------------------


@dataclass(frozen=True)
class SelfChecks:
    """What the engine measured of itself, as largest differences of a logit, through the code path of the component.

    None is what was not measured: by a part of a run, or by a run that was logged before there was such a check.
    """

    identity_max_abs: float
    """A run patched with its own activations, layer by layer, against the same run unpatched."""
    full_patch_max_abs: float
    """A run patched with so much that nothing of its own is left, against the counterfactual's."""
    full_patch_without: float
    """The same comparison with the patch left out: it must exceed the tolerance by far, or the second check proves
    nothing."""
    tolerance: float
    """What rounding may do to a logit of this model; see :func:`debug.known_answers.tolerance`."""
    localized_max_abs: float | None = None
    """Patches of single places against the plain model's, put together by hand; see :mod:`debug.known_answers`."""
    localized_without: float | None = None
    """The same comparison with the patches left out: the largest effect of one of them. Where it is within the
    tolerance (a head alone may do so little), only the read-back tells one place from another."""
    read_back_max_abs: float | None = None
    """What a sample of cells wrote, and all else that they read there, against what they should: activations, not
    logits, and the same to the last bit; see :mod:`debug.read_back`."""

    def __or__(self, other: SelfChecks) -> SelfChecks:
        """The worst of both; what is not a number stays so."""

        def worst(name: str) -> float | None:
            measured = [value for each in (self, other) if (value := getattr(each, name)) is not None]
            return float(np.max(measured)) if measured else None  # NaN is the worst

        return SelfChecks(**{each.name: worst(each.name) for each in fields(self)})  # type: ignore[arg-type]

    def metrics(self) -> dict[str, float]:
        measured = {f"check_{each.name}": getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in measured.items() if value is not None}

    def __str__(self) -> str:
        parts = [f"identity {self.identity_max_abs:.1e}", f"full patch {self.full_patch_max_abs:.1e}"]
        parts[-1] += f" (without it {self.full_patch_without:.3g})"
        if self.localized_max_abs is not None:
            parts.append(f"single places {self.localized_max_abs:.1e} (without them {self.localized_without:.3g})")
        parts.append(f"tolerance {self.tolerance:.1e}")
        parts += [] if self.read_back_max_abs is None else [f"read back: {self.read_back_max_abs:g} off"]
        return ", ".join(parts)

    def require(self) -> None:
        """Raises SelfCheckError where a check fails."""
        localized, read_back = (value or 0.0 for value in (self.localized_max_abs, self.read_back_max_abs))
        if not (self.identity_max_abs <= self.tolerance and self.full_patch_max_abs <= self.tolerance):
            raise SelfCheckError(
                f"patching a run with its own activations changed a logit by {self.identity_max_abs:.3g}, and a full "
                f"patch is {self.full_patch_max_abs:.3g} away from the counterfactual's logits; {self.tolerance:.3g} "
                "is what rounding may do. The numbers of this run would not mean what they say"
            )
        if not read_back == 0:
            raise SelfCheckError(
                "what the model read where cells say that they write is not what they should write, or something else "
                f"there changed (by {read_back:.3g}): another layer, position, head or run was patched. The numbers of "
                "this run would not mean what they say"
            )
        if not localized <= self.tolerance:
            raise SelfCheckError(
                f"patches of single places are {localized:.3g} away from what the plain model answers with the same "
                f"activations put there by hand; {self.tolerance:.3g} is what rounding may do. The numbers of this run "
                "would not mean what they say"
            )
        if not self.full_patch_without > FAR * self.tolerance:
            raise SelfCheckError(
                f"with no patch the logits are {self.full_patch_without:.3g} away from the counterfactual's, not far "
                f"from the tolerance of {self.tolerance:.3g}: a patch that does nothing would pass for one that works"
            )


@dataclass(frozen=True)
class Check:
    """A cell whose logits must be those of a run, of another cell, or these; and its field of SelfChecks."""

    field: str
    cell: Cell
    expected: int | Cell | Float[Tensor, "vocabulary"]


def checks_of(
    model: LoadedModel, runs: Runs, component: str, pairs: Sequence[tuple[int, int]], changed: Sequence[tuple[int, ...]]
) -> list[Check]:
    """The cells that check the engine on these runs: at every CHECK_STRIDE-th layer, the first and the last.

    A full patch of the residual stream is all positions from the first difference on (before it both runs are the same)
    at one layer. One of the other components is, at the last token, whatever layers l and up add to the residual stream
    there: from layer 0 on that gives the counterfactual's logits, from a later one those of the run's own stream going
    into l plus what the counterfactual's gains from there on. The first pair is patched fully at all these layers, the
    others at one each. For ``attention_knockout`` identity cuts no edge, and with all edges to the changed tokens cut
    in all layers the two programs must give the same logits.

    Args:
        pairs: rows of a program's run and of its counterfactual's.
        changed: for each pair the positions of the tokens that differ.
    """
    layers, last = range(model.n_layers), runs.length - 1
    checks = []
    for number, ((clean, counterfactual), differing) in enumerate(zip(pairs, changed, strict=True)):
        first = differing[0]
        if component == "attention_knockout":
            later = [p for p in range(first + 1, last + 1) if p not in differing]  # one between them sees them too
            edges = tuple((query, key) for query, key in product(later, differing) if key < query)
            blind = [Cell(run, tuple(Cut(layer, edges) for layer in layers)) for run in (clean, counterfactual)]
            no_edge = tuple(Cut(layer, ((last, last),), heads=()) for layer in layers)
            checks += [
                Check("identity_max_abs", Cell(clean, no_edge), clean),
                Check("full_patch_max_abs", blind[0], blind[1]),
                Check("full_patch_without", Cell(clean, no_edge), counterfactual),
            ]
            continue
        rows = range(model.n_layers + (component == "residual_stream"))
        some = sorted({*rows[number % CHECK_STRIDE :: CHECK_STRIDE], rows[0], rows[-1]})
        chosen = some if number == 0 else [number % len(rows)]
        for layer in some:
            position = first + (number + 7 * layer) % (runs.length - first)
            heads = (layer % model.n_heads,) if COMPONENTS[component].per_head else None
            own = Cell(clean, (Site(component, layer, (position,), heads),), source=clean)
            checks.append(Check("identity_max_abs", own, clean))
        if component == "residual_stream":
            everything = tuple(range(first, runs.length))
            full = [Cell(clean, (Site(component, layer, everything),), counterfactual) for layer in chosen]
            expected: Sequence[int | Tensor] = [counterfactual] * len(full)
        else:
            stream = torch.stack([at[[clean, counterfactual], last] for at in runs.activations["residual_stream"]])
            dtype, stream = stream.dtype, stream.float()
            full, gains = [], []
            for layer in chosen:
                parts = product(range(layer, model.n_layers), COMPONENTS[component].full_patch)
                sites = tuple(Site(part, at, (last,)) for at, part in parts)
                full.append(Cell(clean, sites, counterfactual))
                gains.append((stream[layer, 0] + (stream[-1, 1] - stream[layer, 1])).to(dtype))
            expected = list(unembedded(model, torch.stack(gains)))
        checks += [Check("full_patch_max_abs", *both) for both in zip(full, expected, strict=True)]
        checks.append(Check("full_patch_without", replace(full[0], source=clean), expected[0]))
    return checks


def single_places(checks: Sequence[Check], cells: Mapping[int, Cell]) -> set[int]:
    """Numbers of the cells that patch single places: each of them is read back, not a sample."""
    places = {check.cell for check in checks if check.field == "localized_max_abs"}
    return {number for number, cell in cells.items() if cell in places}


def measured(
    runs: Runs,
    checks: Sequence[Check],
    logits: dict[Cell, Float[Tensor, "vocabulary"]],
    tolerance: float,
    read_back: ReadBack | None = None,
) -> SelfChecks:
    """What the checks say, given the logits of their cells."""
    worst: dict[str, float] = dict.fromkeys(("identity_max_abs", "full_patch_max_abs", "full_patch_without"), 0.0)
    for check in checks:
        expected = check.expected
        if not isinstance(expected, Tensor):
            expected = runs.logits[expected] if isinstance(expected, int) else logits[expected]
        found = {check.field: logits[check.cell]}
        if check.field == "localized_max_abs":
            found["localized_without"] = runs.logits[check.cell.run]
        for field, of_field in found.items():
            distance = (of_field - expected).abs().max().item()
            worst[field] = float(np.maximum(worst.get(field, 0.0), distance))
    if read_back is not None and read_back.cells:
        worst["read_back_max_abs"] = read_back.max_abs
    return SelfChecks(**worst, tolerance=tolerance)


def self_checks(model: LoadedModel, runs: Runs, checks: Sequence[Check], tolerance: float) -> SelfChecks:
    """Run the cells of the checks and measure them; ``tolerance``: see :func:`debug.known_answers.tolerance`."""
    cells = list(dict.fromkeys(cell for c in checks for cell in (c.cell, c.expected) if isinstance(cell, Cell)))
    logits, read_back = {}, ReadBack(cells.__getitem__, single_places(checks, dict(enumerate(cells))))
    for indices, batch in patched_logits(model, runs, cells, None, read_back):
        logits |= {cells[index]: row for index, row in zip(indices, batch, strict=True)}
    return measured(runs, checks, logits, tolerance, read_back)
