"""Pairs as they will be run: tokens, columns, controls, where the answers' tokens are; or why a pair is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from debug.causal_tracing.columns import Columns, columns_of
from debug.causal_tracing.results import PairResult
from debug.counterfactual import PairLike, as_pair, same_answer_program
from debug.errors import InputError
from debug.models import LoadedModel, VocabularyError
from debug.plan import Plan
from debug.programs import AnyPair, AnyProgram, ProgramError
from debug.prompts import answers, fill
from debug.token_analyzer import PairError, TokenizedPair, TokenizedProgram, analyze, pair_of

T = TypeVar("T")
PROBED = 8  # programs whose answers tell whether the model writes white space before them


class StoredRun(NamedTuple):
    """A program's forward pass as a logged run kept it: what patching from it needs, so that it is not made again."""

    positions: list[int]
    activations: Mapping[str, Float[np.ndarray, "layer position width"]]
    """Component -> its activations at these positions."""
    logits: dict[int, float]
    """Of both answers' tokens."""
    top_token: int


StoredRuns = Callable[[Sequence[int]], StoredRun]
"""Token ids of a prompt -> its stored forward pass; raises PairError where there is none."""


class PreparedPair(NamedTuple):
    """A pair as it will be run: into which program, with which columns, and the other programs that it needs."""

    index: int
    pair: AnyPair
    tokenized: TokenizedPair
    """Its ``original`` is the program that is patched, whatever the direction."""
    columns: Columns
    control: TokenizedProgram | None
    partner: TokenizedProgram | None = None
    """The program of the reference set whose forward pass is the source, where the plan resamples."""
    stored: StoredRun | None = None
    """The counterfactual forward pass, where it is the source as stored."""
    is_reversed: bool = False
    """Whether the counterfactual is the program that is patched."""

    @property
    def own(self) -> TokenizedProgram:
        """The pair's original, whichever of its programs is patched."""
        return self.tokenized.counterfactual if self.is_reversed else self.tokenized.original

    def in_order(self, patched: T, other: T) -> tuple[T, T]:
        """Of the pair's original and its counterfactual what is given of the patched program and of the other."""
        return (other, patched) if self.is_reversed else (patched, other)

    def is_correct(self, tops: tuple[int, int]) -> tuple[bool, bool]:
        """Whether the pair's original, and its counterfactual, are answered, given the top tokens of the clean forward
        pass and of the other."""
        c, o = self.tokenized.answer_tokens
        return self.in_order(tops[0] == o, tops[1] == c)


def as_written(model: LoadedModel, plan: Plan, pairs: Iterable[PairLike]) -> tuple[Plan, Iterator[PairLike]]:
    """The plan with its prompts as they are run (:mod:`.answers`), decided on the first pairs; and all pairs.

    Without the template's final space, where that merges with an answer; with the white space that the model itself
    writes before most answers, where a prompt does not end in any.
    """
    rest, first, prompts = iter(pairs), [], []
    for given in islice(rest, PROBED):
        first.append(given)
        try:
            pair = as_pair(given)
        except ProgramError:
            continue
        program, values = pair.original.text, answers.of_pair(pair)
        template = answers.suited(model.tokenizer, plan.prompt_template, program, values or answers.DIGITS)
        plan = replace(plan, prompt_template=template)
        prompts.append((fill(plan.prompt_template, program), values))
        if plan.answer_lead is not None or prompts[-1][0][-1:].isspace():
            break
    if plan.answer_lead is None and prompts:
        plan = replace(plan, answer_lead=answers.lead(model, prompts))
    return plan, chain(first, rest)


class PairReader:
    """Reads pairs as a plan runs them on one model: prompts, tokens, columns, controls, and which pairs it skips.

    Raises:
        InputError: the plan does not fit the model.
    """

    def __init__(self, model: LoadedModel, plan: Plan, stored: StoredRuns | None = None) -> None:
        if plan.source == "stored" and stored is None:
            raise InputError("source is 'stored'; CausalExperimentRunner patches from activations of logged runs")
        self.model, self.plan, self._stored = model, plan, stored
        self.layers, self.heads, self.window = plan.layers_of(model), plan.heads_of(model), plan.window(model.n_layers)

    def tokenized(self, program: AnyProgram) -> TokenizedProgram:
        """Raises VocabularyError where the model has no token for part of the prompt."""
        self.model.check_vocabulary(fill(self.plan.template, program.text))
        return analyze(self.model.tokenizer, program, self.plan.template)

    def prepared(self, index: int, pair: AnyPair) -> PreparedPair:
        """Raises PairError, VocabularyError or PromptTooLong: the reason why this pair is skipped."""
        plan, is_reversed = self.plan, self.plan.direction == "into_counterfactual"
        directed = pair.reversed if is_reversed else pair
        tokenized = pair_of(self.model.tokenizer, directed, *map(self.tokenized, directed.programs))
        self.model.check_window(len(tokenized.original.token_ids))
        has_control = plan.control and plan.patches_pairs and plan.method == "patching"
        control = self._control(tokenized) if has_control else None
        columns = columns_of(plan, self.model, tokenized)
        source = self._stored_source(tokenized, columns) if plan.source == "stored" else None
        return PreparedPair(index, pair, tokenized, columns, control, stored=source, is_reversed=is_reversed)

    def reason_to_skip(self, one: PreparedPair, tops: tuple[int, int]) -> str | None:
        """What the plan's filters say, given the top tokens of the clean and of the counterfactual forward pass."""
        if self.plan.exclude_shallow:
            if one.pair.variable_chain is None:
                return "exclude_shallow is for variable binding: this text has no root value"
            if (line := one.pair.variable_chain.root.line) < 2:
                return f"shallow: the root value is assigned on line {line + 1}"
        correct = one.is_correct(tops)
        if self.plan.require_correct and not all(correct):
            wrong = [name for name, right in zip(("original", "counterfactual"), correct, strict=True) if not right]
            return f"the model does not answer the {' and the '.join(wrong)} program"
        return None

    def where_written(self, given: Sequence[PreparedPair]) -> Iterator[PreparedPair | PairResult]:
        """Pairs with the answers' tokens as the model itself begins to write them; the others with the reason.

        Behind prompts that end in white space there is nothing to find out.
        """
        model, lead = self.model, self.plan.answer_lead or ""
        prompts = {one.index: [each.prompt.removesuffix(lead) for each in one.tokenized.programs] for one in given}
        asked = {index: both for index, both in prompts.items() if not both[0][-1:].isspace()}
        written = answers.written(model, [prompt for both in asked.values() for prompt in both])
        found = {index: written[2 * number : 2 * number + 2] for number, index in enumerate(asked)}
        for one in given:
            if one.index not in found:
                yield one
                continue
            c, o = map(str, (one.tokenized.pair.expected_counterfactual, one.tokenized.pair.expected_original))
            values = answers.of_pair(one.pair)
            tokens = answers.agreed(model.tokenizer, one.tokenized.original, lead, (c, o), found[one.index], values)
            if tokens is not None:
                yield one._replace(tokenized=replace(one.tokenized, answer_tokens=tokens))
                continue
            said = [model.tokenizer.decode(ids) for ids in found[one.index]]
            correct = one.in_order(answers.says(said[0], o, values), answers.says(said[1], c, values))
            shown = [model.tokenizer.convert_ids_to_tokens(ids) for ids in found[one.index]]
            reason = (
                f"where the answer begins is not decided: behind {one.tokenized.original.tokens[-3:]} the model writes "
                f"{shown[0]}, for the other program of the pair {shown[1]}; in this run answers come "
                + (f"behind {lead!r}" if lead else "right behind the prompt")
            )
            yield PairResult(
                one.index, one.pair, reason, correct=correct, answers=one.in_order(*said), prompt=one.own.prompt
            )

    def _stored_source(self, tokenized: TokenizedPair, columns: Columns) -> StoredRun:
        """The counterfactual forward pass; raises PairError where not all that the plan patches from it is stored."""
        assert self._stored is not None  # else refused when this was made
        plan, run = self.plan, self._stored(tokenized.counterfactual.token_ids)
        if plan.intervention_type not in run.activations:
            raise PairError(
                f"no {plan.intervention_type} of this pair is stored in run {plan.source_run}, which has "
                f"{', '.join(sorted(run.activations))}"
            )
        changed = [column for column in columns.columns if max(column) >= tokenized.first_difference]
        if missing := sorted({position for column in changed for position in column} - {*run.positions}):
            raise PairError(
                f"positions {missing} of this pair are not stored in run {plan.source_run}; name positions that are "
                "('targets'), or log that run with save_activations 'all'"
            )
        if unknown := [token for token in tokenized.answer_tokens if token not in run.logits]:
            raise PairError(f"logits of the answer tokens {unknown} are not stored in run {plan.source_run}")
        return run

    def _control(self, tokenized: TokenizedPair) -> TokenizedProgram | None:
        """The same-answer program whose tokens lie as the original's do; None where some draws found none."""
        for attempt in range(10):
            program = same_answer_program(tokenized.pair.original, attempt)
            if program is None:
                return None
            try:
                control = self.tokenized(program)
            except VocabularyError:
                continue
            own = tokenized.original
            if control.roles == own.roles and len(control.token_ids) == len(own.token_ids):
                return control
        return None
