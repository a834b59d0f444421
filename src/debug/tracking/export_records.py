"""What an export's run.json must look like."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, with_config
from pydantic_core.core_schema import str_schema
from typing_extensions import TypedDict

from debug.errors import InputError
from debug.kinds import Json
from debug.records import Entries, Expected, Int64, List, Number, Text, one_of
from debug.tracking import LATEST

STATUSES = ("FINISHED", "FAILED", "KILLED")


class ExportError(InputError):
    """A run that cannot be exported, or an export that is broken: names the file and the field."""


def _text(least: int, most: int, what: str = "a text") -> Expected:
    return Expected(
        f"{what} of {least} to {most} characters", str_schema(strict=True, min_length=least, max_length=most)
    )


def _matching(pattern: str, what: str) -> Expected:
    return Expected(what, str_schema(strict=True, pattern=f"^{pattern}$"))


_Moment = Annotated[int, Field(strict=True, ge=0, le=LATEST), Expected("milliseconds since 1970, up to the year 9999")]
_Short = Annotated[str, _text(1, 500)]
_Key = Annotated[str, _text(1, 250, "a name")]


@with_config(ConfigDict(extra="forbid"))
class _File(TypedDict):
    size: Annotated[int, Field(strict=True, ge=0, lt=2**63), Expected("a size in bytes")]
    sha256: Annotated[str, _matching("[0-9a-f]{64}", "a SHA-256")]


@with_config(ConfigDict(extra="forbid"))
class _Dataset(TypedDict):
    name: _Short
    digest: Annotated[str, _matching("[0-9a-zA-Z]{1,36}", "a digest")]
    source: Text
    profile: Text | None


class RunRecord(TypedDict):
    run_id: Annotated[str, _matching("[0-9a-f]{32}", "the id of a run")]
    name: _Short
    experiment: _Short
    status: Annotated[str, one_of(*STATUSES)]
    start_time: _Moment
    end_time: _Moment | None
    params: Entries[_Key, Annotated[str, _text(0, 6000)]]
    tags: Entries[_Key, Annotated[str, _text(0, 8000)]]
    metrics: List[tuple[_Short, Number, _Moment, Int64]]
    """Points of name, value, time and step."""
    datasets: List[_Dataset]
    files: Entries[Text, _File]
    children: List[Json]
    """Records of runs themselves."""
