"""A program and its counterfactual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from debug.kinds import Json
from debug.programs.binding import Program, VariableChain
from debug.programs.texts import Answer, ProgramError, TextProgram

AnyProgram = Program | TextProgram
P = TypeVar("P", Program, TextProgram)


@dataclass(frozen=True)
class Pair(Generic[P]):
    """A program and its counterfactual, whose answers differ.

    ``seed`` is the generator's RNG seed where the pair came from one: it names the whole pair.
    """

    original: P
    counterfactual: P
    seed: int | None = None

    @property
    def programs(self) -> tuple[P, P]:
        return self.original, self.counterfactual

    @property
    def expected_original(self) -> Answer:
        return self.original.answer

    @property
    def expected_counterfactual(self) -> Answer:
        return self.counterfactual.answer

    def to_record(self) -> dict[str, Json]:
        """The pair as JSON values; :func:`pair_from_record` reads it back."""
        return {
            "seed": self.seed,
            "hops": self.original.hops,
            "seq_len": self.original.seq_len,
            "original": self.original.text,
            "counterfactual": self.counterfactual.text,
            "expected_original": self.expected_original,
            "expected_counterfactual": self.expected_counterfactual,
        }


@dataclass(frozen=True)
class ProgramPair(Pair[Program]):
    """Two programs of variable binding: the same text but for the root value."""

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
        return super().to_record() | {"variable_chain": list(self.variable_chain.names)}

    @classmethod
    def from_record(cls, record: dict[str, Json]) -> ProgramPair:
        """A pair from :meth:`to_record`'s dict or a user's own; only ``original`` and ``counterfactual`` are read,
        the other fields are checked against what the programs say.

        Raises:
            ProgramError: a field is missing, has another type, or contradicts the programs.
        """
        original, counterfactual, seed = _fields(record)
        pair = cls(Program.parse(original), Program.parse(counterfactual), seed)
        derived = pair.to_record()
        for field in derived.keys() & record.keys() - {"seed", "original", "counterfactual"}:
            given = record[field]
            if isinstance(given, tuple):
                given = list(given)
            if given is not None and (given != derived[field] or isinstance(given, bool)):
                raise ProgramError(f"'{field}' is {given!r}, but the programs say {derived[field]!r}")
        return pair


@dataclass(frozen=True)
class TextPair(Pair[TextProgram]):
    """Two texts of any kind; whether they can be patched into each other is seen when they are tokens."""

    variable_chain = None

    def __post_init__(self) -> None:
        if str(self.original.answer) == str(self.counterfactual.answer):
            raise ProgramError(f"original and counterfactual have the same answer, {self.original.answer!r}")

    @property
    def reversed(self) -> TextPair:
        """The pair with its two texts exchanged."""
        return TextPair(self.counterfactual, self.original, self.seed)

    @property
    def spans(self) -> dict[str, Json]:
        """The roles of either text, as fields of its record."""
        return self.original.roles_record | {"counterfactual_spans": self.counterfactual.roles_record["spans"]}

    def to_record(self) -> dict[str, Json]:
        """The pair as JSON values; :meth:`from_record` reads it back."""
        return super().to_record() | self.spans

    @classmethod
    def from_record(cls, record: dict[str, Json]) -> TextPair:
        """A pair of the two texts, both answers, and perhaps ``spans`` of the original and ``counterfactual_spans``.

        Raises:
            ProgramError: a field is missing or cannot be.
        """
        original, counterfactual, seed = _fields(record)
        expected: list[Json] = [record.get(field) for field in ("expected_original", "expected_counterfactual")]
        if None in expected:
            raise ProgramError(
                "a pair of texts needs the answers 'expected_original' and 'expected_counterfactual', given fields: "
                f"{sorted(map(str, record))}"
            )
        names, exact = record.get("targets"), record.get("exact", True)
        spans = [record.get(field) or {} for field in ("spans", "counterfactual_spans")]
        return cls(
            TextProgram(original, expected[0], spans[0], names, exact),
            TextProgram(counterfactual, expected[1], spans[1], names if spans[1] else None, exact),
            seed,
        )


def as_given(program: AnyProgram) -> str | dict[str, Json]:
    """A program as JSON values, for :func:`from_given`: of variable binding its text, else a record."""
    return program.to_record() if isinstance(program, TextProgram) else program.text


def from_given(program: str | dict[str, Json]) -> AnyProgram:
    """Raises ProgramError as :meth:`Program.parse` and :meth:`TextProgram.from_record`."""
    return Program.parse(program) if isinstance(program, str) else TextProgram.from_record(program)


AnyPair = ProgramPair | TextPair


def pair_from_record(record: dict[str, Json]) -> AnyPair:
    """A pair of any texts where the record has ``spans``, or both answers and texts that are no variable binding; else
    one of variable binding.

    Raises:
        ProgramError: as :meth:`ProgramPair.from_record` and :meth:`TextPair.from_record`.
    """
    original, counterfactual, _ = _fields(record)
    if record.get("spans") is None:
        try:
            for text in (original, counterfactual):
                Program.parse(text)
        except ProgramError:
            answers = (record.get("expected_original"), record.get("expected_counterfactual"))
            if None in answers or record.get("variable_chain") is not None:
                raise
        else:
            return ProgramPair.from_record(record)
    return TextPair.from_record(record)


def _fields(record: dict[str, Json]) -> tuple[str, str, int | None]:
    if not isinstance(record, dict):
        raise ProgramError(f"a pair is a record of fields, given: {record!r:.80}")
    original, counterfactual, seed = (record.get(field) for field in ("original", "counterfactual", "seed"))
    if not isinstance(original, str) or not isinstance(counterfactual, str):
        raise ProgramError(
            f"a pair needs the texts 'original' and 'counterfactual', given fields: {sorted(map(str, record))}"
        )
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ProgramError(f"'seed' is {seed!r}; expected an integer or nothing")
    return original, counterfactual, seed
