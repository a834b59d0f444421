"""The engine's one primitive: interventions -> logits of the patched forward passes.

An *intervention* is data: what is changed together in one forward pass (sites: component, layer, positions, heads; or
cut edges), and for each site the forward pass that its activations come from: the counterfactual's, a third program's,
or the clean one, which freezes it. :func:`patched_logits` takes any number of them; all that the method does to a model
is composed of that. What makes it fast:

- **Restart.** An intervention whose first site is in layer l starts there, from the hidden states of the unpatched
  forward pass; nnsight skips the layers below. Where only parts of layer l are patched (heads, attention, MLP), layer l
  itself runs at the patched positions alone, without its attention: nothing else of it changes. From layer l + 1 on it
  is as with any other intervention.
- **Few interventions.** Where few enter at a layer, those of the next layers enter there too, and run it unchanged.
- **Clean prefix.** Before its first position an intervention changes nothing, so its tokens are those from there on;
  they read the prefix from the key-value cache of the unpatched forward pass.
- **Packing.** The token sequences of many interventions lie behind one another in one row of the batch, each with its
  own positions, each seeing the clean prefix and itself only. None pays for the length of another; rows are short,
  because attention costs tokens times the length of the row.
- **The last layer** runs its output projection and its MLP for the tokens that predict only.

Every patch goes through nnsight. Knows no program, no pair, no map and no file.
Activation patching as in Vig et al. 2020; knockout of attention edges as in Geva et al. 2023 (arXiv 2304.14767).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from debug.engine import writing
from debug.engine.interventions import Cut, Intervention
from debug.engine.packing import ROW_TOKENS, Packed, next_batch, pack, row_length
from debug.engine.unpatched import ForwardPasses, SelfCheckError
from debug.engine.writing import Hit, Tail
from debug.kinds import Module
from debug.models import LoadedModel, out_of_memory
from debug.models.backends import is_remote
from debug.models.hook_points import COMPONENTS

logger = logging.getLogger(__name__)
REMOTE_TOKENS = 2**15  # of one trace on a model that is elsewhere
FORWARD_TOKENS = 30  # a layer of a forward pass costs what so many tokens of it cost, however few it has


@torch.no_grad()
def patched_logits(
    model: LoadedModel,
    passes: ForwardPasses,
    interventions: Sequence[Intervention],
    batch_tokens: int | None = None,
    listen: Listen = lambda *_: nullcontext(),
) -> Iterator[tuple[list[int], Float[Tensor, "intervention vocabulary"]]]:
    """The logits that predict the answer in each patched forward pass: sites have their sources' activations.

    Interventions come back in batches, in an order of the engine's own: (indices into ``interventions``, their logits
    at the last position). A batch holds at most ``batch_tokens`` tokens; it is halved when memory runs out. Each runs
    within what ``listen`` makes of it, which may hear what the model is given (see ``self_checks.ReadBack``).

    Raises:
        SelfCheckError: logits are not finite.
    """
    batch_tokens = batch_tokens or default_batch_tokens(model)
    todo = batches(model, passes, interventions, batch_tokens)
    planned = next(todo, None)
    while planned is not None:
        try:
            with listen(planned.packed, planned.tail):
                logits = _run_batch(model, passes, planned.packed, planned.layer, planned.tail)
        except (RuntimeError, MemoryError) as error:
            if len(planned.rows) == 1 or model.ranks > 1 or not out_of_memory(error):
                raise
            fewer = sum(row_length(row, interventions, passes.length) for row in planned.rows) // 2
            logger.warning("out of memory: going on with batches of %d tokens", fewer)
            planned = todo.send(fewer)
            continue
        if not logits.isfinite().all():
            raise SelfCheckError(
                f"patched logits of model {model.id!r} ({model.dtype}) at layer {planned.layer} are not finite"
            )
        yield planned.packed.numbers, logits
        planned = next(todo, None)


class Batch(NamedTuple):
    """Interventions that share a forward pass."""

    rows: list[list[int]]
    """Numbers of the interventions, row by row."""
    packed: Packed
    layer: int
    """At which they enter."""
    tail: Tail | None
    """The positions that run alone at ``layer``, where only parts of it are patched."""

    @property
    def entry(self) -> int:
        """The first layer that runs at all tokens."""
        return self.layer + (self.tail is not None)


def batches(
    model: LoadedModel, passes: ForwardPasses, interventions: Sequence[Intervention], batch_tokens: int
) -> Generator[Batch, int | None, None]:
    """The forward passes that :func:`patched_logits` makes. Sent a number, the batch given last comes again, and it and
    all behind it have no more tokens than that."""
    for (layer, parts_first), indices in _together(model, interventions, passes.length, batch_tokens):
        rows = pack(interventions, indices, passes.length)
        while rows:
            batch = next_batch(rows, interventions, passes, batch_tokens)
            packed = Packed.of(batch, interventions, passes)
            fewer = yield Batch(batch, packed, layer, Tail.of(packed, layer) if parts_first else None)
            if fewer is None:
                rows = rows[len(batch) :]
            else:
                batch_tokens = fewer


def _together(
    model: LoadedModel, interventions: Sequence[Intervention], length: int, batch_tokens: int
) -> list[tuple[tuple[int, bool], list[int]]]:
    """The layer at which interventions enter, whether only parts of it run, and the numbers of these interventions.

    Where few enter at a layer, those of the next layers enter there too: they run some layers more, unchanged, for the
    sake of fewer and larger forward passes.
    """
    by_layer: dict[tuple[bool, int], list[int]] = defaultdict(list)
    for index, intervention in enumerate(interventions):
        by_layer[intervention.patches_parts_first, intervention.layer].append(index)
    groups: list[tuple[tuple[int, bool], list[int], int]] = []  # entry, interventions, their tokens
    for (parts_first, layer), indices in sorted(by_layer.items()):
        tokens = sum(length - interventions[index].start for index in indices)
        if groups:
            (entry, parts), group, in_group = groups[-1]
            wasted, saved = (layer - entry) * tokens, (model.n_layers - layer) * FORWARD_TOKENS
            if parts == parts_first and in_group + tokens <= batch_tokens and wasted < saved:
                groups[-1] = (entry, parts), group + indices, in_group + tokens
                continue
        groups.append(((layer, parts_first), indices, tokens))
    return [(entry, group) for entry, group, _ in groups]


def default_batch_tokens(model: LoadedModel) -> int:
    """Tokens of one forward pass: as many as keep the processor busy, in no more than a quarter of the free memory."""
    if is_remote(model.device):
        return REMOTE_TOKENS
    cuda = model.device.startswith("cuda")
    # each of several devices holds keys and values of its own layers, and what passes from one to the next
    free = min(map(_free_memory, model.devices))
    if model.ranks > 1:  # all processes make the same batches
        least = torch.tensor(free, device=model.device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        free = int(least)
    affordable = free // 4 // token_bytes(model)
    return max(ROW_TOKENS, min((2**24 if cuda else 2**20) // model.config.hidden_size, affordable))


def _free_memory(device: str) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available


def token_bytes(model: LoadedModel) -> int:
    """Of a token in a batch: some wide intermediates, and the keys and values of all layers with their prefix."""
    return (48 + 6 * model.n_layers) * model.config.hidden_size * (4 if model.dtype == "float32" else 2)


Listen = Callable[[Packed, "Tail | None"], AbstractContextManager[None]]
"""What a batch is run within: given its interventions, packed, and those positions that run alone at first."""


def _run_batch(
    model: LoadedModel, passes: ForwardPasses, packed: Packed, layer: int, tail: Tail | None
) -> Float[Tensor, "intervention vocabulary"]:
    """One forward pass over packed interventions that enter at ``layer``; see this file's docstring for its parts."""
    device, shape, n_layers = passes.token_ids.device, packed.shape, model.n_layers
    hits = _hits(packed, layer, tail)
    cuts: dict[int, list[tuple[int, Cut]]] = defaultdict(list)
    for index, intervention in enumerate(packed.interventions):
        for site in intervention.sites:
            if isinstance(site, Cut):
                cuts[site.layer].append((index, site))
    positions = torch.from_numpy(packed.positions).to(device)
    row_bases = torch.tensor(packed.bases, device=device)
    rows, tokens = zip(*(packed.token(i, packed.length - 1) for i in range(len(packed.interventions))), strict=True)
    lasts = [*rows], [*tokens]
    prefix = packed.prefix
    cache = _keys_values(passes, row_bases, prefix) if prefix else None
    entry = layer + (tail is not None)  # the first layer that runs at all tokens, going into which they are:
    hidden = passes.activations["residual_stream"][entry][row_bases[:, None], positions]
    if ("residual_stream", entry) in hits and tail is None:
        writing.overwrite(model, passes, "residual_stream", entry, hidden, hits.pop(("residual_stream", entry)))

    # Before the trace: modules that are called inside one count as the model's own calls.
    before = tail.hidden(passes, layer) if tail is not None else hidden
    attention = tail.attention(model, passes, layer) if tail is not None else None
    with model.trace(
        passes.token_ids[row_bases[:, None], positions],
        attention_mask=packed.mask(model, device),
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    ):
        for below in range(layer):
            model.layer(below).skip(before)
        if layer == 0:
            model.layer(0).input = before
        if tail is not None:
            _patch_alone(model, passes, tail, attention)
            hidden[tail.rows, tail.tokens] = model.layer(layer).output[0].to(hidden.device)
            if ("residual_stream", entry) in hits:
                writing.overwrite(model, passes, "residual_stream", entry, hidden, hits.pop(("residual_stream", entry)))
            model.layer(layer).output = hidden
        for at in range(entry, n_layers):
            for name, component in COMPONENTS.items():
                if at in cuts and model.hook_point(name).in_attention:
                    arguments, keywords = model.attention(at).inputs
                    mask = writing.without_edges(model, packed, keywords["attention_mask"], cuts.pop(at), prefix)
                    model.attention(at).inputs = (arguments, keywords | {"attention_mask": mask})
                if at == n_layers - 1 and component.made_by and _lasts_suffice(model, component.made_by, hits):
                    _run_at_lasts(model.part(at, component.made_by), shape, lasts)
                if (name, at) in hits:
                    writing.patch(model, passes, name, at, hits[name, at])
        for name in COMPONENTS:
            if (name, n_layers) in hits:
                writing.patch(model, passes, name, n_layers, hits[name, n_layers])
        model.unembedding.input = model.unembedding.input[lasts][None]  # only the tokens that predict
        logits = model.logits.save()
    return logits[0].float().to(device)


def _hits(packed: Packed, layer: int, tail: Tail | None) -> dict[tuple[str, int], list[Hit]]:
    """(component, layer) -> what the batch's sites write there; without those of ``layer`` that the tail writes."""
    hits: dict[tuple[str, int], list[Hit]] = defaultdict(list)
    for index, intervention in enumerate(packed.interventions):
        for site in intervention.patched:
            if tail is None or site.layer != layer:
                hits[site.component, site.layer].extend(
                    Hit(*packed.token(index, p), site.source, p, site.heads) for p in site.positions
                )
    return hits


def _keys_values(passes: ForwardPasses, row_bases: Int[Tensor, " row"], prefix: int) -> DynamicCache:
    """The keys and values of each row's clean prefix, each where its layer is."""
    kept = []
    for keys, values in passes.keys_values:
        of_rows = row_bases.to(keys.device)
        kept.append((keys[of_rows, :, :prefix], values[of_rows, :, :prefix]))
    return DynamicCache(kept)


def _patch_alone(model: LoadedModel, passes: ForwardPasses, tail: Tail, attention: Tensor | None) -> None:
    """Run the tail's layer with this output of its attention, and patch its other parts. Inside a trace."""
    model.attention(tail.layer).skip((attention, None))
    for name, hits in tail.hits.items():
        if hits and not model.hook_point(name).in_attention:
            writing.patch(model, passes, name, tail.layer, hits)


def _lasts_suffice(model: LoadedModel, part: str, hits: Collection[tuple[str, int]]) -> bool:
    """Whether the last layer may run a part for the tokens that predict: nothing inside of it is patched."""
    architecture = model.architecture
    patched = {COMPONENTS[name].part for name, at in hits if at == model.n_layers - 1}
    inside = [each for each in patched if architecture.path(each) != architecture.path(part)]
    return not any(architecture.within(each, part) for each in inside)


def _run_at_lasts(module: Module, shape: tuple[int, int], lasts: tuple[list[int], list[int]]) -> None:
    """Run a module of the last layer for the tokens that predict, and leave zeros elsewhere: nobody reads them.

    Inside a trace. ``shape`` is the batch's (row, token); ``lasts`` are the rows and tokens of those that predict.
    """
    value = module.input
    module.input = value.view(*shape, -1)[lasts][None]
    output = module.output
    full = output.new_zeros(*shape, output.shape[-1])
    full[lasts] = output[0]
    module.output = full.view(*value.shape[:-1], -1)
