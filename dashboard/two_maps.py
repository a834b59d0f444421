"""Two runs' causal maps side by side on one colour scale, with their difference; what lies behind a place of both."""

from __future__ import annotations

import polars as pl
import streamlit as st
from behind import behind_cell, mean_table, pairs_behind
from store import load, mean_of
from view import draw, literally, number, one_in_url, part, prose, put_now

from debug.causal_map import CausalMap, MeanCausalMap, title_of
from debug.causal_visualization import cells, visible
from debug.causal_visualization.interactive import clickable
from debug.causal_visualization.side_by_side import no_difference, side_by_side
from debug.tracking import LoggedRun


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
    prose(what_differs(run, other))
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


SETTINGS = (
    *(
        "model",
        "generator",
        "hops",
        "seq_len",
        "prompt_template",
        "few_shot",
        "intervention_type",
        "source",
        "direction",
    ),
    *("layer_window", "method", "scored_by", "counterfactual", "seed", "dtype"),
)


def what_differs(run: LoggedRun, other: LoggedRun) -> str:
    """The settings in which A and B differ, each with both values: what A − B is the effect of."""
    pairs = {name: (run.params.get(name), other.params.get(name)) for name in SETTINGS}
    told = [f"{name.replace('_', ' ')} ({a or 'none'} − {b or 'none'})" for name, (a, b) in pairs.items() if a != b]
    digests = {each.tags.get("debug.weights_digest") for each in (run, other)}
    if len(digests) > 1 and pairs["model"][0] == pairs["model"][1]:
        told.append("weights")
    return f"A − B is the difference of: {', '.join(told)}." if told else "A and B have the same settings."


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
