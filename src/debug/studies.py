"""Studies of any kind: cells that are carried out one by one, by one process or several, and taken up where they stood.

A cell is known by its place in its study, a study by the digest of all that it asks. Finished cells stay, one that was
not finished is taken up with the samples or pairs that it has, and one that another process carries out is left to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import polars as pl

from debug import provenance, tracking
from debug.errors import InputError
from debug.executors import Workers
from debug.tracking import housekeeping

STUDY = "debug.study"  # tag: digest of what a study asks
POLL = 2.0  # seconds between two looks at what other processes carry out

logger = logging.getLogger(__name__)


class StudyDiffers(InputError):
    """A study whose cells were made by other code, libraries or weights than those that are here now."""


class StudyIncomplete(InputError):
    """Cells of a study have failed, others are finished."""


class Cell(Protocol):
    """A cell as it is planned."""

    @property
    def model_id(self) -> str: ...

    @property
    def place(self) -> str:
        """What it is known by in its study."""
        ...


C = TypeVar("C", bound=Cell)


def digest_of(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study(Generic[C]):
    """What a study is called, asks and consists of."""

    experiment: str
    title: str
    kind: str
    digest: str
    cells: Sequence[C]
    name_of: Callable[[C], str]
    made_by: Callable[[str], Mapping[str, str | None]]
    """Of a model id: what would make its cells now, as :func:`debug.provenance.what_made_it`; loads the model."""


@dataclass(frozen=True)
class Resuming:
    """Whether, and how, a study goes on with the latest one that asks the same and did not end well.

    Args:
        resume: go on with it, if there is one.
        mix: also where its cells were made by other code, libraries, weights or tokenizer than those that are here now,
            or in another dtype or on another device; the tag ``debug.mixed`` then says so.
        take_over: other processes that carry it out are to stop at their next cell.
        workers: who carries it out beside this process, or in its place.
        is_worker: this process takes cells until none is left, and leaves the end of the study to another.
    """

    resume: bool = True
    mix: bool = False
    take_over: bool = False
    workers: Workers = field(default_factory=Workers)
    is_worker: bool = False

    @contextmanager
    def open(self, store: tracking.Store, study: Study[C], tags: Mapping[str, str]) -> Iterator[Carried[C]]:
        """The study as this process carries it out: a new one, or the unfinished one.

        Raises:
            StudyDiffers: before anything is written.
        """
        delivered = []
        for run_id, problem in housekeeping.sync(store):
            logger.info("run %s, kept while the store was away: %s", run_id, problem or "delivered")
            delivered += [] if problem else [run_id]
        with ExitStack() as stack:
            with tracking.one_at_a_time(store, store.experiment_id(study.experiment, cells=True), study.digest):
                earlier, mixed = self._earlier(store, study, delivered) if self.resume else (None, [])
                if earlier is None:
                    known = {STUDY: study.digest}
                    started = store.start(study.experiment, study.title, kind=study.kind, tags=known | dict(tags))
                    run = stack.enter_context(started)
                    run.share()
                else:
                    own = {tracking.MIXED: "; ".join(mixed)[:8000]} if mixed else {}
                    run = stack.enter_context(store.join(earlier.run_id, tags=own, take_over=self.take_over))
            yield Carried(store, study, run, mixed, self)

    def _earlier(
        self, store: tracking.Store, study: Study[C], delivered: Sequence[str]
    ) -> tuple[tracking.LoggedRun | None, list[str]]:
        """The study to go on with, if there is one, and in what its cells differ from those to come. One whose end was
        delivered just now is not carried out again."""
        known = {STUDY: study.digest}
        found = store.find_runs(experiment=study.experiment, kind=study.kind, role="study", tags=known, limit=None)
        unfinished = found.filter((pl.col("status") != "FINISHED") | pl.col("run_id").is_in(delivered))["run_id"]
        if unfinished.is_empty():
            return None, []
        run = store.load_run(unfinished[0])
        begun = {cell.tags[tracking.PLACE]: cell for cell in run.children if tracking.PLACE in cell.tags}
        mixed = _differences(study, begun)
        if mixed and not self.mix:
            raise StudyDiffers(
                f"the {len(begun)} cells of study {run.run_id} were made otherwise: {'; '.join(mixed)}. "
                "Go back to what made them, start anew with --fresh (resume=False), or go on all the same with --mix "
                "(mix=True), which tags the study and its new cells"
            )
        done = sum(cell.status == "FINISHED" for cell in begun.values())
        with_it = f"; it is being carried out, too, by {run.owner}" if run.owner else ""
        logger.info("going on with study %s (%s), of which %d cells are done%s", run.run_id, run.status, done, with_it)
        return run, mixed


def _differences(study: Study[C], begun: Mapping[str, tracking.LoggedRun]) -> list[str]:
    """In what the cells that were begun differ from those to come, in words: code and libraries, and of each model that
    has cells of both kinds its weights, tokenizer, dtype and device. What a cell did not record does not differ."""
    from debug import models

    places: dict[str, list[str]] = {}
    for cell in study.cells:
        places.setdefault(cell.model_id, []).append(cell.place)
    found: dict[str, None] = {}
    for model_id, of_model in places.items():
        there = [begun[place] for place in of_model if place in begun]
        now: dict[str, str | None] = provenance.of_code()
        if there and (len(there) < len(of_model) or any(cell.status != "FINISHED" for cell in there)):
            now |= study.made_by(model_id)
        for cell in there:
            then = provenance.what_made_it(cell.params, cell.tags)
            for name, (was, became) in provenance.differences(then, now).items():
                if was is not None and name in now:
                    of = "" if name in provenance.of_code() else f" of {models.name_of(model_id)}"
                    found[f"{name}{of} was {shortened(was)}, now {shortened(became)}"] = None
    return list(found)


def shortened(value: str | None) -> str:
    """The beginning of a digest or commit."""
    return "not known" if value is None else value[:12] if len(value) >= 40 else value


class Carried(Generic[C]):
    """A study that this process carries out, perhaps with others."""

    def __init__(
        self, store: tracking.Store, study: Study[C], run: tracking.RunWriter, mixed: list[str], how: Resuming
    ) -> None:
        self.store, self.study, self.run, self.mixed, self.how = store, study, run, mixed, how
        self._said = False

    def carry_out(self, carry: Callable[[C, str], None]) -> None:
        """Carry out every cell that is not finished and that no other process is at, and wait for those that are.
        ``carry`` is given a cell and the id of its run.

        An error ends the cells of its model; the others go on. (The store's own ends all.)

        Raises:
            StudyIncomplete: cells have failed, and others have not; where all have, their error.
            LeftToOthers: this process is a worker, and no cell is left to take.
        """
        workers = self.how.workers
        if not workers.computes:
            with workers.at_work():
                pass
            if left := len(self.study.cells) - len(self.finished()):
                raise StudyIncomplete(
                    f"{left} of {len(self.study.cells)} cells are not finished: the workers have ended before (their "
                    "logs say why). The same command goes on with them"
                )
            return
        with workers.at_work():
            self._carry_out(carry)
        if self.how.is_worker:
            raise tracking.LeftToOthers(f"no cell of study {self.run.run_id} is left to take")

    def _carry_out(self, carry: Callable[[C, str], None]) -> None:
        failed: dict[str, Exception] = {}
        for cell, run_id in self._claimed(failed):
            try:
                carry(cell, run_id)
            except tracking.TrackingError:
                raise
            except Exception as error:
                failed[cell.model_id] = error
                if failed.keys() >= {each.model_id for each in self.study.cells}:
                    raise
                logger.exception("%s: the other cells of this model are left out", self.study.name_of(cell))
        if failed:
            told = "; ".join(f"{model_id}: {type(error).__name__}: {error}" for model_id, error in failed.items())
            raise StudyIncomplete(
                f"cells of {len(failed)} of the models have failed; the others are finished, and the same command "
                f"takes up those that are not: {told}"
            )

    def _claimed(self, failed: Mapping[str, Exception]) -> Iterator[tuple[C, str]]:
        finished = self.finished()
        left = [cell for cell in self.study.cells if cell.place not in finished]
        while left := [cell for cell in left if cell.model_id not in failed]:
            for cell in left:
                name = self.study.name_of(cell)
                if (run_id := self.store.patiently(partial(self.run.claim, cell.place, name))) is not None:
                    left.remove(cell)
                    yield cell, run_id
                    break
            else:
                finished = self.finished()
                left = [cell for cell in left if cell.place not in finished]
                if left and self.how.is_worker:
                    return
                if left:
                    self._wait(left)

    def _wait(self, left: Sequence[C]) -> None:
        """Until one of these cells, which other processes carry out, has ended."""
        if not self._said:
            there = self.children()
            who = {there[cell.place].owner for cell in left if cell.place in there} - {None}
            logger.info("%d cells are being carried out by %s; waiting for them", len(left), "; ".join(map(str, who)))
            self._said = True
        time.sleep(POLL)

    def children(self) -> dict[str, tracking.LoggedRun]:
        """The cells that were begun, by place."""
        runs = self.store.patiently(lambda: self.store.load_run(self.run.run_id).children)
        return {run.tags[tracking.PLACE]: run for run in runs if tracking.PLACE in run.tags}

    def finished(self) -> dict[str, tracking.LoggedRun]:
        return {place: run for place, run in self.children().items() if run.status == "FINISHED"}
