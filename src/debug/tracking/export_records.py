"""What an export's run.json must look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from debug import checks
from debug.errors import InputError
from debug.tracking import LATEST

STATUSES = ("FINISHED", "FAILED", "KILLED")


class ExportError(InputError):
    """A run that cannot be exported, or an export that is broken: names the file and the field."""


def _matching(pattern: str, what: str) -> checks.Check:
    def check(value: Any) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise InputError(f"expected {what}")

    return check


def _moment(value: Any) -> None:
    checks.integer(value)
    if not 0 <= value <= LATEST:
        raise InputError("expected milliseconds since 1970, up to the year 9999")


def _short(value: Any) -> None:
    checks.text(value)
    if not 0 < len(value) <= 500:
        raise InputError("expected a text of 1 to 500 characters")


def _texts(longest: int) -> checks.Check:
    def check(value: Any) -> None:
        if not isinstance(value, dict) or not all(isinstance(key, str) and 0 < len(key) <= 250 for key in value):
            raise InputError("expected a record of texts")
        for text in value.values():
            checks.text(text)
            if len(text) > longest:
                raise InputError(f"expected texts of at most {longest} characters")

    return check


def _points(value: Any) -> None:
    if not isinstance(value, list):
        raise InputError("expected a list of points")
    for point in value:
        if not isinstance(point, list) or len(point) != 4:
            raise InputError("expected points of name, value, time and step")
        _short(point[0])
        checks.number(point[1])
        _moment(point[2])
        checks.integer(point[3])


def _records_of(fields: Mapping[str, checks.Check]) -> checks.Check:
    def check(value: Any) -> None:
        if not isinstance(value, dict) or value.keys() != fields.keys():
            raise InputError(f"expected records with {', '.join(fields)}")
        for name, each in fields.items():
            each(value[name])

    return check


def _each(check: checks.Check, kind: type) -> checks.Check:
    def check_all(value: Any) -> None:
        if not isinstance(value, kind):
            raise InputError(f"expected a {'list' if kind is list else 'record'}")
        for entry in value if kind is list else value.values():
            check(entry)

    return check_all


def _or_null(check: checks.Check) -> checks.Check:
    return lambda value: None if value is None else check(value)


def _size(value: Any) -> None:
    checks.integer(value)
    if value < 0:
        raise InputError("expected a size in bytes")


_FILE = _records_of({"size": _size, "sha256": _matching("[0-9a-f]{64}", "a SHA-256")})
_DATASET = _records_of(
    {
        "name": _short,
        "digest": _matching("[0-9a-zA-Z]{1,36}", "a digest"),
        "source": checks.text,
        "profile": _or_null(checks.text),
    }
)
RUN: dict[str, checks.Check] = {
    "run_id": _matching("[0-9a-f]{32}", "the id of a run"),
    "name": _short,
    "experiment": _short,
    "status": _matching("|".join(STATUSES), f"one of {', '.join(STATUSES)}"),
    "start_time": _moment,
    "end_time": _or_null(_moment),
    "params": _texts(6000),
    "tags": _texts(8000),
    "metrics": _points,
    "datasets": _each(_DATASET, list),
    "files": _each(_FILE, dict),
    "children": _each(lambda _: None, list),
}
