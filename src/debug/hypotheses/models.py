"""The hypotheses, as functions: (original, source, target) -> the answer that the patched run should give.

Interchange interventions on causal models of variable binding, after Wu, Geiger and Millière (2025) and the pointers
("lookbacks") of Prakash et al. (2025): does the model move the value, or where to find it?
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from debug.errors import InputError
from debug.programs import Answer, AnyPair, AnyProgram, Program
from debug.programs.binding import Assignment

VALUE, NAME, ORDER, NONE = "value", "pointer_by_name", "pointer_by_order", "no_effect"
MOST_NUMBERS = 64  # of a text, that are candidates

Hypothesis = Callable[[AnyProgram, AnyProgram, str], Answer | None]
"""Of the program that is patched, the one that activations come from, and the target that is patched, the answer of the
patched run; None where it predicts nothing.

A target of one chain line (``ref_depth_2_rhs``) holds what that line of the source assigns; any other (``query_var``,
``final``) what the source's query asks for.
"""


def value(original: AnyProgram, source: AnyProgram, target: str) -> Answer | None:
    """The source's value arrives."""
    if not isinstance(original, Program) or not isinstance(source, Program):
        return source.answer
    root = _root(original, source, target)
    return root and int(root.rhs)


def pointer_by_name(original: AnyProgram, source: AnyProgram, target: str) -> Answer | None:
    """The name of the source's root variable arrives; its value is looked up in the original."""
    if not isinstance(original, Program) or not isinstance(source, Program):
        return None
    if (root := _root(original, source, target)) is None:
        return None
    line = _line(original, target)
    own = [each for each in original.assignments if each.lhs == root.lhs and (line is None or each.line <= line)]
    return int(_root_of(original, own[-1]).rhs) if own else None


def pointer_by_order(original: AnyProgram, source: AnyProgram, target: str) -> Answer | None:
    """The place of the source's root variable arrives ("the second line"); its value is looked up in the original."""
    if not isinstance(original, Program) or not isinstance(source, Program):
        return None
    root = _root(original, source, target)
    if root is None or root.line >= len(original.assignments):
        return None
    return int(_root_of(original, original.assignments[root.line]).rhs)


def no_effect(original: AnyProgram, source: AnyProgram, target: str) -> Answer | None:
    """The original's answer stays."""
    return original.answer


HYPOTHESES: dict[str, Hypothesis] = {VALUE: value, NAME: pointer_by_name, ORDER: pointer_by_order, NONE: no_effect}
"""Those that every run is scored by; one's own is one more entry, made before the run, so that the logits of what it
predicts are stored: ``HYPOTHESES["first line"] = lambda original, source, target: original.assignments[0].rhs``."""


def prediction(hypothesis: str, pair: AnyPair, target: str) -> Answer | None:
    """What a hypothesis predicts of a pair whose original is patched at a target: as the pair says, else derived.

    Raises:
        InputError: no hypothesis of that name, and none that the pair knows.
    """
    if hypothesis in pair.predictions:
        return pair.predictions[hypothesis]
    if hypothesis not in HYPOTHESES:
        raise InputError(f"hypothesis is {hypothesis!r:.80}; expected one of {', '.join(HYPOTHESES)}")
    return HYPOTHESES[hypothesis](pair.original, pair.counterfactual, target)


def names_of(pair: AnyPair) -> list[str]:
    """The hypotheses that say something of a pair: those of all, and its own."""
    return list(dict.fromkeys([*HYPOTHESES, *pair.predictions]))


def candidates(pair: AnyPair, targets: Iterable[str]) -> list[str]:
    """The answers whose logits a map stores: both answers, what hypotheses predict, each number of either program."""
    both = [pair.expected_counterfactual, pair.expected_original]
    predicted = [prediction(name, pair, target) for target in targets for name in names_of(pair)]
    numbers: list[str] = []
    if all(type(answer) is int for answer in both):
        texts = f"{pair.original.text}\n{pair.counterfactual.text}"
        numbers = sorted({*re.findall(r"(?<![\w.])\d+(?![\w.])", texts)}, key=lambda each: (len(each), each))
    found = dict.fromkeys(str(answer) for answer in [*both, *predicted] if answer is not None)
    return list(found | dict.fromkeys(numbers[:MOST_NUMBERS]))


_LINE = re.compile(r"ref_depth_(\d+)_(?:lhs|equals|rhs|newline|line)")


def _line(original: Program, target: str) -> int | None:
    """The line of the original's chain that a target stands in; None where it stands in none, or in several."""
    parts = {_LINE.fullmatch(part) for part in target.split("+")}
    depths = {int(part[1]) for part in parts if part is not None}
    if None in parts or len(depths) != 1 or not 1 <= min(depths) <= original.hops:
        return None
    return original.chain.assignments[min(depths) - 1].line


def _root(original: Program, source: Program, target: str) -> Assignment | None:
    """The assignment that holds the value that a target of the source stands for; None where the source has no line
    there."""
    if (line := _line(original, target)) is None:
        return source.chain.root
    return _root_of(source, source.assignments[line]) if line < len(source.assignments) else None


def _root_of(program: Program, assignment: Assignment) -> Assignment:
    while assignment.source is not None:
        assignment = program.assignments[assignment.source]
    return assignment
