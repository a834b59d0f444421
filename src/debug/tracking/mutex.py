"""One process at a time, on whatever machine: a mutex that the store keeps, as tags of an experiment.

No kind of store compares and sets a value at once, but all show what was written to whoever reads afterwards. So each
says first that it wants to enter, then looks, and enters where it sees nobody else: of two at least the one that looks
last sees the other. Where it sees somebody inside, or somebody of a smaller name who wants to enter, it withdraws.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from mlflow.exceptions import MlflowException

from debug.checks import from_json
from debug.tracking import heartbeat

if TYPE_CHECKING:
    from debug.tracking.connection import Connection

_TAG = "debug.mutex"
_INSIDE = "inside"


@contextmanager
def one_at_a_time(store: Connection, experiment_id: str, name: str) -> Iterator[None]:
    """Whoever enters with this name of an experiment waits until all others have left, or are gone. What is done inside
    must be short against ``heartbeat.LASTS``: whoever stays for so long is taken for gone.

    Raises:
        TrackingError: the store cannot be read or written.
    """
    prefix = f"{_TAG}.{name}."
    own = f"{prefix}{uuid4().hex[:12]}"
    watched: dict[tuple[str, str], float] = {}

    def say(inside: bool) -> None:
        said = from_json(heartbeat.sign().encode()) | {_INSIDE: inside}
        store.client.set_experiment_tag(experiment_id, own, json.dumps(said))

    def others() -> dict[str, bool]:
        """Who else is there, and whether inside."""
        found, now = {}, time.monotonic()
        for tag, sign in store.client.get_experiment(experiment_id).tags.items():
            if not tag.startswith(prefix) or tag == own:
                continue
            since = watched.setdefault((tag, sign), now)
            if now - since > heartbeat.LASTS or (heartbeat.is_here(sign) and heartbeat.alive(sign) is None):
                _remove(store, experiment_id, tag)
            else:
                found[tag] = bool((heartbeat.read(sign) or {}).get(_INSIDE))
        return found

    with store.reported("cannot wait for other processes in"):
        try:
            say(False)
            while there := others():
                if any(inside or tag < own for tag, inside in there.items()):
                    _remove(store, experiment_id, own)
                    time.sleep(random.uniform(0.01, 0.1))
                    say(False)
                else:
                    time.sleep(0.01)  # they will see this one, and withdraw, or were first
            say(True)
        except BaseException:
            with suppress(Exception):
                _remove(store, experiment_id, own)
            raise
    try:
        yield
    finally:
        with store.reported("cannot let other processes go on in"):
            _remove(store, experiment_id, own)


def _remove(store: Connection, experiment_id: str, tag: str) -> None:
    with suppress(MlflowException):  # another one was first
        store.client.delete_experiment_tag(experiment_id, tag)
