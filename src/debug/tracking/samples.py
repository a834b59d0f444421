"""What a line of samples.jsonl holds."""

from __future__ import annotations

from typing import Any

import polars as pl

from debug import checks
from debug.checks import Check

SAMPLE: dict[str, Check] = {
    "seed": checks.integer,
    "seq_len": checks.integer,
    "hops": checks.integer,
    "program": checks.text,
    "prompt": checks.text,
    "expected": checks.answer,
    "raw_output": checks.text,
    "parsed": checks.answer,
    "correct": checks.boolean,
    "chain": checks.names,
    "error": checks.text,
}


SAMPLE_OF_PAIR: dict[str, Check] = {
    "counterfactual": checks.text,
    "expected_counterfactual": checks.answer,
    "raw_output_counterfactual": checks.text,
    "correct_counterfactual": checks.boolean,
}


NULLABLE = {"seed", "hops", "parsed", "chain", "error"}


NOT_RECORDED = {"prompt", "raw_output", "correct", "expected"}
"""What imported runs may lack besides: the older format does not record all of it."""


DTYPES: dict[Check, Any] = {
    checks.integer: pl.Int64,
    checks.text: pl.String,
    checks.boolean: pl.Boolean,
    checks.names: pl.List(pl.String),
}
