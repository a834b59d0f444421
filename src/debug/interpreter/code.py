"""A program of the subset with its answer, its states, and what can be changed in it so that the answer changes."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from debug.interpreter.execution import MOST_STEPS, Execution, State, run
from debug.interpreter.syntax import Literal, Syntax, read
from debug.programs import ProgramError, Span

# In search of another answer:
MOST_RUNS = 2_000
MOST_LINES = 1_000_000  # that would run if all these programs ran as long as the first


@dataclass(frozen=True)
class Change:
    """Another value of a literal, by its index in ``Code.literals``, and the answer that the program then has."""

    literal: int
    value: int | bool | str
    answer: int | bool | str


@dataclass(frozen=True)
class Code:
    """A program that was read and run. Equality and hash are those of its text and query. Made by :meth:`parse`."""

    text: str
    query: str | None
    """The variable that is asked for; None where the answer is what the last line prints."""
    answer: int | bool | str = field(compare=False)
    states: tuple[State, ...] = field(compare=False, repr=False)
    """The variables after every line that ran, in order."""
    printed: str = field(compare=False)
    spans: dict[str, Span] = field(compare=False, repr=False)
    """Role -> characters of the text. ``n`` counts lines from 1: ``line_n_{lhs,operator,rhs}`` of an assignment (its
    operator is ``=``, ``+=``), ``line_n_condition`` of if, while and except, ``line_n_{loop_variable,iterable}``,
    ``line_n_argument_k`` of a definition's parameters and of calls, ``line_n_return`` and ``line_n_print`` (what is
    returned, printed), ``line_n_newline``; ``query_{hash,var,colon}``."""
    literals: tuple[Literal, ...] = field(compare=False, repr=False)
    """In the order of the text."""
    max_steps: int = field(default=MOST_STEPS, compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, query: str | None = None, *, max_steps: int = MOST_STEPS) -> Code:
        """Read and run a program.

        What is asked is ``query``, a variable; else the variable of the last line ``#x: ``; else what the last line
        prints.

        Raises:
            ProgramError: the text is not of the subset, does not end within the bounds, or has no answer.
        """
        syntax = read(text)
        execution = run(syntax, max_steps)
        if query is None:
            query = syntax.query
        answer = _printed(syntax, execution) if query is None else _value_of(query, execution)
        read_and_run = (execution.states, execution.printed, syntax.spans, syntax.literals)
        return cls(syntax.text, query, answer, *read_and_run, max_steps)

    def with_literal(self, index: int, value: int | bool | str) -> Code:
        """The same program with another value in the place of a literal.

        Raises:
            ProgramError: there is no such literal, or the changed program has no answer.
        """
        if not 0 <= index < len(self.literals):
            raise ProgramError(f"there is no literal {index}; the program has {len(self.literals)}, counted from 0")
        if not isinstance(value, int | str):
            raise ProgramError(f"a literal is a number, True, False or a text, given: {value!r:.80}")
        start, end = self.literals[index].span
        written, behind = repr(value), self.text[end:]
        if written[0] == "-" and behind.lstrip(" \t").startswith("**"):  # -3 ** 2 is -(3 ** 2)
            written = f"({written})"
        if written[0] not in "'\"(" and self.text[:start][-1:].isalnum():  # 1if is two words, Trueif is one
            written = f" {written}"
        return Code.parse(self.text[:start] + written + behind, self.query, max_steps=self.max_steps)

    def changes_of_answer(self, values: Iterable[int] = range(10)) -> list[Change]:
        """Which literals can have another value so that the answer is another one, and which it then is.

        A number gets each of ``values``, a truth value the other one, a text the program's other texts. First come
        literals that are the answer (it becomes each value that they get), then those with which the same lines run,
        then those with which others run; each in the order of the text. Runs the program once for each value; one that
        then takes more than ten times as many lines is passed over.

        Raises:
            ProgramError: that would be too many runs.
        """
        numbers = list(dict.fromkeys(int(value) for value in values))
        texts = list(dict.fromkeys(one.value for one in self.literals if isinstance(one.value, str)))
        others = [self._others(literal.value, numbers, texts) for literal in self.literals]
        runs = sum(map(len, others))
        if runs > MOST_RUNS or runs * len(self.states) > MOST_LINES:
            raise ProgramError(
                f"the program has {len(self.literals):,} literals and runs {len(self.states):,} lines; to try all "
                f"values takes {runs:,} runs, and at most {MOST_RUNS:,} of {MOST_LINES:,} lines in all are made"
            )
        ranked: list[tuple[int, int, list[Change]]] = []
        lines = [state.line for state in self.states]
        limited = replace(self, max_steps=min(self.max_steps, 10 * len(lines) + 100))
        for index, tried in enumerate(others):
            changes, same_lines = [], True
            for value in tried:
                try:
                    changed = limited.with_literal(index, value)
                except ProgramError:
                    continue
                same_lines &= [state.line for state in changed.states] == lines
                if changed.answer != self.answer or type(changed.answer) is not type(self.answer):
                    changes.append(Change(index, value, changed.answer))
            if changes:
                copied = (same_lines or len(changes) > 1) and all(one.answer == one.value for one in changes)
                ranked.append((0 if copied else 1 if same_lines else 2, index, changes))
        return [change for _, _, changes in sorted(ranked, key=lambda one: one[:2]) for change in changes]

    @staticmethod
    def _others(given: int | bool | str, numbers: list[int], texts: list[str]) -> list[int | bool | str]:
        if isinstance(given, bool):
            return [not given]
        return [value for value in (numbers if isinstance(given, int) else texts) if value != given]


def _value_of(query: str, execution: Execution) -> int | bool | str:
    if query not in execution.variables:
        raise ProgramError(f"{query!r:.80} is asked for, which no line assigns")
    value = execution.variables[query]
    if not isinstance(value, int | str):
        raise ProgramError(f"{query!r:.80} is asked for, and is {value!r:.80}; an answer is a number, a text or a bool")
    return value


def _printed(syntax: Syntax, execution: Execution) -> int | bool | str:
    """What the last line printed: its value where it is one that an answer can be, else its text."""
    match syntax.body[-1:]:
        case [ast.Expr(value=ast.Call(func=ast.Name(id="print")))]:
            pass
        case _:
            raise ProgramError("the program asks for nothing; expected a last line such as '#x: ' or 'print(x)'")
    match execution.last:
        case [int() | str() as value]:
            return value
    return " ".join(map(str, execution.last))
