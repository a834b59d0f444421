"""Which answer a patched run gives, where more than its top token says it: the most probable whole answer of the
candidates, or the one that is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debug.causal_map import CausalMap
from debug.causal_map.sources import GREEDY
from debug.causal_tracing.pairs import PreparedPair
from debug.engine import ForwardPasses, Intervention, Site, answer_log_probabilities, continued, next_logits
from debug.models import LoadedModel
from debug.plan import Plan
from debug.prompts.answers import written_answer


class Said(NamedTuple):
    """Of some interventions."""

    answers: Int[Tensor, " intervention"]
    """Number of a candidate; -1 where none is written."""
    texts: list[str]
    log_probabilities: Float[Tensor, "intervention candidate"] | None
    """Of whole answers."""


def said(
    model: LoadedModel,
    passes: ForwardPasses,
    plan: Plan,
    one: PreparedPair,
    interventions: Sequence[Intervention],
    batch_tokens: int,
) -> Said:
    """What a pair's patched runs answer: the most probable candidate, teacher-forced, or the one written greedily."""
    texts, tokens = [*one.candidates], [*one.candidates.values()]
    if plan.scored_by == GREEDY:
        n = 1 + max(map(len, tokens))  # one more, which tells 1 from 12
        found = [*map(model.tokenizer.decode, continued(model, passes, interventions, n, batch_tokens).tolist())]
        return Said(torch.tensor([written_answer(text, texts) for text in found], dtype=torch.long), found, None)
    logs = answer_log_probabilities(model, passes, interventions, tokens, batch_tokens)
    best = logs.argmax(-1)
    return Said(best, [texts[number] for number in best.tolist()], logs)


def nothing(rows: Sequence[int]) -> list[Intervention]:
    """Forward passes in which all is as it was."""
    return [Intervention(row, (Site("residual_stream", 0, (0,), source=row),)) for row in rows]


def with_answers(
    causal_map: CausalMap,
    model: LoadedModel,
    passes: ForwardPasses,
    plan: Plan,
    one: PreparedPair,
    rows: tuple[int, int],
    made: Sequence[tuple[bool, tuple[int, ...], Intervention]],
    batch_tokens: int,
) -> CausalMap:
    """The map with what each square answers, scored as the plan says; and where both answers begin alike, with logits
    of their first tokens that differ.

    Args:
        rows: of the clean and of the counterfactual forward pass.
        made: whether it is the control's, its square, the intervention.
    """
    every = [*nothing(rows), *(intervention for *_, intervention in made)]
    found = said(model, passes, plan, one, every, batch_tokens)
    own = [(at, number) for number, (is_control, at, _) in enumerate(made, len(rows)) if not is_control]
    of_control = [(at, number) for number, (is_control, at, _) in enumerate(made, len(rows)) if is_control]

    def filled(values: Tensor, shape: tuple[int, ...], squares: Sequence[tuple[tuple[int, ...], int]]) -> np.ndarray:
        """What each square has; those that are not run have what the clean forward pass has."""
        array = np.broadcast_to(values[0].numpy(), (*shape, *values.shape[1:])).copy()
        for at, number in squares:
            array[at] = values[number]
        return array

    fields: dict[str, np.ndarray | None] = {"said": filled(found.answers, causal_map.top.shape, own)}
    if causal_map.control_top is not None:
        fields["control_said"] = filled(found.answers, causal_map.control_top.shape, of_control)
    if found.log_probabilities is not None:
        fields["log_probabilities"] = filled(found.log_probabilities, causal_map.top.shape, own)
    if (z := _where_they_part(model, passes, one, every, batch_tokens)) is not None:
        fields |= {"z_clean": z[0].numpy(), "z_counterfactual": z[1].numpy()}
        fields |= {"z_patched": filled(z, causal_map.top.shape, own), "lens_logits": None, "lens_ranks": None}
    c, o = (one.candidates[text][one.in_common] for text in one.texts)
    words = causal_map.vocabulary | {token: model.tokenizer.decode([token]) for token in (c, o)}
    return replace(causal_map, scored_by=plan.scored_by, answer_tokens=(c, o), vocabulary=words, **fields)


def _where_they_part(
    model: LoadedModel,
    passes: ForwardPasses,
    one: PreparedPair,
    interventions: Sequence[Intervention],
    batch_tokens: int,
) -> Float[Tensor, "intervention 2"] | None:
    """Logits of the answers' first tokens that differ, behind those that are alike; None where none is."""
    if not one.in_common:
        return None
    c, o = (one.candidates[text] for text in one.texts)
    z = torch.zeros(len(interventions), 2)
    asked = [(each, c[: one.in_common]) for each in interventions]
    for indices, logits in next_logits(model, passes, asked, batch_tokens):
        z[indices] = logits[:, [c[one.in_common], o[one.in_common]]].cpu()
    return z
