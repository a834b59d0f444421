"""The configuration of a logged run, made again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from debug import models
from debug.core import ExperimentConfig
from debug.errors import DebugError
from debug.kinds import Argument, Json
from debug.plan import Plan
from debug.rerun.verdict import RerunError
from debug.tracking import LoggedRun, TrackingError

_Config = TypeVar("_Config", Plan, ExperimentConfig)


def build(cell: LoggedRun, kind: type[_Config], logged: Mapping[str, Json], changes: Mapping[str, Argument]) -> _Config:
    """A plan or a configuration from what was logged of it, with some fields changed."""
    known = [field.name for field in fields(kind)]
    if unknown := sorted(changes.keys() - set(known)):
        raise RerunError(f"{', '.join(unknown)} cannot be changed; a run of kind {cell.kind!r} has: {', '.join(known)}")
    if unknown := sorted(logged.keys() - set(known)):
        raise RerunError(
            f"run {cell.run_id} was made with {', '.join(unknown)}, which this version of the project does not know; "
            "update the project to repeat it"
        )
    try:
        return kind(**{**logged, **changes})
    except TypeError as error:
        raise TrackingError(f"run {cell.run_id}, config.json: no {kind.__name__} can be made of it: {error}") from error
    except DebugError as error:
        raise RerunError(f"run {cell.run_id} cannot be repeated so: {error}") from error


def model_of(cell: LoggedRun) -> str:
    """The id that loads the run's model here: its folder where that is there, else the name."""
    name, path = cell.params.get("model", ""), cell.tags.get("debug.model_path", "")
    if not name:
        raise RerunError(f"run {cell.run_id} names no model; name one")
    return path if path and name not in models.BUNDLED and path != name and Path(path).is_dir() else name
