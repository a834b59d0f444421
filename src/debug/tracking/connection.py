"""A tracking store, connected: the client, runs by what they are asked for, and where a run's artifacts are.

The only files that import mlflow are this one and those beside it.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import requests
import sqlalchemy
from filelock import FileLock
from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from requests.exceptions import ChunkedEncodingError
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from urllib3.exceptions import ProtocolError

from debug.provenance import without_passwords
from debug.tracking import ui
from debug.tracking.contract import (
    ARTIFACTS,
    BATCH_OTHERS,
    PARENT,
    SUPERSEDED,
    StoreAway,
    TrackingError,
    checked_tags,
    chunks,
)
from debug.tracking.places import (
    local_path,
    location_of,
    mlruns,
    place_in_store,
    project,
    sqlite_path,
    sqlite_uri,
    store_uri,
)

logger = logging.getLogger(__name__)
_T = TypeVar("_T")


# The first opening of a database runs some fifty migrations and would log each; errors come back as TrackingError.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("alembic").setLevel(logging.WARNING)


_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's UI heeds it only where its switch of "GenAI" and "Model training" is off: see :meth:`Connection.link`."""
_PAGE = 1000  # runs in one answer of the store
_CONNECT_SECONDS = 10


class Connection:
    """One tracking store, reached through an MlflowClient of its own: no global tracking URI, no active run.

    Nothing is opened before the first use, and nothing is created before the first run: a SQLite store that is not
    there reads as an empty one. May be shared between threads. What is written and read through it is :class:`Store`'s,
    :class:`RunWriter`'s and :class:`LoggedRun`'s affair.
    """

    def __init__(self, tracking_uri: str | None = None) -> None:
        """Raises TrackingError where the URI names no kind of store."""
        self.uri = store_uri(tracking_uri)
        self.database = sqlite_path(self.uri)

    def __str__(self) -> str:
        """The URI without its password."""
        return without_passwords(self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """The client, connected. Creates a SQLite store that is not there.

        Raises:
            TrackingError: nobody answers, no permission, not a database, a database of another MLflow version.
        """
        with self.reported("cannot open"):
            if self.database is not None:
                if not self.exists():
                    self._create(self.database)
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

    def exists(self) -> bool:
        """False only for a SQLite store that is not there (an empty file is not one)."""
        if self.database is None:
            return True
        with self.reported("cannot open"):
            try:
                with self.database.open("rb") as file:
                    head = file.read(16)
            except FileNotFoundError:
                return False
        if head and head != b"SQLite format 3\0":
            raise TrackingError(f"cannot open the store {self}: the file is no SQLite database; name another file")
        return bool(head)

    def _create(self, database: Path) -> None:
        """Build the database aside and move it into place: it is there complete, or not at all."""
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{database}.lock"):
            if self.exists():
                return
            if database == mlruns() / "mlflow.db" and project() is None:
                logger.warning(
                    "runs go into a new store in this folder, %s; MLFLOW_TRACKING_URI names another", database
                )
            else:
                logger.info("creating the tracking store %s", database)
            with tempfile.TemporaryDirectory(dir=database.parent, prefix=".creating-") as folder:
                new = Path(folder) / "mlflow.db"
                with _unsynced(new):
                    SqlAlchemyStore(sqlite_uri(new), location_of(database.parent / ARTIFACTS)).engine.dispose()
                with new.open("rb+") as file:
                    os.fsync(file)
                os.replace(new, database)

    @contextmanager
    def reported(self, what: str) -> Iterator[None]:
        """Whatever MLflow, its database or its server raise becomes a TrackingError that names the store."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
            reason = without_passwords(str(error).strip() or type(error).__name__)
            hint = ""
            if isinstance(error, ImportError):
                hint = "; install it, or name the driver that you have (postgresql+psycopg2://)"
            elif isinstance(error, requests.RequestException):
                hint = "; start the server or correct the address (--tracking-uri or MLFLOW_TRACKING_URI)"
            elif isinstance(error, OSError):
                hint = "; choose a folder that you may write to (--tracking-uri or MLFLOW_TRACKING_URI)"
            kind = StoreAway if _is_away(error) else TrackingError
            raise kind(f"{what} the store {self}: {reason}{hint}") from error

    def patiently(self, ask: Callable[[], _T]) -> _T:
        """What the store answers; while it is away it is asked again, at longer and longer intervals."""
        pause = 1.0
        while True:
            try:
                return ask()
            except StoreAway as away:
                logger.warning("%s. Asking again in %.0f s", away, pause)
                time.sleep(pause)
                pause = min(2 * pause, 60.0)

    def experiment_id(self, name: str, *, cells: bool = False) -> str:
        """The id of an experiment, which is created where it is missing; ``cells``: it is going to have some.

        Raises:
            TrackingError: it was deleted, or the store cannot be written.
        """
        with self.reported(f"cannot find or make experiment {name!r} in"):
            return self._experiment_id(name, cells)

    def _experiment_id(self, name: str, cells: bool) -> str:
        experiment, tags = self.client.get_experiment_by_name(name), {ui.TAG: ui.view(cells=cells)}
        if experiment is None:
            try:
                return self.client.create_experiment(name, self._artifact_location(), _EXPERIMENT_TAGS | tags)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(name)  # another process was first
                assert experiment is not None
        if experiment.lifecycle_stage == "deleted":
            raise TrackingError(
                f"experiment {name!r} was deleted from the store {self}; choose another name, or bring it back with: "
                f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
            )
        if cells and experiment.tags.get(ui.TAG) != tags[ui.TAG]:
            self.client.set_experiment_tag(experiment.experiment_id, ui.TAG, tags[ui.TAG])
        return experiment.experiment_id

    def _artifact_location(self) -> str | None:
        """Beside a SQLite file; in ``mlruns/`` for another database; None where a server decides."""
        if self.database is not None:
            return location_of(self.database.parent / ARTIFACTS)
        return None if self.uri.startswith("http") else location_of(mlruns() / ARTIFACTS)

    def root_of(self, run: Run) -> Path | None:
        """The folder of a run's artifacts where it is one of this machine's, else None.

        The artifacts of a SQLite store are those in its own folder. MLflow records absolute paths; one from where the
        store was before it was moved or copied means the same place in the folder where it is now.

        Raises:
            TrackingError: the artifacts are recorded elsewhere, or lead there through a symbolic link.
        """
        recorded = local_path(run.info.artifact_uri)
        if self.database is None or recorded is None:
            return recorded
        home, run_id = self.database.parent, run.info.run_id
        tail = place_in_store(recorded, run.info.experiment_id, run_id)
        root = home.joinpath(*tail) if tail else recorded
        if not any(root.resolve().is_relative_to(folder.resolve()) for folder in (home, home / ARTIFACTS)):
            raise TrackingError(
                f"run {run_id}: its artifacts are recorded in {recorded}, outside of the store's folder {home}; they "
                "are not read. Copy them into that folder, or open the store through the MLflow server that keeps them"
            )
        return root

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tag a run, an ended one too.

        Raises:
            InputError: a value is no text or too long.
            TrackingError: there is no such run, or the store cannot be written.
        """
        values = [RunTag(name, value) for name, value in checked_tags(tags).items()]
        with self.reported(f"cannot log tags of run {run_id} in"):
            for chunk in chunks(values, BATCH_OTHERS):
                self.client.log_batch(run_id, tags=chunk)

    def delete_tags(self, run_id: str, names: Iterable[str]) -> None:
        """Raises TrackingError where there is no such run or tag, or the store cannot be written."""
        with self.reported(f"cannot remove tags of run {run_id} in"):
            for name in names:
                self.client.delete_tag(run_id, name)

    def link(self, run_id: str, ui_at: str = "http://localhost:5000") -> str:
        """The address of a run's experiment in the MLflow UI, its list of runs: in this UI, or the server's own.

        Without ``workflowType`` the UI opens on a page "Overview" that is for GenAI, and has no runs. The view's key
        chooses columns and charts (:mod:`debug.tracking.ui`), where the experiment has that view.
        """
        with self.reported(f"cannot read run {run_id} from"):
            experiment = self.client.get_experiment(self.client.get_run(run_id).info.experiment_id)
        base = without_passwords(self.uri).rstrip("/") if self.uri.startswith("http") else ui_at
        view = f"&viewStateShareKey={ui.KEY}" if ui.TAG in experiment.tags else ""
        return f"{base}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning{view}"

    def experiments(self) -> dict[str, str]:
        """Experiment id -> name, of those that are not deleted."""
        if not self.exists():
            return {}
        found: dict[str, str] = {}
        page: str | None = None
        with self.reported("cannot read"):
            while True:
                experiments = self.client.search_experiments(max_results=1000, page_token=page)
                found |= {experiment.experiment_id: experiment.name for experiment in experiments}
                page = experiments.token
                if not page:
                    return found

    def search(
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
            with self.reported("cannot read"):
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
        parents = {run.info.run_id: study_of(run) for run in runs}
        unknown = sorted({parent for parent in parents.values() if parent is not None} - studies.keys())
        experiments = list(self.experiments()) if unknown else []
        for chunk in chunks(unknown, BATCH_OTHERS):
            ids = ", ".join(f"'{run_id}'" for run_id in chunk)
            with self.reported("cannot read"):
                there = self.client.search_runs(experiments, f"attributes.run_id IN ({ids})", max_results=len(chunk))
            studies |= dict.fromkeys(chunk, False) | {run.info.run_id: True for run in there}
        for run in runs:
            parent = parents[run.info.run_id]
            if SUPERSEDED not in run.data.tags and (parent is None or studies[parent]):
                yield run


def _is_away(error: BaseException | None) -> bool:
    """Whether an error says that nobody answers, or that there is no answer for now."""
    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout | ChunkedEncodingError | ProtocolError):
            return True  # nobody is there, or an answer broke off
        if isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE":
            return "(sqlite3." not in str(error) or "database is locked" in str(error)
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return True
        if re.search(r"failed with error code 50[234]|Max retries exceeded|Connection broken", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _unsynced(database: Path) -> Iterator[None]:
    """A SQLite file is written without waiting for the disk: the migrations that lay out a store wait for seconds."""

    def connected(connection: sqlite3.Connection, _: object) -> None:
        if connection.execute("PRAGMA database_list").fetchone()[2] == str(database.resolve()):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(sqlalchemy.Engine, "connect", connected)
    try:
        yield
    finally:
        event.remove(sqlalchemy.Engine, "connect", connected)


_Field = tuple[str, str]  # "tags", "params" or "attributes", and a name there


def _has(run: Run, group: str, key: str, value: str | None) -> bool:
    found = getattr(run.info, key) if group == "attributes" else getattr(run.data, group).get(key)
    return found is not None and value in (None, found)


def study_of(run: Run) -> str | None:
    """The run that a cell belongs to, and goes with; None of what is no cell."""
    parent = run.data.tags.get(PARENT, "")
    return parent if run.data.tags.get("debug.role") == "cell" and re.fullmatch("[0-9a-f]{32}", parent) else None
