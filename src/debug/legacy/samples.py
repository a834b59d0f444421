"""Accuracy results of the older format."""

from __future__ import annotations

from typing import Any

from debug import checks
from debug.checks import Check
from debug.legacy.source import NOT_RECORDED, LegacyCell, LegacyError, Problem, Source
from debug.statistics import wilson
from debug.tracking import RunWriter

_SAMPLE: dict[str, Check] = {
    "experiment": checks.text,
    "model_id": checks.text,
    "seq_len": checks.integer,
    "seq_id": checks.integer,
    "program": checks.text,
    "true_answer": checks.answer,
    "predicted_answer": checks.answer,
    "correct": checks.boolean,
    "raw_output": checks.text,
    "query_hops": checks.integer,
}


def read_samples(source: Source) -> list[LegacyCell]:
    """A cell for each model, hops (where they were recorded) and length."""
    cells: dict[tuple[str, int | None, int], list[dict[str, Any]]] = {}
    required = ["model_id", "seq_len", "program", "true_answer", "correct"]
    experiments = set()
    for _, row in source.checked(_SAMPLE, required):
        cells.setdefault((row["model_id"], row["query_hops"], row["seq_len"]), []).append(row)
        experiments.add(row["experiment"])
    if not cells:
        raise LegacyError("has no row that makes sense")
    if len(experiments) == 1 and (name := experiments.pop()):
        source.experiment = name[:200]
    _check_summary(source, [row for rows in cells.values() for row in rows])
    return [_samples_cell(source, *key, rows) for key, rows in cells.items()]


def _check_summary(source: Source, rows: list[dict[str, Any]]) -> None:
    summary = source.beside("summary.json", {"overall_accuracy": checks.number, "total_samples": checks.integer})
    accuracy = sum(row["correct"] for row in rows) / len(rows)
    for name, found in (("total_samples", len(rows)), ("overall_accuracy", accuracy)):
        if name in summary and abs(summary[name] - found) > 1e-9:
            label = f"{source.name.rpartition('/')[0]}/summary.json".lstrip("/")
            problem = f"field {name!r} is {summary[name]}; the rows that were imported give {found}"
            source.problems.append(Problem(label, None, problem))


def _samples_cell(source: Source, model: str, hops: int | None, seq_len: int, rows: list[dict[str, Any]]) -> LegacyCell:
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


def _sample(row: dict[str, Any]) -> dict[str, Any]:
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
