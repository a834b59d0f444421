"""The pictures that a study logs."""

from __future__ import annotations

import altair as alt
import polars as pl

from debug.causal_visualization import Picture, accuracy_chart, comparison_chart
from debug.errors import InputError
from debug.kinds import Json


def charts_of(rows: list[dict[str, Json]], comparisons: list[dict[str, Json]]) -> dict[str, Picture]:
    """accuracy, and comparisons where there are any, by file name; of several generators, one of each for each."""
    charts: dict[str, Picture] = {}
    generators = list(dict.fromkeys(row["generator"] for row in rows))
    for generator in generators:
        ending = f"_{generator}" if len(generators) > 1 else ""
        scored = [row for row in rows if row["generator"] == generator and row["num_samples"]]
        if scored:
            charts[f"accuracy{ending}"] = accuracy_chart(chart_frame(scored))
        compared = [row for row in comparisons if row["generator"] == generator]
        if compared:
            frame = pl.DataFrame(compared, infer_schema_length=None)
            charts[f"comparisons{ending}"] = comparison_chart(frame)
    return charts


def chart_of(rows: list[dict[str, Json]]) -> alt.TopLevelMixin:
    """The accuracy chart of cells of one study. Raises InputError where none of them has a scored sample."""
    scored = [row for row in rows if row["num_samples"]]
    if not scored:
        raise InputError("no cell has a scored sample: there is no accuracy to plot")
    several = len({row["generator"] for row in scored}) > 1
    labelled = [row | {"label": row["label"] + (f" · {row['generator']}" if several else "")} for row in scored]
    return accuracy_chart(chart_frame(labelled))


CHARTED = {"accuracy": "accuracy", "accuracy_ci_low": "ci_low", "accuracy_ci_high": "ci_high", "num_samples": "n"}


def chart_frame(rows: list[dict[str, Json]]) -> pl.DataFrame:
    """The columns that the accuracy chart reads, from rows with a cell's coordinates and metrics."""
    frame = pl.DataFrame(rows, infer_schema_length=None).rename(CHARTED)
    return frame.select(pl.col("label").alias("model"), "hops", "seq_len", *CHARTED.values())
