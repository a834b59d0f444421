"""Accuracy with confidence intervals, and paired comparisons of models."""

from __future__ import annotations

import altair as alt
import polars as pl

from debug.causal_visualization.style import CATEGORIES, GREY, Picture, heading, label_of


def accuracy_chart(frame: pl.DataFrame) -> Picture:
    """Accuracy with its 95% CI: by hops where there are several, else by seq_len; one colour per model.

    Args:
        frame: one row per cell, with columns model, hops (null: any), seq_len, accuracy, ci_low, ci_high (null where
            there is no interval) and n. Several hops and several seq_lens give one panel per seq_len.
    """
    frame = frame.with_columns(
        pl.col("hops").cast(pl.Utf8).fill_null("any"),
        pl.col("model").map_elements(label_of, pl.Utf8),
        panel=pl.format(
            "{} {}", "seq_len", pl.when(pl.col("seq_len") == 1).then(pl.lit("line")).otherwise(pl.lit("lines"))
        ),
    )
    by_hops = frame["hops"].n_unique() > 1
    models = frame["model"].unique(maintain_order=True).to_list()
    x = alt.X("hops:N" if by_hops else "seq_len:O", sort=None, axis=alt.Axis(labelAngle=0, ticks=False)).title(
        "hops" if by_hops else "lines (seq_len)"
    )
    legend = alt.Legend(orient="top", columns=4, labelLimit=0, symbolOpacity=1)
    colour = alt.Color("model:N", scale=alt.Scale(domain=models, range=CATEGORIES), legend=legend).title(None)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("hops:N"),
        alt.Tooltip("seq_len:Q", title="lines"),
        alt.Tooltip("accuracy:Q", format=".1%"),
        alt.Tooltip("ci_low:Q", format=".1%", title="95% CI low"),
        alt.Tooltip("ci_high:Q", format=".1%", title="95% CI high"),
        alt.Tooltip("n:Q", format=",d", title="samples"),
    ]
    base = alt.Chart(frame.sort("hops", "seq_len")).encode(
        x=x, xOffset=alt.XOffset("model:N", sort=models), color=colour, tooltip=tooltip
    )
    rate = alt.Y(
        "accuracy:Q", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5, labelFlush=False)
    ).title("accuracy")
    bars = base.mark_bar(opacity=0.35).encode(y=rate)
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=rate)
    intervals = (
        base.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ci_low:Q"), y2="ci_high:Q")
    )
    chart = alt.layer(bars, intervals, points).properties(width=alt.Step(max(22, 60 // len(models))), height=240)
    title = heading(f"accuracy, 95% CI{_programs(frame)}")
    if by_hops and frame["seq_len"].n_unique() > 1:
        panels = [f"{n} {'line' if n == 1 else 'lines'}" for n in frame["seq_len"].unique().sort()]
        faceted = chart.facet(alt.Facet("panel:N", sort=panels).title(None), columns=2)
        return faceted.resolve_axis(x="independent").properties(title=title)
    return chart.properties(title=title)


def _programs(frame: pl.DataFrame) -> str:
    """The range of n over a chart's points, for its title."""
    sizes = sorted({int(n) for n in frame["n"].drop_nulls()})
    return f", n = {' to '.join(dict.fromkeys(map(str, (sizes[0], sizes[-1]))))}" if sizes else ""


def comparison_chart(frame: pl.DataFrame) -> Picture:
    """Paired differences in accuracy, with 95% CIs: one row per pair of models, one column per number of hops.

    Args:
        frame: one row per comparison, with columns first, second, hops (null: any), seq_len, difference, ci_low,
            ci_high (null where there is no interval), n, only_first, only_second and p_adjusted.
    """
    frame = frame.with_columns(
        hops=pl.format(
            "{} {}",
            pl.col("hops").cast(pl.Utf8).fill_null("any"),
            pl.when(pl.col("hops") == 1).then(pl.lit("hop")).otherwise(pl.lit("hops")),
        ),
        pair=pl.format("{} − {}", *(pl.col(c).map_elements(label_of, pl.Utf8) for c in ("first", "second"))),
        holm=pl.when(pl.col("p_adjusted") < 0.05).then(pl.lit("below 0.05")).otherwise(pl.lit("0.05 or more")),
    ).select(
        "hops",
        "seq_len",
        "pair",
        "holm",
        "difference",
        "ci_low",
        "ci_high",
        "n",
        "only_first",
        "only_second",
        "p_adjusted",
    )
    pairs = frame["pair"].unique(maintain_order=True).to_list()
    tooltip = [
        *("pair:N", "hops:N", alt.Tooltip("seq_len:Q", title="lines"), alt.Tooltip("difference:Q", format="+.1%")),
        alt.Tooltip("ci_low:Q", format="+.1%", title="95% CI low"),
        alt.Tooltip("ci_high:Q", format="+.1%", title="95% CI high"),
        *(
            alt.Tooltip("only_first:Q", title="correct only by the first"),
            alt.Tooltip("only_second:Q", title="correct only by the second"),
        ),
        *(alt.Tooltip("p_adjusted:Q", format=".2g", title="p (Holm)"), alt.Tooltip("n:Q", title="programs")),
    ]
    base = alt.Chart(frame).encode(
        x=alt.X("seq_len:O", axis=alt.Axis(labelAngle=0, ticks=False)).title("lines (seq_len)"),
        color=alt.Color(
            "holm:N",
            scale=alt.Scale(domain=["below 0.05", "0.05 or more"], range=[CATEGORIES[1], GREY]),
            legend=alt.Legend(orient="top", titleOrient="left", titleLimit=0),
        ).title("p (exact McNemar test, Holm's correction)"),
        tooltip=tooltip,
    )
    signed = alt.Axis(labelExpr="datum.value ? format(datum.value, '+.0%') : '0'", values=[-1, 0, 1])
    shared = {"scale": alt.Scale(domain=[-1, 1]), "axis": signed, "title": None}
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y=alt.Y("difference:Q", **shared))
    intervals = (
        base.transform_filter("isValid(datum.ci_low) && isValid(datum.ci_high)")
        .mark_rule(strokeWidth=2)
        .encode(y=alt.Y("ci_low:Q", **shared), y2="ci_high:Q")
    )
    chart = alt.layer(intervals, points).properties(width=alt.Step(26), height=64)
    title = f"difference in accuracy on the same programs, uncorrected 95% CI{_programs(frame)}"
    return chart.facet(
        column=alt.Column("hops:N").title(None),
        row=alt.Row("pair:N", sort=pairs, header=alt.Header(labelAngle=0, labelAlign="left", labelLimit=0)).title(None),
        spacing={"row": 8, "column": 10},
    ).properties(title=heading(title))
