"""Programs packed into batches, and the losses on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3ForCausalLM

from debug.training.model import name_rotation
from debug.training.programs import Programs
from debug.training.vocabulary import COLON, DIGIT, END, HASH, LETTER, NEWLINE_OF_LINE, RHS_OF_LINE


@dataclass(frozen=True)
class Batch:
    """Programs with several queries each, one sequence a program; each query is computed as if it were alone.

    A sequence is the assignment lines, ``#``, then ``x`` and ``: `` of each query, then the last query's answer. The
    ``#`` has the same past for every query and serves all. The mask shows a query the program, the ``#`` and itself;
    position numbers are those of the plain text.
    """

    input_ids: Int[Tensor, "program position"]
    position_ids: Int[Tensor, "1 position"]
    mask: Bool[Tensor, "1 1 query_position key_position"]
    answers: Int[Tensor, "program query"]
    """Token to be predicted at each query's ``: ``; after the last query's answer comes the end of text."""
    names: Int[Tensor, "program name"]
    """For the naming loss: token to be named at ``name_positions``."""
    colon_positions: slice
    name_positions: list[int]


def pack(programs: Programs, queries: Int[np.ndarray, "program query"], naming_site: str = "rhs") -> Batch:
    """``naming_site`` is the token of each line that the naming loss reads; at ``: `` it reads in any case."""
    count, n_queries = queries.shape
    named = NEWLINE_OF_LINE if naming_site == "newline" else RHS_OF_LINE
    text = programs.tokens
    lines = text.shape[1]
    variables = LETTER + np.take_along_axis(programs.lhs, queries, axis=1)
    answers = DIGIT + np.take_along_axis(programs.value, queries, axis=1)
    asked = np.stack([variables, np.full_like(variables, COLON)], axis=2).reshape(count, -1)
    input_ids = np.concatenate([text, np.full((count, 1), HASH), asked, answers[:, -1:]], axis=1)
    position_ids = np.concatenate([np.arange(lines + 1), np.tile([lines + 1, lines + 2], n_queries), [lines + 3]])
    owner = np.concatenate([np.full(lines + 1, -1), np.repeat(np.arange(n_queries), 2), [n_queries - 1]])
    causal = np.tri(len(owner), dtype=bool)
    mask = causal & ((owner[None, :] == -1) | (owner[None, :] == owner[:, None]))
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids)[None],
        mask=torch.from_numpy(mask)[None, None],
        answers=torch.from_numpy(answers),
        names=torch.from_numpy(np.concatenate([LETTER + programs.lhs, variables], axis=1)),
        colon_positions=slice(lines + 2, lines + 1 + 2 * n_queries, 2),
        name_positions=[*range(named, lines, 4), *range(lines + 2, lines + 1 + 2 * n_queries, 2)],
    )


def losses(model: Qwen3ForCausalLM, batch: Batch, naming: bool) -> tuple[dict[str, Tensor], float]:
    """Cross-entropies and the share of queries answered.

    ``answer``: at each ``: ``. ``end``: end of text after the answer. ``naming`` (where asked for): the first layer's
    output, read through final norm and unembedding, names the queried variable at each ``: ``, and, read through
    :func:`name_rotation` too, the left-hand side of the line at each right-hand side (or at its newline,
    :attr:`Settings.naming_site`).
    """
    outputs = model.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.mask,
        use_cache=False,
        output_hidden_states=naming,
    )
    logits = model.lm_head(outputs.last_hidden_state[:, batch.colon_positions])
    ends = model.lm_head(outputs.last_hidden_state[:, -1])
    found = {
        "answer": F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten()),
        "end": F.cross_entropy(ends, torch.full_like(ends[:, 0], END, dtype=torch.long)),
    }
    if naming:
        first = model.model.norm(outputs.hidden_states[1][:, batch.name_positions])
        lines = batch.names.shape[1] - batch.answers.shape[1]
        first = torch.cat([first[:, :lines] @ name_rotation(first.shape[-1]).T, first[:, lines:]], dim=1)
        first = model.lm_head(first)
        found["naming"] = F.cross_entropy(first.flatten(0, 1), batch.names.flatten())
    return found, (logits.argmax(-1) == batch.answers).float().mean().item()
