"""What the patched model writes behind the prompt, and how probable it finds whole answers there.

The patch is held: every token that is written reads the patched prompt. Sites and cut edges are at positions of the
prompt; what is written is not patched itself. A token costs a patched forward pass of the prompt and of what is written
so far, in which the patch is applied anew, and an unpatched one for each different text: no cache is kept between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from debug.engine.forward import default_batch_tokens, patched_logits
from debug.engine.interventions import Intervention, Site
from debug.engine.unpatched import ForwardPasses, forward_passes
from debug.errors import InputError
from debug.models import LoadedModel

Written = tuple[int, ...]
"""Tokens behind the prompt."""


def continued(
    model: LoadedModel,
    passes: ForwardPasses,
    interventions: Sequence[Intervention],
    n_tokens: int,
    batch_tokens: int | None = None,
) -> Int[Tensor, "intervention token"]:
    """The ``n_tokens`` tokens that each patched model writes behind its prompt, greedily; ends of text are no end.

    Raises:
        InputError: no tokens are asked for, or more than the model's window holds.
        SelfCheckError: logits are not finite.
    """
    if n_tokens < 1:
        raise InputError(f"n_tokens is {n_tokens}; expected 1 or more")
    _check_window(model, passes.length + n_tokens - 1)
    tokens = torch.zeros(len(interventions), n_tokens, dtype=torch.long)
    for at in range(n_tokens):
        asked = [
            (intervention, tuple(row[:at].tolist())) for intervention, row in zip(interventions, tokens, strict=True)
        ]
        for indices, logits in next_logits(model, passes, asked, batch_tokens):
            tokens[indices, at] = logits.argmax(-1).cpu()
    return tokens


def answer_log_probabilities(
    model: LoadedModel,
    passes: ForwardPasses,
    interventions: Sequence[Intervention],
    answers: Sequence[Sequence[int]],
    batch_tokens: int | None = None,
) -> Float[Tensor, "intervention answer"]:
    """The natural logarithm of each answer's probability behind each patched prompt: the sum over the answer's tokens,
    each given the ones before it.

    What answers begin with in common runs once; answers of one token cost what :func:`patched_logits` does.

    Raises:
        InputError: an answer without tokens, or one that the model's window does not hold.
        SelfCheckError: logits are not finite.
    """
    if not all(answers):
        raise InputError(f"answers are lists of one or more tokens each; was given {[list(each) for each in answers]}")
    _check_window(model, passes.length + max(map(len, answers), default=0) - 1)
    total = torch.zeros(len(interventions), len(answers))
    for at, behind in enumerate(beginnings(answers)):
        asked = [(each, begun) for each in range(len(interventions)) for begun in behind]
        texts = [(interventions[each], begun) for each, begun in asked]
        for indices, logits in next_logits(model, passes, texts, batch_tokens):
            for index, row in zip(indices, logits.log_softmax(-1).cpu(), strict=True):
                each, begun = asked[index]
                total[each, behind[begun]] += row[[answers[number][at] for number in behind[begun]]]
    return total


def beginnings(answers: Sequence[Sequence[int]]) -> list[dict[Written, list[int]]]:
    """Token after token: what answers begin with -> the numbers of those that go on there."""
    steps: list[dict[Written, list[int]]] = [defaultdict(list) for _ in range(max(map(len, answers), default=0))]
    for number, answer in enumerate(answers):
        for at in range(len(answer)):
            steps[at][tuple(answer[:at])].append(number)
    return steps


def next_logits(
    model: LoadedModel,
    passes: ForwardPasses,
    asked: Sequence[tuple[Intervention, Written]],
    batch_tokens: int | None = None,
) -> Iterator[tuple[list[int], Float[Tensor, "intervention vocabulary"]]]:
    """(indices into ``asked``, the logits that predict the token behind the prompt and what is written); the texts of
    all are of one length."""
    batch_tokens = batch_tokens or default_batch_tokens(model)
    for numbers, texts, sources, moved in parts(passes, asked, batch_tokens):
        behind = _lengthened(model, passes, texts, sources) if texts else passes
        for indices, logits in patched_logits(model, behind, moved, batch_tokens):
            yield [numbers[index] for index in indices], logits


def parts(
    passes: ForwardPasses, asked: Sequence[tuple[Intervention, Written]], batch_tokens: int
) -> Iterator[tuple[list[int], list[tuple[int, Written]], list[int], list[Intervention]]]:
    """Those that run together: their indices; each text once (row of the prompt, what is written) and the rows of
    sources, which are forward passes anew; the interventions there. Where nothing is written no pass is."""
    by_text: dict[tuple[int, Written], list[int]] = defaultdict(list)
    for index, (intervention, written) in enumerate(asked):
        by_text[intervention.base, written].append(index)
    texts = list(by_text)
    if not texts or not texts[0][1]:
        yield [*range(len(asked))], [], [], [intervention for intervention, _ in asked]
        return
    at_once = max(1, batch_tokens // (passes.length + len(texts[0][1])))
    for start in range(0, len(texts), at_once):
        some = texts[start : start + at_once]
        numbers = [index for text in some for index in by_text[text]]
        sources = sorted({site.source for index in numbers for site in asked[index][0].patched})
        row_of = {source: len(some) + n for n, source in enumerate(sources)}
        moved = [_moved(asked[index][0], row, row_of) for row, text in enumerate(some) for index in by_text[text]]
        yield numbers, some, sources, moved


def _lengthened(
    model: LoadedModel, passes: ForwardPasses, texts: Sequence[tuple[int, Written]], sources: Sequence[int]
) -> ForwardPasses:
    """The unpatched forward passes of these texts (row of the prompt, what is written behind it); behind their rows the
    sources', which hold nothing behind the prompt: nothing is patched there."""
    more = [passes.token_ids.new_tensor(written) for _, written in texts]
    token_ids = torch.stack(
        [torch.cat([passes.token_ids[row], each]) for (row, _), each in zip(texts, more, strict=True)]
    )
    nothing = (0, 0, 0, len(more[0]))
    stored = {
        name: [pad(at[list(sources)], nothing, value=torch.nan) for at in layers]
        for name, layers in passes.activations.items()
    }
    return forward_passes(model, token_ids, passes.activations).with_sources(stored)


def _moved(intervention: Intervention, base: int, row_of: dict[int, int]) -> Intervention:
    """The same in other rows: its own, and those of its sources."""
    sites = (replace(s, source=row_of[s.source]) if isinstance(s, Site) else s for s in intervention.sites)
    return Intervention(base, tuple(sites))


def _check_window(model: LoadedModel, length: int) -> None:
    if model.window is not None and length > model.window:
        raise InputError(
            f"prompt and what is behind it are {length} tokens; the window of model {model.id!r} is {model.window}"
        )
