"""Causal map: layers x tokens of one pair, or layers x targets averaged over pairs; two runs on one colour scale.

A click on the heatmap of a mean lists the pairs behind that value. A click on the heatmap of a pair shows the program
with the patched tokens marked, and the clean, counterfactual and patched predictions.
"""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl
import streamlit as st
from store import load, mean_of
from view import (
    again,
    all_runs,
    choice,
    chosen_runs,
    draw,
    in_url,
    literally,
    number,
    one_in_url,
    one_run,
    part,
    problem,
    put,
    put_now,
    run_label,
    said_of,
    yes,
)

from debug.causal_map import ESTIMATED, CausalMap, MeanCausalMap, MeanOverPairs, column_of, mean_over_pairs, title_of
from debug.causal_visualization import (
    causal_heatmap,
    cells,
    curves_by_layer,
    head_heatmap,
    knockout_chart,
    lens_heatmap,
    mean_heatmap,
    visible,
)
from debug.causal_visualization.interactive import clickable, outlined, quick
from debug.causal_visualization.side_by_side import no_difference, side_by_side, top_tokens
from debug.models.hook_points import COMPONENTS
from debug.plan import KNOCKOUT
from debug.tracking import LoggedRun

MEAN, NONE, TOP = "mean", "none", "top_token"
MOST_BESIDE = 24  # tokens of a map that leaves room for text on its right
MOST_ACROSS = 75  # tokens of a map that fits on a page of 1280 pixels
CAUSAL = pl.col("params.intervention_type").is_not_null() | (pl.col("kind") == "imported") & (pl.col("role") == "cell")
TITLES = {name: each.title for name, each in COMPONENTS.items()} | {KNOCKOUT: "attention knockout"}


def page() -> None:
    st.title("Causal map")
    runs = all_runs()
    if runs is None:
        return
    left, right = st.columns([3, 2])
    with left:
        run_id = one_run(runs, CAUSAL, "causal maps")
    if run_id is None:
        return
    row = runs.row(by_predicate=pl.col("run_id") == run_id, named=True)
    others = runs.filter(CAUSAL & (pl.col("run_id") != run_id))
    wanted = [*in_url("with"), *chosen_runs(runs), *others["run_id"].head(200)]
    rows = {other["run_id"]: other for other in others.filter(pl.col("run_id").is_in(wanted)).iter_rows(named=True)}
    with right:
        second = choice("with", "Compare with", [NONE, *rows], lambda i: "(none)" if i == NONE else run_label(rows[i]))
    part(show, run_id, None if second == NONE else second, row, runs)


def components(row: dict, runs: pl.DataFrame) -> dict[str, str]:
    """Component -> run id: the newest run of each component with the same model, hops and lines; this run for its own
    component."""
    names = ("params.model", "params.hops", "params.seq_len", "weights_digest")
    same = [pl.col(name).eq_missing(row[name]) for name in names]
    same.append((pl.col("kind") == "attribution") == (row["kind"] == "attribution"))
    there = runs.filter(CAUSAL, *same).unique("params.intervention_type", keep="first", maintain_order=True)
    found = dict(there.select("params.intervention_type", "run_id").iter_rows())
    return found | {row["params.intervention_type"]: row["run_id"]}


def component(of: dict[str, str], shown: str, estimated: bool) -> None:
    """A select box of the components that have a run; all patched, or all estimated by attribution."""
    how = f" ({ESTIMATED})" if estimated else ""
    st.session_state["component"] = shown
    st.selectbox(
        "Component",
        list(of),
        format_func=lambda name: TITLES.get(name, visible(name or "not recorded")) + how,
        key="component",
        on_change=lambda: put_now(run=of[st.session_state["component"]]),
    )


def show(run_id: str, second: str | None, row: dict, runs: pl.DataFrame) -> None:
    run = load(run_id)
    said_of(run.status, run.tags.get("debug.error"))
    maps = run.maps
    if not len(maps):
        st.info("This run has no causal maps: it ended before the first one, or they were removed from the store.")
        return
    of = components(row, runs)
    boxes = st.columns(3 if len(of) > 1 else 2)
    if len(of) > 1:
        with boxes[0]:
            component(of, row["params.intervention_type"], maps[0].estimated)
    with boxes[-2]:
        averages = [MEAN] if maps[0].targets else []  # maps without targets have no mean
        pair = choice(
            "pair",
            "Pair",
            [*averages, *map(str, range(len(maps)))],
            lambda p: f"mean over {len(maps)} pairs" if p == MEAN else p,
        )
    shown, behind = mean_of(run) if pair == MEAN else (maps[int(pair)], None)
    with boxes[-1]:
        metrics = ordered(shown.metrics)
        if second is None and isinstance(shown, CausalMap) and shown.positions and not shown.heads:
            metrics.append(TOP)
        metric = choice("metric", "Metric", metrics, lambda name: "top token" if name == TOP else title_of(name, shown))
    if second is not None:
        part(beside, run, shown, second, metric)
    elif isinstance(shown, MeanCausalMap) and behind is not None:
        the_mean(run, shown, behind, metric)
    elif isinstance(shown, CausalMap):
        a_pair(run, shown, metric)
    if notes := definitions(shown):
        st.caption(notes)


def definitions(shown: CausalMap | MeanCausalMap) -> str:
    """What a layer and success are, in the terms of other tools."""
    notes = []
    if shown.intervention_type == "residual_stream":
        notes.append("Layer l is resid_pre of layer l: the residual stream that goes into layer l.")
    if "success" in shown.metrics:
        notes.append(
            "Success: the patched run's top token is the counterfactual answer. Its mean is the patch success rate "
            "(interchange-intervention accuracy, IIA)."
        )
    return " ".join(notes)


def ordered(metrics: tuple[str, ...]) -> list[str]:
    """The normalized logit difference first, where there is one: it is graded, success is yes or no."""
    return sorted(metrics, key=lambda metric: metric != "normalized_logit_diff")


# --- the mean ----------------------------------------------------------------------------------------------------


def the_mean(run: LoggedRun, mean: MeanCausalMap, behind: MeanOverPairs, metric: str) -> None:
    names = {(visible(c.place.target), c.place.head_label): c.target for c in mean.curves}
    layer, target, table = number("layer"), one_in_url("target"), mean_table(mean)

    def open_cell(cell: dict) -> None:
        found = names.get((str(cell.get("target")), cell.get("head")))
        put_now(layer=cell.get("layer"), target=found, token=None)

    chart = mean_heatmap(mean, metric)
    if target in names.values() and layer in mean.layers and isinstance(chart, alt.LayerChart):
        label = next(f"{visible(c.target)} (n={c.n})" for c in mean.curves if c.target == target)
        chart = outlined(chart, label=label, layer=layer)
    how = f"{ESTIMATED}-" if mean.estimated else ""
    with st.container(horizontal=True, vertical_alignment="top"):
        if mean.against_random and len(mean.layers) == 1:
            draw(knockout_chart(mean), "knockout", table)
        draw(clickable(chart, "target", "head", "layer"), f"{how}mean", table, open_cell)
        if len(mean.layers) > 1:
            draw(curves_by_layer(mean, metric), f"{how}curves", table)
    if layer is None or target is None:
        st.caption("Click the heatmap to list the pairs behind a value.")
        return
    with st.container():
        part(pairs_behind, run, mean, behind, target, layer, metric)


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


# --- a pair ----------------------------------------------------------------------------------------------------------


def a_pair(run: LoggedRun, causal_map: CausalMap, metric: str) -> None:
    layer, token, head = number("layer"), number("token"), one_in_url("head")
    column: tuple[int, ...] | None = None
    row = causal_map.layers.index(layer) if layer in causal_map.layers else None
    width, drawn = 0, causal_map
    if causal_map.top.ndim == 3:
        if not causal_map.targets:
            st.info("This map has attention heads but no target at which to show them.")
            return
        at = choice("at", "Target", list(causal_map.targets), visible, width=300)
        labels = ["+".join(map(str, heads)) for heads in causal_map.heads]
        chart, key, fields = head_heatmap(causal_map, at, metric), "heads", ("layer", "head")
        if head in labels:
            column = (labels.index(head), causal_map.target_columns[at])
            chart = outlined(chart, head=head, layer=layer) if row is not None else chart
    elif causal_map.positions:
        drawn = without_what_is_the_same(causal_map, token)
        picture = top_tokens(drawn) if metric == TOP else causal_heatmap(drawn, metric)
        chart, key, fields = quick(picture, drawn.top.size), "map", ("position", "layer")
        width = len(drawn.positions)
        if token in causal_map.positions:
            column = (causal_map.positions.index(token),)
            chart = chart if row is None else outlined(chart, position=token, layer=layer)
    else:  # every intervention covers several tokens, or edges: there is no grid of single positions
        chart, key, fields = mean_heatmap(mean_over_pairs([causal_map]), metric), "targets", ("target", "layer")
        target = one_in_url("target")
        if target in causal_map.target_columns:
            column = (causal_map.target_columns[target],)
            if row is not None and isinstance(chart, alt.LayerChart):
                chart = outlined(chart, label=f"{visible(target)} (n=1)", layer=layer)

    def open_cell(cell: dict) -> None:
        names = {visible(name): name for name in causal_map.targets}
        target = {"target": names.get(str(cell.get("target")))} if "target" in fields else {}
        put_now(layer=cell.get("layer"), token=cell.get("position"), head=cell.get("head"), **target)

    where = None if row is None or column is None else (row, *column)
    beside = st.container(horizontal=True, vertical_alignment="top", gap="medium")
    st.empty()  # takes the place of a mean's list of pairs at once, not when the page is done
    with beside:
        key = f"{ESTIMATED}-{key}" if causal_map.estimated else key
        draw(clickable(chart, *fields), key, cells(causal_map) if causal_map.positions else None, open_cell)
        with st.container(width="stretch" if width > MOST_BESIDE else 500):  # beside the map where there is room
            behind_cell(run, causal_map, where)
    if causal_map.lens_ranks is not None and yes("lens", "Logit lens of the clean run"):
        draw(quick(lens_heatmap(drawn), len(drawn.positions) * (drawn.n_layers + 1)), "lens")


def without_what_is_the_same(causal_map: CausalMap, token: int | None) -> CausalMap:
    """Where a map is wider than the page, the part from the line on in which the two programs first differ; the whole
    map where a reader switches to it, or a link names an earlier token."""
    before = causal_map.tokens[: causal_map.first_difference]
    start = max((position + 1 for position, text in enumerate(before) if "\n" in text), default=0)
    left_out = sum(position < start for position in causal_map.positions)
    if len(causal_map.positions) <= MOST_ACROSS or not 0 < left_out < len(causal_map.positions):
        return causal_map
    if token is not None and token < start:
        return causal_map
    label = f"Show the first {left_out} tokens too (the same in both programs: patching them changes nothing)"
    return causal_map if yes("whole", label) else causal_map.beginning_at(start)


def behind_cell(run: LoggedRun, causal_map: CausalMap, where: tuple[int, ...] | None) -> None:
    """The programs with the patched tokens marked, and the predictions of the clean, counterfactual and patched run."""
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
    """The metrics of one intervention, and the top tokens and logits of the three runs."""
    values = {title_of(metric, causal_map): causal_map.values(metric)[where] for metric in causal_map.metrics}
    literally(
        "\n".join(f"{name}: {'no value' if np.isnan(value) else f'{value:.3f}'}" for name, value in values.items())
    )
    table = predictions(causal_map, where)
    logits = {name: st.column_config.NumberColumn(name, format="%.3f") for name in table.columns[2:]}
    st.dataframe(table, hide_index=True, placeholder="", column_config=logits)


def mark(token: str) -> str:
    return f"⟦{visible(token)}⟧" + ("\n" if "\n" in token else "")


def predictions(causal_map: CausalMap, place: tuple[int, ...]) -> pl.DataFrame:
    def text(token: int) -> str | None:
        return None if token < 0 else visible(causal_map.vocabulary.get(token, f"token {token}"))

    z = [causal_map.z_clean, causal_map.z_counterfactual, causal_map.z_patched[place]]
    tops = [*causal_map.top_tokens, int(causal_map.top[place])]
    c, o = (text(token) or "not recorded" for token in causal_map.answer_tokens)
    return pl.DataFrame(
        {
            "run": ["clean", "counterfactual", "edges cut" if causal_map.source == "knockout" else "patched"],
            "top token": [text(token) for token in tops],
            f"logit of {c} (counterfactual)": [float(logits[0]) for logits in z],
            f"logit of {o} (original)": [float(logits[1]) for logits in z],
        }
    ).fill_nan(None)


# --- two runs --------------------------------------------------------------------------------------------------------


def beside(run: LoggedRun, shown: CausalMap | MeanCausalMap, second: str, metric: str) -> None:
    other = load(second)
    if not len(other.maps):
        st.info("The run to compare with has no causal maps.")
        return
    if isinstance(shown, MeanCausalMap):
        with_it: CausalMap | MeanCausalMap | None = mean_of(other)[0]
    else:
        with_it = same_pair(run, shown, other)
    if with_it is None:
        st.info("The run to compare with has no map of this pair. The means over pairs can be compared.")
        return
    if metric not in with_it.metrics:
        st.info(f"The run to compare with has no {title_of(metric, with_it)}.")
        return
    titles = [name_of(each) for each in (run, other)]
    if titles[0] == titles[1]:
        titles = [f"{title} · {each.run_id[:8]}" for title, each in zip(titles, (run, other), strict=True)]
    place = place_in(shown, with_it)
    tables = [
        map_table(each).with_columns(run=pl.lit(title)) for each, title in zip((shown, with_it), titles, strict=True)
    ]
    why = no_difference(shown, with_it, (run.params.get("hops"), other.params.get("hops")))
    chart = side_by_side(shown, with_it, metric, (titles[0], titles[1]), place, difference=why is None)

    def open_cell(cell: dict) -> None:
        if isinstance(shown, MeanCausalMap) and isinstance(with_it, MeanCausalMap):
            curves = [*shown.curves, *with_it.curves]
            names = {visible(curve.target): curve.target for curve in curves}
            put_now(layer=cell.get("layer"), target=names.get(str(cell.get("target"))))
        else:
            put_now(layer=cell.get("layer"), token=cell.get("position"))

    draw(
        clickable(chart, "target", "position", "layer"),
        "side-by-side",
        pl.concat(tables, how="diagonal_relaxed"),
        open_cell,
    )
    if why is not None:
        st.info(why)
    third = "" if why else "; A − B has its own scale, centred on zero"
    st.caption(f"A and B share one colour scale{third}. Click a heatmap to see both runs at one place.")
    if place is None:
        return
    both = ((run, shown, titles[0], other), (other, with_it, titles[1], run))
    for box, (each, of, title, against) in zip(st.columns(2), both, strict=True):
        with box:
            literally(title)
            part(behind_one, each, of, *place, metric, against)


def place_in(*maps: CausalMap | MeanCausalMap) -> tuple[str | int, int] | None:
    """The target or token position, and the layer, that the URL names, where one of the maps has it."""
    layer, at = number("layer"), number("token")
    if all(isinstance(each, MeanCausalMap) for each in maps):
        at = one_in_url("target")
    for each in maps:
        places = [c.target for c in each.curves] if isinstance(each, MeanCausalMap) else each.positions
        if at is not None and layer is not None and at in places and layer in each.layers:
            return at, layer
    return None


def map_table(of: CausalMap | MeanCausalMap) -> pl.DataFrame:
    return mean_table(of) if isinstance(of, MeanCausalMap) else cells(of)


def behind_one(
    run: LoggedRun, shown: CausalMap | MeanCausalMap, at: str | int, layer: int, metric: str, other: LoggedRun
) -> None:
    """One of two runs at the place that was clicked: the pairs behind a mean, or the intervention of a pair."""
    if isinstance(shown, MeanCausalMap):
        if place_in(shown) is not None:
            pairs_behind(run, *mean_of(run), str(at), layer, metric, other.run_id)
            return
    elif place_in(shown) is not None:
        behind_cell(run, shown, (shown.layers.index(layer), shown.positions.index(int(at))))
        return
    st.info("This run has no value at this place.")


def name_of(run: LoggedRun) -> str:
    return run.name if run.name else run.run_id[:8]


def same_pair(run: LoggedRun, causal_map: CausalMap, other: LoggedRun) -> CausalMap | None:
    """The other run's map of the same two programs."""
    if not 0 <= causal_map.pair < len(run.pairs):
        return None
    wanted = run.pairs[causal_map.pair]
    both = wanted.original, wanted.counterfactual
    numbers = {n for n, pair in enumerate(other.pairs) if (pair.original, pair.counterfactual) == both}
    return next((each for each in other.maps if each.pair in numbers), None) if numbers else None


page()
