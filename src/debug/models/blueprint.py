"""A model as its configuration and tokenizer have it, without its weights: for plans, and for timing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.integrations.ggml import GGUF_CONFIG_DEFAULTS_MAPPING
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

from debug.errors import InputError
from debug.kinds import Argument
from debug.models.architectures import follow
from debug.models.backends import DEVICE_MAPS, TP, dtype_and_device, has_gpu, is_remote
from debug.models.errors import ModelNotFound, UnsupportedArchitecture
from debug.models.files import locate, name_of, weight_files
from debug.models.numbers import DTYPES
from debug.models.transformers_model import LoadedModel, wrap
from debug.models.weights import check_reachable
from debug.provenance import files_digest

DISTINCT = 2**31  # bytes of random weights, beyond which layers share them


@dataclass(frozen=True, eq=False)
class Blueprint(LoadedModel):
    """A model whose weights are zeros that take no memory. What only weights can tell, it does not say."""

    def first_tokens(self, prompts: Sequence[list[int]], n: int) -> list[list[int]]:
        """Nothing: what the model writes is not known."""
        return [[] for _ in prompts]

    @property
    def weights_digest(self) -> str:
        """Of the files as they lie there; they are hashed, not loaded."""
        return files_digest(weight_files(self.path)) or ""

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.hf.parameters())


def blueprint(model_id: str, *, dtype: str | None = None, device: str | None = None) -> Blueprint:
    """Of the model of this id, its configuration and its tokenizer; see :func:`debug.models.load`.

    Raises:
        ModelNotFound, UnsupportedArchitecture: as :func:`debug.models.load`.
        InputError: the model is elsewhere.
    """
    if is_remote(device):
        raise InputError(
            "device is a server: what that takes nobody here knows. Without it a dry run counts what is to be run, of "
            "which a server runs one whole prompt each"
        )
    dtype, device = dtype_and_device(dtype, device)
    device = ("cuda" if has_gpu() else "cpu") if device in (*DEVICE_MAPS, TP) else device
    path, files = locate(model_id)
    try:
        check_reachable(path)
        if "gguf_file" in files:
            config = _of_gguf(Path(path, files["gguf_file"]))
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, gguf_file=files["gguf_file"])
        else:
            config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype]).eval()
    except Exception as error:  # the hub's client and transformers share no base class
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFound(
            f"configuration or tokenizer of model {model_id!r} in {path} cannot be read: {said}"
        ) from error
    _fill(hf, lambda at: torch.zeros((), dtype=at.dtype, device=device).expand(at.shape))
    for module in hf.modules():  # rotary frequencies and the like, which no file holds
        for name, at in list(module.named_buffers(recurse=False)):
            if at.is_meta:
                setattr(module, name, torch.zeros(at.shape, dtype=at.dtype, device=device))
    try:
        made = wrap(hf, tokenizer, model_id=name_of(model_id), path=path, dtype=dtype)
    except InputError as error:
        raise UnsupportedArchitecture(str(error)) from error
    return Blueprint(**{each.name: getattr(made, each.name) for each in fields(LoadedModel)})


def _of_gguf(file: Path) -> PreTrainedConfig:
    """The configuration in a GGUF file's header, as transformers has it; it parses the vocabulary, too: 5 s, twice."""
    header, tensors = read_gguf_metadata(str(file))
    found: dict[str, Argument] = dict(GGUF_CONFIG_DEFAULTS_MAPPING.get(header["general.architecture"], {}))
    for begins, names in GGUF_TO_TRANSFORMERS_MAPPING["config"].items():
        known = {new: header.get(f"{begins}.{name}") for name, new in names.items() if new not in (None, -1)}
        found |= {name: value for name, value in known.items() if value is not None}
    size = header["tokenizer.ggml.tokens"]  # how many; they themselves are not read
    return AutoConfig.for_model(**{"vocab_size": size, **found, "tie_word_embeddings": "output.weight" not in tensors})


def with_random_weights(model: Blueprint) -> LoadedModel:
    """The same model with random weights in memory, which take as long as any others; made in place.

    Layers behind the first 2 GiB have the weights of those before them.
    """
    draws = torch.Generator(model.device).manual_seed(0)

    def drawn(at: Tensor) -> Tensor:
        if at.ndim < 2:
            return torch.ones(at.shape, dtype=at.dtype, device=model.device)
        return torch.empty(at.shape, dtype=at.dtype, device=model.device).normal_(0, 0.02, generator=draws)

    layers, used, own = follow(model.hf, model.architecture.layers), 0, 0
    for number, layer in enumerate(layers):
        if number and used > DISTINCT:
            shared = dict(layers[number % own].named_parameters())
            for name, parameter in layer.named_parameters():
                parameter.data = shared[name].data
            continue
        _fill(layer, drawn)
        used, own = used + sum(p.numel() * p.element_size() for p in layer.parameters()), number + 1
    ids = {id(parameter) for parameter in layers.parameters()}
    for parameter in model.hf.parameters():
        if id(parameter) not in ids:
            parameter.data = drawn(parameter)
    return model


def _fill(module: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Put other data into the parameters; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for each in module.modules():
        for name, parameter in list(each._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(make(parameter), requires_grad=False)
                each._parameters[name] = made[id(parameter)]
