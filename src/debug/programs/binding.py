"""Programs of variable binding: assignment lines, a query line, its variable chain.

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

from debug.programs.texts import ProgramError, Span

_NAME = r"[A-Za-z_][A-Za-z_0-9]*"
_NUMBER = r"0|-?[1-9][0-9]{0,17}"  # one way to write each, so that a pair can be told from the numbers alone
_ASSIGNMENT = re.compile(rf"(?P<lhs>{_NAME})[ \t]*(?P<equals>=)[ \t]*(?P<rhs>{_NUMBER}|{_NAME})[ \t]*")
_QUERY = re.compile(rf"(?P<hash>#)(?P<var>{_NAME})(?P<colon>:)[ \t]*")


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

    @cached_property
    def roles(self) -> dict[str, Span]:
        """``ref_depth_k_{lhs,equals,rhs,newline}`` of the queried chain and ``query_*`` -> characters of the text."""
        spans = {}
        for assignment in self.chain.assignments:
            for part in ("lhs", "equals", "rhs", "newline"):
                spans[f"ref_depth_{assignment.ref_depth}_{part}"] = getattr(assignment, f"{part}_span")
        return spans | {f"query_{part}": getattr(self, f"query_{part}_span") for part in ("hash", "var", "colon")}

    @property
    def default_targets(self) -> list[str]:
        return [*(role for role in self.roles if role.endswith("_rhs")), "query_var", "query_colon", "final"]

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
