"""The signs of life of this process on what it carries out, from a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from typing import ClassVar

from mlflow.entities import Metric
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from debug.tracking import heartbeat
from debug.tracking.connection import Connection
from debug.tracking.contract import StillRunning, StoreAway, TrackingError
from debug.tracking.outbox import Outbox

logger = logging.getLogger(__name__)
_AWAY = 5.0  # seconds after which a store that is away is asked again


class Heart:
    """Says, while this process carries out a study and cells of it, that it is there; and how busy the machine is:
    MLflow's system metrics, of a study that lasts longer than the first beat.
    ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false`` keeps them out."""

    running: ClassVar[set[str]] = set()  # what this process carries out
    begun: ClassVar[bool] = False  # whether it ever did

    def __init__(self, store: Connection, run_id: str) -> None:
        self._store, self._run_id, self._stopped = store, run_id, threading.Event()
        self._system: SystemMetricsMonitor | None = None
        self.cells: set[str] = set()
        """Those that this process is carrying out."""
        self.shared = False
        """Whether other processes may carry the study out, too."""
        self.running.add(run_id)
        Heart.begun = True
        threading.Thread(target=self._beat, name=f"heartbeat of {run_id}", daemon=True).start()

    def _beat(self) -> None:
        while not self._stopped.wait(_AWAY if Outbox.waiting else heartbeat.EVERY):
            try:
                Outbox.deliver_all(self._store)
                self.check()
                self._store.client.set_tag(self._run_id, heartbeat.own_tag(), heartbeat.sign())
                for cell in tuple(self.cells):
                    self.check_cell(cell)
                    self._store.client.set_tag(cell, heartbeat.TAG, heartbeat.sign())
                self._log_system()
            except StoreAway as away:
                logger.debug("%s", away)
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
        if not heartbeat.is_mine(self._tags(self._run_id).get(heartbeat.own_tag())):
            others = ", ".join(self.others()) or "another process"
            raise StillRunning(f"run {self._run_id} was taken over by {others}")

    def check_cell(self, run_id: str) -> None:
        """Raises StillRunning where another process has taken the cell, of which nothing was heard for long."""
        sign = self._tags(run_id).get(heartbeat.TAG)
        if not heartbeat.is_mine(sign):
            raise StillRunning(f"cell {run_id} was taken over by {heartbeat.alive(sign) or 'another process'}")

    def others(self) -> list[str]:
        """The other processes that carry the study out, in words."""
        signs = heartbeat.signs(self._tags(self._run_id))
        return [alive for sign in signs if not heartbeat.is_mine(sign) and (alive := heartbeat.alive(sign))]

    def _tags(self, run_id: str) -> dict[str, str]:
        with self._store.reported(f"cannot read run {run_id} from"):
            return self._store.client.get_run(run_id).data.tags

    def is_lost(self, cell: str | None = None) -> bool:
        """Whether the study, or a cell of it, and its status are another process's affair now."""
        with suppress(TrackingError):
            try:
                self.check()
                if cell is not None:
                    self.check_cell(cell)
            except StillRunning:
                return True
        return False

    def stop(self) -> None:
        self._stopped.set()
        self.running.discard(self._run_id)
