"""The numbers and truth values of a text, with the operators between them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Value = int | bool


class Found(NamedTuple):
    """A value of the text, with the characters [start, end) in which it stands."""

    value: Value | None
    """None: a value that is no answer (3.5), or a calculation without its result."""
    start: int
    end: int
    begin: int
    """Where the equation begins of which it is the result; its own start elsewhere."""
    calculation: bool = False


# --- lines of code ----------------------------------------------------------------------------------------------------

# A line of code gives no answer, whatever numbers it holds. ``x = 6`` alone does; among lines of code it is one.
_OPERAND = r"(?:not\s+|-)?(?:abs\()?\w+\)?"
EXPRESSION = rf"{_OPERAND}(?:(?:\s*(?://|[-+*/%^|&])\s*|\s+(?:and|or)\s+){_OPERAND})"


# --- tokens -----------------------------------------------------------------------------------------------------------

_GROUP = r"\{,\}|\\,|[.,_\u00a0\u2009\u202f]"  # between groups of digits; LaTeX has two of its own
_TOKEN = re.compile(
    rf"""
    (?P<number>(?<![\w.])[0-9]++(?:(?:{_GROUP})[0-9]++)*+(?!\w))
    |(?P<junk>[0-9]\w*+|range\([0-9,\ -]*+\))
    |(?P<command>\\[A-Za-z]++)
    |(?P<word>[Nn]o\ longer\b|[^\W\d]\w*+(?:['’][^\W\d]\w*+)*+)
    |(?P<compare>[<>!]=|<|>)
    |(?P<augmented>(?://|\*\*|[-+*/%^])=(?!=))
    |(?P<equals>=>|->|={{1,3}}|[→⇒])
    |(?P<operator>\*\*|//|\}}\{{|[-+*/%^&×÷·⋅∧∨−‐‑‒–﹣－])
    |(?P<line>\n)
    |(?P<skip>(?:[^\S\n]|[`'"“”‘’$£€¥(){{}}\[\]])++|\\[()\[\]!;]|\|(?=[-−\w])|(?<=\w)\|)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
MINUS = "-−‐‑‒–﹣－"
_OPERATORS = {"plus", "minus", "times", "mod", "modulo", "divided", "multiplied"}
_LATEX_OPERATORS = {r"\times", r"\cdot", r"\div", r"\land", r"\lor"}
_LOGICAL = {"and", "or", "xor"}
_RESULTS = {"is", "equals", "equal", "gives", "makes", "yields", "becomes"}
_NO_OPERAND = _RESULTS | {
    *("was", "are", "be", "been", "to", "as", "of", "and", "or", "the", "a", "an", "that", "then", "so", "now", "than"),
    *("get", "gets", "return", "returns", "by", "at", "from", "with", "for", "in", "on", "only", "just", "about"),
    *("answer", "value", "output"),
}
"""Words behind which a minus is a sign: "it is - 5", and not "x - 5"."""
_COUNTED = {
    *("step", "line", "iteration", "round", "loop"),
    *("question", "problem", "exercise", "example"),
}
_AMOUNTS = {"steps", "lines", "iterations", "rounds", "loops", "times"}
_SIGNS = {"minus", "negative"}
_RANGE = {*"-−‑‒–/", "of", "to", "and", "or", "through"}
_ITEM = re.compile(r"^[ \t*_#]{0,9}([0-9]{1,2})[.)](?=[ \t*])", re.MULTILINE)
_TRUTH = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}
_NEGATED = {"not", "never", "cannot", "no longer"}
_LOGICAL_NOT = {"¬", r"\neg", r"\lnot"}
_UNDECIDED = {"neither", "nor", "sometimes"}
_NOT_ALWAYS = {"necessarily", "always"}  # undecided behind a negation
_BETWEEN_NEGATED = {"be", "equal", "equals", "to", "a", "an", "the", "really", "actually", "simply"}


class _Token(NamedTuple):
    kind: str
    text: str
    start: int
    end: int


_END = _Token("line", "", -1, -1)  # what is before the first token and behind the last


def _integer(digits: str) -> int | None:
    """The integer that a number is, of at most 18 digits; None where it is none, or longer."""
    digits = re.sub(_GROUP.replace(".", "", 1), ",", digits)
    match = re.fullmatch(r"([0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)(?:\.0+)?", digits)
    whole = match[1].replace(",", "") if match else ""
    return int(whole) if 0 < len(whole) <= 18 else None


@dataclass
class _Run:
    """Operands that operators and equals signs join: an equation, a calculation, or one value alone."""

    items: list[Found | str] = field(default_factory=list)
    """Values, and "name", "op", "hyphen", "eq" or "augmented"."""
    begin: int = 0
    calculates: bool = False

    @property
    def expects(self) -> bool:
        """Whether an operand comes next."""
        return not self.items or self.items[-1] in ("op", "hyphen", "eq", "augmented")

    def operand(self, item: Found | str, begin: int) -> None:
        if not self.items:
            self.begin = begin
        self.items.append(item)

    def operator(self, item: str) -> None:
        self.items.append(item)
        self.calculates = True

    def values(self) -> Iterator[Found]:
        items = list(self.items)
        dangling = False
        while items and items[-1] in ("op", "hyphen", "eq", "augmented"):
            dangling |= items.pop() == "eq"
        segments: list[list[Found | str]] = [[]]
        for item in items:
            segments.append([]) if item == "eq" else segments[-1].append(item)
        values = [item for item in items if isinstance(item, Found)]
        if not values or "augmented" in items:
            return
        alone = [segment[0] for segment in segments if len(segment) == 1 and isinstance(segment[0], Found)]
        last = segments[-1]
        if len(segments) == 1 and not (dangling and len(last) > 1):
            if len(values) == 1:
                yield values[0]._replace(begin=self.begin)
            elif "op" not in last:
                yield from values
            else:
                yield Found(None, values[0].start, values[-1].end, self.begin, calculation=True)
        elif alone:
            yield alone[-1]._replace(begin=self.begin)
        else:
            yield Found(None, values[0].start, values[-1].end, self.begin, calculation=True)


def values_in(kind: type, text: str) -> Iterator[Found]:
    """The values of a text, int or bool, in order; equations are their results."""
    return _Reader(kind, text).values()


class _Reader:
    """A text that is read token by token: the equation so far, and what was said of the value that comes next."""

    def __init__(self, kind: type, text: str) -> None:
        tokens = (_Token(match.lastgroup or "", match[0], *match.span()) for match in _TOKEN.finditer(text))
        self.kind, self.text = kind, text
        self.tokens = [token for token in tokens if token.kind != "skip"]
        self.listed = _list_numbers(text)
        self.counted: set[int] = set()
        """Where numbers begin that only count."""
        self.run = _Run()
        self.sign: int | None = None
        """Where a sign of the next number stands."""
        self.negated: Literal[True, "undecided"] | None = None
        """What is said of the next truth value."""
        self.said = 0
        """Where that is said."""

    def values(self) -> Iterator[Found]:
        for number, token in enumerate(self.tokens):
            yield from self._take(number, token)
        yield from self._ended()

    def _ended(self) -> Iterator[Found]:
        """The values of the equation so far; a new one begins."""
        run, self.run = self.run, _Run()
        return run.values()

    def _take(self, number: int, token: _Token) -> Iterable[Found]:
        """Read one token; the values of an equation that ends with it."""
        kind, run = self.kind, self.run
        following = self.tokens[number + 1] if number + 1 < len(self.tokens) else _END
        before = self.tokens[number - 1] if number else _END
        word = token.text if token.kind == "word" else ""
        lower = word.lower()
        if token.kind == "number" and kind is int:
            return self._number(number, token)
        if kind is bool and word in _TRUTH and self.text[token.start - 1 : token.start] != ".":
            return self._truth(token)
        if token.kind == "operator" and token.text in MINUS:
            return self._minus(token)
        if lower in _SIGNS and following.kind == "number" and (run.expects or lower == "negative"):
            self.sign = token.start
        elif token.kind == "operator" or token.text in _LATEX_OPERATORS or _joins(kind, token, before, following):
            if not run.expects:
                run.operator("op")
            self.sign = None
        elif token.kind == "equals" or (word in _RESULTS and run.calculates):
            self._equals()
        elif token.kind == "augmented":
            if not run.expects:
                run.items.append("augmented")
        elif lower in _NOT_ALWAYS:
            self.negated = self.negated and "undecided"
        elif (
            lower in _NEGATED | _UNDECIDED
            or re.search(r"n['’]t$", word)
            or (kind is bool and token.text in _LOGICAL_NOT)
        ):
            self._negation(token, undecided=lower in _UNDECIDED)
        elif (self.negated and lower in _BETWEEN_NEGATED) or (word == "by" and _joins(kind, before, before, token)):
            pass
        elif word and lower not in _NO_OPERAND:
            return self._name(token, following)
        else:
            self.sign = self.negated = None
            return self._ended()
        return ()

    def _number(self, number: int, token: _Token) -> Iterator[Found]:
        """An operand; or a number that only counts, is a list's or is negated: that ends the equation before it."""
        if counts := _only_counts(self.tokens, number, self.counted):
            self.counted.add(token.start)
        if counts or self.negated or token.start in self.listed:
            yield from self._ended()
            self.sign = self.negated = None
            return
        for n, found in enumerate(_numbers(token, self.sign)):
            if n or not self.run.expects:
                yield from self._ended()
            self.run.operand(found, found.start)
        self.sign = None

    def _truth(self, token: _Token) -> Iterator[Found]:
        """True or False: negated, or undecided, where that was said of it."""
        if not self.run.expects:
            yield from self._ended()
        truth = None if self.negated == "undecided" else _TRUTH[token.text] ^ (self.negated is True)
        start = self.said if self.negated else token.start
        self.run.operand(Found(truth, start, token.end, start), start)
        self.negated = None

    def _minus(self, token: _Token) -> Iterator[Found]:
        """An operator, a sign, or both; a dash ends the equation before it."""
        spaced = self.text[token.start - 1 : token.start].isspace() or token.start == 0
        attached = self.text[token.end : token.end + 1].strip() != ""
        if token.text not in "-−" and not attached:
            yield from self._ended()
            self.sign = None
        elif self.run.expects or (spaced and attached and self.run.items[-1] == "name"):
            if not self.run.expects:
                yield from self._ended()
            self.sign = token.start
        else:
            # 3-1 is a range as well as a difference, 3 -1 two numbers: their result tells, if there is one.
            self.run.operator("op" if spaced and not attached else "hyphen")
            self.sign = token.start if spaced and attached else None

    def _equals(self) -> None:
        """What comes next is the result; operators that wait for an operand are dropped."""
        if self.run.items[1:2] == ["augmented"]:  # x += 2 → x = 2
            self.run = _Run()
        items = self.run.items
        if items and items[-1] != "eq":
            while items[-1] in ("op", "hyphen"):
                items.pop()
            items.append("eq")
        self.sign = self.negated = None

    def _negation(self, token: _Token, *, undecided: bool) -> None:
        """A word that negates the next value; two of them cancel each other."""
        undecided = undecided or self.negated == "undecided"
        self.said = self.said if self.negated else token.start
        self.negated = "undecided" if undecided else (None if self.negated else True)

    def _name(self, token: _Token, following: _Token) -> Iterator[Found]:
        """A word that is an operand; or the unit of a number in a calculation, which says nothing."""
        self.negated, self.sign = None, None
        unit = self.run.items and isinstance(self.run.items[-1], Found) and self.kind is int
        if unit and (following.kind == "operator" or (self.run.calculates and following.kind == "equals")):
            return  # 2 apples + 3 apples = 5 apples
        if not self.run.expects:
            yield from self._ended()
        self.run.operand("name", token.start)


def _only_counts(tokens: list[_Token], number: int, counted: set[int]) -> bool:
    """Whether a number only counts: step 3, step #3, the 5 of steps 3-5 and step 1/5, 3 steps (but not 3 times 2)."""
    earlier, before = (tokens[n] if n >= 0 else _END for n in (number - 2, number - 1))
    following, behind = (tokens[n] if n < len(tokens) else _END for n in (number + 1, number + 2))
    return (
        _counts(before)
        or (before.text == "#" and _counts(earlier))
        or (before.text.lower() in _RANGE and earlier.start in counted)
        or (following.text.lower() in _AMOUNTS and behind.kind != "number")
    )


def _counts(token: _Token) -> bool:
    return token.text.lower().removesuffix("s") in _COUNTED


def _list_numbers(text: str) -> set[int]:
    """Where the numbers of lists begin: lines that begin with the one before or behind are there too."""
    items = [(int(item[1]), item.start(1)) for item in _ITEM.finditer(text)]
    numbers = {number for number, _ in items}
    return {start for number, start in items if numbers & {number - 1, number + 1}}


def _joins(kind: type, token: _Token, before: _Token, following: _Token) -> bool:
    """Whether a word is an operator: plus, 3 x 4; of truth values and, or."""
    if token.kind != "word":
        return False
    if kind is bool:
        return token.text.lower() in _LOGICAL
    return token.text.lower() in _OPERATORS or (token.text in "xX" and before.kind == following.kind == "number")


def _numbers(token: _Token, sign: int | None) -> Iterator[Found]:
    """The number of a token; several where commas separate them (1,2)."""
    value = _integer(token.text)
    start = token.start if sign is None else sign
    if value is not None or "," not in token.text or re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", token.text):
        if token.text.count(".") < 2:  # 3.11.2 is no number
            yield Found(value if value is None or sign is None else -value, start, token.end, start)
        return
    at = token.start
    for place, digits in enumerate(token.text.split(",")):
        value = _integer(digits)
        signed = sign if place == 0 else None
        start = at if signed is None else signed
        yield Found(-value if value is not None and signed is not None else value, start, at + len(digits), start)
        at += len(digits) + 1
