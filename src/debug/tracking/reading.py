"""A run as the store has it: params, metrics, samples, programs, causal maps; every record checked as it is read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from mlflow.entities import Run

from debug import checks, provenance
from debug.causal_map import AttentionPattern, CausalMap, mean_over_pairs
from debug.checks import from_json
from debug.counterfactual import make_pair
from debug.kinds import Argument, Json
from debug.programs import AnyPair, ProgramError, as_given, pair_from_record
from debug.provenance import without_passwords
from debug.records import Answer, validated
from debug.tracking import heartbeat
from debug.tracking.artifacts import Arrays, Artifacts, Maps, Patterns
from debug.tracking.connection import Connection
from debug.tracking.contract import (
    ENDED,
    PARENT,
    PLACE,
    SCHEMA,
    SUPERSEDED,
    TrackingError,
    kept_tag,
    seconds_of,
    time_of,
)
from debug.tracking.heart import Heart
from debug.tracking.samples import DTYPES, NOT_RECORDED, NULLABLE, SAMPLE, SAMPLE_OF_PAIR, sample_with_empty

if TYPE_CHECKING:
    import altair as alt

logger = logging.getLogger(__name__)


class LoggedRun(Artifacts):
    """A run as the store has it. Artifacts are read when asked for, and checked; a broken one raises TrackingError.

    Artifacts that lie in a folder of this machine are read there; others are downloaded once, into a temporary folder
    that lives as long as this object.
    """

    def __init__(self, store: Connection, run: Run, experiment: str) -> None:
        """Raises TrackingError where the run was written by a newer version of this project."""
        tags = run.data.tags
        super().__init__(store, run)
        self.experiment = experiment
        self.status: str = run.info.status
        self.kind: str | None = tags.get("debug.kind")
        self.role: str | None = tags.get("debug.role")
        self.parent_run_id: str | None = tags.get(PARENT)
        self.params: dict[str, str] = dict(run.data.params)
        self.metrics: dict[str, float] = dict(run.data.metrics)
        """The last value of each; of a stepped metric that of its highest step."""
        self.tags: dict[str, str] = dict(tags)
        self.start_time = time_of(run.info.start_time)
        self.duration: float | None = seconds_of(run)
        """Seconds; None while the run goes on."""
        schema = tags.get("debug.schema", str(SCHEMA))  # somebody else's run has none, and is read as far as it goes
        if not re.fullmatch("[0-9]{1,9}", schema):
            raise TrackingError(f"run {self.run_id}: the tag debug.schema is {schema!r:.80}; expected a number")
        if int(schema) > SCHEMA:
            raise TrackingError(
                f"run {self.run_id} was written in schema {schema} of the tracking contract and this version of the "
                f"project reads up to {SCHEMA}; update the project to read it"
            )

    def __repr__(self) -> str:
        return f"LoggedRun({self.run_id!r}, {self.name!r}, {self.kind}, {self.status})"

    def plot(self, **settings: Argument) -> alt.TopLevelMixin:
        """The picture of the mean of its maps; ``settings`` as :meth:`MeanCausalMap.plot` takes them.

        Raises CausalMapError where it has no maps, or none that can be averaged.
        """
        return mean_over_pairs(self.maps).plot(**settings)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page of a study, see :func:`debug.report.report`."""
        return import_module("debug.report").body(self)

    @property
    def children(self) -> list[LoggedRun]:
        """The runs nested in this one, in the order in which they were started, without superseded ones: of cells in
        one place of a study (which earlier versions left without that tag) the last that was finished counts."""
        runs = [run for run in self.all_children() if SUPERSEDED not in run.data.tags]
        in_place: dict[str, Run] = {}
        for run in runs:
            place = run.data.tags.get(PLACE, run.info.run_id)
            if place not in in_place or run.info.status == "FINISHED" or in_place[place].info.status != "FINISHED":
                in_place[place] = run
        counted = {run.info.run_id for run in in_place.values()}
        return [LoggedRun(self.store, run, self.experiment) for run in runs if run.info.run_id in counted]

    @property
    def parent(self) -> LoggedRun:
        """The run that this one is nested in. Raises TrackingError where there is none."""
        with self.store.reported(f"cannot read the parent of run {self.run_id} from"):
            return LoggedRun(self.store, self.store.client.get_run(self.parent_run_id or ""), self.experiment)

    def all_children(self) -> list[Run]:
        ids = {self._run.info.experiment_id: self.experiment}
        order = "attributes.start_time ASC"
        return list(self.store.search(ids, {("tags", PARENT): self.run_id}, order, everything=True))

    @property
    def owner(self) -> str | None:
        """Which process carries the run out, in words, where there is a sign of life (a study may have several); None
        where it may be taken up."""
        if self.status in ENDED:
            return None
        signs = heartbeat.signs(self.tags)
        gone = self.role == "study" and self.run_id not in Heart.running  # this process has left it
        alive = [heartbeat.alive(sign) for sign in signs if not (gone and heartbeat.is_mine(sign))]
        return "; ".join(filter(None, alive)) or None

    def curves(self, prefix: str = "") -> pl.DataFrame:
        """Every logged value of the metrics whose names begin with ``prefix``: metric, step, value, sorted."""
        rows = []
        with self.store.reported(f"cannot read metrics of run {self.run_id} from"):
            for name in sorted(name for name in self.metrics if name.startswith(prefix)):
                history = self.store.client.get_metric_history(self.run_id, name)
                history.sort(key=lambda point: (point.step, point.timestamp))
                rows += [(name, point.step, point.value) for point in history]
        return pl.DataFrame(
            rows, schema={"metric": pl.String, "step": pl.Int64, "value": pl.Float64}, orient="row", strict=False
        )

    @property
    def environment(self) -> dict[str, str | None]:
        """How the run was computed: versions, dtype, device, digests of weights and tokenizer, commit, threads."""
        return provenance.environment(self.params, self.tags)

    @property
    def datasets(self) -> list[dict[str, Json]]:
        """The run's dataset inputs: name, digest, and their source as :meth:`RunWriter.log_dataset` got it."""
        inputs = self._run.inputs.dataset_inputs if self._run.inputs else []
        datasets = [each.dataset for each in inputs]
        return [{name: getattr(each, name) for name in ("name", "digest", "source", "profile")} for each in datasets]

    def record(self) -> dict[str, Json]:
        """All that MLflow holds of the run, as JSON values, with every artifact's size and SHA-256, and its children.

        :meth:`Store.restore` makes the run again from it.
        """
        metrics = []
        with self.store.reported(f"cannot read metrics of run {self.run_id} from"):
            for name in sorted(self.metrics):
                history = self.store.client.get_metric_history(self.run_id, name)
                metrics += [[name, point.value, point.timestamp, point.step] for point in history]
        files = {}
        for name in self.artifacts():
            path = self.artifact(name)
            files[name] = {"size": path.stat().st_size, "sha256": provenance.file_digest(path)}
        return {
            "run_id": self.run_id,
            "name": self.name,
            "experiment": self.experiment,
            "status": self.status,
            "start_time": self._run.info.start_time,
            "end_time": self._run.info.end_time,
            "params": self.params,
            "tags": {name: without_passwords(value) for name, value in self.tags.items() if kept_tag(name)},
            "metrics": sorted(metrics),
            "datasets": self.datasets,
            "files": files,
            "children": [child.record() for child in self.children],
        }

    @cached_property
    def samples(self) -> pl.DataFrame:
        """samples.jsonl, a row a sample: seed, seq_len, hops, program, prompt, expected, raw_output, parsed, correct,
        chain, error; those of pairs have counterfactual and {expected,raw_output,correct}_counterfactual beside them.

        Answers are integers, or booleans, where all of the run's are; else texts.
        """
        records = list(self.sample_records())
        of_pairs = any(not record.keys().isdisjoint(SAMPLE_OF_PAIR) for record in records)
        fields = SAMPLE | (SAMPLE_OF_PAIR if of_pairs else {})
        values = {name: [record.get(name) for record in records] for name in fields}
        answers = [name for name, kind in fields.items() if kind is Answer]
        kinds = {type(value) for name in answers for value in values[name]} - {type(None)}
        dtypes = {name: DTYPES.get(kind) for name, kind in fields.items()}
        for name in answers:
            if kinds <= {int} or kinds == {bool}:
                dtypes[name] = pl.Boolean if kinds == {bool} else pl.Int64
            else:
                dtypes[name] = pl.String
                values[name] = [None if value is None else str(value) for value in values[name]]
        return pl.DataFrame(values, schema=dtypes)

    def sample_records(self) -> Iterator[dict[str, Json]]:
        """The records of samples.jsonl, checked, one at a time."""
        name = "samples.jsonl"
        with self.artifact(name).open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(checks.LONGEST_LINE + 1), b""), 1):
                if len(line) > checks.LONGEST_LINE:
                    raise self.broken(name, f"line {number} has more than {checks.LONGEST_LINE:,} bytes")
                try:
                    record = from_json(line)
                except ValueError as error:
                    if line.startswith(b"{") and not line.endswith(b"\n"):  # it is written, or the disk was full
                        if self.status != "RUNNING":
                            logger.warning(
                                "run %s (%s), %s: the last line was cut off: %d bytes, after %d whole samples, are "
                                "not read",
                                *(self.run_id, self.name, name, len(line), number - 1),
                            )
                        return
                    raise self.broken(name, f"line {number} is no JSON: {error}") from error
                if not isinstance(record, dict):
                    raise self.broken(name, f"line {number} is {record!r:.80}; expected a JSON object")
                # A sample that was not run leaves fields empty, and so does one of which they were not recorded.
                nullable = NULLABLE | (NOT_RECORDED if self.kind == "imported" else frozenset())
                kind = sample_with_empty(nullable if record.get("error") is None else frozenset(SAMPLE))
                validated(kind, record, lambda told, number=number: self.broken(name, f"line {number}: {told}"))
                yield record

    @cached_property
    def pairs(self) -> list[AnyPair]:
        """programs.json: the pairs of the run, in the order in which causal maps number them."""
        name = "programs.json"
        content = self.json_object(name)
        schema, records = content.get("schema"), content.get("pairs")
        if not isinstance(schema, int) or schema > SCHEMA:
            raise self.broken(name, f"field 'schema' is {schema!r:.80}; this version reads up to {SCHEMA}")
        if not isinstance(records, list):
            raise self.broken(name, f"field 'pairs' is {records!r:.80}; expected a list")
        pairs = []
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise self.broken(name, f"pair {index} is {record!r:.80}; expected a JSON object")
            try:
                pairs.append(pair_from_record(record))
            except ProgramError as error:
                raise self.broken(name, f"pair {index}: {error}") from error
        return pairs

    @property
    def programs(self) -> list[AnyPair]:
        """The pairs that the run is about, of all cells where it is a study: what `run_intervention_experiment` takes.

        Of an accuracy run they are its programs with the counterfactuals that their seeds give.

        Raises:
            TrackingError: it has none, or its programs are no pairs (those of another task, say).
        """
        if self.role == "study":
            return [pair for child in self.children for pair in child.programs]
        if "programs.json" in self.artifacts():
            return self.pairs
        pairs = []
        for number, sample in enumerate(self.sample_records(), 1):
            if sample["program"] is None:  # its generator failed
                continue
            try:
                pairs.append(make_pair(sample["program"], sample["seed"]))
            except ProgramError as error:
                raise self.broken("samples.jsonl", f"line {number} has no program to patch: {error}") from error
        return pairs

    @property
    def reference(self) -> list[str | dict[str, Json]]:
        """The programs that a mean was over, or partners were drawn from; those of its pairs where it had no such set.

        Of variable binding they are texts, else records (:meth:`debug.programs.TextProgram.to_record`).

        Raises:
            TrackingError: the file of them is not what it should be.
        """
        if "reference.json" not in self.artifacts():
            return [as_given(pair.original) for pair in self.pairs]
        programs = self.json_object("reference.json").get("programs")
        if not isinstance(programs, list) or not all(isinstance(one, str | dict) for one in programs):
            raise self.broken("reference.json", f"field 'programs' is {programs!r:.80}; expected a list of texts")
        return programs

    @cached_property
    def maps(self) -> Sequence[CausalMap]:
        """The causal maps, one a pair. Lazy: one shard is in memory at a time; ``len`` reads the headers."""
        return Maps(self)

    @cached_property
    def activations(self) -> Mapping[str, np.ndarray]:
        """The stored activations by name, as memory maps of the shards: what is not looked at is not read."""
        return Arrays(self, "activations")

    @cached_property
    def attention(self) -> Mapping[int, AttentionPattern]:
        """The attention patterns by pair, in the order in which causal maps number them; of those that have one."""
        return Patterns(self)

    @property
    def summary(self) -> dict[str, Json]:
        return self.json_object("summary.json")

    @property
    def config(self) -> dict[str, Json]:
        return self.json_object("config.json")
