"""Parsers of answers: completion -> answer, None where the text holds none."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from debug import checks
from debug.core import reading
from debug.errors import InputError

Answer = int | str | bool
Parser = Callable[[str], Answer | None]


def parse_integer(completion: str) -> int | None:
    r"""For models that answer at once: the first marked answer, else the number that follows the first ``is:``, else
    the first number of the text; None where there is none. The rules are those of :mod:`debug.core.reading`.

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


_WORD = re.compile(
    r"[\s*_`'\"(\[:]{0,40}(?:answer\b[\s*_:]{0,9})?(?:(?:the|an?|some)\s{1,9})?([^\W\d_]{1,40})(?![\w-])",
    re.IGNORECASE,
)


def parse_word(completion: str) -> str | None:
    """The word with which the text begins, in small letters; ``Answer:`` and an article before it do not count."""
    found = _WORD.match(completion)
    return found[1].lower() if found else None


def _value(found: reading.Found | None) -> Any:  # of the kind that was looked for
    return None if found is None else found.value


PARSERS: dict[str, Parser] = {
    "integer": parse_integer,
    "boolean": parse_boolean,
    "variable_binding": parse_variable_binding,
    "last_integer": parse_last_integer,
    "last_boolean": parse_last_boolean,
    "word": parse_word,
}


_READ: dict[Parser, Callable[[str], reading.Found | None]] = {
    parse_integer: partial(reading.first, int),
    parse_boolean: partial(reading.first, bool),
    parse_variable_binding: partial(reading.beginning, int),
    parse_last_integer: partial(reading.last, int),
    parse_last_boolean: partial(reading.last, bool),
}


def answer_span(parser: Parser, completion: str) -> tuple[int, int] | None:
    """The characters [start, end) of a completion that the parser reads as its answer; None where there is none, or the
    parser is one's own."""
    if parser is parse_word:
        word = _WORD.match(completion)
        return word.span(1) if word else None
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
        InputError: no parser of that name; the message lists those there are.
    """
    if callable(parser):
        names = {function: name for name, function in PARSERS.items()}
        return names.get(parser, getattr(parser, "__name__", type(parser).__name__)), parser
    if parser not in PARSERS:
        raise InputError(f"unknown answer parser {parser!r}; there are: {', '.join(PARSERS)}")
    return parser, PARSERS[parser]


def parse_answer(parser: Parser, completion: str) -> Answer | None:
    """What the parser makes of a completion.

    Raises:
        InputError: the parser raised, or returned something that is no answer.
    """
    try:
        parsed = parser(completion)
    except Exception as error:
        raise InputError(f"answer parser failed on {completion[:200]!r}: {type(error).__name__}: {error}") from error
    if parsed is not None:
        try:
            checks.answer(parsed)
        except ValueError as error:
            raise InputError(
                f"answer parser returned {checks.shown(parsed)}; expected an integer, a text, a bool, or None: {error}"
            ) from error
    return parsed
