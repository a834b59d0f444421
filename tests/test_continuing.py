"""What the patched model writes, and the probability of whole answers, against hooks on the plain model.

Without a cache: the whole prompt and all that is written so far, once more for every token."""

from collections.abc import Callable, Sequence

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import families
from debug.engine import Cut, ForwardPasses, Intervention, Site, answer_log_probabilities, continued, patched_logits
from debug.errors import InputError
from debug.kinds import Module
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS
from reference import passes_of, strongest
from test_plain_hooks import hooked, logits, untouched, without_edges
from test_several_sources import drawn, patched

N = 5
ANSWERS = [[5], [5, 7], [5, 7, 30], [12, 3], [5, 7], [40, 40, 40, 40]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


@pytest.fixture(scope="module")
def passes(model: LoadedModel) -> ForwardPasses:
    return passes_of(model, strongest(model, 2))


def next_logits(
    hf: Module, passes: ForwardPasses, intervention: Intervention, written: Sequence[int]
) -> Float[Tensor, "vocabulary"]:
    """Of sites, or of cut edges that are the same in every head, in the plain way."""
    cuts = [site for site in intervention.sites if isinstance(site, Cut)]
    if not cuts:
        return patched(hf, passes.token_ids, intervention.base, intervention.patched, written)
    token_ids = torch.cat([passes.token_ids[intervention.base], torch.tensor([*written], dtype=torch.long)])
    return without_edges(hf, token_ids, [cut.layer for cut in cuts], cuts[0].edges, range(4))


def interventions_of(passes: ForwardPasses) -> list[Intervention]:
    """Sites of several programs and frozen ones; the last token alone, at the top too; edges that are cut."""
    last = passes.length - 1
    every = [each for component in COMPONENTS for each in drawn(component, passes.length, 3)]
    every += [Intervention(0, (Site("residual_stream", layer, (last,), source=2),)) for layer in (2, 4)]
    edges = ((last, 2), (last, 6), (9, 2))
    return [*every, Intervention(1, tuple(Cut(layer, edges) for layer in range(4)))]


@pytest.fixture(scope="module")
def written(model: LoadedModel, passes: ForwardPasses) -> list[list[int]]:
    """By the plain model with hooks, token by token."""
    hf, found = untouched(model), []
    for intervention in interventions_of(passes):
        tokens: list[int] = []
        for _ in range(N):
            tokens.append(int(next_logits(hf, passes, intervention, tokens).argmax()))
        found.append(tokens)
    return found


@pytest.mark.parametrize("batch_tokens", [None, 1, 100])
def test_the_patched_model_writes_what_the_hooked_one_writes(
    model: LoadedModel, passes: ForwardPasses, written: list[list[int]], batch_tokens: int | None
) -> None:
    interventions = interventions_of(passes)
    found = continued(model, passes, interventions, N, batch_tokens)
    assert found.tolist() == written
    nothing = [Intervention(each.base, (Site("mlp", 0, (3,), source=each.base),)) for each in interventions]
    clean = continued(model, passes, nothing, N)
    assert (found != clean).any(1).sum() > len(interventions) / 2, "what is compared does something"
    assert continued(model, passes, interventions, 1).tolist() == [tokens[:1] for tokens in written]


@pytest.mark.parametrize("batch_tokens", [None, 1])
def test_answers_are_as_probable_as_under_hooks(
    model: LoadedModel, passes: ForwardPasses, batch_tokens: int | None
) -> None:
    hf, interventions = untouched(model), interventions_of(passes)
    expected = [
        [
            sum(
                next_logits(hf, passes, intervention, answer[:at]).log_softmax(-1)[token].item()
                for at, token in enumerate(answer)
            )
            for answer in ANSWERS
        ]
        for intervention in interventions
    ]
    found = answer_log_probabilities(model, passes, interventions, ANSWERS, batch_tokens)
    assert (found - torch.tensor(expected)).abs().max() < 1e-4
    assert (found[:, 1] == found[:, 4]).all(), "one answer twice"
    assert (found.diff(dim=0).abs().max(0).values > 0.1).all(), "what is compared does something"


def test_what_follows_of_a_patch_that_no_later_token_reads_is_its_first_token(
    model: LoadedModel, passes: ForwardPasses
) -> None:
    """Above the last layer the last token's state makes one token; what is written behind it is the clean model's."""
    top = Intervention(0, (Site("residual_stream", model.n_layers, (passes.length - 1,), source=2),))
    [tokens] = continued(model, passes, [top], N).tolist()
    assert tokens[0] == passes.logits[2].argmax() != passes.logits[0].argmax()
    hf = untouched(model)
    for at in range(1, N):
        assert logits(hf, torch.cat([passes.token_ids[0], torch.tensor(tokens[:at])])).argmax() == tokens[at]


def test_sources_that_are_no_forward_pass_are_held_too(model: LoadedModel, passes: ForwardPasses) -> None:
    nothing = {name: [torch.zeros_like(at[:1]) for at in layers] for name, layers in passes.activations.items()}
    site, hf = Site("mlp", 1, (passes.length - 1, 9), source=len(passes)), untouched(model)

    def zero(value: Tensor) -> Tensor:
        value = value.clone()
        value[:, list(site.positions)] = 0
        return value

    tokens: list[int] = []
    for _ in range(N):
        with hooked(hf, "mlp", 1, zero):
            tokens.append(int(logits(hf, torch.cat([passes.token_ids[0], torch.tensor(tokens).long()])).argmax()))
    assert continued(model, passes.with_sources(nothing), [Intervention(0, (site,))], N).tolist() == [tokens]


def test_answers_of_one_token_are_the_patched_logits(model: LoadedModel, passes: ForwardPasses) -> None:
    interventions, every = interventions_of(passes), range(passes.logits.shape[1])
    found = answer_log_probabilities(model, passes, interventions, [[token] for token in every])
    assert found.exp().sum(1).sub(1).abs().max() < 1e-5
    for indices, of_batch in patched_logits(model, passes, interventions):
        torch.testing.assert_close(found[indices], of_batch.log_softmax(-1))


def test_nothing_asked_is_nothing(model: LoadedModel, passes: ForwardPasses) -> None:
    assert continued(model, passes, [], 3).shape == (0, 3)
    assert answer_log_probabilities(model, passes, [], ANSWERS).shape == (0, len(ANSWERS))
    assert answer_log_probabilities(model, passes, interventions_of(passes)[:2], []).shape == (2, 0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, p, i: continued(m, p, i, 0), "n_tokens is 0; expected 1 or more"),
        (lambda m, p, i: continued(m, p, i, 243), r"behind it are 257 tokens; the window of model '\w+' is 256"),
        (
            lambda m, p, i: answer_log_probabilities(m, p, i, [[3], []]),
            r"one or more tokens each; was given \[\[3\], \[\]\]",
        ),
        (lambda m, p, i: answer_log_probabilities(m, p, i, [[3] * 243]), "behind it are 257 tokens; the window"),
    ],
)
def test_bad_input_is_refused(
    model: LoadedModel, passes: ForwardPasses, ask: Callable[..., object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask(model, passes, interventions_of(passes))
