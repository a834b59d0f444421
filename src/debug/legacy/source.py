"""A file of the older format, read row by row, and what was wrong in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from debug import checks
from debug.errors import InputError
from debug.kinds import Json
from debug.provenance import text_digest
from debug.records import validated
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

    def rows(self) -> list[Json]:
        rows = checks.read_json(self.path, constants=True, largest=LARGEST_FILE)
        if not isinstance(rows, list):
            raise LegacyError(f"is {rows!r:.80}; expected a list of records")
        if not rows:
            raise LegacyError("is an empty list")
        return rows

    def beside(self, name: str, kind: type) -> dict[str, Json]:
        """Those fields of another file in the same folder that are right; empty where it is not there or broken."""
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
        for known in kind.__annotations__:
            if record.get(known) is not None:
                try:
                    found |= validated(kind, {known: record[known]})
                except InputError as error:
                    self.problems.append(Problem(label, None, str(error)))
        return found

    def checked(self, kind: type) -> Iterator[tuple[int, dict[str, Json]]]:
        """(index, record with every field of its type, null where it lacks it) of the rows that make sense."""
        for index, row in enumerate(self.rows()):
            try:
                if not isinstance(row, dict):
                    raise InputError(f"is {row!r:.80}; expected a record")
                record = dict.fromkeys(kind.__annotations__) | validated(kind, row)
            except InputError as error:
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
    params: dict[str, Json]
    write: Callable[[RunWriter], None]


TIMESTAMP = re.compile(r"(?:(?P<name>.+)_)?(?P<timestamp>\d{8}_\d{6})")
FIRST_DIGIT = 15  # token id of "0" in byte-level vocabularies


# Params of the tracking contract that the format does not record.
NOT_RECORDED = dict.fromkeys(("seed", "generator", "prompt_template", "backend", "dtype", "device"))
