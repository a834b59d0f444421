"""From a program to its pair: the same program with another root value, drawn from the program's own seed."""

from __future__ import annotations

import re
import string
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from debug import checks
from debug.errors import InputError
from debug.interpreter import Change, Code
from debug.kinds import Json
from debug.programs import (
    LONGEST_TEXT,
    AnyPair,
    AnyProgram,
    Pair,
    Program,
    ProgramError,
    ProgramPair,
    TextPair,
    TextProgram,
    pair_from_record,
)

if TYPE_CHECKING:
    import polars as pl

PairLike = AnyPair | dict[str, Json] | str
"""What :func:`as_pair` takes."""


def make_pair(program: str | Program, seed: int | None = None, root_value: int | None = None) -> ProgramPair:
    """The pair of a program.

    The counterfactual's root is ``root_value`` where given. Else it is drawn by ``RandomState([seed, 1])`` from the
    digits that do not occur in the program (all other digits where every digit occurs), so that one integer names the
    whole pair; without a seed, 0 is used for that draw.

    Raises:
        ProgramError: the text is no program, or ``root_value`` is the root value that it has.
    """
    original = program if isinstance(program, Program) else Program.parse(program)
    if root_value is None:
        used = set(re.findall(r"\d", original.text))
        free = [d for d in string.digits if d not in used] or [d for d in string.digits if int(d) != original.answer]
        root_value = int(np.random.RandomState([seed or 0, 1]).choice(free))
    return ProgramPair(original, original.with_root(root_value), seed)


def python_pairs(text: str, seed: int | None = None, query: str | None = None) -> list[TextPair]:
    """The pairs of a program in the subset of Python that :mod:`debug.interpreter` runs: with another literal each.

    First come those of which the answers are as long and begin otherwise, as the changed literals do, so that they are
    more likely to be as many tokens; of these the ones whose literal is the answer, see
    :meth:`debug.interpreter.Code.changes_of_answer`.

    Raises:
        ProgramError: the text is no such program, or no other literal changes its answer.
    """
    code = Code.parse(text, query)
    return [_changed(code, change, seed) for change, _ in _changes(code)]


def python_pair(text: str, seed: int | None = None, query: str | None = None) -> TextPair:
    """One of :func:`python_pairs`: of the first literal; its value is drawn by ``RandomState([seed, 1])``.

    Raises:
        ProgramError: as :func:`python_pairs`.
    """
    code = Code.parse(text, query)
    changes = _changes(code)
    fitting = [change for change, fits in changes if fits and change.literal == changes[0][0].literal]
    chosen = fitting or [changes[0][0]]
    return _changed(code, chosen[np.random.RandomState([seed or 0, 1]).randint(len(chosen))], seed)


def _changes(code: Code) -> list[tuple[Change, bool]]:
    """The changes of a program's answer, and whether each is likely to be as many tokens; those that are come first."""

    def fits(change: Change) -> bool:
        one, other, old = str(code.answer), str(change.answer), code.literals[change.literal].value
        return len(one) == len(other) and one[0] != other[0] and len(str(old)) == len(str(change.value))

    of_code(code)  # its own answer must be one that can be asked for
    answer = str(code.answer).strip()
    changes = [(change, fits(change)) for change in code.changes_of_answer() if _usable(str(change.answer), answer)]
    if not changes:
        raise ProgramError("no other number, text or truth value in the program changes its answer")
    return sorted(changes, key=lambda each: not each[1])


def _usable(answer: str, other: str) -> bool:
    """Whether an answer is one line that is not empty and, as text, another than the other."""
    return bool(answer.strip()) and "\n" not in answer and answer.strip() != other


def _changed(code: Code, change: Change, seed: int | None) -> TextPair:
    return TextPair(of_code(code), of_code(code.with_literal(change.literal, change.value)), seed)


_BY_DEFAULT = re.compile(r"line_\d+_(rhs|condition|return|print|iterable|argument_\d+)|query_(var|colon)")


def of_code(code: Code) -> TextProgram:
    """A Python program as a text with roles: right-hand sides, conditions, what is printed are its targets."""
    targets = [role for role in code.spans if _BY_DEFAULT.fullmatch(role)]
    return TextProgram(code.text, code.answer, code.spans, targets, exact=False)


def as_pair(program: PairLike) -> AnyPair:
    """A pair from what users have: a pair, a program's text, or a dict of which only ``original`` is required; of
    texts that are no variable binding ``original``, ``counterfactual`` and both expected answers.

    Raises:
        ProgramError: the text is no program, or the dict's fields contradict it.
    """
    if isinstance(program, Pair):
        return program
    if isinstance(program, str):
        return make_pair(program)
    if not isinstance(program, dict) or not isinstance(program.get("original"), str):
        raise ProgramError(f"expected a pair, a program's text or a dict with 'original', given {program!r:.200}")
    if program.get("counterfactual") is not None:
        return pair_from_record(program)
    derived = make_pair(program["original"], program.get("seed"), program.get("expected_counterfactual"))
    return ProgramPair.from_record({**program, "counterfactual": derived.counterfactual.text})


def read_pairs(path: str | Path | pl.DataFrame) -> list[AnyPair]:
    """The pairs of a JSONL file, or of a polars frame; each line, or row, is a record as
    :func:`debug.programs.pair_from_record` reads it.

    Of a frame a null is a field that is absent, and so is one in its structs: ``spans`` may be a struct of lists.

    Raises:
        InputError: the file cannot be read, or a line, or row, is no pair: names it, and what is wrong.
    """
    if not isinstance(path, str | Path):
        return _pairs_of_frame(path)
    pairs: list[AnyPair] = []
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(checks.LONGEST_LINE + 1), b""), 1):
                try:
                    if len(line) > checks.LONGEST_LINE:
                        raise InputError(f"has more than {checks.LONGEST_LINE:,} bytes")
                    if line.strip():
                        pairs.append(pair_from_record(_record_of(line)))
                except InputError as error:
                    raise InputError(f"{path}, line {number}: {error}") from error
    except OSError as error:
        raise InputError(f"pairs {path} cannot be read: {error.strerror}") from error
    if not pairs:
        raise InputError(f"{path} has no pair; expected a JSON object a line, with 'original' and 'counterfactual'")
    return pairs


def _record_of(line: bytes) -> dict[str, Json]:
    try:
        record, why = checks.from_json(line), ""
    except InputError as error:
        record, why = None, f" ({error})"
    if not isinstance(record, dict):
        raise InputError(
            "this is no JSON object with original, counterfactual, expected_original and expected_counterfactual" + why
        )
    return record


def _pairs_of_frame(frame: pl.DataFrame) -> list[AnyPair]:
    pairs: list[AnyPair] = []
    for number, row in enumerate(frame.iter_rows(named=True)):
        try:
            pairs.append(pair_from_record(_without_nulls(row)))
        except InputError as error:
            raise InputError(f"row {number} of the frame: {error}") from error
    if not pairs:
        raise InputError("the frame has no row; expected a pair a row, with columns 'original' and 'counterfactual'")
    return pairs


def _without_nulls(record: dict[str, Json]) -> dict[str, Json]:
    filled = {name: value for name, value in record.items() if value is not None}
    return {name: _without_nulls(value) if isinstance(value, dict) else value for name, value in filled.items()}


def read_program(path: str | Path) -> list[TextPair]:
    """:func:`python_pairs` of a file; raises InputError where it cannot be read, or has none."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(4 * LONGEST_TEXT + 1).decode("utf-8")  # a character has four bytes at most
    except OSError as error:
        raise InputError(f"program {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"program {path} is no text in UTF-8: {error.reason} at byte {error.start}") from error
    try:
        return python_pairs(text)
    except ProgramError as error:
        raise InputError(f"program {path}: {error}") from error


def same_answer_program(program: AnyProgram, attempt: int = 0) -> Program | None:
    """Another program with the same answer: its variables renamed, its lines, numbers and query as they were.

    The source of the same-answer control: what differs in its run is everything but the value and where it goes. Names
    of one letter become other letters of their case, longer ones are exchanged with names of their own length; the draw
    is by ``RandomState`` of the text and ``attempt``. None where no others can be had, as of texts.
    """
    if isinstance(program, TextProgram):
        return None
    names = list(dict.fromkeys(assignment.lhs for assignment in program.assignments))
    rng = np.random.RandomState([zlib.crc32(program.text.encode()), attempt, 2])
    renamed: dict[str, str] = {}
    for name in names:
        alphabet = string.ascii_lowercase if name.islower() else string.ascii_uppercase
        pool = alphabet if name in list(alphabet) else [other for other in names if len(other) == len(name)]
        free = [other for other in pool if other != name and other not in renamed.values()]
        if not free:
            return None
        renamed[name] = str(rng.choice(free))
    spans = [span for a in program.assignments for span in (a.lhs_span, a.rhs_span)] + [program.query_var_span]
    text, end = "", 0
    for start, stop in spans:
        word = program.text[start:stop]
        text += program.text[end:start] + renamed.get(word, word)
        end = stop
    return Program.parse(text + program.text[end:])
