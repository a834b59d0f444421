"""A SQLite store that was moved or copied: what MLflow recorded about where its artifacts are, corrected."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlalchemy
from filelock import FileLock

from debug.tracking.connection import Connection
from debug.tracking.contract import ARTIFACTS
from debug.tracking.places import local_path, location_of, place_in_store

logger = logging.getLogger(__name__)


def relocate(store: Connection) -> int:
    """Write where the artifacts are now into the database of a SQLite store that was moved; how many were changed.

    This project reads a moved store as it is. MLflow's own UI and client follow the paths that MLflow recorded, and
    so would new runs: `debug mlflow` and :meth:`start` call this, and a warning says what was changed.

    Raises:
        TrackingError: the store cannot be opened or written.
    """
    if store.database is None or not store.exists():
        return 0
    home = store.database.parent
    changed, elsewhere, before = 0, 0, ""
    engine = sqlalchemy.create_engine(store.uri, poolclass=sqlalchemy.NullPool)
    with (
        store.reported("cannot correct artifact locations in"),
        FileLock(f"{store.database}.lock"),
        engine.begin() as connection,
    ):
        for table, key, column in (
            ("experiments", "experiment_id", "artifact_location"),
            ("runs", "run_uuid", "artifact_uri"),
        ):
            # Of thousands of runs those that are where they should be are not even read.
            own = f"|| '/' || {key} || '/{ARTIFACTS}'" if table == "runs" else ""
            places = [f"? || '/{ARTIFACTS}' {own}", f"? || '/{ARTIFACTS}/' || experiment_id {own}"]
            homes = dict.fromkeys([location_of(home), location_of(home.resolve())])
            right = ", ".join(places * len(homes))
            rows = connection.exec_driver_sql(
                f"SELECT {key}, experiment_id, {column} FROM {table} WHERE {column} NOT IN ({right})",
                tuple(each for of in homes for each in (of, of)),
            ).all()
            for row_id, experiment_id, location in rows:
                if (recorded := local_path(location)) is None:
                    continue
                tail = place_in_store(recorded, str(experiment_id), row_id if table == "runs" else None)
                if tail is None:
                    elsewhere += not recorded.resolve().is_relative_to(home.resolve())
                elif (now := home.joinpath(*tail)).resolve() != recorded.resolve():
                    update = f"UPDATE {table} SET {column} = ? WHERE {key} = ?"
                    connection.exec_driver_sql(update, (location_of(now), row_id))
                    changed, before = changed + 1, str(Path(*recorded.parts[: -len(tail)]))
    if changed:
        logger.warning(
            "the store %s was moved or copied from %s: %d artifact locations in its database now name %s",
            store.database, before, changed, home,
        )  # fmt: skip
    if elsewhere:
        logger.warning("%d artifact locations of %s are outside of its folder and stay", elsewhere, store.database)
    return changed
