"""All runs of a store at once, for tables and comparisons, kept up to date at little cost."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

import polars as pl
import sqlalchemy
from mlflow.entities import Run

from debug.tracking.contract import ARCHIVED, BATCH_OTHERS, ENDED, LATEST, NOTE, PARENT, SUPERSEDED, chunks, own_tag
from debug.tracking.store import RUN_COLUMNS, Store

_TABLE_PARAMS = (
    "model",
    "label",
    "hops",
    "seq_len",
    "seed",
    "generator",
    "prompt_template",
    *("num_seqs", "few_shot", "chat", "scoring", "answer_parser"),
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
    *("num_samples", "pairs_used", "held_out_accuracy", "peak_layer"),
)


_TABLE_TAGS = {
    "debug.kind": "kind",
    "debug.role": "role",
    PARENT: "parent_run_id",
    "debug.model_path": "model_path",
    "debug.weights_digest": "weights_digest",
    "debug.rerun_of": "rerun_of",
    "debug.error": "error",
    "debug.legacy_timestamp": "legacy_timestamp",
}


_EDITED = {"archived": pl.String, "note": pl.String, "tags": pl.String}
"""What may change of a run that has ended, since people edit it: read anew each time."""
_SHORT = 300  # characters of a note in the table


_TABLE_COLUMNS = {
    **dict.fromkeys(("run_id", "name", "experiment", "experiment_id", "status"), pl.String),
    **dict.fromkeys(("start_time", "end_time"), pl.Int64),
    **dict.fromkeys(_TABLE_TAGS.values(), pl.String),
    **_EDITED,
    **{f"params.{name}": pl.String for name in _TABLE_PARAMS},
    **{f"metrics.{name}": pl.Float64 for name in _TABLE_METRICS},
}
_NO_COLUMN = ("_ci_low", "_ci_high", "_n")


_HAS_ENDED = pl.col("status").is_in(ENDED)
_CLOCKS_APART = 60_000  # milliseconds by which machines that log to one server are expected to differ at most
_ALL_SECONDS = 60  # a server's runs are all read again no sooner than after that,
_ALL_SHARE = 20  # nor after this many times what reading them took


class RunTable:
    """Every run of a store with what tables and comparisons show of it, kept up to date at little cost.

    ``frame`` has a row a run, newest first: run_id, name, experiment, experiment_id, kind, role, status, start_time
    (UTC), made (the same, of an imported run the time that its files state), duration (seconds), parent_run_id,
    model_path, weights_digest, rerun_of, error, archived (when, else null; a cell's study's, too), note (its
    beginning), tags (people's own, in one text), and some columns ``params.*`` and ``metrics.*``, the same for every
    store; the runs that :meth:`Store.find_runs` lists. Databases are asked directly, in some ten queries over all runs;
    what a server keeps comes through MLflow's client. May be shared between threads.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.frame = self._sorted(pl.DataFrame(schema=_TABLE_COLUMNS))
        self._rows = pl.DataFrame(schema=_TABLE_COLUMNS)
        self._lock = threading.Lock()
        self._stamp: object = None
        self._looked = 0  # when a server was read, in milliseconds since 1970 by this machine's clock
        self._all_again = 0.0  # when all of it is to be read again, of time.monotonic()
        self._columns: dict[str, pl.DataFrame] = {}  # of :meth:`column`, as long as the frame is this one

    def refresh(self) -> bool:
        """Read what is new or has changed since the last time; whether that was anything.

        Every run's own row is read (name, status, times) and what people edit (notes, tags, archived), params, metrics
        and other tags those of runs that are new or were not ended. Of a server not every run is read each time: see
        :meth:`_from_server`, and :meth:`edited`.

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
                self._rows, self.frame, self._columns = rows, frame, {}
            self._stamp = stamp
            return changed

    def edited(self) -> None:
        """After a change of a run that has ended: what a server keeps is all read again the next time."""
        self._all_again = 0.0

    def names(self) -> list[str]:
        """What :meth:`column` can be asked for: ``params.*`` and ``metrics.*`` of any run, intervals, numbers and
        curves left out. Of a server those of its newest 200 runs.

        Raises:
            TrackingError: the store cannot be read.
        """
        if self.store.uri.startswith("http"):
            runs = list(islice(self.store.search(self.store.experiments(), {}, page=200), 200))
            found = {f"params.{name}" for run in runs for name in run.data.params}
            found |= {f"metrics.{name}" for run in runs for name in run.data.metrics}
        elif not self.store.exists():
            return []
        else:
            found = set()
            with self.store.reported("cannot read"), self._engine().connect() as connection:
                for table, kind in (("params", "params"), ("latest_metrics", "metrics")):
                    # One step in the index of (key, run) for each name; DISTINCT would read millions of rows.
                    query = (
                        f"WITH RECURSIVE names(name) AS (SELECT MIN(key) FROM {table} UNION ALL SELECT "
                        f"(SELECT MIN(key) FROM {table} WHERE key > name) FROM names WHERE name IS NOT NULL) "
                        "SELECT name FROM names WHERE name IS NOT NULL"
                    )
                    found |= {f"{kind}.{name}" for name in connection.execute(sqlalchemy.text(query)).scalars()}
        return sorted(name for name in found if not name.endswith(_NO_COLUMN) and "_by_layer/" not in name)

    def column(self, name: str) -> pl.DataFrame:
        """run_id and ``name``: the values of one of :meth:`names`, of the runs that have it. Kept until a run changes.

        Raises:
            TrackingError: the store cannot be read.
        """
        kind, _, key = name.partition(".")
        schema = {"run_id": pl.String, name: pl.Float64 if kind == "metrics" else pl.String}
        if name in self.frame.columns:
            return self.frame.select("run_id", name).drop_nulls()
        if (known := self._columns.get(name)) is not None:
            return known
        if self.store.uri.startswith("http"):
            runs = self.store.search(self.store.experiments(), {})
            rows = [(run.info.run_id, getattr(run.data, kind).get(key)) for run in runs]
        else:
            of = sqlalchemy.table(
                "latest_metrics" if kind == "metrics" else kind, *map(sqlalchemy.column, ("run_uuid", "key", "value"))
            )
            with self.store.reported("cannot read"), self._engine().connect() as connection:
                rows = connection.execute(sqlalchemy.select(of.c.run_uuid, of.c.value).where(of.c.key == key)).all()
        found = pl.DataFrame([tuple(row) for row in rows], schema=schema, orient="row", strict=False).drop_nulls()
        self._columns[name] = found
        return found

    def _engine(self) -> sqlalchemy.Engine:
        return sqlalchemy.create_engine(self.store.uri, poolclass=sqlalchemy.NullPool)

    def _stamp_now(self) -> object:
        """Differs where a SQLite store was written to; None for what cannot be told."""
        if (database := self.store.database) is None:
            return None
        stats = []
        for path in (database, Path(f"{database}-wal")):
            with suppress(OSError):
                stats.append((path.stat().st_mtime_ns, path.stat().st_size))
        return tuple(stats)

    def _from_database(self) -> pl.DataFrame:
        if not self.store.exists():
            return pl.DataFrame(schema=_TABLE_COLUMNS)
        with self.store.reported("cannot read"), self._engine().connect() as connection:
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
            edited = self._edited(connection)
        kept = known.join(same.drop(known.columns[1:]), on="run_id", how="inner")
        every = pl.concat(
            [frame.select(name for name in _TABLE_COLUMNS if name not in _EDITED) for frame in (kept, changed)]
        )
        return every.join(edited, on="run_id", how="left").select(*_TABLE_COLUMNS)

    @staticmethod
    def _edited(connection: sqlalchemy.Connection) -> pl.DataFrame:
        """run_id and the columns of _EDITED, of every run that has one."""
        of = sqlalchemy.table("tags", *map(sqlalchemy.column, ("run_uuid", "key", "value")))
        own = of.c.key.in_([ARCHIVED, NOTE]) | ~(of.c.key.startswith("mlflow.") | of.c.key.startswith("debug."))
        short = sqlalchemy.func.substr(of.c.value, 1, _SHORT)
        rows = connection.execute(sqlalchemy.select(of.c.run_uuid, of.c.key, short).where(own)).all()
        tags = pl.DataFrame(rows, schema={"run_id": pl.String, "key": pl.String, "value": pl.String}, orient="row")
        archived, note = (
            tags.filter(pl.col("key") == key).select("run_id", pl.col("value").alias(name))
            for key, name in ((ARCHIVED, "archived"), (NOTE, "note"))
        )
        others = tags.filter(~pl.col("key").is_in([ARCHIVED, NOTE])).sort("key")
        text = pl.format("{}={}", "key", "value").str.join(", ").alias("tags")
        found = archived.join(note, on="run_id", how="full", coalesce=True)
        return found.join(others.group_by("run_id").agg(text), on="run_id", how="full", coalesce=True)

    @staticmethod
    def _with(
        connection: sqlalchemy.Connection, runs: pl.DataFrame, table: str, columns: Mapping[str, str], everything: bool
    ) -> pl.DataFrame:
        """The runs with a column for each of these keys of a table of (run_uuid, key, value)."""
        number = table == "latest_metrics"
        names = ("run_uuid", "key", "value", *(["is_nan"] if number else []))
        of = sqlalchemy.table(table, *map(sqlalchemy.column, names))
        query = sqlalchemy.select(of).where(of.c.key.in_(list(columns)))
        parts = (
            [query]
            if everything
            else [query.where(of.c.run_uuid.in_(ids)) for ids in chunks(runs["run_id"].to_list(), 500)]
        )
        rows = [row for part in parts for row in connection.execute(part)]
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
        experiments, begun, looked = self.store.experiments(), time.monotonic(), int(1000 * time.time())

        def rows(also: str = "") -> pl.DataFrame:
            found = (self._row(run, experiments) for run in self.store.search(experiments, {}, also=also))
            return pl.DataFrame(list(found), schema=_TABLE_COLUMNS)

        if self._rows.is_empty() or begun >= self._all_again:
            now = rows()
            self._all_again = begun + max(_ALL_SECONDS, _ALL_SHARE * (time.monotonic() - begun))
        else:
            newest: int = self._rows["start_time"].max() or 0  # type: ignore[assignment]  (milliseconds)
            started = rows(f"attributes.start_time >= {min(newest, self._looked) - _CLOCKS_APART}")
            going_on = [rows(f"attributes.status = '{status}'") for status in ("RUNNING", "SCHEDULED")]
            new = pl.concat([started, *going_on]).unique("run_id", keep="last")
            unknown = ~pl.col("run_id").is_in(new["run_id"].implode())
            kept, ended = (self._rows.filter(unknown, each) for each in (_HAS_ENDED, ~_HAS_ENDED))
            ids = [
                ", ".join(f"'{run_id}'" for run_id in chunk)
                for chunk in chunks(ended["run_id"].to_list(), BATCH_OTHERS)
            ]
            now = pl.concat([kept, new, *(rows(f"attributes.run_id IN ({chunk})") for chunk in ids)])
        self._looked = looked
        of = self.store.search(
            experiments, {("tags", SUPERSEDED): None}, also=f"tags.`{SUPERSEDED}` != ''", everything=True
        )
        return now.filter(~pl.col("run_id").is_in([run.info.run_id for run in of]))

    @staticmethod
    def _row(run: Run, experiments: Mapping[str, str]) -> dict[str, object]:
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
            "archived": data.tags.get(ARCHIVED),
            "note": data.tags.get(NOTE, "")[:_SHORT] or None,
            "tags": ", ".join(f"{key}={data.tags[key][:_SHORT]}" for key in sorted(data.tags) if own_tag(key)) or None,
            **{f"params.{name}": data.params.get(name) for name in _TABLE_PARAMS},
            **{f"metrics.{name}": data.metrics.get(name) for name in _TABLE_METRICS},
        }

    @staticmethod
    def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
        """Newest first, and each rate with its own n, where that is known."""
        ns = [pl.coalesce(f"metrics.{rate}_n", f"metrics.{of}") for rate, of in _N_BEFORE.items()]
        started = pl.when(pl.col("start_time").is_between(0, LATEST)).then("start_time")
        started = started.cast(RUN_COLUMNS["start_time"]).alias("start_time")
        duration = ((pl.col("end_time") - pl.col("start_time")) / 1000).alias("duration")
        stated = pl.col("legacy_timestamp").str.to_datetime("%Y%m%d_%H%M%S", strict=False, time_unit="ms")
        made = pl.coalesce(stated.dt.replace_time_zone("UTC"), started).alias("made")
        of_study = rows.filter(pl.col("archived").is_not_null()).select("run_id", of_study="archived")
        return (
            rows.sort("start_time", "run_id", descending=True, nulls_last=True)
            .join(of_study, left_on="parent_run_id", right_on="run_id", how="left", maintain_order="left")
            .with_columns(started, made, duration, *ns, archived=pl.coalesce("archived", "of_study"))
            .drop("end_time", "legacy_timestamp", "of_study")
        )


def own_n(rate: str, metrics: Mapping[str, float]) -> int | None:
    """Of how many things a run's rate is the share; None where that was not logged."""
    n = metrics.get(f"{rate}_n", metrics.get(_N_BEFORE.get(rate, ""), math.nan))
    return int(n) if math.isfinite(n) else None
