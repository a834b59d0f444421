"""A program and its counterfactual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from debug import checks
from debug.errors import InputError
from debug.kinds import Json
from debug.programs.binding import Program, VariableChain
from debug.programs.texts import Answer, ProgramError, TextProgram
from debug.shown import Shown

AnyProgram = Program | TextProgram
P = TypeVar("P", Program, TextProgram)
ROOT_VALUE, GIVEN = "root_value", "given"
KEEPS_ANSWER = {
    **{ROOT_VALUE: False, "pointer": False, "swap_values": False, "rename": True, "reorder": True},
    **{"distractor": True, "same_answer": True, GIVEN: False},
}
"""Kind of counterfactual -> whether its answer is the original's. See :data:`debug.counterfactual.KINDS`; pairs that
are ``given`` are of none."""


@dataclass(frozen=True, repr=False)
class Pair(Shown, Generic[P]):
    """A program and its counterfactual. Their answers differ, unless its kind says that they do not.

    ``seed`` is the generator's RNG seed where the pair came from one: it names the whole pair.
    """

    original: P
    counterfactual: P
    seed: int | None = None
    kind: str = ROOT_VALUE
    """Of counterfactual: one of KEEPS_ANSWER."""
    predictions: Mapping[str, Answer] = field(default_factory=dict, compare=False)
    """Hypothesis -> the answer that it predicts of patches into the original, where that is known with the pair
    (:mod:`debug.hypotheses` derives it of variable binding)."""

    def __post_init__(self) -> None:
        if self.kind not in KEEPS_ANSWER:
            raise ProgramError(f"kind is {self.kind!r:.80}; expected one of {', '.join(KEEPS_ANSWER)}")
        same = str(self.original.answer) == str(self.counterfactual.answer)
        if same and not self.keeps_answer:
            raise ProgramError(
                f"original and counterfactual have the same answer, {self.original.answer!r}; "
                + ("the root value must differ" if self.kind == ROOT_VALUE else f"kind {self.kind} has two answers")
            )
        if self.keeps_answer and not same:
            raise ProgramError(
                f"a counterfactual of kind {self.kind} keeps the answer, {self.original.answer!r}; given one with "
                f"{self.counterfactual.answer!r}"
            )
        for name, answer in self.predictions.items():
            try:
                checks.text(name)
                checks.answer(answer)
            except InputError as error:
                raise ProgramError(f"predictions of {checks.shown(name)}: {error}") from error

    def _in_short(self) -> str:
        texts = (f"{program.text[:80]!r} -> {program.answer!r}" for program in self.programs)
        return f"{', '.join(texts)}, {self.kind}" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def keeps_answer(self) -> bool:
        """Whether both programs have one answer: a patch can then only change it, not bring another."""
        return KEEPS_ANSWER[self.kind]

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
        record: dict[str, Json] = {
            "seed": self.seed,
            "hops": self.original.hops,
            "seq_len": self.original.seq_len,
            "original": self.original.text,
            "counterfactual": self.counterfactual.text,
            "expected_original": self.expected_original,
            "expected_counterfactual": self.expected_counterfactual,
        }
        record |= {} if self.kind == ROOT_VALUE else {"kind": self.kind}
        return record | ({"predictions": dict(self.predictions)} if self.predictions else {})


@dataclass(frozen=True, repr=False)
class ProgramPair(Pair[Program]):
    """Two programs of variable binding; of the kind root_value they are the same text but for the root value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == ROOT_VALUE and self.original.with_root(self.counterfactual.answer) != self.counterfactual:
            raise ProgramError(
                "original and counterfactual must differ in the root value and in nothing else, or else be of another "
                f"kind: {self.original.text!r:.200} and {self.counterfactual.text!r:.200}"
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
        return replace(self, original=self.counterfactual, counterfactual=self.original, predictions={})

    def to_record(self) -> dict[str, Json]:
        """The pair as JSON values; :meth:`from_record` reads it back."""
        return super().to_record() | {"variable_chain": list(self.variable_chain.names)}

    @classmethod
    def from_record(cls, record: dict[str, Json]) -> ProgramPair:
        """A pair from :meth:`to_record`'s dict or a user's own; only ``original`` and ``counterfactual`` (and perhaps
        ``kind`` and ``predictions``) are read, the other fields are checked against what the programs say. Without a
        kind, programs that differ in more than the root value are ``given``.

        Raises:
            ProgramError: a field is missing, has another type, or contradicts the programs.
        """
        original, counterfactual, seed = _fields(record)
        one, other = Program.parse(original), Program.parse(counterfactual)
        kind, predictions = _kind(record)
        if kind is None:
            kind = ROOT_VALUE if one.with_root(other.answer) == other else GIVEN
        pair = cls(one, other, seed, kind, predictions)
        derived = pair.to_record()
        for name in derived.keys() & record.keys() - {"seed", "original", "counterfactual", "predictions"}:
            given = record[name]
            if isinstance(given, tuple):
                given = list(given)
            if given is not None and (given != derived[name] or isinstance(given, bool)):
                raise ProgramError(f"'{name}' is {given!r:.80}, but the programs say {derived[name]!r}")
        return pair


@dataclass(frozen=True, repr=False)
class TextPair(Pair[TextProgram]):
    """Two texts of any kind; whether they can be patched into each other is seen when they are tokens."""

    variable_chain = None

    @property
    def reversed(self) -> TextPair:
        """The pair with its two texts exchanged."""
        return replace(self, original=self.counterfactual, counterfactual=self.original, predictions={})

    @property
    def spans(self) -> dict[str, Json]:
        """The roles of either text, as fields of its record."""
        return self.original.roles_record | {"counterfactual_spans": self.counterfactual.roles_record["spans"]}

    def to_record(self) -> dict[str, Json]:
        """The pair as JSON values; :meth:`from_record` reads it back."""
        return super().to_record() | {"kind": self.kind} | self.spans

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
                f"{sorted(map(str, record))!s:.200}"
            )
        names, exact = record.get("targets"), record.get("exact", True)
        kind, predictions = _kind(record)
        spans = [record.get(field) or {} for field in ("spans", "counterfactual_spans")]
        return cls(
            TextProgram(original, expected[0], spans[0], names, exact),
            TextProgram(counterfactual, expected[1], spans[1], names if spans[1] else None, exact),
            seed,
            *(kind or GIVEN, predictions),
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


def _kind(record: dict[str, Json]) -> tuple[str | None, dict[str, Json]]:
    """The kind of a record's counterfactual, None where it says nothing; and what hypotheses predict."""
    kind, predictions = record.get("kind"), record.get("predictions") or {}
    if kind is not None and not isinstance(kind, str):
        raise ProgramError(f"kind is {checks.shown(kind)}; expected one of {', '.join(KEEPS_ANSWER)}")
    if not isinstance(predictions, dict):
        raise ProgramError(f"predictions is {checks.shown(predictions)}; expected hypotheses with the answer of each")
    return kind, predictions


def _fields(record: dict[str, Json]) -> tuple[str, str, int | None]:
    if not isinstance(record, dict):
        raise ProgramError(f"a pair is a record of fields, given: {record!r:.80}")
    original, counterfactual, seed = (record.get(field) for field in ("original", "counterfactual", "seed"))
    if not isinstance(original, str) or not isinstance(counterfactual, str):
        raise ProgramError(
            f"a pair needs the texts 'original' and 'counterfactual', given fields: {sorted(map(str, record))!s:.200}"
        )
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise ProgramError(f"'seed' is {seed!r:.80}; expected an integer or nothing")
    return original, counterfactual, seed
