"""What lies behind a place of a causal map: the pairs of a mean, or one pair's programs, metrics and predictions."""

from __future__ import annotations

import numpy as np
import polars as pl
import streamlit as st
from view import again, literally, problem, put

from debug.causal_map import CausalMap, MeanCausalMap, MeanOverPairs, column_of, title_of
from debug.causal_visualization import visible
from debug.tracking import LoggedRun


def mean_table(mean: MeanCausalMap) -> pl.DataFrame:
    rows = [
        {
            "target": curve.target,
            "layer": layer,
            "metric": column_of(metric, mean),
            "mean": value.estimate,
            "ci_low": value.low,
            "ci_high": value.high,
            "n": value.n,
        }
        for curve in mean.curves
        for metric in mean.metrics
        for layer, value in zip(mean.layers, curve[metric], strict=True)
        if value is not None
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def pairs_behind(
    run: LoggedRun,
    mean: MeanCausalMap,
    behind: MeanOverPairs,
    target: str,
    layer: int,
    metric: str,
    beside: str | None = None,
) -> None:
    """A table with one row per pair; a click opens that pair, compared with the run ``beside`` where that is given."""
    numbers, values = behind.behind(target, layer)
    curve = mean[target]
    st.subheader("Pairs behind this mean")
    literally(
        f"{target} at layer {layer}: {title_of(metric, mean)} {curve[metric][mean.layers.index(layer)] or 'no value'}"
    )
    pairs = run.pairs
    texts = [pairs[n].original.text.replace("\n", " ⏎ ") if n < len(pairs) else None for n in numbers]
    counterfactual = [str(pairs[n].expected_counterfactual) if n < len(pairs) else None for n in numbers]
    table = pl.DataFrame(
        {
            "pair": numbers,
            metric: values[metric],
            "program": texts,
            "counterfactual answer": counterfactual,
            **{name: values[name] for name in mean.metrics if name != metric},
        }
    ).fill_nan(None)
    lowest_first = table.sort(metric, "pair", nulls_last=True)
    event = st.dataframe(
        lowest_first,
        hide_index=True,
        height=250,
        on_select="rerun",
        selection_mode="single-row",
        key=f"behind {run.run_id} {target} {layer} {metric}",
        column_config={
            name: st.column_config.NumberColumn(title_of(name, mean), format="%.3f") for name in mean.metrics
        },
    )
    for chosen in event["selection"]["rows"]:
        pair = int(lowest_first["pair"][chosen])
        causal_map = run.maps[pair]
        column = causal_map.target_columns.get(curve.place.target)
        token = causal_map.columns[column][0] if column is not None else None
        put(run=run.run_id, **{"with": beside}, pair=pair, layer=layer, token=token)
        again()
    st.caption("Select a row to open that pair at this layer and target.")


def behind_cell(run: LoggedRun, causal_map: CausalMap, where: tuple[int, ...] | None) -> None:
    """The programs with the patched tokens marked, and the predictions of the clean, counterfactual and patched
    forward passes."""
    marked: set[int] = set()
    if where is None:
        st.caption("Click the heatmap to see the metrics and predictions of one intervention.")
    else:
        marked = set(causal_map.columns[where[-1]])
        st.subheader("Selected intervention")
        measured(causal_map, where)
    left, right = st.columns(2)
    with left:
        what = "ends of cut edges" if causal_map.source == "knockout" else "patched tokens"
        st.caption("Prompt" + (f", {what} in ⟦…⟧" if marked else ""))
        literally("".join(mark(token) if at in marked else token for at, token in enumerate(causal_map.tokens)))
    if causal_map.pair < 0:
        st.info("The programs of this map were not recorded.")
        return
    if causal_map.pair >= len(run.pairs):
        problem("The program of this map is not among the programs of the run.", f"pair {causal_map.pair}")
        return
    pair = run.pairs[causal_map.pair]
    with right:
        st.caption("Original and counterfactual program, with answers")
        side, other = st.columns(2)
        side.code(f"{pair.original.text}{pair.original.answer}", language=None)
        other.code(f"{pair.counterfactual.text}{pair.counterfactual.answer}", language=None)
        st.page_link(
            "rerun.py",
            label="Re-run this pair with other settings",
            icon=":material/replay:",
            query_params={"run": run.run_id, "pair": str(causal_map.pair)},
        )


def measured(causal_map: CausalMap, where: tuple[int, ...]) -> None:
    """The metrics of one intervention, and the top tokens and logits of the three forward passes."""
    values = {title_of(metric, causal_map): causal_map.values(metric)[where] for metric in causal_map.metrics}
    lines = [f"{name}: {'no value' if np.isnan(value) else f'{value:.3f}'}" for name, value in values.items()]
    literally("\n".join([*lines, *answer_of(causal_map, where)]))
    table = predictions(causal_map, where)
    logits = {name: st.column_config.NumberColumn(name, format="%.3f") for name in table.columns[2:]}
    st.dataframe(table, hide_index=True, placeholder="", column_config=logits)
    if (likely := likeliest(causal_map, where)) is not None:
        st.caption("Likeliest next tokens, with their probabilities")
        percent = {name: st.column_config.NumberColumn("p", format="%.4g%%") for name in likely.columns[1::2]}
        st.dataframe(likely, hide_index=True, placeholder="", column_config=percent)


def answer_of(causal_map: CausalMap, where: tuple[int, ...]) -> list[str]:
    """What the patched run answers, where that is more than its top token."""
    if causal_map.said is None:
        return []
    candidates, said = [visible(each) for each in causal_map.candidates], int(causal_map.said[where])
    lines = [f"answer ({causal_map.scored_by}): {candidates[said] if said >= 0 else 'none of the candidates'}"]
    if causal_map.log_probabilities is not None:
        logs = causal_map.log_probabilities[where]
        lines += [f"log probability of {text}: {log:.3f}" for text, log in zip(candidates, logs, strict=True)]
    return lines


def mark(token: str) -> str:
    return f"⟦{visible(token)}⟧" + ("\n" if "\n" in token else "")


def text_of(causal_map: CausalMap, token: int) -> str | None:
    return None if token < 0 else visible(causal_map.vocabulary.get(token, f"token {token}"))


def passes_of(causal_map: CausalMap) -> list[str]:
    return ["clean", "counterfactual", "edges cut" if causal_map.source == "knockout" else "patched"]


def likeliest(causal_map: CausalMap, place: tuple[int, ...]) -> pl.DataFrame | None:
    """The likeliest tokens of the three forward passes, each beside its probability in percent, the likeliest first;
    without the patched one where it was only estimated. None where the map has them not."""
    if causal_map.top_k_unpatched is None or causal_map.top_k_unpatched_logs is None:
        return None
    tokens, logs = [*causal_map.top_k_unpatched], [*causal_map.top_k_unpatched_logs]
    if causal_map.top_k is not None and causal_map.top_k_logs is not None and place[-1] in causal_map.top_k_columns:
        at = (*place[:-1], causal_map.top_k_columns.index(place[-1]))
        tokens, logs = [*tokens, causal_map.top_k[at]], [*logs, causal_map.top_k_logs[at]]
    rows: dict[str, list[str | None] | list[float]] = {}
    for name, ids, of_ids in zip(passes_of(causal_map), tokens, logs, strict=False):
        rows[name] = [text_of(causal_map, token) for token in ids.tolist()]
        rows[f"p {name}"] = (100 * np.exp(of_ids.astype(float))).tolist()
    return pl.DataFrame(
        rows, schema_overrides={name: pl.String for name in rows if not name.startswith("p ")}
    ).fill_nan(None)


def predictions(causal_map: CausalMap, place: tuple[int, ...]) -> pl.DataFrame:
    z = [causal_map.z_clean, causal_map.z_counterfactual, causal_map.z_patched[place]]
    tops = [*causal_map.top_tokens, int(causal_map.top[place])]
    c, o = (text_of(causal_map, token) or "not recorded" for token in causal_map.answer_tokens)
    return pl.DataFrame(
        {
            "forward pass": passes_of(causal_map),
            "top token": [text_of(causal_map, token) for token in tops],
            f"logit of {c} (counterfactual)": [float(logits[0]) for logits in z],
            f"logit of {o} (original)": [float(logits[1]) for logits in z],
        }
    ).fill_nan(None)
