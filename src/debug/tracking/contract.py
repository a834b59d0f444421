"""What every run of this project has in a store: kinds, tags, and the limits of what MLflow keeps.

DESIGN.md's tracking contract, schema 1. Knows no store.
"""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from mlflow.entities import Run

from debug import provenance
from debug.errors import DebugError, InputError

_T = TypeVar("_T")
SCHEMA = 1
ARTIFACTS = "artifacts"
"""Name of the folder beside a SQLite store that holds the artifacts of its runs."""
KINDS = (
    "accuracy",
    "causal_tracing",
    "attention_knockout",
    "attribution",
    "logit_lens",
    "robust_seeds",
    "training",
    "imported",
)
PARENT = "mlflow.parentRunId"
SUPERSEDED = "debug.superseded"
"""Tag of a cell that was not finished when its study was resumed, and was then done anew: it is listed nowhere."""
MIXED = "debug.mixed"
"""Tag of a study that other code, libraries or weights went on with, and of its cells made so: what differs."""
PLACE = "debug.cell"
"""Tag of a cell: its place in its study."""
ARCHIVED = "debug.archived"
"""Tag of a run that people have put away, with when: it loses nothing, and lists leave it out. (A run that is deleted
in MLflow is erased by ``mlflow gc``.)"""
NOTE = "mlflow.note.content"
"""Tag with the text that the MLflow UI shows as a run's description."""
MAX_PARAM, MAX_TAG, MAX_DIGEST = 6000, 8000, 36  # characters; MLflow cuts longer values off without a word
BATCH_METRICS, BATCH_OTHERS = 1000, 100  # what MLflow takes in one log_batch
LATEST = 253_402_300_799_000  # milliseconds since 1970: the last second of the year 9999
PART = ".part"  # ending of a file that is being written
ENDED = ("FINISHED", "FAILED", "KILLED")


class TrackingError(DebugError, RuntimeError):
    """The store cannot be opened or written, a run is not found, or an artifact is broken: says what to do."""


class StoreAway(TrackingError):
    """A store that does not answer now, and may later."""


class StillRunning(TrackingError):
    """A study that another process carries out; the message says which."""


class LeftToOthers(Exception):
    """This process leaves a study that others go on with, or end."""


def tags_of_process() -> dict[str, str]:
    """Tags that say which code made the run, and those of MLflow's own columns."""
    tags = {**provenance.of_process(), "mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # a container may have no name for its user
        tags["mlflow.user"] = getpass.getuser()
    return tags


NOT_INHERITED = {
    *("debug.role", "debug.error", "debug.exported_from", "debug.export_digest"),
    *(SUPERSEDED, MIXED, *provenance.OF_PROCESS),
}
"""Tags of a study that say nothing of the cells that another process adds, as signs of life do."""


def kept_tag(name: str) -> bool:
    """Whether a tag is a run's own: those that MLflow gives by itself belong to a store."""
    return not name.startswith("mlflow.") or name in ("mlflow.user", "mlflow.source.name", "mlflow.source.type")


def own_tag(name: str) -> bool:
    """Whether a tag is neither MLflow's nor this project's: people's own."""
    return not name.startswith(("mlflow.", "debug."))


def checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    for name, value in tags.items():
        if not isinstance(value, str) or len(value) > MAX_TAG:
            raise InputError(f"tag {name!r} is {value!r:.80}; expected a text of at most {MAX_TAG} characters")
    return dict(tags)


def chunks(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def to_json(value: object, what: str, indent: int | None = None) -> str:
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} is {value!r:.200}, which JSON cannot hold: {error}") from error


def time_of(milliseconds: int | None) -> datetime | None:
    """None too for a time that no calendar has: a store may hold anything."""
    if milliseconds is None or not 0 <= milliseconds <= LATEST:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def seconds_of(run: Run) -> float | None:
    start, end = run.info.start_time, run.info.end_time
    return None if start is None or end is None else (end - start) / 1000
