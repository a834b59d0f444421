"""Causal map: layers x tokens of one pair, or layers x targets averaged over pairs; two runs on one colour scale.

A click on the heatmap of a mean lists the pairs behind that value. A click on the heatmap of a pair shows the program
with the patched tokens marked, and the clean, counterfactual and patched predictions.
"""

from __future__ import annotations

import math

import altair as alt
import polars as pl
import streamlit as st
from attention import attention_of
from behind import behind_cell, mean_table, pairs_behind
from store import load, mean_of, scores_of_run
from two_maps import beside
from view import (
    all_runs,
    choice,
    chosen_runs,
    draw,
    exports_of,
    in_url,
    number,
    one_in_url,
    one_run,
    part,
    put_now,
    run_label,
    said_of,
    scroll_to,
    yes,
)
from window import ROOM, window

from debug.causal_map import ESTIMATED, CausalMap, MeanCausalMap, MeanOverPairs, mean_over_pairs, title_of
from debug.causal_map.sources import FIRST_TOKEN, GREEDY, WHOLE
from debug.causal_visualization import (
    causal_heatmap,
    cells,
    curves_by_layer,
    head_heatmap,
    hypothesis_maps,
    knockout_chart,
    lens_heatmap,
    mean_heatmap,
    visible,
    winner_map,
)
from debug.causal_visualization.interactive import clickable, outlined, quick
from debug.causal_visualization.rows import label_of_curve
from debug.causal_visualization.side_by_side import top_tokens
from debug.models.hook_points import COMPONENTS
from debug.plan import KNOCKOUT
from debug.tracking import LoggedRun

MEAN, NONE, TOP, WORST = "mean", "none", "top_token", "worst first"
MOST_BESIDE = 24  # tokens of a map that leaves room for text on its right
BESIDE, AXIS = 540, 90  # pixels: of what stands beside a map; of its axis and legend
MOST_ACROSS = 75  # tokens of a map that fits on a page of 1280 pixels
IMPORTED = (pl.col("kind") == "imported") & (pl.col("role") == "cell") & pl.col("metrics.accuracy").is_null()
CAUSAL = pl.col("params.intervention_type").is_not_null() | IMPORTED  # of which not all say what was patched
TITLES = {name: each.title for name, each in COMPONENTS.items()} | {KNOCKOUT: "attention knockout"}


def page() -> None:
    st.title("Causal map")
    width, _ = window()
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
    part(show, run_id, None if second == NONE else second, row, runs, ROOM[width])


def cell_width(room: int, columns: int, least: int, most: int) -> int:
    """Pixels of a square of a map that uses the room there is."""
    return min(most, max(least, (room - AXIS) // max(1, columns)))


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
        width=220,
        on_change=lambda: put_now(run=of[st.session_state["component"]]),
    )


def show(run_id: str, second: str | None, row: dict, runs: pl.DataFrame, room: int) -> None:
    run = load(run_id)
    said_of(run.status, run.tags.get("debug.error"))
    maps = run.maps
    if not len(maps):
        st.info("This run has no causal maps: it ended before the first one, or they were removed from the store.")
        return
    of = components(row, runs)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if len(of) > 1:
            component(of, row["params.intervention_type"], maps[0].estimated)
        pair = which_pair(run)
        shown, behind = mean_of(run) if pair == MEAN else (maps[int(pair)], None)
        metrics = ordered(shown.metrics)
        if second is None and isinstance(shown, CausalMap) and shown.positions and not shown.heads:
            metrics.append(TOP)
        metric = choice(
            "metric",
            "Metric",
            metrics,
            lambda name: "top token" if name == TOP else title_of(name, shown),
            width=260,
        )
    exports_of(run, metric, "mean" if pair == MEAN else f"pair {pair}", *(["beside", second[:8]] if second else []))
    if second is not None:
        part(beside, run, shown, second, metric)
    elif isinstance(shown, MeanCausalMap) and behind is not None:
        the_mean(run, shown, behind, metric, room)
    elif isinstance(shown, CausalMap):
        a_pair(run, shown, metric, room)
    if notes := definitions(shown, run.params.get("scored_by", FIRST_TOKEN)):
        st.caption(notes)


def which_pair(run: LoggedRun) -> str:
    """The mean, or a pair: chosen by number, or one after the other with buttons and arrow keys, the worst first."""
    maps = run.maps
    averages = [MEAN] if maps[0].targets else []  # maps without targets have no mean
    order = [str(number) for number in range(len(maps))]
    if averages and one_in_url("order") == WORST:
        order = [str(number) for number in worst_first(run)]
    named = "mean over 1 pair" if len(maps) == 1 else f"mean over {len(maps)} pairs"
    options = [*averages, *order]
    pair = choice("pair", "Pair", options, lambda p: named if p == MEAN else p, width=200)
    at = options.index(pair)
    for label, key, to in (("Previous pair", "Left", at - 1), ("Next pair", "Right", at + 1)):
        icon = f":material/chevron_{key.lower()}:"
        end = not 0 <= to < len(options)
        st.button(
            "",
            icon=icon,
            shortcut=key,
            help=label,
            key=label,
            disabled=end,
            on_click=put_now,
            kwargs={} if end else {"pair": options[to]},
        )
    if averages and len(maps) > 1:
        choice("order", "Order of pairs", ["", WORST], lambda o: o or "as logged", width=150)
    return pair


def worst_first(run: LoggedRun) -> list[int]:
    """The pairs' places among the maps: first those whose answer a patch at the mean's peak changes least."""
    mean, behind = mean_of(run)
    peak, metric = mean.peak(), ordered(mean.metrics)[0]
    if peak is None:
        return list(range(len(run.maps)))
    numbers, values = behind.behind(peak.target, peak.layer)
    known = {number: value for number, value in zip(numbers, values[metric], strict=True) if value == value}
    return sorted(range(len(run.maps)), key=lambda number: known.get(number, math.inf))


ANSWERS = {
    FIRST_TOKEN: "the patched forward pass's top token is the counterfactual answer",
    WHOLE: "of all candidates the whole counterfactual answer is the most probable one",
    GREEDY: "what the patched model writes, greedily, is the counterfactual answer",
}


def definitions(shown: CausalMap | MeanCausalMap, scored_by: str = FIRST_TOKEN) -> str:
    """What a layer and success are, in the terms of other tools."""
    notes = []
    if shown.intervention_type == "residual_stream":
        notes.append("Layer l is resid_pre of layer l: the residual stream that goes into layer l.")
    if "success" in shown.metrics and scored_by in ANSWERS:
        notes.append(
            f"Success: {ANSWERS[scored_by]}. Its mean is the patch success rate "
            "(interchange-intervention accuracy, IIA)."
        )
    return " ".join(notes)


def ordered(metrics: tuple[str, ...]) -> list[str]:
    """The normalized logit difference first, where there is one: it is graded, success is yes or no."""
    return sorted(metrics, key=lambda metric: metric != "normalized_logit_diff")


# --- the mean ----------------------------------------------------------------------------------------------------


def the_mean(run: LoggedRun, mean: MeanCausalMap, behind: MeanOverPairs, metric: str, room: int) -> None:
    names = {(visible(c.place.target), c.place.head_label): c.target for c in mean.curves}
    layer, target, table = number("layer"), one_in_url("target"), mean_table(mean)

    def open_cell(cell: dict) -> None:
        found = names.get((str(cell.get("target")), cell.get("head")))
        st.session_state["scroll"] = True
        put_now(layer=cell.get("layer"), target=found, token=None)

    curves = len(mean.layers) > 1
    alone = not curves or room == ROOM[800]
    chart = mean_heatmap(mean, metric, cell_width(room if alone else room - BESIDE, len(names), 44, 90))
    if isinstance(chart, alt.LayerChart):
        chosen = mean[target] if target in names.values() and target is not None and layer in mean.layers else None
        chart = outlined(chart, label=label_of_curve(chosen) if chosen else None, layer=layer)
    how = f"{ESTIMATED}-" if mean.estimated else ""
    with st.container(horizontal=True, vertical_alignment="top"):
        if mean.against_random and len(mean.layers) == 1:
            draw(knockout_chart(mean), "knockout", table)
        draw(clickable(chart, "target", "head", "layer"), f"{how}mean", table, open_cell)
        if curves:
            draw(curves_by_layer(mean, metric), f"{how}curves", table)
    part(rivals, run)
    if layer is None or target is None:
        st.caption("Click the heatmap to list the pairs behind a value.")
        return
    with st.container(key="details"):
        part(pairs_behind, run, mean, behind, target, layer, metric)
    scroll_to("details")


def rivals(run: LoggedRun) -> None:
    """The maps of the rival hypotheses, where they say more than success does."""
    scores = scores_of_run(run)
    if scores is None or not scores.beyond_success:
        return
    if not yes("rivals", "Rival hypotheses: value or pointer"):
        return
    with st.container(horizontal=True, vertical_alignment="top"):
        draw(hypothesis_maps(scores), "hypotheses")
        draw(winner_map(scores), "best-hypothesis")
    st.caption(
        "Agreement: share of the distinguishing pairs (of which the hypotheses predict different tokens) whose patched "
        "top token is the one that the hypothesis predicts. Best: McNemar's test tells it from each other one, one "
        "test a square, uncorrected."
    )


# --- a pair ----------------------------------------------------------------------------------------------------------


def a_pair(run: LoggedRun, causal_map: CausalMap, metric: str, room: int) -> None:
    layer, token, head = number("layer"), number("token"), one_in_url("head")
    column: tuple[int, ...] | None = None
    row = causal_map.layers.index(layer) if layer in causal_map.layers else None
    below, drawn = False, causal_map
    if causal_map.top.ndim == 3:
        if not causal_map.targets:
            st.info("This map has attention heads but no target at which to show them.")
            return
        at = choice("at", "Target", list(causal_map.targets), visible, width=300)
        labels = ["+".join(map(str, heads)) for heads in causal_map.heads]
        chart, key, fields = head_heatmap(causal_map, at, metric), "heads", ("layer", "head")
        if head in labels:
            column = (labels.index(head), causal_map.target_columns[at])
        chart = outlined(chart, head=head if column else None, layer=layer if row is not None else None)
    elif causal_map.positions:
        drawn = without_what_is_the_same(causal_map, token)
        width = len(drawn.positions)
        below = width > MOST_BESIDE or room == ROOM[800]
        square = cell_width(room if below else room - BESIDE, width, 14, 44)
        picture = top_tokens(drawn, square) if metric == TOP else causal_heatmap(drawn, metric, square)
        chart, key, fields = quick(picture, drawn.top.size), "map", ("position", "layer")
        if token in causal_map.positions:
            column = (causal_map.positions.index(token),)
        chart = outlined(chart, position=token if column else None, layer=layer if row is not None else None)
    else:  # every intervention covers several tokens, or edges: there is no grid of single positions
        alone = mean_over_pairs([causal_map])
        chart, key, fields = mean_heatmap(alone, metric), "targets", ("target", "layer")
        target = one_in_url("target")
        if target in causal_map.target_columns:
            column = (causal_map.target_columns[target],)
        if isinstance(chart, alt.LayerChart):
            label = label_of_curve(alone[target]) if target is not None and column else None
            chart = outlined(chart, label=label, layer=layer if row is not None else None)

    def open_cell(cell: dict) -> None:
        names = {visible(name): name for name in causal_map.targets}
        target = {"target": names.get(str(cell.get("target")))} if "target" in fields else {}
        st.session_state["scroll"] = True
        put_now(layer=cell.get("layer"), token=cell.get("position"), head=cell.get("head"), **target)

    where = None if row is None or column is None else (row, *column)
    beside = st.container(horizontal=True, vertical_alignment="top", gap="medium")
    st.empty()  # takes the place of a mean's list of pairs at once, not when the page is done
    with beside:
        key = f"{ESTIMATED}-{key}" if causal_map.estimated else key
        draw(clickable(chart, *fields), key, cells(causal_map) if causal_map.positions else None, open_cell)
        with st.container(width="stretch" if below else 500, key="details"):
            behind_cell(run, causal_map, where)
    scroll_to("details")
    if causal_map.lens_ranks is not None and yes("lens", "Logit lens of the clean forward pass"):
        draw(quick(lens_heatmap(drawn), len(drawn.positions) * (drawn.n_layers + 1)), "lens")
    part(attention_of, run, causal_map)


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


page()
