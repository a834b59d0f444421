"""Sites of one intervention from several forward passes, frozen ones among them, against hooks on the plain model."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

import families
from debug.engine import ForwardPasses, Intervention, Site, patched_logits, writing
from debug.engine.plain_hooks import plain_logits
from debug.engine.read_back import READ_BACK, ReadBack
from debug.errors import InputError
from debug.kinds import Module
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS
from present import present
from reference import fast, passes_of, strongest
from test_plain_hooks import HEADS, activations, hooked, logits, untouched

LAYERS = 4


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


@pytest.fixture(scope="module")
def passes(model: LoadedModel) -> ForwardPasses:
    """Of four programs; 0 and 1 are of two pairs, 2 and 3 their counterfactuals."""
    return passes_of(model, strongest(model, 2))


def patched(
    hf: Module, prompts: Int[Tensor, "program token"], base: int, sites: Sequence[Site], more: Sequence[int] = ()
) -> Float[Tensor, "vocabulary"]:
    """Each site in a hook of its own, with what its source has there; ``more`` are tokens behind the base's prompt."""
    recorded = [activations(hf, prompts[site.source], site.component, site.layer) for site in sites]
    with ExitStack() as hooks:
        for site, given in zip(sites, recorded, strict=True):
            width = given.shape[1] // HEADS
            every = range(HEADS) if site.heads is None else site.heads
            channels = [c for head in every for c in range(head * width, (head + 1) * width)]

            def change(
                value: Tensor, site: Site = site, given: Tensor = given, channels: list[int] = channels
            ) -> Tensor:
                value = value.clone()
                for position in site.positions:
                    value[0, position, channels] = given[position, channels]
                return value

            hooks.enter_context(hooked(hf, site.component, site.layer, change))
        return logits(hf, torch.cat([prompts[base], prompts.new_tensor(list(more))]))


def drawn(component: str, length: int, n: int = 16) -> list[Intervention]:
    """One site of the component, and three to five of any; from three programs, of which one freezes them."""
    rng, found = np.random.RandomState(0), []
    while len(found) < n:
        base, sites = int(rng.choice([0, 1])), []
        for number in range(int(rng.randint(4, 7))):
            name = component if number == 0 else str(rng.choice([*COMPONENTS]))
            layer = int(rng.randint(LAYERS + (name == "residual_stream")))
            heads = tuple(int(h) for h in sorted(rng.choice(HEADS, 2, replace=False))) if rng.rand() < 0.5 else None
            heads = heads if COMPONENTS[name].per_head else None
            source = int(rng.choice([2, 3, 1 - base])) if number == 0 else int(rng.choice([base, base, 2, 3]))
            n_positions = rng.randint(3, 8) if source == base else rng.randint(1, 4)
            positions = tuple(int(p) for p in sorted(rng.choice(range(2, length), n_positions, replace=False)))
            sites.append(Site(name, layer, positions, heads, source=source))
        try:
            one = Intervention(base, tuple(sites))
        except InputError:  # two of them write to the same place
            continue
        if len({site.source for site in sites}) == 3 and base in {site.source for site in sites}:
            found.append(one)
    return found


def frozen_matter(model: LoadedModel, passes: ForwardPasses, interventions: Sequence[Intervention]) -> int:
    """Of how many interventions the logits are others where its frozen sites are left out."""
    without = [replace(i, sites=tuple(site for site in i.patched if site.source != i.base)) for i in interventions]
    difference = fast(model, passes, interventions) - fast(model, passes, without)
    return int((difference.abs().amax(1) > 0.01).sum())


@pytest.mark.parametrize("component", COMPONENTS)
def test_sites_from_three_programs_equal_hooks(model: LoadedModel, passes: ForwardPasses, component: str) -> None:
    """At several layers and positions, of several components, packed with one another."""
    hf, interventions = untouched(model), drawn(component, passes.length)
    expected = torch.stack([patched(hf, passes.token_ids, each.base, each.patched) for each in interventions])
    found = fast(model, passes, interventions)
    assert (found - expected).abs().max() < 1e-4
    assert frozen_matter(model, passes, interventions) >= 4
    one_source = [replace(i, sites=tuple(replace(s, source=2) for s in i.patched)) for i in interventions]
    assert (found - fast(model, passes, one_source)).abs().amax(1).median() > 0.1, "each site's own source matters"
    plain, tolerance = plain_logits(model, passes, interventions)
    assert (plain - found).abs().max() <= tolerance < 1e-3


@pytest.mark.parametrize("component", [name for name, each in COMPONENTS.items() if not each.whole])
def test_all_later_parts_frozen_leave_the_direct_path(
    model: LoadedModel, passes: ForwardPasses, component: str
) -> None:
    """Whatever is patched at the last token reaches the logits past frozen attention and MLPs only: by itself."""
    hf, last, prompts = untouched(model), passes.length - 1, passes.token_ids
    interventions = []
    for layer, head in product(range(LAYERS), range(HEADS) if COMPONENTS[component].per_head else [None]):
        own = ["mlp"] if component != "mlp" else []
        frozen = [(layer, name) for name in own] + list(product(range(layer + 1, LAYERS), ("attention", "mlp")))
        sites = (
            Site(component, layer, (last,), None if head is None else (head,), source=2),
            *(Site(name, at, (last,), source=0) for at, name in frozen),
        )
        interventions.append(Intervention(0, sites))
    found = fast(model, passes, interventions)
    expected = torch.stack([patched(hf, prompts, 0, each.patched) for each in interventions])
    assert (found - expected).abs().max() < 1e-4
    # Once more, without any patch: the component's change goes straight into what the final norm reads.
    for logits_, intervention in zip(found, interventions, strict=True):
        first = intervention.patched[0]
        before, after = (activations(hf, prompts[row], component, first.layer)[last] for row in (0, 2))
        if first.heads is not None:
            before, after = before.clone(), after.clone()
            width = len(before) // HEADS
            others = [c for c in range(len(before)) if c // width not in first.heads]
            after[others] = before[others]
            project = model.hook_point(component).module(first.layer)
            before, after = project(before), project(after)
        stream = activations(hf, prompts[0], "residual_stream", LAYERS).clone()
        stream[last] += after - before
        with hooked(hf, "residual_stream", LAYERS, lambda _, stream=stream: stream[None]):
            assert (logits(hf, prompts[0]) - logits_).abs().max() < 1e-4
    assert frozen_matter(model, passes, interventions) > len(interventions) / 2


def test_heads_reach_later_positions_past_frozen_parts(model: LoadedModel, passes: ForwardPasses) -> None:
    """Heads from the counterfactual at one position; all later layers' MLPs frozen at all later positions, attention at
    all of them but the last."""
    hf, last, interventions = untouched(model), passes.length - 1, []
    for layer, head in product(range(LAYERS - 1), range(HEADS)):
        at, later = 6, tuple(range(7, last))
        frozen = [Site("mlp", above, (at, *later, last), source=0) for above in range(layer + 1, LAYERS)]
        frozen += [Site("attention", above, later, source=0) for above in range(layer + 1, LAYERS)]
        interventions.append(Intervention(0, (Site("attention_heads", layer, (at,), (head,), source=2), *frozen)))
    found = fast(model, passes, interventions)
    expected = torch.stack([patched(hf, passes.token_ids, 0, each.patched) for each in interventions])
    assert (found - expected).abs().max() < 1e-4
    assert frozen_matter(model, passes, interventions) > len(interventions) / 2
    assert (found - passes.logits[0]).abs().max() > 0.01, "what is compared does something"


def test_everything_frozen_is_the_clean_forward_pass(model: LoadedModel, passes: ForwardPasses) -> None:
    """Frozen sites below the patched layer and before the patched position are no harm."""
    everywhere = tuple(range(passes.length))
    frozen = tuple(Site(name, layer, everywhere, source=0) for name in ("attention", "mlp") for layer in range(LAYERS))
    [found] = fast(model, passes, [Intervention(0, frozen)])
    assert (found - passes.logits[0]).abs().max() < 1e-4
    site = Site("residual_stream", LAYERS, (passes.length - 1,), source=2)
    [moved] = fast(model, passes, [Intervention(0, (*frozen, site))])
    assert (moved - passes.logits[2]).abs().max() < 1e-4


@pytest.mark.parametrize("component", COMPONENTS)
def test_each_sites_own_source_is_read_back(
    model: LoadedModel, passes: ForwardPasses, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {7: 2, 9: 0, 11: 3}
    interventions = [
        Intervention(0, tuple(Site(component, layer, (position,), source=row) for position, row in sources.items()))
        for layer in (0, 2)
    ]

    def worst() -> float:
        read_back = ReadBack(model, passes)
        for _ in patched_logits(model, passes, interventions, None, read_back):
            pass
        return present(read_back.worst)

    def from_one(
        model: LoadedModel, passes: ForwardPasses, component: str, layer: int, value: Tensor, hits: list
    ) -> None:
        overwrite(model, passes, component, layer, value, [hit._replace(source=2) for hit in hits])

    assert worst() <= READ_BACK["float32"]
    overwrite = writing.overwrite
    monkeypatch.setattr(writing, "overwrite", from_one)
    assert worst() > 0.01
