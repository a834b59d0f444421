"""The metrics of a cell from the records of its samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from debug.kinds import Json
from debug.statistics import Interval, bootstrap_mean, wilson

COUNTED = ("prompt_tokens", "completion_tokens")
"""Of a sample, and summed up of a cell: what a server counts, and is paid for."""


def score_records(
    records: list[dict[str, Json]], seconds: float, kept: int = 0, price: Sequence[float] | None = None
) -> dict[str, float | None]:
    """A cell's metrics. A sample without an answer counts among n: it was asked, and not answered correctly; one with
    ``correct`` null does not.

    Args:
        kept: how many had been asked before these seconds.
        price: of a million prompt tokens, and of a million completion tokens.
    """
    read = [record for record in records if record["correct"] is not None]
    metrics: dict[str, float | None] = {"accuracy": None, "accuracy_ci_low": None, "accuracy_ci_high": None}
    if read:
        metrics |= _with_ends("accuracy", wilson(sum(record["correct"] for record in read), len(read)))
    for name in ("answer_probability", "answer_rank"):
        values = [record[name] for record in read if name in record]
        if values:
            bounds = (0.0, 1.0) if name == "answer_probability" else None
            metrics |= _with_ends(name, bootstrap_mean(values, bounds=bounds))
    counted = {name: float(sum(record.get(name, 0) for record in records)) for name in COUNTED}
    if any(counted.values()):
        metrics |= counted
    if price is not None:
        metrics["cost"] = sum(each * counted[name] / 1e6 for name, each in zip(COUNTED, price, strict=True))
    return metrics | {
        "num_samples": len(read),
        "num_errors": len(records) - len(read),
        "num_no_answer": sum(record["parsed"] is None for record in read),
        "samples_per_second": (len(records) - kept) / seconds if len(records) > kept else None,
    }


def _with_ends(name: str, interval: Interval) -> dict[str, float | None]:
    return {name: interval.estimate, f"{name}_ci_low": interval.low, f"{name}_ci_high": interval.high}


def count_records(records: list[dict[str, Json]]) -> dict[str, Json]:
    read = [record for record in records if record["correct"] is not None]
    correct = sum(record["correct"] for record in read)
    no_answer = sum(record["parsed"] is None for record in read)
    errors = Counter(_without_seed(record) for record in records if record["correct"] is None)
    unanswered = Counter(_without_seed(record) for record in read if record["error"] is not None)
    return {
        "correct": correct,
        "wrong": len(read) - correct - no_answer,
        "no_answer": no_answer,
        "errors": len(records) - len(read),
        "error_counts": dict(errors.most_common(5)),
        "no_answer_counts": dict(unanswered.most_common(5)),
        "distinct_programs": len({record["program"] for record in read}),
    }


def _without_seed(record: dict[str, Json]) -> str:
    """An error without what is this sample's alone, so that errors of one kind can be counted."""
    return record["error"].replace(f"at seed {record['seed']}", "at a seed").split("; the prompt begins")[0]
