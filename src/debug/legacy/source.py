"""A file of the older format, read row by row, and what was wrong in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from debug import checks
from debug.checks import Check
from debug.errors import InputError
from debug.provenance import text_digest
from debug.tracking import RunWriter

CAUSAL_FILES = ("intervention_results.json", "patch_results.json")
ACCURACY_FILE = "results.json"
LARGEST_FILE = 2**28  # bytes
MOST_CELLS = 2_000_000  # of a map: more than any model has, and few enough to hold


class LegacyError(InputError):
    """A file that is none of the older format."""


@dataclass(frozen=True)
class Problem:
    """What could not be imported: a row of a file, or all of it (``index`` None)."""

    file: str
    index: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.index is None else f', row {self.index}'}: {self.what}"


@dataclass
class Source:
    """A result file: its place says experiment, time and model; its problems are gathered as it is read."""

    root: Path
    path: Path
    name: str
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.experiment, self.timestamp, self.model_folder = self.path.parent.name or "imported", None, None
        parts = self.path.resolve().parent.parts
        for place in range(len(parts) - 1, max(-1, len(parts) - 3), -1):  # the time is the last folder, or that above
            if match := TIMESTAMP.fullmatch(parts[place]):
                self.timestamp = match["timestamp"]
                self.experiment = match["name"] or (parts[place - 1] if place else "imported")
                self.model_folder = parts[place + 1] if place + 1 < len(parts) else None
                break

    def sha256(self) -> str:
        if not self.path.resolve().is_relative_to(self.root.resolve()):
            raise LegacyError("leads out of the folder; it is not read")
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def digest(self) -> str:
        """What names this file wherever it lies."""
        return text_digest(
            [self.path.name, self.experiment, self.timestamp or "", self.model_folder or "", self.sha256()]
        )

    def rows(self) -> list[Any]:
        rows = checks.read_json(self.path, constants=True, largest=LARGEST_FILE)
        if not isinstance(rows, list):
            raise LegacyError(f"is {rows!r:.80}; expected a list of records")
        if not rows:
            raise LegacyError("is an empty list")
        return rows

    def beside(self, name: str, fields: Mapping[str, Check]) -> dict[str, Any]:
        """The known fields of another file in the same folder; empty where it is not there or broken."""
        path = self.path.with_name(name)
        if not path.is_file() or not path.resolve().is_relative_to(self.root.resolve()):
            return {}
        label = f"{self.name.rpartition('/')[0]}/{name}".lstrip("/")
        try:
            record = checks.read_json(path, constants=True)
            if not isinstance(record, dict):
                raise InputError(f"is {record!r:.80}; expected a record")
        except (OSError, ValueError) as error:
            self.problems.append(Problem(label, None, str(error)))
            return {}
        found = {}
        for field_name, check in fields.items():
            if (value := record.get(field_name)) is not None:
                try:
                    check(value)
                    found[field_name] = value
                except ValueError as error:
                    self.problems.append(Problem(label, None, f"field {field_name!r} is {value!r:.80}; {error}"))
        return found

    def checked(self, fields: Mapping[str, Check], required: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, record with every one of the fields, null where it lacks it) of the rows that make sense."""
        for index, row in enumerate(self.rows()):
            try:
                if not isinstance(row, dict):
                    raise InputError(f"is {row!r:.80}; expected a record")
                record = {name: row.get(name) for name in fields}
                for name, check in fields.items():
                    if record[name] is None and name not in required:
                        continue
                    try:
                        check(record[name])
                    except ValueError as error:
                        given = f"is {record[name]!r:.80}" if name in row else "is missing"
                        raise InputError(f"field {name!r} {given}; {error}") from error
            except ValueError as error:
                self.problems.append(Problem(self.name, index, str(error)))
            else:
                yield index, record

    def model(self, recorded: str | None) -> str | None:
        """The model's id: as recorded, else from the folder's name, in which one underscore stands for the slash."""
        name = self.model_folder
        return recorded or (name.replace("_", "/") if name and name.count("_") == 1 else name)


@dataclass(frozen=True)
class LegacyCell:
    name: str
    params: dict[str, Any]
    write: Callable[[RunWriter], None]


def index_of(value: Any) -> None:
    if type(value) is not int or not 0 <= value < 2**20:
        raise InputError("expected an index, 0 or more")


def token_of(value: Any) -> None:
    if type(value) is not int or not 0 <= value < 2**31:
        raise InputError("expected the id of a token")


def share_of(value: Any) -> None:
    checks.number(value)
    if not 0 <= value <= 1:
        raise InputError("expected a share between 0 and 1")


TIMESTAMP = re.compile(r"(?:(?P<name>.+)_)?(?P<timestamp>\d{8}_\d{6})")
FIRST_DIGIT = 15  # token id of "0" in byte-level vocabularies


# Params of the tracking contract that the format does not record.
NOT_RECORDED = dict.fromkeys(("seed", "generator", "prompt_template", "backend", "dtype", "device"))
