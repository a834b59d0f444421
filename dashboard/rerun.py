"""Re-run: patch logged pairs again with other settings, and compare the new map with the logged one.

The page starts `debug rerun`, follows it and can stop it. The new run is kept in the store, tagged debug.rerun_of.
"""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import get_type_hints

import polars as pl
import streamlit as st
from jobs import jobs
from running import bundled_models, buttons, ended, failure, follow, layer_numbers
from store import load
from view import (
    READING,
    all_runs,
    choice,
    draw,
    exports_of,
    literally,
    one_in_url,
    one_run,
    part,
    problem,
    put,
    several,
    text,
)

from debug.causal_map import CausalMap, title_of
from debug.causal_visualization import causal_heatmap, head_heatmap, visible
from debug.causal_visualization.side_by_side import no_difference, side_by_side
from debug.errors import DebugError, InputError
from debug.options import docs_of, flags_of, read_as
from debug.plan import INTERVENTION_TYPES, KNOCKOUT, Plan
from debug.provenance import without_passwords
from debug.tracking import LoggedRun

AS_LOGGED = "as logged"
SHOWN = ("intervention_type", "positions", "layers")  # options of a plan with widgets of their own
OF_KNOCKOUTS = ("random_draws", "match_attention")
MOST_PAIRS = 50


def page() -> None:
    st.title("Re-run")
    runs = all_runs()
    if runs is None:
        return
    causal = pl.col("params.intervention_type").is_not_null() & (pl.col("kind") != "imported")
    run_id = one_run(runs, causal, "causal maps", label="Run to repeat")
    if run_id is None:
        return
    part(ask, load(run_id))
    progress = st.container()
    job = jobs().last
    over = ended(job)
    part(result, runs, run_id)
    if over:  # and everything is drawn: a page that is cut short before this line is run again by follow()
        st.session_state.pop("following", None)
    with progress:
        follow()


def ask(run: LoggedRun) -> None:
    pairs = run.pairs
    if not pairs:
        st.info("This run has no programs.")
        return
    numbers = [str(n) for n in range(len(pairs))]
    asked = one_in_url("pair")
    if asked == "mean":
        put(pair=None)
    left, right = st.columns([3, 2])
    with left, st.container(horizontal=True, vertical_alignment="bottom"):
        pair = choice("pair", "Pair", numbers, width=110)
        how_many = choice("many", "Number of pairs", ["1", "5", "20", str(MOST_PAIRS)], width=160)
        model = choice("model", "Model", models(run), lambda m: m if m == AS_LOGGED else visible(m), width=200)
        component = choice(
            "component", "Component", [AS_LOGGED, *INTERVENTION_TYPES], lambda c: c.replace("_", " "), width=200
        )
        positions = choice("positions", "Positions", [AS_LOGGED, "all", "targets", "named"], str, width=150)
        layers = text("layers", "Layers", placeholder="all; or 0-3, 5", width=150)
        named = several("named", "Named positions", roles(run), visible, width=300) if positions == "named" else []
    with right:
        st.caption(f"Pair {pair}, the original program and its answer")
        chosen = pairs[int(pair)]
        asked = chosen.original.text
        literally(f"{asked}{'' if asked[-1].isspace() else ' '}{chosen.original.answer}")
    numbers_asked = list(range(int(pair), min(int(pair) + int(how_many), len(pairs))))
    try:
        with left, st.expander("More options"):
            more = others(run, component)
        arguments = command(run, numbers_asked, model, component, positions, named, layers) + more
    except DebugError as error:
        problem("These settings are not valid.", error)
        buttons("rerun", "rerun", run.run_id, len(numbers_asked), None, run.store.uri)
        return
    buttons("rerun", "rerun", run.run_id, len(numbers_asked), arguments, run.store.uri)
    with st.expander("Command line for this re-run"):
        store = f"--tracking-uri={without_passwords(run.store.uri)}"
        literally(shlex.join(["debug", "rerun", run.run_id, store, *arguments[1:]]))


def others(run: LoggedRun, component: str) -> list[str]:
    """A widget for each other field of a plan that the component has; what is chosen, as arguments of `debug rerun`.

    Raises InputError for text that would be read as another option.
    """
    hints, docs, arguments = get_type_hints(Plan, include_extras=True), docs_of(Plan), []
    kind = run.params.get("intervention_type") if component == AS_LOGGED else component
    hidden = SHOWN if kind == KNOCKOUT else (*SHOWN, *OF_KNOCKOUTS)
    names = [each.name for each in fields(Plan) if each.name not in hidden]
    for place, name in enumerate(names):
        if place % 3 == 0:
            row = st.columns(3)
        with row[place % 3]:
            label, flag, how = name.replace("_", " ").capitalize(), flags_of(name)[0], read_as(hints[name])
            logged = as_logged(run.params.get(name))

            def shown(option: str, logged: str = logged) -> str:
                return logged if option == AS_LOGGED else option

            if options := how.get("choices"):
                chosen = choice(name, label, [AS_LOGGED, *options], shown)
                arguments += [] if chosen == AS_LOGGED else [f"{flag}={chosen}"]
            elif "action" in how:
                chosen = choice(name, label, [AS_LOGGED, "yes", "no"], shown)
                arguments += {"yes": [flag], "no": [flag.replace("--", "--no-", 1)]}.get(chosen, [])
            elif words := text(name, label, placeholder=logged):
                values = words.split() if "nargs" in how else [words]
                if any(value.startswith("-") for value in values):
                    raise InputError(f"{label} is {words[:80]!r}; expected no word that begins with -")
                arguments += [flag, *values]
            st.caption(docs[name])
    return arguments


def as_logged(value: str | None) -> str:
    """ "as logged", with the value that was."""
    said = {"true": "yes", "false": "no"}.get(value or "", visible(value or ""))
    return f"{AS_LOGGED} ({said[:40]})" if said else AS_LOGGED


def models(run: LoggedRun) -> list[str]:
    """The run's own model first, then the bundled ones that are installed. The command line takes any other."""
    return [AS_LOGGED, *bundled_models(run.tags.get("debug.model_path", ""))]


def roles(run: LoggedRun) -> list[str]:
    try:
        return list(run.maps[0].targets) if len(run.maps) else []
    except READING:
        return []


def command(
    run: LoggedRun, pairs: list[int], model: str, component: str, positions: str, named: list[str], layers: str
) -> list[str]:
    """Arguments of `debug rerun`, without the store.

    Raises InputError for invalid layers, and for names that would be read as options.
    """
    arguments = [run.run_id]
    if model != AS_LOGGED:
        arguments.append(f"--model={model}")
    if component != AS_LOGGED:
        arguments.append(f"--intervention-type={component}")
    if positions == "named":
        if not named or any(name.startswith("-") for name in named):
            raise InputError("name at least one position")
        arguments += ["--positions", *named]
    elif positions != AS_LOGGED:
        arguments.append(f"--positions={positions}")
    if layers.strip():
        arguments += ["--layers", *map(str, layer_numbers(layers))]
    return [*arguments, "--pairs", *map(str, pairs)]


# --- afterwards ------------------------------------------------------------------------------------------------------


def result(runs: pl.DataFrame, run_id: str) -> None:
    failure(jobs().last, run_id)
    new = one_in_url("new")
    if new is None:
        return
    repeated = load(new)
    exports_of(repeated)
    if repeated.tags.get("debug.rerun_of") != run_id:
        problem("The new run of this link is not a re-run of the run above.", new)
        return
    st.subheader("New map and logged map")
    st.caption("Stored as a run tagged debug.rerun_of:")
    literally(f"{repeated.name}\n{repeated.run_id}\n{repeated.tags.get('debug.rerun_changes', '')}".strip())
    logged = load(run_id)
    if not len(repeated.maps):
        st.info("The new run has no causal map.")
        return
    shown = choice("shown", "Map of the new run", [str(n) for n in range(len(repeated.maps))], width=160)
    now = repeated.maps[int(shown)]
    program = repeated.pairs[now.pair]
    then = next((each for each in logged.maps if logged.pairs[each.pair] == program), None)
    metric = choice("metric", "Metric", list(now.metrics), lambda name: title_of(name, now), width=260)
    if then is not None and comparable(now, then, metric):
        why = no_difference(now, then)
        if why is not None:
            st.info(why)
        draw(side_by_side(now, then, metric, ("new", "logged"), difference=why is None), "new-and-logged")
        return
    left, right = st.columns(2)
    with left:
        st.caption("New")
        draw(picture(now, metric), "new")
    with right:
        st.caption("Logged")
        if then is None:
            st.info("The logged run has no map of this program.")
        elif metric not in then.metrics:
            st.info(f"The logged map has no {title_of(metric, then)}.")
        else:
            draw(picture(then, metric), "logged")


def comparable(now: CausalMap, then: CausalMap, metric: str) -> bool:
    return (
        metric in then.metrics
        and now.tokens == then.tokens
        and now.top.ndim == then.top.ndim == 2
        and bool(now.positions)
    )


def picture(causal_map: CausalMap, metric: str):
    if causal_map.top.ndim == 3:
        return head_heatmap(causal_map, next(iter(causal_map.targets)), metric)
    return causal_heatmap(causal_map, metric)


page()
