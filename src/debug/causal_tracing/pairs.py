"""Pairs as they will be run: tokens, columns, controls, where the answers' tokens are; or why a pair is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain, islice
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

from debug.causal_map.sources import FIRST_TOKEN, GREEDY, WHOLE
from debug.causal_tracing.columns import Columns, columns_of
from debug.causal_tracing.results import PairResult
from debug.counterfactual import PairLike, as_pair, same_answer_program
from debug.errors import InputError
from debug.hypotheses.models import candidates
from debug.models import LoadedModel, PromptTooLong, VocabularyError
from debug.models.backends import is_remote
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
    top_k: tuple[Int[np.ndarray, " rank"], Float[np.ndarray, " rank"]] | None = None
    """Its likeliest tokens, and the logarithms of their probabilities; None of an older run."""


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
    candidates: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Answer -> its tokens, of the answers whose logits are stored, the counterfactual's and the original's first; none
    where nothing is moved."""

    @property
    def own(self) -> TokenizedProgram:
        """The pair's original, whichever of its programs is patched."""
        return self.tokenized.counterfactual if self.is_reversed else self.tokenized.original

    def in_order(self, patched: T, other: T) -> tuple[T, T]:
        """Of the pair's original and its counterfactual what is given of the patched program and of the other."""
        return (other, patched) if self.is_reversed else (patched, other)

    @property
    def in_common(self) -> int:
        """How many tokens both answers begin with alike."""
        c, o = (self.candidates.get(answer, ()) for answer in self.texts)
        return next((n for n, (a, b) in enumerate(zip(c, o, strict=False)) if a != b), 0)

    @property
    def texts(self) -> tuple[str, str]:
        """The answers c and o, of the other program and of the one that is patched."""
        return str(self.tokenized.pair.expected_counterfactual), str(self.tokenized.pair.expected_original)

    def is_correct(self, tops: tuple[int, int]) -> tuple[bool, bool]:
        """Whether the pair's original, and its counterfactual, are answered, given the top tokens of the clean forward
        pass and of the other."""
        c, o = self.tokenized.answer_tokens
        return self.in_order(tops[0] == o, tops[1] == c)


def as_written(model: LoadedModel, plan: Plan, pairs: Iterable[PairLike]) -> tuple[Plan, Iterator[PairLike]]:
    """The plan with its prompts as they are run (:mod:`.answers`), decided on the first pairs; and all pairs.

    Without the template's final space, where that merges with an answer; with the white space that the model itself
    writes before most answers, where a prompt does not end in any.

    Raises:
        InputError: a chat template is asked for, and the model has none; or what a model that is elsewhere cannot do.
    """
    model.rendered("a = 1", chat=plan.chat)
    plan = plan.elsewhere() if is_remote(model.device) else plan
    rest, first, prompts = iter(pairs), [], []
    for given in islice(rest, PROBED):
        first.append(given)
        try:
            pair = as_pair(given)
        except ProgramError:
            continue
        program, values = pair.original.text, answers.of_pair(pair)
        if not plan.chat:
            template = answers.suited(model.tokenizer, plan.prompt_template, program, values or answers.DIGITS)
            plan = replace(plan, prompt_template=template)
        with suppress(InputError):  # the chat template refuses it: it will be skipped, with its reason
            prompts.append((model.rendered(fill(plan.prompt_template, program), chat=plan.chat), values))
        if plan.answer_lead is not None or (prompts and prompts[-1][0][-1:].isspace()):
            break
    if plan.answer_lead is None and prompts:
        plan = replace(plan, answer_lead=answers.lead(model, prompts, plan.chat))
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
        """Raises VocabularyError where the model has no token for part of the prompt, PairError as :func:`analyze`."""
        plan = self.plan
        try:
            prompt = self.model.rendered(fill(plan.prompt_template, program.text), chat=plan.chat)
        except InputError as error:
            raise PairError(str(error)) from error
        self.model.check_vocabulary(prompt)
        return analyze(self.model.tokenizer, program, plan.prompt_template, chat=plan.chat, lead=plan.answer_lead or "")

    def prepared(self, index: int, pair: AnyPair) -> PreparedPair:
        """Raises PairError, VocabularyError or PromptTooLong: the reason why this pair is skipped."""
        plan, is_reversed = self.plan, self.plan.direction == "into_counterfactual"
        directed = pair.reversed if is_reversed else pair
        own, other = map(self.tokenized, directed.programs)
        self.model.check_window(max(len(own.token_ids), len(other.token_ids)))
        alike = plan.scored_by != FIRST_TOKEN
        tokenized = pair_of(self.model.tokenizer, directed, own, other, begin_alike=alike)
        has_control = plan.control and plan.patches_pairs and plan.method == "patching" and not pair.keeps_answer
        control = self._control(tokenized) if has_control else None
        columns = columns_of(plan, self.model, tokenized)
        source = self._stored_source(tokenized, columns) if plan.source == "stored" else None
        return PreparedPair(index, pair, tokenized, columns, control, stored=source, is_reversed=is_reversed)

    def reason_to_skip(self, one: PreparedPair, correct: tuple[bool, bool]) -> str | None:
        """What the plan's filters say, given whether the model answers the pair's original, and its counterfactual."""
        if self.plan.exclude_shallow:
            if one.pair.variable_chain is None:
                return "exclude_shallow is for variable binding: this text has no root value"
            if (line := one.pair.variable_chain.root.line) < 2:
                return f"shallow: the root value is assigned on line {line + 1}"
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
        written = answers.written(model, [prompt for both in asked.values() for prompt in both], self.plan.chat)
        found = {index: written[2 * number : 2 * number + 2] for number, index in enumerate(asked)}
        for one in given:
            if one.index not in found:
                yield self._with_candidates(one)
                continue
            c, o = map(str, (one.tokenized.pair.expected_counterfactual, one.tokenized.pair.expected_original))
            values = answers.of_pair(one.pair)
            alike, asked_of = self.plan.scored_by != FIRST_TOKEN, (model.tokenizer, one.tokenized.original, lead)
            tokens = answers.agreed(*asked_of, (c, o), found[one.index], values, alike)
            if tokens is not None:
                yield self._with_candidates(one._replace(tokenized=replace(one.tokenized, answer_tokens=tokens)))
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

    def _with_candidates(self, one: PreparedPair) -> PreparedPair | PairResult:
        plan, tokenizer = self.plan, self.model.tokenizer
        moves = plan.patches_pairs and plan.method == "patching"
        if not moves and plan.scored_by == FIRST_TOKEN:
            return one
        texts = [*one.texts, *(candidates(one.tokenized.pair, one.columns.targets) if moves else ())]
        found = answers.tokens_of(tokenizer, one.tokenized.original, texts, one.tokenized.answer_tokens)
        if plan.scored_by == FIRST_TOKEN:
            both = zip(one.texts, one.tokenized.answer_tokens, strict=True)
            return one._replace(candidates=found or {text: (token,) for text, token in both})
        reason = None if found else f"behind the prompt {' and '.join(one.texts)} have no tokens of their own"
        c, o = (found.get(text, ()) for text in one.texts)
        if plan.scored_by == WHOLE:
            starts = {of[:length]: text for text, of in found.items() for length in range(1, len(of))}
            begun = {text: starts[of] for text, of in found.items() if of in starts}
            found = {text: of for text, of in found.items() if text not in begun}
            for text in one.texts:
                if text in begun:
                    reason = f"{text!r} begins {begun[text]!r}, too: no probability tells them apart; {GREEDY!r} does"
        if c != o and (c[: len(o)] == o or o[: len(c)] == c):
            reason = f"of the answers {one.texts[0]!r} and {one.texts[1]!r} one begins the other: no token differs"
        room = max(map(len, found.values()), default=0) + (plan.scored_by == GREEDY)
        try:
            self.model.check_window(len(one.tokenized.original.token_ids), room=room)
        except PromptTooLong as error:
            reason = str(error)
        if reason is not None:
            return PairResult(one.index, one.pair, reason, prompt=one.own.prompt)
        return one._replace(candidates=found)

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
