"""What a record that was read from a file must hold: types with their bounds, against which pydantic checks values.

Files of a store, of an export or of an older result folder are untrusted. Numbers, texts and booleans are never
converted into one another; NaN, lone surrogates and integers that no array holds are refused. Imported only where a
file is read: pydantic takes 0.2 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from debug.errors import DebugError, InputError
from debug.kinds import Json

_MOST_ENTRIES = 2**17  # of a record with keys of anybody's making: pydantic keeps an error for each
_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True)
class Expected:
    """The last of an annotation: what a message says was expected there, whatever was wrong with the value."""

    what: str
    schema: CoreSchema | None = None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source) if self.schema is None else self.schema
        return core_schema.custom_error_schema(schema, "expected", custom_error_message=f"expected {self.what}")


def one_of(*options: str) -> Expected:
    return Expected(f"one of {', '.join(options)}", core_schema.literal_schema([*options]))


def _few(value: _V) -> _V:
    if isinstance(value, dict) and len(value) > _MOST_ENTRIES:
        raise ValueError(f"expected at most {_MOST_ENTRIES:,} entries")
    return value


Int32 = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31), Expected("an integer of 32 bits")]
Int64 = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63), Expected("an integer of at most 64 bits")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), Expected("a finite number")]
Boolean = Annotated[bool, Field(strict=True), Expected("true or false")]
# Any bound of its length makes pydantic look for lone surrogates.
Text = Annotated[str, Field(strict=True, min_length=0), Expected("a text (with no lone surrogates)")]
Answer = Annotated[Int64 | Boolean | Text, Expected("an integer of at most 64 bits, a text, true or false")]
List = Annotated[list[_V], Field(fail_fast=True)]
Names = Annotated[list[Text], Field(fail_fast=True), Expected("a list of texts")]
Entries = Annotated[dict[_K, _V], BeforeValidator(_few)]


@cache
def _adapter(kind: type) -> TypeAdapter:
    return TypeAdapter(kind)


def validated(
    kind: type, record: dict[str, Json], raising: Callable[[str], DebugError] = InputError, within: str = ""
) -> dict[str, Json]:
    """The fields of a record that a TypedDict of these types names.

    Raises:
        InputError: as ``raising`` makes it of the message, which names the first field that is missing or wrong (after
            ``within``), what it is (80 characters) and what was expected.
    """
    try:
        return _adapter(kind).validate_python(record)
    except ValidationError as error:
        raise raising(_told(record, error.errors(include_url=False)[0], within)) from error


def _told(record: dict[str, Json], error: Any, within: str) -> str:  # pydantic types loc as of names or numbers
    field, *inside = error["loc"]
    if error["type"] == "missing" and not inside:
        return f"field '{within}{field}' is missing"
    expected = _EXPECTED.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    if inside:
        at = "".join(f"[{key!r:.80}]" for key in inside if key != "[key]")  # which pydantic puts behind a wrong key
        expected += f", not {error['input']!r:.80} at {at}"
    return f"field '{within}{field}' is {record[field]!r:.80}; {expected}"


_EXPECTED = {
    "missing": "expected a value",
    "extra_forbidden": "expected nothing",
    "dict_type": "expected a record",
    "list_type": "expected a list",
}
