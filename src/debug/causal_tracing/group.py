"""Pairs whose prompts have one length: the unpatched forward passes of their programs, and their interventions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.causal_map.sources import FIRST_TOKEN
from debug.causal_tracing.likeliest import Likeliest, likeliest
from debug.causal_tracing.pairs import PairReader, PreparedPair
from debug.causal_tracing.reference import Reference, recorded
from debug.causal_tracing.whole_answers import Said, nothing, said
from debug.engine import Cut, ForwardPasses, Intervention, Site, forward_passes
from debug.errors import InputError
from debug.kinds import Json
from debug.models.hook_points import COMPONENTS
from debug.plan import Plan


class Group:
    """The unpatched forward passes of all pairs: originals, counterfactuals, controls, partners, sources."""

    def __init__(
        self,
        reader: PairReader,
        given: Sequence[PreparedPair],
        reference: Reference | None,
        batch_tokens: int,
    ) -> None:
        self.reader, self.given, self.batch_tokens = reader, given, batch_tokens
        self.model, self.plan = reader.model, reader.plan
        plan = self.plan
        programs = [g.tokenized.original for g in given]
        # Where the counterfactuals' activations are stored, the first pair's forward pass is made all the same: the
        # self-checks compare with a whole one.
        programs += [g.tokenized.counterfactual for g in (given[:1] if plan.source == "stored" else given)]
        self.source_row: dict[int, int] = {}
        self.control_row: dict[int, int] = {}
        for number, one in enumerate(given):
            for program, row in ((one.control, self.control_row), (one.partner, self.source_row)):
                if program is not None:
                    row[number] = len(programs)
                    programs.append(program)
            if plan.source == "counterfactual":
                self.source_row[number] = len(given) + number
        self.passes = self._unpatched(torch.tensor([program.token_ids for program in programs]))
        self.finite = self.passes.logits.isfinite().all(-1).tolist()
        if (sources := self._sources(reference)) is not None:  # these are of no forward pass here: one for each, or all
            count = len(next(iter(sources.values()))[0])
            self.source_row = {number: len(self.passes) + number % count for number in range(len(given))}
            self.passes = self.passes.with_sources(sources)
        self.tops = self.passes.logits.argmax(-1).tolist()
        self._said: dict[int, Said] = {}

    def _unpatched(self, token_ids: Int[Tensor, "program token"]) -> ForwardPasses:
        return forward_passes(self.model, token_ids, recorded(self.plan))

    def _sources(self, reference: Reference | None) -> dict[str, list[Float[Tensor, "source token width"]]] | None:
        """Activations to patch from that are of none of the group's programs."""
        kept = self.passes.activations
        if self.plan.source == "stored":
            return self._stored_activations()
        if self.plan.source == "mean" and reference is not None:
            means = [
                reference.mean_without(one, *map(self._activations_in, (one.in_order(*rows)[0], rows[0])))
                for one, rows in zip(self.given, map(self.rows_of, range(len(self.given))), strict=True)
            ]
            return {
                name: [torch.stack([mean[name][n] for mean in means]).to(at.dtype) for n, at in enumerate(layers)]
                for name, layers in kept.items()
            }
        if self.plan.source == "zero" and not self.plan.knockout:
            return {name: [torch.zeros_like(at[:1]) for at in layers] for name, layers in kept.items()}
        return None

    def _activations_in(self, row: int) -> dict[str, list[Float[Tensor, "token width"]]]:
        return {name: [at[row] for at in layers] for name, layers in self.passes.activations.items()}

    def _stored_activations(self) -> dict[str, list[Float[Tensor, "source token width"]]]:
        """Stored activations in the places of forward passes; what is not stored is NaN, which no logits survive."""
        found = {}
        for name, layers in self.passes.activations.items():
            found[name] = [torch.full((len(self.given), *at.shape[1:]), torch.nan, dtype=at.dtype) for at in layers]
            for number, run in enumerate(one.stored for one in self.given):
                if run is None or name not in run.activations:
                    continue
                stored = torch.tensor(np.asarray(run.activations[name]))
                if stored.shape != (len(layers), len(run.positions), layers[0].shape[-1]):
                    raise InputError(
                        f"stored {name} of run {self.plan.source_run} is {tuple(stored.shape)}; {self.model.id!r} has "
                        f"{len(layers)} layers of width {layers[0].shape[-1]}"
                    )
                for at, values in zip(found[name], stored, strict=True):
                    at[number, run.positions] = values.to(at.dtype)
            found[name] = [at.to(self.passes.logits.device) for at in found[name]]
        return found

    def counterfactual(self, number: int) -> tuple[Float[Tensor, "2"], int]:
        """Of the counterfactual forward pass: the logits of both answers, and the top token."""
        answers = list(self.given[number].tokenized.answer_tokens)
        if (stored := self.given[number].stored) is not None:
            return torch.tensor([stored.logits[token] for token in answers]), stored.top_token
        row = len(self.given) + number
        return self.passes.logits[row, answers].cpu(), self.tops[row]

    def likeliest(self, number: int) -> Likeliest:
        """Of the clean and of the counterfactual forward pass; -1 and NaN where a stored one's are not known."""
        if (stored := self.given[number].stored) is None:
            return likeliest(self.passes.logits[[*self.rows_of(number)]])
        tokens, logs = likeliest(self.passes.logits[[number, number]])
        tokens[1], logs[1] = -1, torch.nan
        if stored.top_k is not None:
            of_stored = min(tokens.shape[1], len(stored.top_k[0]))
            for row, known in zip((tokens[1], logs[1]), stored.top_k, strict=True):
                row[:of_stored] = torch.from_numpy(known[:of_stored])
        return Likeliest(tokens, logs)

    def rows_of(self, number: int) -> tuple[int, int]:
        """Of the clean forward pass, which is patched, and of the counterfactual one."""
        return number, len(self.given) + number

    def is_finite(self, number: int) -> bool:
        """Whether the logits of all forward passes that a pair's numbers come from are finite."""
        rows = [number, self.source_row.get(number, number), self.control_row.get(number, number)]
        rows += [] if self.given[number].stored else [len(self.given) + number]
        return all(self.finite[row] for row in rows if row < len(self.finite))  # others are of no forward pass

    def correct(self, number: int) -> tuple[bool, bool]:
        """Whether the model answers the pair's original, and its counterfactual, whichever of them is patched."""
        return self._answered(number)[0]

    def said(self, number: int) -> dict[str, Json]:
        """What the model says to the pair's original and its counterfactual, whichever of them is patched."""
        correct, answers = self._answered(number)
        return {"correct": correct, "answers": answers, "prompt": self.given[number].own.prompt}

    def _answered(self, number: int) -> tuple[tuple[bool, bool], tuple[str, str]]:
        one = self.given[number]
        if self.plan.scored_by == FIRST_TOKEN or not self.is_finite(number):
            tops = self.tops[number], self.counterfactual(number)[1]
            texts = (self.model.tokenizer.decode([top]) for top in tops)
            return one.is_correct(tops), one.in_order(*texts)
        if number not in self._said:
            asked = self.model, self.passes, self.plan, one, nothing(self.rows_of(number)), self.batch_tokens
            self._said[number] = said(*asked)
        found = self._said[number]
        own, other = found.answers.tolist()
        numbers = [*one.candidates]
        c, o = (numbers.index(text) for text in one.texts)
        return one.in_order(own == o, other == c), one.in_order(*found.texts)

    def first_difference(self, number: int) -> int:
        """The first position at which the clean forward pass and the source can differ."""
        return self.given[number].tokenized.first_difference if self.plan.patches_pairs else 0

    def interventions(
        self, number: int, source: int | None = None, first: int | None = None
    ) -> Iterator[tuple[tuple[int, ...], Intervention]]:
        """(its square in the grid: row, (heads,) column; the intervention), of all that can have an effect.

        Patched from the plan's source, or from another row of ``passes`` that differs from position ``first`` on.
        """
        first = self.first_difference(number) if first is None else first
        model, plan, columns = self.model, self.plan, self.given[number].columns
        for (i, layer), (k, column) in product(enumerate(self.reader.layers), enumerate(columns.columns)):
            layers = range(layer, layer + self.reader.window)
            if plan.knockout:
                heads = None if plan.heads is None else tuple(self.reader.heads[0])
                yield (i, k), Intervention(number, tuple(Cut(at, columns.edges[k], heads) for at in layers))
            elif any(_can_matter(plan, at, column, first, self.passes.length, model.n_layers) for at in layers):
                row = self.source_row[number] if source is None else source
                for j, heads in enumerate(self.head_sets()):
                    sites = tuple(Site(plan.intervention_type, at, tuple(column), heads, source=row) for at in layers)
                    at = (i, k) if heads is None else (i, j, k)
                    yield at, Intervention(number, sites)

    def head_sets(self) -> Sequence[tuple[int, ...] | None]:
        if self.plan.knockout or not COMPONENTS[self.plan.intervention_type].per_head:
            return [None]
        return [tuple(heads) for heads in self.reader.heads]

    def shape(self, number: int) -> tuple[int, ...]:
        heads = self.head_sets()
        axis = () if heads == [None] else (len(heads),)
        return (len(self.reader.layers), *axis, len(self.given[number].columns.columns))


def _can_matter(
    plan: Plan, layer: int, column: Sequence[int], first_difference: int, length: int, n_layers: int
) -> bool:
    """Whether patching these positions can change the answer at all.

    Before the first differing token both forward passes are the same; above the last attention only the last token is
    read.
    """
    last_attention = n_layers if plan.intervention_type == "residual_stream" else n_layers - 1
    return max(column) >= first_difference and (layer < last_attention or length - 1 in column)
