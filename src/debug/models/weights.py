"""Weights from files, all of them and no others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache

from debug.kinds import Argument, Module
from debug.models.errors import WeightsMismatch
from debug.models.transformers_model import quiet_transformers

_OLD_BUFFERS = re.compile(r"\.(masked_bias|inv_freq|version)$")
"""What files of older versions of transformers hold and no model needs."""


def from_files(kind: Any, path: str | Path, **options: Argument) -> Module:  # an auto class, or a model's own
    """A transformers module with the weights of its files and no others, in memory of its own.

    transformers fills in what files lack with random numbers and leaves out what it does not know, each with a log
    line; and it maps files into memory, so that one that is written over later would change the loaded model.

    Args:
        kind: the class whose ``from_pretrained`` gets the path and the options.

    Raises:
        WeightsMismatch: weights are missing (tied ones aside), unknown, or of another size.
    """
    with quiet_transformers():  # its table of these keys is what the error below says
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


@contextmanager
def gguf_parsed_once() -> Iterator[None]:
    """While it lasts, a GGUF file is parsed when it is first asked for, and names of tensors are made once.

    transformers does the one for a model's configuration, twice for its tokenizer, and for its weights, seconds each,
    and the other for each of its modules.
    """
    import gguf

    for_each = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, made in for_each.items():
        setattr(gguf, name, cache(made))
    try:
        yield
    finally:
        for name, made in for_each.items():
            setattr(gguf, name, made)


def check_reachable(path: str) -> None:
    """Fails at once without a network, where a download would try for long."""
    if not Path(path).is_dir() and not isinstance(try_to_load_from_cache(path, "config.json"), str):
        HfApi().model_info(path, timeout=10)
