"""A run while it happens: begun, its params, metrics and artifacts logged, ended however its process ends."""

from __future__ import annotations

import logging
import math
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import ClassVar

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from debug import provenance
from debug.errors import InputError
from debug.programs import AnyPair
from debug.provenance import without_passwords
from debug.tracking import heartbeat
from debug.tracking.connection import Connection
from debug.tracking.contract import (
    BATCH_METRICS,
    BATCH_OTHERS,
    MAX_DIGEST,
    MAX_PARAM,
    MAX_TAG,
    NOTE,
    PARENT,
    PART,
    SCHEMA,
    StillRunning,
    TrackingError,
    checked_tags,
    chunks,
    to_json,
)
from debug.tracking.moving import relocate
from debug.tracking.places import inside

logger = logging.getLogger(__name__)


@contextmanager
def uninterrupted() -> Iterator[None]:
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


HEADLINES = ("accuracy", "patch_success_rate", "peak_patch_success_rate")
"""Metrics of cells whose means a study carries."""
_PUNCTUATION = re.compile(r"[\\`*_\[\]<>#|~$]")


_OF_MODEL = {f"debug.{name}" for name in ("model_path", "weights_digest", "tokenizer_digest", "generation_digest")}


def _model_name(name: str) -> str:
    """A model's name without what MLflow refuses in one."""
    return re.sub(r"[/:.%\"']", "-", name)


class Heart:
    """Says, while this process carries out a study, that it is there; and how busy the machine is: MLflow's system
    metrics, of a study that lasts longer than the first beat. ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` keeps them
    out."""

    running: ClassVar[set[str]] = set()  # what this process carries out
    begun: ClassVar[bool] = False  # whether it ever did

    def __init__(self, store: Connection, run_id: str) -> None:
        self._store, self._run_id, self._stopped = store, run_id, threading.Event()
        self._system: SystemMetricsMonitor | None = None
        self.running.add(run_id)
        Heart.begun = True
        threading.Thread(target=self._beat, name=f"heartbeat of {run_id}", daemon=True).start()

    def _beat(self) -> None:
        while not self._stopped.wait(heartbeat.EVERY):
            try:
                self.check()
                self._store.client.set_tag(self._run_id, heartbeat.TAG, heartbeat.sign())
                self._log_system()
            except StillRunning as taken:
                logger.error("%s", taken)
                return
            except Exception as error:  # a store that is busy or away for a while: the next beat tries again
                logger.debug("no sign of life of run %s: %s", self._run_id, error)

    def _log_system(self) -> None:
        wanted = MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
        if wanted.is_set() and not wanted.get():
            return
        if self._system is None:
            logging.getLogger(SystemMetricsMonitor.__module__).setLevel(logging.WARNING)  # it says that there is no GPU
            self._system = SystemMetricsMonitor(self._run_id, tracking_uri=self._store.uri)
        self._system.collect_metrics()
        measured, now = self._system.aggregate_metrics(), int(1000 * time.time())
        for monitor in self._system.monitors:
            monitor.clear_metrics()
        points = [Metric(f"system/{name}", float(value), now, now // 1000) for name, value in measured.items()]
        self._store.client.log_batch(self._run_id, metrics=points)

    def check(self) -> None:
        """Raises StillRunning where another process has taken the study over."""
        with self._store.reported(f"cannot read run {self._run_id} from"):
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
        self, store: Connection, run: Run, experiment: str, tags: Mapping[str, str], heart: Heart | None = None
    ) -> None:
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name or ""
        self._store, self._experiment, self._tags, self._heart = store, experiment, tags, heart
        self._uploaded: dict[Path, tuple[int, int]] = {}  # file -> modification time, size
        root = store.root_of(run)
        self._temporary = root is None
        with store.reported(f"cannot keep artifacts of run {self.run_id} of"):
            self.folder = root or Path(tempfile.mkdtemp(prefix=f"run-{self.run_id[:8]}-"))
            self.folder.mkdir(parents=True, exist_ok=True)

    def cell(
        self, name: str, params: Mapping[str, object], tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[RunWriter]:
        """Start a nested run (debug.role = cell) of the same kind, in the same experiment; see :meth:`Store.start`.

        Raises:
            StillRunning: another process has taken the study over.
        """
        return self._cell(name, params, tags or {})

    def adopt(self, run_id: str) -> None:
        """Nest a study that was started apart under this run, as the MLflow UI shows it; it stays a study."""
        self._store.set_tags(run_id, {PARENT: self.run_id})

    @contextmanager
    def _cell(self, name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> Iterator[RunWriter]:
        if self._heart is not None:
            self._heart.check()
        with running(self._store, self._experiment, name, {**self._tags, **tags}, "cell", self.run_id) as writer:
            writer.log_params(params)
            yield writer

    def describe(self, lines: Sequence[str]) -> None:
        """What the run's page in the MLflow UI says first, a list of sentences; texts of a store are no Markdown."""
        shown = (_PUNCTUATION.sub(r"\\\g<0>", line[:1000]) for line in lines)
        self.set_tags({NOTE: "\n".join(f"- {line}" for line in shown)})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters; texts as they are, other values as JSON (3, true, null, [1, 2]).

        Raises:
            InputError: a value is no JSON or longer than MLflow keeps (6000 characters); long ones go into config.json.
            TrackingError: the store refuses, because a parameter has another value already, say.
        """
        values = []
        for name, value in params.items():
            text = value if isinstance(value, str) else to_json(value, f"param {name!r}")
            if len(text) > MAX_PARAM:
                raise InputError(
                    f"param {name!r} has {len(text)} characters; MLflow keeps {MAX_PARAM}. Put it into config.json"
                )
            values.append(Param(name, text))
        with self._reported("params"):
            for chunk in chunks(values, BATCH_OTHERS):
                self._store.client.log_batch(self.run_id, params=chunk)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log metrics; None (null) is not logged.

        Raises:
            InputError: a value is NaN or infinite: a measurement that has no value is None.
            TrackingError: the store refuses.
        """
        now, values = int(time.time() * 1000), []
        for name, value in metrics.items():
            if value is None:
                continue
            if not isinstance(value, Real) or not math.isfinite(value):
                raise InputError(f"metric {name!r} is {value!r}; expected a finite number, or None where there is none")
            values.append(Metric(name, float(value), now, step or 0))
        with self._reported("metrics"):
            for chunk in chunks(values, BATCH_METRICS):
                self._store.client.log_batch(self.run_id, metrics=chunk)

    def log_means(self, cells: Iterable[Mapping[str, float | None]]) -> None:
        """Log of a study what its cells found: the mean over cells of each metric of HEADLINES, where they have it."""
        metrics = list(cells)
        for name in HEADLINES:
            found = [value for cell in metrics if (value := cell.get(name)) is not None]
            self.log_metrics({name: sum(found) / len(found) if found else None})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Raises InputError for a value that is no text or too long, TrackingError where the store refuses."""
        self._store.set_tags(self.run_id, tags)

    def log_json(self, name: str, value: object) -> None:
        """Write a JSON file into the folder. Raises InputError for what JSON cannot hold, NaN included."""
        path = self.path_of(name)
        text = to_json(value, name, indent=1)
        with self._reported(name):
            part = path.with_name(path.name + PART)
            part.write_text(f"{text}\n", "utf-8")
            part.replace(path)  # a reader finds the old file or the new one

    def append_jsonl(self, name: str, records: Iterable[Mapping[str, object]]) -> None:
        """Append records to a file of the folder, one line each. Raises InputError for what JSON cannot hold."""
        lines = "".join(f"{to_json(dict(record), name)}\n" for record in records)
        path = self.path_of(name)
        with self._reported(name), path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def log_programs(self, pairs: Iterable[AnyPair]) -> None:
        """Write programs.json, which :attr:`LoggedRun.pairs` reads."""
        self.log_json("programs.json", {"schema": SCHEMA, "pairs": [pair.to_record() for pair in pairs]})

    def log_dataset(self, name: str, programs: Iterable[str], source: Mapping[str, object]) -> None:
        """Tell MLflow, as the run's dataset input, which programs it is about; ``source`` says where they came from."""
        programs = list(programs)
        dataset = Dataset(
            name,
            provenance.text_digest(programs)[:MAX_DIGEST],
            "programs",
            to_json(source, "source"),
            profile=to_json({"num_programs": len(programs)}, "profile"),
        )
        with self._reported("the dataset"):
            inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])]
            self._store.client.log_inputs(self.run_id, inputs)

    def log_model(self, name: str, tags: Mapping[str, str]) -> None:
        """Tell MLflow, as the run's model input, which weights it is about: one logged model for a name and a digest
        of weights, in each experiment, whose page lists all runs on it. Nothing is uploaded. What has no weights has
        no model; a server that knows no logged models goes without."""
        digest = tags.get("debug.weights_digest")
        if digest is None:
            return
        own = {tag: value for tag, value in tags.items() if tag in _OF_MODEL}
        try:
            experiment_id = self._store.client.get_run(self.run_id).info.experiment_id
            known = f"tags.`debug.weights_digest` = '{digest}' AND name = '{_model_name(name)}'"
            found = self._store.client.search_logged_models([experiment_id], known, max_results=1)
            model = found[0] if found else self._new_model(experiment_id, name, own)
            self._store.client.log_inputs(self.run_id, models=[LoggedModelInput(model.model_id)])
        except MlflowException as error:
            logger.debug("run %s has no model input: %s", self.run_id, error)

    def _new_model(self, experiment_id: str, name: str, tags: dict[str, str]) -> LoggedModel:
        made = self._store.client.create_logged_model(
            experiment_id, _model_name(name), tags=tags, model_type="external"
        )
        return self._store.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)

    def flush(self) -> None:
        """Upload what is new or changed in the folder. Raises TrackingError; the files then stay where they are."""
        for path, stamp in self._pending():
            name = path.relative_to(self.folder)
            folder = None if name.parent == Path() else name.parent.as_posix()
            with self._store.reported(f"cannot upload {name} of run {self.run_id} (kept in {self.folder}) to"):
                self._store.client.log_artifact(self.run_id, str(path), folder)
            self._uploaded[path] = stamp

    def _pending(self) -> list[tuple[Path, tuple[int, int]]]:
        """The files that the store does not have, or not as they are now, each with its time and size."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file()) if self._temporary else []
        stamps = [(path, (path.stat().st_mtime_ns, path.stat().st_size)) for path in files]
        return [(path, stamp) for path, stamp in stamps if self._uploaded.get(path) != stamp]

    def remove_folder(self) -> None:
        """Remove the temporary folder, unless it holds something that the store does not have."""
        if self._temporary and not self._pending():
            shutil.rmtree(self.folder)

    def path_of(self, name: str) -> Path:
        path = inside(self.folder, name, f"run {self.run_id}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _reported(self, what: str) -> AbstractContextManager[None]:
        return self._store.reported(f"cannot log {what} of run {self.run_id} in")


@contextmanager
def running(
    store: Connection,
    experiment: str,
    name: str,
    tags: Mapping[str, str],
    role: str,
    parent: str | None,
    take_up: Callable[[], Run] | None = None,
) -> Iterator[RunWriter]:
    """A run that is begun here, or taken up, and ended however the context is left; see :meth:`Store.start`."""
    own = {"debug.role": role} | ({PARENT: parent} if parent else {})
    run: Run | None = None
    writer: RunWriter | None = None
    heart: Heart | None = None
    try:
        with store.reported("cannot start a run in"):
            if role == "study":
                relocate(store)
            experiment_id = store.experiment_id(experiment, cells=role == "cell")
            with uninterrupted():
                if role == "study":
                    own[heartbeat.TAG] = heartbeat.sign()
                if take_up is None:
                    run = store.client.create_run(experiment_id, tags={**checked_tags(tags), **own}, run_name=name)
                else:
                    run = take_up()
        if role == "study":
            heart = Heart(store, run.info.run_id)
        writer = RunWriter(store, run, experiment, tags, heart)
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
        terminate(store, run, "FINISHED", {})
    except BaseException as error:
        if run is not None and not (heart is not None and heart.is_lost()):
            killed = isinstance(error, KeyboardInterrupt | GeneratorExit)
            message = without_passwords(f"{type(error).__name__}: {error}")[:MAX_TAG]
            try:
                terminate(store, run, *(("KILLED", {}) if killed else ("FAILED", {"debug.error": message})))
            except TrackingError as problem:
                logger.error("%s", problem)
        raise
    finally:
        if heart is not None:
            heart.stop()
        if writer is not None:
            writer.remove_folder()


def terminate(store: Connection, run: Run, status: str, tags: Mapping[str, str], at: int | None = None) -> None:
    """End a run, with tags that say how, now or at a time (Unix, milliseconds). Raises TrackingError where the store
    refuses."""
    with store.reported(f"cannot end run {run.info.run_id} as {status} in"), uninterrupted():
        try:
            store.client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()])
        finally:
            store.client.set_terminated(run.info.run_id, status, at)
