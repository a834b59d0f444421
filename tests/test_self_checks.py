"""A patch that lands beside its place is seen: by a layer, a position, a head, a run, a source; for every component."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import families
import reference
from debug import causal_tracing, engine, models
from debug.engine import Cut, Intervention, SelfCheckError, Site, plain_hooks, self_checks, writing
from debug.engine.plain_hooks import plain_logits
from debug.engine.self_checks import telling
from debug.kinds import Argument
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS
from debug.plan import KNOCKOUT

# Models with random weights answer nothing: their pairs are used all the same.
run_causal_tracing_experiment = partial(causal_tracing.run_causal_tracing_experiment, require_correct=False)


FAMILIES = ("qwen3_sliding", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


def redirected(site: Site | Cut, where: str, model: LoadedModel, length: int) -> Site | Cut:
    """One place beside its own."""
    if where == "layer":
        return replace(site, layer=site.layer + 1 if site.layer + 1 < model.n_layers else site.layer - 1)
    if where == "head":
        heads = site.heads or (0,)
        return replace(site, heads=tuple((head + 1) % model.n_heads for head in heads))
    if isinstance(site, Cut) and where == "key":
        return replace(site, edges=tuple((query, max(0, key - 1)) for query, key in site.edges))
    if isinstance(site, Cut):
        return replace(site, edges=tuple((min(query + 1, length - 1), key) for query, key in site.edges))
    return replace(site, positions=tuple(min(p + 1, length - 1) for p in site.positions))


def redirect_maps(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Every cell of a map is run one place beside its own; the cells of the other checks are as they should be."""
    run = engine.patched_logits

    def beside(
        model: LoadedModel, passes: engine.ForwardPasses, interventions: Sequence[Intervention], *rest: Argument
    ) -> object:
        def moved(intervention: Intervention) -> Intervention:
            if where == "source":
                sites = (replace(site, source=(site.source + 1) % len(passes)) for site in intervention.patched)
                return replace(intervention, sites=tuple(sites))
            if where == "run":
                return replace(intervention, base=(intervention.base + 1) % len(passes))
            return replace(
                intervention, sites=tuple(redirected(site, where, model, passes.length) for site in intervention.sites)
            )

        return run(model, passes, [moved(intervention) for intervention in interventions], *rest)

    monkeypatch.setattr("debug.causal_tracing.patching.patched_logits", beside)
    # Only what is asked of the maps: the checks that were there before see some of these, and not others.
    monkeypatch.setattr("debug.causal_tracing.patching.measured", lambda *given: Measured(given[-1]))


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_a_run_passes_its_own_checks(model: LoadedModel, component: str) -> None:
    """Nothing is asked here but what every run asks itself: tests/mutants.py has the engine write beside its place."""
    plan: dict[str, Argument] = {"layer_window": 1, "heads": [1]} if component == KNOCKOUT else {}
    assert len(run_causal_tracing_experiment(model, reference.pairs(3), component, **plan).maps) == 3


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral"])
def test_a_run_of_a_mixture_of_experts_passes_its_own_checks(name: str, component: str) -> None:
    """The choice of experts is discrete: rounding does not change it here, and the measured tolerance stays small."""
    found = run_causal_tracing_experiment(families.family(name), reference.pairs(3), component, positions="targets")
    assert len(found.maps) == 3
    assert found.checks.tolerance < 1e-3


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_run_of_joint_positions_and_layers_passes_its_own_checks(model: LoadedModel, component: str) -> None:
    plan: dict[str, Argument] = {"positions": ["ref_depth_2_line", "ref_depth_3_rhs+final"], "layer_window": 2}
    assert len(run_causal_tracing_experiment(model, reference.pairs(3), component, **plan).maps) == 3


class Measured:
    """Of the self-checks, those that ask the cells of the maps themselves."""

    def __init__(self, asked: self_checks.Asked) -> None:
        self.asked = asked

    def require(self) -> None:
        self_checks.SelfChecks(
            0.0, 0.0, np.inf, self.asked.tolerance, self.asked.localized, self.asked.read_back, 3e-5
        ).require()


@pytest.mark.parametrize(
    ("component", "where"),
    [
        *product(COMPONENTS, ("layer", "position", "source", "run")),
        ("attention_heads", "head"),
        *((KNOCKOUT, where) for where in ("layer", "query", "key", "head", "run")),
    ],
)
def test_cells_that_run_beside_their_place_are_seen(
    model: LoadedModel, component: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: dict[str, Argument] = {"layer_window": 1, "heads": [1]} if component == KNOCKOUT else {}
    redirect_maps(monkeypatch, where)
    with pytest.raises(SelfCheckError, match="away from the same cells run with plain"):
        run_causal_tracing_experiment(model, reference.pairs(3), component, **plan)


def write_beside(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The engine writes one place beside the one that it was told, and knows nothing of it."""
    overwrite = writing.overwrite

    def beside(
        model: LoadedModel, passes: engine.ForwardPasses, component: str, layer: int, value: torch.Tensor, hits: list
    ) -> None:
        moves: dict[str, Callable[[writing.Hit], writing.Hit]] = {
            "row": lambda hit: hit._replace(row=(hit.row + 1) % value.shape[0]),
            "token": lambda hit: hit._replace(token=(hit.token + 1) % value.shape[1]),
            "source": lambda hit: hit._replace(source=(hit.source + 1) % len(passes)),
            "position": lambda hit: hit._replace(position=(hit.position + 1) % passes.length),
            "head": lambda hit: hit._replace(heads=tuple((head + 1) % model.n_heads for head in hit.heads or (0,))),
        }
        if where == "layer":
            overwrite(model, passes, component, layer - 1 if layer else layer + 1, value, hits)
        else:
            overwrite(model, passes, component, layer, value, list(map(moves[where], hits)))

    monkeypatch.setattr(writing, "overwrite", beside)


@pytest.mark.parametrize(
    ("component", "where"),
    [*product(COMPONENTS, ("layer", "token", "source", "position")), ("attention_heads", "head")],
)
def test_what_is_written_beside_its_place_is_read_back(
    model: LoadedModel, component: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = reference.strongest(model, 2)
    passes = reference.passes_of(model, given)
    heads = (1,) if COMPONENTS[component].per_head else None
    interventions = [
        Intervention(0, (Site(component, layer, (p,), heads, source=2),))
        for layer in (0, 2)
        for p in range(4, passes.length)
    ]

    def worst() -> float:
        read_back = self_checks.ReadBack(model, passes)
        for _ in engine.patched_logits(model, passes, interventions, None, read_back):
            pass
        assert read_back.worst is not None
        return read_back.worst

    assert worst() <= self_checks.READ_BACK["float32"]
    write_beside(monkeypatch, where)
    assert worst() > 0.01


def test_a_row_that_gets_anothers_patch_is_read_back(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    write_beside(monkeypatch, "row")
    with pytest.raises(SelfCheckError):
        run_causal_tracing_experiment(model, reference.pairs(3), "residual_stream")


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_plain_way_is_the_engines_way(model: LoadedModel, component: str) -> None:
    """Every cell of a grid, and the other way round: joint sites, several layers at once."""
    given = reference.strongest(model, 1)
    passes = reference.passes_of(model, given)
    interventions = reference.grid(model, component, passes.length, 0, 1)[:: 3 if component == "attention_heads" else 1]
    window = tuple(Site(component, layer, (passes.length - 1, 4), source=1) for layer in (1, 2))
    interventions.append(Intervention(0, window))
    plain, tolerance = plain_logits(model, passes, interventions)
    assert (plain - reference.fast(model, passes, interventions)).abs().max() <= tolerance < 1e-3


def test_noise_of_a_last_place_allows_what_another_order_of_sums_does(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a machine's kernels sum alike in all passes that are compared, what is allowed follows from noise alone."""
    monkeypatch.setattr(plain_hooks, "SAFETY", 0)
    passes = reference.passes_of(model, reference.strongest(model, 1))
    interventions = reference.grid(model, "residual_stream", passes.length, 0, 1)
    plain, tolerance = plain_logits(model, passes, interventions)
    assert 2 * (plain - reference.fast(model, passes, interventions)).abs().max() <= tolerance < 1e-3


def test_cut_edges_the_plain_way_are_the_engines(model: LoadedModel) -> None:
    passes = reference.passes_of(model, reference.strongest(model, 1))
    edges = ((passes.length - 1, passes.length - 2), (8, 6))
    interventions = [
        Intervention(0, (Cut(layer, edges, heads),))
        for layer in range(model.n_layers)
        for heads in (None, (0,), (1, 3))
    ]
    plain, tolerance = plain_logits(model, passes, interventions)
    assert (plain - reference.fast(model, passes, interventions)).abs().max() <= tolerance


def test_both_sides_of_the_largest_step_of_each_axis_are_asked() -> None:
    z = np.zeros((4, 3, 2))
    z[:2, 1, 0] = 5
    every = list(product(range(4), range(3)))
    assert telling(z, every) == [(1, 1), (2, 1), (0, 0), (0, 1)]
    assert telling(z, [(0, 0), (1, 0)]) == [(0, 0), (1, 0)]
    assert telling(z, [(3, 2)]) == [(3, 2)]
    assert telling(z, []) == []


def test_the_root_alone_into_layer_0_is_the_counterfactual(model: LoadedModel) -> None:
    given = reference.strongest(model, 1)
    passes = reference.passes_of(model, given)
    checks = self_checks.checks_of(model, passes, "residual_stream", [(0, 1)], [given[0].differing])
    root = Intervention(0, (Site("residual_stream", 0, given[0].differing, source=1),))
    assert [check.expected for check in checks if check.intervention == root] == [1]


def random_llama(layers: int, width: int, dtype: str = "float32") -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=41, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=64, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    hf = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 2.5 / width**0.5)
    hf = hf.to(models.DTYPES[dtype])
    tokenizer = AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny")
    return models.wrap(hf, tokenizer, model_id="llama", dtype=dtype)


def test_the_tolerance_is_measured_on_the_model() -> None:
    """Deeper and wider models round more, and formats of fewer bits; what each is allowed follows."""

    def tolerance(*size: Argument) -> float:
        found = run_causal_tracing_experiment(random_llama(*size), reference.pairs(1)).checks
        assert found.localized_max_abs is not None
        assert max(found.identity_max_abs, found.full_patch_max_abs, found.localized_max_abs) <= found.tolerance
        return found.tolerance

    small, deep, half = tolerance(2, 32), tolerance(16, 128), tolerance(2, 32, "bfloat16")
    assert small < deep < half
    assert deep < 1e-2
