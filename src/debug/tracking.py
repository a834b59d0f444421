"""Runs in the tracking store: written while they happen, found again, and read back with every record checked.

The only file that imports mlflow. It holds DESIGN.md's tracking contract, schema 1: which store, which tags, which
artifacts. Knows no model, no engine and no picture; imports no torch. Nothing that is read is executed or unpickled.

    with Store().start("my experiment", "tiny · study", kind="accuracy") as study:
        with study.cell("tiny · 3 hops · 17 lines", {"model": "tiny", "hops": 3}) as cell:
            cell.log_metrics({"accuracy": 0.97})
    load_run(study.run_id).children[0].metrics["accuracy"]
"""

from __future__ import annotations

import getpass
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from numbers import Real
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, overload
from urllib.parse import unquote, urlsplit

# MLflow reads these when it is imported or asked. Its usage statistics would leave the machine, and its seven retries
# keep a mistyped server address waiting for four minutes. Whoever has set them otherwise is left alone.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # of a server it would print the address as it is
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

import numpy as np
import polars as pl
import requests
import sqlalchemy
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from safetensors import SafetensorError, safe_open
from sqlalchemy.exc import SQLAlchemyError

from debug import checks, heartbeat, provenance
from debug.causal_map import CausalMap, CausalMapError, load_maps
from debug.checks import Check, from_json, read_json
from debug.counterfactual import make_pair
from debug.programs import ProgramError, ProgramPair
from debug.provenance import without_passwords as _shown

logger = logging.getLogger(__name__)
# The first opening of a database runs some fifty migrations and would log each; errors come back as TrackingError.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.WARNING)

SCHEMA = 1
ARTIFACTS = "artifacts"
"""Name of the folder beside a SQLite store that holds the artifacts of its runs."""
KINDS = (
    "accuracy",
    "causal_tracing",
    "attention_knockout",
    "attribution",
    "logit_lens",
    "robust_seeds",
    "training",
    "imported",
)
_PARENT = "mlflow.parentRunId"
SUPERSEDED = "debug.superseded"
"""Tag of a cell that was not finished when its study was resumed, and was then done anew: it is listed nowhere."""
MIXED = "debug.mixed"
"""Tag of a study that other code, libraries or weights went on with, and of its cells made so: what differs."""
PLACE = "debug.cell"
"""Tag of a cell: its place in its study."""
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on runs and charts
_MAX_PARAM, _MAX_TAG, _MAX_DIGEST = 6000, 8000, 36  # characters; MLflow cuts longer values off without a word
_BATCH_METRICS, _BATCH_OTHERS = 1000, 100  # what MLflow takes in one log_batch
_PAGE = 1000  # runs in one answer of the store
_CONNECT_SECONDS = 10
LATEST = 253_402_300_799_000  # milliseconds since 1970: the last second of the year 9999
_PART = ".part"  # ending of a file that is being written
_RUN_COLUMNS = {
    **dict.fromkeys(("run_id", "name", "experiment", "kind", "role", "status"), pl.String),
    "start_time": pl.Datetime("ms", "UTC"),
    "duration": pl.Float64,
    "parent_run_id": pl.String,
}


class TrackingError(RuntimeError):
    """The store cannot be opened or written, a run is not found, or an artifact is broken: says what to do."""


class StillRunning(TrackingError):
    """A study that another process carries out; the message says which."""


# --- which store -----------------------------------------------------------------------------------------------------


def store_uri(tracking_uri: str | None = None) -> str:
    """The URI of the store: the argument, else MLFLOW_TRACKING_URI, else mlflow.db in this project's ``mlruns/``.

    ``mlruns/`` is the one in the nearest parent folder that holds this project's pyproject, else in the working
    directory. Paths of SQLite stores come out absolute. A percent escape in one (``a%20b``) is what it is in any URI (a
    space), unless what is there has the percent sign in its name.

    Raises:
        TrackingError: the scheme is none that MLflow can open.
    """
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(_mlruns() / "mlflow.db")
    scheme = given.split("://", 1)[0].split("+", 1)[0] if "://" in given else ""
    if scheme not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https"):
        raise TrackingError(
            f"the tracking URI is {_shown(given)!r}; expected sqlite:///folder/mlflow.db, the address of an MLflow "
            "server (http://host:5000), or a database (postgresql://user@host/name). MLflow opens no bare folders"
        )
    if scheme != "sqlite":
        return given
    database = _sqlite_path(given)
    if database is None or "?" in str(database):  # what follows a question mark would not be part of the path
        raise TrackingError(
            f"the tracking URI is {_shown(given)!r}; expected a file whose path has no question mark: sqlite:///folder/mlflow.db"
        )
    return _sqlite_uri(database)


def _mlruns() -> Path:
    working = Path.cwd()
    for folder in (working, *working.parents):
        pyproject = folder / "pyproject.toml"
        if pyproject.is_file():
            try:
                project = tomllib.loads(pyproject.read_text("utf-8")).get("project", {})
            except (OSError, ValueError):
                continue  # somebody else's, and broken
            if project.get("name") == provenance.DISTRIBUTION:
                return folder / "mlruns"
    return working / "mlruns"


def _sqlite_path(uri: str) -> Path | None:
    if not uri.startswith("sqlite"):
        return None
    database = uri.partition(":///")[2]
    if database in ("", ":memory:"):
        return None
    literal, decoded = Path(database).absolute(), Path(unquote(database)).absolute()
    there = literal.exists() or (literal.parent.exists() and not decoded.parent.exists())
    return literal if there and "?" not in database else decoded


def _sqlite_uri(database: Path) -> str:
    """SQLAlchemy and MLflow decode percent escapes: what looks like one and is none is escaped itself."""
    return f"sqlite:///{str(database).replace('%', '%25')}"


def _location(folder: Path) -> str:
    """An artifact location as MLflow records and reads it: a path, or a URI where it would decode the path."""
    return folder.as_uri() if "%" in str(folder) else str(folder)


# --- the store -------------------------------------------------------------------------------------------------------


class Store:
    """One tracking store, reached through an MlflowClient of its own: no global tracking URI, no active run.

    Nothing is opened before the first use, and nothing is created before the first :meth:`start`: a SQLite store that
    is not there reads as an empty one. May be shared between threads.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        """Raises TrackingError where the URI names no kind of store."""
        self.uri = store_uri(tracking_uri)
        self._database = _sqlite_path(self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """The client, connected. Creates a SQLite store that is not there.

        Raises:
            TrackingError: nobody answers, no permission, not a database, a database of another MLflow version.
        """
        with self._reported("cannot open"):
            if self._database is not None:
                if not self._exists():
                    self._create(self._database)
                return MlflowClient(self.uri)
            if self.uri.startswith("http"):
                with suppress(requests.exceptions.SSLError):  # somebody answers; certificates are MLflow's affair
                    requests.get(f"{self.uri.rstrip('/')}/health", timeout=_CONNECT_SECONDS)
                return MlflowClient(self.uri)
            postgres = self.uri.startswith("postgresql")
            # MLflow tries a refused connection for minutes, so the first connection is this one
            arguments = {"connect_timeout": _CONNECT_SECONDS} if postgres else {}
            engine = sqlalchemy.create_engine(self.uri, connect_args=arguments, poolclass=sqlalchemy.NullPool)
            with engine.connect() as connection:
                if postgres:  # two processes that open a new database must not both run the migrations
                    connection.exec_driver_sql("SELECT pg_advisory_lock(20505896)")
                return MlflowClient(self.uri)

    def _exists(self) -> bool:
        """False only for a SQLite store that is not there (an empty file is not one)."""
        if self._database is None:
            return True
        with self._reported("cannot open"):
            try:
                with self._database.open("rb") as file:
                    head = file.read(16)
            except FileNotFoundError:
                return False
        if head and head != b"SQLite format 3\0":
            raise TrackingError(
                f"cannot open the store {_shown(self.uri)}: the file is no SQLite database; name another file"
            )
        return bool(head)

    def _create(self, database: Path) -> None:
        """Build the database aside and move it into place: it is there complete, or not at all."""
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            if self._exists():
                return
            logger.info("creating the tracking store %s", database)
            with tempfile.TemporaryDirectory(dir=database.parent, prefix=".creating-") as folder:
                new = Path(folder) / "mlflow.db"
                SqlAlchemyStore(_sqlite_uri(new), _location(database.parent / ARTIFACTS)).engine.dispose()
                os.replace(new, database)

    @contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        """Whatever MLflow, its database or its server raise becomes a TrackingError that names the store."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            reason = _shown(str(error).strip() or type(error).__name__)
            hint = ""
            if isinstance(error, ImportError):
                hint = "; install it, or name the driver that you have (postgresql+psycopg2://)"
            elif isinstance(error, requests.RequestException):
                hint = "; start the server or correct the address (--tracking-uri or MLFLOW_TRACKING_URI)"
            elif isinstance(error, OSError):
                hint = "; choose a folder that you may write to (--tracking-uri or MLFLOW_TRACKING_URI)"
            raise TrackingError(f"{what} the store {_shown(self.uri)}: {reason}{hint}") from error

    # writing

    def start(
        self, experiment: str, name: str, *, kind: str, tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[RunWriter]:
        """Start a parent run (debug.role = study); the experiment is created where it is missing.

        Leaving the context ends the run, however that happens: FINISHED; FAILED with the tag ``debug.error``; KILLED by
        Ctrl-C. Its artifacts are uploaded in all cases and the exception goes on.

        Raises:
            TrackingError: the store cannot be opened or written.
            ValueError: no such kind of run.
        """
        if kind not in KINDS:
            raise ValueError(f"the kind of run is {kind!r}; expected one of {', '.join(KINDS)}")
        own = {"debug.kind": kind, "debug.schema": str(SCHEMA), **_provenance()}
        return self._run(experiment, name, {**(tags or {}), **own}, "study", None)

    def resume(
        self,
        run_id: str,
        *,
        keep: Collection[str] | None = None,
        tags: Mapping[str, str] | None = None,
        take_over: bool = False,
    ) -> AbstractContextManager[RunWriter]:
        """Go on with a parent run that has ended, or whose process has died: it is RUNNING, and ends as any other.

        Its cells but the finished ones are superseded: ended where they were not, and listed nowhere any more. New
        cells say which code and command line made them: this process's.

        Args:
            keep: ids of the cells that are not superseded; None: those that are FINISHED.
            tags: of the run and of its new cells.
            take_over: also where there is a sign of life of another process that carries it out.

        Raises:
            StillRunning: there is such a sign; at once, like the others.
            TrackingError: no such run, or the store cannot be written.
        """
        earlier = self.load_run(run_id)
        owner = earlier.owner
        if owner is not None and not take_over:
            raise StillRunning(f"run {run_id} ({earlier.name}) is being carried out: {owner}")
        own = {name: value for name, value in earlier.tags.items() if not name.startswith("mlflow.")}
        own = {name: value for name, value in own.items() if name not in _NOT_INHERITED} | _provenance()
        tags = dict(tags or {})
        return self._run(earlier.experiment, earlier.name, own | tags, "study", None, (earlier, keep, tags))

    def _take_up(self, earlier: LoggedRun, keep: Collection[str] | None, tags: Mapping[str, str]) -> Run:
        """The run RUNNING again, with this process's sign of life, without its error, its unfinished cells ended."""
        run_id = earlier.run_id
        self.client.update_run(run_id, status="RUNNING")
        self.client.log_batch(run_id, tags=[RunTag(*tag) for tag in {heartbeat.TAG: heartbeat.sign(), **tags}.items()])
        if "debug.error" in earlier.tags:
            self.client.delete_tag(run_id, "debug.error")
        last = heartbeat.read(earlier.tags.get(heartbeat.TAG))
        for cell in earlier._all_children():
            if cell.info.run_id in keep if keep is not None else cell.info.status == "FINISHED":
                continue
            if cell.info.status not in ENDED:  # it ended, with its process, when that was last heard of
                end = max(int(1000 * float(last["at"])), cell.info.start_time) if last else None  # type: ignore[arg-type]
                self.client.set_terminated(cell.info.run_id, "KILLED", end)
            self.client.set_tag(cell.info.run_id, SUPERSEDED, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        return self.client.get_run(run_id)

    @contextmanager
    def _run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        role: str,
        parent: str | None,
        resumed: tuple[LoggedRun, Collection[str] | None, Mapping[str, str]] | None = None,
    ) -> Iterator[RunWriter]:
        own = {"debug.role": role} | ({_PARENT: parent} if parent else {})
        run: Run | None = None
        writer: RunWriter | None = None
        heart: _Heart | None = None
        try:
            with self._reported("cannot start a run in"):
                if role == "study":
                    self.relocate()
                experiment_id = self._experiment_id(experiment)
                with _uninterrupted():
                    if role == "study":
                        own[heartbeat.TAG] = heartbeat.sign()
                    if resumed is None:
                        run = self.client.create_run(experiment_id, tags={**_checked_tags(tags), **own}, run_name=name)
                    else:
                        run = self._take_up(*resumed)
            if role == "study":
                heart = _Heart(self, run.info.run_id)
            writer = RunWriter(self, run, experiment, tags, heart)
            try:
                yield writer
            except BaseException:
                try:
                    writer.flush()
                except TrackingError as problem:  # the error that ended the run is the one to be seen
                    logger.error("%s", problem)
                raise
            writer.flush()
            if heart is not None:
                heart.check()
            self._terminate(run, "FINISHED", {})
        except BaseException as error:
            if run is not None and not (heart is not None and heart.is_lost()):
                killed = isinstance(error, KeyboardInterrupt | GeneratorExit)
                message = _shown(f"{type(error).__name__}: {error}")[:_MAX_TAG]
                try:
                    self._terminate(run, *(("KILLED", {}) if killed else ("FAILED", {"debug.error": message})))
                except TrackingError as problem:
                    logger.error("%s", problem)
            raise
        finally:
            if heart is not None:
                heart.stop()
            if writer is not None:
                writer._remove_folder()

    def _terminate(self, run: Run, status: str, tags: Mapping[str, str]) -> None:
        with self._reported(f"cannot end run {run.info.run_id} as {status} in"), _uninterrupted():
            try:
                self.client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()])
            finally:
                self.client.set_terminated(run.info.run_id, status)

    def _experiment_id(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self.client.create_experiment(name, self._artifact_location(), _EXPERIMENT_TAGS)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(name)  # another process was first
                assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"experiment {name!r} was deleted from the store {_shown(self.uri)}; choose another name, or bring it "
                f"back with: mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )
        return experiment.experiment_id

    def _artifact_location(self) -> str | None:
        """Beside a SQLite file; in ``mlruns/`` for another database; None where a server decides."""
        if self._database is not None:
            return _location(self._database.parent / ARTIFACTS)
        return None if self.uri.startswith("http") else _location(_mlruns() / ARTIFACTS)

    def _root_of(self, run: Run) -> Path | None:
        """The folder of a run's artifacts where it is one of this machine's, else None.

        The artifacts of a SQLite store are those in its own folder. MLflow records absolute paths; one from where the
        store was before it was moved or copied means the same place in the folder where it is now.

        Raises:
            TrackingError: the artifacts are recorded elsewhere, or lead there through a symbolic link.
        """
        recorded = _local_path(run.info.artifact_uri)
        if self._database is None or recorded is None:
            return recorded
        home, run_id = self._database.parent, run.info.run_id
        tail = _tail(recorded, run.info.experiment_id, run_id)
        root = home.joinpath(*tail) if tail else recorded
        if not any(root.resolve().is_relative_to(folder.resolve()) for folder in (home, home / ARTIFACTS)):
            raise TrackingError(
                f"run {run_id}: its artifacts are recorded in {recorded}, outside of the store's folder {home}; they "
                "are not read. Copy them into that folder, or open the store through the MLflow server that keeps them"
            )
        return root

    def relocate(self) -> int:
        """Write where the artifacts are now into the database of a SQLite store that was moved; how many were changed.

        This project reads a moved store as it is. MLflow's own UI and client follow the paths that MLflow recorded, and
        so would new runs: `make mlflow` and :meth:`start` call this, and a warning says what was changed.

        Raises:
            TrackingError: the store cannot be opened or written.
        """
        if self._database is None or not self._exists():
            return 0
        home = self._database.parent
        changed, elsewhere, before = 0, 0, ""
        engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.NullPool)
        with (
            self._reported("cannot correct artifact locations in"),
            FileLock(f"{self._database}.lock"),
            engine.begin() as connection,
        ):
            for table, key, column in (
                ("experiments", "experiment_id", "artifact_location"),
                ("runs", "run_uuid", "artifact_uri"),
            ):
                rows = connection.exec_driver_sql(f"SELECT {key}, experiment_id, {column} FROM {table}").all()
                for row_id, experiment_id, location in rows:
                    if (recorded := _local_path(location)) is None:
                        continue
                    tail = _tail(recorded, str(experiment_id), row_id if table == "runs" else None)
                    if tail is None:
                        elsewhere += not recorded.resolve().is_relative_to(home.resolve())
                    elif (now := home.joinpath(*tail)).resolve() != recorded.resolve():
                        update = f"UPDATE {table} SET {column} = ? WHERE {key} = ?"
                        connection.exec_driver_sql(update, (_location(now), row_id))
                        changed, before = changed + 1, str(Path(*recorded.parts[: -len(tail)]))
        if changed:
            logger.warning(
                "the store %s was moved or copied from %s: %d artifact locations in its database now name %s",
                self._database, before, changed, home,
            )  # fmt: skip
        if elsewhere:
            logger.warning("%d artifact locations of %s are outside of its folder and stay", elsewhere, self._database)
        return changed

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tag a run, an ended one too.

        Raises:
            ValueError: a value is no text or too long.
            TrackingError: there is no such run, or the store cannot be written.
        """
        values = [RunTag(name, value) for name, value in _checked_tags(tags).items()]
        with self._reported(f"cannot log tags of run {run_id} in"):
            for chunk in _chunks(values, _BATCH_OTHERS):
                self.client.log_batch(run_id, tags=chunk)

    def restore(self, record: Mapping[str, Any], folders: Mapping[str, Path], parent: str | None = None) -> str:
        """Make a run from :meth:`LoggedRun.record`, under a new id; its children too. The new id is returned.

        The old id stays as the tag ``debug.exported_from``.

        Args:
            record: checked by the caller.
            folders: run id of the record -> the folder with its artifacts.
            parent: the run that it belongs under.

        Raises:
            TrackingError: the store cannot be written; a run that was begun is then FAILED.
        """
        old = record["run_id"]
        own = {name: value for name, value in record["tags"].items() if _kept_tag(name)}
        own |= {"debug.exported_from": old} | ({_PARENT: parent} if parent else {})
        with self._reported(f"cannot restore run {old} in"):
            if parent is None:
                self.relocate()
            experiment_id = self._experiment_id(record["experiment"])
            run = self.client.create_run(experiment_id, record["start_time"], own, record["name"])
        writer = RunWriter(self, run, record["experiment"], {})
        try:
            writer.log_params(record["params"])
            with self._reported(f"cannot restore run {old} in"):
                points = [Metric(name, value, time, step) for name, value, time, step in record["metrics"]]
                for chunk in _chunks(points, _BATCH_METRICS):
                    self.client.log_batch(writer.run_id, metrics=chunk)
                inputs = [
                    DatasetInput(
                        Dataset(each["name"], each["digest"], "programs", each["source"], profile=each["profile"]),
                        [InputTag("mlflow.data.context", "evaluation")],
                    )
                    for each in record["datasets"]
                ]
                if inputs:
                    self.client.log_inputs(writer.run_id, inputs)
                for name in record["files"]:
                    shutil.copyfile(_inside(folders[old], name, f"run {old}"), writer._path(name))
            writer.flush()
            for child in record["children"]:
                self.restore(child, folders, writer.run_id)
            with self._reported(f"cannot restore run {old} in"):
                self.client.set_terminated(writer.run_id, record["status"], record["end_time"])
        except BaseException:
            self._terminate(run, "FAILED", {"debug.error": f"the restoration of run {old} was not finished"})
            raise
        finally:
            writer._remove_folder()
        return writer.run_id

    # reading

    def load_run(self, run_id: str) -> LoggedRun:
        """A run by its id, the beginning of it (6 characters or more) or its name, the last two where unambiguous.

        Raises:
            TrackingError: there is no such run, or several, or it was written by a newer version of this project.
        """
        if not self._exists():
            raise TrackingError(f"no run {run_id!r}: there is no store {_shown(self.uri)} yet")
        experiments = self._experiments()
        if re.fullmatch("[0-9a-f]{32}", run_id):
            with self._reported(f"cannot load run {run_id} from"):
                try:
                    found = [self.client.get_run(run_id)]
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    found = []
        else:
            found = list(self._search(experiments, {("attributes", "run_name"): run_id}))
            if re.fullmatch("[0-9a-f]{6,31}", run_id):
                found += self._search(experiments, {}, also=f"attributes.run_id LIKE '{run_id}%'", everything=True)
        found = list({run.info.run_id: run for run in found}.values())
        if not found:
            raise TrackingError(
                f"no run {run_id!r} in the store {_shown(self.uri)}; expected a run id, at least the first 6 "
                "characters of one, or a run's name; find_runs() lists what is there"
            )
        if len(found) > 1:
            candidates = "\n".join(
                f"  {run.info.run_id}  {run.info.run_name} "
                f"({experiments.get(run.info.experiment_id, '?')}, {_time(run.info.start_time):%Y-%m-%d %H:%M} UTC)"
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
        wanted: dict[_Field, Any] = {
            ("tags", "debug.kind"): kind,
            ("tags", "debug.role"): role,
            ("params", "model"): model,
            ("params", "hops"): hops,
            ("params", "seq_len"): seq_len,
        }
        wanted |= {("tags", name): value for name, value in (tags or {}).items()}
        equal = {field: str(value) for field, value in wanted.items() if value is not None}
        equal |= {("params", name): None for name in ("hops", "seq_len") if equal.get(("params", name)) == "any"}
        experiments = self._experiments()
        searched = {key: name for key, name in experiments.items() if experiment in (None, name)}
        page = _PAGE if limit is None else max(1, min(limit, _PAGE))
        runs = list(islice(self._search(searched, equal, "attributes.start_time DESC", page=page), limit))
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
                "start_time": _time(run.info.start_time),
                "duration": _seconds(run),
                "parent_run_id": run.data.tags.get(_PARENT),
                **{f"params.{name}": value for name, value in run.data.params.items()},
                **{f"metrics.{name}": value for name, value in run.data.metrics.items()},
            }
            for run in runs
        ]
        return pl.DataFrame(rows, schema=_RUN_COLUMNS | params | metrics)

    def _experiments(self) -> dict[str, str]:
        """Experiment id -> name, of those that are not deleted."""
        if not self._exists():
            return {}
        found: dict[str, str] = {}
        page: str | None = None
        with self._reported("cannot read"):
            while True:
                experiments = self.client.search_experiments(max_results=1000, page_token=page)
                found |= {experiment.experiment_id: experiment.name for experiment in experiments}
                page = experiments.token
                if not page:
                    return found

    def _search(
        self,
        experiments: Mapping[str, str],
        equal: Mapping[_Field, str | None],
        order: str = "",
        also: str = "",
        page: int = _PAGE,
        everything: bool = False,
    ) -> Iterator[Run]:
        """The runs of these experiments of which every field equals its value (None: is there), page by page.

        Without ``everything`` those that are listed: no superseded cells, and none of a study that was deleted.
        """
        conditions = [also] if also else []
        for (group, key), value in equal.items():
            # MLflow's filters have no escapes: they get what can be quoted, and everything is compared again below
            quote = next((quote for quote in "'\"" if value and quote not in value and "\\" not in value), None)
            if quote:
                conditions.append(f"{group}.`{key}` = {quote}{value}{quote}")
        token: str | None = None
        studies: dict[str, bool] = {}
        while experiments:
            with self._reported("cannot read"):
                runs = self.client.search_runs(
                    list(experiments),
                    " AND ".join(conditions),
                    max_results=page,
                    order_by=[order] if order else None,
                    page_token=token,
                )
            found = [run for run in runs if all(_has(run, *field, value) for field, value in equal.items())]
            yield from found if everything else self._listed(found, studies)
            token = runs.token
            if not token:
                return

    def _listed(self, runs: Sequence[Run], studies: dict[str, bool]) -> Iterator[Run]:
        """Those of these runs that are listed. ``studies``: which are known to be there, and not to be, by id."""
        parents = {run.info.run_id: _study_of(run) for run in runs}
        unknown = sorted({parent for parent in parents.values() if parent is not None} - studies.keys())
        experiments = list(self._experiments()) if unknown else []
        for chunk in _chunks(unknown, _BATCH_OTHERS):
            ids = ", ".join(f"'{run_id}'" for run_id in chunk)
            with self._reported("cannot read"):
                there = self.client.search_runs(experiments, f"attributes.run_id IN ({ids})", max_results=len(chunk))
            studies |= dict.fromkeys(chunk, False) | {run.info.run_id: True for run in there}
        for run in runs:
            parent = parents[run.info.run_id]
            if SUPERSEDED not in run.data.tags and (parent is None or studies[parent]):
                yield run


_Field = tuple[str, str]  # "tags", "params" or "attributes", and a name there


def _has(run: Run, group: str, key: str, value: str | None) -> bool:
    found = getattr(run.info, key) if group == "attributes" else getattr(run.data, group).get(key)
    return found is not None and value in (None, found)


def _study_of(run: Run) -> str | None:
    """The run that a cell belongs to, and goes with; None of what is no cell."""
    parent = run.data.tags.get(_PARENT, "")
    return parent if run.data.tags.get("debug.role") == "cell" and re.fullmatch("[0-9a-f]{32}", parent) else None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done: a run is not to be created without being known, or half ended."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _provenance() -> dict[str, str]:
    """Tags that say which code made the run, and those of MLflow's own columns."""
    tags = {**provenance.of_process(), "mlflow.source.name": sys.argv[0] or "python", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # a container may have no name for its user
        tags["mlflow.user"] = getpass.getuser()
    return tags


_NOT_INHERITED = {
    *("debug.role", "debug.error", "debug.exported_from", "debug.export_digest"),
    *(heartbeat.TAG, SUPERSEDED, MIXED, *provenance.OF_PROCESS),
}
"""Tags of a study that say nothing of the cells that another process adds."""


def _kept_tag(name: str) -> bool:
    """Whether a tag is a run's own: those that MLflow gives by itself belong to a store."""
    return not name.startswith("mlflow.") or name in ("mlflow.user", "mlflow.source.name", "mlflow.source.type")


def _checked_tags(tags: Mapping[str, str]) -> dict[str, str]:
    for name, value in tags.items():
        if not isinstance(value, str) or len(value) > _MAX_TAG:
            raise ValueError(f"tag {name!r} is {value!r:.80}; expected a text of at most {_MAX_TAG} characters")
    return dict(tags)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


# --- writing a run ---------------------------------------------------------------------------------------------------


class _Heart:
    """Says, while this process carries out a study, that it is there."""

    running: ClassVar[set[str]] = set()  # what this process carries out

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id, self._stopped = store, run_id, threading.Event()
        self.running.add(run_id)
        threading.Thread(target=self._beat, name=f"heartbeat of {run_id}", daemon=True).start()

    def _beat(self) -> None:
        while not self._stopped.wait(heartbeat.EVERY):
            try:
                self.check()
                self._store.client.set_tag(self._run_id, heartbeat.TAG, heartbeat.sign())
            except StillRunning as taken:
                logger.error("%s", taken)
                return
            except Exception as error:  # a store that is busy or away for a while: the next beat tries again
                logger.debug("no sign of life of run %s: %s", self._run_id, error)

    def check(self) -> None:
        """Raises StillRunning where another process has taken the study over."""
        with self._store._reported(f"cannot read run {self._run_id} from"):
            tag = self._store.client.get_run(self._run_id).data.tags.get(heartbeat.TAG)
        if not heartbeat.is_mine(tag):
            raise StillRunning(f"run {self._run_id} was taken over by {heartbeat.alive(tag) or 'another process'}")

    def is_lost(self) -> bool:
        """Whether the study, and its status, are another process's affair now."""
        with suppress(TrackingError):
            try:
                self.check()
            except StillRunning:
                return True
        return False

    def stop(self) -> None:
        self._stopped.set()
        self.running.discard(self._run_id)


class RunWriter:
    """A run while it happens. Made by :meth:`Store.start` and :meth:`cell`.

    ``folder`` holds the run's artifacts: put files there. Where the store keeps artifacts in a folder of this machine
    it is that folder, and nothing is copied; elsewhere it is a temporary one that :meth:`flush` uploads.
    """

    def __init__(
        self, store: Store, run: Run, experiment: str, tags: Mapping[str, str], heart: _Heart | None = None
    ) -> None:
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name or ""
        self._store, self._experiment, self._tags, self._heart = store, experiment, tags, heart
        self._uploaded: dict[Path, tuple[int, int]] = {}  # file -> modification time, size
        root = store._root_of(run)
        self._temporary = root is None
        with store._reported(f"cannot keep artifacts of run {self.run_id} of"):
            self.folder = root or Path(tempfile.mkdtemp(prefix=f"run-{self.run_id[:8]}-"))
            self.folder.mkdir(parents=True, exist_ok=True)

    def cell(
        self, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[RunWriter]:
        """Start a nested run (debug.role = cell) of the same kind, in the same experiment; see :meth:`Store.start`.

        Raises:
            StillRunning: another process has taken the study over.
        """
        return self._cell(name, params, tags or {})

    def adopt(self, run_id: str) -> None:
        """Nest a study that was started apart under this run, as the MLflow UI shows it; it stays a study."""
        self._store.set_tags(run_id, {_PARENT: self.run_id})

    @contextmanager
    def _cell(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[RunWriter]:
        if self._heart is not None:
            self._heart.check()
        with self._store._run(self._experiment, name, {**self._tags, **tags}, "cell", self.run_id) as writer:
            writer.log_params(params)
            yield writer

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters; texts as they are, other values as JSON (3, true, null, [1, 2]).

        Raises:
            ValueError: a value is no JSON or longer than MLflow keeps (6000 characters); long ones go into config.json.
            TrackingError: the store refuses, because a parameter has another value already, say.
        """
        values = []
        for name, value in params.items():
            text = value if isinstance(value, str) else _to_json(value, f"param {name!r}")
            if len(text) > _MAX_PARAM:
                raise ValueError(
                    f"param {name!r} has {len(text)} characters; MLflow keeps {_MAX_PARAM}. Put it into config.json"
                )
            values.append(Param(name, text))
        with self._reported("params"):
            for chunk in _chunks(values, _BATCH_OTHERS):
                self._store.client.log_batch(self.run_id, params=chunk)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log metrics; None (null) is not logged.

        Raises:
            ValueError: a value is NaN or infinite: a measurement that has no value is None.
            TrackingError: the store refuses.
        """
        now, values = int(time.time() * 1000), []
        for name, value in metrics.items():
            if value is None:
                continue
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"metric {name!r} is {value!r}; expected a finite number, or None where there is none")
            values.append(Metric(name, float(value), now, step or 0))
        with self._reported("metrics"):
            for chunk in _chunks(values, _BATCH_METRICS):
                self._store.client.log_batch(self.run_id, metrics=chunk)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Raises ValueError for a value that is no text or too long, TrackingError where the store refuses."""
        self._store.set_tags(self.run_id, tags)

    def log_json(self, name: str, value: Any) -> None:
        """Write a JSON file into the folder. Raises ValueError for what JSON cannot hold, NaN included."""
        path = self._path(name)
        text = _to_json(value, name, indent=1)
        with self._reported(name):
            part = path.with_name(path.name + _PART)
            part.write_text(f"{text}\n", "utf-8")
            part.replace(path)  # a reader finds the old file or the new one

    def append_jsonl(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records to a file of the folder, one line each. Raises ValueError for what JSON cannot hold."""
        lines = "".join(f"{_to_json(dict(record), name)}\n" for record in records)
        path = self._path(name)
        with self._reported(name), path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def log_programs(self, pairs: Iterable[ProgramPair]) -> None:
        """Write programs.json, which :attr:`LoggedRun.pairs` reads."""
        self.log_json("programs.json", {"schema": SCHEMA, "pairs": [pair.to_record() for pair in pairs]})

    def log_dataset(self, name: str, programs: Iterable[str], source: Mapping[str, Any]) -> None:
        """Tell MLflow, as the run's dataset input, which programs it is about; ``source`` says where they came from."""
        programs = list(programs)
        dataset = Dataset(
            name,
            provenance.text_digest(programs)[:_MAX_DIGEST],
            "programs",
            _to_json(source, "source"),
            profile=_to_json({"num_programs": len(programs)}, "profile"),
        )
        with self._reported("the dataset"):
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])]
            self._store.client.log_inputs(self.run_id, inputs)

    def flush(self) -> None:
        """Upload what is new or changed in the folder. Raises TrackingError; the files then stay where they are."""
        for path, stamp in self._pending():
            name = path.relative_to(self.folder)
            folder = None if name.parent == Path() else name.parent.as_posix()
            with self._store._reported(f"cannot upload {name} of run {self.run_id} (kept in {self.folder}) to"):
                self._store.client.log_artifact(self.run_id, str(path), folder)
            self._uploaded[path] = stamp

    def _pending(self) -> list[tuple[Path, tuple[int, int]]]:
        """The files that the store does not have, or not as they are now, each with its time and size."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file()) if self._temporary else []
        stamps = [(path, (path.stat().st_mtime_ns, path.stat().st_size)) for path in files]
        return [(path, stamp) for path, stamp in stamps if self._uploaded.get(path) != stamp]

    def _remove_folder(self) -> None:
        """Remove the temporary folder, unless it holds something that the store does not have."""
        if self._temporary and not self._pending():
            shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        path = _inside(self.folder, name, f"run {self.run_id}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _reported(self, what: str) -> AbstractContextManager[None]:
        return self._store._reported(f"cannot log {what} of run {self.run_id} in")


def _to_json(value: Any, what: str, indent: int | None = None) -> str:
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} is {value!r:.200}, which JSON cannot hold: {error}") from error


def _local_path(uri: str | None) -> Path | None:
    """The folder that an artifact location names where it is one of this machine's, else None."""
    parts = urlsplit(uri or "")
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if uri and not parts.scheme else None


def _tail(recorded: Path, experiment_id: str, run_id: str | None) -> tuple[str, ...] | None:
    """The end of a recorded artifact location that is its place inside a store's folder: an experiment's, or a run's.

    None where it is none that this project or MLflow's own default gives.
    """
    end = (run_id, ARTIFACTS) if run_id else ()
    tails = [(ARTIFACTS, *end), (ARTIFACTS, experiment_id, *end)]
    return next((tail for tail in tails if recorded.parts[-len(tail) :] == tail), None)


def _inside(root: Path, name: str, what: str) -> Path:
    """The path of an artifact; names that lead out of the folder, through a symbolic link too, are refused."""
    path = PurePosixPath(name)
    inside = name and "\\" not in name and "\0" not in name and not path.is_absolute() and ".." not in path.parts
    if not inside or not (root / path).resolve().is_relative_to(root.resolve()):
        raise TrackingError(f"{what}: {name!r} is not the name of an artifact; expected a path inside the run's folder")
    return root / path


# --- reading runs ----------------------------------------------------------------------------------------------------


class LoggedRun:
    """A run as the store has it. Artifacts are read when asked for, and checked; a broken one raises TrackingError.

    Artifacts that lie in a folder of this machine are read there; others are downloaded once, into a temporary folder
    that lives as long as this object.
    """

    def __init__(self, store: Store, run: Run, experiment: str) -> None:
        """Raises TrackingError where the run was written by a newer version of this project."""
        tags = run.data.tags
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name or ""
        self.experiment = experiment
        self.status: str = run.info.status
        self.kind: str | None = tags.get("debug.kind")
        self.role: str | None = tags.get("debug.role")
        self.parent_run_id: str | None = tags.get(_PARENT)
        self.params: dict[str, str] = dict(run.data.params)
        self.metrics: dict[str, float] = dict(run.data.metrics)
        """The last value of each; of a stepped metric that of its highest step."""
        self.tags: dict[str, str] = dict(tags)
        self.start_time = _time(run.info.start_time)
        self.duration: float | None = _seconds(run)
        """Seconds; None while the run goes on."""
        self.store, self._run = store, run
        schema = tags.get("debug.schema", str(SCHEMA))  # somebody else's run has none, and is read as far as it goes
        if not re.fullmatch("[0-9]{1,9}", schema):
            raise TrackingError(f"run {self.run_id}: the tag debug.schema is {schema!r:.80}; expected a number")
        if int(schema) > SCHEMA:
            raise TrackingError(
                f"run {self.run_id} was written in schema {schema} of the tracking contract and this version of the "
                f"project reads up to {SCHEMA}; update the project to read it"
            )

    def __repr__(self) -> str:
        return f"LoggedRun({self.run_id!r}, {self.name!r}, {self.kind}, {self.status})"

    @property
    def children(self) -> list[LoggedRun]:
        """The runs nested in this one, in the order in which they were started, without superseded ones: of cells in
        one place of a study (which earlier versions left without that tag) the last that was finished counts."""
        runs = [run for run in self._all_children() if SUPERSEDED not in run.data.tags]
        in_place: dict[str, Run] = {}
        for run in runs:
            place = run.data.tags.get(PLACE, run.info.run_id)
            if place not in in_place or run.info.status == "FINISHED" or in_place[place].info.status != "FINISHED":
                in_place[place] = run
        counted = {run.info.run_id for run in in_place.values()}
        return [LoggedRun(self.store, run, self.experiment) for run in runs if run.info.run_id in counted]

    def _all_children(self) -> list[Run]:
        ids = {self._run.info.experiment_id: self.experiment}
        order = "attributes.start_time ASC"
        return list(self.store._search(ids, {("tags", _PARENT): self.run_id}, order, everything=True))

    @property
    def owner(self) -> str | None:
        """Which process carries the run out, in words, where there is a sign of life; None where it may be taken up."""
        tag = self.tags.get(heartbeat.TAG)
        if self.status in ENDED or (heartbeat.is_mine(tag) and self.run_id not in _Heart.running):
            return None
        return heartbeat.alive(tag)

    def curves(self, prefix: str = "") -> pl.DataFrame:
        """Every logged value of the metrics whose names begin with ``prefix``: metric, step, value, sorted."""
        rows = []
        with self.store._reported(f"cannot read metrics of run {self.run_id} from"):
            for name in sorted(name for name in self.metrics if name.startswith(prefix)):
                history = self.store.client.get_metric_history(self.run_id, name)
                history.sort(key=lambda point: (point.step, point.timestamp))
                rows += [(name, point.step, point.value) for point in history]
        return pl.DataFrame(
            rows, schema={"metric": pl.String, "step": pl.Int64, "value": pl.Float64}, orient="row", strict=False
        )

    @property
    def environment(self) -> dict[str, str | None]:
        """How the run was computed: versions, dtype, device, digests of weights and tokenizer, commit, threads."""
        return provenance.environment(self.params, self.tags)

    @property
    def datasets(self) -> list[dict[str, Any]]:
        """The run's dataset inputs: name, digest, and their source as :meth:`RunWriter.log_dataset` got it."""
        inputs = self._run.inputs.dataset_inputs if self._run.inputs else []
        datasets = [each.dataset for each in inputs]
        return [{name: getattr(each, name) for name in ("name", "digest", "source", "profile")} for each in datasets]

    def record(self) -> dict[str, Any]:
        """All that MLflow holds of the run, as JSON values, with every artifact's size and SHA-256, and its children.

        :meth:`Store.restore` makes the run again from it.
        """
        metrics = []
        with self.store._reported(f"cannot read metrics of run {self.run_id} from"):
            for name in sorted(self.metrics):
                history = self.store.client.get_metric_history(self.run_id, name)
                metrics += [[name, point.value, point.timestamp, point.step] for point in history]
        files = {}
        for name in self.artifacts():
            path = self.artifact(name)
            files[name] = {"size": path.stat().st_size, "sha256": provenance.file_digest(path)}
        return {
            "run_id": self.run_id,
            "name": self.name,
            "experiment": self.experiment,
            "status": self.status,
            "start_time": self._run.info.start_time,
            "end_time": self._run.info.end_time,
            "params": self.params,
            "tags": {name: _shown(value) for name, value in self.tags.items() if _kept_tag(name)},
            "metrics": sorted(metrics),
            "datasets": self.datasets,
            "files": files,
            "children": [child.record() for child in self.children],
        }

    # artifacts

    @cached_property
    def _root(self) -> Path | None:
        return self.store._root_of(self._run)

    def artifacts(self) -> list[str]:
        """Names of the run's files, sorted; folders are separated by ``/``."""
        if self._root is None:
            with self.store._reported(f"cannot list artifacts of run {self.run_id} in"):
                return sorted(self._listed(None))
        files = (path for path in self._root.rglob("*") if path.is_file() and path.suffix != _PART)
        return sorted(path.relative_to(self._root).as_posix() for path in files)

    def _listed(self, folder: str | None) -> Iterator[str]:
        for entry in self.store.client.list_artifacts(self.run_id, folder):
            if entry.is_dir:
                yield from self._listed(entry.path)
            else:
                yield entry.path

    def artifact(self, name: str) -> Path:
        """The path of an artifact on this machine: its place in the store, or a downloaded copy.

        Raises:
            TrackingError: no such artifact, or a name that leads out of the run's folder.
        """
        path = _inside(self._root or self._downloads, name, f"run {self.run_id}")
        if self._root is None and not path.exists():
            with tempfile.TemporaryDirectory(dir=self._downloads) as folder:
                try:
                    done = self.store.client.download_artifacts(self.run_id, name, folder)
                except (MlflowException, OSError) as error:
                    raise self._broken(name, f"cannot be downloaded: {_shown(str(error))}") from error
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(done, path)  # whole, or not there
        if not path.is_file():
            where = self._root or _shown(self.store.uri)
            raise self._broken(
                name, f"no such file in {where}; there are: {', '.join(self.artifacts()[:20]) or 'none'}"
            )
        return path

    @cached_property
    def _downloads(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix=f"run-{self.run_id[:8]}-")
        self._keep = folder  # removed with this object
        return Path(folder.name)

    def _shards(self, folder: str) -> list[str]:
        return [name for name in self.artifacts() if re.fullmatch(rf"{folder}/[^/]+\.safetensors", name)]

    def _broken(self, name: str, problem: str) -> TrackingError:
        return TrackingError(f"run {self.run_id} ({self.name}), {name}: {problem}")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """samples.jsonl, a row a sample: seed, seq_len, hops, program, prompt, expected, raw_output, parsed, correct,
        chain, error; those of pairs have counterfactual and {expected,raw_output,correct}_counterfactual beside them.

        Answers are integers, or booleans, where all of the run's are; else texts.
        """
        records = list(self.sample_records())
        of_pairs = any(not record.keys().isdisjoint(_SAMPLE_OF_PAIR) for record in records)
        fields = _SAMPLE | (_SAMPLE_OF_PAIR if of_pairs else {})
        values = {name: [record.get(name) for record in records] for name in fields}
        answers = [name for name, check in fields.items() if check is checks.answer]
        kinds = {type(value) for name in answers for value in values[name]} - {type(None)}
        dtypes = {name: _DTYPES.get(check) for name, check in fields.items()}
        for name in answers:
            if kinds <= {int} or kinds == {bool}:
                dtypes[name] = pl.Boolean if kinds == {bool} else pl.Int64
            else:
                dtypes[name] = pl.String
                values[name] = [None if value is None else str(value) for value in values[name]]
        return pl.DataFrame(values, schema=dtypes)

    def sample_records(self) -> Iterator[dict[str, Any]]:
        """The records of samples.jsonl, checked, one at a time."""
        name = "samples.jsonl"
        with self.artifact(name).open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(checks.LONGEST_LINE + 1), b""), 1):
                if len(line) > checks.LONGEST_LINE:
                    raise self._broken(name, f"line {number} has more than {checks.LONGEST_LINE:,} bytes")
                try:
                    record = from_json(line)
                except ValueError as error:
                    if line.startswith(b"{") and not line.endswith(b"\n"):  # it is written, or the disk was full
                        if self.status != "RUNNING":
                            logger.warning(
                                "run %s (%s), %s: the last line was cut off: %d bytes, after %d whole samples, are "
                                "not read",
                                *(self.run_id, self.name, name, len(line), number - 1),
                            )
                        return
                    raise self._broken(name, f"line {number} is no JSON: {error}") from error
                if not isinstance(record, dict):
                    raise self._broken(name, f"line {number} is {record!r:.80}; expected a JSON object")
                # A sample that was not run leaves fields empty, and so does one of which they were not recorded.
                skipped = record.get("error") is not None
                nullable = _NULLABLE | (_NOT_RECORDED if self.kind == "imported" else set())
                for field, check in _SAMPLE.items():
                    if field not in record:
                        raise self._broken(name, f"line {number}: field {field!r} is missing")
                    if record[field] is None and (skipped or field in nullable):
                        continue
                    self._check(name, number, field, record[field], check)
                for field, check in _SAMPLE_OF_PAIR.items():
                    if record.get(field) is not None:
                        self._check(name, number, field, record[field], check)
                yield record

    def _check(self, name: str, line: int, field: str, value: Any, check: Check) -> None:
        try:
            check(value)
        except ValueError as error:
            raise self._broken(name, f"line {line}: field {field!r} is {value!r:.80}; {error}") from error

    @cached_property
    def pairs(self) -> list[ProgramPair]:
        """programs.json: the pairs of the run, in the order in which causal maps number them."""
        name = "programs.json"
        content = self._json_object(name)
        schema, records = content.get("schema"), content.get("pairs")
        if not isinstance(schema, int) or schema > SCHEMA:
            raise self._broken(name, f"field 'schema' is {schema!r:.80}; this version reads up to {SCHEMA}")
        if not isinstance(records, list):
            raise self._broken(name, f"field 'pairs' is {records!r:.80}; expected a list")
        pairs = []
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise self._broken(name, f"pair {index} is {record!r:.80}; expected a JSON object")
            try:
                pairs.append(ProgramPair.from_record(record))
            except ProgramError as error:
                raise self._broken(name, f"pair {index}: {error}") from error
        return pairs

    @property
    def programs(self) -> list[ProgramPair]:
        """The pairs that the run is about, of all cells where it is a study: what `run_intervention_experiment` takes.

        Of an accuracy run they are its programs with the counterfactuals that their seeds give.

        Raises:
            TrackingError: it has none, or its programs are no pairs (those of another task, say).
        """
        if self.role == "study":
            return [pair for child in self.children for pair in child.programs]
        if "programs.json" in self.artifacts():
            return self.pairs
        pairs = []
        for number, sample in enumerate(self.sample_records(), 1):
            if sample["program"] is None:  # its generator failed
                continue
            try:
                pairs.append(make_pair(sample["program"], sample["seed"]))
            except ProgramError as error:
                raise self._broken("samples.jsonl", f"line {number} has no program to patch: {error}") from error
        return pairs

    @property
    def reference(self) -> list[str]:
        """The programs that a mean was over, or partners were drawn from; those of its pairs where it had no such set.

        Raises:
            TrackingError: the file of them is not what it should be.
        """
        if "reference.json" not in self.artifacts():
            return [pair.original.text for pair in self.pairs]
        programs = self._json_object("reference.json").get("programs")
        if not isinstance(programs, list) or not all(isinstance(text, str) for text in programs):
            raise self._broken("reference.json", f"field 'programs' is {programs!r:.80}; expected a list of texts")
        return programs

    @cached_property
    def maps(self) -> Sequence[CausalMap]:
        """The causal maps, one a pair. Lazy: one shard is in memory at a time; ``len`` reads the headers."""
        return _Maps(self)

    @cached_property
    def activations(self) -> Mapping[str, np.ndarray]:
        """The stored activations by name, as memory maps of the shards: what is not looked at is not read."""
        return _Activations(self)

    @property
    def summary(self) -> dict[str, Any]:
        return self._json_object("summary.json")

    @property
    def config(self) -> dict[str, Any]:
        return self._json_object("config.json")

    def _json_object(self, name: str) -> dict[str, Any]:
        path = self.artifact(name)
        try:
            value = read_json(path)
        except (OSError, ValueError) as error:
            raise self._broken(name, f"is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise self._broken(name, f"is {value!r:.80}; expected a JSON object")
        return value

    @contextmanager
    def _safetensors(self, name: str) -> Iterator[Any]:
        path = self.artifact(name)
        try:
            with safe_open(path, framework="numpy") as file:
                yield file
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise self._broken(name, f"is no safetensors file that can be read: {error}") from error


class _Maps(Sequence[CausalMap]):
    def __init__(self, run: LoggedRun) -> None:
        self._of = run
        self._loaded: tuple[str, list[CausalMap]] = ("", [])

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        """Of every map, its shard and its index there. Arrays are named ``<index>/<array>``: the header is enough."""
        places = []
        for shard in self._of._shards("causal_maps"):
            with self._of._safetensors(shard) as file:
                names = file.keys()
            places += [(shard, index) for index in range(len({name.partition("/")[0] for name in names}))]
        return places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> CausalMap: ...
    @overload
    def __getitem__(self, index: slice) -> list[CausalMap]: ...
    def __getitem__(self, index: int | slice) -> CausalMap | list[CausalMap]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        shard, number = self._places[index]
        loaded, maps = self._loaded
        if loaded != shard:
            try:
                maps = load_maps(self._of.artifact(shard))
            except CausalMapError as error:
                raise self._of._broken(shard, str(error)) from error
            self._loaded = (shard, maps)
        if number >= len(maps):
            raise self._of._broken(shard, f"map {number} has arrays but no entry in the header 'causal_maps'")
        return maps[number]


class _Activations(Mapping[str, np.ndarray]):
    def __init__(self, run: LoggedRun) -> None:
        self._of = run

    @cached_property
    def _places(self) -> dict[str, tuple[str, int, dict[str, Any]]]:
        """Of every array: its shard, where the shard's data begin, and what the shard's header says of it."""
        places: dict[str, tuple[str, int, dict[str, Any]]] = {}
        for shard in self._of._shards("activations"):
            # Once it opens it is whole, and no array lies outside of it or over another.
            with self._of._safetensors(shard), self._of.artifact(shard).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            for name in header.keys() - {"__metadata__"}:
                if name in places:
                    raise self._of._broken(shard, f"{name!r} is in {places[name][0]} already")
                if header[name]["dtype"] not in _NUMPY:
                    raise self._of._broken(shard, f"{name!r} is of type {header[name]['dtype']}, which numpy has not")
                places[name] = (shard, 8 + length, header[name])
        return dict(sorted(places.items()))

    def __getitem__(self, name: str) -> np.ndarray:
        shard, start, entry = self._places[name]
        path, dtype, shape = self._of.artifact(shard), _NUMPY[entry["dtype"]], tuple(entry["shape"])
        if not math.prod(shape):
            return np.empty(shape, dtype)
        try:
            return np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape)
        except (OSError, ValueError) as error:
            raise self._of._broken(shard, f"{name!r} cannot be mapped: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
_NUMPY |= {"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
"""Types of safetensors that numpy has."""


_SAMPLE: dict[str, Check] = {
    "seed": checks.integer,
    "seq_len": checks.integer,
    "hops": checks.integer,
    "program": checks.text,
    "prompt": checks.text,
    "expected": checks.answer,
    "raw_output": checks.text,
    "parsed": checks.answer,
    "correct": checks.boolean,
    "chain": checks.names,
    "error": checks.text,
}
_SAMPLE_OF_PAIR: dict[str, Check] = {
    "counterfactual": checks.text,
    "expected_counterfactual": checks.answer,
    "raw_output_counterfactual": checks.text,
    "correct_counterfactual": checks.boolean,
}
_NULLABLE = {"seed", "hops", "parsed", "chain", "error"}
_NOT_RECORDED = {"prompt", "raw_output", "correct", "expected"}
"""What imported runs may lack besides: the older format does not record all of it."""
_DTYPES: dict[Check, Any] = {
    checks.integer: pl.Int64,
    checks.text: pl.String,
    checks.boolean: pl.Boolean,
    checks.names: pl.List(pl.String),
}


def _time(milliseconds: int | None) -> datetime | None:
    """None too for a time that no calendar has: a store may hold anything."""
    if milliseconds is None or not 0 <= milliseconds <= LATEST:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _seconds(run: Run) -> float | None:
    start, end = run.info.start_time, run.info.end_time
    return None if start is None or end is None else (end - start) / 1000


# --- all runs at once ------------------------------------------------------------------------------------------------

_TABLE_PARAMS = (
    "model",
    "label",
    "hops",
    "seq_len",
    "seed",
    "generator",
    "prompt_template",
    *("few_shot", "chat", "scoring", "answer_parser"),
    *("intervention_type", "source", "direction", "layer_window", "positions"),
)
_TABLE_RATES = (
    "accuracy",
    "patch_success_rate",
    "peak_patch_success_rate",
    "answer_kept_rate",
    "normalized_logit_diff",
)
_N_BEFORE = {
    "accuracy": "num_samples",  # of accuracy runs: causal ones have asked more programs than they have patched
    **dict.fromkeys(("patch_success_rate", "answer_kept_rate", "normalized_logit_diff"), "pairs_used"),
}
"""Rate -> the metric that is its n where it was logged without ``<rate>_n``. The peak's is none: half of the pairs."""
_TABLE_METRICS = (
    *(f"{name}{end}" for name in _TABLE_RATES for end in ("", "_ci_low", "_ci_high", "_n")),
    *("num_samples", "pairs_used", "held_out_accuracy"),
)
_TABLE_TAGS = {
    "debug.kind": "kind",
    "debug.role": "role",
    _PARENT: "parent_run_id",
    "debug.model_path": "model_path",
    "debug.weights_digest": "weights_digest",
    "debug.rerun_of": "rerun_of",
    "debug.error": "error",
}
_TABLE_COLUMNS = {
    **dict.fromkeys(("run_id", "name", "experiment", "experiment_id", "status"), pl.String),
    **dict.fromkeys(("start_time", "end_time"), pl.Int64),
    **dict.fromkeys(_TABLE_TAGS.values(), pl.String),
    **{f"params.{name}": pl.String for name in _TABLE_PARAMS},
    **{f"metrics.{name}": pl.Float64 for name in _TABLE_METRICS},
}
ENDED = ("FINISHED", "FAILED", "KILLED")
_HAS_ENDED = pl.col("status").is_in(ENDED)
_CLOCKS_APART = 60_000  # milliseconds by which machines that log to one server are expected to differ at most
_ALL_SECONDS = 60  # a server's runs are all read again no sooner than after that,
_ALL_SHARE = 20  # nor after this many times what reading them took


class RunTable:
    """Every run of a store with what tables and comparisons show of it, kept up to date at little cost.

    ``frame`` has a row a run, newest first: run_id, name, experiment, experiment_id, kind, role, status, start_time
    (UTC), duration (seconds), parent_run_id, model_path, weights_digest, rerun_of, error, and some columns
    ``params.*`` and ``metrics.*``, the same for every store; the runs that :meth:`Store.find_runs` lists. Databases
    are asked directly, in some ten queries over all runs; what a server keeps comes through MLflow's client. May be
    shared between threads.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.frame = self._sorted(pl.DataFrame(schema=_TABLE_COLUMNS))
        self._rows = pl.DataFrame(schema=_TABLE_COLUMNS)
        self._lock = threading.Lock()
        self._stamp: object = None
        self._looked = 0  # when a server was read, in milliseconds since 1970 by this machine's clock
        self._all_again = 0.0  # when all of it is to be read again, of time.monotonic()

    def refresh(self) -> bool:
        """Read what is new or has changed since the last time; whether that was anything.

        Every run's own row is read (name, status, times), params, metrics and tags those of runs that are new or were
        not ended. Tags set later on a run that had ended are not seen. Of a server not every run's own row is read
        each time: see :meth:`_from_server`.

        Raises:
            TrackingError: the store cannot be opened or read. One that is not there is an empty one.
        """
        with self._lock:
            stamp = self._stamp_now()
            if stamp is not None and stamp == self._stamp:
                return False
            rows = self._from_server() if self.store.uri.startswith("http") else self._from_database()
            gone = (pl.col("role") == "cell") & ~pl.col("parent_run_id").is_in(rows["run_id"].implode())
            rows = rows.filter(~gone.fill_null(False))  # cells of deleted studies
            frame = self._sorted(rows)
            changed = not frame.equals(self.frame)
            if changed:
                self._rows, self.frame = rows, frame
            self._stamp = stamp
            return changed

    def _stamp_now(self) -> object:
        """Differs where a SQLite store was written to; None for what cannot be told."""
        if (database := self.store._database) is None:
            return None
        stats = []
        for path in (database, Path(f"{database}-wal")):
            with suppress(OSError):
                stats.append((path.stat().st_mtime_ns, path.stat().st_size))
        return tuple(stats)

    def _from_database(self) -> pl.DataFrame:
        if not self.store._exists():
            return pl.DataFrame(schema=_TABLE_COLUMNS)
        engine = sqlalchemy.create_engine(self.store.uri, poolclass=sqlalchemy.NullPool)
        with self.store._reported("cannot read"), engine.connect() as connection:
            known = pl.DataFrame(
                connection.exec_driver_sql(
                    "SELECT r.run_uuid, r.name, e.name, r.experiment_id, r.status, r.start_time, r.end_time FROM runs r"
                    " JOIN experiments e ON e.experiment_id = r.experiment_id"
                    " WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'"
                ).all(),
                schema=dict(islice(_TABLE_COLUMNS.items(), 7)),
                orient="row",
                strict=False,
            )
            tags = sqlalchemy.table("tags", sqlalchemy.column("run_uuid"), sqlalchemy.column("key"))
            superseded = connection.scalars(sqlalchemy.select(tags.c.run_uuid).where(tags.c.key == SUPERSEDED))
            known = known.filter(~pl.col("run_id").is_in(list(superseded)))
            same = self._rows.filter(pl.col("status").is_in(ENDED)).join(
                known, on=["run_id", "status", "end_time"], how="semi", nulls_equal=True
            )
            changed = known.join(same, on="run_id", how="anti")
            if len(changed) > len(known) // 4:  # nearly everything, at first: one pass over each table is the quickest
                same, changed = same.clear(), known
            for table, names in (("tags", _TABLE_TAGS), ("params", _TABLE_PARAMS), ("latest_metrics", _TABLE_METRICS)):
                columns = (
                    names if isinstance(names, dict) else {name: f"{table.split('_')[-1]}.{name}" for name in names}
                )
                changed = self._with(connection, changed, table, columns, everything=same.is_empty())
        kept = known.join(same.drop(known.columns[1:]), on="run_id", how="inner")
        return pl.concat([frame.select(*_TABLE_COLUMNS) for frame in (kept, changed)])

    @staticmethod
    def _with(
        connection: sqlalchemy.Connection, runs: pl.DataFrame, table: str, columns: Mapping[str, str], everything: bool
    ) -> pl.DataFrame:
        """The runs with a column for each of these keys of a table of (run_uuid, key, value)."""
        number = table == "latest_metrics"
        names = ("run_uuid", "key", "value", *(["is_nan"] if number else []))
        of = sqlalchemy.table(table, *map(sqlalchemy.column, names))
        query = sqlalchemy.select(of).where(of.c.key.in_(list(columns)))
        chunks = (
            [query]
            if everything
            else [query.where(of.c.run_uuid.in_(ids)) for ids in _chunks(runs["run_id"].to_list(), 500)]
        )
        rows = [row for chunk in chunks for row in connection.execute(chunk)]
        dtype = pl.Float64 if number else pl.String
        schema = {"run_id": pl.String, "key": pl.String, "value": dtype} | ({"is_nan": pl.Boolean} if number else {})
        found = pl.DataFrame(rows, schema=schema, orient="row", strict=False)
        if number:
            found = found.filter(~pl.col("is_nan").fill_null(False)).drop("is_nan")
        found = found.unique(["run_id", "key"]).pivot("key", on_columns=list(columns), index="run_id", values="value")
        return runs.join(found.rename(dict(columns)), on="run_id", how="left")

    def _from_server(self) -> pl.DataFrame:
        """Through MLflow's client: everything at first; then what was started about since, and what goes on or did.

        Start times are of the clocks of many machines, some of them wrong, and MLflow keeps no other order. A run whose
        clock is behind by more than _CLOCKS_APART, and that begins and ends between two looks, is found by reading
        everything again, now and then, as is that a run was deleted.
        """
        experiments, begun, looked = self.store._experiments(), time.monotonic(), int(1000 * time.time())

        def rows(also: str = "") -> pl.DataFrame:
            found = (self._row(run, experiments) for run in self.store._search(experiments, {}, also=also))
            return pl.DataFrame(list(found), schema=_TABLE_COLUMNS)

        if self._rows.is_empty() or begun >= self._all_again:
            now = rows()
            self._all_again = begun + max(_ALL_SECONDS, _ALL_SHARE * (time.monotonic() - begun))
        else:
            newest: int = self._rows["start_time"].max() or 0  # type: ignore[assignment]
            started = rows(f"attributes.start_time >= {min(newest, self._looked) - _CLOCKS_APART}")
            going_on = [rows(f"attributes.status = '{status}'") for status in ("RUNNING", "SCHEDULED")]
            new = pl.concat([started, *going_on]).unique("run_id", keep="last")
            unknown = ~pl.col("run_id").is_in(new["run_id"].implode())
            kept, ended = (self._rows.filter(unknown, each) for each in (_HAS_ENDED, ~_HAS_ENDED))
            ids = [
                ", ".join(f"'{run_id}'" for run_id in chunk)
                for chunk in _chunks(ended["run_id"].to_list(), _BATCH_OTHERS)
            ]
            now = pl.concat([kept, new, *(rows(f"attributes.run_id IN ({chunk})") for chunk in ids)])
        self._looked = looked
        of = self.store._search(
            experiments, {("tags", SUPERSEDED): None}, also=f"tags.`{SUPERSEDED}` != ''", everything=True
        )
        return now.filter(~pl.col("run_id").is_in([run.info.run_id for run in of]))

    @staticmethod
    def _row(run: Run, experiments: Mapping[str, str]) -> dict[str, Any]:
        info, data = run.info, run.data
        return {
            "run_id": info.run_id,
            "name": info.run_name,
            "experiment": experiments[info.experiment_id],
            "experiment_id": info.experiment_id,
            "status": info.status,
            "start_time": info.start_time,
            "end_time": info.end_time,
            **{column: data.tags.get(tag) for tag, column in _TABLE_TAGS.items()},
            **{f"params.{name}": data.params.get(name) for name in _TABLE_PARAMS},
            **{f"metrics.{name}": data.metrics.get(name) for name in _TABLE_METRICS},
        }

    @staticmethod
    def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
        """Newest first, and each rate with its own n, where that is known."""
        ns = [pl.coalesce(f"metrics.{rate}_n", f"metrics.{of}") for rate, of in _N_BEFORE.items()]
        started = pl.when(pl.col("start_time").is_between(0, LATEST)).then("start_time")
        started = started.cast(_RUN_COLUMNS["start_time"]).alias("start_time")
        duration = ((pl.col("end_time") - pl.col("start_time")) / 1000).alias("duration")
        return (
            rows.sort("start_time", "run_id", descending=True, nulls_last=True)
            .with_columns(started, duration, *ns)
            .drop("end_time")
        )


def own_n(rate: str, metrics: Mapping[str, float]) -> int | None:
    """Of how many things a run's rate is the share; None where that was not logged."""
    n = metrics.get(f"{rate}_n", metrics.get(_N_BEFORE.get(rate, ""), math.nan))
    return int(n) if math.isfinite(n) else None


def load_run(run_id: str, tracking_uri: str | None = None) -> LoggedRun:
    """A run of a store; see :meth:`Store.load_run`."""
    return Store(tracking_uri).load_run(run_id)


def load_programs(run_id: str, tracking_uri: str | None = None) -> list[ProgramPair]:
    """The pairs of a logged run; see :attr:`LoggedRun.programs`."""
    return load_run(run_id, tracking_uri).programs


def find_runs(*, tracking_uri: str | None = None, **filters: Any) -> pl.DataFrame:
    """The runs of a store that have what is named; see :meth:`Store.find_runs`."""
    return Store(tracking_uri).find_runs(**filters)
