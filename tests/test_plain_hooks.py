"""The engine against torch's own hooks on the plain transformers model: no engine, no nnsight, no mask of ours.

Where a module is, and what a mask looks like, stands here by hand for two families of other structure, so that a hook
point or a mask that is wrong in the library is seen; tests/reference.py takes both from there.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from itertools import islice

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import families
import vocabularies
from debug.causal_experiment_runner import CausalConfig
from debug.causal_experiment_runner.runner import pairs_of
from debug.causal_tracing import trace_pairs
from debug.engine import Cut, Intervention, Site
from debug.generators import FAMILIES, search
from debug.kinds import Module
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS
from debug.plan import Plan
from debug.token_analyzer import analyze_pair
from present import present
from reference import fast, grid, passes_of, strongest

HEADS = 4


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


def untouched(model: LoadedModel) -> Module:
    """The same weights in a model that nnsight has never seen."""
    hf = type(model.hf)(model.config).eval()
    hf.load_state_dict(model.hf.state_dict())
    return hf


def layers_of(hf: Module) -> list[Module]:
    return list(hf.model.layers if hf.config.model_type == "llama" else hf.transformer.h)


def attention(hf: Module, layer: int) -> Module:
    return layers_of(hf)[layer].self_attn if hf.config.model_type == "llama" else layers_of(hf)[layer].attn


@contextmanager
def hooked(hf: Module, component: str, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """``change`` is given what there is of a component, [1, token, width], and gives what it shall be."""

    def before(_: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        assert given, "the first argument is what a layer, a norm and a projection read"
        return (change(given[0]), *given[1:]), named

    def after(_: nn.Module, __: tuple, output: Tensor | tuple) -> Tensor | tuple:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    llama = hf.config.model_type == "llama"
    if component == "residual_stream":
        norm = hf.model.norm if llama else hf.transformer.ln_f
        handle = [*layers_of(hf), norm][layer].register_forward_pre_hook(before, with_kwargs=True)
    elif component == "attention_heads":
        projection = attention(hf, layer).o_proj if llama else attention(hf, layer).c_proj
        handle = projection.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module = attention(hf, layer) if component == "attention" else layers_of(hf)[layer].mlp
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits(hf: Module, token_ids: Int[Tensor, "token"]) -> Float[Tensor, "vocabulary"]:
    return hf(input_ids=token_ids[None], use_cache=False).logits[0, -1]


def activations(
    hf: Module, token_ids: Int[Tensor, "token"], component: str, layer: int
) -> Float[Tensor, "token width"]:
    kept: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        kept.append(value[0].clone())
        return value

    with hooked(hf, component, layer, keep):
        logits(hf, token_ids)
    return kept[0]


def patched(
    hf: Module, token_ids: Int[Tensor, "token"], site: Site, source: Float[Tensor, "token width"]
) -> Float[Tensor, "vocabulary"]:
    [position] = site.positions
    width = source.shape[1] // HEADS
    channels = slice(None) if site.heads is None else slice(site.heads[0] * width, (site.heads[0] + 1) * width)

    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value[0, position, channels] = source[position, channels]
        return value

    with hooked(hf, site.component, site.layer, change):
        return logits(hf, token_ids)


def without_edges(
    hf: Module,
    token_ids: Int[Tensor, "token"],
    layers: Sequence[int],
    edges: Sequence[tuple[int, int]],
    heads: Sequence[int],
) -> Float[Tensor, "vocabulary"]:
    """Attention that is causal, and has not these edges in these heads: -inf is added to their scores."""
    length = len(token_ids)
    mask = torch.full((length, length), -torch.inf).triu(1).repeat(1, HEADS, 1, 1)
    for query, key in edges:
        mask[0, list(heads), query, key] = -torch.inf

    def cut(_: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        assert "attention_mask" in named
        return given, named | {"attention_mask": mask}

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(attention(hf, layer).register_forward_pre_hook(cut, with_kwargs=True).remove)
        return logits(hf, token_ids)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_cell_equals_a_hook(model: LoadedModel, component: str) -> None:
    given, hf = strongest(model, 1), untouched(model)
    passes = passes_of(model, given)
    clean, counterfactual = passes.token_ids
    interventions = grid(model, component, passes.length, 0, 1)
    sources = [
        activations(hf, counterfactual, component, layer) for layer in range(4 + (component == "residual_stream"))
    ]
    expected = [
        patched(hf, clean, site, sources[site.layer])
        for intervention in interventions
        for site in intervention.sites
        if isinstance(site, Site)
    ]
    found = fast(model, passes, interventions)
    assert len(expected) == len(found)
    assert (found - torch.stack(expected)).abs().max() < 1e-4
    assert (found - logits(hf, clean)).abs().max() > 1, "what is compared does something"


@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (2,), (1, 3)])
def test_every_edge_equals_a_hook(model: LoadedModel, heads: tuple[int, ...]) -> None:
    """Single edges of single layers; and a few of them in all layers at once."""
    given, hf = strongest(model, 1), untouched(model)
    passes = passes_of(model, given)
    clean, last = passes.token_ids[0], passes.length - 1
    cuts = [((layer,), ((query, key),)) for layer in range(4) for query, key in ((last, 2), (last, last), (7, 6))]
    cuts += [((0, 1, 2, 3), ((last, 2), (last, 6), (9, 2)))]
    interventions = [Intervention(0, tuple(Cut(layer, edges, heads) for layer in layers)) for layers, edges in cuts]
    expected = [without_edges(hf, clean, layers, edges, heads) for layers, edges in cuts]
    found = fast(model, passes, interventions)
    assert (found - torch.stack(expected)).abs().max() < 1e-4
    assert (found - logits(hf, clean)).abs().amax(1)[-1] > 0.01, "what is compared does something"


PAIRS = int(os.environ.get("DEBUG_HOOK_PAIRS", "1"))  # of a family and component; 20: see docs/development.md
SPACED = "{code} "  # behind it nothing has to be found out about where the answer begins


@torch.no_grad()
def every_square(
    hf: Module, component: str, layer: int, heads: slice, original: Int[Tensor, "token"], source: Int[Tensor, "token"]
) -> Float[Tensor, "token vocabulary"]:
    """The logits where one token's activation is the source's, token by token: a row each."""
    given, rows = activations(hf, source, component, layer), torch.arange(len(original))

    def change(now: Tensor) -> Tensor:
        changed = now.clone()
        changed[rows, rows, heads] = given[:, heads]
        return changed

    with hooked(hf, component, layer, change):
        return hf(input_ids=original.repeat(len(original), 1), use_cache=False, logits_to_keep=1).logits[:, -1]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def characters(request: pytest.FixtureRequest) -> LoadedModel:
    """A model to which every character is a token, so that it reads any program."""
    config, tokenizer = deepcopy(families.CONFIGS[request.param]), vocabularies.tokenizer("printable")
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 1024
    return families.of(config, request.param, tokenizer)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_square_of_every_family_is_what_plain_hooks_give(
    characters: LoadedModel, name: str, component: str
) -> None:
    hf, width = untouched(characters), characters.config.hidden_size
    config = CausalConfig(models=["tiny"], generator=name, hops=[None], seq_lens=[2])
    made = search(FAMILIES[name].make, 2, 0)
    compared = 0
    for result in trace_pairs(
        characters,
        islice(pairs_of(config, made), 4 * PAIRS),
        Plan(component, prompt_template=SPACED, require_correct=False, control=False, logit_lens=False),
    ):
        if result.causal_map is None:
            continue
        causal_map, pair = result.causal_map, analyze_pair(characters.tokenizer, present(result.pair), SPACED)
        answers, n = list(causal_map.answer_tokens), len(causal_map.positions)
        both = [torch.tensor(program.token_ids) for program in pair.programs]
        for layer in causal_map.layers:
            cut = [slice(h * width // HEADS, (h + 1) * width // HEADS) for h in range(HEADS)]
            for head, part in enumerate(cut if component == "attention_heads" else [slice(None)]):
                logits_ = every_square(hf, component, layer, part, *both)
                of_map = causal_map.z_patched[(layer, head) if component == "attention_heads" else layer]
                np.testing.assert_allclose(of_map[:n], logits_[:, answers].numpy(), atol=1e-4)
                np.testing.assert_array_equal(
                    causal_map.top[(layer, head) if component == "attention_heads" else layer][:n], logits_.argmax(-1)
                )
        compared += 1
        if compared == PAIRS:
            break
    assert compared == PAIRS, result.skipped
