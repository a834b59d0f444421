"""Baselines that a model must beat: rules that answer without following any variable, under ids like a model's.

    heuristic:first-two-lines     one of the numbers on the first two lines
    heuristic:any-number          one of the program's numbers
    heuristic:largest-chain       the root value that most lines lead back to

They read the program, not the prompt. Where a rule leaves a choice it is drawn with the program's text as the seed, so
that a baseline answers a program alike in every run. Adding one is writing the function and naming it in
``HEURISTICS``. Knows no model.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from debug.errors import DebugError, InputError, did_you_mean
from debug.programs import Program

if TYPE_CHECKING:  # the rules alone cost no torch
    from debug.models.replies import Completion, Scores

PREFIX = "heuristic:"

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?![\w.])")


def first_two_lines(program: str, rng: np.random.RandomState) -> str | None:
    """One of the numbers on the first two lines; models in training were seen to answer so (Wu et al. 2025)."""
    return _one_of(_NUMBER.findall("\n".join(program.split("\n")[:2])), rng)


def any_number(program: str, rng: np.random.RandomState) -> str | None:
    """One of the program's numbers."""
    return _one_of(_NUMBER.findall(program), rng)


def largest_chain(program: str, rng: np.random.RandomState) -> str:
    """The root value that most lines lead back to, the first of several.

    Raises:
        debug.programs.ProgramError: the text is no program of assignments and a query.
    """
    roots: list[int] = []  # of each line: the line of its root
    lines = Program.parse(program).assignments
    for line in lines:
        roots.append(line.line if line.source is None else roots[line.source])
    return lines[Counter(roots).most_common(1)[0][0]].rhs


HEURISTICS: dict[str, Callable[[str, np.random.RandomState], str | None]] = {
    "first-two-lines": first_two_lines,
    "any-number": any_number,
    "largest-chain": largest_chain,
}


def _one_of(numbers: Sequence[str], rng: np.random.RandomState) -> str | None:
    return str(rng.choice(list(numbers))) if numbers else None


@dataclass(frozen=True)
class Heuristic:
    """A rule in the place of a model; where a model is given prompts, it is given programs."""

    id: str
    path: str = ""
    dtype: str = "none"
    device: str = "none"
    backend: str = "heuristic"
    quantization: None = None

    def provenance(self) -> dict[str, str]:
        """No tags: the version of this project, which every run has, says which rule this was."""
        return {}

    def generate(
        self,
        programs: Sequence[str],
        *,
        max_new_tokens: int,
        batch_size: int = 32,
        chat: bool = False,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Completion]]:
        """Answers as :meth:`debug.models.AnswersPrompts.generate` gives them; empty where the rule finds none."""
        from debug.models.replies import Completion

        rule = HEURISTICS[self.id.removeprefix(PREFIX)]
        for index, program in enumerate(programs):
            try:
                answer = rule(program, np.random.RandomState(zlib.crc32(program.encode())))
            except DebugError as error:
                yield index, Completion(error=f"{self.id}: {error}")
                continue
            yield index, Completion(answer or "")

    def score(
        self, programs: Sequence[str], answers: Sequence[str], *, batch_size: int = 32, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Scores]]:
        from debug.models.replies import Scores

        for index in range(len(programs)):
            yield index, Scores(error=f"{self.id} has no probabilities; its answers can be generated")


def find(model_id: str) -> Heuristic | None:
    """The baseline of this id; None where the id is a model's.

    Raises:
        InputError: no such baseline.
    """
    if not model_id.startswith(PREFIX):
        return None
    if model_id.removeprefix(PREFIX) not in HEURISTICS:
        known = [PREFIX + name for name in HEURISTICS]
        raise InputError(f"unknown {model_id!r}{did_you_mean(model_id, known)}; there are: {', '.join(known)}")
    return Heuristic(model_id)
