"""Runs: all runs of the store, filtered, sorted and grouped. Selected runs are used on the other pages.

Rows are studies with the rates of their cells, all cells, or groups by a param. Below: the cells of what is selected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date

import polars as pl
import streamlit as st
from editing import archive, notes_and_tags
from store import load, mlflow_address, table
from view import (
    all_runs,
    choice,
    chosen_runs,
    downloads,
    given_by_url,
    in_url,
    literally,
    part,
    problem,
    put,
    put_now,
    run_label,
    said_of,
    several,
    table_key,
    text,
    yes,
)
from window import window

from debug.causal_map import ESTIMATED
from debug.causal_visualization.comparison import ordered
from debug.tracking import LoggedRun, own_n

STUDIES, CELLS = "studies", "cells"
IDS = ("run_id", "parent_run_id", "rerun_of", "experiment_id", "weights_digest")
FILTERS = {
    "experiment": "Experiment",
    "kind": "Kind",
    "params.model": "Model",
    "params.hops": "Hops",
    "params.seq_len": "Lines",
    "params.seed": "Seed",
    "status": "Status",
}
# Column -> its name on screen and its width in pixels. (Comments: Streamlit prints docstrings.)
COLUMNS = {
    "made": ("made (UTC)", 118),
    "status": ("status", 60),
    "name": ("name", 190),
    "params.model": ("model", 206),
    "params.hops": ("hops", 58),
    "params.seq_len": ("lines", 48),
    "cells": ("cells", 50),
    "kind": ("kind", 116),
    "params.prompt_template": ("prompt", 140),
    "params.few_shot": ("few-shot", 66),
    "params.num_seqs": ("n", 46),
    "params.intervention_type": ("method", 118),
    "lowest": ("lowest accuracy", 160),
    "metrics.accuracy": ("accuracy", 160),
    "highest": ("highest accuracy", 160),
    "metrics.peak_patch_success_rate": ("peak patch success", 160),
    "metrics.peak_layer": ("peak layer", 76),
    "tags": ("tags", 120),
    "note": ("note", 240),
    "experiment": ("experiment", 130),
    "duration": ("seconds", 70),
    "start_time": ("logged (UTC)", 124),
    "archived": ("archived", 124),
    "run_id": ("run id", 90),
}
ENDS = ["lowest", "highest"]  # of several cells' accuracy: what a row of them shows of it
# Width of the window -> what its tables show where nobody has chosen: no column is cut off.
AT_FIRST = {
    STUDIES: {
        800: ["made", "status", "name", "highest", "metrics.peak_patch_success_rate"],
        1200: [
            *("made", "status", "name", "params.model", "params.hops", "params.seq_len"),
            *("metrics.accuracy", "metrics.peak_patch_success_rate"),
        ],
        1750: [
            *("made", "status", "name", "kind", "params.model", "params.hops", "params.seq_len", "cells"),
            *("params.prompt_template", "metrics.accuracy", "metrics.peak_patch_success_rate", "metrics.peak_layer"),
        ],
    },
    CELLS: {
        800: [
            *("status", "params.model", "params.hops", "params.seq_len"),
            *("metrics.accuracy", "metrics.peak_patch_success_rate"),
        ],
        1200: [
            *("made", "status", "params.model", "params.hops", "params.seq_len", "params.prompt_template"),
            *("metrics.accuracy", "params.intervention_type", "metrics.peak_patch_success_rate", "metrics.peak_layer"),
        ],
        1750: [
            *("made", "status", "name", "params.model", "params.hops", "params.seq_len", "params.prompt_template"),
            *("params.few_shot", "params.num_seqs", "metrics.accuracy", "params.intervention_type"),
            *("metrics.peak_patch_success_rate", "metrics.peak_layer", "experiment"),
        ],
    },
}
NARROW = {"made": 88, "name": 220, "params.model": 204}  # widths where the window is narrow
# Rate -> the columns with the ends of its 95% CI, and with its n.
INTERVALS = {
    name: (f"{name}_ci_low", f"{name}_ci_high", f"{name}_n")
    for name in ("lowest", "highest", "metrics.accuracy", "metrics.peak_patch_success_rate")
}
# Name -> column of studies and groups, column of cells, whether in descending order. (Sorting by a click on a column
# header stays in the browser.)
SORTS = {
    "": ("made", "made", True),
    "oldest first": ("made", "made", False),
    "name": ("name", "name", False),
    "highest accuracy": ("highest", "metrics.accuracy", True),
    "lowest accuracy": ("lowest", "metrics.accuracy", False),
    "highest patch success": ("metrics.peak_patch_success_rate", "metrics.peak_patch_success_rate", True),
}
WORDS = {"FINISHED": "", "FAILED": "failed", "KILLED": "stopped", "RUNNING": "running", "SCHEDULED": "waiting"}
ROW, HEAD = 35, 40  # pixels of a table's row; of its header with its frame
ABOVE = {800: 490, 1200: 420, 1750: 420}  # width of the window -> pixels of the page above and below its first table


def page() -> None:
    st.title("Runs")
    width, height = window()
    runs = all_runs()
    if runs is None:
        return
    names = part(table().names) or []
    assert isinstance(names, list)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        words = text("text", "Text", placeholder="name, model, prompt, tag, note, id", width=230)
        params = [name for name in names if name.startswith("params.")]
        rows = choice("rows", "Rows", [STUDIES, CELLS, *params], as_rows, width=190)
        sort = SORTS[choice("sort", "Sort by", list(SORTS), lambda name: name or "newest first", width=190)]
        with st.popover("Filters"):
            matching, said = filtered(runs, words)
        with st.popover("Columns"):
            columns = chosen_columns(rows, width, names)
        st.button("Reset", icon=":material/restart_alt:", help="All runs, nothing chosen", on_click=reset)
    chosen = list(dict.fromkeys(in_url("runs")))
    if missing := [run_id for run_id in chosen if run_id not in set(runs["run_id"])]:
        problem("The link names runs that are not in this store.", "\n".join(missing))
        chosen = [run_id for run_id in chosen if run_id not in missing]
    put(runs=chosen)
    if said:
        st.text(f"Filters: {'; '.join(said)}")
    room = max(240, (height - ABOVE[width]) // (2 if chosen or in_url("groups") else 1))
    if rows == CELLS:
        cells = only_cells(matching).sort(sort[1], descending=sort[2], nulls_last=True, maintain_order=True)
        shown = run_table(cells, columns, chosen, "all cells", room, width)
    elif rows == STUDIES:
        studies = of_studies(runs, matching, columns)
        studies = studies.sort(sort[0], descending=sort[2], nulls_last=True, maintain_order=True)
        shown = run_table(studies, columns, chosen, "studies", room, width)
        of_chosen = runs.filter(pl.col("run_id").is_in(chosen))["parent_run_id"].drop_nulls().to_list()
        parents = [*(set(chosen) & shown), *of_chosen]
        under = runs.filter(pl.col("parent_run_id").is_in(parents)).sort("start_time")
        if len(under):
            st.subheader("Cells of the selected studies")
            shown |= run_table(under, cell_columns(width), chosen, "cells below", 330, width)
    else:
        shown = by_param(matching, rows, columns, chosen, sort, room, width)
    if hidden := [run_id for run_id in chosen if run_id not in shown]:
        st.caption(f"Selected runs that the filters hide: {len(hidden)}.")
    if chosen:
        part(details, runs, chosen)
    else:
        st.caption("Select runs in the table. Selected runs are used on the other pages.")


def reset() -> None:
    put_now(**dict.fromkeys(st.query_params))


def as_rows(rows: str) -> str:
    return {STUDIES: "studies", CELLS: "cells"}.get(rows, f"groups by {rows.partition('.')[2]}")


def filtered(runs: pl.DataFrame, words: str) -> tuple[pl.DataFrame, list[str]]:
    """The runs that match the filters, and the filters in words."""
    conditions, said = [pl.lit(True)], []
    for column, label in FILTERS.items():
        known = ordered(runs[column].drop_nulls())
        if wanted := several(column.rpartition(".")[2], label, known, placeholder="any"):
            conditions.append(pl.col(column).is_in(wanted))
            said.append(f"{label.lower()} {', '.join(wanted)}")
    with st.container(horizontal=True):
        since, until = day("since", "Made from"), day("until", "To")
    if since:
        conditions.append(pl.col("made").dt.date() >= since)
        said.append(f"from {since}")
    if until:
        conditions.append(pl.col("made").dt.date() <= until)
        said.append(f"to {until}")
    if not yes("archived", "Show archived runs"):
        conditions.append(pl.col("archived").is_null())
    hide = in_url("hide")
    put(hide=hide)
    if hide:
        conditions.append(~(pl.col("run_id").is_in(hide) | pl.col("parent_run_id").is_in(hide).fill_null(False)))
        said.append(f"{len(hide)} hidden")
        st.button("Show hidden runs", on_click=lambda: put_now(hide=None))
    searched = [column for column, dtype in runs.schema.items() if dtype == pl.String]
    for word in words.lower().split():
        # The whole text is searched, also where the table shows only the beginning of a name.
        # Ids only from their beginning: hexadecimal digits somewhere in one are a match by chance.
        conditions.append(
            pl.any_horizontal(
                pl.col(name).str.starts_with(word)
                if name in IDS
                else pl.col(name).str.to_lowercase().str.contains(word, literal=True)
                for name in searched
            )
        )
    return runs.filter(pl.all_horizontal(conditions)), said


def day(name: str, label: str) -> date | None:
    given = given_by_url(name)
    if given is not None:
        try:
            st.session_state[name] = date.fromisoformat(given[0] if given else "")
        except ValueError:
            st.session_state[name] = None
    picked = st.date_input(label, key=name, format="YYYY-MM-DD", width=150, value=None)
    put(**{name: picked})
    return picked if isinstance(picked, date) else None


def chosen_columns(rows: str, width: int, names: list[str]) -> list[str]:
    """The columns that the URL names, else those that fit the window."""
    options = [name for name in [*COLUMNS, *names] if name not in ENDS]
    picked = several("columns", "Columns", list(dict.fromkeys(options)), column_name, placeholder="those that fit")
    st.caption("None chosen: those that fit the window. They stand in the order in which they are chosen.")
    if rows == CELLS:
        return picked or AT_FIRST[CELLS][width]
    each = [ENDS if name == "metrics.accuracy" else [name] for name in picked or AT_FIRST[STUDIES][width]]
    return [name for part in each for name in part]


def cell_columns(width: int) -> list[str]:
    """Of the table of cells below one of studies or groups: what was chosen there, else the usual ones."""
    return [name for name in in_url("columns") if name != "cells"] or AT_FIRST[CELLS][width]


def column_name(column: str) -> str:
    return COLUMNS[column][0] if column in COLUMNS else column.partition(".")[2]


def only_cells(runs: pl.DataFrame) -> pl.DataFrame:
    return runs.filter(pl.col("parent_run_id").is_not_null() | (pl.col("role") == "cell"))


def with_columns_of(runs: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The runs with the params and metrics that the table of all runs does not keep."""
    for name in columns:
        if name.startswith(("params.", "metrics.")) and name not in runs.columns:
            runs = runs.join(table().column(name), on="run_id", how="left")
    return runs


def of_studies(runs: pl.DataFrame, matching: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Top-level runs that match, or of which a cell matches, with the params and rates of their cells."""
    is_child = pl.col("parent_run_id").is_in(runs["run_id"].implode())
    top = runs.filter(~is_child | pl.col("parent_run_id").is_null())
    mine = runs.with_columns(top=pl.when(is_child).then(pl.col("parent_run_id")).otherwise(pl.col("run_id")))
    hit = mine.filter(pl.col("run_id").is_in(matching["run_id"].implode()))["top"].unique()
    mine = with_columns_of(mine.filter(pl.col("top").is_in(hit.implode())), columns)
    reached = mine.group_by("top").agg(cells=pl.len() - 1, **over_cells(mine, columns))
    top = top.drop(name for name in reached.columns if name in top.columns)
    return top.filter(pl.col("run_id").is_in(hit.implode())).join(reached, left_on="run_id", right_on="top", how="left")


def over_cells(cells: pl.DataFrame, columns: Sequence[str]) -> dict[str, pl.Expr]:
    """What a row says of several cells: their values of params, extremes of rates, the range of other metrics."""
    rates = {
        **extreme("lowest", "metrics.accuracy", descending=False),
        **extreme("highest", "metrics.accuracy", descending=True),
        **extreme("metrics.peak_patch_success_rate", "metrics.peak_patch_success_rate", descending=True),
    }
    rates["metrics.peak_layer"] = (
        pl.col("metrics.peak_layer")
        .sort_by("metrics.peak_patch_success_rate", descending=True, nulls_last=True)
        .first()
    )
    others = [name for name in columns if name.startswith("metrics.") and name not in rates]
    params = {name for name in columns if name.startswith("params.") and name in cells.columns}
    return {
        **{name: listed(name) for name in sorted(params)},
        **rates,
        **{name: ranged(name) for name in others},
    }


def extreme(name: str, rate: str, descending: bool) -> dict[str, pl.Expr]:
    """A group's lowest or highest rate, the ends of its 95% CI, and its n."""
    columns = (rate, *INTERVALS[rate])
    first = [pl.col(each).sort_by(rate, descending=descending, nulls_last=True).first() for each in columns]
    return dict(zip((name, *INTERVALS[name]), first, strict=True))


def listed(column: str) -> pl.Expr:
    """The values of a param, the first six of them, numbers by their size."""
    values = pl.col(column).drop_nulls().str.strip_chars("[]").unique(maintain_order=True)
    return values.sort_by(values.str.zfill(6)).head(6).str.join(", ")


def ranged(column: str) -> pl.Expr:
    """A metric's value, or the lowest and highest of several. Never a mean: cells are not alike."""
    low, high = (end.round_sig_figs(4).cast(pl.String) for end in (pl.col(column).min(), pl.col(column).max()))
    return pl.when(low == high).then(low).otherwise(pl.format("{} – {}", low, high))


def by_param(
    matching: pl.DataFrame,
    param: str,
    columns: list[str],
    chosen: list[str],
    sort: tuple[str, str, bool],
    room: int,
    width: int,
) -> set[str]:
    """Groups of cells with one value of a param, and the cells of the groups that are selected; the ids of those."""
    cells = with_columns_of(only_cells(matching), [param, *columns]).with_columns(pl.col(param).fill_null("(none)"))
    groups = cells.group_by(param).agg(
        made=pl.col("made").max(),
        cells=pl.len(),
        **{name: value for name, value in over_cells(cells, columns).items() if name != param},
    )
    if sort is SORTS[""] or sort[0] not in groups.columns:
        rank = {value: number for number, value in enumerate(ordered(groups[param]))}
        groups = groups.sort(pl.col(param).replace_strict(rank, return_dtype=pl.Int64))
    else:
        groups = groups.sort(sort[0], descending=sort[2], nulls_last=True, maintain_order=True)
    known = [name for name in ("cells", *columns) if name in groups.columns and name != param]
    values = groups[param].to_list()
    picked = [value for value in in_url("groups") if value in values]
    put(groups=picked)
    rows = selectable(
        groups.select(param, *ends_of([*dict.fromkeys(known)])), values, picked, "groups", room, width, name="groups"
    )
    under = cells.filter(pl.col(param).is_in(rows)).sort("made", descending=True, nulls_last=True)
    if under.is_empty():
        st.caption("Select groups: their cells are listed below.")
        return set()
    st.subheader("Cells of the selected groups")
    return run_table(under, cell_columns(width), chosen, "cells below", 330, width)


def run_table(runs: pl.DataFrame, columns: list[str], chosen: list[str], key: str, room: int, width: int) -> set[str]:
    """A table of runs whose selection is the URL's; the ids of its runs."""
    runs = with_columns_of(runs, columns)
    component = pl.col("params.intervention_type")
    estimated = pl.when(pl.col("kind") == "attribution").then(pl.format(f"{{}} ({ESTIMATED})", component))
    runs = runs.with_columns(estimated.otherwise(component), pl.col("status").replace(WORDS))
    if not in_url("columns") and not (runs["status"] != "").any():
        columns = [name for name in columns if name != "status"]  # nothing to say: all are finished
    shown = runs.select("run_id", *(name for name in ends_of(columns) if name != "run_id" and name in runs.columns))
    ids = runs["run_id"].to_list()
    drop = [] if "run_id" in columns else ["run_id"]
    selectable(shown, ids, chosen, key, room, width, drop=drop, name="runs")
    return set(ids)


def ends_of(columns: Sequence[str]) -> list[str]:
    """The columns, and behind each rate those of its interval and n."""
    return [each for name in columns for each in (name, *INTERVALS.get(name, ()))]


def selectable(
    shown: pl.DataFrame,
    ids: list[str],
    chosen: Sequence[str],
    key: str,
    room: int,
    width: int,
    drop: Sequence[str] = (),
    name: str = "runs",
) -> list[str]:
    """A table with selectable rows, at most ``room`` pixels high; which of ``ids`` is in the URL's ``name``."""
    st.caption(f"{len(ids):,} {'rows' if len(ids) != 1 else 'row'}")
    rates = [rate for rate in INTERVALS if rate in shown.columns]
    ends = {end for rate in rates for end in INTERVALS[rate]}
    visible = shown.with_columns(as_text(rate) for rate in rates).drop(*drop, *ends)
    visible = visible.with_columns(pl.col(pl.String).str.slice(0, 300))
    config: dict = {}  # of Streamlit's column types
    for column in visible.columns:
        wide = (NARROW if width < 1200 else {}).get(column, COLUMNS.get(column, ("", 110))[1])
        config[column] = st.column_config.Column(column_name(column), width=wide)
        if visible.schema[column] == pl.Datetime("ms", "UTC"):
            form = "YYYY-MM-DD" if width < 1200 else "YYYY-MM-DD HH:mm"
            config[column] = st.column_config.DatetimeColumn(column_name(column), format=form, width=wide)
        elif visible.schema[column].is_float():
            config[column] = st.column_config.NumberColumn(column_name(column), format="%.4g", width=wide)
    places = set(chosen)
    rows = [row for row, of in enumerate(ids) if of in places]
    # Rows are selected by number, and a table's columns belong to it: others need a new table.
    widget = table_key(f"{key} {hash((tuple(ids), tuple(visible.columns)))}", rows)

    def choose() -> None:
        """Uses the rows that were on screen: the store may have changed since."""
        now = [ids[row] for row in st.session_state[widget]["selection"]["rows"] if row < len(ids)]
        put_now(**{name: [*(of for of in st.query_params.get_all(name) if of not in set(ids)), *now]})

    st.dataframe(
        visible,
        hide_index=True,
        height=min(room, HEAD + ROW * len(ids)),
        placeholder="",
        column_config=config,
        on_select=choose,
        selection_mode="multi-row",
        selection_default={"selection": {"rows": rows}},  # type: ignore[arg-type]  (a plain dict will do)
        key=widget,
        lazy=False,
    )
    downloads(f"{key} {date.today()}", shown)
    return [ids[row] for row in rows]


def as_text(rate: str) -> pl.Expr:
    """`` 97.0% [94.1, 98.5] n=200``, the known parts of it; padded, so that a click on the header sorts by the rate."""

    def percent(column: str) -> pl.Expr:
        return (100 * pl.col(column)).round(1).cast(pl.String)

    low, high, n = INTERVALS[rate]
    interval = (
        pl.format(" [{}, {}]", percent(low), percent(high)).str.replace("100.0]", "100]", literal=True).fill_null("")
    )
    size = pl.format(" n={}", pl.col(n).cast(pl.Int64)).fill_null("")
    return pl.format("{}%{}{}", percent(rate).str.pad_start(5), interval, size).alias(rate)


def details(runs: pl.DataFrame, picked: list[str]) -> None:
    """What can be done with the selected runs; how two of them differ; and the run that was selected last."""
    ids = chosen_runs(runs)
    kinds = runs.filter(pl.col("run_id").is_in(ids))
    causal = kinds.filter(pl.col("params.intervention_type").is_not_null())
    with st.container(horizontal=True, vertical_alignment="center"):
        query = [("runs", run_id) for run_id in picked]
        st.page_link("compare.py", label="Compare these runs", icon=":material/compare:", query_params=query)
        if len(causal):
            st.page_link(
                "causal_map.py",
                label="Causal map",
                icon=":material/grid_on:",
                query_params=[*query, ("run", causal["run_id"][-1])],
            )
        st.page_link("samples.py", label="Samples", icon=":material/list:", query_params=query)
        st.button("Clear selection", on_click=lambda: put_now(runs=None))
        hide = [*in_url("hide"), *picked]
        st.button("Hide", help="Leave them out of this view; the link holds it.", on_click=hider(hide))
        archive(runs.filter(pl.col("run_id").is_in(picked)))
    rows = {row["run_id"]: row for row in runs.filter(pl.col("run_id").is_in(picked)).iter_rows(named=True)}
    if len(picked) > 1:
        part(differences, picked, rows)
    st.subheader("Run")
    run = load(picked[-1])
    literally(f"{run.name} · {run.status}\n{run.run_id}")
    row = rows[run.run_id]
    if row["made"] != row["start_time"]:
        st.text(
            f"made {row['made']:%Y-%m-%d %H:%M} (as its files state), imported {row['start_time']:%Y-%m-%d %H:%M} UTC"
        )
    if address := mlflow_address(row["experiment_id"], run.run_id):
        st.link_button("Open in MLflow", address)
    said_of(run.status, run.tags.get("debug.error"))
    if run.kind is None:
        st.info("This run was not logged by this project. Its metrics and params are shown without interpretation.")
    if again := run.tags.get("debug.rerun_of"):
        st.caption("Re-run of:")
        literally(again + "\n" + run.tags.get("debug.rerun_verdict", run.tags.get("debug.rerun_changes", "")))
    part(notes_and_tags, run.run_id)
    numbers(run)
    pictures(run)


def hider(hide: list[str]) -> Callable[[], None]:
    return lambda: put_now(hide=hide, runs=None)


def differences(picked: list[str], rows: dict[str, dict]) -> None:
    """The params, and what else made them, in which two of the selected runs differ."""
    st.subheader("Differences between two runs")
    left, right = st.columns(2)
    with left:
        first = choice("a", "A", picked, lambda run_id: run_label(rows[run_id]))
    with right:
        second = choice("b", "B", [of for of in picked if of != first], lambda run_id: run_label(rows[run_id]))
    equal = yes("equal", "Show equal params, too")
    frame = difference(load(first), load(second))
    apart = frame.filter(pl.col("A").ne_missing(pl.col("B")))
    st.caption(f"{len(apart)} of {len(frame)} params and versions differ.")
    shown = frame if equal else apart
    if len(shown):
        st.dataframe(shown, hide_index=True, height=min(330, HEAD + ROW * len(shown)), placeholder="")
        downloads(f"params {first[:8]} {second[:8]}", shown)


def difference(first: LoggedRun, second: LoggedRun) -> pl.DataFrame:
    """Params of both runs, and what they were computed with: param, A, B (null: not logged)."""
    one, other = asked(first), asked(second)
    names = [*dict.fromkeys([*sorted(first.params.keys() | second.params.keys()), *one, *other])]
    rows = [(name, one.get(name), other.get(name)) for name in names]
    return pl.DataFrame(rows, {"param": pl.String, "A": pl.String, "B": pl.String}, orient="row")


def asked(run: LoggedRun) -> dict[str, str]:
    """The params of a run, of a study with those of its cells, and what it was computed with."""
    values: dict[str, list[str]] = {}
    for each in (run, *(run.children if run.role == "study" else ())):
        for name, value in (each.params | each.environment).items():
            if value and value not in (known := values.setdefault(name, [])):
                known.append(value)
    return {name: ", ".join(sorted(known, key=lambda text: (len(text), text))[:20]) for name, known in values.items()}


def numbers(run: LoggedRun) -> None:
    rows = [
        (name, value, *(run.metrics.get(f"{name}_{end}") for end in ("ci_low", "ci_high")), own_n(name, run.metrics))
        for name, value in sorted(run.metrics.items())
        if not name.endswith(("_ci_low", "_ci_high", "_n")) and "_by_layer/" not in name
    ]
    ends = {"value": pl.Float64, "from": pl.Float64, "to": pl.Float64, "n": pl.Int64}
    config = {
        "value": st.column_config.NumberColumn("value", format="%.4g"),
        "from": st.column_config.NumberColumn("95% CI low", format="%.3f"),
        "to": st.column_config.NumberColumn("95% CI high", format="%.3f"),
    }
    left, right = st.columns(2)
    if rows:
        frame = pl.DataFrame(rows, {"metric": pl.String, **ends}, orient="row")
        left.dataframe(
            frame,
            hide_index=True,
            placeholder="",
            column_config=config,  # type: ignore[arg-type]  (columns and texts)
            height=min(420, HEAD + ROW * len(rows)),
        )
    if run.params:
        params = pl.DataFrame(sorted(run.params.items()), {"parameter": pl.String, "value": pl.String}, orient="row")
        right.dataframe(
            params.with_columns(pl.col("value").str.slice(0, 1000)),
            hide_index=True,
            height=min(420, HEAD + ROW * len(params)),
        )


def pictures(run: LoggedRun) -> None:
    with st.expander("Files of this run"):
        names = run.artifacts()
        literally("\n".join(names) or "none")
        if "summary.json" in names and st.button("Show summary.json"):
            literally(json.dumps(run.summary, indent=1, ensure_ascii=False)[:20_000])


page()
