"""Configurations of studies, checked before anything runs: what all say, and what accuracy experiments add."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Annotated

import numpy as np

from debug.core.parsers import Parser, get_parser
from debug.errors import InputError
from debug.generators import FAMILIES, MAX_SEEDS, Generator, check_lengths, get_generator
from debug.kinds import Argument, Json
from debug.options import Known, OneOf, check_choices
from debug.prompts import REASONING, few_shot, get_prompt

TASKS: dict[str, tuple[str, str]] = {
    name: (family.prompt_template, family.answer_parser) for name, family in FAMILIES.items()
}
"""Generator name -> names of its default template and parser."""

INDEPENDENT_SEED = 1_000_000
"""Where the seeds of independent cells begin: beyond those of few-shot examples and held-out training programs."""


@dataclass(frozen=True)
class StudyConfig:
    """What every study says: which programs, in which prompt, are given to which models.

    Each model runs on each combination of ``hops`` and ``seq_lens`` (a cell), on ``num_seqs`` programs. Template and
    generator are given by name or as themselves. Sequences are kept as tuples.

    Raises:
        InputError: names the field, what it was, and what was expected.
    """

    name: str
    """MLflow experiment."""
    prompt_template: str
    """Name of a prompt template, or a text with {code}."""
    program_generator: Annotated[str | Generator, Known(FAMILIES)]
    """Generator of the programs, by name."""
    models: Sequence[str]
    """Model ids: tiny, smollm2, a folder, a hub id; in accuracy runs also heuristic:..."""
    num_seqs: int
    """Programs (pairs, in causal runs) of each cell."""
    seq_lens: Sequence[int]
    """Lines: numbers of assignment lines ("lines" on screens and in tables)."""
    hops: Sequence[int | None] = (None,)
    """Referential depths of the query, or "any" for the generator's own draw."""
    seed: int = 0
    """RNG seed of each cell's first program; the next has seed + 1 or later. Cells so share programs: a longer program
    begins with the lines of the shorter one of its seed."""
    independent_cells: bool = False
    """Draw each cell's programs from seeds that no other cell has."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"name is {self.name!r}; expected the name of the experiment")
        if isinstance(self.hops, Sequence) and not isinstance(self.hops, str):
            self._set("hops", [None if hops == "any" else hops for hops in self.hops])
        for name in ("models", "seq_lens", "hops"):
            self._set(name, _distinct(name, getattr(self, name)))
        for model in self.models:
            if not isinstance(model, str) or not model:
                raise InputError(f"models contains {model!r}; expected model ids such as 'tiny'")
        get_prompt(self.prompt_template)
        self._check_integers(num_seqs=1, seed=0)
        self._check_booleans("independent_cells")
        generator_name, generator = self.named_generator
        takes_hops = "num_hops" in inspect.signature(generator).parameters
        for seq_len in self.seq_lens:
            check_lengths(seq_len)
        for hops in self.hops:
            check_lengths(max(self.seq_lens), hops)
            if hops is not None and not takes_hops:
                raise InputError(f"hops is {hops}, but generator {generator_name!r} takes no num_hops; leave it out")
        last = max(self.first_seed(*cell) for cell in self.cells) + MAX_SEEDS
        if self.independent_cells and last > 2**32:
            raise InputError(
                f"independent_cells: programs of up to {max(self.seq_lens)} lines from seed {self.seed} on need seeds "
                f"up to {last}, beyond {2**32}; ask for shorter programs, or begin at a smaller seed"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_integers(self, **least: int) -> None:
        for name, smallest in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise InputError(f"{name} is {value!r}; expected an integer, {smallest} or more")

    def _check_booleans(self, *names: str) -> None:
        for name in names:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected true or false")

    @property
    def named_generator(self) -> tuple[str, Generator]:
        """Name and function."""
        return get_generator(self.program_generator)

    @property
    def prompt(self) -> tuple[str, str]:
        """Name and text of the template."""
        return get_prompt(self.prompt_template)

    @property
    def cells(self) -> list[tuple[int | None, int]]:
        """(hops, seq_len) of each cell; those that no program has (4 hops on 2 lines) are left out."""
        return [(hops, seq_len) for hops in self.hops for seq_len in self.seq_lens if hops is None or hops <= seq_len]

    def first_seed(self, hops: int | None, seq_len: int) -> int:
        """The RNG seed of a cell's first program: ``seed``; of independent cells in a range of the cell's own.

        A search takes at most MAX_SEEDS seeds, so that ranges this far apart are disjoint; each seed names its program.
        """
        if not self.independent_cells:
            return self.seed
        place = seq_len * (seq_len + 1) // 2 + (hops or 0)  # another one for each (hops, seq_len), as hops <= seq_len
        return INDEPENDENT_SEED + place * MAX_SEEDS + self.seed

    @property
    def shared(self) -> str | None:
        """What a reader must know who compares the cells: see :func:`shared_programs`."""
        return shared_programs((self.named_generator[0], *cell, self.first_seed(*cell)) for cell in self.cells)

    def to_record(self) -> dict[str, Json]:
        """The configuration as JSON values: functions by name, the template by name and text."""
        record = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "program_generator"}
        record = {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}
        prompt_name, prompt_text = self.prompt
        return record | {
            "prompt_template": prompt_name,
            "prompt_text": prompt_text,
            "generator": self.named_generator[0],
        }


@dataclass(frozen=True)
class ExperimentConfig(StudyConfig):
    """An accuracy experiment: a study, and how models are prompted and their answers read.

    Raises:
        InputError: names the field, what it was, and what was expected.
    """

    answer_parser: str | Parser | None = None
    """Parser of answers, by name (default: the one that belongs to the generator and the template)."""
    max_new_tokens: int | None = None
    """Tokens that a completion may have (default: 8, or 512 where the template asks for reasoning)."""
    few_shot: int = 0
    """Few-shot examples: solved programs of the same length in front of each program, from seeds of their own."""
    chat: bool = False
    """Put the prompt into the model's chat template, as the user's turn."""
    scoring: Annotated[str, OneOf(("generate", "logits"))] = "generate"
    """"generate" parses what the model writes; "logits" ranks the possible answers by their first token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        reasoning = self.prompt[1] in REASONING
        if self.max_new_tokens is None:
            self._set("max_new_tokens", 512 if reasoning else 8)
        self._check_integers(max_new_tokens=1, few_shot=0)
        self._check_booleans("chat")
        check_choices(self)
        if self.scoring == "logits" and (reasoning or self.chat):
            raise InputError("scoring is 'logits': the answer must come right after the prompt, not after reasoning")
        if self.answer_parser is None:
            parser = TASKS.get(self.generator[0], ("", "integer"))[1]
            if reasoning:
                parser = "last_boolean" if parser == "boolean" else "last_integer"
            self._set("answer_parser", parser)
        get_parser(self.answer_parser)  # type: ignore[arg-type]  (None no more)
        self.prompt_text(max(self.seq_lens))

    @property
    def generator(self) -> tuple[str, Generator]:
        """Name and function."""
        return self.named_generator

    @property
    def parser(self) -> tuple[str, Parser]:
        """Name and function."""
        return get_parser(self.answer_parser)  # type: ignore[arg-type]  (None no more)

    def prompt_text(self, seq_len: int) -> str:
        """The template for programs of one length, with its few-shot examples."""
        if not self.few_shot:
            return self.prompt[1]
        return few_shot(self.program_generator, seq_len, self.few_shot, template=self.prompt[1])

    def to_record(self) -> dict[str, Json]:
        return super().to_record() | {"answer_parser": self.parser[0]}


def shared_programs(cells: Iterable[tuple[str, int | str | None, int | str, int]]) -> str | None:
    """A note where two of these cells, each (generator, hops, seq_len, first seed), draw from the same seeds, which
    makes their rates correlated; else None."""
    for one, other in combinations(set(cells), 2):
        if one[0] == other[0] and one[1:3] != other[1:3] and abs(one[3] - other[3]) < MAX_SEEDS:
            return (
                "These cells share seeds, and so share programs or their first lines. Their rates are correlated, not "
                "independent replications (--independent-cells draws each cell from its own seeds)."
            )
    return None


def _distinct(field: str, values: object) -> tuple:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise InputError(f"{field} is {values!r}; expected a list of one or more")
    if any(value in values[:place] for place, value in enumerate(values)):
        raise InputError(f"{field} is {list(values)}; each may be there once")
    return tuple(value.item() if isinstance(value, np.integer) else value for value in values)


def quick_experiment(
    name: str,
    prompt_template: str,
    program_generator: str | Generator,
    models: Sequence[str],
    num_seqs: int = 10,
    seq_lens: Sequence[int] = (5,),
    **options: Argument,
) -> ExperimentConfig:
    """An experiment in one call; ``options`` are the other fields of :class:`ExperimentConfig`.

        quick_experiment("depth", prompts.VARIABLE_BINDING, "variable_binding", ["tiny"], hops=[1, 2, 3])

    Raises:
        InputError: as :class:`ExperimentConfig`.
    """
    return ExperimentConfig(name, prompt_template, program_generator, models, num_seqs, seq_lens, **options)
