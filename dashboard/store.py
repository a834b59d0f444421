"""The store that the dashboard shows, and what is cached in the server's memory between clicks.

--tracking-uri on the command line (after --), else MLFLOW_TRACKING_URI, else the project's own mlruns/. Runs that have
ended no longer change: a few of them, and what was computed from them, are cached.
"""

from __future__ import annotations

import argparse
import sys
from urllib.parse import quote, urlsplit

import polars as pl
import streamlit as st

from debug.causal_map import MeanCausalMap, MeanOverPairs
from debug.hypotheses import HypothesisScores, scores_of
from debug.tracking import ENDED, LoggedRun, RunTable, Store, store_uri

REFRESH_SECONDS = 3
MOST_AVERAGED = 400_000  # squares of all pairs of a run


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="debug dashboard", allow_abbrev=False)
    parser.add_argument("--tracking-uri")
    parser.add_argument("--mlflow-ui", help="address of an MLflow UI on the same store: runs link to it")
    parser.add_argument("--allow", nargs="+", default=[], help="what readers on other machines may do, too")
    return parser.parse_known_args(sys.argv[1:])[0]


def table() -> RunTable:
    """The table of the chosen store. Raises TrackingError where the URI names no kind of store."""
    return _table(store_uri(options().tracking_uri))


@st.cache_resource(max_entries=4, show_spinner=False)
def _table(uri: str) -> RunTable:
    return RunTable(Store(uri))


def mlflow_address(experiment_id: str, run_id: str) -> str | None:
    """Where the MLflow UI shows a run, without user or password; None where no UI is known."""
    ui = options().mlflow_ui or (uri if (uri := store_uri(options().tracking_uri)).startswith("http") else None)
    place = f"experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"
    if ui is None:
        return None
    address = urlsplit(ui)
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path.rstrip('/')}/#/{place}"


def load(run_id: str) -> LoggedRun:
    """A run, as it is now. Raises TrackingError where there is none."""
    runs = table()
    row = runs.frame.row(by_predicate=pl.col("run_id") == run_id, named=True) if run_id in runs.frame["run_id"] else {}
    if row.get("status") not in ENDED:
        return runs.store.load_run(run_id)
    return _load_ended(runs.store, runs.store.uri, run_id, row["status"])


@st.cache_resource(max_entries=16, show_spinner=False)
def _load_ended(_store: Store, uri: str, run_id: str, status: str) -> LoggedRun:
    return _store.load_run(run_id)


def weights_of(run_id: str, status: str) -> str | None:
    """The digest of the weights that a run was made with, where it has logged one."""
    runs = table()
    return _weights_of(runs.store, runs.store.uri, run_id, status)


@st.cache_data(max_entries=10_000, show_spinner=False)
def _weights_of(_store: Store, uri: str, run_id: str, status: str) -> str | None:
    return _store.load_run(run_id).tags.get("debug.weights_digest")


def samples_of(run: LoggedRun) -> pl.DataFrame:
    """Raises TrackingError where there are none or the file is broken."""
    return _samples(run, run.store.uri, run.run_id, _state(run))


@st.cache_resource(max_entries=3, show_spinner="Reading samples …")  # some hundred MB for 100,000
def _samples(_run: LoggedRun, uri: str, run_id: str, state: object) -> pl.DataFrame:
    return _run.samples


def _state(run: LoggedRun) -> object:
    """A cache key that changes when a run that is still running may have written more."""
    if run.status in ENDED:
        return run.status
    return [
        (name, run.artifact(name).stat().st_size) for name in run.artifacts() if name.endswith((".jsonl", "tensors"))
    ]


def is_large(run: LoggedRun) -> bool:
    """Whether taking the mean of its maps would keep a first page waiting."""
    return len(run.maps) * run.maps[0].top.size > MOST_AVERAGED


def mean_of(run: LoggedRun) -> tuple[MeanCausalMap, MeanOverPairs]:
    """The mean of a run's maps, and the accumulated values behind it.

    Raises CausalMapError where they cannot be averaged, TrackingError for broken files.
    """
    return _mean(run, run.store.uri, run.run_id, _state(run))


@st.cache_resource(max_entries=8, show_spinner="Averaging over pairs …")
def _mean(_run: LoggedRun, uri: str, run_id: str, state: object) -> tuple[MeanCausalMap, MeanOverPairs]:
    mean = MeanOverPairs()
    for causal_map in _run.maps:
        mean.add(causal_map)
    return mean.result(), mean


@st.cache_resource(max_entries=8, show_spinner="Scoring hypotheses …")
def _scores(_run: LoggedRun, uri: str, run_id: str, state: object) -> HypothesisScores | None:
    return scores_of(_run.maps, _run.pairs)


def scores_of_run(run: LoggedRun) -> HypothesisScores | None:
    """The scores of the rival hypotheses on a run's pairs; None where no pair tells them apart."""
    return _scores(run, run.store.uri, run.run_id, _state(run))


def changed() -> None:
    """After this dashboard has changed a run that had ended: what is cached of runs is read anew."""
    _load_ended.clear()
    table().edited()
