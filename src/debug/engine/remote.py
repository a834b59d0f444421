"""Interventions on a model that is elsewhere (NDIF): rows of one batch, in one trace; answers' logits come back.

A batch has the unpatched programs that its interventions need in its first rows, and a row for each intervention, a
whole prompt. What an intervention writes is read from a program's row beside it, at the same place, on the server: no
activation travels. It is the plain way (no cache, no packing, no restart), since nothing is kept there between traces.

The code inside a trace runs on the server, which has nnsight, torch and numpy and nothing of this project: it uses
lists, tensors and nnsight's handles only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.engine.forward import REMOTE_TOKENS
from debug.engine.interventions import Cut, Intervention
from debug.engine.plain_hooks import NOISE_DRAWS, SAFETY, SAFETY_OF_NOISE
from debug.engine.unpatched import ForwardPasses, SelfCheckError
from debug.errors import InputError
from debug.kinds import Module, Traced
from debug.models.hook_points import COMPONENTS
from debug.models.numbers import DTYPES
from debug.models.remote_model import RemoteModel


class Read(NamedTuple):
    """What is kept of the logits of forward passes."""

    answers: Float[Tensor, "row answer"]
    """The logits of the tokens that were asked for."""
    tops: Int[Tensor, " row"]
    tokens: Int[Tensor, "row rank"]
    """The likeliest tokens, and the natural logarithms of their probabilities."""
    logs: Float[Tensor, "row rank"]
    finite: Tensor
    """Whether all of a row's logits are."""


def forward_passes(model: RemoteModel, token_ids: Int[Tensor, "program token"]) -> ForwardPasses:
    """Programs run unpatched, all in a trace. Their logits alone come back: activations and caches stay there."""
    remote, elsewhere = model.nnsight, model.elsewhere()
    with remote.trace(token_ids, backend=elsewhere, use_cache=False, logits_to_keep=1):
        logits = remote.output.logits[:, -1].detach().float().cpu().save()
    return ForwardPasses(token_ids, logits, {}, [])


def patched_reads(
    model: RemoteModel,
    passes: ForwardPasses,
    interventions: Sequence[Intervention],
    tokens: Sequence[Sequence[int]] | None,
    ranks: int,
    batch_tokens: int,
) -> Iterator[tuple[list[int], Read, float]]:
    """Of each patched forward pass the logits of these tokens (None: of all), and its likeliest; in batches, in their
    order.

    The last value is how far the logits of these tokens in the batch's unpatched programs are from ``passes``.

    Raises:
        SelfCheckError: logits are not finite.
    """
    size = max(1, batch_tokens // passes.length)
    start = 0
    while start < len(interventions):
        numbers = [*range(start, min(len(interventions), start + size))]
        batch = _Batch.of(model, passes, [interventions[number] for number in numbers])
        padded, first = None, len(batch.programs)
        if tokens is not None:
            asked = [*batch.asked_of_programs(tokens[start : start + size]), *(tokens[number] for number in numbers)]
            width = max(map(len, asked))
            padded = torch.tensor([[*of, *[of[-1]] * (width - len(of))] for of in asked])
        read = _run(model, batch, padded, ranks)
        if not read.finite.all():
            raise SelfCheckError(f"patched logits of model {model.id!r} ({model.dtype}) are not finite")
        unpatched = passes.logits[batch.programs]
        if padded is not None:
            unpatched = unpatched.gather(1, padded[:first])
        drift = (read.answers[:first] - unpatched).abs().max().item()
        yield numbers, Read(*(of[first:] for of in read)), drift
        start += len(numbers)


def patched_logits(
    model: RemoteModel, passes: ForwardPasses, interventions: Sequence[Intervention]
) -> list[Float[Tensor, "vocabulary"]]:
    """All logits of a few patched forward passes, which self-checks are about."""
    found = patched_reads(model, passes, interventions, None, 1, REMOTE_TOKENS)
    return [row for _, read, _ in found for row in read.answers]


def plain_logits(
    model: RemoteModel, passes: ForwardPasses, interventions: Sequence[Intervention]
) -> list[Float[Tensor, "vocabulary"]]:
    """The same the plain way: an intervention a trace, its sites one after another, token by token, head by head.

    Nothing of it is the batches' (:class:`_Batch`), so that one which writes a row, layer, position or head beside its
    place has other logits.
    """
    return [_alone(model, passes, one) for one in interventions]


def _alone(model: RemoteModel, passes: ForwardPasses, one: Intervention) -> Float[Tensor, "vocabulary"]:
    remote, elsewhere, n_heads, length = model.nnsight, model.elsewhere(), model.n_heads, passes.length
    sources = list(dict.fromkeys(site.source for site in one.patched))
    token_ids = passes.token_ids[[*sources, one.base]]
    rows, places = len(token_ids), []
    for layer, name in product(range(model.n_layers + 1), COMPONENTS):
        edits = [
            (sources.index(site.source), position, head)
            for site in one.patched
            if (site.component, site.layer) == (name, layer)
            for position in site.positions
            for head in ([None] if site.heads is None else site.heads)
        ]
        if edits:
            places.append((model.hook_point(name).envoy(layer), COMPONENTS[name].side, edits, None))
        cuts = [site for site in one.sites if isinstance(site, Cut) and site.layer == layer]
        if cuts and name == "residual_stream":  # which a layer is given before its attention runs
            edges = [
                (query, key, head)
                for cut in cuts
                for query, key in cut.edges
                for head in (range(n_heads) if cut.heads is None else cut.heads)
            ]
            places.append((model.attention(layer), "mask", edges, _mask(model, layer, length)))
    what: list[Traced] = places
    with remote.trace(token_ids, backend=elsewhere, use_cache=False, logits_to_keep=1):
        for envoy, side, edits, mask in what:
            if side == "mask":
                arguments, keywords = envoy.inputs
                first = [*arguments, *keywords.values()][0]
                cut = mask.repeat(rows, n_heads, 1, 1).to(first.device)
                for query, key, head in edits:
                    cut[-1, head, query, key] = torch.finfo(cut.dtype).min
                envoy.inputs = (arguments, keywords | {"attention_mask": cut})
                continue
            value = envoy.input if side == "input" else envoy.output
            given = value[0] if isinstance(value, tuple) else value
            new = given.clone(memory_format=torch.contiguous_format)
            tokens, before = new.view(rows, length, -1), given.reshape(rows, length, -1)
            width = tokens.shape[-1] // n_heads
            for source, position, head in edits:
                channels = slice(None) if head is None else slice(head * width, (head + 1) * width)
                tokens[-1, position, channels] = before[source, position, channels]
            if side == "input":
                envoy.input = new
            else:
                envoy.output = (new, *value[1:]) if isinstance(value, tuple) else new
        logits = remote.output.logits[-1, -1].detach().float().cpu().save()
    return logits  # noqa: RET504 (what a trace saves exists after it)


def rounding(model: RemoteModel, passes: ForwardPasses, drifts: Sequence[float]) -> float:
    """The largest change of a logit that rounding may cause, as :func:`debug.engine.plain_hooks.rounding` has it: what
    the same programs are apart in several batches, and what noise of one last place does to them.

    Raises:
        SelfCheckError: they are so far apart that other weights, or another dtype, must have answered.
    """
    largest = passes.logits.abs().max().item()
    eps = torch.finfo(DTYPES[model.dtype]).eps
    least = eps * largest * (2 * model.n_layers) ** 0.5
    drift, noise = float(np.max([0.0, *drifts])), _noise(model, passes)  # what is not a number is the largest
    if not drift <= 4 * SAFETY * eps * largest:
        raise SelfCheckError(
            f"unpatched programs, asked of {model.host} again, differ by {drift:.3g} in a logit; in {model.dtype} "
            f"rounding does not do that: it does not run the same model each time"
        )
    return max(least, SAFETY * drift, SAFETY_OF_NOISE * noise)


def _noise(model: RemoteModel, passes: ForwardPasses) -> float:
    """As :func:`debug.engine.plain_hooks.rounding` draws it, on the server."""
    remote, elsewhere = model.nnsight, model.elsewhere()
    rows = [0, len(passes) - 1] * NOISE_DRAWS
    token_ids, eps = passes.token_ids[rows], torch.finfo(DTYPES[model.dtype]).eps
    inputs = [model.residual.envoy(layer) for layer in range(model.n_layers + 1)]
    with remote.trace(token_ids, backend=elsewhere, use_cache=False, logits_to_keep=1):
        draws = torch.Generator().manual_seed(0)
        for envoy in inputs:
            value = envoy.input
            drawn = torch.randn(value.shape, generator=draws).to(value.device)
            noise = eps * value.float().pow(2).mean(-1, keepdim=True).sqrt() * drawn
            envoy.input = (value + noise).to(value.dtype)
        logits = remote.output.logits[:, -1].detach().float().cpu().save()
    return (logits - passes.logits[rows]).abs().max().item()


class _Write(NamedTuple):
    """What all rows change at one place. ``at`` of a cut: its row, head, query and key; else the row, the source's row,
    the token and the part, of which there are ``parts``: heads, or the whole width."""

    envoy: Module
    side: str
    """"input", "output"; "mask" of an attention block whose edges are cut."""
    parts: int
    at: list[Int[Tensor, " change"]]
    mask: Float[Tensor, "1 1 query key"] | None = None
    """The layer's, before edges are cut: the model has none where it says that tokens come after one another, no more.
    """


class _Batch(NamedTuple):
    programs: list[int]
    """Rows of the unpatched passes, which lie first."""
    bases: list[int]
    token_ids: Int[Tensor, "row token"]
    writes: list[_Write]
    """In the order in which the model runs their places."""

    @classmethod
    def of(cls, model: RemoteModel, passes: ForwardPasses, interventions: Sequence[Intervention]) -> _Batch:
        sources = {site.source for one in interventions for site in one.patched}
        programs = sorted(sources | {one.base for one in interventions})
        assert programs[-1] < len(passes), "sources are rows of these programs"
        row_of = {program: row for row, program in enumerate(programs)}
        changes: dict[tuple[int, int], list[tuple[int, int, int, int]]] = defaultdict(list)
        names = ["residual_stream", "mask", *(name for name in COMPONENTS if name != "residual_stream")]
        for row, one in enumerate(interventions, len(programs)):
            for site in one.sites:
                cut = isinstance(site, Cut)
                per_head = cut or COMPONENTS[site.component].per_head
                parts = range(model.n_heads if per_head else 1) if site.heads is None else site.heads
                if cut:
                    _check_keys(site)
                    changes[site.layer, 1] += [(row, head, *edge) for edge in site.edges for head in parts]
                    continue
                of_site = [(row, row_of[site.source], p, part) for p in site.positions for part in parts]
                changes[site.layer, names.index(site.component)] += of_site
        writes = []
        for (layer, number), of_place in sorted(changes.items()):
            at = [*torch.tensor(of_place, dtype=torch.long).view(-1, 4).T]
            if number == 1:
                mask = _mask(model, layer, passes.length)
                writes.append(_Write(model.attention(layer), "mask", model.n_heads, at, mask))
                continue
            component = COMPONENTS[names[number]]
            envoy = model.hook_point(names[number]).envoy(layer)
            writes.append(_Write(envoy, component.side, model.n_heads if component.per_head else 1, at))
        bases = [one.base for one in interventions]
        return cls(programs, bases, passes.token_ids[[*programs, *bases]], writes)

    def asked_of_programs(self, tokens: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """Tokens whose logits are read of the unpatched programs: of those that an intervention on them reads."""
        of = dict(zip(self.bases, tokens, strict=True))
        return [of.get(program, tokens[0]) for program in self.programs]


def _mask(model: RemoteModel, layer: int, length: int) -> Float[Tensor, "1 1 query key"]:
    position = torch.arange(length)
    distance = (position[:, None] - position)[None]
    mask = model.attention_mask(distance >= 0, distance)
    return mask[model.config.layer_types[layer]] if isinstance(mask, dict) else mask


def _check_keys(cut: Cut) -> None:
    """Raises InputError where a query is left without any key."""
    keys: dict[int, set[int]] = defaultdict(set)
    for query, key in cut.edges:
        keys[query].add(key)
    if any(of >= {*range(query + 1)} for query, of in keys.items()):
        raise InputError(f"cutting these edges of layer {cut.layer} leaves a query without any key: {cut}")


def _run(model: RemoteModel, batch: _Batch, asked: Int[Tensor, "row answer"] | None, ranks: int) -> Read:
    remote, elsewhere, token_ids = model.nnsight, model.elsewhere(), batch.token_ids
    rows, length = token_ids.shape
    writes: list[Traced] = [tuple(write) for write in batch.writes]
    with remote.trace(token_ids, backend=elsewhere, use_cache=False, logits_to_keep=1):
        for envoy, side, parts, at, mask in writes:
            if side == "mask":
                arguments, keywords = envoy.inputs
                cut = mask.expand(rows, parts, -1, -1).clone()
                cut[at[0], at[1], at[2], at[3]] = torch.finfo(mask.dtype).min
                first = [*arguments, *keywords.values()][0]
                envoy.inputs = (arguments, keywords | {"attention_mask": cut.to(first.device)})
                continue
            row, source, position, part = at
            value = envoy.input if side == "input" else envoy.output
            given = value[0] if isinstance(value, tuple) else value
            new = given.clone(memory_format=torch.contiguous_format)
            by_part = given.reshape(rows, length, parts, -1)
            new.view(rows, length, parts, -1)[row, position, part] = by_part[source, position, part]
            if side == "input":
                envoy.input = new
            else:
                envoy.output = (new, *value[1:]) if isinstance(value, tuple) else new
        logits = remote.output.logits[:, -1].detach().float()
        best = logits.topk(ranks)
        answers = (logits if asked is None else logits.gather(1, asked.to(logits.device))).cpu().save()
        tops = logits.argmax(-1).cpu().save()
        tokens = best.indices.cpu().save()
        logs = (best.values - logits.logsumexp(-1, keepdim=True)).clamp(max=0).cpu().save()
        finite = logits.isfinite().all(-1).cpu().save()
    return Read(answers, tops, tokens, logs, finite)
