"""What an accuracy experiment is: its configuration, checked before anything runs, and the parsers of answers.

A parser is ``(completion) -> answer``, None where the text holds no answer: "no answer" is never a wrong answer. Adding
one is writing the function and naming it in ``PARSERS``; a function of your own works without that. Knows no model and
no store.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from debug import checks, reading
from debug.generators import GENERATORS, MAX_SEEDS, Generator, check_lengths, get_generator
from debug.prompts import REASONING, few_shot, get_prompt

Answer = int | str | bool
Parser = Callable[[str], Answer | None]


def parse_integer(completion: str) -> int | None:
    r"""For models that answer at once: the first marked answer, else the number that follows the first ``is:``, else
    the first number of the text; None where there is none. The rules are those of :mod:`debug.reading`.

    Models often complete ``The final value of x is:`` with a sentence of their own, so the number after ``is:`` wins:
    ``3 is: 6\n``` `` gives 6, ``10\n``` `` gives 10, ``21. So, the correct output is`` gives 21, ``5 + 10 = 15`` gives
    15. Lines that repeat the program (``x += 3``) hold no answer.
    """
    return _value(reading.first(int, completion))


def parse_boolean(completion: str) -> bool | None:
    """For models that answer at once: the first marked answer, else the True or False that follows the first ``is:``,
    else the first of the text. ``not True`` is False; ``True or False`` alone is no answer."""
    return _value(reading.first(bool, completion))


def parse_variable_binding(completion: str) -> int | None:
    r"""The integer with which the text begins (``4\n#b: 3`` gives 4), or the result of the equation with which it does;
    None where it begins with anything else but white space, quotes, brackets, bold, or a currency."""
    return _value(reading.beginning(int, completion))


def parse_last_integer(completion: str) -> int | None:
    """After reasoning: the last marked answer (``Answer: 6``, ``the answer is 6``), else the last number."""
    return _value(reading.last(int, completion))


def parse_last_boolean(completion: str) -> bool | None:
    """After reasoning: the last marked answer, else the last True or False."""
    return _value(reading.last(bool, completion))


def _value(found: reading.Found | None) -> Any:
    return None if found is None else found.value


PARSERS: dict[str, Parser] = {
    "integer": parse_integer,
    "boolean": parse_boolean,
    "variable_binding": parse_variable_binding,
    "last_integer": parse_last_integer,
    "last_boolean": parse_last_boolean,
}

TASKS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(GENERATORS, ("RANGE_TRACKING", "integer")),
    "variable_binding": ("VARIABLE_BINDING", "variable_binding"),
    "entity_tracking": ("ENTITY_TRACKING", "variable_binding"),
    "exception": ("EXCEPTION_HANDLING", "integer"),
    "boolean": ("BOOLEAN_LOGIC", "boolean"),
}
"""Names of the template and the parser that a generator's programs are asked and answered with, by its own name."""


_READ: dict[Any, Callable[[str], reading.Found | None]] = {
    parse_integer: partial(reading.first, int),
    parse_boolean: partial(reading.first, bool),
    parse_variable_binding: partial(reading.beginning, int),
    parse_last_integer: partial(reading.last, int),
    parse_last_boolean: partial(reading.last, bool),
}


def answer_span(parser: Parser, completion: str) -> tuple[int, int] | None:
    """The characters [start, end) of a completion that the parser reads as its answer; None where there is none, or the
    parser is one's own."""
    found = _READ[parser](completion) if parser in _READ else None
    return None if found is None or found.value is None else (found.start, found.end)


def cut_off(parser: Parser, completion: str) -> bool:
    """Whether the answer may lie beyond the end of a text that did not end by itself: a parser of last answers, and
    nothing in the text that says ``Answer:``."""
    kind = {parse_last_integer: int, parse_last_boolean: bool}.get(parser)
    return kind is not None and reading.marked(kind, completion) is None


def get_parser(parser: str | Parser) -> tuple[str, Parser]:
    """Name and function of a parser given as either.

    Raises:
        ValueError: no parser of that name; the message lists those there are.
    """
    if callable(parser):
        names = {function: name for name, function in PARSERS.items()}
        return names.get(parser, getattr(parser, "__name__", type(parser).__name__)), parser
    if parser not in PARSERS:
        raise ValueError(f"unknown answer parser {parser!r}; there are: {', '.join(PARSERS)}")
    return parser, PARSERS[parser]


def parse_answer(parser: Parser, completion: str) -> Answer | None:
    """What the parser makes of a completion.

    Raises:
        ValueError: the parser raised, or returned something that is no answer.
    """
    try:
        parsed = parser(completion)
    except Exception as error:
        raise ValueError(f"answer parser failed on {completion[:200]!r}: {type(error).__name__}: {error}") from error
    if parsed is not None:
        try:
            checks.answer(parsed)
        except ValueError as error:
            raise ValueError(
                f"answer parser returned {checks.shown(parsed)}; expected an integer, a text, a bool, or None: {error}"
            ) from error
    return parsed


INDEPENDENT_SEED = 1_000_000
"""Where the seeds of independent cells begin: beyond those of solved examples, and of programs held out in training."""


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
        few_shot: solved programs of the same length in front of each program, from seeds of their own.
        chat: put the prompt into the model's chat template, as the user's turn.
        scoring: "generate" parses what the model writes; "logits" ranks the possible answers by their first token.

    Raises:
        ValueError: names the field, what it was, and what was expected.
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
            raise ValueError(f"name is {self.name!r}; expected the name of the experiment")
        for field in ("models", "seq_lens", "hops"):
            object.__setattr__(self, field, _distinct(field, getattr(self, field)))
        for model in self.models:
            if not isinstance(model, str) or not model:
                raise ValueError(f"models contains {model!r}; expected model ids such as 'tiny'")
        reasoning = get_prompt(self.prompt_template)[1] in REASONING
        if self.max_new_tokens is None:
            object.__setattr__(self, "max_new_tokens", 512 if reasoning else 8)
        for field, least in (("num_seqs", 1), ("seed", 0), ("max_new_tokens", 1), ("few_shot", 0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{field} is {value!r}; expected an integer, {least} or more")
        for field in ("chat", "independent_cells"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} is {getattr(self, field)!r}; expected true or false")
        if self.scoring not in ("generate", "logits"):
            raise ValueError(f"scoring is {self.scoring!r}; expected generate or logits")
        if self.scoring == "logits" and (reasoning or self.chat):
            raise ValueError("scoring is 'logits': the answer must come right after the prompt, not after reasoning")
        generator_name, generator = get_generator(self.program_generator)
        takes_hops = "num_hops" in inspect.signature(generator).parameters
        for seq_len in self.seq_lens:
            check_lengths(seq_len)
        for hops in self.hops:
            check_lengths(max(self.seq_lens), hops)
            if hops is not None and not takes_hops:
                raise ValueError(f"hops is {hops}, but generator {generator_name!r} takes no num_hops; leave it out")
        if self.answer_parser is None:
            parser = TASKS.get(generator_name, ("", "integer"))[1]
            if reasoning:
                parser = "last_boolean" if parser == "boolean" else "last_integer"
            object.__setattr__(self, "answer_parser", parser)
        get_parser(self.answer_parser)  # type: ignore[arg-type]
        self.prompt_text(max(self.seq_lens))
        last = max(self.first_seed(*cell) for cell in self.cells) + MAX_SEEDS
        if self.independent_cells and last > 2**32:
            raise ValueError(
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
        """The template for programs of one length, with the solved examples that belong to it."""
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
    """What a reader must know who compares these cells, each (generator, hops, seq_len, first seed): that they share
    programs; None where no two draw from the same seeds."""
    for one, other in combinations(set(cells), 2):
        if one[0] == other[0] and one[1:3] != other[1:3] and abs(one[3] - other[3]) < MAX_SEEDS:
            return (
                "These cells share seeds, and with them programs or their first lines: their rates rise and fall "
                "together, and are no independent repetitions (--independent-cells draws each cell by itself)."
            )
    return None


def _distinct(field: str, values: Any) -> tuple:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{field} is {values!r}; expected a list of one or more")
    if any(value in values[:place] for place, value in enumerate(values)):
        raise ValueError(f"{field} is {list(values)}; each may be there once")
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
        ValueError: as :class:`ExperimentConfig`.
    """
    return ExperimentConfig(name, prompt_template, program_generator, models, num_seqs, seq_lens, **options)
