"""What a store is told of a run: at once, or, while it is away, kept in the spool and told in order when it is back.

Told twice it is the same: values carry their own times. So whatever is not known to have arrived is told again.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from debug.checks import from_json
from debug.kinds import Argument, Json
from debug.tracking import heartbeat
from debug.tracking.connection import Connection
from debug.tracking.contract import BATCH_METRICS, BATCH_OTHERS, StoreAway, TrackingError, chunks
from debug.tracking.places import spool

logger = logging.getLogger(__name__)


def _params(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    for chunk in chunks([Param(*each) for each in values.items()], BATCH_OTHERS):
        client.log_batch(run_id, params=chunk)


def _metrics(client: MlflowClient, run_id: str, values: list[list[Json]]) -> None:
    for chunk in chunks([Metric(*each) for each in values], BATCH_METRICS):
        client.log_batch(run_id, metrics=chunk)


def _tags(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    for chunk in chunks([RunTag(*each) for each in values.items()], BATCH_OTHERS):
        client.log_batch(run_id, tags=chunk)


def _dataset(client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
    dataset = DatasetInput(Dataset(**values), [InputTag("mlflow.data.context", "evaluation")])
    client.log_inputs(run_id, [dataset])


def _end(client: MlflowClient, run_id: str, status: str, at: int) -> None:
    client.set_terminated(run_id, status, at)


_TOLD: dict[str, Callable[..., None]] = {
    "params": _params,
    "metrics": _metrics,
    "tags": _tags,
    "dataset": _dataset,
    "end": _end,
}
FILES = "files"
"""Told where files of the run's folder are to be uploaded."""


class Outbox:
    """What is to be told of one run. ``upload`` uploads what is in its folder; ``delivered``: everything was told."""

    waiting: ClassVar[dict[str, Outbox]] = {}
    """By run id, those of this process with something in them."""

    def __init__(
        self, store: Connection, run_id: str, upload: Callable[[], None], delivered: Callable[[], None]
    ) -> None:
        self.store, self.run_id, self._upload, self._delivered = store, run_id, upload, delivered
        self.path: Path = spool(store.uri) / f"{run_id}.jsonl"
        self._lock = threading.RLock()

    def tell(self, what: str, **told: Argument) -> None:
        """Tell the store, or keep it while that is away. Raises TrackingError where the store refuses it."""
        with self._lock:
            if self.run_id not in self.waiting:
                try:
                    with self.store.reported(f"cannot log {what} of run {self.run_id} in"):
                        _TOLD[what](self.store.client, self.run_id, **told)
                    return
                except StoreAway as away:
                    logger.warning("%s. Going on; it is told when it is back", away)
            self.keep(what, **told)

    def keep(self, what: str, **told: Argument) -> None:
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                if not file.tell():
                    file.write(f"{heartbeat.sign()}\n")
                file.write(f"{json.dumps([what, told])}\n")
            self.waiting[self.run_id] = self

    def deliver(self) -> None:
        """Tell everything that is kept.

        Raises:
            StoreAway: it is away still.
            TrackingError: the store refuses it, or another process has taken the run over; it stays where it is.
        """
        with self._lock:
            if not self.path.exists():
                self.waiting.pop(self.run_id, None)
                return
            whole = self.path.read_bytes().rpartition(b"\n")[0]
            sign, *lines = whole.split(b"\n")
            with self.store.reported(f"cannot tell what is kept of run {self.run_id} ({self.path}) to"):
                tags = self.store.client.get_run(self.run_id).data.tags
                if not heartbeat.of_one_process(tags.get(heartbeat.TAG), sign.decode()):
                    raise TrackingError(f"another process has taken the run over since {self.path} was written")
                for line in lines:
                    what, told = from_json(line)
                    if what == FILES:
                        self._upload()
                    else:
                        _TOLD[what](self.store.client, self.run_id, **told)
            self.path.unlink()
            self.waiting.pop(self.run_id, None)
            self._delivered()

    @classmethod
    def _waiting_for(cls, store: Connection) -> list[Outbox]:
        return [each for each in cls.waiting.values() if each.store.uri == store.uri]

    @classmethod
    def has_waiting(cls, store: Connection) -> bool:
        """Whether this process has something to tell this store, whatever waits for others."""
        return bool(cls._waiting_for(store))

    @classmethod
    def deliver_all(cls, store: Connection) -> None:
        """Of this process, for one store; what that refuses stays in the spool, and keeps nothing else from being told.

        Raises:
            StoreAway: it is away still.
        """
        for outbox in cls._waiting_for(store):
            try:
                outbox.deliver()
            except StoreAway:
                raise
            except TrackingError as refused:
                logger.error("%s", refused)
                cls.waiting.pop(outbox.run_id, None)
