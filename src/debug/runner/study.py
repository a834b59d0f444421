"""What an accuracy study asks, and the cells it consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from debug import models, provenance, studies, tracking
from debug.core import ExperimentConfig
from debug.kinds import Json
from debug.runner.labels import labels_of, params_of, title_of
from debug.runner.results import hops_text
from debug.studies import digest_of

if TYPE_CHECKING:
    from debug.runner.asking import Model

KIND = "accuracy"


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

    def label(self, cell: PlannedCell) -> str:
        return self.labels[cell.config, cell.model_id]

    def name_of(self, cell: PlannedCell) -> str:
        return (
            f"{self.label(cell)} · {hops_text(cell.hops)} {'hop' if cell.hops == 1 else 'hops'} · {cell.seq_len} lines"
        )

    def to_carry_out(self, load: Callable[[str], Model], no_cache: bool) -> studies.Study[PlannedCell]:
        """``no_cache``: of a model that is loaded to compare it with what made earlier cells, nothing is kept."""

        def made_by(model_id: str) -> Mapping[str, str | None]:
            model = load(model_id)
            made = provenance.what_made_it(how_run(model), provenance.of_process() | model.provenance())
            if no_cache:
                models.unload(model_id)
            return made

        asked = [self.how, *(config.to_record() | {"name": self.name} for config in self.configs)]
        title, digest = title_of(self.configs, self.names), digest_of(asked)
        return studies.Study(self.name, title, KIND, digest, self.cells, self.name_of, made_by)

    def describe(self, run: tracking.RunWriter) -> None:
        """Params and configuration of the study's run."""
        run.log_params(params_of(self.configs))
        records = [config.to_record() for config in self.configs]
        shared = records[0] if len(records) == 1 else {"name": self.name, "experiments": records}
        run.log_json("config.json", shared | dict(self.how))


def how_run(model: Model) -> dict[str, str]:
    """Params that say how a model was run."""
    how = {name: getattr(model, name) for name in ("backend", "dtype", "device")}
    how |= {"base_url": model.path} if model.backend == "openai" else {}
    return how | {"quantization": model.quantization or "none"}
