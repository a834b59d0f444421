"""What forward passes cost, counted before they are made: tokens, layers, matrix products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from debug.engine.continuing import Written, parts
from debug.engine.forward import Batch, batches
from debug.engine.interventions import Intervention
from debug.engine.plain_hooks import NOISE_DRAWS
from debug.engine.unpatched import ForwardPasses
from debug.models import LoadedModel
from debug.models.architectures import follow
from debug.models.hook_points import COMPONENTS

ISFINITE = 2.5  # times its tensor's memory: the tensor, its absolute values, two of truth values


class Work(NamedTuple):
    """One forward pass, or the sum of several."""

    passes: int = 0
    tokens: int = 0
    """Padding too."""
    token_layers: int = 0
    """Layers that run, each times its tokens."""
    layers: int = 0
    """Layers that run."""
    skipped: int = 0
    """Layers below the entry, which do not."""
    interventions: int = 0
    flop: float = 0.0
    """2 for each weight that a token meets, and attention's own products."""

    def plus(self, other: Work) -> Work:
        return Work(
            self.passes + other.passes,
            self.tokens + other.tokens,
            self.token_layers + other.token_layers,
            self.layers + other.layers,
            self.skipped + other.skipped,
            self.interventions + other.interventions,
            self.flop + other.flop,
        )

    @staticmethod
    def sum(works: Iterable[Work]) -> Work:
        return reduce(Work.plus, works, Work())


class Counter:
    """Counts forward passes of one model, by its configuration alone."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        layer = follow(model.hf, model.architecture.layers)[0]
        parts = [follow(layer, getattr(model.architecture, part)) for part in ("output_projection", "mlp")]
        self.weights = sum(p.numel() for p in layer.parameters() if p.ndim > 1)  # of a mixture, of all its experts
        self.at_lasts = sum(p.numel() for part in parts for p in part.parameters() if p.ndim > 1)
        self.element = 4 if model.dtype == "float32" else 2
        self.unembedding = model.config.vocab_size * model.config.hidden_size

    def unpatched(self, rows: int, length: int, predicted: int | None = None) -> Work:
        """Whole prompts; of each row the last token is unembedded."""
        tokens, n = rows * length, self.model.n_layers
        flop = 2 * tokens * n * self.weights + n * self._attention(tokens, length)
        flop += 2 * self.unembedding * (rows if predicted is None else predicted)
        return Work(1, tokens, tokens * n, n, 0, 0, flop)

    def unembedded(self, rows: int) -> Work:
        """Hidden states that the unembedding reads."""
        return Work(1, rows, 0, 0, self.model.n_layers, 0, 2.0 * rows * self.unembedding)

    def batch(self, batch: Batch) -> Work:
        (rows, tokens), n = batch.packed.shape, self.model.n_layers
        many, predicted, tail = rows * tokens, len(batch.packed.interventions), len(batch.tail or ())
        run = n - batch.entry
        flop = 2 * self.weights * many * run + run * self._attention(many, tokens + batch.packed.prefix)
        flop -= 2 * self.at_lasts * max(0, many - predicted) if run else 0  # the last layer, but for what predicts
        flop += 2 * self.at_lasts * tail + 2 * self.unembedding * predicted
        return Work(1, many, many * run + tail, run, batch.layer, predicted, flop)

    def unpatched_bytes(self, rows: int, length: int) -> int:
        """Of activations that are not kept, while whole prompts run."""
        return rows * length * self._token_bytes() + 2 * self._attention_bytes(rows * length)

    def batch_bytes(self, batch: Batch, before: Batch | None) -> int:
        """While a batch runs, and the logits of the one before are still there: the most, at any of its stages."""
        rows, tokens = batch.packed.shape
        logits, held = self._logits_bytes(batch), 0 if before is None else self._logits_bytes(before)
        keys = rows * (tokens + batch.packed.prefix)
        cache = self.model.n_layers * 2 * kv_width(self.model) * keys * self.element
        layer = rows * tokens * self._token_bytes() + 2 * self._attention_bytes(keys)
        masks = tokens * keys * (2 * 8 + self.element)  # distances as numpy and torch have them, and the mask
        return max(held + cache + masks + layer, held + cache + masks + logits, int(ISFINITE * logits))

    def _logits_bytes(self, batch: Batch) -> int:
        return 4 * len(batch.packed.interventions) * self.model.config.vocab_size

    def _token_bytes(self) -> int:
        """Of a token inside a layer: in its MLP, or in its attention."""
        width = self.model.config.hidden_size
        inner = getattr(self.model.config, "intermediate_size", None) or 4 * width
        return max(3 * inner + 4 * width, 8 * width) * self.element

    def _attention_bytes(self, keys: int) -> int:
        """Of keys, or of values, repeated for the queries that share them."""
        return keys * self.model.n_heads * head_width(self.model) * self.element

    def _attention(self, tokens: int, keys: int) -> int:
        return 4 * tokens * keys * self.model.n_heads * head_width(self.model)

    def kept(self, passes: ForwardPasses) -> int:
        """Numbers of a token that :class:`ForwardPasses` holds: keys, values, recorded activations."""
        recorded = sum(layer.shape[-1] for layers in passes.activations.values() for layer in layers)
        return 2 * self.model.n_layers * kv_width(self.model) + recorded

    def patched(
        self, passes: ForwardPasses, interventions: Sequence[Intervention], batch_tokens: int
    ) -> Iterator[tuple[Work, int]]:
        """Of the forward passes that ``patched_logits`` makes: each, and its bytes of memory."""
        before = None
        for batch in batches(self.model, passes, interventions, batch_tokens):
            yield self.batch(batch), self.batch_bytes(batch, before)
            before = batch

    def behind(
        self, passes: ForwardPasses, asked: Sequence[tuple[Intervention, Written]], batch_tokens: int
    ) -> Iterator[tuple[Work, int]]:
        """Of those that :func:`debug.engine.continuing.next_logits` makes."""
        for _, texts, sources, moved in parts(passes, asked, batch_tokens):
            behind = passes
            if texts:
                length = passes.length + len(texts[0][1])
                yield self.unpatched(len(texts), length), self.unpatched_bytes(len(texts), length)
                rows = torch.zeros(len(texts) + len(sources), length, dtype=torch.long)
                behind = unknown_passes(self.model, rows, passes.activations)
            yield from self.patched(behind, moved, batch_tokens)

    def plain(self, length: int, interventions: Sequence[Intervention], n_passes: int) -> Iterator[Work]:
        """Of ``plain_logits``, without the rounding that it measures: bases and sources whole, and each patched."""
        used = {row for each in interventions for row in (each.base, *(site.source for site in each.patched))}
        rows = sum(row < n_passes for row in used) or 1
        for many in (rows, len(interventions)):
            if many:
                yield self.unpatched(many, length)

    def rounding(self, length: int) -> Iterator[Work]:
        """Of ``rounding``: a program in two pieces, and two programs, twice, with noise."""
        half = length // 2
        for one in ((1, half), (1, length - half), (2 * NOISE_DRAWS, length)):
            yield self.unpatched(*one)


def head_width(model: LoadedModel) -> int:
    width = getattr(model.config, "head_dim", None)
    return int(width or model.config.hidden_size // model.n_heads)


def kv_width(model: LoadedModel) -> int:
    heads = getattr(model.config, "num_key_value_heads", None)
    return int(heads or model.n_heads) * head_width(model)


def unknown_passes(
    model: LoadedModel, token_ids: Int[Tensor, "program token"], components: Iterable[str]
) -> ForwardPasses:
    """In the place of ``forward_passes``: shapes, and zeros that take no memory."""
    zero, shape = torch.zeros((), device=model.device), token_ids.shape
    needed = {"residual_stream", *components}
    if any(COMPONENTS[name].positions_alone for name in needed):
        needed.add("attention")  # as forward_passes
    wide = dict.fromkeys(needed, int(model.config.hidden_size))
    for name in needed:
        if COMPONENTS[name].per_head:
            wide[name] = model.n_heads * head_width(model)
    kept = {name: [zero.expand(*shape, width)] * len(model.hook_point(name)) for name, width in wide.items()}
    return ForwardPasses(token_ids.to(model.device), zero.expand(shape[0], int(model.config.vocab_size)), kept, [])
