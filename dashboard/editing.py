"""What people change of a run: its note, their own tags, whether it is archived. Each change can be undone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime

import polars as pl
import streamlit as st
from jobs import why_off
from store import changed, table
from view import literally, problem

from debug.errors import InputError
from debug.tracking import ARCHIVED, NOTE, TrackingError, own_tag

OFF = "Notes, tags and the archive cannot be changed from here"


def archive(picked: pl.DataFrame) -> None:
    """Buttons that put runs away, or bring them back: a tag, so that nothing is lost."""
    undo(picked["run_id"].to_list())
    if (why := why_off("edit")) is not None:
        st.caption(f"{OFF}: {why}.")
        return
    away, here = (
        picked.filter(gone)["run_id"].to_list()
        for gone in (pl.col("archived").is_not_null(), pl.col("archived").is_null())
    )
    if here:
        with st.popover("Archive"):
            st.text(
                f"Archive {len(here)} {'run' if len(here) == 1 else 'runs'}, with their cells? Nothing is deleted: "
                "they are left out of lists, and can be brought back."
            )
            now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
            st.button("Yes, archive", on_click=write, args=({run_id: {ARCHIVED: now} for run_id in here}, "Archived."))
    if away:
        bring = {run_id: {ARCHIVED: None} for run_id in away}
        st.button("Bring back from the archive", on_click=write, args=(bring, "Brought back from the archive."))


def write(changes: Mapping[str, Mapping[str, str | None]], said: str, undoes: bool = True) -> None:
    """Set or remove (None) tags of runs. What they were before is kept for :func:`undo`."""
    store, before = table().store, {}
    try:
        for run_id, tags in changes.items():
            known = store.load_run(run_id).tags
            before[run_id] = {name: known.get(name) for name in tags}
            store.set_tags(run_id, {name: value for name, value in tags.items() if value is not None})
            store.delete_tags(run_id, [name for name, value in tags.items() if value is None and name in known])
    except (TrackingError, InputError) as error:
        said, st.session_state["not written"] = "", str(error)
    changed()
    st.session_state["written"] = (said, before, undoes)


def undo(picked: Collection[str]) -> None:
    """What was just changed of these runs, with a button that takes it back; or why it could not be."""
    if error := st.session_state.pop("not written", None):
        problem("This could not be written.", error)
    said, before, undoes = st.session_state.get("written", ("", {}, False))
    if said and not before.keys().isdisjoint(picked):
        with st.container(horizontal=True, vertical_alignment="center", width="content"):
            st.text(said)
            if undoes:
                st.button("Undo", on_click=write, args=(before, "Undone.", False))


def notes_and_tags(run_id: str) -> None:
    """The note and people's own tags of a run, as text that can be edited."""
    known = table().store.load_run(run_id).tags  # as they are now: others edit, too
    own = {name: value for name, value in known.items() if own_tag(name)}
    note, tags = known.get(NOTE, ""), as_lines(own)
    with st.expander("Note and tags", expanded=bool(own)):
        if (why := why_off("edit")) is not None:
            st.caption(f"{OFF}: {why}.")
            literally(f"{note}\n{tags}".strip() or "none")
            return
        with st.form(f"note and tags {run_id}", border=False):
            new_note = st.text_area(
                "Note (shown in MLflow as the description)", note, key=f"note {run_id} {hash(note)}"
            )
            new_tags = st.text_area(
                "Tags, one a line: name = value",
                tags,
                key=f"tags {run_id} {hash(tags)}",
                placeholder="paper = figure 3",
            )
            if st.form_submit_button("Save"):
                try:
                    wanted = from_lines(new_tags or "")
                except InputError as error:
                    problem("The tags were not saved.", error)
                    return
                change: dict[str, str | None] = {name: wanted.get(name) for name in own | wanted}
                change = {name: value for name, value in change.items() if own.get(name) != value}
                if (new_note or "") != note:
                    change[NOTE] = new_note or None
                if change:
                    write({run_id: change}, "Saved.")
                    st.rerun()


def as_lines(tags: Mapping[str, str]) -> str:
    """Tags as lines of ``name = value``; values that a line cannot hold as they are, as JSON."""

    def shown(value: str) -> str:
        plain = value == value.strip() and value.isprintable() and not value.startswith('"')
        return value if plain else json.dumps(value, ensure_ascii=False)

    return "\n".join(f"{name} = {shown(value)}" for name, value in sorted(tags.items()))


def from_lines(text: str) -> dict[str, str]:
    """The tags of such lines.

    Raises:
        InputError: a line that is no tag, a name that is MLflow's or this project's, or one that is there twice.
    """
    tags: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not line.strip():
            continue
        if not name or not equals:
            raise InputError(f"line {number} is {line!r:.80}; expected name = value")
        if not own_tag(name) or name in tags:
            why = "is given twice" if name in tags else "begins with mlflow. or debug., whose tags are not people's own"
            raise InputError(f"line {number}: the tag {name!r:.80} {why}; expected another name")
        if value.startswith('"'):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise InputError(
                    f"line {number}: the value {value!r:.80} begins as JSON and is none: {error}"
                ) from error
        tags[name] = str(value)
    return tags
