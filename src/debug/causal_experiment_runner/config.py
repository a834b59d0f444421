"""A causal study's configuration: a plan, and which programs and models it is carried out on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from debug.core import ExperimentConfig
from debug.generators import Generator
from debug.plan import Plan


@dataclass(frozen=True)
class CausalConfig(Plan):
    """A causal study over models x hops x lengths, on programs that are generated: a plan, and where it is carried out.

    ``num_seqs`` pairs are used in each cell; pairs that a filter skips are recorded with their reason and replaced by
    the next seed's, up to ``max_tries`` pairs.
    """

    prompt_template: str = "VARIABLE_BINDING"
    require_correct: bool = True
    save_activations: str = "targets"
    models: Sequence[str] = field(kw_only=True)
    hops: Sequence[int | None] = field(default=(3,), kw_only=True)
    seq_lens: Sequence[int] = field(default=(5,), kw_only=True)
    num_seqs: int = field(default=50, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    name: str | None = field(default=None, kw_only=True)
    """The MLflow experiment; None: the kind of run."""
    generator: str | Generator = field(default="variable_binding", kw_only=True)
    independent_cells: bool = field(default=False, kw_only=True)
    """As :class:`debug.core.ExperimentConfig` has it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is None:
            object.__setattr__(self, "name", self.kind)
        checked = self.programs()
        for name in ("models", "hops", "seq_lens"):
            object.__setattr__(self, name, getattr(checked, name))

    def programs(self) -> ExperimentConfig:
        """Which programs, in which prompt, to which models: what causal and accuracy studies have in common."""
        return ExperimentConfig(
            self.name or self.kind,
            self.prompt_template,
            self.generator,
            self.models,
            self.num_seqs,
            self.seq_lens,
            self.hops,
            self.seed,
            independent_cells=self.independent_cells,
        )

    @property
    def max_tries(self) -> int:
        return 200 + 20 * self.num_seqs

    def plan(self) -> Plan:
        return Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})
