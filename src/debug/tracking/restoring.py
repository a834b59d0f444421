"""A run made again from the record of another store's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from debug.kinds import Json
from debug.tracking.connection import Connection
from debug.tracking.contract import BATCH_METRICS, PARENT, chunks, kept_tag
from debug.tracking.moving import relocate
from debug.tracking.places import inside
from debug.tracking.writing import RunWriter, terminate


def restore(
    store: Connection, record: Mapping[str, Json], folders: Mapping[str, Path], parent: str | None = None
) -> str:
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
    own = {name: value for name, value in record["tags"].items() if kept_tag(name)}
    own |= {"debug.exported_from": old} | ({PARENT: parent} if parent else {})
    with store.reported(f"cannot restore run {old} in"):
        if parent is None:
            relocate(store)
        experiment_id = store.experiment_id(record["experiment"], cells=record["tags"].get("debug.role") == "cell")
        run = store.client.create_run(experiment_id, record["start_time"], own, record["name"])
    writer = RunWriter(store, run, record["experiment"], {})
    try:
        writer.log_params(record["params"])
        with store.reported(f"cannot restore run {old} in"):
            points = [Metric(name, value, time, step) for name, value, time, step in record["metrics"]]
            for chunk in chunks(points, BATCH_METRICS):
                store.client.log_batch(writer.run_id, metrics=chunk)
            inputs = [
                DatasetInput(
                    Dataset(each["name"], each["digest"], "programs", each["source"], profile=each["profile"]),
                    [InputTag("mlflow.data.context", "evaluation")],
                )
                for each in record["datasets"]
            ]
            if inputs:
                store.client.log_inputs(writer.run_id, inputs)
            for name in record["files"]:
                shutil.copyfile(inside(folders[old], name, f"run {old}"), writer.path_of(name))
        writer.flush()
        for child in record["children"]:
            restore(store, child, folders, writer.run_id)
        with store.reported(f"cannot restore run {old} in"):
            store.client.set_terminated(writer.run_id, record["status"], record["end_time"])
    except BaseException:
        terminate(store, run, "FAILED", {"debug.error": f"the restoration of run {old} was not finished"})
        raise
    finally:
        writer.remove_folder()
    return writer.run_id
