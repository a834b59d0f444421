"""A causal study's configuration: a plan, and which programs and models it is carried out on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated

from debug.core import StudyConfig
from debug.counterfactual import KINDS, counterfactual
from debug.errors import InputError
from debug.generators import FAMILIES, Generator, get_generator
from debug.options import Known, OneOf
from debug.plan import Plan, Template
from debug.programs import ROOT_VALUE, AnyPair
from debug.prompts import CODE, few_shot


@dataclass(frozen=True)
class CausalConfig(StudyConfig, Plan):
    """A causal study over models x hops x lengths, on programs that are generated: a plan, and where it is carried out.

    ``num_seqs`` pairs are used in each cell; pairs that a filter skips are recorded with their reason and replaced by
    the next seed's, up to ``max_tries`` pairs.
    """

    prompt_template: Template | None = None  # type: ignore[assignment]  (set when it is made)
    """Name of a prompt template, or a text with {code} (default: that of the program family)."""
    save_activations: Annotated[str, OneOf(("none", "targets", "all"))] = "targets"
    save_attention: int = 8
    name: str | None = field(default=None, kw_only=True)  # type: ignore[assignment]  (set when it is made)
    """MLflow experiment (default: the kind of run)."""
    models: Sequence[str] = field(kw_only=True)
    program_generator: Annotated[str | Generator, Known(FAMILIES)] = field(init=False, repr=False)
    generator: Annotated[str | Generator, Known(FAMILIES)] = field(default="variable_binding", kw_only=True)
    """Generator of the programs, by name."""
    pairs: str | None = field(default=None, kw_only=True)
    """JSONL file of pairs of any texts, in the place of generated programs: each line has original, counterfactual,
    expected_original, expected_counterfactual and perhaps spans, name -> [start, end] in characters of the original.
    All of them are used."""
    program: str | None = field(default=None, kw_only=True)
    """File of one program of one's own, in a subset of Python that is interpreted, never executed: its pairs each have
    another number, text or truth value, so that the answer is another. It ends in "#x: " or print(x)."""
    counterfactual: Annotated[str, OneOf(KINDS)] = field(default=ROOT_VALUE, kw_only=True)
    """What of a generated program its counterfactual changes: another root value; pointer, a line of the chain reads
    another variable; swap_values; rename, two variables exchange their names; reorder, lines permuted; distractor, a
    value that does not matter; same_answer, fresh names."""
    num_seqs: int = field(default=50, kw_only=True)
    hops: Sequence[int | None] | None = field(default=None, kw_only=True)  # type: ignore[assignment]  (set when made)
    """Referential depths of the query, or "any" for the generator's own draw (default: 3, where programs have hops)."""
    seq_lens: Sequence[int] = field(default=(5,), kw_only=True)
    seed: int = field(default=0, kw_only=True)
    independent_cells: bool = field(default=False, kw_only=True)
    few_shot: int = field(default=0, kw_only=True)
    """Few-shot examples: solved programs of the same length in front of each program, from seeds of their own."""

    def __post_init__(self) -> None:
        name, make = get_generator(self.generator)
        if self.pairs is not None and self.program is not None:
            raise InputError("pairs and program are given; expected one file that pairs come from")
        given = self.pairs is not None or self.program is not None
        if given and self.hops is not None:
            raise InputError(f"hops is {self.hops!r}, but pairs are given, whose hops are their own; leave it out")
        if given and self.few_shot:
            raise InputError(f"few_shot is {self.few_shot!r}, but pairs are given; write examples into the template")
        if given and self.counterfactual != ROOT_VALUE:
            raise InputError(f"counterfactual is {self.counterfactual!r}, but pairs are given; leave it out")
        if self.prompt_template is None:
            self._set("prompt_template", FAMILIES[name].prompt_template if name in FAMILIES and not given else CODE)
        if self.hops is None:
            has_hops = not given and "num_hops" in inspect.signature(make).parameters
            self._set("hops", (3,) if has_hops else (None,))
        Plan.__post_init__(self)
        if not given and name in FAMILIES and FAMILIES[name].is_binding:
            self.check_targets_of_binding(self.hops or (None,))
        if self.name is None:
            self._set("name", self.kind)
        self._set("program_generator", self.generator)
        StudyConfig.__post_init__(self)
        self._check_integers(few_shot=0)

    @property
    def max_tries(self) -> int:
        return 200 + 20 * self.num_seqs

    def pair_of(self, text: str, seed: int) -> AnyPair:
        """The pair of a generated program; of a caller's own generator: of variable binding, or of Python.

        Raises:
            ProgramError: it has none.
        """
        name, _ = self.named_generator
        if name in FAMILIES:
            return FAMILIES[name].pair(self.counterfactual, text, seed)
        return counterfactual(self.counterfactual, text, seed)

    def plan(self, seq_len: int | None = None) -> Plan:
        """The plan; with its few-shot examples where programs have this length."""
        plan = Plan(**{each.name: getattr(self, each.name) for each in fields(Plan)})
        if seq_len is None or not self.few_shot:
            return plan
        template = few_shot(self.generator, seq_len, self.few_shot, template=self.prompt[1])
        return replace(plan, prompt_template=template)
