"""Any text that is asked: its answer, and the spans of it that have names. No grammar; knows no tokens and no model."""

from __future__ import annotations

import re
from collections.abc import ItemsView, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from debug import checks
from debug.errors import InputError
from debug.kinds import Json

Span = tuple[int, int]  # start and end of a piece of text, in characters of the program
Answer = int | str | bool
LONGEST_TEXT = 100_000  # characters
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
LINE_END = re.compile(r"line_\d+_end")
_RESERVED = re.compile(rf"final|all|targets|roles|together|position_\d+|{LINE_END.pattern}|difference_\d+|ref_depth_.*")


class ProgramError(InputError):
    """A text that is not a program, or two programs that are not a pair."""


@dataclass(frozen=True, eq=False)
class TextProgram:
    """A text of any kind, with the answer that is expected behind it.

    Raises:
        ProgramError: names the field, what it was, and what was expected.
    """

    text: str
    answer: Answer
    spans: Mapping[str, Span] = field(default_factory=dict)
    """Name -> start and end, in characters of the text."""
    targets: Sequence[str] | None = None
    """The spans that are targets by default; None: all of them, and the ends of lines."""
    exact: bool = True
    """Whether a span that begins or ends inside a token is refused; roles of a grammar are its tokens then."""

    def __post_init__(self) -> None:
        try:
            checks.text(self.text)
            checks.answer(self.answer)
        except InputError as error:
            raise ProgramError(f"a text, or its answer, is {checks.shown(self.answer)}: {error}") from error
        if not self.text.strip() or len(self.text) > LONGEST_TEXT:
            raise ProgramError(f"a text has {len(self.text):,} characters; expected 1 to {LONGEST_TEXT:,}")
        if isinstance(self.answer, str):
            if not self.answer.strip() or "\n" in self.answer:
                raise ProgramError(f"the answer is {self.answer[:80]!r}; expected one line that is not empty")
            object.__setattr__(self, "answer", self.answer.strip())
        object.__setattr__(self, "spans", {name: self._span(name, span) for name, span in _items(self.spans)})
        targets = [] if self.targets is None else self.targets
        if not isinstance(targets, list | tuple) or not {*map(str, targets)} <= self.spans.keys():
            raise ProgramError(f"targets is {checks.shown(targets)}; expected names of the spans {[*self.spans]}"[:300])
        if not isinstance(self.exact, bool):
            raise ProgramError(f"exact is {checks.shown(self.exact)}; expected true or false")

    def _span(self, name: object, span: Json) -> Span:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or _RESERVED.fullmatch(name):
            raise ProgramError(
                f"{checks.shown(name)} cannot name a span; expected up to 64 letters, digits, '_', '.' and '-', a "
                "letter first, and no name that targets have of themselves (final, line_1_end, difference_1)"
            )
        whole = isinstance(span, list | tuple) and len(span) == 2
        if not whole or any(isinstance(end, bool) or not isinstance(end, int) for end in span):
            raise ProgramError(f"span {name!r} is {checks.shown(span)}; expected [start, end], in characters")
        start, end = span
        if not 0 <= start < end <= len(self.text):
            raise ProgramError(
                f"span {name!r} is [{start}, {end}], outside the text, which has {len(self.text)} characters"
            )
        return start, end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextProgram) and (self.text, self.answer) == (other.text, other.answer)

    def __hash__(self) -> int:
        return hash(self.text)

    @cached_property
    def roles(self) -> dict[str, Span]:
        """The named spans, and ``line_<n>_end``: the last character of each line but the last, if it has any."""
        found, start = dict(self.spans), 0
        for number, line in enumerate(self.text.split("\n")[:-1], 1):
            if line.strip():
                end = start + len(line.rstrip())
                found[f"line_{number}_end"] = (end - 1, end)
            start += len(line) + 1
        return found

    @property
    def default_targets(self) -> list[str]:
        return [*(self.roles if self.targets is None else self.targets), "final"]

    @property
    def hops(self) -> None:
        """Such a text has no variable chain."""
        return None

    @property
    def seq_len(self) -> int:
        """Its number of lines."""
        return len(self.text.rstrip("\n").split("\n"))

    def to_record(self) -> dict[str, Json]:
        """The text as JSON values; :meth:`from_record` reads it back."""
        return {"text": self.text, "answer": self.answer} | self.roles_record

    @property
    def roles_record(self) -> dict[str, Json]:
        """What a record says of the text's roles."""
        spans = {"spans": {name: list(span) for name, span in self.spans.items()}}
        return spans if self.targets is None and self.exact else spans | {"targets": self.targets, "exact": self.exact}

    @classmethod
    def from_record(cls, record: dict[str, Json]) -> TextProgram:
        """Raises ProgramError as the class, and where a field is missing."""
        if not isinstance(record, dict) or not {"text", "answer"} <= record.keys():
            raise ProgramError(
                f"a text is a record of 'text', 'answer' and perhaps 'spans', given {checks.shown(record)}"
            )
        spans, targets, exact = record.get("spans") or {}, record.get("targets"), record.get("exact", True)
        return cls(record["text"], record["answer"], spans, targets, exact)


def _items(spans: object) -> ItemsView[object, Json]:
    if not isinstance(spans, Mapping):
        raise ProgramError(f"spans is {checks.shown(spans)}; expected names with [start, end], in characters")
    return spans.items()
