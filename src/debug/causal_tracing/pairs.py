"""Pairs as they will be run: tokens, columns, controls, where the answers' tokens are; or why a pair is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from debug.causal_tracing.columns import Columns, columns_of
from debug.causal_tracing.results import PairResult
from debug.counterfactual import PairLike, as_pair, same_answer_program
from debug.models import LoadedModel, VocabularyError
from debug.plan import Plan
from debug.programs import ProgramError, ProgramPair
from debug.prompts import answers, fill
from debug.token_analyzer import PairError, TokenizedPair, TokenizedProgram, analyze, analyze_pair

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
    pair: ProgramPair
    tokenized: TokenizedPair
    """Its ``original`` is the program that is patched, whatever the direction."""
    columns: Columns
    control: TokenizedProgram | None
    partner: TokenizedProgram | None = None
    """The program of the reference set whose forward pass is the source, where the plan resamples."""
    stored: StoredRun | None = None
    """The counterfactual forward pass, where it is the source as stored."""


def prepare(
    model: LoadedModel, index: int, pair: ProgramPair, plan: Plan, stored: StoredRuns | None = None
) -> PreparedPair:
    """Raises ProgramError, PairError, VocabularyError or PromptTooLong: the reason why this pair is skipped."""
    directed = pair if plan.direction == "into_original" else pair.reversed
    for program in (directed.original, directed.counterfactual):
        model.check_vocabulary(fill(plan.template, program.text))
    tokenized = analyze_pair(model.tokenizer, directed, plan.template)
    model.check_window(len(tokenized.original.token_ids))
    control = None
    if plan.control and plan.patches_pairs and plan.method == "patching":
        control = _control(model, tokenized, plan)
    columns = columns_of(plan, model, tokenized)
    source = _stored_source(tokenized, columns, plan, stored) if stored and plan.source == "stored" else None
    return PreparedPair(index, pair, tokenized, columns, control, stored=source)


def as_written(model: LoadedModel, plan: Plan, pairs: Iterable[PairLike]) -> tuple[Plan, Iterator[PairLike]]:
    """The plan with its prompts as they are run (:mod:`.answers`), decided on the first pairs; and all pairs.

    Without the template's final space, where that merges with an answer; with the white space that the model itself
    writes before most answers, where a prompt does not end in any.
    """
    rest, first, prompts = iter(pairs), [], []
    for given in islice(rest, PROBED):
        first.append(given)
        try:
            program = as_pair(given).original.text
        except ProgramError:
            continue
        template = answers.suited(model.tokenizer, plan.prompt_template, program, answers.DIGITS)
        plan = replace(plan, prompt_template=template)
        prompts.append(fill(plan.prompt_template, program))
        if plan.answer_lead is not None or prompts[-1][-1:].isspace():
            break
    if plan.answer_lead is None and prompts:
        plan = replace(plan, answer_lead=answers.lead(model, prompts))
    return plan, chain(first, rest)


def where_written(model: LoadedModel, plan: Plan, given: Sequence[PreparedPair]) -> Iterator[PreparedPair | PairResult]:
    """Pairs with the answers' tokens as the model itself begins to write them; the others with the reason.

    Behind prompts that end in white space there is nothing to find out.
    """
    asked = [one for one in given if not fill(plan.prompt_template, one.pair.original.text)[-1:].isspace()]
    both = [program for one in asked for program in (one.tokenized.original, one.tokenized.counterfactual)]
    written = answers.written(model, [program.prompt.removesuffix(plan.answer_lead or "") for program in both])
    found = {one.index: written[2 * number : 2 * number + 2] for number, one in enumerate(asked)}
    for one in given:
        if one.index not in found:
            yield one
            continue
        pair = one.tokenized.pair
        values = [str(pair.expected_counterfactual), str(pair.expected_original)]
        tokens = answers.agreed(
            model.tokenizer, one.tokenized.original, plan.answer_lead or "", values, found[one.index]
        )
        if tokens is not None:
            yield one._replace(tokenized=replace(one.tokenized, answer_tokens=tokens))
            continue
        said = [model.tokenizer.decode(ids) for ids in found[one.index]]
        correct = (answers.says(said[0], values[1]), answers.says(said[1], values[0]))
        prompts = [one.tokenized.original.prompt, one.tokenized.counterfactual.prompt]
        if plan.direction == "into_counterfactual":
            said, correct, prompts = said[::-1], (correct[1], correct[0]), prompts[::-1]
        shown = [model.tokenizer.convert_ids_to_tokens(ids) for ids in found[one.index]]
        reason = (
            f"where the answer begins is not decided: behind {one.tokenized.original.tokens[-3:]} the model writes "
            f"{shown[0]}, for the other program of the pair {shown[1]}; in this run answers come "
            + (f"behind {plan.answer_lead!r}" if plan.answer_lead else "right behind the prompt")
        )
        yield PairResult(one.index, one.pair, reason, correct=correct, answers=(said[0], said[1]), prompt=prompts[0])


def _stored_source(tokenized: TokenizedPair, columns: Columns, plan: Plan, stored: StoredRuns) -> StoredRun:
    """The counterfactual forward pass; raises PairError where not all that the plan patches from it is stored."""
    run = stored(tokenized.counterfactual.token_ids)
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


def _control(model: LoadedModel, tokenized: TokenizedPair, plan: Plan) -> TokenizedProgram | None:
    """The same-answer program whose tokens lie as the original's do; None where some draws found none."""
    for attempt in range(10):
        program = same_answer_program(tokenized.pair.original, attempt)
        if program is None:
            return None
        try:
            model.check_vocabulary(fill(plan.template, program.text))
        except VocabularyError:
            continue
        control = analyze(model.tokenizer, program, plan.template)
        if control.roles == tokenized.original.roles and len(control.token_ids) == len(tokenized.original.token_ids):
            return control
    return None


def own_program(one: PreparedPair, plan: Plan) -> TokenizedProgram:
    """The pair's original, whichever of its programs is patched."""
    return one.tokenized.original if plan.direction == "into_original" else one.tokenized.counterfactual


def reason_to_skip(one: PreparedPair, plan: Plan, tops: tuple[int, int]) -> str | None:
    """What the plan's filters say, given the top tokens of the clean and of the counterfactual forward pass."""
    root_line = one.pair.variable_chain.root.line
    if plan.exclude_shallow and root_line < 2:
        return f"shallow: the root value is assigned on line {root_line + 1}"
    correct = is_correct(one, plan, tops)
    if plan.require_correct and not all(correct):
        wrong = [name for name, right in zip(("original", "counterfactual"), correct, strict=True) if not right]
        return f"the model does not answer the {' and the '.join(wrong)} program"
    return None


def is_correct(one: PreparedPair, plan: Plan, tops: tuple[int, int]) -> tuple[bool, bool]:
    """Whether the pair's original, and its counterfactual, are answered, whichever of them is patched."""
    c, o = one.tokenized.answer_tokens
    patched, source = tops[0] == o, tops[1] == c
    return (patched, source) if plan.direction == "into_original" else (source, patched)
