"""Results of an accuracy study, and their printed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from debug.kinds import Json
from debug.runner.scoring import COUNTED
from debug.shown import Shown
from debug.statistics import wilson

if TYPE_CHECKING:
    import altair as alt

CellKey = tuple[str, int | None, int]
"""Model id, hops (None: any) and seq_len."""

MOST_PRINTED = 40
"""At most this many comparisons are printed one by one."""


@dataclass(frozen=True, repr=False)
class ExperimentResult(Shown):
    """Results of a run: one row per sample, the summary as in summary.json, and the MLflow run ids.

    ``str()`` is a table of the cells with 95% CIs, and of the paired tests where models were compared; it says where
    cells share programs.
    ``cell_run_ids`` are by (model id, hops, seq_len); of a study with several prompts or tasks, the last's.
    """

    samples: pl.DataFrame
    summary: dict[str, Json]
    run_id: str
    cell_run_ids: dict[CellKey, str]
    tracking_uri: str

    def _in_short(self) -> str:
        return f"run {self.run_id[:8]}: {len(self.summary['cells'])} cells, {len(self.samples):,} samples"

    def plot(self) -> alt.TopLevelMixin:
        """Accuracy with 95% CIs, by hops and lines."""
        from debug.runner.charts import chart_of

        return chart_of(self.summary["cells"])

    def __str__(self) -> str:
        lines = [*_cell_lines(self.summary["cells"]), *_notes(self.summary)]
        lines += _comparison_lines(self.summary["comparisons"])
        if over_cells := self.summary["comparisons_over_cells"]:
            lines += [
                "",
                "paired comparisons over all cells, clustered by seed (n: seeds; exact sign-flip test over seeds)",
            ]
            lines += _table([(f"{c['first']} - {c['second']}", c["generator"], c["text"]) for c in over_cells])
        if self.summary["shared_programs"]:
            lines += ["", self.summary["shared_programs"]]
        return "\n".join(lines)


def _cell_lines(cells: Sequence[dict[str, Json]]) -> list[str]:
    """A table with one row per cell; with the generator where there are several."""
    several = len({cell["generator"] for cell in cells}) > 1
    head = ("model", *(["generator"] if several else []), "hops", "lines", "accuracy", "unparseable", "errors", "run")
    rows: list[tuple[object, ...]] = [head]
    for cell in cells:
        accuracy, warning = "none", None
        if cell["num_samples"]:
            interval = wilson(cell["correct"], cell["num_samples"])
            accuracy, warning = str(interval), interval.warning
        which = (cell["label"], *([cell["generator"]] if several else []), hops_text(cell["hops"]), cell["seq_len"])
        row = (*which, accuracy, cell["no_answer"], cell["errors"], cell["run_id"])
        rows.append((*row, warning) if warning else row)
    return _table(rows)


def _notes(summary: dict[str, Json]) -> list[str]:
    """The most frequent errors and unparseable answers, cells of other settings, whether vLLM ran, and what a server
    counted."""
    cells = summary["cells"]
    errors = sum((Counter(cell["error_counts"]) for cell in cells), Counter())
    lines = [f"{count} errors: {message}" for message, count in errors.most_common(5)]
    unanswered = sum((Counter(cell["no_answer_counts"]) for cell in cells), Counter())
    lines += [f"{count} unparseable: {message}" for message, count in unanswered.most_common(5)]
    lines += [f"finished cells used other settings: {line}" for line in summary.get("mixed", ())]
    if any(cell["backend"] == "openai" for cell in cells):
        prompt, completion, cost = (sum(cell.get(name) or 0 for cell in cells) for name in (*COUNTED, "cost"))
        line = f"backend openai: {prompt:,.0f} prompt and {completion:,.0f} completion tokens"
        lines.append(f"{line}, cost {cost:.4g}" if cost else line)
    return lines + (["backend vllm"] if any(cell["backend"] == "vllm" for cell in cells) else [])


def _comparison_lines(comparisons: Sequence[dict[str, Json]]) -> list[str]:
    """The paired comparisons one by one; of more than ``MOST_PRINTED`` only how many tests are significant."""
    if not comparisons:
        return []
    if len(comparisons) > MOST_PRINTED:
        told_apart = sum(c["p_adjusted"] < 0.05 for c in comparisons)
        return [
            "",
            f"paired comparisons on the same programs: {told_apart} of {len(comparisons)} exact McNemar tests have "
            "p < 0.05 after Holm's correction; all are in summary.json and comparisons.png",
        ]
    rows = [
        (f"{c['first']} - {c['second']}", c["generator"], hops_text(c["hops"]), f"{c['seq_len']} lines", c["text"])
        for c in comparisons
    ]
    return [
        "",
        "paired comparisons A - B on the same programs (difference in accuracy with uncorrected 95% CI; correct only "
        "in A : only in B; exact McNemar test)",
        *_table(rows),
    ]


def _table(rows: Sequence[Sequence[object]]) -> list[str]:
    widths = [max(len(str(row[n])) for row in rows if n < len(row)) for n in range(max(map(len, rows)))]
    return [
        "  ".join(str(entry).ljust(width) for entry, width in zip(row, widths, strict=False)).rstrip() for row in rows
    ]


def findings(cell: dict[str, Json]) -> list[str]:
    """The main findings of a cell, a sentence each."""
    accuracy = str(wilson(cell["correct"], cell["num_samples"])) if cell["num_samples"] else "none"
    counts = f"accuracy {accuracy}; {cell['no_answer']} unparseable, {cell['errors']} errors"
    return [counts, *(f"{count} x {message}" for message, count in cell["error_counts"].items())]


def hops_text(hops: int | None) -> str:
    return "any" if hops is None else str(hops)
