"""Training: accuracy by hops over the steps of a training run; causal maps of two of its checkpoints side by side."""

from __future__ import annotations

import re

import polars as pl
import streamlit as st
from store import load, mean_of, weights_of
from view import all_runs, choice, draw, exports_of, literally, one_run, part, said_of

from debug.causal_map import ESTIMATED, title_of
from debug.causal_visualization.comparison import over_steps
from debug.causal_visualization.side_by_side import no_difference, side_by_side
from debug.kinds import Json
from debug.provenance import files_digest, without_passwords
from debug.tracking import LoggedRun, TrackingError

CHECKPOINT = re.compile(r"checkpoints/(step_\d+)/config\.json")


def page() -> None:
    st.title("Training")
    runs = all_runs()
    if runs is None:
        return
    run_id = one_run(runs, pl.col("kind") == "training", "training curves", name="training", label="Training run")
    if run_id is None:
        st.caption("To train the bundled model again and log the run:")
        literally("debug train")
        return
    run = load(run_id)
    exports_of(run)
    said_of(run.status, run.tags.get("debug.error"))
    part(accuracies, run)
    part(checkpoints, run, runs)


def accuracies(run: LoggedRun) -> None:
    """The metrics accuracy/lines_<n>[_hops_<k>] that the training loop logs, with their 95% CIs and
    num_samples/lines_<n>[_hops_<k>] where these are logged."""
    names = r"^(accuracy|num_samples)/(lines_(\d+)(?:_hops_(\d+))?)(?:_(ci_low|ci_high))?$"
    logged = pl.concat([run.curves("accuracy/"), run.curves("num_samples/")]).with_columns(
        cell=pl.col("metric").str.extract(names, 2),
        panel=pl.col("metric").str.extract(names, 3),
        series=pl.col("metric").str.extract(names, 4).fill_null("any"),
        what=pl.coalesce(
            pl.col("metric").str.extract(names, 5),
            pl.col("metric").str.extract(names, 1).replace({"accuracy": "value", "num_samples": "n"}),
        ),
    )
    columns = ["value", "ci_low", "ci_high", "n"]
    curves = (
        logged.filter(pl.col("cell").is_not_null())
        .unique(["cell", "step", "what"], keep="last", maintain_order=True)
        .pivot("what", on_columns=columns, index=["cell", "panel", "series", "step"], values="value")
        .drop_nulls("value")
    )
    if curves.is_empty():
        st.info("This run has logged no accuracies by hops yet.")
        return
    by_hops = curves.filter(pl.col("panel").is_in(curves.filter(pl.col("series") != "any")["panel"].unique().implode()))
    shown = by_hops if len(by_hops) else curves
    shown = shown.select(
        "step", *columns, "cell", panel=pl.format("{} lines", "panel"), series=pl.format("hops {}", "series")
    )
    draw(over_steps(shown, "accuracy on held-out programs"), "accuracy-over-steps", shown)
    if shown["n"].null_count():
        st.caption("This run did not log its number of programs, so no 95% CI is drawn.")
    else:
        sizes = dict.fromkeys((int(shown["n"].min()), int(shown["n"].max())))  # type: ignore[arg-type]  (counts)
        st.caption(f"Each point: {' to '.join(map(str, sizes))} programs. Bands: 95% CI (Wilson).")


def checkpoints(run: LoggedRun, runs: pl.DataFrame) -> None:
    """Causal runs of this run's checkpoints: the model has the checkpoint's name, and the digest of its weights."""
    st.subheader("Causal maps of two checkpoints")
    names = sorted({match[1] for name in run.artifacts() if (match := CHECKPOINT.fullmatch(name))})
    so_named = runs.filter(pl.col("params.model").is_in(names), pl.col("params.intervention_type").is_not_null())
    own = {name: digest(run, name) for name in so_named["params.model"].unique()}
    made = so_named.select("params.model", "run_id", "status").iter_rows()
    same = [own[name] == weights_of(run_id, status) for name, run_id, status in made]
    traced = so_named.filter(pl.Series(same, dtype=pl.Boolean)).sort("params.model", "start_time")
    if others := len(so_named) - len(traced):
        st.caption(f"Excluded: causal runs of models with these names but other weights ({others}).")
    if len(traced) < 2:
        found = traced["params.model"].n_unique()
        st.info(f"{found} of {len(names)} checkpoints have a causal run. To make one for each checkpoint named:")
        folders = [str(run.artifact(f"checkpoints/{name}/config.json").parent) for name in names]
        literally(
            "debug trace --models "
            + " ".join(folders[:1] + folders[-1:])
            + f" \\\n  --tracking-uri {without_passwords(run.store.uri)}"
            if folders
            else "(this run kept no checkpoints)"
        )
        return
    rows = {row["run_id"]: row for row in traced.iter_rows(named=True)}
    left, middle, right = st.columns(3)
    with left:
        first = choice("first", "Checkpoint A", list(rows), lambda i: short_label(rows[i]))
    with middle:
        second = choice(
            "second", "Checkpoint B", [i for i in reversed(rows) if i != first], lambda i: short_label(rows[i])
        )
    one, other = mean_of(load(first))[0], mean_of(load(second))[0]
    shared = [metric for metric in one.metrics if metric in other.metrics]
    if not shared:
        st.info("The two maps have no metric in common.")
        return
    with right:
        metric = choice("metric", "Metric", shared, lambda name: title_of(name, one))
    titles = [
        f"{rows[i]['params.model']} · {mean.n_pairs} {'pair' if mean.n_pairs == 1 else 'pairs'}"
        for i, mean in ((first, one), (second, other))
    ]
    why = no_difference(one, other, (rows[first]["params.hops"], rows[second]["params.hops"]))
    if why is not None:
        st.info(why)
    chart = side_by_side(one, other, metric, (titles[0], titles[1]), difference=why is None)
    draw(chart, "checkpoints")


def digest(run: LoggedRun, checkpoint: str) -> str | None:
    """The debug.weights_digest of this checkpoint's weights; None where its files are missing."""
    try:
        return files_digest(
            run.artifact(f"checkpoints/{checkpoint}/{name}") for name in ("config.json", "model.safetensors")
        )
    except (TrackingError, OSError):
        return None


def short_label(row: dict[str, Json]) -> str:
    """A causal run of a checkpoint, for a narrow box."""
    return " · ".join(
        [
            row["params.model"],
            f"{row['params.hops']} hops, {row['params.seq_len']} lines",
            row["run_id"][:4],
            row["params.intervention_type"] + (f" ({ESTIMATED})" if row["kind"] == "attribution" else ""),
        ]
    )


page()
