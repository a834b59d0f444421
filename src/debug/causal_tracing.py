"""The engine: activations of one run moved into another, cell by cell, and what the answer becomes.

One primitive, :func:`patched_logits`, from which every intervention is composed. A *cell* is data: the sites
(component, layer, positions, perhaps a head) that are patched together in one pair. What makes it fast:

- **Restart.** A cell whose first site is in layer l starts there, from the clean run's hidden states; nnsight skips the
  layers below.
- **Clean prefix.** Positions before a cell's first position are the clean run's, so its tokens are those from there on;
  they read the prefix from the clean run's key-value cache.
- **Packing.** The token sequences of many cells lie behind one another in one row of the batch, each with its own
  positions, each seeing the clean prefix and itself only. No cell pays for the length of another.

Every patch goes through nnsight. Knows no MLflow, no Streamlit, no file.
The method is that of Wu, Geiger and Millière (ICML 2025, arXiv 2505.20896); activation patching as in Vig et al. 2020.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import DynamicCache

from debug import models
from debug.causal_map import CausalMap, MeanCausalMap, mean_over_pairs
from debug.counterfactual import as_pair
from debug.models import LoadedModel, VocabularyError
from debug.programs import ProgramError, ProgramPair
from debug.prompts import get_prompt
from debug.token_analyzer import CODE, PairError, TokenizedPair, analyze_pair

logger = logging.getLogger(__name__)

ROW_TOKENS = 512  # attention costs tokens x row length, so rows of packed cells are kept short


class SelfCheckError(RuntimeError):
    """The engine's own checks failed: the numbers of this run would not mean what they say."""


# --- Components: what can be read and written inside a layer, in the order in which a layer runs ----------------------


class Component(NamedTuple):
    """How nnsight reads and writes a component of a layer inside a trace."""

    read: Callable[[LoadedModel, int], Tensor]
    write: Callable[[LoadedModel, int, Tensor], None]
    full_patch: tuple[str, ...]
    """Components that, patched together in all layers, leave nothing of the original; see :func:`self_checks`."""
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
"""Every intervention_type of the patching engine, in the order in which a layer runs them; the residual stream is
first, and has one row more: what the final norm reads."""


@dataclass(frozen=True)
class Site:
    """A component of one layer at some positions; of one head, or of all."""

    component: str
    layer: int
    positions: tuple[int, ...]
    head: int | None = None


@dataclass(frozen=True)
class Cut:
    """Attention edges of a layer, removed before the softmax: from every query to every key, of one head or of all."""

    layer: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    head: int | None = None

    @property
    def positions(self) -> tuple[int, ...]:
        """Where something changes: at the queries."""
        return self.queries


@dataclass(frozen=True)
class Cell:
    """One intervention: what is patched or cut together in a pair of the batch (``pair``: its row in :class:`Runs`)."""

    pair: int
    sites: tuple[Site | Cut, ...]

    @property
    def layer(self) -> int:
        return min(site.layer for site in self.sites)

    @property
    def start(self) -> int:
        return min(position for site in self.sites for position in site.positions)


# --- The primitive ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Unpatched runs of a batch of programs of one length, with what patches need from them.

    Memory: (2 x layers x key-value width + recorded components x layers x their width) numbers per token.
    """

    token_ids: Int[Tensor, "pair token"]
    logits: Float[Tensor, "pair vocabulary"]
    activations: dict[str, list[Float[Tensor, "pair token width"]]]
    """component -> layer -> activations; for the residual stream one layer more."""
    keys_values: list[tuple[Tensor, Tensor]]

    @property
    def length(self) -> int:
        return self.token_ids.shape[1]

    def __getitem__(self, pairs: slice | Sequence[int]) -> Runs:
        """The runs of some of the programs."""
        return Runs(
            self.token_ids[pairs],
            self.logits[pairs],
            {name: [layer[pairs] for layer in layers] for name, layers in self.activations.items()},
            [(keys[pairs], values[pairs]) for keys, values in self.keys_values],
        )


@torch.no_grad()
def record(model: LoadedModel, token_ids: Int[Tensor, "pair token"], components: Iterable[str]) -> Runs:
    """Run programs unpatched, in one forward pass, and keep the residual stream and ``components`` at every layer."""
    wanted = [name for name in COMPONENTS if name in {"residual_stream", *components}]
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


@torch.no_grad()
def patched_logits(
    model: LoadedModel, clean: Runs, source: Runs, cells: Sequence[Cell], batch_tokens: int | None = None
) -> Iterator[tuple[list[int], Float[Tensor, "cell vocabulary"]]]:
    """Run ``clean`` with every cell's sites replaced by ``source``'s activations; the logits that predict the answer.

    Cells come back in batches, in an order of the engine's own: (indices into ``cells``, their logits at the last
    position). A batch holds at most ``batch_tokens`` tokens; it is halved when memory runs out.
    """
    batch_tokens = batch_tokens or default_batch_tokens(model)
    by_layer: dict[int, list[int]] = defaultdict(list)
    for index, cell in enumerate(cells):
        by_layer[cell.layer].append(index)
    for layer, indices in sorted(by_layer.items()):
        rows = _pack(cells, indices, clean.length)
        while rows:
            width = _row_length(rows[0], cells, clean.length)
            take = max(1, batch_tokens // width)
            batch, rows = rows[:take], rows[take:]
            try:
                logits = _run_batch(model, clean, source, cells, layer, batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if take == 1 or "memory" not in str(error):
                    raise
                batch_tokens = batch_tokens // 2
                logger.warning("out of memory: going on with batches of %d tokens", batch_tokens)
                rows = batch + rows
                continue
            if not logits.isfinite().all():
                raise SelfCheckError(
                    f"patched logits of model {model.id!r} ({model.dtype}) at layer {layer} are not finite"
                )
            yield [index for row in batch for index in row], logits


def default_batch_tokens(model: LoadedModel) -> int:
    """Tokens of one forward pass: as many as keep the processor busy, and no more memory than a gigabyte or so."""
    return max(ROW_TOKENS, (2**24 if model.device.startswith("cuda") else 2**20) // model.config.hidden_size)


def _pack(cells: Sequence[Cell], indices: Iterable[int], length: int) -> list[list[int]]:
    """Cells into rows of at most ROW_TOKENS tokens, first fit, the longest first; a row belongs to one pair."""
    open_rows: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for index in sorted(indices, key=lambda index: cells[index].start):
        tokens = length - cells[index].start
        rows = open_rows[cells[index].pair]
        for number, (used, row) in enumerate(rows):
            if used + tokens <= ROW_TOKENS:
                row.append(index)
                rows[number] = (used + tokens, row)
                break
        else:
            rows.append((tokens, [index]))
    every = sorted((row for rows in open_rows.values() for row in rows), key=lambda item: -item[0])
    return [row for _, row in every]


def _row_length(row: Sequence[int], cells: Sequence[Cell], length: int) -> int:
    return sum(length - cells[index].start for index in row)


def _run_batch(
    model: LoadedModel, clean: Runs, source: Runs, cells: Sequence[Cell], layer: int, rows: Sequence[Sequence[int]]
) -> Float[Tensor, "cell vocabulary"]:
    """One forward pass from ``layer`` on, over rows of packed cells."""
    device, length = clean.token_ids.device, clean.length
    shape = (len(rows), max(_row_length(row, cells, length) for row in rows))
    positions = np.zeros(shape, dtype=np.int64)
    starts = np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, -1)  # which cell a token belongs to; -1 is padding, which sees padding only
    lasts: list[tuple[int, int]] = []
    writes: dict[tuple[str, int], list[tuple[int, int, int, int, int]]] = defaultdict(list)
    cuts: dict[int, list[tuple[int, int, Cell, Cut]]] = defaultdict(list)
    for r, row in enumerate(rows):
        offset = 0
        for index in row:
            cell = cells[index]
            end = offset + length - cell.start
            positions[r, offset:end] = np.arange(cell.start, length)
            starts[r, offset:end] = cell.start
            segments[r, offset:end] = index
            lasts.append((r, end - 1))
            for site in cell.sites:
                if isinstance(site, Cut):
                    cuts[site.layer].append((r, offset, cell, site))
                    continue
                heads = (
                    range(model.n_heads) if site.head is None and COMPONENTS[site.component].per_head else [site.head]
                )
                writes[site.component, site.layer].extend(
                    (r, offset + p - cell.start, cell.pair, p, head or 0) for p in site.positions for head in heads
                )
            offset = end
    prefix = int(starts.max())
    own = (segments[:, :, None] == segments[:, None, :]) & (positions[:, None, :] <= positions[:, :, None])
    allowed = np.concatenate([np.arange(prefix) < starts[:, :, None], own], axis=2)
    key_positions = np.concatenate([np.broadcast_to(np.arange(prefix), (len(rows), prefix)), positions], axis=1)
    mask = model.attention_mask(
        torch.from_numpy(allowed).to(device),
        torch.from_numpy(positions[:, :, None] - key_positions[:, None, :]).to(device),
    )
    positions = torch.from_numpy(positions).to(device)
    pair = torch.tensor([cells[row[0]].pair for row in rows], device=device)
    token_ids = clean.token_ids[pair[:, None], positions]
    hidden = clean.activations["residual_stream"][layer][pair[:, None], positions]
    last = tuple(torch.tensor(lasts, device=device).T)
    cache = None
    if prefix:
        cache = DynamicCache([(keys[pair, :, :prefix], values[pair, :, :prefix]) for keys, values in clean.keys_values])

    def written(component: str, at: int, value: Tensor) -> Tensor:
        """``value`` with the source's activations at the sites of this component and layer."""
        row, token, from_pair, position, head = zip(*writes[component, at], strict=True)
        values = source.activations[component][at][list(from_pair), list(position)].to(value.dtype)
        tokens = value.clone().view(*shape, -1)  # OPT's MLP sees the batch flattened
        if COMPONENTS[component].per_head:
            values = values.unflatten(-1, (model.n_heads, -1))[range(len(head)), list(head)]
            tokens.unflatten(-1, (model.n_heads, -1))[list(row), list(token), list(head)] = values
        else:
            tokens[list(row), list(token)] = values
        return tokens.view_as(value)

    def without_edges(at: int, mask: Tensor) -> Tensor:
        """The layer's mask less the edges that are cut in it."""
        lowest = torch.finfo(mask.dtype).min
        mask = mask.expand(-1, model.n_heads, -1, -1).clone()
        for row, offset, cell, cut in cuts[at]:
            queries = torch.tensor([offset + p - cell.start for p in cut.queries], device=device)
            keys = [prefix + offset + p - cell.start if p >= cell.start else p for p in cut.keys]
            heads = slice(None) if cut.head is None else slice(cut.head, cut.head + 1)
            mask[row, heads, queries[:, None], torch.tensor(keys, device=device)] = lowest
            if (mask[row, heads, queries] == lowest).all(-1).any():
                raise ValueError(f"cutting these edges of layer {at} leaves a query without any key: {cut}")
        return mask

    def patch(component: str, at: int) -> None:
        if (component, at) in writes:
            COMPONENTS[component].write(model, at, written(component, at, COMPONENTS[component].read(model, at)))

    if ("residual_stream", layer) in writes:
        hidden = written("residual_stream", layer, hidden)
    with model.trace(
        token_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=cache is not None
    ):
        for below in range(layer):
            model.layer(below).skip(hidden)
        if layer == 0:
            model.layer(0).input = hidden
        for at in range(layer, model.n_layers):
            if at > layer:
                patch("residual_stream", at)
            if at in cuts:
                arguments, keywords = model.attention(at).inputs
                keywords = keywords | {"attention_mask": without_edges(at, keywords["attention_mask"])}
                model.attention(at).inputs = (arguments, keywords)
            for component in [name for name in COMPONENTS if name != "residual_stream"]:
                patch(component, at)
        if ("residual_stream", model.n_layers) in writes and layer < model.n_layers:
            model.final_norm.input = written("residual_stream", model.n_layers, model.final_norm.input)
        model.unembedding.input = model.unembedding.input[last][None]  # only the tokens that predict
        logits = model.nnsight.output.logits.save()
    return logits[0].float()


# --- Self-checks: a patch that silently does nothing is the classic bug of this field ---------------------------------


@dataclass(frozen=True)
class SelfChecks:
    """What the engine measured of itself, as largest differences of a logit, through the code path of the component."""

    identity_max_abs: float
    """A run patched with its own activations, at every layer, against the same run unpatched."""
    full_patch_max_abs: float
    """A run patched with so much that nothing of its own is left, against the counterfactual's."""
    full_patch_without: float
    """The same comparison with the patch left out: it must exceed the tolerance, or the second check proves nothing."""
    tolerance: float

    def __or__(self, other: SelfChecks) -> SelfChecks:
        """The worst of both; what is not a number stays so."""
        worst = {
            name: float(np.maximum(getattr(self, name), getattr(other, name)))  # NaN is the worst
            for name in ("identity_max_abs", "full_patch_max_abs", "full_patch_without")
        }
        return replace(self, **worst)

    def metrics(self) -> dict[str, float]:
        return {
            "check_identity_max_abs": self.identity_max_abs,
            "check_full_patch_max_abs": self.full_patch_max_abs,
            "check_full_patch_without": self.full_patch_without,
        }

    def require(self) -> None:
        """Raises SelfCheckError where a check fails."""
        if not (self.identity_max_abs <= self.tolerance and self.full_patch_max_abs <= self.tolerance):
            raise SelfCheckError(
                f"patching a run with its own activations changed a logit by {self.identity_max_abs:.3g}, and a full "
                f"patch is {self.full_patch_max_abs:.3g} away from the counterfactual's logits; {self.tolerance:g} is "
                "what rounding may do. The numbers of this run would not mean what they say"
            )
        if not self.full_patch_without > self.tolerance:
            raise SelfCheckError(
                f"with no patch the logits are {self.full_patch_without:.3g} away from the counterfactual's, within "
                f"the tolerance of {self.tolerance:g}: a patch that does nothing would pass for one that works"
            )


def self_checks(model: LoadedModel, clean: Runs, source: Runs, component: str, first_difference: int = 0) -> SelfChecks:
    """Measure the engine on these runs. Costs some (layers + 2) cells a program, for the first as many rows of a map.

    A full patch of the residual stream is all positions from the first difference on (before it both runs are the same)
    at one layer; the first program has it at every layer, the others at one each.
    """
    n, length = clean.token_ids.shape
    own, full = [], []
    for pair in range(n):
        for layer in range(len(clean.activations[component])):
            position = first_difference + (pair + 7 * layer) % (length - first_difference)
            head = layer % model.n_heads if COMPONENTS[component].per_head else None
            own.append(Cell(pair, (Site(component, layer, (position,), head),)))
        if component == "residual_stream":
            layers = range(model.n_layers + 1) if pair == 0 else [pair % (model.n_layers + 1)]
            changed = tuple(range(first_difference, length))
            full += [Cell(pair, (Site(component, layer, changed),)) for layer in layers]
        else:
            # At the last token the embedding is the same in both programs, so all that is left is what layers add.
            parts = product(range(model.n_layers), COMPONENTS[component].full_patch)
            full.append(Cell(pair, tuple(Site(part, layer, (length - 1,)) for layer, part in parts)))

    def worst(patched_from: Runs, cells: list[Cell], expected: Tensor) -> float:
        distances = [
            (logits - expected[[cells[index].pair for index in indices]]).abs().max()
            for indices, logits in patched_logits(model, clean, patched_from, cells)
        ]
        return torch.stack(distances).max().item()

    return SelfChecks(
        worst(clean, own, clean.logits),
        worst(source, full, source.logits),
        worst(clean, full, source.logits),
        model.tolerance,
    )


# --- The experiment: pairs -> causal maps -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PairResult:
    """What became of one pair: its causal map, or the reason why it was skipped."""

    index: int
    pair: ProgramPair | None
    skipped: str | None = None
    correct: tuple[bool, bool] | None = None
    """Whether the model's top token answers the original, and the counterfactual; None where it was not asked."""
    answers: tuple[str, str] | None = None
    """Those top tokens, as text."""
    prompt: str | None = None
    causal_map: CausalMap | None = None
    checks: SelfChecks | None = None
    activations: dict[str, np.ndarray] = field(default_factory=dict)
    """``<clean|counterfactual>/<component>`` -> [layer, position, width], and "positions"; see ``save_activations``."""
    interventions: int = 0
    """Cells that were run; those whose effect is zero because nothing differs there are not."""


@dataclass(frozen=True)
class Plan:
    """What to patch in every pair.

    ``layers`` None: all. ``positions`` are the columns of the map: "all" tokens, the "targets", or names of targets and
    numbers of tokens (which are then the targets). ``targets`` are what means over pairs are taken at: None for the
    default ones, "roles" for every role from the root's value on, or names.
    """

    intervention_type: str = "residual_stream"
    layers: Sequence[int] | None = None
    positions: str | Sequence[str | int] = "all"
    targets: str | Sequence[str] | None = None
    prompt_template: str = CODE
    require_correct: bool = False
    exclude_shallow: bool = False
    save_activations: str = "none"
    """Which positions' activations come with each result: "none", "targets" or "all"."""

    def __post_init__(self) -> None:
        if self.intervention_type not in COMPONENTS:
            raise ValueError(
                f"intervention_type is {self.intervention_type!r}; expected one of {', '.join(COMPONENTS)} "
                "('attention_knockout' is not there yet)"
            )
        object.__setattr__(self, "prompt_template", get_prompt(self.prompt_template)[1])
        if self.save_activations not in ("none", "targets", "all"):
            raise ValueError(f"save_activations is {self.save_activations!r}; expected 'none', 'targets' or 'all'")
        if isinstance(self.positions, str):
            if self.positions not in ("all", "targets"):
                object.__setattr__(self, "positions", [self.positions])
        elif not self.positions:
            raise ValueError("positions is an empty list; expected 'all', 'targets', or names of targets and numbers")
        if self.layers is not None:
            object.__setattr__(self, "layers", [int(layer) for layer in self.layers])
            if not self.layers:
                raise ValueError("layers is an empty list; expected layer numbers, or None for all")
        if self.targets is not None and not isinstance(self.positions, str):
            raise ValueError("positions names the targets already; give targets only with positions 'all' or 'targets'")
        if isinstance(self.targets, str) and self.targets != "roles":
            object.__setattr__(self, "targets", [self.targets])
        for name in [
            name for names in (self.positions, self.targets) if isinstance(names, list | tuple) for name in names
        ]:
            if isinstance(name, str) and not _TARGET.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no target; expected 'all', 'targets', a token position, "
                    "ref_depth_<k>_<lhs|equals|rhs|newline>, query_<hash|var|colon> or final"
                )

    def layers_of(self, model: LoadedModel) -> list[int]:
        rows = model.n_layers + (self.intervention_type == "residual_stream")
        if self.layers is None:
            return list(range(rows))
        if bad := [layer for layer in self.layers if not 0 <= layer < rows]:
            raise ValueError(
                f"layers {bad} are out of range; {self.intervention_type} of {model.id!r} has 0 to {rows - 1}"
            )
        return sorted(set(self.layers))

    def columns_of(self, tokenized: TokenizedPair) -> tuple[list[int], list[list[int]], dict[str, list[int]]]:
        """Single positions of the grid, all columns (joint ones for targets of several tokens too), the targets."""
        original, length = tokenized.original, len(tokenized.original.token_ids)
        if not isinstance(self.positions, str):
            numbers = [number for number in self.positions if not isinstance(number, str)]
            if bad := [number for number in numbers if not 0 <= number < length]:
                raise PairError(f"positions {bad} are out of range; the prompt has tokens 0 to {length - 1}")
            # A position that is a role's is known by that name: what holds by construction there is known with it.
            role_at = {tuple(positions): role for role, positions in original.roles.items()}
            named = [
                role_at.get((name,), f"position_{name}") if isinstance(name, int) else name for name in self.positions
            ]
            targets = original.targets([name for name in named if not name.startswith("position_")])
            targets |= {name: [int(name.removeprefix("position_"))] for name in named if name.startswith("position_")}
        elif self.targets == "roles":
            first = tokenized.first_difference
            targets = original.targets([role for role, at in original.roles.items() if at[-1] >= first])
        else:
            targets = original.targets(self.targets)
        positions = sorted({p for column in targets.values() for p in column})
        if self.positions == "all":
            positions = list(range(length))
        joint = [column for column in targets.values() if len(column) > 1]
        return positions, [*([p] for p in positions), *joint], targets


_TARGET = re.compile(r"ref_depth_[1-9]\d*_(lhs|equals|rhs|newline)|query_(hash|var|colon)|final")


def trace_pairs(
    model: LoadedModel, pairs: Iterable[ProgramPair | dict[str, Any] | str], plan: Plan, batch_tokens: int | None = None
) -> Iterator[PairResult]:
    """Patch pair after pair and yield what became of each, in order. Pairs of one length share forward passes.

    A pair that cannot be used is yielded with its reason, and the rest go on. Memory does not grow with their number.

    Raises:
        ValueError: the plan does not fit the model.
        SelfCheckError: logits are not finite, or the self-checks of the pairs that were yielded last failed.
    """
    layers = plan.layers_of(model)
    batch_tokens = batch_tokens or default_batch_tokens(model)
    stream = enumerate(pairs)
    while window := list(islice(stream, 64)):
        done: dict[int, PairResult] = {}
        by_length: dict[int, list[tuple[int, TokenizedPair]]] = defaultdict(list)
        for index, given in window:
            pair = None
            try:
                pair = as_pair(given)
                for program in (pair.original, pair.counterfactual):
                    model.check_vocabulary(plan.prompt_template.replace(CODE, program.text))
                tokenized = analyze_pair(model.tokenizer, pair, plan.prompt_template)
                plan.columns_of(tokenized)
            except (ProgramError, PairError, VocabularyError) as error:
                done[index] = PairResult(index, pair, skipped=str(error))
            else:
                by_length[len(tokenized.original.token_ids)].append((index, tokenized))
        pending = [index for index, _ in window]
        for length, group in by_length.items():
            columns = plan.columns_of(group[0][1])[1]
            heads = model.n_heads if COMPONENTS[plan.intervention_type].per_head else 1
            work = len(layers) * len(columns) * heads * length // 2  # tokens that a pair's cells run, about
            # As many pairs as share forward passes well, and as few as one would mind to lose when interrupted.
            size = max(1, min(batch_tokens // (2 * length), 32 * batch_tokens // work))
            for start in range(0, len(group), size):
                for result in _trace_group(model, group[start : start + size], plan, layers, batch_tokens):
                    done[result.index] = result
                checks = [result.checks for result in done.values() if result.checks]
                while pending and pending[0] in done:
                    yield done.pop(pending.pop(0))
                for check in checks:
                    check.require()
        for index in pending:
            yield done.pop(index)


def _trace_group(
    model: LoadedModel, group: Sequence[tuple[int, TokenizedPair]], plan: Plan, layers: list[int], batch_tokens: int
) -> Iterator[PairResult]:
    """Pairs whose prompts have one length: a clean and a counterfactual run of all, then all cells of all."""
    component = plan.intervention_type
    programs = [t.original for _, t in group] + [t.counterfactual for _, t in group]
    runs = record(model, torch.tensor([program.token_ids for program in programs]), COMPONENTS[component].full_patch)
    if not runs.logits.isfinite().all():
        raise SelfCheckError(f"logits of model {model.id!r} ({model.dtype}) are not finite; its weights may be broken")
    tops = runs.logits.argmax(-1).view(2, -1).T.tolist()

    def answered(row: int) -> tuple[str, str]:
        return tuple(model.tokenizer.decode([token]) for token in tops[row])  # type: ignore[return-value]

    used = []
    for row, ((index, tokenized), (top_clean, top_counterfactual)) in enumerate(zip(group, tops, strict=True)):
        c, o = tokenized.answer_tokens
        correct = (top_clean == o, top_counterfactual == c)
        if reason := _reason_to_skip(tokenized.pair, correct, plan):
            yield PairResult(index, tokenized.pair, reason, correct, answered(row), tokenized.original.prompt)
        else:
            used.append(row)
    if not used:
        return
    clean, source = runs[used], runs[[row + len(group) for row in used]]
    heads: Sequence[int | None] = range(model.n_heads) if COMPONENTS[component].per_head else [None]
    cells: list[Cell] = []
    where: list[tuple[int, ...]] = []  # of each cell: pair, layer row, (head,) column
    grids = []
    for number, row in enumerate(used):
        _, tokenized = group[row]
        columns = plan.columns_of(tokenized)[1]
        shape = (len(layers), *([len(heads)] if COMPONENTS[component].per_head else []), len(columns))
        answers = torch.tensor(tokenized.answer_tokens)
        grids.append((clean.logits[number, answers].cpu().expand(*shape, 2).clone(), torch.full(shape, tops[row][0])))
        for (i, layer), (k, column) in product(enumerate(layers), enumerate(columns)):
            if _can_matter(component, layer, column, tokenized.first_difference, clean.length, model.n_layers):
                for j, head in enumerate(heads):
                    cells.append(Cell(number, (Site(component, layer, tuple(column), head),)))
                    where.append((number, i, k) if head is None else (number, i, j, k))
    with tqdm(total=len(cells), desc="cells", leave=False, disable=None) as bar:
        for indices, logits in patched_logits(model, clean, source, cells, batch_tokens):
            tokens = torch.tensor([group[used[cells[index].pair]][1].answer_tokens for index in indices])
            answers, top = logits.gather(1, tokens.to(logits.device)).cpu(), logits.argmax(-1).cpu()
            for index, answer, token in zip(indices, answers, top, strict=True):
                number, *at = where[index]
                grids[number][0][tuple(at)] = answer
                grids[number][1][tuple(at)] = token
            bar.update(len(indices))
    first = min(group[row][1].first_difference for row in used)
    checks = self_checks(model, clean, source, component, first)
    ran = np.bincount([cell.pair for cell in cells], minlength=len(used))
    for number, row in enumerate(used):
        index, tokenized = group[row]
        positions, columns, targets = plan.columns_of(tokenized)
        answers = torch.tensor(tokenized.answer_tokens)
        z_patched, top = grids[number]
        seen = {*top.unique().tolist(), *tokenized.answer_tokens, *tops[row]}
        causal_map = CausalMap(
            component,
            index,
            tokenized.original.tokens,
            layers,
            positions,
            columns,
            targets,
            model.n_layers,
            tokenized.first_difference,
            tokenized.answer_tokens,
            (tops[row][0], tops[row][1]),
            models.SMALLEST_EFFECT[model.dtype],
            {token: model.tokenizer.decode([token]) for token in sorted(seen)},
            clean.logits[number, answers].cpu().numpy(),
            source.logits[number, answers].cpu().numpy(),
            z_patched.numpy(),
            top.numpy(),
        )
        correct = (tops[row][0] == tokenized.answer_tokens[1], tops[row][1] == tokenized.answer_tokens[0])
        yield PairResult(
            index,
            tokenized.pair,
            correct=correct,
            answers=answered(row),
            prompt=tokenized.original.prompt,
            causal_map=causal_map,
            checks=checks,
            activations=_kept_activations(clean, source, number, plan, causal_map),
            interventions=int(ran[number]),
        )


def _kept_activations(clean: Runs, source: Runs, pair: int, plan: Plan, causal_map: CausalMap) -> dict[str, np.ndarray]:
    if plan.save_activations == "none":
        return {}
    positions = sorted({p for column in causal_map.targets.values() for p in column})
    if plan.save_activations == "all":
        positions = list(range(clean.length))
    kept = {"positions": np.array(positions)}
    for name, runs in (("clean", clean), ("counterfactual", source)):
        for component, layers in runs.activations.items():
            stacked = torch.stack([layer[pair, positions] for layer in layers]).cpu()
            kept[f"{name}/{component}"] = stacked.float().numpy()  # numpy has no bfloat16; float32 holds it exactly
    return kept


def _reason_to_skip(pair: ProgramPair, correct: tuple[bool, bool], plan: Plan) -> str | None:
    if plan.exclude_shallow and pair.variable_chain.root.line < 2:
        return f"shallow: the root value is assigned on line {pair.variable_chain.root.line + 1}"
    if plan.require_correct and not all(correct):
        wrong = [name for name, right in zip(("original", "counterfactual"), correct, strict=True) if not right]
        return f"the model does not answer the {' and the '.join(wrong)} program"
    return None


def _can_matter(
    component: str, layer: int, column: Sequence[int], first_difference: int, length: int, n_layers: int
) -> bool:
    """Whether patching these positions can change the answer at all.

    Before the first differing token both runs are the same; above the last attention only the last token is read.
    """
    last_attention = n_layers if component == "residual_stream" else n_layers - 1
    return max(column) >= first_difference and (layer < last_attention or length - 1 in column)


@dataclass(frozen=True)
class CausalTracingResult:
    """The maps of an experiment in memory, with what was skipped and what the engine measured of itself."""

    model: str
    plan: Plan
    results: list[PairResult]

    @cached_property
    def maps(self) -> list[CausalMap]:
        """One per used pair; its ``pair`` is the index into the programs given."""
        return [result.causal_map for result in self.results if result.causal_map]

    @property
    def skipped(self) -> list[PairResult]:
        return [result for result in self.results if result.skipped]

    @cached_property
    def checks(self) -> SelfChecks:
        checks = [result.checks for result in self.results if result.checks]
        merged = checks[0]
        for other in checks[1:]:
            merged |= other
        return merged

    @cached_property
    def mean(self) -> MeanCausalMap:
        """The mean over pairs, aligned by target."""
        return mean_over_pairs(self.maps)


def run_causal_tracing_experiment(
    model_id: str | LoadedModel,
    programs: Sequence[ProgramPair | dict[str, Any] | str],
    intervention_type: str = "residual_stream",
    intervention_layers: Sequence[int] | None = None,
    positions: str | Sequence[str | int] = "all",
    *,
    targets: str | Sequence[str] | None = None,
    prompt_template: str = CODE,
    require_correct: bool = False,
    exclude_shallow: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    batch_tokens: int | None = None,
) -> CausalTracingResult:
    """Patch every pair's counterfactual activations into its original run, cell by cell, and keep the maps in memory.

    Nothing is logged; :class:`debug.causal_experiment_runner.CausalExperimentRunner` does the same as an MLflow run.

    Args:
        model_id: an id (see :func:`debug.models.load`), or a model that is loaded.
        programs: pairs, dicts with "original" and perhaps "counterfactual", or texts of programs.
        intervention_type: one of ``COMPONENTS``.
        intervention_layers: rows of the map; None for all (0 .. n_layers for the residual stream).
        positions: "all", "targets", or names of targets and token positions.
        targets: what means over pairs are taken at; see :class:`Plan`.
        require_correct: skip pairs of which the model does not answer both programs.
        exclude_shallow: skip pairs whose root value is assigned on line 1 or 2.

    Raises:
        ValueError: an argument cannot be, or no pair was left to patch (the message has the reasons).
        SelfCheckError: a self-check failed.
    """
    if not programs:
        raise ValueError("programs is empty; expected at least one pair")
    plan = Plan(
        intervention_type, intervention_layers, positions, targets, prompt_template, require_correct, exclude_shallow
    )
    model = model_id if isinstance(model_id, LoadedModel) else models.load(model_id, dtype=dtype, device=device)
    results = list(tqdm(trace_pairs(model, programs, plan, batch_tokens), "pairs", len(programs), disable=None))
    result = CausalTracingResult(model.id, plan, results)
    if not result.maps:
        raise ValueError(f"no pair was left to patch; the first was skipped because: {results[0].skipped}")
    return result
