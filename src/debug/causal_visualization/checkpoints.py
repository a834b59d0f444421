"""Charts over the checkpoints of a training run: answers to single programs, their flow, logits, activations in 2D."""

from __future__ import annotations

from itertools import pairwise

import altair as alt
import numpy as np
import polars as pl

from debug.causal_visualization.comparison import legend_of, named_series
from debug.causal_visualization.interactive import Chart
from debug.causal_visualization.style import CATEGORIES, INK, axis_of, heading, visible

OUTCOMES = {
    "right": "#009e73",
    "wrong: number on line 1 or 2": "#d55e00",
    "wrong: other number of the program": "#e69f00",
    "wrong: not in the program": "#cc79a7",
    "no answer": "#a6a6b0",
}
"""What became of an answer -> its colour; in the order in which they are stacked."""
_COLOUR = alt.Color(
    "outcome:N",
    scale=alt.Scale(domain=list(OUTCOMES), range=list(OUTCOMES.values())),
    legend=alt.Legend(orient="top", title=None, columns=3, labelLimit=260, symbolOpacity=1, offset=8),
)
_STEP = axis_of(labelOverlap=False, labelAngle=-45)


def answers_heatmap(frame: pl.DataFrame) -> Chart:
    """Programs x checkpoints: what each answered, coloured by outcome; a right answer has a tick, too.

    Args:
        frame: one row per program and checkpoint: program (its number, in the order of the rows), label (of the
            program), step, answer (null: none) and outcome, one of OUTCOMES.
    """
    frame = frame.with_columns(
        pl.col("label").map_elements(named_series, pl.Utf8),
        shown=pl.when(pl.col("outcome") == "right")
        .then(pl.format("{} ✓", pl.col("answer").str.slice(0, 3)))
        .otherwise(pl.col("answer").str.slice(0, 3).fill_null("–")),
        answer=pl.col("answer").fill_null("no answer").map_elements(visible, pl.Utf8),
    )
    base = alt.Chart(frame).encode(
        x=alt.X("step:O", axis=_STEP).title("training step"),
        y=alt.Y("label:N", sort=None, axis=axis_of(labelLimit=200, labelOverlap=False)).title(None),
        tooltip=["label:N", alt.Tooltip("step:O", title="training step"), "answer:N", "outcome:N"],
    )
    marks = base.mark_rect(stroke="white", strokeWidth=0.5, cursor="pointer").encode(color=_COLOUR)
    texts = base.mark_text(fontSize=10, color=INK).encode(text="shown:N")
    return alt.layer(marks, texts).properties(width=alt.Step(44), height=alt.Step(18))


def answer_flow(frame: pl.DataFrame, ticks: str = "training step") -> Chart:
    """The programs' answers at each checkpoint as bars, and between them, as ribbons, how many programs go where.

    Args:
        frame: one row per program and checkpoint: program, step and outcome, one of OUTCOMES.
        ticks: title of the X axis.
    """
    steps, names = frame["step"].unique().sort().to_list(), list(OUTCOMES)
    by_step = [dict(frame.filter(pl.col("step") == step).select("program", "outcome").iter_rows()) for step in steps]
    programs, half = list(by_step[0]), 0.09  # half the width of a bar, of the distance between two
    nodes = []
    for place, outcomes in enumerate(by_step):
        low = 0.0
        for name in names:
            n = sum(outcome == name for outcome in outcomes.values())
            high, step = low + n / len(programs), steps[place]
            node = {"x": place - half, "x2": place + half, "low": low, "high": high, "outcome": name, "n": n}
            nodes += [node | {"step": step}] if n else []
            low = high
    ribbons = []
    for place, (before, after) in enumerate(pairwise(by_step)):
        moves = {(one, other): 0 for one in names for other in names}
        for program in programs:
            moves[before[program], after[program]] += 1
        left = {name: sum(n for (one, _), n in moves.items() if names.index(one) < at) for at, name in enumerate(names)}
        right = {name: sum(n for (_, to), n in moves.items() if names.index(to) < at) for at, name in enumerate(names)}
        for (one, other), n in moves.items():
            if not n:
                continue
            for t in np.linspace(0, 1, 9).tolist():
                eased = t * t * (3 - 2 * t)
                low = (left[one] + eased * (right[other] - left[one])) / len(programs)
                x = place + half + t * (1 - 2 * half)
                told = {"outcome": one, "to": other, "n": n, "from_step": steps[place], "to_step": steps[place + 1]}
                flow = f"{place} {names.index(one)} {names.index(other)}"
                ribbons.append({"x": x, "low": low, "high": low + n / len(programs), "flow": flow, **told})
            left[one] += n
            right[other] += n
    label = f"{steps}[datum.value]"  # a list of numbers
    axis = alt.Axis(values=list(range(len(steps))), labelExpr=label, labelAngle=-45, grid=False, labelOverlap=False)
    x = alt.X("x:Q", axis=axis, scale=alt.Scale(domain=[-0.2, len(steps) - 0.8], nice=False)).title(ticks)
    share = alt.Axis(format="%", tickCount=5, grid=False)
    y = alt.Y("low:Q", axis=share, scale=alt.Scale(domain=[0, 1])).title(f"share of {len(programs)} programs")
    count = alt.Tooltip("n:Q", title="programs")
    layers = [
        alt.Chart(pl.DataFrame(nodes))
        .mark_rect()
        .encode(x=x, x2="x2:Q", y=y, y2="high:Q", color=_COLOUR, tooltip=["step:O", "outcome:N", count])
    ]
    if ribbons:
        tooltip = ["from_step:O", "outcome:N", "to_step:O", "to:N", count]
        flows = alt.Chart(pl.DataFrame(ribbons)).mark_area(opacity=0.35)
        layers.insert(0, flows.encode(x=x, y=y, y2="high:Q", color=_COLOUR, detail="flow:N", tooltip=tooltip))
    return alt.layer(*layers).properties(width=max(260, 74 * len(steps)), height=280)


def outcome_bars(frame: pl.DataFrame, by: str, title: str) -> Chart:
    """Stacked shares of what became of the answers, one bar per level of ``by``.

    Args:
        frame: one row per program: the level as text, and outcome, one of OUTCOMES.
    """
    counted = frame.group_by(by, "outcome").agg(n=pl.len()).with_columns(share=pl.col("n") / pl.col("n").sum().over(by))
    order = {name: number for number, name in enumerate(OUTCOMES)}
    counted = counted.with_columns(order=pl.col("outcome").replace_strict(order)).sort(by, "order")
    levels = sorted(counted[by].unique(), key=lambda level: (len(level), level))
    return (
        alt.Chart(counted)
        .mark_bar()
        .encode(
            x=alt.X(f"{by}:N", sort=levels, axis=alt.Axis(labelAngle=0, ticks=False)).title(title),
            y=alt.Y("share:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)).title(
                "share of answers"
            ),
            order="order:Q",
            color=_COLOUR,
            tooltip=[f"{by}:N", "outcome:N", alt.Tooltip("share:Q", format=".1%"), alt.Tooltip("n:Q")],
        )
        .properties(width=alt.Step(56), height=220)
    )


def accuracy_by_feature(frame: pl.DataFrame) -> Chart:
    """Accuracy with its 95% CI by level, a panel per feature of the programs.

    Args:
        frame: one row per level: feature, level (text), accuracy, ci_low, ci_high (null: no interval) and n; in order.
    """
    features = frame["feature"].unique(maintain_order=True).to_list()
    levels = frame["level"].unique(maintain_order=True).to_list()
    base = alt.Chart(frame).encode(
        x=alt.X("level:N", sort=levels, axis=alt.Axis(labelAngle=0, ticks=False)).title(None),
        tooltip=[
            *("feature:N", "level:N", alt.Tooltip("accuracy:Q", format=".1%")),
            alt.Tooltip("ci_low:Q", format=".1%", title="95% CI low"),
            alt.Tooltip("ci_high:Q", format=".1%", title="95% CI high"),
            alt.Tooltip("n:Q", title="programs"),
        ],
    )
    rate = alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5))
    intervals = base.transform_filter("isValid(datum.ci_low)").mark_rule(strokeWidth=2, color=CATEGORIES[0])
    chart = alt.layer(
        base.mark_bar(opacity=0.35, color=CATEGORIES[0]).encode(y=rate.title("accuracy")),
        intervals.encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q"),
        base.mark_point(filled=True, size=45, opacity=1, color=CATEGORIES[0]).encode(y=rate),
    ).properties(width=alt.Step(34), height=150)
    facet = chart.facet(alt.Facet("feature:N", sort=features).title(None), columns=3)
    return facet.resolve_scale(x="independent")


def confusion_matrix(frame: pl.DataFrame) -> Chart:
    """Right answers x given answers, with counts; shades are shares of a row.

    Args:
        frame: one row per program: expected and answer as text (null: no answer).
    """
    frame = frame.with_columns(
        pl.col("expected").map_elements(visible, pl.Utf8),
        pl.col("answer").fill_null("none").map_elements(visible, pl.Utf8),
    )
    counted = frame.group_by("expected", "answer").agg(n=pl.len())
    counted = counted.with_columns(share=pl.col("n") / pl.col("n").sum().over("expected"))
    natural = [sorted(counted[column].unique(), key=lambda t: (len(t), t)) for column in ("expected", "answer")]
    base = alt.Chart(counted).encode(
        x=alt.X("answer:N", sort=natural[1], axis=axis_of(labelOverlap=False)).title("answer given"),
        y=alt.Y("expected:N", sort=natural[0], axis=axis_of(labelOverlap=False)).title("right answer"),
        tooltip=["expected:N", "answer:N", alt.Tooltip("n:Q"), alt.Tooltip("share:Q", format=".1%")],
    )
    legend = legend_of()
    legend.format = "%"
    scale = alt.Scale(scheme={"name": "purpleorange", "extent": [0.5, 1]}, domain=[0, 1])
    ink = alt.when("datum.share > 0.7").then(alt.value("white")).otherwise(alt.value(INK))
    return alt.layer(
        base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, legend=legend).title("share of the row")),
        base.mark_text(fontSize=10).encode(text="n:Q", color=ink),
    ).properties(width=alt.Step(26), height=alt.Step(22))


def logits_by_step(frame: pl.DataFrame, top: int) -> Chart:
    """Mean logits read off the residual stream, layers x checkpoints, a panel per token.

    Args:
        frame: one row per step, layer and token: step, layer, of (whose logit: the panel), logit, n (pairs).
        top: the row that the final norm reads.
    """
    panels = frame["of"].unique(maintain_order=True).to_list()
    end = float(np.abs(frame["logit"].to_numpy()).max() or 1.0)
    label = f"datum.value == {top} ? 'final norm' : datum.value"
    base = alt.Chart(frame).encode(
        x=alt.X("step:O", axis=_STEP).title("training step"),
        y=alt.Y("layer:O", sort="descending", axis=axis_of(labelExpr=label)).title("layer"),
        tooltip=["of:N", "step:O", "layer:O", alt.Tooltip("logit:Q", format=".2f"), alt.Tooltip("n:Q", title="pairs")],
    )
    scale = alt.Scale(scheme="purpleorange", domain=[-end, end], domainMid=0)
    ink = alt.when(f"abs(datum.logit) > {0.7 * end}").then(alt.value("white")).otherwise(alt.value(INK))
    chart = alt.layer(
        base.mark_rect().encode(color=alt.Color("logit:Q", scale=scale, legend=legend_of()).title("mean logit")),
        base.mark_text(fontSize=9).encode(text=alt.Text("logit:Q", format=".1f"), color=ink),
    ).properties(width=alt.Step(34), height=alt.Step(22))
    return chart.facet(alt.Facet("of:N", sort=panels).title(None), columns=1)


def components_chart(frame: pl.DataFrame, shares: tuple[float, float], title: str) -> Chart:
    """Activations on their first two principal components, labelled and coloured by the number that belongs there.

    Args:
        frame: one row per program: first, second, value (text).
        shares: of the variance, that the two components have.
    """
    values = sorted(frame["value"].unique(), key=lambda t: (len(t), t))
    colours = [CATEGORIES[i % len(CATEGORIES)] for i in range(len(values))]
    base = alt.Chart(frame).encode(
        x=alt.X("first:Q", axis=alt.Axis(grid=False)).title(f"component 1 ({shares[0]:.0%} of the variance)"),
        y=alt.Y("second:Q", axis=alt.Axis(grid=False)).title(f"component 2 ({shares[1]:.0%})"),
        color=alt.Color("value:N", scale=alt.Scale(domain=values, range=colours), legend=None),
        tooltip=["value:N", alt.Tooltip("first:Q", format=".2f"), alt.Tooltip("second:Q", format=".2f")],
    )
    return (
        base.mark_text(fontSize=13, fontWeight="bold")
        .encode(text="value:N")
        .properties(width=320, height=260, title=heading(title))
    )
