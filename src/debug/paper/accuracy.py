"""The report's chapter on accuracy: by hops, compared with heuristics."""

from __future__ import annotations

import polars as pl

from debug import causal_visualization as charts
from debug.core import ExperimentConfig
from debug.kinds import Argument, Json
from debug.models import LoadedModel
from debug.models.heuristics import HEURISTICS, PREFIX
from debug.paper.claims import SOLVED, every, surely_above
from debug.paper.page import EXPERIMENT, Page, accuracy_of, chart_frame, hops_text, plain, without_n
from debug.paper.strategies import EARLY, EXCESS, SHALLOW, explanations, misleads
from debug.runner import ExperimentResult
from debug.statistics import Interval, wilson


def report_accuracy(page: Page, model: LoadedModel) -> ExperimentResult:
    what = page.what
    asked: dict[str, Argument] = {
        "name": EXPERIMENT,
        "prompt_template": what.prompt_template,
        "program_generator": "variable_binding",
        "models": [what.model, *(PREFIX + name for name in HEURISTICS)],
        "num_seqs": what.num_seqs,
        "seed": what.seed,
    }
    by_hops = ExperimentConfig(seq_lens=[what.seq_len], hops=what.hops, **asked)
    result = page.accuracy([by_hops, ExperimentConfig(seq_lens=what.lengths, hops=[None], **asked)])
    page.write(
        "## Accuracy", f"Study `{result.run_id}`. Greedy decoding; the first number of the output is the answer."
    )
    rows = [row for row in result.summary["cells"] if row["num_samples"]]
    for by, shown in (
        ("hops", own := [row for row in rows if row["hops"] is not None]),
        ("length", [row for row in rows if row["hops"] is None]),
    ):
        page.picture(f"accuracy_by_{by}", charts.accuracy_chart(chart_frame(shown)), f"accuracy by {by}")
        _accuracy_table(page, shown, "hops" if by == "hops" else "seq_len")
    own = [row for row in own if row["model"] == model.id]
    samples = can_answer(result, pl.col("model") == model.id, pl.col("seq_len") == what.seq_len)
    right = [answer in explanations(program)["dereferencing"] for answer, program in samples if misleads(program)]
    beyond = wilson(sum(right), len(right)) if right else None
    page.keep("accuracy_where_heuristics_fail", beyond)
    page.write(
        f"Accuracy on the distinct {what.seq_len}-line programs among these whose answer is neither a number on line 1 "
        f"or 2 nor the root of the largest chain: {beyond or 'there is no such program'}."
    )
    lowest = min(own, key=lambda row: row["accuracy"])
    page.claim(
        "dereferences",
        f"The model answers queries of {min(what.hops)} to {max(what.hops)} hops.",
        f"accuracy at each number of hops: 95% CI above {SOLVED:.0%}",
        every(surely_above(accuracy_of(row), SOLVED) for row in own) if len(own) == len(what.hops) else None,
        f"lowest, at {hops_text(lowest['hops'])}: {accuracy_of(lowest)}",
        lowest["run_id"],
    )
    page.claim(
        "beyond_heuristics",
        "The model does not use one of the shallow heuristics.",
        f"accuracy where line 1 and 2 and the largest chain give wrong answers: 95% CI above {SOLVED:.0%}",
        surely_above(beyond, SOLVED),
        str(beyond or "no such program"),
        page.run.run_id,
    )
    return result


def _accuracy_table(page: Page, rows: list[dict[str, Json]], by: str) -> None:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    at = {(row[by], row["label"]): row for row in rows}
    header = ["hops" if by == "hops" else "lines", *(plain(label) for label in labels)]
    values = sorted({value for value, _ in at})
    shown = {place: f"{accuracy_of(row)}, run `{row['run_id'][:8]}`" for place, row in at.items()}
    page.table(header, [[value, *(shown.get((value, label), "") for label in labels)] for value in values])


def can_answer(result: ExperimentResult, *which: pl.Expr) -> list[tuple[int | None, str]]:
    """(answer, program) of the distinct programs that were prompted and scored."""
    read = result.samples.filter(pl.col("correct").is_not_null(), *which).unique("program", maintain_order=True)
    return list(read.select("parsed", "program").iter_rows())


def wrong_table(page: Page, row: str, wrong: dict[int, dict[str, Interval]]) -> None:
    """A table of :func:`wrong_answers`, a row per training step or number of hops; logs them too."""
    rows = []
    for value, by in wrong.items():
        page.keep_all(f"wrong_answers_by_{row}", by, value)
        rows += [[value, *(share if name in SHALLOW else without_n(share) for name, share in by.items())]] if by else []
    columns = next(filter(None, wrong.values()), {"no wrong answer": None})
    page.table([row, *(EXCESS if name == EARLY else name for name in columns)], rows)
