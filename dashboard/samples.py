"""Samples: prompts, outputs and parsed answers, and simple rules that match the wrong answers."""

from __future__ import annotations

import polars as pl
import streamlit as st
from store import load, samples_of
from view import (
    all_runs,
    choice,
    downloads,
    draw,
    exports_of,
    literally,
    number,
    one_in_url,
    one_run,
    part,
    put,
    put_now,
    said_of,
    several,
    table_key,
    text,
)

from debug.causal_visualization.programs import program_graph
from debug.core import PARSERS, answer_span
from debug.models import heuristics
from debug.programs import Program, ProgramError
from debug.statistics import Interval, wilson

OUTCOMES = {"all": "all", "right": "correct", "wrong": "wrong", "unparsed": "unparseable", "error": "error"}
MOST_ROWS = 1000
LONGEST_MARKED = 100_000  # characters of an output that is parsed again to mark its answer
MOST_PARSED = 2000  # programs that are parsed to tell which chain is the largest


def page() -> None:
    st.title("Samples")
    runs = all_runs()
    if runs is None:
        return
    kinds = ["accuracy", "causal_tracing", "robust_seeds", "attention_knockout", "attribution", "logit_lens"]
    imported = (pl.col("kind") == "imported") & pl.col("metrics.accuracy").is_not_null()  # others are maps
    has_samples = (pl.col("role") == "cell") & (pl.col("kind").is_in(kinds) | imported)
    run_id = one_run(runs, has_samples, "samples")
    if run_id is not None:
        part(show, run_id)


def show(run_id: str) -> None:
    run = load(run_id)
    exports_of(run)
    said_of(run.status, run.tags.get("debug.error"))
    if "samples.jsonl" not in run.artifacts():
        st.info("This run has no samples: it ended before the first one, or they were removed from the store.")
        return
    samples = with_outcome(samples_of(run))
    if samples.is_empty():
        st.info("This run has no samples yet.")
        return
    shown = filtered(samples)
    counts = dict(samples["outcome"].value_counts().iter_rows())
    st.caption(
        f"{len(shown):,} of {len(samples):,} samples: "
        + ", ".join(f"{counts[name]:,} {label}" for name, label in OUTCOMES.items() if counts.get(name))
    )
    scored = shown["correct"].drop_nulls()
    if len(scored) and (one_in_url("outcome") or "all") == "all":
        st.caption(f"Accuracy of the listed samples: {wilson(int(scored.sum()), len(scored))}")
    sample = chosen(shown, run_id)
    if sample is not None:
        one_sample(sample, run.params.get("answer_parser"))
    part(wrong_answers, shown)


def with_outcome(samples: pl.DataFrame) -> pl.DataFrame:
    outcome = (
        pl.when(pl.col("correct").is_null())
        .then(pl.lit("error"))
        .when("correct")
        .then(pl.lit("right"))
        .when(pl.col("parsed").is_null())
        .then(pl.lit("unparsed"))
        .otherwise(pl.lit("wrong"))
    )
    return samples.with_columns(outcome=outcome).with_row_index("sample")


def filtered(samples: pl.DataFrame) -> pl.DataFrame:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        outcome = choice("outcome", "Outcome", list(OUTCOMES), OUTCOMES.__getitem__, width=150)
        conditions = [] if outcome == "all" else [pl.col("outcome") == outcome]
        for column, label in (("hops", "Hops"), ("seq_len", "Lines")):
            known = [str(value) for value in samples[column].drop_nulls().unique().sort()]
            if wanted := several(column, label, known, width=150, placeholder="any"):
                conditions.append(pl.col(column).is_in([int(value) for value in wanted]))
        answer = text("answer", "Answer", width=100, placeholder="any")
        words = text("words", "Text in program or output", width=260)
    if answer:
        conditions.append(pl.col("parsed").cast(pl.String) == answer)
    if words:
        conditions.append(pl.any_horizontal(pl.col("program", "raw_output").str.contains(words, literal=True)))
    return samples.lazy().filter(*conditions).collect() if conditions else samples


def chosen(shown: pl.DataFrame, run_id: str) -> dict | None:
    """Draw the table; return the row of the sample that is selected."""
    if len(shown) > MOST_ROWS:
        st.caption(f"Only the first {MOST_ROWS:,} are listed. Filters search all.")
    columns = ["sample", "outcome", "expected", "parsed", "raw_output", "hops", "seq_len", "program", "seed", "error"]
    table = shown.head(MOST_ROWS).select(columns)
    texts = pl.col(pl.String).str.slice(0, 500).str.replace_all("\n", " ⏎ ", literal=True)
    asked, numbers = number("sample"), table["sample"].to_list()
    rows = [numbers.index(asked)] if asked in numbers else []
    widget = table_key(f"samples {run_id} {hash(tuple(numbers))}", rows)

    def choose() -> None:
        """Uses the rows that were on screen: the run may have written more since."""
        put_now(sample=[numbers[row] for row in st.session_state[widget]["selection"]["rows"] if row < len(numbers)])

    st.dataframe(
        table.with_columns(texts).with_columns(pl.col("outcome").replace(OUTCOMES)),
        hide_index=True,
        height=300,
        placeholder="",
        column_config=NAMES,
        on_select=choose,
        selection_mode="single-row",
        selection_default={"selection": {"rows": rows}},  # type: ignore[arg-type]  (a plain dict will do)
        key=widget,
        lazy=False,
    )
    downloads("samples", shown)
    put(sample=asked)
    if asked is None:
        st.caption("Select a row to see its prompt, output and program graph.")
        return None
    found = shown.filter(pl.col("sample") == asked)
    if found.is_empty():
        st.info("The sample of this link is not among the listed ones.")
        return None
    return found.row(0, named=True)


def with_answer_marked(output: str, parser: str | None, parsed: object) -> str | None:
    """The output with the parsed answer in ⟦ ⟧; None where this parser does not give the logged answer, the parser is
    a user's own, or the output has such brackets itself."""
    known = PARSERS.get(parser or "")
    span = answer_span(known, output) if known and len(output) <= LONGEST_MARKED else None
    if known is None or span is None or {*"⟦⟧"} & {*output} or str(known(output)) != str(parsed):
        return None
    start, end = span
    return f"{output[:start]}⟦{output[start:end]}⟧{output[end:]}"


def one_sample(sample: dict, parser: str | None) -> None:
    st.subheader(f"Sample {sample['sample']}")
    left, right = st.columns(2)
    with left:
        st.caption("Prompt")
        st.code(
            sample["prompt"] or "",
            language=None,
            wrap_lines=True,
            height=300 if len(sample["prompt"] or "") > 600 else "content",
        )
        output = sample["raw_output"]
        marked = None if output is None else with_answer_marked(output, parser, sample["parsed"])
        st.caption("Raw output" if marked is None else "Raw output, parsed answer in ⟦…⟧")
        literally("(none)" if output is None else marked or output)
        st.caption("Expected and parsed answer")
        said = "(unparseable)" if sample["parsed"] is None else sample["parsed"]
        literally(f"expected  {sample['expected']}\nparsed    {said}")
        if sample["error"]:
            st.caption("Error")
            literally(sample["error"])
    with right:
        try:
            program = Program.parse(sample["program"] or "")
        except ProgramError:
            st.caption("Program")
            literally(sample["program"] or "(none)")
            return
        st.caption("Program graph: lines by referential depth, the queried chain in orange")
        draw(program_graph(program), "program")


def wrong_answers(shown: pl.DataFrame) -> None:
    """The most frequent wrong answers, and how many of them match rules that follow no variable."""
    wrong = shown.filter(pl.col("outcome") == "wrong")
    if wrong.is_empty():
        return
    st.subheader("Wrong answers")
    said, n = pl.col("parsed").cast(pl.String), len(wrong)
    with st.container(horizontal=True):  # on a narrow page one below the other
        left, right = (st.container(width=590) for _ in range(2))
    commonest = (
        wrong.group_by(answer=said.str.slice(0, 200))
        .agg(times=pl.len())
        .sort("times", "answer", descending=[True, False])
    )
    shares = with_share(commonest.head(50).with_columns(n=n), "times")
    left.dataframe(share_as_text(shares), hide_index=True, height=220, column_config=SHARE)
    with right:
        table = explained(wrong)
        st.dataframe(share_as_text(table), hide_index=True, column_config=SHARE)
        downloads("wrong-answers", table)
    st.caption("One answer may match several rules, and some answers match by chance.")


SHARE = {
    "explains": st.column_config.Column("matches"),
    "share": st.column_config.TextColumn("share of wrong answers, 95% CI", width=190),
}
NAMES = {
    "parsed": st.column_config.Column("parsed answer"),
    "raw_output": st.column_config.Column("raw output"),
    "seq_len": st.column_config.Column("lines"),
}


def explained(wrong: pl.DataFrame) -> pl.DataFrame:
    number = r"(?:^|[^\w.])(-?\d+)"
    said, program = pl.col("parsed").cast(pl.String), pl.col("program")
    lines = program.str.split("\n")
    assigned = lines.list.head(lines.list.len() - 1).list.join("\n")

    def among(text: pl.Expr) -> pl.Expr:
        return text.str.extract_all(number).list.eval(pl.element().str.extract(r"(-?\d+)")).list.contains(said)

    first, anywhere = among(lines.list.head(2).list.join("\n")), among(assigned)
    counted = wrong.select(
        first.sum().alias("first"), anywhere.sum().alias("any"), (~anywhere).sum().alias("none")
    ).row(0)
    looked = wrong.head(MOST_PARSED)
    largest = sum(largest_chain(p) == str(a) for p, a in looked.select("program", "parsed").iter_rows())
    rows = [
        ("a number on line 1 or 2", counted[0], len(wrong)),
        ("the root of another chain", counted[1], len(wrong)),
        ("the root of the largest chain", largest, len(looked)),
        ("not a number in the program", counted[2], len(wrong)),
    ]
    frame = pl.DataFrame(rows, {"rule": pl.String, "explains": pl.Int64, "n": pl.Int64}, orient="row")
    return with_share(frame, "explains")


def with_share(frame: pl.DataFrame, times: str) -> pl.DataFrame:
    """Adds the share of n with its 95% CI."""
    shares = [wilson(successes, n) for successes, n in frame.select(times, "n").iter_rows()]
    ends = {"share": "estimate", "ci_low": "low", "ci_high": "high"}
    return frame.with_columns(
        pl.Series(name, [getattr(share, end) for share in shares], dtype=pl.Float64) for name, end in ends.items()
    )


def share_as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """The share, its 95% CI and n in one column: four columns do not fit next to another table."""
    shares = zip(*(frame[name] for name in ("share", "ci_low", "ci_high", "n")), strict=True)
    texts = [str(Interval(*share, is_rate=True)) for share in shares]
    return frame.drop("ci_low", "ci_high", "n").with_columns(share=pl.Series(texts, dtype=pl.String))


def largest_chain(program: str | None) -> str | None:
    try:
        return heuristics.largest_chain(program or "", None)  # type: ignore[arg-type]  (it draws nothing)
    except ProgramError:
        return None


page()
