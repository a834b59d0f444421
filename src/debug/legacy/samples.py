"""Accuracy results of the older format."""

from __future__ import annotations

from typing import Required

from typing_extensions import TypedDict

from debug.kinds import Json
from debug.legacy.source import NOT_RECORDED, LegacyCell, LegacyError, Problem, Source
from debug.records import Answer, Boolean, Int64, Number, Text
from debug.statistics import wilson
from debug.tracking import RunWriter


class _Sample(TypedDict, total=False):
    experiment: Text | None
    model_id: Required[Text]
    seq_len: Required[Int64]
    seq_id: Int64 | None
    program: Required[Text]
    true_answer: Required[Answer]
    predicted_answer: Answer | None
    correct: Required[Boolean]
    raw_output: Text | None
    query_hops: Int64 | None


class _Summary(TypedDict, total=False):
    overall_accuracy: Number
    total_samples: Int64


def read_samples(source: Source) -> list[LegacyCell]:
    """A cell for each model, hops (where they were recorded) and length."""
    cells: dict[tuple[str, int | None, int], list[dict[str, Json]]] = {}
    experiments = set()
    for _, row in source.checked(_Sample):
        cells.setdefault((row["model_id"], row["query_hops"], row["seq_len"]), []).append(row)
        experiments.add(row["experiment"])
    if not cells:
        raise LegacyError("has no row that makes sense")
    if len(experiments) == 1 and (name := experiments.pop()):
        source.experiment = name[:200]
    _check_summary(source, [row for rows in cells.values() for row in rows])
    return [_samples_cell(source, *key, rows) for key, rows in cells.items()]


def _check_summary(source: Source, rows: list[dict[str, Json]]) -> None:
    summary = source.beside("summary.json", _Summary)
    accuracy = sum(row["correct"] for row in rows) / len(rows)
    for name, found in (("total_samples", len(rows)), ("overall_accuracy", accuracy)):
        if name in summary and abs(summary[name] - found) > 1e-9:
            label = f"{source.name.rpartition('/')[0]}/summary.json".lstrip("/")
            problem = f"field {name!r} is {summary[name]}; the rows that were imported give {found}"
            source.problems.append(Problem(label, None, problem))


def _samples_cell(
    source: Source, model: str, hops: int | None, seq_len: int, rows: list[dict[str, Json]]
) -> LegacyCell:
    shown = "any" if hops is None else hops
    params = NOT_RECORDED | {"model": model, "hops": shown, "seq_len": seq_len, "num_seqs": len(rows)}
    name = f"{model} · {shown} hops · {seq_len} lines · imported"

    def write(run: RunWriter) -> None:
        run.append_jsonl("samples.jsonl", (_sample(row) for row in rows))
        accuracy = wilson(sum(row["correct"] for row in rows), len(rows))
        metrics = accuracy.metrics("accuracy") | {"num_samples": len(rows)}
        run.log_metrics(metrics)
        run.log_json("summary.json", {"model": model, "hops": hops, "seq_len": seq_len, "metrics": metrics})
        run.log_dataset("imported programs", [row["program"] for row in rows], {"file": source.name})

    return LegacyCell(name, params, write)


def _sample(row: dict[str, Json]) -> dict[str, Json]:
    return {
        **dict.fromkeys(("seed", "prompt", "chain", "error")),
        "seq_len": row["seq_len"],
        "hops": row["query_hops"],
        "program": row["program"],
        "expected": row["true_answer"],
        "raw_output": row["raw_output"],
        "parsed": row["predicted_answer"],
        "correct": row["correct"],
    }
