"""What a program is: assignment lines, a query line, its variable chain, the pair with its counterfactual.

    k = 2
    j = k
    w = j
    #w:

Pure Python. Knows no tokens, no model, no random numbers. Text is parsed, never executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from debug.errors import InputError
from debug.kinds import Json

Span = tuple[int, int]  # start and end of a piece of text, in characters of the program

_NAME = r"[A-Za-z_][A-Za-z_0-9]*"
_NUMBER = r"0|-?[1-9][0-9]{0,17}"  # one way to write each, so that a pair can be told from the numbers alone
_ASSIGNMENT = re.compile(rf"(?P<lhs>{_NAME})[ \t]*(?P<equals>=)[ \t]*(?P<rhs>{_NUMBER}|{_NAME})[ \t]*")
_QUERY = re.compile(rf"(?P<hash>#)(?P<var>{_NAME})(?P<colon>:)[ \t]*")


class ProgramError(InputError):
    """A text that is not a program, or two programs that are not a pair."""


@dataclass(frozen=True)
class Assignment:
    """One line ``lhs = rhs``; ``source`` is the line its right-hand side reads, None where that is a number."""

    line: int
    lhs: str
    rhs: str
    lhs_span: Span
    equals_span: Span
    rhs_span: Span
    newline_span: Span
    source: int | None
    ref_depth: int
    """Referential depth of this line: 1 where it assigns a number, one more than the line it reads elsewhere."""


@dataclass(frozen=True)
class VariableChain:
    """The assignments that give the queried variable its value, the root's first (referential depth 1, 2, ...)."""

    assignments: tuple[Assignment, ...]

    @property
    def root(self) -> Assignment:
        return self.assignments[0]

    @property
    def root_value(self) -> int:
        return int(self.root.rhs)

    @property
    def hops(self) -> int:
        return len(self.assignments)

    @property
    def names(self) -> tuple[str, ...]:
        """From the queried variable back to the one that holds the root value."""
        return tuple(assignment.lhs for assignment in reversed(self.assignments))


@dataclass(frozen=True)
class Program:
    """A parsed program. Equality and hash are those of its text. Made by :meth:`parse`."""

    text: str
    assignments: tuple[Assignment, ...]
    query: str
    query_hash_span: Span
    query_var_span: Span
    query_colon_span: Span

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @classmethod
    def parse(cls, text: str) -> Program:
        """Read a program from its text.

        A variable that is assigned twice has, at every read, the value of the last assignment above that read. What
        editors add is no part of the program, and not of its ``text`` either: a byte-order mark before it, line breaks
        behind its query line, carriage returns before line breaks.

        Raises:
            ProgramError: a line is no assignment, the query line is missing, or something undefined is read.
        """
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        if _QUERY.fullmatch((stripped := text.rstrip("\n")).rpartition("\n")[2]):
            text = stripped
        assignments: list[Assignment] = []
        last: dict[str, int] = {}  # variable -> the line that assigned it last
        offset = 0
        *lines, query_line = text.split("\n")
        for number, line in enumerate(lines):
            match = _ASSIGNMENT.fullmatch(line)
            if match is None:
                found = f"line {number + 1} is {line[:80]!r}"
                if _QUERY.fullmatch(line):
                    raise ProgramError(f"{found}, a query line; expected it to be the last, but others follow")
                raise ProgramError(f"{found}; expected an assignment such as 'a = 3' or 'b = a'")
            lhs, rhs = match["lhs"], match["rhs"]
            source = None if rhs[0] in "-0123456789" else last.get(rhs, -1)
            if source == -1:
                raise ProgramError(f"line {number + 1} is {line[:80]!r}, but {rhs[:80]!r} is not assigned above it")
            lhs_span, equals_span, rhs_span = (_shift(match.span(part), offset) for part in ("lhs", "equals", "rhs"))
            newline = offset + len(line)
            depth = 1 if source is None else assignments[source].ref_depth + 1
            assignments.append(
                Assignment(number, lhs, rhs, lhs_span, equals_span, rhs_span, (newline, newline + 1), source, depth)
            )
            last[lhs] = number
            offset = newline + 1
        match = _QUERY.fullmatch(query_line)
        if match is None:
            raise ProgramError(f"the last line is {query_line[:80]!r}; expected a query line such as '#a: '")
        if match["var"] not in last:
            raise ProgramError(f"the query line asks for {match['var'][:80]!r}, which no line assigns")
        spans = (_shift(match.span(part), offset) for part in ("hash", "var", "colon"))
        return cls(text, tuple(assignments), match["var"], *spans)

    @cached_property
    def chain(self) -> VariableChain:
        """The variable chain of the query."""
        line: int | None = max(a.line for a in self.assignments if a.lhs == self.query)
        chain = []
        while line is not None:
            chain.append(self.assignments[line])
            line = self.assignments[line].source
        return VariableChain(tuple(reversed(chain)))

    @property
    def answer(self) -> int:
        return self.chain.root_value

    @property
    def hops(self) -> int:
        """Referential depth of the query: the number of assignments in its chain."""
        return self.chain.hops

    @property
    def seq_len(self) -> int:
        return len(self.assignments)

    def with_root(self, value: int) -> Program:
        """The same program with another root value; nothing else changes."""
        start, end = self.chain.root.rhs_span
        return Program.parse(f"{self.text[:start]}{value}{self.text[end:]}")


def _shift(span: Span, offset: int) -> Span:
    return span[0] + offset, span[1] + offset


@dataclass(frozen=True)
class ProgramPair:
    """A program and its counterfactual: the same text but for the root value, so that the answers differ.

    ``seed`` is the generator's RNG seed where the pair came from one: it names the whole pair.
    """

    original: Program
    counterfactual: Program
    seed: int | None = None

    def __post_init__(self) -> None:
        value = self.counterfactual.answer
        if self.original.answer == value:
            raise ProgramError(f"original and counterfactual have the same answer, {value}; the root value must differ")
        if self.original.with_root(value) != self.counterfactual:
            raise ProgramError(
                "original and counterfactual must differ in the root value and in nothing else:\n"
                f"{self.original.text!r}\n{self.counterfactual.text!r}"
            )

    @property
    def expected_original(self) -> int:
        return self.original.answer

    @property
    def expected_counterfactual(self) -> int:
        return self.counterfactual.answer

    @property
    def variable_chain(self) -> VariableChain:
        return self.original.chain

    @property
    def reversed(self) -> ProgramPair:
        """The pair with its two programs exchanged: activations then move from the original into the counterfactual."""
        return ProgramPair(self.counterfactual, self.original, self.seed)

    def to_record(self) -> dict[str, Json]:
        """The pair as JSON values; :meth:`from_record` reads it back."""
        return {
            "seed": self.seed,
            "hops": self.original.hops,
            "seq_len": self.original.seq_len,
            "original": self.original.text,
            "counterfactual": self.counterfactual.text,
            "expected_original": self.expected_original,
            "expected_counterfactual": self.expected_counterfactual,
            "variable_chain": list(self.variable_chain.names),
        }

    @classmethod
    def from_record(cls, record: dict[str, Json]) -> ProgramPair:
        """A pair from :meth:`to_record`'s dict or a user's own; only ``original`` and ``counterfactual`` are read,
        the other fields are checked against what the programs say.

        Raises:
            ProgramError: a field is missing, has another type, or contradicts the programs.
        """
        if not isinstance(record, dict):
            raise ProgramError(f"a pair is a record of fields, given: {record!r:.80}")
        texts = [record.get(field) for field in ("original", "counterfactual")]
        if not all(isinstance(text, str) for text in texts):
            raise ProgramError(
                f"a pair needs the texts 'original' and 'counterfactual', given fields: {sorted(map(str, record))}"
            )
        seed = record.get("seed")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise ProgramError(f"'seed' is {seed!r}; expected an integer or nothing")
        pair = cls(Program.parse(texts[0]), Program.parse(texts[1]), seed)  # type: ignore[arg-type]  (both are texts)
        derived = pair.to_record()
        for field in derived.keys() & record.keys() - {"seed", "original", "counterfactual"}:
            given = record[field]
            if isinstance(given, tuple):
                given = list(given)
            if given is not None and (given != derived[field] or isinstance(given, bool)):
                raise ProgramError(f"'{field}' is {given!r}, but the programs say {derived[field]!r}")
        return pair
