"""Causal maps in safetensors files, every array and every header field checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from debug.causal_map.grid import ARRAYS, CausalMap, CausalMapError

LONGEST_HEADER = 2**24  # characters that say what the maps of one file are of
_REQUIRED = ("z_clean", "z_counterfactual", "z_patched", "top")


def save_maps(path: Path, maps: Sequence[CausalMap]) -> None:
    """Write maps into one safetensors file: arrays as ``<index>/<name>``, the rest as JSON in the file's header."""
    arrays: dict[str, np.ndarray] = {}
    headers = []
    for index, causal_map in enumerate(maps):
        own, header = causal_map.to_tensors()
        arrays |= {f"{index}/{name}": array for name, array in own.items()}
        headers.append(header)
    save_tensors(path, arrays, {"causal_maps": json.dumps(headers)})


def save_tensors(path: Path, arrays: dict[str, np.ndarray], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file; whoever reads meanwhile finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    in_order = {name: np.ascontiguousarray(array) for name, array in arrays.items()}  # it writes memory as it lies
    save_file(in_order, part, metadata=header)
    part.replace(path)


def load_maps(path: Path) -> list[CausalMap]:
    """Read the maps of one file; arrays are checked for name, type and shape.

    Raises:
        CausalMapError: names what of the file is broken.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {})["causal_maps"]
            if len(text) > LONGEST_HEADER:
                raise CausalMapError(f"the header 'causal_maps' has {len(text):,} characters, above {LONGEST_HEADER:,}")
            headers = json.loads(text)
            if not isinstance(headers, list) or not all(isinstance(header, dict) for header in headers):
                raise CausalMapError("the header 'causal_maps' is no list of records")
            maps, there = [], set(file.keys())
            for index, header in enumerate(headers):
                arrays = {
                    name: file.get_tensor(f"{index}/{name}")
                    for name in ARRAYS
                    if name in _REQUIRED or f"{index}/{name}" in there
                }
                for name, array in arrays.items():
                    if array.dtype != ARRAYS[name]:
                        raise CausalMapError(
                            f"map {index}: '{name}' is {array.dtype}, expected {ARRAYS[name].__name__}"
                        )
                if arrays["z_clean"].shape != (2,) or arrays["z_counterfactual"].shape != (2,):
                    raise CausalMapError(f"map {index}: 'z_clean' and 'z_counterfactual' must have two logits each")
                try:
                    maps.append(CausalMap.from_tensors(arrays, header))
                except CausalMapError as error:
                    raise CausalMapError(f"map {index}: {error}") from error
            return maps
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError, TypeError, AttributeError) as error:
        if isinstance(error, CausalMapError):
            raise
        raise CausalMapError(f"not a file of causal maps: {type(error).__name__}: {error}") from error
