"""What a causal map says of itself: the fields of its header and its arrays, each with its check."""

from __future__ import annotations

from typing import Any

import numpy as np

from debug.causal_map.metrics import LEGACY
from debug.causal_map.sources import DIRECTIONS, SOURCES


def _int(value: Any) -> int:
    if type(value) is int and -(2**31) <= value < 2**31:  # no bool
        return value
    raise TypeError("expected an integer of 32 bits")


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise TypeError("expected a number, 0 or more")
    return float(value)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("expected a text")
    value.encode("utf-8")  # a lone surrogate is no text, and a ValueError
    return value


def _list(check: Any) -> Any:
    def read(value: Any) -> list:
        if not isinstance(value, list | tuple):
            raise TypeError("expected a list")
        return [check(item) for item in value]

    return read


def _two(value: Any) -> tuple[int, int]:
    first, second = _list(_int)(value)
    return first, second


def _one_of(*options: str) -> Any:
    def read(value: Any) -> str:
        if value not in options:
            raise ValueError(f"expected one of {', '.join(options)}")
        return value

    return read


ARRAYS = {
    "z_clean": np.float32,
    "z_counterfactual": np.float32,
    "z_patched": np.float32,
    "top": np.int64,
    "control_top": np.int64,
    "lens_logits": np.float32,
    "lens_ranks": np.int64,
    **dict.fromkeys(LEGACY, np.float32),
}
HEADER: dict[str, Any] = {
    "intervention_type": _str,
    "pair": _int,
    "tokens": _list(_str),
    "layers": _list(_int),
    "positions": _list(_int),
    "columns": _list(_list(_int)),
    "targets": lambda value: {_str(name): _list(_int)(positions) for name, positions in value.items()},
    "n_layers": _int,
    "first_difference": _int,
    "answer_tokens": _two,
    "top_tokens": _two,
    "min_effect": _number,
    "vocabulary": lambda value: {_int(int(token)): _str(text) for token, text in value.items()},
    "target_columns": lambda value: {_str(name): _int(column) for name, column in value.items()},
    "layer_window": _int,
    "heads": _list(_list(_int)),
    "source": _one_of(*SOURCES, "knockout"),
    "direction": _one_of(*DIRECTIONS),
    "method": _one_of("patching", "attribution", "imported"),
}
DEFAULTS = ("layer_window", "heads", "source", "direction", "method")  # what the first maps did not say
