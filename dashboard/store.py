"""The store that the dashboard shows, chosen by the same rule as everywhere, and how pages read it and speak about it.

--tracking-uri on the command line (after --), else MLFLOW_TRACKING_URI, else the project's own mlruns/. What a store
holds is shown literally, never as Markdown or HTML: in tables, charts and code blocks.
"""

from __future__ import annotations

import argparse
import sys

import polars as pl
import streamlit as st

from debug.causal_map import MeanCausalMap, mean_over_pairs
from debug.tracking import LoggedRun, Store, store_uri

REFRESH_SECONDS = 5
MOST_RUNS = 1000


def chosen_store() -> Store:
    """Raises TrackingError where the URI names no kind of store."""
    parser = argparse.ArgumentParser(prog="streamlit run dashboard/app.py --", allow_abbrev=False)
    parser.add_argument("--tracking-uri")
    return _open(store_uri(parser.parse_known_args(sys.argv[1:])[0].tracking_uri))


@st.cache_resource(max_entries=4, show_spinner=False)
def _open(uri: str) -> Store:
    return Store(uri)


@st.cache_data(ttl=REFRESH_SECONDS, show_spinner=False)
def runs_of(_store: Store, uri: str) -> pl.DataFrame:
    """The latest runs, as they were at most a few seconds ago. Raises TrackingError."""
    return _store.find_runs(limit=MOST_RUNS)


def load(store: Store, run_id: str, status: str | None) -> LoggedRun:
    """A run; one that has ended does not change any more, and is kept. Raises TrackingError where there is none."""
    ended = status in ("FINISHED", "FAILED", "KILLED")
    return _load_ended(store, store.uri, run_id) if ended else store.load_run(run_id)


@st.cache_resource(max_entries=32, show_spinner=False)
def _load_ended(_store: Store, uri: str, run_id: str) -> LoggedRun:
    return _store.load_run(run_id)


@st.cache_resource(max_entries=32, show_spinner="Averaging over pairs …")
def mean_map(_run: LoggedRun, run_id: str, n_pairs: int) -> MeanCausalMap:
    """The mean of a run's maps. Raises CausalMapError where they cannot be averaged, TrackingError for broken files."""
    return mean_over_pairs(_run.maps)


def literally(text: object) -> None:
    """Text of a store as it stands."""
    st.code(str(text), language=None, wrap_lines=True)


def problem(sentence: str, detail: object = "") -> None:
    """A sentence of ours, and below it what the store says about the case."""
    st.error(sentence)
    if str(detail):
        literally(detail)
