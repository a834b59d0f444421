"""Runs in the tracking store: written while they happen, found again, and read back with every record checked.

The only package that imports mlflow. It holds DESIGN.md's tracking contract, schema 1: which store, which tags, which
artifacts. Knows no model, no engine and no picture; imports no torch. Nothing that is read is executed or unpickled.

    with Store().start("my experiment", "tiny · study", kind="accuracy") as study:
        with study.cell("tiny · 3 hops · 17 lines", {"model": "tiny", "hops": 3}) as cell:
            cell.log_metrics({"accuracy": 0.97})
    load_run(study.run_id).children[0].metrics["accuracy"]
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from debug import lazy

# MLflow reads these when it is imported or asked. Its usage statistics would leave the machine, and its seven retries
# keep a mistyped server address waiting for four minutes. Whoever has set them otherwise is left alone.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # of a server it would print the address as it is
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")

if TYPE_CHECKING:
    from debug.tracking.artifacts import Arrays, Maps, Patterns, part_of
    from debug.tracking.connection import Connection
    from debug.tracking.contract import (
        ARCHIVED,
        ENDED,
        KINDS,
        LATEST,
        MIXED,
        NOTE,
        PLACE,
        SCHEMA,
        SUPERSEDED,
        LeftToOthers,
        StillRunning,
        StoreAway,
        TrackingError,
        own_tag,
    )
    from debug.tracking.mutex import one_at_a_time
    from debug.tracking.places import store_uri
    from debug.tracking.reading import LoggedRun
    from debug.tracking.store import Store, find_runs, load_programs, load_run
    from debug.tracking.table import RunTable, own_n
    from debug.tracking.writing import RunWriter, uninterrupted

__getattr__, __dir__, __all__ = lazy.names_of(__name__, __file__)
