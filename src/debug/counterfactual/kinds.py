"""Counterfactuals by name: what of a program is changed, and what each hypothesis then predicts.

A kind proposes changed texts; a program's own language reads them and says what the answer is, so that nothing is
believed of a change that is not so. Texts are changed as texts: the same for variable binding and for Python.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, islice
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from debug.counterfactual.pairs import make_pair, of_code, python_pair, same_answer_program
from debug.hypotheses.models import HYPOTHESES, NAME, ORDER, VALUE, prediction
from debug.interpreter import Code
from debug.programs import KEEPS_ANSWER, Answer, AnyPair, Program, ProgramError, ProgramPair, Span, TextPair
from debug.programs.pairs import ROOT_VALUE

TRIED = 200  # changed texts of a program, of which the one on which most hypotheses differ is taken
_BOUND = re.compile(
    r"^[ \t]*(?P<name>[A-Za-z_]\w*)[ \t]*=[ \t]*(?P<value>-?\d+|True|False|'[^'\n\\]*'|\"[^\"\n\\]*\")[ \t]*$", re.M
)
_WORD = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|(?P<name>[A-Za-z_]\w*)")


class Bound(NamedTuple):
    """A line ``name = literal``: its span without its indentation, and that of the literal."""

    span: Span
    name: str
    value_span: Span
    value: str


Source = Program | Code
P = TypeVar("P", bound=AnyPair)


class Readable(Protocol):
    """What a language's reader makes of a text."""

    @property
    def text(self) -> str: ...

    @property
    def answer(self) -> Answer: ...


R = TypeVar("R", bound=Readable)


@dataclass(frozen=True)
class Parts:
    """What of a program's text can be exchanged."""

    program: Source

    @property
    def text(self) -> str:
        return self.program.text

    @cached_property
    def literals(self) -> list[tuple[Span, str]]:
        """Where literals stand, and how they are written."""
        own = self.program
        spans = [each.span for each in own.literals] if isinstance(own, Code) else [b.value_span for b in self.bindings]
        return [(span, self.text[slice(*span)]) for span in spans]

    @cached_property
    def bindings(self) -> list[Bound]:
        """The lines that assign a literal, in the order of the text."""
        return [
            Bound((m.start("name"), m.end()), m["name"], m.span("value"), m["value"])
            for m in _BOUND.finditer(self.text)
        ]

    @cached_property
    def names(self) -> list[tuple[Span, str]]:
        """Where the names that are assigned stand, the query's too; not in texts."""
        assigned = {m[1] for m in re.finditer(r"\b([A-Za-z_]\w*)[ \t]*(?:[-+*/%]|//)?=(?!=)", self.text)}
        return [(m.span("name"), m["name"]) for m in _WORD.finditer(self.text) if m["name"] in assigned]

    @cached_property
    def reads(self) -> list[tuple[Span, str]]:
        """Of these, those that are read to the right of a line's ``=``: of variable binding, of the queried chain."""
        if isinstance(self.program, Program):
            return [(link.rhs_span, link.rhs) for link in self.program.chain.assignments[1:]]
        return [
            (span, name)
            for span, name in self.names
            if "=" in (before := self.text[self.text.rfind("\n", 0, span[0]) + 1 : span[0]]) and "#" not in before
        ]

    def with_texts(self, changes: Mapping[Span, str]) -> str:
        """The text with others in the place of some of its spans."""
        text, end = "", 0
        for (start, stop), other in sorted(changes.items()):
            text += self.text[end:start] + other
            end = stop
        return text + self.text[end:]


Language = TypeVar("Language")


class Kind(NamedTuple, Generic[Language]):
    """A kind of counterfactual, of programs of a language."""

    texts: Callable[[Language, np.random.RandomState], Iterator[str]]
    """Changed programs that might do."""
    says: str
    """What is changed, and what the hypotheses predict."""
    moves: str | None = None
    """The hypothesis that must predict another answer than the original's; None: none does."""


def as_program(text: str) -> Source:
    """A text as variable binding, else as Python; raises ProgramError where it is neither."""
    try:
        return Program.parse(text)
    except ProgramError as error:
        try:
            return Code.parse(text)
        except ProgramError as other:
            raise ProgramError(f"{error}; read as Python: {other}") from other


def counterfactual(
    kind: str, text: str, seed: int | None = None, read: Callable[[str], Source] = as_program
) -> AnyPair:
    """The pair of a program with its counterfactual of a kind; drawn by ``RandomState([seed, 1])``.

    The root value's is that of :func:`make_pair` (of a Python program :func:`python_pair`). Of the others' candidates
    it is the first on which most hypotheses predict different answers.

    Args:
        read: how texts are read; ``partial(Code.parse, query="x")`` for Python that ends in no query line.

    Raises:
        ProgramError: the text is no program, or it has no such counterfactual.
    """
    if kind not in KINDS:
        raise ProgramError(f"kind is {kind!r:.80}; expected one of {', '.join(KINDS)}")
    original = read(text)
    if kind == ROOT_VALUE:
        if isinstance(original, Program):
            return make_pair(original, seed)
        return python_pair(text, seed, original.query)
    texts = KINDS[kind].texts(Parts(original), np.random.RandomState([seed or 0, 1]))
    return choose(kind, KINDS[kind], texts, original, read, lambda changed: _pair(original, changed, seed, kind, read))


def choose(
    name: str,
    kind: Kind,
    texts: Iterable[str],
    original: R,
    read: Callable[[str], R],
    pair_with: Callable[[R], P],
) -> P:
    """The pair with the first of these candidates on which most hypotheses predict different answers (of a kind that
    moves none, fewest); those that are no program, or not of the kind called ``name``, are passed over.

    Raises:
        ProgramError: none is left.
    """
    best: tuple[int, P] | None = None
    for text in islice(texts, TRIED):
        try:
            changed = read(text)
        except ProgramError:
            continue
        if changed.text == original.text or (changed.answer == original.answer) != KEEPS_ANSWER[name]:
            continue
        pair = pair_with(changed)
        if kind.moves is not None and prediction(kind.moves, pair, "final") in (None, original.answer):
            continue
        different = _different(pair)
        if best is None or (different > best[0] if kind.moves else different < best[0]):
            best = different, pair
        if different >= MOST_DIFFERENT.get(name, 2) if kind.moves else different == 1:
            break
    if best is None:
        raise ProgramError(f"the program has no counterfactual of kind {name}: {kind.says}")
    return best[1]


def _pair(original: Source, changed: Source, seed: int | None, kind: str, read: Callable[[str], Source]) -> AnyPair:
    if isinstance(original, Program) and isinstance(changed, Program):
        return ProgramPair(original, changed, seed, kind)
    assert isinstance(original, Code)
    assert isinstance(changed, Code)
    predictions = {
        name: answer
        for name, bound in ((NAME, _by_name), (ORDER, _by_order))
        if (answer := _referred(original, changed, bound, read)) is not None
    }
    return TextPair(of_code(original), of_code(changed), seed, kind, predictions)


def _referred(
    original: Code, source: Code, bound: Callable[[Parts, Parts], dict[Span, str]], read: Callable[[str], Source]
) -> Answer | None:
    """The answer of the source's references with the original's literals; None where that is no program."""
    parts = Parts(source)
    try:
        return read(parts.with_texts(bound(Parts(original), parts))).answer
    except ProgramError:
        return None


def _by_name(original: Parts, source: Parts) -> dict[Span, str]:
    """Of the source's literals those of the original: in lines ``name = literal`` by name, the rest by order."""
    by_name = {
        name: iter([each.value for each in original.bindings if each.name == name])
        for name in {each.name for each in [*original.bindings, *source.bindings]}
    }
    bound_at = {each.value_span: each.name for each in source.bindings}
    rest = iter([text for at, text in original.literals if at not in {each.value_span for each in original.bindings}])
    found = {}
    for at, text in source.literals:
        own = by_name[bound_at[at]] if at in bound_at else rest
        found[at] = next(own, text)
    return found


def _by_order(original: Parts, source: Parts) -> dict[Span, str]:
    return {at: other for (at, _), (_, other) in zip(source.literals, original.literals, strict=False)}


def _different(pair: AnyPair) -> int:
    """How many different answers the hypotheses predict of patches at the last token."""
    said = {prediction(name, pair, "final") for name in HYPOTHESES}
    return len(said - {None})


def _permuted(parts: Parts, text: str, rng: np.random.RandomState) -> str:
    """A text with the lines in another order: of variable binding each behind those that it needs, of Python those that
    assign literals in one another's places."""
    if isinstance(parts.program, Code):
        bindings = Parts(replace(parts.program, text=text)).bindings
        order = rng.permutation(len(bindings))
        moved = {own.span: text[slice(*bindings[at].span)] for own, at in zip(bindings, order, strict=True)}
        return Parts(replace(parts.program, text=text)).with_texts(moved)
    *lines, query = text.split("\n")
    words = [re.split(r"[ \t]*=[ \t]*", line.strip()) for line in lines]  # name, value
    placed: list[int] = []
    left = list(range(len(lines)))
    while left:
        ready = [at for at in left if not any(words[b][0] in (words[at][0], words[at][-1]) for b in left if b < at)]
        ready = [at for at in ready if not any(words[at][0] == words[b][-1] for b in left if b < at)]
        placed.append(ready[rng.randint(len(ready))])
        left.remove(placed[-1])
    return "\n".join([*(lines[at] for at in placed), query])


def _pointer(parts: Parts, rng: np.random.RandomState) -> Iterator[str]:
    names = list(dict.fromkeys([*(each.name for each in parts.bindings), *(name for _, name in parts.names)]))
    if isinstance(parts.program, Program):  # the root variables alone: most of the others have the chain's own value
        names = names[: len({each.name for each in parts.bindings})]
    used = {value for _, value in parts.literals}
    free = [digit for digit in string.digits if digit not in used]
    while parts.reads:
        span, name = parts.reads[rng.randint(len(parts.reads))]
        others = [other for other in names if other != name and len(other) == len(name)]
        if not others:
            return
        drawn = iter([*rng.permutation(free), *rng.permutation(list(string.digits))])
        digits = [b.value_span for b in parts.bindings if re.fullmatch(r"\d", b.value)]
        changes = {at: str(value) for at, value in zip(digits, drawn, strict=False)}
        yield _permuted(parts, parts.with_texts(changes | {span: str(rng.choice(others))}), rng)


def _swap_values(parts: Parts, rng: np.random.RandomState) -> Iterator[str]:
    for at in rng.permutation([*combinations(range(len(parts.literals)), 2)]).reshape(-1, 2).tolist():
        (one, value), (other, others) = (parts.literals[i] for i in at)
        if value != others and len(value) == len(others):
            yield parts.with_texts({one: others, other: value})


def _rename(parts: Parts, rng: np.random.RandomState) -> Iterator[str]:
    names = sorted({name for _, name in parts.names})
    for at in rng.permutation([*combinations(range(len(names)), 2)]).reshape(-1, 2).tolist():
        one, other = (names[i] for i in at)
        if len(one) == len(other):
            new = {one: other, other: one}
            yield parts.with_texts({span: new.get(name, name) for span, name in parts.names})


def _reorder(parts: Parts, rng: np.random.RandomState) -> Iterator[str]:
    while True:
        yield _permuted(parts, parts.text, rng)


def _distractor(parts: Parts, rng: np.random.RandomState) -> Iterator[str]:
    used = {value for _, value in parts.literals}
    free = [digit for digit in string.digits if digit not in used] or list(string.digits)
    for at in rng.permutation(len(parts.literals)).tolist():
        span, value = parts.literals[at]
        if re.fullmatch(r"\d", value):
            yield parts.with_texts({span: str(rng.choice(free))})


def _same_answer(parts: Parts, rng: np.random.RandomState) -> Iterator[str]:
    if isinstance(parts.program, Program):
        controls = (same_answer_program(parts.program, attempt) for attempt in range(10))
        yield from (control.text for control in controls if control is not None)
        return
    names = list(dict.fromkeys(name for _, name in parts.names if len(name) == 1))
    free = [letter for letter in string.ascii_lowercase if letter not in names]
    if names and len(free) >= len(names):
        new = dict(zip(names, map(str, rng.permutation(free)), strict=False))
        yield parts.with_texts({span: new.get(name, name) for span, name in parts.names})


KINDS: dict[str, Kind[Parts]] = {
    ROOT_VALUE: Kind(
        lambda *_: iter(()),
        "another root value, and nothing else: value predicts it, the pointers and no effect the original's answer",
    ),
    "pointer": Kind(
        _pointer,
        "a line of the chain reads another variable, lines are permuted, numbers are others: value predicts "
        "the counterfactual's answer, pointer_by_name what the original has under its name, pointer_by_order what the "
        "original has in its line",
        moves=NAME,
    ),
    "swap_values": Kind(
        _swap_values,
        "two variables exchange their values: value predicts the other one, the pointers and no effect the original's",
        moves=VALUE,
    ),
    "rename": Kind(
        _rename,
        "two variables exchange their names everywhere: pointer_by_name predicts the other one's value, all others the "
        "answer that both programs have",
        moves=NAME,
    ),
    "reorder": Kind(
        _reorder,
        "lines are permuted: pointer_by_order predicts what the original has in the root's new "
        "line, all others the answer that both programs have",
        moves=ORDER,
    ),
    "distractor": Kind(
        _distractor, "a value that the answer does not come from is another: all predict the same answer"
    ),
    "same_answer": Kind(_same_answer, "fresh names, the control of other runs: all predict the same answer"),
}
"""Kind -> what is changed; the first is that of a run that says nothing."""
MOST_DIFFERENT = {"pointer": 4}
"""At so many different predictions no better candidate is looked for; of other kinds at two."""
