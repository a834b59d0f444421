"""What an accuracy experiment is: its configuration, checked before anything runs, and the parsers of answers.

A parser is ``(completion) -> answer``, None where the text holds no answer: "no answer" is never a wrong answer. Adding
one is writing the function and naming it in ``PARSERS``; a function of your own works without that. Knows no model and
no store.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debug.generators import Generator, check_lengths, get_generator
from debug.prompts import get_prompt

Answer = int | str | bool
Parser = Callable[[str], Answer | None]

# Digits that are a number of their own, 1024 or 1,024: no part of a word (x2, 2nd) or of a decimal fraction (3.5). More
# than 18 digits are no answer to any program here, and no text of a model may cost more than that to convert.
_INTEGER = (
    r"(?<![\w.])(?<![0-9],)-?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3}){0,5}(?!,[0-9]{3}(?![0-9]))|[0-9]{4,18})(?!\w|\.[0-9])"
)
_FIRST = re.compile(rf"({_INTEGER})")
_AFTER_IS = re.compile(rf"\bis:[\s*`]*({_INTEGER})")
_AT_START = re.compile(rf"\s*({_INTEGER})")


def parse_integer(completion: str) -> int | None:
    r"""The number that follows the first ``is:``, else the first number of the text; None where there is none.

    Models often complete ``The final value of x is:`` with a sentence of their own, so the number after ``is:`` wins:
    ``3 is: 6\n``` `` gives 6, ``10\n``` `` gives 10, ``21. So, the correct output is`` gives 21.
    """
    text = completion.replace("\N{MINUS SIGN}", "-")
    match = _AFTER_IS.search(text) or _FIRST.search(text)
    return _integer(match[1]) if match else None


def parse_variable_binding(completion: str) -> int | None:
    r"""The integer with which the text begins (``4\n#b: 3`` gives 4); None where it begins with anything else."""
    match = _AT_START.match(completion.replace("\N{MINUS SIGN}", "-"))
    return _integer(match[1]) if match else None


def _integer(text: str) -> int:
    return int(text.replace(",", ""))


PARSERS: dict[str, Parser] = {
    "integer": parse_integer,
    "variable_binding": parse_variable_binding,
}


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
    if parsed is not None and not isinstance(parsed, Answer):
        raise ValueError(f"answer parser returned {parsed!r:.200}; expected an integer, a text, a bool, or None")
    return parsed


@dataclass(frozen=True)
class ExperimentConfig:
    """An accuracy experiment: each model on each combination of ``hops`` and ``seq_lens``, ``num_seqs`` programs each.

    Template, generator and parser are given by name or as themselves. Sequences are kept as tuples.

    Attributes:
        seed: the RNG seed of each cell's first program; the next has seed + 1, and so on.
        hops: None for the generator's own draw, or the exact number, which the generator must take as ``num_hops``.
        answer_parser: None for the parser of that name where the generator has one, else ``parse_integer``.
        max_new_tokens: tokens that a completion may have.

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
    max_new_tokens: int = 8

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"name is {self.name!r}; expected the name of the experiment")
        for field in ("models", "seq_lens", "hops"):
            object.__setattr__(self, field, _distinct(field, getattr(self, field)))
        for model in self.models:
            if not isinstance(model, str) or not model:
                raise ValueError(f"models contains {model!r}; expected model ids such as 'tiny'")
        for field, least in (("num_seqs", 1), ("seed", 0), ("max_new_tokens", 1)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{field} is {value!r}; expected an integer, {least} or more")
        generator_name, generator = get_generator(self.program_generator)
        takes_hops = "num_hops" in inspect.signature(generator).parameters
        for seq_len in self.seq_lens:
            for hops in self.hops:
                check_lengths(seq_len, hops)
                if hops is not None and not takes_hops:
                    raise ValueError(
                        f"hops is {hops}, but generator {generator_name!r} takes no num_hops; leave it out"
                    )
        get_prompt(self.prompt_template)
        if self.answer_parser is None:
            parser = generator_name if generator_name in PARSERS else "integer"
            object.__setattr__(self, "answer_parser", parser)
        get_parser(self.answer_parser)  # type: ignore[arg-type]

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
        }


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
