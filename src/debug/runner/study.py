"""What a study runs, cell by cell, and the unfinished study of the store that it goes on with."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
from filelock import FileLock

from debug import models, provenance, tracking
from debug.core import ExperimentConfig
from debug.errors import InputError
from debug.kinds import Json
from debug.runner.labels import labels_of, params_of, shortened, title_of

if TYPE_CHECKING:
    from debug.runner.asking import Model

KIND = "accuracy"
_STUDY = "debug.study"  # tag: digest of a study's configs

logger = logging.getLogger(__name__)


class StudyDiffers(InputError):
    """A study whose finished cells were made by other code, libraries or weights than those that are here now."""


class PlannedCell(NamedTuple):
    """A model on one number of hops and lines, asked as one of a study's configs says."""

    config: int
    model_id: str
    hops: int | None
    seq_len: int

    @property
    def place(self) -> str:
        """The tag by which a finished cell is found again."""
        return digest_of([*self])


@dataclass(frozen=True)
class Study:
    """Several experiments under one name, and how models are run; ``names`` are those of the models by their ids."""

    name: str
    configs: Sequence[ExperimentConfig]
    how: Mapping[str, Json]

    @cached_property
    def names(self) -> dict[str, str]:
        return models.names_of(model_id for config in self.configs for model_id in config.models)

    @cached_property
    def labels(self) -> dict[tuple[int, str], str]:
        return labels_of(self.configs, self.names)

    @cached_property
    def cells(self) -> list[PlannedCell]:
        return [
            PlannedCell(number, model_id, *cell)
            for number, config in enumerate(self.configs)
            for model_id in config.models
            for cell in config.cells
        ]

    @property
    def title(self) -> str:
        return title_of(self.configs, self.names)

    @property
    def digest(self) -> str:
        return digest_of([self.how, *(config.to_record() | {"name": self.name} for config in self.configs)])

    def describe(self, run: tracking.RunWriter) -> None:
        """Params and configuration of the study's run."""
        run.log_params(params_of(self.configs))
        records = [config.to_record() for config in self.configs]
        shared = records[0] if len(records) == 1 else {"name": self.name, "experiments": records}
        run.log_json("config.json", shared | dict(self.how))


@dataclass(frozen=True)
class Resuming:
    """Whether, and how, a study goes on with the latest one of its configs that did not end well.

    Args:
        resume: go on with it, if there is one; its finished cells stay.
        mix: also where these were made by other code, libraries, weights or tokenizer than those that are here now, or
            in another dtype or on another device; the tag ``debug.mixed`` then says so.
        take_over: also where there is a sign of life of another process that carries out the study.
    """

    resume: bool = True
    mix: bool = False
    take_over: bool = False

    @contextmanager
    def open(
        self, store: tracking.Store, study: Study, tags: Mapping[str, str], load: Callable[[str], Model], no_cache: bool
    ) -> Iterator[tuple[tracking.RunWriter, dict[str, tracking.LoggedRun], list[str]]]:
        """The study's run: a new one, or the unfinished one with its finished cells by their places, and in what they
        differ from those to come.

        Raises:
            StillRunning, StudyDiffers: before anything is written.
        """
        finished: dict[str, tracking.LoggedRun] = {}
        mixed: list[str] = []
        with ExitStack() as stack:
            with _one_at_a_time(store, study.digest):
                known = {_STUDY: study.digest}
                found = store.find_runs(experiment=study.name, kind=KIND, role="study", tags=known, limit=None)
                unfinished = found.filter(pl.col("status") != "FINISHED")["run_id"]
                if not self.resume or unfinished.is_empty():
                    run = stack.enter_context(store.start(study.name, study.title, kind=KIND, tags=known | dict(tags)))
                else:
                    earlier = store.load_run(unfinished[0])
                    finished, mixed = self._unfinished(earlier, study, load, no_cache)
                    keep, own = {cell.run_id for cell in finished.values()}, {tracking.MIXED: "; ".join(mixed)[:8000]}
                    going_on = store.resume(
                        earlier.run_id, keep=keep, tags=own if mixed else None, take_over=self.take_over
                    )
                    run = stack.enter_context(going_on)
            yield run, finished, mixed

    def _unfinished(
        self, run: tracking.LoggedRun, study: Study, load: Callable[[str], Model], no_cache: bool
    ) -> tuple[dict[str, tracking.LoggedRun], list[str]]:
        """The finished cells of a study that may be gone on with, by their places, and in what they differ from those
        to come. Raises StillRunning and StudyDiffers where it may not."""
        if run.owner is not None and not self.take_over:
            raise tracking.StillRunning(
                f"study {run.run_id} of experiment {run.experiment!r} is being carried out: {run.owner}. Wait "
                "for it, or stop it; --fresh (resume=False) starts another one, --take-over (take_over=True) goes on "
                "with it all the same, and that process stops at its next cell"
            )
        cells = [cell for cell in run.children if cell.status == "FINISHED"]
        finished = {cell.tags[tracking.PLACE]: cell for cell in cells if tracking.PLACE in cell.tags}
        mixed = _differences(study, finished, load, no_cache)
        if mixed and not self.mix:
            raise StudyDiffers(
                f"the {len(finished)} finished cells of study {run.run_id} were made otherwise: {'; '.join(mixed)}. "
                "Go back to what made them, start anew with --fresh (resume=False), or go on all the same with --mix "
                "(mix=True), which tags the study and its new cells"
            )
        logger.info("going on with study %s (%s), of which %d cells are done", run.run_id, run.status, len(finished))
        return finished, mixed


def _differences(
    study: Study, finished: Mapping[str, tracking.LoggedRun], load: Callable[[str], Model], no_cache: bool
) -> list[str]:
    """In what the finished cells differ from those to come, in words: code and libraries, and of each model that has
    cells of both kinds its weights, tokenizer, dtype and device. What a cell did not record does not differ."""
    places: dict[str, list[str]] = {}
    for cell in study.cells:
        places.setdefault(cell.model_id, []).append(cell.place)
    found: dict[str, None] = {}
    for model_id, of_model in places.items():
        done = [finished[place] for place in of_model if place in finished]
        now: dict[str, str | None] = provenance.of_code()
        if 0 < len(done) < len(of_model):
            model = load(model_id)
            now |= provenance.what_made_it(how_run(model), provenance.of_process() | model.provenance())
            if no_cache:
                models.unload(model_id)
        for cell in done:
            then = provenance.what_made_it(cell.params, cell.tags)
            for name, (was, became) in provenance.differences(then, now).items():
                if was is not None and name in now:
                    of = "" if name in provenance.of_code() else f" of {models.name_of(model_id)}"
                    found[f"{name}{of} was {shortened(was)}, now {shortened(became)}"] = None
    return list(found)


def how_run(model: Model) -> dict[str, str]:
    """Params that say how a model was run."""
    how = {name: getattr(model, name) for name in ("backend", "dtype", "device")}
    how |= {"base_url": model.path} if model.backend == "openai" else {}
    return how | {"quantization": model.quantization or "none"}


def digest_of(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


@contextmanager
def _one_at_a_time(store: tracking.Store, digest: str) -> Iterator[None]:
    """Of the processes of this user on this machine that look for one study, or start it, one after the other."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    name = f"debug-{user}-{digest_of([store.uri, digest])}.lock"
    with FileLock(Path(tempfile.gettempdir()) / name):
        yield
