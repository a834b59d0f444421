"""The errors that a user can cause, and can act on. Command line and dashboard catch these and nothing wider."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``" (did you mean 'tiny'?)"`` where a known word is near to what was given, else nothing."""
    words = {word.lower(): word for word in known}
    near = difflib.get_close_matches(given.lower(), words, 1, 0.7)
    return f" (did you mean {words[near[0]]!r}?)" if near and words[near[0]] != given else ""


class DebugError(Exception):
    """Base class: the message says what was given, what was expected, and what to do. All else is a bug of ours, and
    keeps its traceback."""


class InputError(DebugError, ValueError):
    """An argument, a program, an id or a file that cannot be."""
