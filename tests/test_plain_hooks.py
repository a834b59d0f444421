"""The engine against plain torch hooks on the plain transformers model, in two families of other structure."""

import pytest
import torch

import families
import plain_hooks
from debug.engine import COMPONENTS, Cell, Cut, Site
from debug.models import LoadedModel
from reference import fast, grid, runs_of, strongest


@pytest.fixture(scope="module", params=plain_hooks.FAMILIES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


def untouched(model: LoadedModel) -> torch.nn.Module:
    """The same weights in a model that nnsight has never seen."""
    hf = type(model.hf)(model.config).eval()
    hf.load_state_dict(model.hf.state_dict())
    return hf


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_cell_equals_a_hook(model: LoadedModel, component: str) -> None:
    given, hf = strongest(model, 1), untouched(model)
    runs = runs_of(model, given)
    clean, counterfactual = runs.token_ids
    cells = grid(model, component, runs.length, 0, 1)
    expected = []
    for cell in cells:
        (site,) = cell.sites
        assert isinstance(site, Site)
        source = plain_hooks.activations(hf, model.id, counterfactual, component, site.layer)
        width = source.shape[1] // (4 if site.heads else 1)
        head = site.heads[0] if site.heads else 0
        channels = slice(head * width, (head + 1) * width)
        expected.append(
            plain_hooks.patched(hf, model.id, clean, source, component, site.layer, site.positions[0], channels)
        )
    found = fast(model, runs, cells)
    assert (found - torch.stack(expected)).abs().max() < 1e-4
    assert (found - plain_hooks.logits(hf, clean)).abs().max() > 1, "what is compared does something"


@pytest.mark.parametrize("heads", [(0, 1, 2, 3), (2,), (1, 3)])
def test_every_edge_equals_a_hook(model: LoadedModel, heads: tuple[int, ...]) -> None:
    """Single edges of single layers; and a few of them in all layers at once."""
    given, hf = strongest(model, 1), untouched(model)
    runs = runs_of(model, given)
    clean, last = runs.token_ids[0], runs.length - 1
    cuts = [((layer,), ((query, key),)) for layer in range(4) for query, key in ((last, 2), (last, last), (7, 6))]
    cuts += [((0, 1, 2, 3), ((last, 2), (last, 6), (9, 2)))]
    cells = [Cell(0, tuple(Cut(layer, edges, heads) for layer in layers)) for layers, edges in cuts]
    expected = [plain_hooks.without_edges(hf, model.id, clean, layers, edges, heads) for layers, edges in cuts]
    found = fast(model, runs, cells)
    assert (found - torch.stack(expected)).abs().max() < 1e-4
    assert (found - plain_hooks.logits(hf, clean)).abs().amax(1)[-1] > 0.01, "what is compared does something"
