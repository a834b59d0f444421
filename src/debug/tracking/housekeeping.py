"""Looking after a store: runs that were left without a process, files that are not what they should be, and space."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Run, ViewType

from debug.causal_map import CausalMapError
from debug.tracking import heartbeat
from debug.tracking.artifacts import Artifacts
from debug.tracking.contract import ENDED, SUPERSEDED, TrackingError
from debug.tracking.outbox import Outbox
from debug.tracking.places import spool
from debug.tracking.reading import LoggedRun
from debug.tracking.store import Store
from debug.tracking.writing import terminate

LOST = "its process was gone"


class Problem(NamedTuple):
    """What is wrong with a run."""

    run: LoggedRun
    what: str


def lost(store: Store) -> list[LoggedRun]:
    """The runs that say they are running while nothing carries them out: studies whose process gives no sign of life,
    and the cells of studies that have ended or are lost. Runs that this project did not begin are not judged."""
    names = store.experiments()
    running = {run.info.run_id: LoggedRun(store, run, names[run.info.experiment_id]) for run in _running(store)}
    studies = {
        run_id for run_id, run in running.items() if run.role == "study" and heartbeat.signs(run.tags) and not run.owner
    }
    cells = {
        run_id
        for run_id, run in running.items()
        if run.role == "cell"
        and not run.owner
        and (heartbeat.signs(run.tags) or run.parent_run_id in studies or run.parent_run_id not in running)
    }
    return [run for run_id, run in running.items() if run_id in studies | cells]


def _running(store: Store) -> Iterator[Run]:
    return store.search(store.experiments(), {}, also="attributes.status = 'RUNNING'", everything=True)


def end(run: LoggedRun) -> None:
    """Mark a lost run KILLED, at the time at which it was last heard of. Raises TrackingError where it is not lost."""
    with run.store.reported(f"cannot read run {run.run_id} from"):
        now = run.store.client.get_run(run.run_id)
    if now.info.status in ENDED or (LoggedRun(run.store, now, run.experiment).owner is not None):
        raise TrackingError(f"run {run.run_id} ({run.name}) is not lost any more: it has ended, or goes on")
    signs = heartbeat.signs(run.tags) or (heartbeat.signs(run.parent.tags) if run.parent_run_id else [])
    heard = heartbeat.heard(signs[0]) if signs else None
    at = None if heard is None else max(int(1000 * heard), now.info.start_time)
    terminate(run.store, now, "KILLED", {"debug.error": LOST}, at)


def sync(store: Store) -> Iterator[tuple[str, str | None]]:
    """Deliver what the spool keeps, of this process and of those that are gone: each run's id, and why it could not
    be."""
    with suppress(TrackingError):  # those that it cannot be told of are still there
        Outbox.deliver_all(store)
    folder = spool(store.uri)
    paths = sorted(folder.iterdir(), key=_written) if folder.is_dir() else []
    for run_id in dict.fromkeys(path.name.removesuffix(".jsonl") for path in paths):  # cells before their study's end
        files = folder / run_id
        try:
            with store.reported(f"cannot read run {run_id} from"):
                run = LoggedRun(store, store.client.get_run(run_id), "")
            if run.owner is not None:
                continue
            _upload(store, run_id, files)
            Outbox(store, run_id, lambda: None, lambda: None).deliver()
        except TrackingError as error:
            yield run_id, str(error)
            continue
        shutil.rmtree(files, ignore_errors=True)
        yield run_id, None


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has just delivered it
        return 0.0


def _upload(store: Store, run_id: str, folder: Path) -> None:
    """A last line that was cut off goes with the rest: whoever takes the run up again removes it."""
    with store.reported(f"cannot upload files of run {run_id} (kept in {folder}) to"):
        if folder.is_dir() and any(folder.iterdir()):
            store.client.log_artifacts(run_id, str(folder))


def count(store: Store) -> int:
    """How many runs are listed."""
    return sum(1 for _ in store.search(store.experiments(), {}))


def problems(store: Store) -> Iterator[Problem | None]:
    """What is wrong with the files of each run that is listed; None after each run, to count them by.

    Every sample and every map is read: those of a finished run must all be there, once, and whole.
    """
    names = store.experiments()
    for run in store.search(names, {}):
        of = LoggedRun(store, run, names[run.info.experiment_id])
        if of.kind is not None:
            for check in (_samples, _maps, _arrays):
                try:
                    yield from (Problem(of, what) for what in check(of))
                except (TrackingError, CausalMapError) as error:
                    yield Problem(of, str(error))
        yield None


def _samples(run: LoggedRun) -> Iterator[str]:
    if "samples.jsonl" not in run.artifacts():
        if run.role == "cell" and run.kind == "accuracy" and "num_samples" in run.metrics:
            yield "samples.jsonl is not there"
        return
    asked = Counter((each["seed"], each["program"]) for each in run.sample_records() if each["seed"] is not None)
    given = run.kind == "imported" or run.params.get("generator") == "given"  # of which two may be alike
    if not given and (twice := sum(n - 1 for n in asked.values())):
        yield f"samples.jsonl has {twice} {'samples' if twice > 1 else 'sample'} more than once"


def _maps(run: LoggedRun) -> Iterator[str]:
    used = run.metrics.get("pairs_used")
    if used is None or run.role != "cell" or run.kind == "imported":
        return
    seen = Counter(causal_map.pair for causal_map in run.maps)
    if run.status == "FINISHED" and len(seen) != used:
        yield f"pairs_used is {used:g}, and {len(seen)} pairs have a causal map"
    if twice := [pair for pair, n in seen.items() if n > 1]:
        yield f"pairs {', '.join(map(str, twice[:5]))} have more than one causal map"
    if (pairs := len(run.pairs)) <= max(seen, default=-1):
        yield f"pair {max(seen)} has a causal map, and programs.json has {pairs} pairs"


def _arrays(run: LoggedRun) -> Iterator[str]:
    for name in run.artifacts():
        if name.endswith(".safetensors"):
            with suppress(StopIteration), run.safetensors(name) as file:
                next(iter(file.keys()))
    yield from ()


def sizes(store: Store) -> Iterator[tuple[LoggedRun, Counter[str]]]:
    """Every run that is listed, with the bytes of its files by folder, or by name where they are in none."""
    names = store.experiments()
    for run in store.search(names, {}):
        of = LoggedRun(store, run, names[run.info.experiment_id])
        found: Counter[str] = Counter()
        for name, size in of.sizes():
            found[name.partition("/")[0]] += size
        yield of, found


def deleted(store: Store) -> list[Run]:
    """The runs that were deleted, and still take up space; and the superseded cells, which are listed nowhere."""
    found: list[Run] = []
    token: str | None = None
    with store.reported("cannot read"):
        ids = [each.experiment_id for each in store.client.search_experiments(view_type=ViewType.ALL)]
        while ids:
            runs = store.client.search_runs(ids, run_view_type=ViewType.DELETED_ONLY, page_token=token)
            found += runs
            token = runs.token
            if not token:
                break
    superseded = store.search(store.experiments(), {("tags", SUPERSEDED): None}, everything=True)
    return [*found, *superseded]


def erase(store: Store, runs: Sequence[Run]) -> None:
    """Erase runs with their files, for good, as ``mlflow gc`` does.

    Raises:
        TrackingError: the store is a server (erasing is done where it runs), or MLflow could not.
    """
    if store.uri.startswith("http"):
        raise TrackingError(f"{store} is a server: erase there, with: mlflow gc --backend-store-uri ...")
    import click
    from mlflow.cli import gc

    where = ["--backend-store-uri", store.uri, "--tracking-uri", store.uri]
    with store.reported("cannot erase runs of"):
        for run in runs:
            if run.info.lifecycle_stage == "active":
                store.client.delete_run(run.info.run_id)
        for start in range(0, len(runs), 500):
            ids = ",".join(run.info.run_id for run in runs[start : start + 500])
            try:  # within this process: a command line may be read by all, and the address have a password
                gc.main([*where, "--run-ids", ids], standalone_mode=False)
            except click.ClickException as error:
                raise TrackingError(f"cannot erase runs of {store}: {error.format_message()}") from error


def size_of(store: Store, run: Run) -> int:
    """Bytes of a run's files; 0 where they cannot be found any more."""
    try:
        return sum(size for _, size in Artifacts(store, run).sizes())
    except TrackingError:
        return 0
