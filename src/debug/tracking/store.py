"""Runs in the tracking store: started, gone on with, found again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path

import polars as pl
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from debug.errors import InputError
from debug.kinds import Argument, Json
from debug.programs import AnyPair
from debug.tracking import heartbeat
from debug.tracking.connection import _PAGE, Connection, _Field
from debug.tracking.contract import (
    ENDED,
    KINDS,
    NOT_INHERITED,
    PARENT,
    SCHEMA,
    TrackingError,
    seconds_of,
    tags_of_process,
    time_of,
)
from debug.tracking.moving import relocate
from debug.tracking.reading import LoggedRun
from debug.tracking.restoring import restore
from debug.tracking.writing import RunWriter, running

RUN_COLUMNS = {
    **dict.fromkeys(("run_id", "name", "experiment", "kind", "role", "status"), pl.String),
    "start_time": pl.Datetime("ms", "UTC"),
    "duration": pl.Float64,
    "parent_run_id": pl.String,
}


class Store(Connection):
    """A tracking store: runs are started and gone on with, found again and read.

    with Store().start("my experiment", "tiny · study", kind="accuracy") as study:
        with study.cell("tiny · 3 hops · 17 lines", {"model": "tiny", "hops": 3}) as cell:
            cell.log_metrics({"accuracy": 0.97})
    load_run(study.run_id).children[0].metrics["accuracy"]
    """

    def start(
        self, experiment: str, name: str, *, kind: str, tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[RunWriter]:
        """Start a parent run (debug.role = study); the experiment is created where it is missing.

        Leaving the context ends the run, however that happens: FINISHED; FAILED with the tag ``debug.error``; KILLED by
        Ctrl-C. Its artifacts are uploaded in all cases and the exception goes on.

        Raises:
            TrackingError: the store cannot be opened or written.
            InputError: no such kind of run.
        """
        if kind not in KINDS:
            raise InputError(f"the kind of run is {kind!r}; expected one of {', '.join(KINDS)}")
        own = {"debug.kind": kind, "debug.schema": str(SCHEMA), **tags_of_process()}
        return running(self, experiment, name, {**(tags or {}), **own}, "study", None)

    def join(
        self, run_id: str, *, tags: Mapping[str, str] | None = None, take_over: bool = False
    ) -> AbstractContextManager[RunWriter]:
        """Go on with a parent run that did not end well, or that other processes are carrying out: it is RUNNING, and
        ended by the process that leaves it last. Its cells stay as they are: :meth:`RunWriter.claim` gives those that
        nobody carries out. New cells say which code and command line made them: this process's.

        Args:
            tags: of the run and of its new cells.
            take_over: the other processes are to stop at their next cell.

        Raises:
            TrackingError: no such run, or the store cannot be written.
        """
        earlier = self.load_run(run_id)
        own = {name: value for name, value in earlier.tags.items() if not name.startswith("mlflow.")}
        own = {name: value for name, value in own.items() if name not in NOT_INHERITED and not heartbeat.is_tag(name)}
        return self._join(earlier, own | tags_of_process(), dict(tags or {}), take_over)

    @contextmanager
    def _join(
        self, earlier: LoggedRun, own: Mapping[str, str], tags: Mapping[str, str], take_over: bool
    ) -> Iterator[RunWriter]:
        def take_up() -> Run:
            return self._take_up(earlier.run_id, tags, take_over)

        with running(self, earlier.experiment, earlier.name, {**own, **tags}, "study", None, take_up) as writer:
            writer.share()
            yield writer

    def _take_up(self, run_id: str, tags: Mapping[str, str], take_over: bool) -> Run:
        """The run RUNNING, with this process's sign of life, without its error and the signs of processes that are
        gone."""
        run = self.client.get_run(run_id)
        if run.info.status in ENDED:
            self.client.update_run(run_id, status="RUNNING")
        self.set_tags(run_id, {heartbeat.own_tag(): heartbeat.sign(), **tags})
        for name, sign in run.data.tags.items():
            other = heartbeat.is_tag(name) and name != heartbeat.own_tag()
            gone = heartbeat.is_here(sign) and heartbeat.alive(sign) is None  # of another machine clocks may differ
            if (other and (take_over or gone)) or name == "debug.error":
                self.client.delete_tag(run_id, name)
        return self.client.get_run(run_id)

    def relocate(self) -> int:
        """See :func:`debug.tracking.moving.relocate`."""
        return relocate(self)

    def restore(self, record: Mapping[str, Json], folders: Mapping[str, Path], parent: str | None = None) -> str:
        """See :func:`debug.tracking.restoring.restore`."""
        return restore(self, record, folders, parent)

    def load_run(self, run_id: str) -> LoggedRun:
        """A run by its id, the beginning of it (6 characters or more) or its name, the last two where unambiguous.

        Raises:
            TrackingError: there is no such run, or several, or it was written by a newer version of this project.
        """
        if not self.exists():
            raise TrackingError(f"no run {run_id!r}: there is no store {self} yet")
        experiments = self.experiments()
        if re.fullmatch("[0-9a-f]{32}", run_id):
            with self.reported(f"cannot load run {run_id} from"):
                try:
                    found = [self.client.get_run(run_id)]
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    found = []
        else:
            found = list(self.search(experiments, {("attributes", "run_name"): run_id}))
            if re.fullmatch("[0-9a-f]{6,31}", run_id):
                found += self.search(experiments, {}, also=f"attributes.run_id LIKE '{run_id}%'", everything=True)
        found = list({run.info.run_id: run for run in found}.values())
        if not found:
            newest = self.find_runs(limit=3).select("run_id", "name").rows()
            known = "; ".join(f"{found_id[:8]} ({name})" for found_id, name in newest) or "none"
            raise TrackingError(
                f"no run {run_id!r} in the store {self}; expected a run id, at least the first 6 characters of one, or "
                f"a run's name; the newest: {known}"
            )
        if len(found) > 1:
            candidates = "\n".join(
                f"  {run.info.run_id}  {run.info.run_name} "
                f"({experiments.get(run.info.experiment_id, '?')}, {time_of(run.info.start_time):%Y-%m-%d %H:%M} UTC)"
                for run in found[:10]
            )
            more = f"\n  and {len(found) - 10} more" if len(found) > 10 else ""
            raise TrackingError(f"{run_id!r} names {len(found)} runs; give the id of one:\n{candidates}{more}")
        return LoggedRun(self, found[0], experiments.get(found[0].info.experiment_id, ""))

    def find_runs(
        self,
        *,
        kind: str | None = None,
        model: str | None = None,
        hops: int | str | None = None,
        seq_len: int | str | None = None,
        experiment: str | None = None,
        role: str | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int | None = 1000,
    ) -> pl.DataFrame:
        """The latest runs that have all of what is named, newest first. Params are those of cells, not of studies.

        ``any`` hops, or seq_len, are those of every cell, whatever their number. Superseded cells and those of a
        deleted study are not among them.

        Returns:
            run_id, name, experiment, kind, role, status, start_time (UTC), duration (seconds), parent_run_id, and a
            column ``params.*`` or ``metrics.*`` for each that one of the runs has.

        Raises:
            TrackingError: the store cannot be opened or read. One that is not there is an empty one.
        """
        wanted: dict[_Field, object] = {
            ("tags", "debug.kind"): kind,
            ("tags", "debug.role"): role,
            ("params", "model"): model,
            ("params", "hops"): hops,
            ("params", "seq_len"): seq_len,
        }
        wanted |= {("tags", name): value for name, value in (tags or {}).items()}
        equal = {field: str(value) for field, value in wanted.items() if value is not None}
        equal |= {("params", name): None for name in ("hops", "seq_len") if equal.get(("params", name)) == "any"}
        experiments = self.experiments()
        searched = {key: name for key, name in experiments.items() if experiment in (None, name)}
        page = _PAGE if limit is None else max(1, min(limit, _PAGE))
        runs = list(islice(self.search(searched, equal, "attributes.start_time DESC", page=page), limit))
        params = {f"params.{name}": pl.String for run in runs for name in sorted(run.data.params)}
        metrics = {f"metrics.{name}": pl.Float64 for run in runs for name in sorted(run.data.metrics)}
        rows = [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                "experiment": experiments[run.info.experiment_id],
                "kind": run.data.tags.get("debug.kind"),
                "role": run.data.tags.get("debug.role"),
                "status": run.info.status,
                "start_time": time_of(run.info.start_time),
                "duration": seconds_of(run),
                "parent_run_id": run.data.tags.get(PARENT),
                **{f"params.{name}": value for name, value in run.data.params.items()},
                **{f"metrics.{name}": value for name, value in run.data.metrics.items()},
            }
            for run in runs
        ]
        return pl.DataFrame(rows, schema=RUN_COLUMNS | params | metrics)


def load_run(run_id: str, tracking_uri: str | None = None) -> LoggedRun:
    """A run of a store; see :meth:`Store.load_run`."""
    return Store(tracking_uri).load_run(run_id)


def load_programs(run_id: str, tracking_uri: str | None = None) -> list[AnyPair]:
    """The pairs of a logged run; see :attr:`LoggedRun.programs`."""
    return load_run(run_id, tracking_uri).programs


def find_runs(*, tracking_uri: str | None = None, **filters: Argument) -> pl.DataFrame:
    """The runs of a store that have what is named; see :meth:`Store.find_runs`."""
    return Store(tracking_uri).find_runs(**filters)
