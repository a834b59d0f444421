"""The configuration of an accuracy experiment."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from debug.core.parsers import Parser, get_parser
from debug.errors import InputError
from debug.generators import GENERATORS, MAX_SEEDS, Generator, check_lengths, get_generator
from debug.prompts import REASONING, few_shot, get_prompt

TASKS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(GENERATORS, ("RANGE_TRACKING", "integer")),
    "variable_binding": ("VARIABLE_BINDING", "variable_binding"),
    "entity_tracking": ("ENTITY_TRACKING", "variable_binding"),
    "exception": ("EXCEPTION_HANDLING", "integer"),
    "boolean": ("BOOLEAN_LOGIC", "boolean"),
}
"""Generator name -> names of its default template and parser."""


INDEPENDENT_SEED = 1_000_000
"""Where the seeds of independent cells begin: beyond those of few-shot examples and held-out training programs."""


@dataclass(frozen=True)
class ExperimentConfig:
    """An accuracy experiment: each model on each combination of ``hops`` and ``seq_lens``, ``num_seqs`` programs each.

    Template, generator and parser are given by name or as themselves. Sequences are kept as tuples.

    Attributes:
        seed: the RNG seed of each cell's first program; the next has seed + 1, and so on. Cells so share programs: a
            longer program begins with the lines of the shorter one of its seed.
        independent_cells: draw each cell from seeds that no other cell has (:meth:`first_seed`).
        hops: None for the generator's own draw, or the exact number, which the generator must take as ``num_hops``.
        answer_parser: None for the one that belongs to the generator (``TASKS``) and the template.
        max_new_tokens: tokens that a completion may have; None for 8, or 512 where the template asks for reasoning.
        few_shot: number of few-shot examples in the prompt: answered programs of the same length, from their own seeds.
        chat: put the prompt into the model's chat template, as the user's turn.
        scoring: "generate" parses what the model writes; "logits" ranks the possible answers by their first token.

    Raises:
        InputError: names the field, what it was, and what was expected.
    """

    name: str
    prompt_template: str
    program_generator: str | Generator
    models: Sequence[str]
    num_seqs: int
    seq_lens: Sequence[int]
    hops: Sequence[int | None] = (None,)
    seed: int = 0
    answer_parser: str | Parser | None = None
    max_new_tokens: int | None = None
    few_shot: int = 0
    chat: bool = False
    scoring: str = "generate"
    independent_cells: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"name is {self.name!r}; expected the name of the experiment")
        for field in ("models", "seq_lens", "hops"):
            object.__setattr__(self, field, _distinct(field, getattr(self, field)))
        for model in self.models:
            if not isinstance(model, str) or not model:
                raise InputError(f"models contains {model!r}; expected model ids such as 'tiny'")
        reasoning = get_prompt(self.prompt_template)[1] in REASONING
        if self.max_new_tokens is None:
            object.__setattr__(self, "max_new_tokens", 512 if reasoning else 8)
        for field, least in (("num_seqs", 1), ("seed", 0), ("max_new_tokens", 1), ("few_shot", 0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{field} is {value!r}; expected an integer, {least} or more")
        for field in ("chat", "independent_cells"):
            if not isinstance(getattr(self, field), bool):
                raise InputError(f"{field} is {getattr(self, field)!r}; expected true or false")
        if self.scoring not in ("generate", "logits"):
            raise InputError(f"scoring is {self.scoring!r}; expected generate or logits")
        if self.scoring == "logits" and (reasoning or self.chat):
            raise InputError("scoring is 'logits': the answer must come right after the prompt, not after reasoning")
        generator_name, generator = get_generator(self.program_generator)
        takes_hops = "num_hops" in inspect.signature(generator).parameters
        for seq_len in self.seq_lens:
            check_lengths(seq_len)
        for hops in self.hops:
            check_lengths(max(self.seq_lens), hops)
            if hops is not None and not takes_hops:
                raise InputError(f"hops is {hops}, but generator {generator_name!r} takes no num_hops; leave it out")
        if self.answer_parser is None:
            parser = TASKS.get(generator_name, ("", "integer"))[1]
            if reasoning:
                parser = "last_boolean" if parser == "boolean" else "last_integer"
            object.__setattr__(self, "answer_parser", parser)
        get_parser(self.answer_parser)  # type: ignore[arg-type]
        self.prompt_text(max(self.seq_lens))
        last = max(self.first_seed(*cell) for cell in self.cells) + MAX_SEEDS
        if self.independent_cells and last > 2**32:
            raise InputError(
                f"independent_cells: programs of up to {max(self.seq_lens)} lines from seed {self.seed} on need seeds "
                f"up to {last}, beyond {2**32}; ask for shorter programs, or begin at a smaller seed"
            )

    @property
    def generator(self) -> tuple[str, Generator]:
        """Name and function."""
        return get_generator(self.program_generator)

    @property
    def prompt(self) -> tuple[str, str]:
        """Name and text of the template."""
        return get_prompt(self.prompt_template)

    @property
    def parser(self) -> tuple[str, Parser]:
        """Name and function."""
        return get_parser(self.answer_parser)  # type: ignore[arg-type]

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

    def prompt_text(self, seq_len: int) -> str:
        """The template for programs of one length, with its few-shot examples."""
        if not self.few_shot:
            return self.prompt[1]
        return few_shot(self.program_generator, seq_len, self.few_shot, template=self.prompt[1])

    def to_record(self) -> dict[str, Any]:
        """The configuration as JSON values: functions by name, the template by name and text."""
        return {
            "name": self.name,
            "prompt_template": self.prompt[0],
            "prompt_text": self.prompt[1],
            "generator": self.generator[0],
            "models": list(self.models),
            "num_seqs": self.num_seqs,
            "seq_lens": list(self.seq_lens),
            "hops": list(self.hops),
            "seed": self.seed,
            "answer_parser": self.parser[0],
            "max_new_tokens": self.max_new_tokens,
            "few_shot": self.few_shot,
            "chat": self.chat,
            "scoring": self.scoring,
            "independent_cells": self.independent_cells,
        }


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


def _distinct(field: str, values: Any) -> tuple:
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
    **options: Any,
) -> ExperimentConfig:
    """An experiment in one call; ``options`` are the other fields of :class:`ExperimentConfig`.

        quick_experiment("depth", prompts.VARIABLE_BINDING, "variable_binding", ["tiny"], hops=[1, 2, 3])

    Raises:
        InputError: as :class:`ExperimentConfig`.
    """
    return ExperimentConfig(name, prompt_template, program_generator, models, num_seqs, seq_lens, **options)
