"""The programs that means are over and partners are drawn from."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from debug.causal_tracing.batches import in_parts
from debug.causal_tracing.pairs import PairReader, PreparedPair
from debug.counterfactual import PairLike, as_pair
from debug.engine import ForwardPasses, default_batch_tokens, forward_passes
from debug.kinds import Json
from debug.models import LoadedModel, PromptTooLong, VocabularyError
from debug.models.hook_points import COMPONENTS
from debug.plan import Plan
from debug.programs import AnyProgram, ProgramError, as_given, from_given
from debug.token_analyzer import PairError, TokenizedProgram

REFERENCE = 64  # usable programs that means are over, and that partners are drawn from


def recorded(plan: Plan) -> tuple[str, ...]:
    return () if plan.knockout else (plan.intervention_type, *COMPONENTS[plan.intervention_type].full_patch)


class Reference:
    """The programs that means are over and partners are drawn from: one fixed set for all pairs of a causal run.

    A pair's own program is in neither, nor is the one that is patched: its mean is over the others of its length
    (leave-one-out), its partner another one, whose answer is that of neither of its two programs.
    """

    def __init__(
        self,
        model: LoadedModel,
        programs: Iterable[tuple[AnyProgram, TokenizedProgram]],
        plan: Plan,
        batch_tokens: int | None = None,
    ) -> None:
        self.model, self.programs = model, list(programs)
        self.source, self.recorded = plan.source, recorded(plan)
        self.batch_tokens = batch_tokens or default_batch_tokens(model)
        self._sums: dict[int, dict[str, list[Tensor]]] = {}

    @classmethod
    def found(
        cls,
        model: LoadedModel,
        pairs: Iterable[PairLike],
        plan: Plan,
        batch_tokens: int,
        run: Callable[[LoadedModel, Tensor, Iterable[str]], ForwardPasses] = forward_passes,
    ) -> Reference:
        """The originals of the first REFERENCE pairs that a plan's filters let through; ``run`` asks the model."""
        reader, stream, programs = PairReader(model, replace(plan, control=False)), iter(pairs), []
        while len(programs) < REFERENCE and (window := list(islice(stream, REFERENCE))):
            by_length: dict[int, list[tuple[int, PreparedPair]]] = defaultdict(list)
            for number, given in enumerate(window):
                with suppress(ProgramError, PairError, VocabularyError, PromptTooLong):
                    one = reader.prepared(number, as_pair(given))
                    by_length[len(one.tokenized.original.token_ids)].append((number, one))
            usable: dict[int, tuple[AnyProgram, TokenizedProgram]] = {}
            for length, group in by_length.items():

                def asked(part: Sequence[tuple[int, PreparedPair]]) -> list[tuple[int, int]]:
                    token_ids = torch.tensor([each.token_ids for _, one in part for each in one.tokenized.programs])
                    tops = run(model, token_ids, ()).logits.argmax(-1).view(-1, 2).tolist()
                    return [(top, other) for top, other in tops]

                tops = [t for part in in_parts(group, max(1, batch_tokens // (2 * length)), asked) for t in part]
                for (number, one), top in zip(group, tops, strict=True):
                    if reader.reason_to_skip(one, one.is_correct(top)) is None:
                        usable[number] = (one.pair.original, one.own)
            programs += [usable[number] for number in sorted(usable)]
        return cls(model, programs[:REFERENCE], plan, batch_tokens)

    @classmethod
    def of_texts(
        cls, model: LoadedModel, texts: Iterable[str | dict[str, Json]], plan: Plan, batch_tokens: int
    ) -> Reference:
        """The set of a logged run, from its programs' texts, or records.

        Raises:
            ProgramError, VocabularyError: a text is no program, or the model has no token for part of it.
        """
        reader = PairReader(model, plan)
        programs = map(from_given, texts)
        return cls(model, [(program, reader.tokenized(program)) for program in programs], plan, batch_tokens)

    @property
    def texts(self) -> list[str | dict[str, Json]]:
        """The programs as JSON values: :meth:`of_texts` takes them."""
        return [as_given(program) for program, _ in self.programs]

    def others(self, one: PreparedPair) -> list[tuple[AnyProgram, TokenizedProgram]]:
        """Those of as many tokens that are not the pair's own, nor the one that is patched."""
        length, left_out = len(one.own.token_ids), (one.own.token_ids, one.tokenized.original.token_ids)
        alike = [each for each in self.programs if len(each[1].token_ids) == length]
        return [each for each in alike if each[1].token_ids not in left_out]

    def partner(self, one: PreparedPair) -> TokenizedProgram | None:
        """Of a resampling plan, another program; drawn by the prompt's text.

        Raises:
            PairError: there is none, or none to take a mean over.
        """
        answers = {one.pair.expected_original, one.pair.expected_counterfactual}
        others = self.others(one)
        resamples = self.source == "resample"
        if resamples:
            others = [each for each in others if each[0].answer not in answers]
        if not others:
            length, which = len(one.tokenized.original.token_ids), " with another answer" * resamples
            raise PairError(
                f"source {self.source!r} needs another program of {length} tokens{which}; the reference set of "
                f"{len(self.programs)} has none"
            )
        rng = np.random.RandomState(zlib.crc32(one.tokenized.original.prompt.encode()))
        return others[rng.randint(len(others))][1] if resamples else None

    def mean_without(
        self,
        one: PreparedPair,
        own: dict[str, list[Float[Tensor, "token width"]]],
        patched: dict[str, list[Float[Tensor, "token width"]]],
    ) -> dict[str, list[Float[Tensor, "token width"]]]:
        """Means over the others, given the activations of the pair's own program and of the one that is patched (the
        same, but into the counterfactual); float64, position by position."""
        length, others = len(one.own.token_ids), self.others(one)
        every = [other.token_ids for _, other in self.programs if len(other.token_ids) == length]
        if length not in self._sums:
            self._sums[length] = self._sum([other for _, other in self.programs if len(other.token_ids) == length])
        times, again = every.count(one.own.token_ids), 0
        if one.is_reversed:
            again = every.count(one.tokenized.original.token_ids)
        return {
            name: [
                (total - times * at.double() - again * other.double()) / len(others)
                for total, at, other in zip(layers, own[name], patched[name], strict=True)
            ]
            for name, layers in self._sums[length].items()
        }

    def _sum(self, programs: Sequence[TokenizedProgram]) -> dict[str, list[Float[Tensor, "token width"]]]:
        """Over the forward passes of programs of one length; memory holds some of them at a time."""
        sums: dict[str, list[Tensor]] = {}

        def run(part: Sequence[TokenizedProgram]) -> ForwardPasses:
            return forward_passes(self.model, torch.tensor([program.token_ids for program in part]), self.recorded)

        for passes in in_parts(programs, max(1, self.batch_tokens // len(programs[0].token_ids)), run):
            for name, layers in passes.activations.items():
                parts = [layer.double().sum(0) for layer in layers]
                sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)] if name in sums else parts
        return sums
