"""A model in transformers: what nnsight reads and writes in it, and its greedy completions."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from nnsight import TransformersModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.utils import logging as transformers_logging

from debug.errors import InputError
from debug.kinds import Argument, Module, Tokenizer, Traced
from debug.models.architectures import ARCHITECTURES, Architecture, follow
from debug.models.cpu import batch_attention
from debug.models.cpu.packed_linear import PackedLinear
from debug.models.errors import UnsupportedArchitecture
from debug.models.hook_points import HookPoint
from debug.models.numbers import DTYPES
from debug.models.prompting import AnswersPrompts, first_end
from debug.prompts import tokenization
from debug.prompts.answers import common_prefix
from debug.provenance import text_digest

SHORTEST_SHARED_PREFIX = 16
"""Tokens that must begin all prompts for their keys and values to be cached."""


@dataclass(frozen=True, eq=False)
class LoadedModel(AnswersPrompts):
    """A model in memory with its tokenizer. ``nnsight`` is for interventions, ``hf`` the plain transformers module.

    ``id`` is what runs call it: a folder's own name, else the id it was loaded by.
    """

    id: str
    path: str
    dtype: str
    device: str
    nnsight: TransformersModel
    tokenizer: Tokenizer
    architecture: Architecture
    quantization: str | None = None
    files_digest: str | None = None
    unpatchable: str | None = None
    """Why nothing can be patched in it, so that it is for accuracy runs alone."""
    ranks: int = 1
    """Processes that its weights are split over; each has some of the heads, and all run the same commands."""
    backend = "transformers"

    @property
    def window(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def end_tokens(self) -> set[int]:
        return tokenization.end_tokens(self.tokenizer, self.hf.generation_config.eos_token_id)

    @property
    def hf(self) -> Module:
        return self.nnsight._module

    @property
    def config(self) -> Any:  # a PreTrainedConfig; which fields it has differs by architecture
        """Of the text model, where it is a part of a larger one."""
        return self.hf.config.get_text_config()

    @cached_property
    def n_layers(self) -> int:
        return len(follow(self.hf, self.architecture.layers))

    @cached_property
    def n_heads(self) -> int:
        return self.config.num_attention_heads

    def _parameters_digest(self) -> str:
        parameters = self.hf.state_dict().items()
        return text_digest(f"{name} {tuple(value.shape)} {_bytes_digest(value)}" for name, value in parameters)

    def require_patchable(self) -> None:
        """Raises UnsupportedArchitecture where nothing can be patched in this model."""
        if self.unpatchable is not None:
            raise UnsupportedArchitecture(self.unpatchable)

    # Envoys (nnsight's handles on modules), named alike for every architecture.

    def layer(self, layer: int) -> Module:
        return follow(self.nnsight, self.architecture.layers)[layer]

    def attention(self, layer: int) -> Module:
        return follow(self.layer(layer), self.architecture.attention)

    def output_projection(self, layer: int) -> Module:
        return follow(self.layer(layer), self.architecture.output_projection)

    def mlp(self, layer: int) -> Module:
        return follow(self.layer(layer), self.architecture.mlp)

    def part(self, layer: int, name: str) -> Module:
        """A part of a layer by its field of :class:`Architecture`."""
        return follow(self.layer(layer), self.architecture.path(name))

    @property
    def final_norm(self) -> Module:
        return follow(self.nnsight, self.architecture.final_norm)

    @property
    def unembedding(self) -> Module:
        return follow(self.nnsight, self.architecture.unembedding)

    # Hook points: read and write activations inside a trace, named and shaped alike for every architecture.

    @property
    def residual(self) -> HookPoint:
        """Residual stream going into each layer, [row, token, width]; ``residual[n_layers]`` is what the final norm
        reads."""
        return self.hook_point("residual_stream")

    @property
    def heads(self) -> HookPoint:
        """Outputs of each layer's attention heads before they are projected, [row, token, head, width of a head]."""
        return self.hook_point("attention_heads")

    @property
    def attention_out(self) -> HookPoint:
        """Output of each layer's attention block, [row, token, width]."""
        return self.hook_point("attention")

    @property
    def mlp_out(self) -> HookPoint:
        """Output of each layer's MLP, [row, token, width]; of a mixture of experts that of the block as a whole."""
        return self.hook_point("mlp")

    @property
    def logits(self) -> Traced:
        """What the model gives, [row, token, vocabulary], inside a trace: ``model.logits.save()``."""
        return self.nnsight.output.logits

    def own_heads(self, value: Tensor, dim: int) -> Tensor:
        """Of what is there for all heads, one after another, that of the heads which this process has."""
        return value if self.ranks == 1 else value.chunk(self.ranks, dim)[torch.distributed.get_rank()]

    def all_heads(self, value: Tensor, dim: int) -> Tensor:
        """The other way round: what every process has of its own heads, together."""
        if self.ranks == 1:
            return value
        parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.ranks)]
        torch.distributed.all_gather(parts, value.contiguous())
        return torch.cat(parts, dim)

    def hook_point(self, component: str) -> HookPoint:
        """A component of ``COMPONENTS`` by its name."""
        return HookPoint(self, component)

    @property
    def devices(self) -> list[str]:
        """Those that its layers are on, the first one's first; "disk" for those that are read from there."""
        laid: dict[str, object] = getattr(self.hf, "hf_device_map", None) or {}
        names = (f"cuda:{at}" if isinstance(at, int) else str(at) for at in laid.values())
        return list(dict.fromkeys([self.device, *names])) if laid else [self.device]

    def batch_shape(self, layer: int) -> tuple[int, int]:
        """Rows and tokens of the batch that a layer was given last, where its modules are not all told them."""
        return follow(follow(self.hf, self.architecture.layers)[layer], self.architecture.unflattened).batch_shape

    def trace(self, token_ids: Int[Tensor, "row token"], **forward: Argument) -> AbstractContextManager[object]:
        """An nnsight trace whose forward pass gets these keywords as they are.

        nnsight's own way in takes a batch apart into prompts and puts it together again; packed rows with masks of
        their own, and a mask for each type of layer, do not survive that.
        """

        def run(*_: object, **__: object) -> object:
            with self.evaluating():
                return self.hf(input_ids=token_ids.to(self.device), **forward)

        return self.nnsight.trace(token_ids, fn=run)

    def attention_mask(
        self, allowed: Bool[Tensor, "row query key"], distance: Int[Tensor, "row query key"]
    ) -> Float[Tensor, "row 1 query key"] | dict[str, Tensor]:
        """An explicit mask for the forward pass, from which edges may be seen; sliding-window layers see less.

        ``distance`` is the query's position less the key's: a layer with window w sees distances below w.
        """
        lowest = torch.finfo(DTYPES[self.dtype]).min

        def additive(allowed: Tensor) -> Tensor:
            zero = torch.zeros((), dtype=DTYPES[self.dtype], device=allowed.device)
            return zero.where(allowed, lowest)[:, None]

        window = getattr(self.config, "sliding_window", None)
        layer_types = set(getattr(self.config, "layer_types", None) or [])
        if not window or layer_types == {"full_attention"}:
            full, sliding = additive(allowed), None
        else:
            full, sliding = additive(allowed), additive(allowed & (distance < window))
        if not layer_types:
            return full if sliding is None else sliding
        return {"full_attention": full} | ({} if sliding is None else {"sliding_attention": sliding})

    def _generate(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[int] | None]]:
        ends = self.end_tokens
        watch = _FiniteLogits()
        for chosen, ids, output in self._continue(prompts, max_new_tokens, batch_size, done, watch):
            for index, tokens, finite in zip(
                chosen, output.sequences[:, ids.shape[1] :].tolist(), watch.finite_steps(), strict=True
            ):
                # A token of the row that came after its end, as padding, is none of its own.
                own = first_end(tokens, ends) + 1
                yield index, tokens if finite >= min(own, len(tokens)) else None

    def _score(
        self,
        prompts: list[tuple[int, list[int]]],
        tokens: dict[int, list[int]],
        batch_size: int,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        for chosen, _, output in self._continue(prompts, 1, batch_size, done, output_logits=True):
            for index, logits in zip(chosen, output.logits[0].float().cpu(), strict=True):
                yield index, logits.log_softmax(-1)[torch.tensor(tokens[index])]

    @torch.inference_mode()
    def _continue(
        self,
        prompts: list[tuple[int, list[int]]],
        max_new_tokens: int,
        batch_size: int,
        done: Collection[int],
        watch: _FiniteLogits | None = None,
        **options: Argument,
    ) -> Iterator[tuple[list[int], Int[Tensor, "row token"], Any]]:  # whose fields options ask for
        """What transformers generates, greedily, for left-padded batches of prompts of like length, longest first.

        The tokens with which all prompts begin (solved examples) are run once; batches start from their cached keys
        and values, the padding between them and the rest.
        """
        # A configuration of its own: the one that comes with a model may sample, or penalize repetition.
        greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=sorted(self.end_tokens) or None,
            bos_token_id=self.hf.generation_config.bos_token_id,
            return_dict_in_generate=True,
            **options,
        )
        packed = PackedLinear(self.hf)
        prompts = sorted(prompts, key=lambda prompt: -len(prompt[1]))
        for switches, of_a_kind in groupby(prompts, lambda prompt: self._switches(len(prompt[1]), max_new_tokens)):
            group = list(of_a_kind)
            shared = [] if switches else self._shared_prefix([ids for _, ids in group])
            prefix = torch.tensor([shared], dtype=torch.long, device=self.device)
            prefixed = None
            if shared:
                prefixed = DynamicCache(config=self.config)
                with packed, self.evaluating():
                    self.hf(input_ids=prefix, past_key_values=prefixed, use_cache=True, logits_to_keep=1)
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                if all(index in done for index, _ in batch):
                    continue
                width = max(len(ids) for _, ids in batch) - len(shared)
                padding = [width - len(ids) + len(shared) for _, ids in batch]
                pad = self.tokenizer.pad_token_id or 0
                rows = [[pad] * n + ids[len(shared) :] for n, (_, ids) in zip(padding, batch, strict=True)]
                mask = [[1] * len(shared) + [0] * n + [1] * (width - n) for n in padding]
                ids = torch.cat(
                    [prefix.expand(len(batch), -1), torch.tensor(rows, dtype=torch.long, device=self.device)], 1
                )
                own_cache = nullcontext() if switches else self._cache(prefixed, len(batch), width + max_new_tokens)
                with packed, self.evaluating(), own_cache as cache:
                    output = self.hf.generate(
                        input_ids=ids,
                        attention_mask=torch.tensor(mask, device=self.device),
                        generation_config=greedy,
                        past_key_values=cache,
                        logits_processor=None if watch is None else LogitsProcessorList([watch.begin()]),
                    )
                yield [index for index, _ in batch], ids, output

    def _switches(self, length: int, max_new_tokens: int) -> int:
        """Which prompts may share a batch of a model whose rotary frequencies change where a text grows too long.

        They change for a whole batch at once, by its longest row, and keys that were cached before are of no use then:
        transformers runs the text again. 0: all tokens lie before the change, as in every other model; 1: the prompt
        itself goes beyond it; else it comes while tokens are generated, at the same one in prompts of one length.
        """
        switch = rope_switch(self.config)
        if switch is None or length + max_new_tokens - 1 <= switch:
            return 0
        return 1 if length > switch else length

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """While it lasts, no module drops activations at random, though the model may be in the middle of training."""
        training = [module for module in self.hf.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def _cache(self, prefix: DynamicCache | None, rows: int, room: int) -> Iterator[DynamicCache | None]:
        """A cache for so many rows that begin with the tokens in ``prefix``; None where transformers makes its own."""
        if batch_attention.suits(self.hf):
            with batch_attention.batch_cache(self.hf, prefix, room) as cache:
                yield cache
        elif prefix is None:
            yield None
        else:
            cache = copy.deepcopy(prefix)
            cache.batch_repeat_interleave(rows)
            yield cache

    def _shared_prefix(self, prompts: list[list[int]]) -> list[int]:
        """The tokens that all prompts begin with, and a token at least follows; none where that would save little, or
        where padding behind them would take room in a layer's sliding window."""
        if len(prompts) < 2 or getattr(self.config, "sliding_window", None):
            return []
        shared = common_prefix(prompts)[: min(map(len, prompts)) - 1]
        return shared if len(shared) >= SHORTEST_SHARED_PREFIX else []


class _FiniteLogits(LogitsProcessor):
    """Counts for each row of a batch the steps before the first one whose logits are not finite; changes nothing."""

    def begin(self) -> _FiniteLogits:
        self._finite: list[Bool[Tensor, " row"]] = []
        return self

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row vocabulary"]:
        # The largest is nan where one is nan, and infinite where one is. Some models rule tokens out by -inf.
        self._finite.append(scores.amax(-1).isfinite())
        return scores

    def finite_steps(self) -> list[int]:
        return torch.stack(self._finite).long().cumprod(0).sum(0).tolist()


def rope_switch(config: PreTrainedConfig) -> int | None:
    """Tokens beyond which a model takes other rotary frequencies (``longrope``: Phi-3 with 128K); None for most."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [of for of in parameters.values() if isinstance(of, dict)]
    switches = [
        of.get("original_max_position_embeddings") or config.max_position_embeddings
        for of in by_layer_type or [parameters]
        if of.get("rope_type") == "longrope"
    ]
    return min(switches, default=None)


def _tell_batch_shape(hf: Module, architecture: Architecture) -> None:
    """Have a module of each layer keep the rows and tokens that it was given last."""

    def keep(module: Module, arguments: tuple[Tensor, ...]) -> None:
        module.batch_shape = arguments[0].shape[:2]

    for module in (follow(layer, architecture.unflattened) for layer in follow(hf, architecture.layers)):
        if not hasattr(module, "batch_shape"):  # it was wrapped before
            module.batch_shape = None
            module.register_forward_pre_hook(keep)


def _bytes_digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def wrap(
    hf: Module,
    tokenizer: Tokenizer,
    *,
    model_id: str,
    path: str = "",
    dtype: str = "float32",
    wrapped: TransformersModel | None = None,
) -> LoadedModel:
    """A transformers model that is in memory already (a training step's, a test's), as a :class:`LoadedModel`.
    ``wrapped``: nnsight's handle on it, where there is one.

    Raises:
        UnsupportedArchitecture: its family is not listed, or its modules are not where the family keeps them. Where
            only what causal runs patch is missing (OPT with norms behind its layers), these raise it.
        InputError: its tokenizer has no character offsets.
    """
    model_type, text = hf.config.model_type, hf.config.get_text_config()
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        raise UnsupportedArchitecture(
            f"model {model_id!r} is of type {model_type!r}; known are {', '.join(ARCHITECTURES)}. "
            "A new one is one line in debug.models.ARCHITECTURES: where its layers, attention and MLP are"
        )
    try:
        layer = follow(hf, architecture.layers)[0]
        places = [(hf, architecture.final_norm), (hf, architecture.unembedding)]
        places += [(layer, getattr(architecture, part)) for part in ("attention", "output_projection", "mlp")]
        absent = [path for start, path in places if follow(start, path) is None]
        absent += ["attention to earlier tokens alone"] if getattr(text, "use_bidirectional_attention", 0) else []
    except AttributeError as error:
        raise UnsupportedArchitecture(
            f"model {model_id!r} of type {model_type!r} was looked through for {architecture}: {error}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"model {model_id!r} has no fast tokenizer: token roles are found through character offsets")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(text, "attn_logit_softcapping", None) and hf.config._attn_implementation == "sdpa":
        hf.set_attn_implementation("eager")  # the only one of transformers that does not leave soft caps out
    # the first layers' device; of those that are read from the disk weights say "meta"
    device = str(next((each.device for each in hf.parameters() if each.device.type != "meta"), "cpu"))
    generation = copy.deepcopy(hf.generation_config)
    if wrapped is None:
        with quiet_transformers():  # it warns of what the line below undoes
            wrapped = TransformersModel(hf, tokenizer=tokenizer)
    if architecture.unflattened:
        _tell_batch_shape(hf, architecture)
    hf.generation_config = generation  # nnsight's pipeline would have it sample, at a temperature of 0.7
    unpatchable = None
    if absent:
        unpatchable = (
            f"model {model_id!r} of type {model_type!r} is unsupported in causal runs: looked for {', '.join(absent)}, "
            "and this configuration has none (OPT with norms behind its layers, as opt-350m, has no final one). It can "
            "be asked in accuracy runs"
        )
    return LoadedModel(model_id, path, dtype, device, wrapped, tokenizer, architecture, unpatchable=unpatchable)
