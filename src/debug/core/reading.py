"""From a completion's text to the answer in it, and where it stands. The rules, in the order in which they apply:

1. Lines of code, ``range(3)`` and what stands in ``<think>`` hold no answer; nor do numbers that only count
   (``Step 1``, ``lines 3-5``, ``3 times``) and those that number a list (``1.`` above ``2.``).
2. A number is one of at most 18 digits, alone or in groups (1024, 1,024), with its sign (-5, - 5, −5) and without its
   currency. ``12.0`` is 12; ``3.5`` is a value, and no integer, so that it is no answer. ``x - 5`` is no -5.
3. Of an equation the last side that is one value counts: ``5 + 10 = 15`` and ``15 = 5 + 10`` are 15, ``True and False
   = False`` is False. A calculation without its result (``5 + 10``, ``True or False``) is no answer.
4. A negated truth value is the other one: ``not True`` and ``isn't true`` are False. ``not necessarily true`` and
   ``neither True nor False`` are none, nor is a negated number (``not 5``).
5. What follows a new question is not read, once there was an answer: ``Question 2``, ``Q:``, ``Here is a program``.
6. A marked answer comes before all that is not marked: what follows ``Answer:``, ``the answer is``, ``final value of x
   is``, ``####``, ``<answer>``, or stands in ``\boxed{}``. It is what follows the mark right away, else the only value
   of the sentence, else the one behind its last ``is``, ``=`` or colon; a sentence with several others marks none.

Which of several counts, the first or the last, is the parser's: :mod:`debug.core`. Knows no task.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from itertools import takewhile

from debug.core.tokens_of_answers import EXPRESSION, MINUS, Found, values_in

_CODE = re.compile(
    rf"\s*(?:\w+\s*(?://|[-+*/%])=\s*-?\w+(?:\s*//\s*\w+)?"  # x += 3, result += 6 // 2
    rf"|[^\W\d]\w*\s*=\s*(?:{EXPRESSION}|not\s+\w+|abs\(\w+\))"  # x = x + 3, x = not x
    r"|\w+, \w+ = \w+, \w+(?: [-+*] \w+)?"  # a, b = b, a + b
    r"|for \w+ in range\(\w+\):.*|if \w+ % \w+ == \w+:|try:|except \w+:|def \w+\(.*|print\(.*\))"
    r"\s*(?:#.*)?"
)
_ASSIGNED = re.compile(r"\s*\w+\s*=\s*-?\w+\s*(?:#.*)?")


def _without_code(text: str) -> str:
    """The text with blanks in the place of its lines of code: those that nothing else can be, assignments around."""
    kept: list[str] = []
    block: list[str] = []  # lines that may be code, one below another
    for line in [*text.split("\n"), "\n"]:  # the last ends the last block
        if len(line) < 200 and (_CODE.fullmatch(line) or _ASSIGNED.fullmatch(line)):
            block.append(line)
            continue
        is_code = any(map(_CODE.fullmatch, block))
        kept += [" " * len(of_block) if is_code else of_block for of_block in block]
        block = []
        kept.append(line)
    return "\n".join(kept[:-1])


def _without_thoughts(text: str) -> str:
    """The text with blanks in the place of what a model thinks first, whose beginning may stand in the prompt."""
    behind = text.rpartition("</think>")[2]
    said = behind.partition("<think>")[0]
    return said.rjust(len(text) - len(behind) + len(said))


_MARK = re.compile(
    r"""
    (?:(?<!/)\banswer\b(?:\s+(?:to|of|for)\b[^\n.:=]{0,60}?(?=\s+(?:is|was)\b|:))?
      |\bfinal\s+(?:value|result|output)(?:\s+of\s+[`'"*]{0,3}\w+[`'"*]{0,3})?)
    [\s*_`'">]{0,9}(?P<says>\b(?:is|was|equals|(?:would|should|must|will)\s+be)\b|[:=→])?
    |\\boxed\s{0,9}(?=\{)
    |^[ \t]*\#{4}(?=[ \t]*[-−$]?[ \t]*[0-9TF])(?![ \t]*[0-9]+[.)][ \t])
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_IS = re.compile(r"\bis:")
# What may stand between a mark and its answer: **Answer:** `6`, answer is $\boxed{6}$, a code fence.
_DECORATED = re.compile(r"(?:[\s*_`'\":$£€=(\[{]|\\(?:boxed|text|mathbf|mathrm|\(|\[)|(?<=```)\w+(?=\n)){0,40}")
_BEGINNING = re.compile(rf"[\s*_`'\"$£€(\[{{]{{0,40}}[{MINUS}0-9]")
_SAYS = re.compile(r"\bis\b|\bwas\b|[=:]")
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
LONGEST_SENTENCE = 400  # characters behind a mark in which its answer is looked for
_QUESTION = re.compile(
    r"""
    (?:^|(?<=\n))[ \t*_\#>]{0,9}(?:question|problem|exercise|q|human|user)[ \t]*[0-9]{0,9}[ \t*_]{0,4}[:.)]
    |\b(?:question|problem|exercise)[ \t]+\#?[0-9]
    |\bhere\ is\ (?:a|another|the)\ (?:\w+\ ){0,2}program\b
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _right_behind(text: str, values: list[Found], mark: int) -> tuple[Found | None, int]:
    """The value that follows a mark right away, and the number of the first one that follows it at all."""
    behind = bisect_left(values, mark, key=lambda found: found.begin)
    decorated = _DECORATED.match(text, mark)
    at = decorated.end() if decorated else mark
    return (values[behind] if behind < len(values) and values[behind].begin <= at else None), behind


def _marked(text: str, values: list[Found]) -> Iterator[Found]:
    """What the marks of a text mark, in order."""
    for mark in _MARK.finditer(text):
        direct, behind = _right_behind(text, values, mark.end())
        if direct is not None:
            yield direct
            continue
        if mark.lastgroup != "says":
            continue
        stop = min(len(text), mark.end() + LONGEST_SENTENCE)
        end = _SENTENCE.search(text, mark.end(), stop)
        stop = end.start() if end else stop
        within = list(takewhile(lambda found: found.start < stop, values[behind : behind + LONGEST_SENTENCE]))  # noqa: B023
        said = [found.end() for found in _SAYS.finditer(text, mark.end(), stop)]
        after = [found for found in within if said and found.begin >= said[-1]] or within
        if len({found.value for found in after}) == 1:
            yield after[0]
        elif within:
            yield Found(None, within[0].start, within[-1].end, within[0].begin)


def _read(kind: type, completion: str) -> tuple[str, list[Found]]:
    """The text without its code, up to a new question that follows a value; and its values."""
    text = _without_code(_without_thoughts(completion))
    values = list(values_in(kind, text))
    answered = next((found.end for found in values if not found.calculation), len(text))
    if question := _QUESTION.search(text, answered):
        return text[: question.start()], [found for found in values if found.end <= question.start()]
    return text, values


def marked(kind: type, completion: str) -> Found | None:
    """The last marked answer of a text."""
    text, values = _read(kind, completion)
    return next(reversed(list(_marked(text, values))), None)


def first(kind: type, completion: str) -> Found | None:
    """The first marked answer of a text, else what follows the first ``is:``, else the first value."""
    text, values = _read(kind, completion)
    for found in _marked(text, values):
        return found
    for mark in _IS.finditer(text):
        direct, _ = _right_behind(text, values, mark.end())
        if direct is not None:
            return direct
    return next((found for found in values if not found.calculation), None)


def last(kind: type, completion: str) -> Found | None:
    """The last marked answer of a text, else the last value."""
    text, values = _read(kind, completion)
    found = next(reversed(list(_marked(text, values))), None)
    return found or next((found for found in reversed(values) if not found.calculation), None)


def beginning(kind: type, completion: str) -> Found | None:
    """The value, or the equation, with which a text begins."""
    text = completion[:LONGEST_SENTENCE]
    start = _BEGINNING.match(text)
    found = next(values_in(kind, text), None)
    return found if found and start and start.end() - 1 <= found.begin < start.end() else None
