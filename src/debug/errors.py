"""The errors that a user can cause, and can act on. Command line and dashboard catch these and nothing wider."""

from __future__ import annotations


class DebugError(Exception):
    """Base class: the message says what was given, what was expected, and what to do. All else is a bug of ours, and
    keeps its traceback."""


class InputError(DebugError, ValueError):
    """An argument, a program, an id or a file that cannot be."""
