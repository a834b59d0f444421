"""Exact patching: every square of a group's grids, the control's at the targets, and the self-checks, all packed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from debug.causal_map import CausalMap
from debug.causal_map.sources import FIRST_TOKEN
from debug.causal_tracing.agreement import Agreement
from debug.causal_tracing.group import Group
from debug.causal_tracing.likeliest import RANKS, Likeliest, likeliest
from debug.causal_tracing.mapping import map_of
from debug.causal_tracing.whole_answers import with_answers
from debug.engine import Intervention, patched_logits
from debug.engine.plain_hooks import plain_logits, rounding
from debug.engine.read_back import ReadBack
from debug.engine.self_checks import Asked, Check, SelfChecks, measured, telling
from debug.progress import Progress


@dataclass
class Grids:
    """The maps of a group while their interventions come back: of which square each is, and the numbers so far."""

    group: Group
    interventions: list[Intervention]
    where: list[tuple[int, bool, tuple[int, ...]]]
    """Of each: pair, whether it is the control's, its square in the grid."""
    tokens: dict[int, list[int]]
    """Of each pair, the tokens whose logits are kept: c, o, and those of all candidates."""
    answers: Float[Tensor, "intervention answer"]
    """Their logits in each patched forward pass; of pairs with fewer, others behind them."""
    tops: Int[Tensor, " intervention"]
    likeliest: Likeliest
    """Of each patched forward pass."""

    @classmethod
    def of(cls, group: Group, used: Sequence[int]) -> Grids:
        """Every square of the pairs' grids, and of their controls at the targets; what is not run has no effect."""
        interventions, where, tokens = [], [], {}
        for number in used:
            one = group.given[number]
            tokens[number] = [*one.tokenized.answer_tokens, *(of[0] for of in one.candidates.values())]
            at_target = {column: t for t, column in enumerate(one.columns.target_columns.values())}
            for at, intervention in group.interventions(number):
                interventions.append(intervention)
                where.append((number, False, at))
            if one.control is None:
                continue
            both = zip(one.tokenized.original.token_ids, one.control.token_ids, strict=True)
            first = next(position for position, (own, other) in enumerate(both) if own != other)
            for at, intervention in group.interventions(number, group.control_row[number], first):
                if at[-1] in at_target:
                    interventions.append(intervention)
                    where.append((number, True, (*at[:-1], at_target[at[-1]])))
        n, ranks = len(where), min(RANKS, group.passes.logits.shape[-1])
        answers = torch.zeros(n, max(map(len, tokens.values())))
        kept = Likeliest(torch.zeros(n, ranks, dtype=torch.int32), torch.zeros(n, ranks, dtype=torch.float16))
        return cls(group, interventions, where, tokens, answers, torch.zeros(n, dtype=torch.long), kept)

    def take(self, indices: Sequence[int], logits: Float[Tensor, "intervention vocabulary"]) -> None:
        """The logits of some interventions, by their numbers."""
        if not len(indices):
            return
        tokens = pad_sequence([self._tokens[self.where[index][0]] for index in indices], batch_first=True)
        answers = logits.gather(1, tokens.to(logits.device)).cpu()
        self.put(indices, answers, logits.argmax(-1).cpu(), likeliest(logits))

    def put(
        self,
        indices: Sequence[int],
        answers: Float[Tensor, "intervention answer"],
        tops: Int[Tensor, " intervention"],
        found: Likeliest,
    ) -> None:
        """The same, read off already."""
        self.answers[indices, : answers.shape[1]] = answers
        self.tops[indices] = tops
        for kept, of_some in zip(self.likeliest, found, strict=True):
            kept[indices] = of_some

    @cached_property
    def _tokens(self) -> dict[int, Int[Tensor, " answer"]]:
        return {number: torch.tensor(tokens) for number, tokens in self.tokens.items()}

    @cached_property
    def _rows(self) -> dict[tuple[int, bool], tuple[list[int], tuple[Int[Tensor, " intervention"], ...]]]:
        """Of a pair's grid, and of its control's: the numbers of its interventions, and their squares by axis."""
        rows: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for index, (number, is_control, _) in enumerate(self.where):
            rows[number, is_control].append(index)
        return {of: (at, torch.tensor([self.where[index][2] for index in at]).unbind(1)) for of, at in rows.items()}

    def _grid(
        self, number: int, found: Shaped[Tensor, "intervention *value"], clean: Shaped[Tensor, "*value"], control: bool
    ) -> Shaped[Tensor, "..."]:
        """What was found, [layer, (head,) column, (value)]; what the clean forward pass has where nothing was run."""
        shape = self.group.shape(number)
        if control:
            shape = (*shape[:-1], len(self.group.given[number].columns.targets))
        grid = clean.expand(*shape, *clean.shape).clone()
        if (number, control) in self._rows:
            indices, at = self._rows[number, control]
            grid[at] = found[indices]
        return grid

    def _logits(self, number: int) -> Float[Tensor, "layer *head column answer"]:
        clean = self.group.passes.logits[number, self.tokens[number]].cpu()
        return self._grid(number, self.answers[:, : len(clean)], clean, False)

    def z_patched(self, number: int) -> Float[Tensor, "layer *head column 2"]:
        return self._logits(number)[..., :2]

    def map_of(self, number: int) -> CausalMap:
        group, one = self.group, self.group.given[number]
        kept, clean = self._logits(number).numpy(), torch.tensor(group.tops[number])
        top, control = self._grid(number, self.tops, clean, False).numpy(), None
        if number in group.control_row:
            control = self._grid(number, self.tops, clean, True).numpy()
        both = zip(self.likeliest, group.likeliest(number), strict=True)
        patched = Likeliest(*(self._grid(number, of_patched, of_clean[0], False) for of_patched, of_clean in both))
        z_candidates = kept[..., 2:] if one.candidates and group.plan.patches_pairs else None
        found = map_of(group, number, kept[..., :2], top, control, patched)
        first = {text: of[0] for text, of in one.candidates.items()}
        found = replace(found, z_candidates=z_candidates, candidates=first)
        if group.plan.scored_by == FIRST_TOKEN:
            return found
        each = zip(self.where, self.interventions, strict=True)
        made = [(is_control, at, patched) for (of, is_control, at), patched in each if of == number]
        both = group.rows_of(number)
        return with_answers(found, group.model, group.passes, group.plan, one, both, made, group.batch_tokens)

    def ran(self) -> list[int]:
        """Of each pair of the group, how many interventions were run, controls too."""
        pairs = [number for number, *_ in self.where]
        return np.bincount(pairs, minlength=len(self.group.given)).tolist()

    def telling(self, used: Sequence[int]) -> dict[tuple[int, tuple[int, ...]], Intervention]:
        """The squares of the first and the last pair at which a redirection would show most."""
        ran_at: dict[int, dict[tuple[int, ...], Intervention]] = {number: {} for number in (used[0], used[-1])}
        for intervention, (number, is_control, at) in zip(self.interventions, self.where, strict=True):
            if number in ran_at and not is_control:
                ran_at[number][at] = intervention
        return {
            (number, at): of_pair[at]
            for number, of_pair in ran_at.items()
            for at in telling(self.z_patched(number).numpy(), of_pair, 3 if number == used[0] else 1)
        }


def patch(group: Group, used: list[int], checks: list[Check]) -> Filled:
    """Run every square: of the grids, of the controls at the targets, and the self-checks, all packed together."""
    grids = Grids.of(group, used)
    of_maps, logits_of = len(grids.interventions), {}
    every = [*grids.interventions, *interventions_of(checks)]
    read_back = ReadBack(group.model, group.passes)
    with Progress(of_maps, "interventions", "intervention", brief=True) as bar:
        for indices, logits in patched_logits(group.model, group.passes, every, group.batch_tokens, read_back):
            own = [i for i, index in enumerate(indices) if index < of_maps]
            others = [i for i, index in enumerate(indices) if index >= of_maps]
            logits_of |= {every[indices[i]]: logits[i].clone() for i in others}
            grids.take([indices[i] for i in own], logits[own])
            bar.update(len(own))
    asked = grids.telling(used)
    tolerance, distance = localized(group, asked, {at: grids.z_patched(at[0])[at[1]] for at in asked})
    checked = measured(group.model, group.passes, checks, logits_of, Asked(tolerance, distance, read_back.worst))
    ran, maps = grids.ran(), {}
    with Progress(len(used), "answers", "pair", brief=True) as bar:  # whole ones take forward passes, first tokens none
        for number in used:
            maps[number] = grids.map_of(number)
            bar.update()
    return Filled(maps, checked, {n: ran[n] for n in used}, {})


class Filled(NamedTuple):
    """The maps of a group's pairs, by their numbers, and what was measured beside them."""

    maps: dict[int, CausalMap]
    checks: SelfChecks
    ran: dict[int, int]
    """Interventions, controls too."""
    agreement: dict[int, tuple[float | None, Agreement | None]]
    """Of an attribution with exact patching: see :class:`PairResult`."""


def interventions_of(checks: Sequence[Check]) -> list[Intervention]:
    """Those that the checks run, each once."""
    both = (each for check in checks for each in (check.intervention, check.expected))
    return list(dict.fromkeys(each for each in both if isinstance(each, Intervention)))


def localized(
    group: Group,
    asked: dict[tuple[int, tuple[int, ...]], Intervention],
    found: dict[tuple[int, tuple[int, ...]], Tensor],
) -> tuple[float, float | None]:
    """What rounding may do, and how far squares of the maps are from the same interventions done the plain way: the
    largest difference of an answer's logit."""
    if not asked:
        return rounding(group.model, group.passes, [0])[0], None
    logits, tolerance = plain_logits(group.model, group.passes, list(asked.values()))
    tokens = torch.tensor([group.given[number].tokenized.answer_tokens for number, _ in asked])
    plain = logits.cpu().gather(1, tokens)
    return tolerance, (plain - torch.stack(list(found.values()))).abs().max().item()
