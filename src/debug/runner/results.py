"""What an accuracy study found, and how it is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from debug.statistics import wilson

CellKey = tuple[str, int | None, int]
"""Model id, hops (None: any) and seq_len."""

MOST_PRINTED = 40
"""Comparisons that are printed one by one."""


@dataclass(frozen=True)
class ExperimentResult:
    """What a run gave: one row a sample, the summary as in summary.json, and the MLflow run ids.

    ``str()`` is a table of the cells with their intervals, and of the paired tests where models were compared; where
    cells share programs it says so.
    ``cell_run_ids`` are by (model id, hops, seq_len); of a study with several prompts or tasks, the last's.
    """

    samples: pl.DataFrame
    summary: dict[str, Any]
    run_id: str
    cell_run_ids: dict[CellKey, str]
    tracking_uri: str

    def __str__(self) -> str:
        cells = self.summary["cells"]
        several = len({cell["generator"] for cell in cells}) > 1
        head = ("model", *(["generator"] if several else []), "hops", "lines", "accuracy", "no answer", "errors", "run")
        rows: list[tuple[Any, ...]] = [head]
        for cell in cells:
            accuracy, warning = "none", None
            if cell["num_samples"]:
                interval = wilson(cell["correct"], cell["num_samples"])
                accuracy, warning = str(interval), interval.warning
            rows.append(
                (
                    *(
                        cell["label"],
                        *([cell["generator"]] if several else []),
                        hops_text(cell["hops"]),
                        cell["seq_len"],
                    ),
                    *(accuracy, cell["no_answer"], cell["errors"], cell["run_id"]),
                )
            )
            if warning:
                rows[-1] += (warning,)
        lines = _table(rows)
        errors = sum((Counter(cell["error_counts"]) for cell in cells), Counter())
        lines += [f"{count} errors: {message}" for message, count in errors.most_common(5)]
        unanswered = sum((Counter(cell["no_answer_counts"]) for cell in cells), Counter())
        lines += [f"{count} without an answer: {message}" for message, count in unanswered.most_common(5)]
        lines += [f"finished cells were made otherwise: {line}" for line in self.summary.get("mixed", ())]
        for backend, reason in dict.fromkeys((cell["backend"], cell["backend_reason"]) for cell in cells):
            lines.append(f"backend {backend}: {reason}")
        comparisons = self.summary["comparisons"]
        told_apart = sum(c["p_adjusted"] < 0.05 for c in comparisons)
        if len(comparisons) > MOST_PRINTED:
            lines += ["", f"the same programs, paired: in {told_apart} of {len(comparisons)} comparisons exact McNemar"]
            lines[-1] += " tests give p < 0.05 after Holm's correction; each is in summary.json and comparisons.png"
        elif comparisons:
            lines += [
                "",
                "the same programs, paired (difference of accuracies; correct by one alone; exact McNemar; the",
            ]
            lines[-1] += " interval is that of the p of each comparison alone)"
            lines += _table(
                [
                    (
                        f"{c['first']} - {c['second']}",
                        c["generator"],
                        hops_text(c["hops"]),
                        f"{c['seq_len']} lines",
                        c["text"],
                    )
                    for c in comparisons
                ]
            )
        over_cells = self.summary["comparisons_over_cells"]
        if over_cells:
            lines += ["", "all cells together, paired, clustered by seed (n: seeds; exact sign-flip test over seeds)"]
            lines += _table([(f"{c['first']} - {c['second']}", c["generator"], c["text"]) for c in over_cells])
        if self.summary["shared_programs"]:
            lines += ["", self.summary["shared_programs"]]
        return "\n".join(lines)


def _table(rows: Sequence[Sequence[Any]]) -> list[str]:
    widths = [max(len(str(row[n])) for row in rows if n < len(row)) for n in range(max(map(len, rows)))]
    return [
        "  ".join(str(entry).ljust(width) for entry, width in zip(row, widths, strict=False)).rstrip() for row in rows
    ]


def hops_text(hops: int | None) -> str:
    return "any" if hops is None else str(hops)
