"""What all pages share: state in the URL, text of a store shown literally, charts with their downloads.

Every choice is read from the URL and written back, so that a link shows the same view. Links to other pages carry the
selected runs and the place on a map.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from html import escape
from typing import TYPE_CHECKING

import polars as pl
import streamlit as st
from store import REFRESH_SECONDS, options, table
from streamlit.delta_generator import DeltaGenerator
from streamlit.navigation.page import StreamlitPage

from debug.causal_map import ESTIMATED, CausalMapError
from debug.errors import DebugError
from debug.kinds import Argument, Json
from debug.programs import ProgramError
from debug.provenance import without_passwords
from debug.tracking import LoggedRun, TrackingError, store_uri

if TYPE_CHECKING:
    from debug.causal_visualization.interactive import Chart

CARRIED = ("runs", "run", "with", "pair", "metric", "target", "layer", "token")
READING = (TrackingError, CausalMapError, ProgramError)
"""Errors of reading a store's files; a page shows them as a sentence."""


# --- the URL ---------------------------------------------------------------------------------------------------------


def begin(page: str) -> None:
    """At the beginning of a page's run."""
    st.session_state.update({"to write": {}, "widgets": set(), "exports": []})
    if st.session_state.get("page") != page:
        st.session_state.update(page=page, taken={})  # to the widgets of this page all of its URL is new


def links(place: DeltaGenerator, pages: Sequence[StreamlitPage]) -> None:
    """Links to all pages. They carry the selection in the URL, so that the back button and new tabs have it too."""
    along = [(name, value) for name in CARRIED for value in in_url(name)]
    with place.container(horizontal=True, gap="small"):
        for page in pages:
            st.page_link(page, query_params=along, width="content")
        st.text(f"store: {shown_store()}", width="content")


def shown_store() -> str:
    """The store that is shown, as its URI without a password; one that is no store as it was given."""
    try:
        return without_passwords(store_uri(options().tracking_uri))
    except TrackingError:
        return "none"


def put(**values: object) -> None:
    """Set names in the URL when the page's run ends; None and empty values remove a name."""
    for name, value in values.items():
        many = value if isinstance(value, list | tuple) else [] if value is None else [value]
        st.session_state["to write"][name] = [str(each) for each in many]


def put_now(**values: object) -> None:
    """The same at once, for callbacks of a click, which run before the page."""
    st.session_state["to write"] = {}
    put(**values)
    write_url()


def again() -> None:
    """Run the page again with the values of :func:`put`."""
    write_url()
    st.rerun()


def write_url() -> None:
    """Write all values in one step: each change of the URL is a step of the browser's back button."""
    now = {name: st.query_params.get_all(name) for name in st.query_params}
    url = {name: value for name, value in (now | st.session_state["to write"]).items() if value}
    if url != now:
        st.query_params.from_dict(url)
    st.session_state["to write"] = {}


def finish() -> None:
    """At the end of a page's run. A run that is cut short writes nothing; the next starts from the same URL."""
    write_url()
    st.session_state["taken"].update({name: in_url(name) for name in st.session_state["widgets"]})


def in_url(name: str) -> list[str]:
    """The values of a name in the URL, or those that it will have when the page's run ends."""
    return st.session_state["to write"].get(name, st.query_params.get_all(name))


def one_in_url(name: str) -> str | None:
    return next(iter(in_url(name)), None)


def number(name: str) -> int | None:
    """A whole number in the URL; None for anything else."""
    text = one_in_url(name) or ""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def table_key(name: str, rows: list[int]) -> str:
    """The key of a table in which these rows are selected, as the URL has them.

    A new key where the table on screen has other rows selected: a late click may come from that older table.
    """
    begun = st.session_state.setdefault("begun", Counter())
    drawn = st.session_state.get(f"{name} {begun[name]}")
    if drawn is not None and set(drawn["selection"]["rows"]) != set(rows):
        begun[name] += 1
    return f"{name} {begun[name]}"


def choice(
    name: str, label: str, options: Sequence[str], show: Callable[[str], str] = str, **settings: Argument
) -> str:
    """A select box whose value is in the URL. A value of a link that is not an option is shown in a note."""
    given = given_by_url(name)
    if given is not None:
        st.session_state[name] = given[0] if given[:1] and given[0] in options else options[0]
    elif st.session_state.get(name) not in options:
        st.session_state[name] = options[0]
    picked = st.selectbox(label, options, format_func=show, key=name, **settings)
    if given and given[0] not in options:
        st.caption("This value of the link is not available:")
        literally(given[0])
    put(**{name: picked or None})
    return picked


def several(
    name: str, label: str, options: Sequence[str], show: Callable[[str], str] = str, **settings: Argument
) -> list[str]:
    """A multiselect whose values are in the URL; empty is no filter. Values that are not options are ignored."""
    given = given_by_url(name)
    if given is not None:
        st.session_state[name] = [value for value in given if value in options]
    elif name in st.session_state:
        st.session_state[name] = [value for value in st.session_state[name] if value in options]
    picked = st.multiselect(label, options, format_func=show, key=name, **settings)
    put(**{name: picked})
    return picked


def text(name: str, label: str, **settings: Argument) -> str:
    given = given_by_url(name)
    if given is not None:
        st.session_state[name] = given[0] if given else ""
    picked = st.text_input(label, key=name, **settings) or ""
    put(**{name: picked or None})
    return picked


def yes(name: str, label: str, **settings: Argument) -> bool:
    given = given_by_url(name)
    if given is not None:
        st.session_state[name] = given == ["yes"]
    picked = st.toggle(label, key=name, **settings)
    put(**{name: "yes" if picked else None})
    return picked


def given_by_url(name: str) -> list[str] | None:
    """The values in the URL where the widget does not have them yet (from a link or the back button), else None."""
    st.session_state["widgets"].add(name)
    now, taken = in_url(name), st.session_state["taken"]
    if now == taken.get(name, []):
        return None
    taken[name] = now
    return now


# --- text and errors -------------------------------------------------------------------------------------------------


def literally(text: object) -> None:
    """Show text of a store literally, never as Markdown or HTML."""
    st.code(str(text), language=None, wrap_lines=True)


def prose(text: str, strong: bool = False) -> None:
    """A sentence that may have text of a store in it: escaped, so that it is no Markdown and no HTML."""
    style = f"margin:0; font-size:0.9rem; overflow-wrap:anywhere; font-weight:{600 if strong else 400}"
    st.html(f"<p style='{style}'>{escape(text)}</p>")


def problem(sentence: str, detail: object = "") -> None:
    """An error message of the dashboard, and below it the details from the store."""
    st.error(sentence)
    if str(detail):
        literally(without_passwords(str(detail)))


def part(show: Callable[..., object], *arguments: Argument) -> object:
    """Draw a part of a page; an error in it becomes a message, and the rest of the page stays."""
    try:
        return show(*arguments)
    except READING as error:
        problem("This part of the run cannot be read.", error)
    except DebugError as error:  # a chart or a comparison that these data do not allow
        problem("This cannot be shown.", error)
    return None


# --- runs ------------------------------------------------------------------------------------------------------------


def all_runs() -> pl.DataFrame | None:
    """Every run of the store, refreshed automatically; None, with a message on the page, where there are none."""
    st.session_state["live"] = False
    try:
        runs = table()
        runs.refresh()
    except TrackingError as error:
        problem("The tracking store cannot be read.", error)
        return None
    st.session_state["seen"] = runs.frame
    st.session_state["drawing"] = True
    _watch()
    if runs.frame.is_empty():
        st.info("There are no runs in this store yet: `debug demo` makes the first ones.")
        literally(without_passwords(runs.store.uri))
        return None
    return runs.frame


@st.fragment(run_every=REFRESH_SECONDS)
def _watch() -> None:
    """Run the page again where the store has changed, or a run on the page is still running.

    Not while a page is being drawn: it has just read the store, and one that is written to all the time would restart
    the page before it is drawn, again and again.
    """
    if st.session_state.pop("drawing", False):
        return
    try:
        table().refresh()
    except TrackingError:
        return  # somebody is writing; the next look will tell
    if st.session_state.get("seen") is not table().frame or st.session_state["live"]:
        st.rerun()


def chosen_runs(runs: pl.DataFrame) -> list[str]:
    """The selected run ids; a study of which no cell is selected brings all its cells."""
    asked = list(dict.fromkeys(in_url("runs")))
    cells = runs.filter(pl.col("parent_run_id").is_in(asked))
    parents = set(runs.filter(pl.col("run_id").is_in(asked))["parent_run_id"].drop_nulls())
    found = []
    for run_id in asked:
        found.append(run_id)
        if run_id not in parents:
            found.extend(cells.filter(pl.col("parent_run_id") == run_id).sort("start_time")["run_id"])
    return list(dict.fromkeys(found))


def one_run(runs: pl.DataFrame, suits: pl.Expr, what: str, name: str = "run", label: str = "Run") -> str | None:
    """A select box of the runs that suit a page: first the one in the URL, then the selected ones, then the newest."""
    there = runs.filter(suits, pl.col("archived").is_null() | pl.col("run_id").is_in(in_url(name)[:1]))
    there = there.sort(pl.col("status") == "FAILED", maintain_order=True)  # a page opens on none that failed
    ids = set(there["run_id"])
    asked = one_in_url(name)
    if asked and asked not in ids:
        cells = there.filter(pl.col("parent_run_id") == asked).sort("start_time")
        if len(cells):
            asked = cells["run_id"][0]
            put(**{name: asked})
    options = [run_id for run_id in (asked, *chosen_runs(runs)) if run_id and run_id in ids]
    options: list[str] = list(dict.fromkeys([*options, *there["run_id"].head(200)]))
    if not options:
        st.info(f"There is no run with {what} in this store yet.")
        return None
    if asked and asked not in ids:
        known = asked in set(runs["run_id"])
        problem(f"The run of this link has no {what}." if known else "There is no such run in this store.", asked)
        put(**{name: None})
    rows = {row["run_id"]: row for row in there.filter(pl.col("run_id").is_in(options)).iter_rows(named=True)}
    return choice(name, label, options, lambda run_id: run_label(rows[run_id]))


def run_label(row: dict[str, Json]) -> str:
    started = f"{row['made']:%Y-%m-%d %H:%M}" if row["made"] else "no date"
    status = "" if row["status"] == "FINISHED" else f"{row['status']} · "  # before what a narrow box cuts off
    how = f"{ESTIMATED} · " if row["kind"] == "attribution" else ""
    return f"{status}{how}{row['name'] or 'unnamed'} · {started} · {row['run_id'][:8]} · {row['experiment']}"


def said_of(status: str, error: str | None) -> None:
    """A message about a run that failed, was stopped or is still running."""
    if status == "FAILED":
        problem("This run failed. What it logged before that is below.", error or "")
    elif status == "KILLED":
        st.warning("This run was stopped. What it logged before that is below.")
    elif status != "FINISHED":
        st.session_state["live"] = True  # its files grow without a change in the database
        st.info("This run has not finished. What it logged so far is below; the page updates by itself.")


def said_of_life(run: LoggedRun) -> bool:
    """Whether a run that is not done has a process; else a message that it stands still."""
    if run.owner is not None:
        return True
    st.warning("Nothing has been heard of its process: it has ended without a word. The same command goes on with it.")
    return False


# --- charts ----------------------------------------------------------------------------------------------------------


def draw(
    chart: Chart, key: str, data: pl.DataFrame | None = None, on_cell: Callable[[dict[str, Json]], None] | None = None
) -> None:
    """A chart in its own size, with its downloads; one that is wider than the page scrolls.

    ``on_cell`` is given the fields of the mark that is clicked, before the page runs again.
    """

    def clicked() -> None:
        cells = st.session_state[f"draw {key}"]["selection"].get("cell") or []
        if cells and on_cell is not None:
            on_cell(cells[0])

    sized = chart.properties(autosize="pad")  # Streamlit would else fit legends into the height, and cut them off
    with st.container(width="content", gap="xxsmall"):
        if on_cell is None:
            st.altair_chart(sized, width="content")
        else:
            st.altair_chart(sized, width="content", on_select=clicked, selection_mode="cell", key=f"draw {key}")
        downloads(key, data, chart)


def scroll_to(key: str) -> None:
    """Bring the container of this key into view, once, where a click has asked for what it shows."""
    if st.session_state.pop("scroll", False):
        find = f"document.querySelector('.st-key-{key}')"
        script = f"setTimeout(() => {find}?.scrollIntoView({{block: 'nearest', behavior: 'smooth'}}), 300)"
        st.html(f"<script>{script}</script>", unsafe_allow_javascript=True)  # no text of a store is in it


def chart_only(chart: Chart) -> None:
    st.altair_chart(chart.properties(autosize="pad"), width="content")


def exports_of(run: LoggedRun, *words: str) -> None:
    """Name the files that are downloaded from this page after a run: model, hops, lines, these words, date, run."""
    hops, lines = run.params.get("hops"), run.params.get("seq_len")
    of = [run.params.get("model", ""), hops and f"hops {hops}", lines and f"lines {lines}", *words]
    st.session_state["exports"] = [*filter(None, of), str(date.today()), run.run_id[:8]]


def file_name_of(words: Sequence[str]) -> str:
    """What a file system may not like is a hyphen."""
    return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.")[:60] for word in words)


def downloads(key: str, data: pl.DataFrame | None, chart: Chart | None = None) -> None:
    """The table behind a chart as CSV and Parquet, the chart as PNG and SVG; each is made on demand."""
    made: dict[str, Callable[[], bytes]] = {}
    if data is not None:
        made |= {"csv": lambda: _flat(data).write_csv().encode(), "parquet": lambda: _parquet(data)}
    if chart is not None:
        made |= {kind: lambda kind=kind, chart=chart: _picture(chart, kind) for kind in ("png", "svg")}
    with st.popover("Download", type="tertiary"):
        for kind, make in made.items():
            name = file_name_of([key, *of]) if (of := st.session_state["exports"]) else key
            st.download_button(kind.upper(), make, f"{name}.{kind}", key=f"download {key} {kind}", on_click="ignore")


def _flat(data: pl.DataFrame) -> pl.DataFrame:
    return data.with_columns(pl.col(pl.List(pl.String)).list.join(" "))


def _parquet(data: pl.DataFrame) -> bytes:
    data.write_parquet(file := io.BytesIO())
    return file.getvalue()


def _picture(chart: Chart, kind: str) -> bytes:
    if kind == "png":
        chart.save(picture := io.BytesIO(), format="png", scale_factor=2)
        return picture.getvalue()
    chart.save(drawing := io.StringIO(), format="svg")
    return drawing.getvalue().encode()
