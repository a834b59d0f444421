"""A run while it happens: begun, its params, metrics and artifacts logged, ended however its process ends."""

from __future__ import annotations

import logging
import math
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property, partial
from numbers import Real
from pathlib import Path

from mlflow.entities import (
    LoggedModel,
    LoggedModelInput,
    LoggedModelStatus,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException

from debug import provenance
from debug.checks import from_json
from debug.errors import InputError
from debug.kinds import Json
from debug.programs import AnyPair
from debug.provenance import without_passwords
from debug.tracking import heartbeat
from debug.tracking.artifacts import Artifacts
from debug.tracking.connection import Connection
from debug.tracking.contract import (
    ENDED,
    MAX_DIGEST,
    MAX_PARAM,
    MAX_TAG,
    MIXED,
    NOTE,
    PARENT,
    PART,
    PLACE,
    SCHEMA,
    SUPERSEDED,
    LeftToOthers,
    StoreAway,
    TrackingError,
    checked_tags,
    to_json,
)
from debug.tracking.heart import Heart
from debug.tracking.moving import relocate
from debug.tracking.mutex import one_at_a_time
from debug.tracking.outbox import FILES, Outbox
from debug.tracking.places import inside, spool

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


class RunWriter:
    """A run while it happens. Made by :meth:`Store.start` and :meth:`cell`.

    ``folder`` holds the run's artifacts: put files there. Where the store keeps artifacts in a folder of this machine
    it is that folder, and nothing is copied; elsewhere it is one in the spool, which :meth:`flush` uploads, and which
    stays for as long as it holds something that the store does not have.
    """

    def __init__(
        self,
        store: Connection,
        run: Run,
        experiment: str,
        tags: Mapping[str, str],
        heart: Heart | None = None,
        of_study: Heart | None = None,
    ) -> None:
        """``heart``: of a study its own; ``of_study``: of a cell its study's."""
        self.run_id: str = run.info.run_id
        self.name: str = run.info.run_name or ""
        self._store, self._experiment, self._tags, self._heart = store, experiment, tags, heart
        self._of_study = heart or of_study
        self._run, self._experiment_id = run, run.info.experiment_id
        self.outbox = Outbox(store, self.run_id, self._upload, self._delivered)
        self._closed = False
        self._watched: dict[tuple[str, str], float] = {}  # a cell and its sign -> since when it has not changed
        self._uploaded: dict[Path, tuple[int, int]] = {}  # file -> modification time, size
        root = store.root_of(run)
        self._temporary = root is None
        with store.reported(f"cannot keep artifacts of run {self.run_id} of"):
            self.folder = root or spool(store.uri) / self.run_id
            self.folder.mkdir(parents=True, exist_ok=True)

    def cell(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str] | None = None,
        *,
        claimed: str | None = None,
    ) -> AbstractContextManager[RunWriter]:
        """Start a nested run (debug.role = cell) of the same kind, in the same experiment; see :meth:`Store.start`.

        ``claimed`` is the id of its run, as :meth:`claim` gave it.

        Raises:
            StillRunning: another process has taken the study over.
        """
        return self._cell(name, params, tags or {}, claimed)

    def claim(self, place: str, name: str) -> str | None:
        """The id of the run of a cell that this process is to carry out now: a new one, or the one that was not
        finished, taken up with what it has; None where it is finished, or another process carries it out."""
        Outbox.deliver_all(self._store)
        with one_at_a_time(self._store, self._experiment_id, self.run_id):
            there = {("tags", PARENT): self.run_id, ("tags", PLACE): place}
            found = self._store.search({self._experiment_id: self._experiment}, there, everything=True)
            runs = [run for run in found if SUPERSEDED not in run.data.tags]
            if any(run.info.status == "FINISHED" for run in runs) or not all(map(self._is_left, runs)):
                return None
            with self._reported("a cell"), uninterrupted():
                if not runs:
                    own = {"debug.role": "cell", PARENT: self.run_id, PLACE: place, heartbeat.TAG: heartbeat.sign()}
                    tags = {**checked_tags(self._tags), **own}
                    run = self._store.client.create_run(self._experiment_id, tags=tags, run_name=name)
                    return run.info.run_id
                [run_id, *earlier] = [run.info.run_id for run in reversed(runs)]
                for other in earlier:
                    self._store.client.set_tag(other, SUPERSEDED, "there is another of this place")
                mixed = {MIXED: self._tags[MIXED]} if MIXED in self._tags else {}
                self._store.set_tags(run_id, {heartbeat.TAG: heartbeat.sign(), **mixed})
                self._store.client.update_run(run_id, status="RUNNING")
                if "debug.error" in runs[-1].data.tags:
                    self._store.client.delete_tag(run_id, "debug.error")
                return run_id

    def _is_left(self, cell: Run) -> bool:
        """Whether no process carries a cell out. A sign from another machine is watched until it has not changed for
        long enough, whatever the clocks say."""
        sign = cell.data.tags.get(heartbeat.TAG)
        if cell.info.status in ENDED or sign is None:
            return True
        if heartbeat.is_here(sign):
            return heartbeat.alive(sign) is None or (
                heartbeat.is_mine(sign) and self._heart is not None and cell.info.run_id not in self._heart.cells
            )
        seen = self._watched.setdefault((cell.info.run_id, sign), time.monotonic())
        return time.monotonic() - seen > (heartbeat.LASTS if heartbeat.alive(sign) else 1.5 * heartbeat.EVERY)

    def share(self) -> None:
        """Let other processes carry this study out, too: :meth:`claim` says which cells are this one's."""
        assert self._heart is not None
        self._heart.shared = True

    def adopt(self, run_id: str) -> None:
        """Nest a study that was started apart under this run, as the MLflow UI shows it; it stays a study."""
        self._store.set_tags(run_id, {PARENT: self.run_id})

    @contextmanager
    def _cell(
        self, name: str, params: Mapping[str, object], tags: Mapping[str, str], claimed: str | None
    ) -> Iterator[RunWriter]:
        if self._heart is not None:
            self._store.patiently(self._heart.check)
        take_up = None if claimed is None else lambda: self._store.client.get_run(claimed)
        of = {**self._tags, **tags}
        with running(self._store, self._experiment, name, of, "cell", self.run_id, take_up, self._heart) as writer:
            if claimed is not None:
                writer.set_tags(tags)
                writer._fetch()
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
        values = {}
        for name, value in params.items():
            text = value if isinstance(value, str) else to_json(value, f"param {name!r}")
            if len(text) > MAX_PARAM:
                raise InputError(
                    f"param {name!r} has {len(text)} characters; MLflow keeps {MAX_PARAM}. Put it into config.json"
                )
            values[name] = text
        self.outbox.tell("params", values=values)

    def log_metrics(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Log metrics; None (null) is not logged.

        What a study that can be taken up, or a cell of it, has said already is not said again: a process may have been
        killed behind it, or another one have ended the same study.

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
            if self._said.get((name, step or 0)) != float(value):
                values.append([name, float(value), now, step or 0])
        self.outbox.tell("metrics", values=values)

    @cached_property
    def _said(self) -> dict[tuple[str, int], float]:
        """The metrics of a run that can be taken up, by name and step, as they are when this process logs its first."""
        if self._of_study is None or not self._of_study.shared:
            return {}
        found = {}
        with suppress(StoreAway), self._store.reported(f"cannot read metrics of run {self.run_id} from"):
            there = self._store.client.get_run(self.run_id).data.metrics
            for name in (each for each in there if not each.startswith("system/")):
                history = self._store.client.get_metric_history(self.run_id, name)
                found |= {(name, each.step): each.value for each in sorted(history, key=lambda each: each.timestamp)}
        return found

    def log_means(self, cells: Iterable[Mapping[str, float | None]]) -> None:
        """Log of a study what its cells found: the mean over cells of each metric of HEADLINES, where they have it."""
        metrics = list(cells)
        for name in HEADLINES:
            found = [value for cell in metrics if (value := cell.get(name)) is not None]
            self.log_metrics({name: sum(found) / len(found) if found else None})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Raises InputError for a value that is no text or too long, TrackingError where the store refuses."""
        self.outbox.tell("tags", values=checked_tags(tags))

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

    def kept_jsonl(self, name: str) -> list[dict[str, Json]]:
        """The records of a file that the run has from before it was taken up; a last line that was cut off is removed.

        Raises:
            TrackingError: it has others that are no records.
        """
        path = self.path_of(name)
        if not path.exists():
            return []
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._reported(name), path.open("r+b") as file:
                file.truncate(len(whole))
        records = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                records.append(from_json(line))
            except ValueError as error:
                raise TrackingError(f"run {self.run_id}, {name}: line {number} is no JSON: {error}") from error
        return records

    @property
    def files(self) -> Artifacts:
        """The files of its folder, as those of a run that is read."""
        return Artifacts(self._store, self._run, self.folder)

    def log_programs(self, pairs: Iterable[AnyPair]) -> None:
        """Write programs.json, which :attr:`LoggedRun.pairs` reads."""
        self.log_json("programs.json", {"schema": SCHEMA, "pairs": [pair.to_record() for pair in pairs]})

    def log_dataset(self, name: str, programs: Iterable[str], source: Mapping[str, object]) -> None:
        """Tell MLflow, as the run's dataset input, which programs it is about; ``source`` says where they came from."""
        programs = list(programs)
        told = {
            "name": name,
            "digest": provenance.text_digest(programs)[:MAX_DIGEST],
            "source_type": "programs",
            "source": to_json(source, "source"),
            "profile": to_json({"num_programs": len(programs)}, "profile"),
        }
        self.outbox.tell("dataset", values=told)

    def log_model(self, name: str, tags: Mapping[str, str]) -> None:
        """Tell MLflow, as the run's model input, which weights it is about: one logged model for a name and a digest
        of weights, in each experiment, whose page lists all runs on it. Nothing is uploaded. What has no weights has
        no model; a server that knows no logged models goes without."""
        digest = tags.get("debug.weights_digest")
        if digest is None or self.run_id in Outbox.waiting:
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
        """Upload what is new or changed in the folder, later where the store is away. Raises TrackingError where it
        refuses; the files then stay where they are."""
        if self.run_id in Outbox.waiting:
            self.outbox.keep(FILES)
            return
        try:
            self._upload()
        except StoreAway as away:
            logger.warning("%s. Going on; they are uploaded when it is back", away)
            self.outbox.keep(FILES)

    def _upload(self) -> None:
        for path, stamp in self._pending():
            name = path.relative_to(self.folder)
            folder = None if name.parent == Path() else name.parent.as_posix()
            with self._store.reported(f"cannot upload {name} of run {self.run_id} (kept in {self.folder}) to"):
                self._store.client.log_artifact(self.run_id, str(path), folder)
            self._uploaded[path] = stamp

    def _fetch(self) -> None:
        """Of a run that is taken up, the files that the store has and the folder has not: another machine began it."""
        if not self._temporary or any(self.folder.iterdir()):
            return
        with self._store.reported(f"cannot download what there is of run {self.run_id} from"):
            if self._store.client.list_artifacts(self.run_id):
                self._store.client.download_artifacts(self.run_id, "", str(self.folder))
        self._uploaded = dict(self._pending())

    def _pending(self) -> list[tuple[Path, tuple[int, int]]]:
        """The files that the store does not have, or not as they are now, each with its time and size."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file()) if self._temporary else []
        stamps = [(path, (path.stat().st_mtime_ns, path.stat().st_size)) for path in files]
        return [(path, stamp) for path, stamp in stamps if self._uploaded.get(path) != stamp]

    def remove_folder(self) -> None:
        """Remove the temporary folder, once it holds nothing that the store does not have."""
        self._closed = True
        if self._temporary and not self._pending():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _delivered(self) -> None:
        if self._closed:
            self.remove_folder()

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
    of_study: Heart | None = None,
) -> Iterator[RunWriter]:
    """A run that is begun here, or taken up, and ended however the context is left; see :meth:`Store.start`.

    A study that several processes carry out is ended by the one that leaves it last.
    """
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
                own[heartbeat.own_tag() if role == "study" else heartbeat.TAG] = heartbeat.sign()
                begin = take_up or partial(
                    store.client.create_run, experiment_id, tags={**checked_tags(tags), **own}, run_name=name
                )
                run = begin()
        if role == "study":
            heart = Heart(store, run.info.run_id)
        elif of_study is not None:
            of_study.cells.add(run.info.run_id)
        writer = RunWriter(store, run, experiment, tags, heart, of_study)
        try:
            yield writer
        except BaseException:
            try:
                writer.flush()
            except TrackingError as problem:  # the error that ended the run is the one to be seen
                logger.error("%s", problem)
            raise
        writer.flush()
        with suppress(StoreAway):  # it is told when it is back, unless another process has taken the run over by then
            if heart is not None:
                heart.check()
            elif of_study is not None:
                of_study.check_cell(run.info.run_id)
        _end(writer, run, heart, "FINISHED", {})
    except BaseException as error:
        if run is not None and not _is_lost(heart, of_study, run.info.run_id):
            killed = isinstance(error, KeyboardInterrupt | GeneratorExit | LeftToOthers)
            message = without_passwords(f"{type(error).__name__}: {error}")[:MAX_TAG]
            try:
                how = ("KILLED", {}) if killed else ("FAILED", {"debug.error": message})
                terminate(store, run, *how) if writer is None else _end(writer, run, heart, *how)
            except TrackingError as problem:
                logger.error("%s", problem)
        raise
    finally:
        if heart is not None:
            heart.stop()
        elif of_study is not None and run is not None:
            of_study.cells.discard(run.info.run_id)
        if writer is not None:
            writer.remove_folder()


def _is_lost(heart: Heart | None, of_study: Heart | None, run_id: str) -> bool:
    """Whether a study, or a cell of one, is another process's affair now."""
    if heart is not None:
        return heart.is_lost()
    return of_study is not None and of_study.is_lost(run_id)


def _end(writer: RunWriter, run: Run, heart: Heart | None, status: str, tags: Mapping[str, str]) -> None:
    """End a run, also where the store is away; a study that others go on with is left to them, unless it is done. No
    study is ended before its cells have told what they had to."""
    store, now = writer._store, int(1000 * time.time())
    with uninterrupted():
        if heart is not None:
            with suppress(StoreAway):
                Outbox.deliver_all(store)
        behind = heart is not None and status == "FINISHED" and Outbox.has_waiting(store)
        if heart is not None and heart.shared and not behind:
            try:
                with one_at_a_time(store, run.info.experiment_id, run.info.run_id):
                    there = store.client.get_run(run.info.run_id)
                    if status == "FINISHED" or not (heart.others() or there.info.status in ENDED):
                        terminate(store, run, status, tags)
                    store.delete_tags(run.info.run_id, [heartbeat.own_tag()])
                return
            except StoreAway:
                if status != "FINISHED":
                    logger.error("%s", _kept(store))
                    return
        tell = writer.outbox.keep if behind else writer.outbox.tell
        try:
            tell("tags", values=dict(tags))
        finally:
            tell("end", status=status, at=now)
    if heart is not None and Outbox.has_waiting(store):
        logger.error("%s", _kept(store))


def _kept(store: Connection) -> str:
    where = spool(store.uri)
    return f"the store {store} is away: what it was not told is kept in {where}; debug store sync delivers it"


def terminate(store: Connection, run: Run, status: str, tags: Mapping[str, str], at: int | None = None) -> None:
    """End a run, with tags that say how, now or at a time (Unix, milliseconds). Raises TrackingError where the store
    refuses."""
    with store.reported(f"cannot end run {run.info.run_id} as {status} in"), uninterrupted():
        try:
            store.client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()])
        finally:
            store.client.set_terminated(run.info.run_id, status, at)
