"""The self-checks see where a patch lands: redirected by a layer, a position, a head or a row, every run fails."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import families
import redirections
import reference
from debug import known_answers, models, read_back
from debug.causal_tracing import CausalTracingResult, run_causal_tracing_experiment
from debug.engine import COMPONENTS, Cell, Cut, Runs, SelfCheckError, patched_logits
from debug.known_answers import AMPLIFIED, SAFETY
from debug.models import LoadedModel
from debug.read_back import ReadBack
from redirections import KNOCKOUT, REDIRECTIONS, Redirection
from reference import grid, runs_of, slow, strongest
from test_engine import cells_of_many_sites, cells_with_cuts


@pytest.fixture(scope="module", params=families.CONFIGS)
def random_model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


def traced(model: LoadedModel, component: str, **plan: Any) -> CausalTracingResult:
    plan |= {} if component == KNOCKOUT else {"positions": "targets", "logit_lens": False}
    return run_causal_tracing_experiment(model, reference.pairs(4), component, **plan)


# --- Redirections fail ---


@pytest.mark.parametrize(
    ("component", "redirection"), [pytest.param(c, r, id=f"{c}, {name}") for c, name, r in REDIRECTIONS]
)
def test_a_redirected_patch_fails_the_run(
    component: str, redirection: Redirection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the bundled model, whose heads and layers mostly do nothing that a logit would show."""
    redirection(monkeypatch)
    with pytest.raises(SelfCheckError):
        traced(models.load("tiny"), component)


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_without_a_redirection_they_all_pass(component: str) -> None:
    found = traced(models.load("tiny"), component).checks
    assert found.read_back_max_abs == 0
    assert found.localized_max_abs is not None
    assert found.localized_without is not None
    assert found.localized_max_abs <= found.tolerance < 1e-4
    assert found.localized_without > 1000 * found.tolerance


@pytest.mark.parametrize("what", ["head", "source", "token"])
def test_attributions_exact_sample_fails_with_them(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    redirections.written(what, monkeypatch)
    with pytest.raises(SelfCheckError):
        traced(models.load("tiny"), "attention_heads", method="attribution")


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_write_to_the_layer_above_fails(component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loudly, at the least: where nothing of a run is written in order any more, nnsight refuses it."""
    redirections.write(monkeypatch)
    with pytest.raises(Exception, match=r"would not mean what they say|already ran past"):
        traced(models.load("tiny"), component, layer_window=2)


@pytest.mark.parametrize("source", ["zero", "mean", "resample"])
@pytest.mark.parametrize("what", ["head", "source", "token"])
def test_patches_of_other_sources_fail_too(source: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert traced(models.load("tiny"), "attention_heads", source=source).checks.read_back_max_abs == 0
    redirections.written(what, monkeypatch)
    with pytest.raises(SelfCheckError):
        traced(models.load("tiny"), "attention_heads", source=source)


# --- Read-back ---


def read(
    runs: Runs, model: LoadedModel, cells: list[Cell], claims: list[Cell], batch_tokens: int | None = None
) -> float:
    """What reading back says of cells that are claimed to be others."""
    read_back = ReadBack(claims.__getitem__)
    for _ in patched_logits(model, runs, cells, batch_tokens, read_back):
        pass
    assert read_back.cells == len(cells), "every cell is read back"
    return read_back.max_abs


@pytest.mark.parametrize("batch_tokens", [50, None])
def test_every_cell_of_every_family_reads_back_to_the_bit(
    random_model: LoadedModel, batch_tokens: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_back, "CELLS", 10**6)
    runs = runs_of(random_model, strongest(random_model, 2))
    cells = [*cells_of_many_sites(runs.length), *cells_with_cuts(runs.length)]
    for component in COMPONENTS:
        cells += grid(random_model, component, runs.length, 1, 3)[:: 20 if batch_tokens else 5]
    assert read(runs, random_model, cells, cells, batch_tokens) == 0


@pytest.mark.parametrize(
    ("component", "what"), [*product(COMPONENTS, ["layer", "position"]), ("attention_heads", "head")]
)
def test_a_claim_of_another_place_does_not_read_back(component: str, what: str) -> None:
    """Cell by cell, however little a logit shows of it, where the two programs differ."""
    model = families.family("qwen3")
    given = strongest(model, 2)
    runs = runs_of(model, given)
    cells = [cell for cell in grid(model, component, runs.length, 1, 3) if cell.start >= given[1].first_difference]
    for cell in cells[::5]:
        if (component, cell.layer) == ("residual_stream", 0):
            continue  # tokens
        claim = replace(cell, sites=tuple(redirections.moved(site, what, model, runs.length) for site in cell.sites))
        assert read(runs, model, [cell], [claim]) > 0, cell
        assert read(runs, model, [cell], [replace(cell, source=2)]) > 0, cell


@pytest.mark.parametrize("what", ["layer", "head", "query", "key"])
def test_a_claim_of_other_edges_does_not_read_back(what: str) -> None:
    model = families.family("qwen3_sliding")
    runs = runs_of(model, strongest(model, 2))
    last = runs.length - 1
    for layer, key in product(range(4), (last - 4, last - 1)):
        cell = Cell(0, (Cut(layer, ((last - 1, key - 1),), (1,)),))
        claim = replace(cell, sites=tuple(redirections.moved(cut, what, model, runs.length) for cut in cell.sites))
        assert read(runs, model, [cell], [cell]) == 0
        assert read(runs, model, [cell], [claim]) > 0, cell


# --- Known answers, and the tolerance ---


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_known_answers_of_every_family_are_the_slow_ways(random_model: LoadedModel, component: str) -> None:
    given = strongest(random_model, 2)
    runs = runs_of(random_model, given)
    checks, tolerance = known_answers.known_answers(random_model, runs, component, (0, 2), given[0].differing)
    expected = torch.stack([check.expected for check in checks if isinstance(check.expected, torch.Tensor)])
    cells = [check.cell for check in checks]
    assert (expected - slow(random_model, runs, cells)).abs().max() <= tolerance < 1e-3
    assert len({site.layer for cell in cells for site in cell.sites}) >= 3
    assert ((expected - runs.logits[0]).abs().amax(1) > 10 * tolerance).sum() >= 2, "they can tell a place"


def random_llama(width: int, layers: int, dtype: str = "float32") -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        **families._SIZES | {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 2 * width}
    )
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) / width**0.5)
    tokenizer = AutoTokenizer.from_pretrained(models.CHECKPOINTS / "tiny")
    return models.wrap(hf.to(models.DTYPES[dtype]), tokenizer, model_id=f"{layers} x {width}", dtype=dtype)


def test_the_tolerance_grows_with_the_model_and_with_what_its_dtype_rounds() -> None:
    """And each passes its own, unredirected."""
    shapes = [(32, 2, "float32"), (256, 24, "float32"), (32, 2, "float16"), (32, 2, "bfloat16"), (64, 16, "bfloat16")]
    found = [traced(random_llama(*shape), "mlp").checks for shape in shapes]
    tolerances = [checks.tolerance for checks in found]
    assert tolerances == sorted(tolerances)
    assert tolerances[1] > 2 * tolerances[0]
    assert tolerances[2] > 1000 * tolerances[0]
    assert all(checks.identity_max_abs <= checks.tolerance for checks in found)


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_hides_no_redirection(dtype: str, component: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_llama(48, 12, dtype)
    assert traced(model, component).checks.read_back_max_abs == 0
    redirections.cells("layer", monkeypatch)
    with pytest.raises(SelfCheckError):
        traced(model, component)


def test_a_model_that_answers_otherwise_each_time_sets_itself_no_tolerance() -> None:
    model = random_llama(48, 4)
    model.hf.model.layers[1].register_forward_hook(lambda _, __, output: output + 0.01 * torch.randn_like(output))
    with pytest.raises(SelfCheckError):
        traced(model, "residual_stream")


def test_a_difference_is_normalized_by_no_effect_that_rounding_makes_up() -> None:
    assert models.smallest_effect("float32", 1e-6) == models.SMALLEST_EFFECT["float32"] == 0.01
    assert models.smallest_effect("float32", 1e-3) == pytest.approx(0.1)
    assert models.smallest_effect("bfloat16", 1.0) == pytest.approx(10)


def test_the_tolerance_has_a_floor_and_a_ceiling() -> None:
    unpatched, eps = torch.tensor([10.0, -3.0]), 1e-7
    one = 10 * eps * 4**0.5
    for rounded, expected in ((0.0, one), (5 * one, SAFETY * 5 * one), (1.0, AMPLIFIED * one)):
        assert known_answers._tolerance(eps, 4, unpatched, unpatched[None] + rounded) == pytest.approx(expected, 1e-2)
