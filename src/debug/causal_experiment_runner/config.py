"""A causal study's configuration: a plan, and which programs and models it is carried out on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated

from debug.core import StudyConfig
from debug.counterfactual import make_pair, python_pair
from debug.errors import InputError
from debug.generators import FAMILIES, Generator, get_generator
from debug.options import OneOf
from debug.plan import Plan
from debug.programs import AnyPair, ProgramError
from debug.prompts import CODE


@dataclass(frozen=True)
class CausalConfig(StudyConfig, Plan):
    """A causal study over models x hops x lengths, on programs that are generated: a plan, and where it is carried out.

    ``num_seqs`` pairs are used in each cell; pairs that a filter skips are recorded with their reason and replaced by
    the next seed's, up to ``max_tries`` pairs.
    """

    prompt_template: str | None = None  # type: ignore[assignment]  (set when it is made)
    """Name of a prompt template, or a text with {code} (default: that of the program family)."""
    save_activations: Annotated[str, OneOf(("none", "targets", "all"))] = "targets"
    name: str | None = field(default=None, kw_only=True)  # type: ignore[assignment]  (set when it is made)
    """MLflow experiment (default: the kind of run)."""
    models: Sequence[str] = field(kw_only=True)
    program_generator: str | Generator = field(init=False, repr=False)
    generator: str | Generator = field(default="variable_binding", kw_only=True)
    """Generator of the programs, by name."""
    pairs: str | None = field(default=None, kw_only=True)
    """JSONL file of pairs of any texts, in the place of generated programs: each line has original, counterfactual,
    expected_original, expected_counterfactual and perhaps spans, name -> [start, end] in characters of the original.
    All of them are used."""
    program: str | None = field(default=None, kw_only=True)
    """File of one program of one's own, in a subset of Python that is interpreted, never executed: its pairs each have
    another number, text or truth value, so that the answer is another. It ends in "#x: " or print(x)."""
    num_seqs: int = field(default=50, kw_only=True)
    hops: Sequence[int | None] | None = field(default=None, kw_only=True)  # type: ignore[assignment]  (set when made)
    """Referential depths of the query, or "any" for the generator's own draw (default: 3, where programs have hops)."""
    seq_lens: Sequence[int] = field(default=(5,), kw_only=True)
    seed: int = field(default=0, kw_only=True)
    independent_cells: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        name, make = get_generator(self.generator)
        if self.pairs is not None and self.program is not None:
            raise InputError("pairs and program are given; expected one file that pairs come from")
        given = self.pairs is not None or self.program is not None
        if given and self.hops is not None:
            raise InputError(f"hops is {self.hops!r}, but pairs are given, whose hops are their own; leave it out")
        if not given and name in FAMILIES and FAMILIES[name].pair is None:
            having = ", ".join(name for name, family in FAMILIES.items() if family.pair)
            raise InputError(f"no counterfactual of {name} programs is defined; causal runs know those of {having}")
        if self.prompt_template is None:
            self._set("prompt_template", FAMILIES[name].prompt_template if name in FAMILIES and not given else CODE)
        if self.hops is None:
            has_hops = not given and "num_hops" in inspect.signature(make).parameters
            self._set("hops", (3,) if has_hops else (None,))
        Plan.__post_init__(self)
        if not given and name in FAMILIES and FAMILIES[name].pair is make_pair:
            self.check_targets_of_binding()
        if self.name is None:
            self._set("name", self.kind)
        self._set("program_generator", self.generator)
        StudyConfig.__post_init__(self)

    @property
    def max_tries(self) -> int:
        return 200 + 20 * self.num_seqs

    def pair_of(self, text: str, seed: int) -> AnyPair:
        """The pair of a generated program; of a caller's own generator: of variable binding, or of Python.

        Raises:
            ProgramError: it has none.
        """
        name, _ = self.named_generator
        if name in FAMILIES and (pair := FAMILIES[name].pair) is not None:
            return pair(text, seed)
        try:
            return make_pair(text, seed)
        except ProgramError as error:
            try:
                return python_pair(text, seed)
            except ProgramError as other:
                raise ProgramError(f"{error}; read as Python: {other}") from other

    def plan(self) -> Plan:
        return Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})
