"""Hook points: what a notebook reads and writes in a trace, on every family, against torch's own hooks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import families
from debug.engine import Intervention, Site, unembedded
from debug.errors import DebugError
from debug.kinds import Traced
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS, HookPoint
from reference import fast, passes_of, strongest

POINTS = {"residual": "residual_stream", "heads": "attention_heads", "attention_out": "attention", "mlp_out": "mlp"}
MODULES = {
    "gpt2": ("transformer.h", "transformer.ln_f", "attn.c_proj", "attn", "mlp"),
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.dense", "attention", "mlp"),
    "opt": ("model.decoder.layers", "model.decoder.final_layer_norm", "self_attn.out_proj", "self_attn", "fc2"),
    "gemma3": ("model.language_model.layers", "model.language_model.norm", "self_attn.o_proj", "self_attn", "mlp"),
}
"""Layers, final norm, output projection, attention, MLP: by hand, so that a wrong path in the library is seen."""
LLAMA_LIKE = ("model.layers", "model.norm", "self_attn.o_proj", "self_attn", "mlp")


@pytest.fixture(scope="module", params=families.CONFIGS)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


@pytest.fixture(scope="module")
def llama() -> LoadedModel:
    return families.family("llama")


TOKEN_IDS = torch.tensor([[11, 20, 31, 7, 15], [9, 31, 2, 25, 33]])


@contextmanager
def hooked(model: LoadedModel, point: str, layer: int, hear: Callable[[Tensor], None]) -> Iterator[None]:
    """What torch hears at a place, [row, token, width]."""
    layers, norm, projection, attention, mlp = MODULES.get(model.id, LLAMA_LIKE)
    place = f"{layers}.{layer}"
    names = {"heads": f"{place}.{projection}", "attention_out": f"{place}.{attention}", "mlp_out": f"{place}.{mlp}"}
    name = names.get(point, norm if layer == model.n_layers else place)
    module = model.hf.get_submodule(name)

    def before(_: object, given: tuple, named: dict) -> None:
        hear((given or tuple(named.values()))[0].detach().clone())

    def after(_: object, __: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        hear((output[0] if isinstance(output, tuple) else output).detach().clone())

    if point in names and point != "heads":
        handle = module.register_forward_hook(after)
    else:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_every_component_has_a_name_for_notebooks(llama: LoadedModel) -> None:
    assert {getattr(llama, name).name for name in POINTS} == set(COMPONENTS) == set(POINTS.values())


@pytest.mark.parametrize("name", POINTS)
def test_what_is_read_is_what_torch_hears(model: LoadedModel, name: str) -> None:
    point: HookPoint = getattr(model, name)
    with torch.no_grad(), model.trace(TOKEN_IDS):
        read: Traced = list(point)
        read.save()
        logits = model.logits.save()
    assert len(read) == len(point) == model.n_layers + (name == "residual")
    with torch.no_grad():
        torch.testing.assert_close(logits, model.hf(TOKEN_IDS, use_cache=False).logits)
    for layer, value in enumerate(read):
        heard: list[Tensor] = []
        with torch.no_grad(), hooked(model, name, layer, heard.append):
            model.hf(TOKEN_IDS, use_cache=False)
        assert value.shape[:2] == (2, 5)
        assert value.shape[2:-1] == ((4,) if name == "heads" else ())
        torch.testing.assert_close(value.flatten(2), heard[0].view(2, 5, -1))


@pytest.mark.parametrize("name", POINTS)
def test_a_write_of_another_runs_value_gives_the_engines_logits(model: LoadedModel, name: str) -> None:
    """In any trace of ``model.nnsight``, by the place in the prompt and by the whole layer."""
    given, point = strongest(model, 1), getattr(model, name)
    passes = passes_of(model, given)
    clean, counterfactual = passes.token_ids[:1], passes.token_ids[1:]
    layers = [1, len(point) - 1]
    everywhere, last = tuple(range(passes.length)), (passes.length - 1,)
    sites = [Site(POINTS[name], layer, positions, source=1) for layer in layers for positions in (everywhere, last)]
    expected = fast(model, passes, [Intervention(0, (site,)) for site in sites])
    found = []
    for site in sites:
        with torch.no_grad(), model.nnsight.trace(counterfactual):
            other = point[site.layer].clone().save()
        with torch.no_grad(), model.nnsight.trace(clean):
            if len(site.positions) > 1:
                point[site.layer] = other
            else:
                point[site.layer][:, -1] = other[:, -1]
            logits = model.logits[0, -1].save()
        found.append(logits)
    assert (torch.stack(found) - expected).abs().max() < 1e-4
    assert (torch.stack(found) - passes.logits[0]).abs().amax(1).max() > 0.1, "what is compared does something"


def test_a_head_is_edited_in_place(model: LoadedModel) -> None:
    """As the engine patches one from activations that are zero."""
    passes = passes_of(model, strongest(model, 1))
    last = passes.length - 1
    nothing = {name: [torch.zeros_like(at[:1]) for at in layers] for name, layers in passes.activations.items()}
    site = Site("attention_heads", 2, (last,), (3,), source=2)
    [expected] = fast(model, passes.with_sources(nothing), [Intervention(0, (site,))])
    with torch.no_grad(), model.trace(passes.token_ids[:1]):
        model.heads[2][:, -1, 3] = 0
        logits = model.logits[0, -1].save()
    assert (logits - expected).abs().max() < 1e-4
    assert (logits - passes.logits[0]).abs().max() > 1e-3


def test_an_intervention_that_no_plan_knows_is_three_lines(model: LoadedModel) -> None:
    """Steering: a vector is added to the residual stream; above the last layer, to what the final norm reads."""
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), model.trace(TOKEN_IDS):
        model.residual[2] += 3 * vector
        steered = model.logits.save()
    with torch.no_grad(), model.trace(TOKEN_IDS):
        stream = model.residual[-1].clone().save()
        model.residual[-1] += 3 * vector
        top = model.logits.save()
    with torch.no_grad():
        plain = model.hf(TOKEN_IDS, use_cache=False).logits
    torch.testing.assert_close(top[1], unembedded(model, stream[1] + 3 * vector), atol=1e-4, rtol=1e-4)
    assert (steered - plain).abs().max() > 0.1
    assert (top - plain).abs().max() > 0.1
    assert (steered - top).abs().max() > 0.1


def test_negative_layers_count_from_the_end(llama: LoadedModel) -> None:
    with torch.no_grad(), llama.trace(TOKEN_IDS):
        one = llama.mlp_out[3].save()
        top = llama.residual[4].save()
    with torch.no_grad(), llama.trace(TOKEN_IDS):
        same = llama.mlp_out[-1].save()
        same_top = llama.residual[-1].save()
    assert (one == same).all()
    assert (top == same_top).all()


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("mlp_out", 4, "layer 4: model 'llama' has 4 layers, 0 to 3$"),
        ("heads", -5, "layer -5: model 'llama' has 4 layers, 0 to 3$"),
        ("residual", 5, "has 4 layers, 0 to 3; residual stream 4 is what the final norm reads$"),
    ],
)
def test_a_layer_that_is_not_there_says_how_many_there_are(
    llama: LoadedModel, name: str, layer: int, message: str
) -> None:
    with pytest.raises(DebugError, match=message):
        getattr(llama, name)[layer]
    with pytest.raises(DebugError, match="has 4 layers"), llama.trace(TOKEN_IDS):
        getattr(llama, name)[layer] = torch.zeros(2, 5, 48)


def test_a_value_of_another_shape_is_refused(llama: LoadedModel) -> None:
    message = r"heads of layer 1: expected \[2, 5, 4, 12\], was given \[2, 5, 48\]"
    with pytest.raises(DebugError, match=message), torch.no_grad(), llama.trace(TOKEN_IDS):
        llama.heads[1] = torch.zeros(2, 5, 48)


def test_slopes_by_what_is_written_back(llama: LoadedModel) -> None:
    with llama.trace(TOKEN_IDS):
        heads = llama.heads[1].save()
        llama.heads[1] = heads
        logits = llama.logits.save()
    [slopes] = torch.autograd.grad(logits[0, -1, 3], [heads])
    assert slopes.shape == (2, 5, 4, 12)
    assert slopes[0].abs().max() > 0
    assert (slopes[1] == 0).all()
