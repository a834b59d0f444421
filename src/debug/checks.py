"""JSON files, which are untrusted, and what programs and answers of a caller's own functions must be.

A check takes a value and raises InputError with what was expected; whoever calls it names the field. Of records that
are read from files see :mod:`debug.records`.
"""

from __future__ import annotations

import json
from pathlib import Path

from debug.errors import InputError
from debug.kinds import Json

LARGEST_JSON = 2**26  # bytes of a file that is parsed as a whole: a parsed value takes some twenty times as much memory
LONGEST_LINE = 2**24


def from_json(text: bytes, *, constants: bool = False) -> Json:
    """Raises InputError for all that is no JSON: broken text, nesting without end and (without ``constants``) NaN."""
    try:
        return json.loads(text.decode("utf-8"), parse_constant=float if constants else _refuse_constant)
    except RecursionError as error:
        raise InputError("nested too deep") from error
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from error


def _refuse_constant(name: str) -> None:
    raise InputError(f"{name} is no JSON value")


def read_json(path: Path, *, constants: bool = False, largest: int = LARGEST_JSON) -> Json:
    """Raises InputError as :func:`from_json`, for files that are too large to be read too; OSError."""
    if (size := path.stat().st_size) > largest:
        raise InputError(f"has {size:,} bytes; expected at most {largest:,}")
    return from_json(path.read_bytes(), constants=constants)


def shown(value: object) -> str:
    """A value of anybody's making in a message: at most 200 characters, whatever its ``repr`` does."""
    try:
        return repr(value)[:200]
    except Exception as error:
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"


def integer(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError("expected an integer")
    if not -(2**63) <= value < 2**63:
        raise InputError("expected an integer of at most 64 bits")


def text(value: object) -> None:
    if not isinstance(value, str):
        raise InputError("expected a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"expected a text, and a lone surrogate is none: {error.reason}") from error


def answer(value: object) -> None:
    if isinstance(value, str):
        text(value)
    elif not isinstance(value, bool):
        integer(value)


def names(value: object) -> None:
    if not isinstance(value, list):
        raise InputError("expected a list of texts")
    for name in value:
        text(name)
