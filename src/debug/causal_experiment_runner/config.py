"""A causal study's configuration: a plan, and which programs and models it is carried out on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated

from debug.core import StudyConfig
from debug.generators import Generator
from debug.options import OneOf
from debug.plan import Plan


@dataclass(frozen=True)
class CausalConfig(StudyConfig, Plan):
    """A causal study over models x hops x lengths, on programs that are generated: a plan, and where it is carried out.

    ``num_seqs`` pairs are used in each cell; pairs that a filter skips are recorded with their reason and replaced by
    the next seed's, up to ``max_tries`` pairs.
    """

    prompt_template: str = "VARIABLE_BINDING"
    save_activations: Annotated[str, OneOf(("none", "targets", "all"))] = "targets"
    name: str | None = field(default=None, kw_only=True)  # type: ignore[assignment]  (set when it is made)
    """MLflow experiment (default: the kind of run)."""
    models: Sequence[str] = field(kw_only=True)
    program_generator: str | Generator = field(init=False, repr=False)
    generator: str | Generator = field(default="variable_binding", kw_only=True)
    """Generator of the programs, by name."""
    pairs: str | None = field(default=None, kw_only=True)
    """JSONL file of pairs of any texts, in the place of generated programs: each line has original, counterfactual,
    expected_original, expected_counterfactual and perhaps spans, name -> [start, end] in characters of the original."""
    num_seqs: int = field(default=50, kw_only=True)
    hops: Sequence[int | None] = field(default=(3,), kw_only=True)
    seq_lens: Sequence[int] = field(default=(5,), kw_only=True)
    seed: int = field(default=0, kw_only=True)
    independent_cells: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        Plan.__post_init__(self)
        if self.name is None:
            self._set("name", self.kind)
        self._set("program_generator", self.generator)
        StudyConfig.__post_init__(self)

    @property
    def max_tries(self) -> int:
        return 200 + 20 * self.num_seqs

    def plan(self) -> Plan:
        return Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})
