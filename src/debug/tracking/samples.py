"""What a line of samples.jsonl holds."""

from __future__ import annotations

from functools import cache
from typing import Any, NotRequired

import polars as pl
from typing_extensions import TypedDict

from debug.records import Answer, Boolean, Int64, Names, Text

SAMPLE: dict[str, Any] = {  # types as pydantic reads them, Annotated and unions too
    "seed": Int64,
    "seq_len": Int64,
    "hops": Int64,
    "program": Text,
    "prompt": Text,
    "expected": Answer,
    "raw_output": Text,
    "parsed": Answer,
    "correct": Boolean,
    "chain": Names,
    "error": Text,
}


SAMPLE_OF_PAIR: dict[str, Any] = {  # the same
    "counterfactual": Text,
    "expected_counterfactual": Answer,
    "raw_output_counterfactual": Text,
    "correct_counterfactual": Boolean,
}


NULLABLE = frozenset({"seed", "hops", "parsed", "chain", "error"})


NOT_RECORDED = frozenset({"prompt", "raw_output", "correct", "expected"})
"""What imported runs may lack besides: the older format does not record all of it."""


DTYPES = {Int64: pl.Int64, Text: pl.String, Boolean: pl.Boolean, Names: pl.List(pl.String)}


@cache
def sample_with_empty(nullable: frozenset[str]) -> type:
    """The type of a sample that may leave these fields empty, and all of a pair out."""
    fields = {name: kind | None if name in nullable else kind for name, kind in SAMPLE.items()}
    fields |= {name: NotRequired[kind | None] for name, kind in SAMPLE_OF_PAIR.items()}
    return TypedDict("Sample", fields)  # pyright: ignore[reportArgumentType]  # made of data
