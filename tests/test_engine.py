"""The primitive against the slow, obvious way, on every family; its self-checks, shown to fail; batches and memory."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

import families
import reference
from debug import engine, models
from debug.engine import Cut, Intervention, SelfCheckError, Site, gradients, patched_logits, unembedded, writing
from debug.engine.self_checks import SelfChecks, checks_of, self_checks
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS, HookPoint
from debug.token_analyzer import TokenizedPair
from reference import fast, grid, passes_of, slow, strongest, whole_effects

KNOCKOUT = "attention_knockout"


@pytest.fixture(scope="session", params=families.CONFIGS)
def random_model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


@pytest.fixture(scope="module")
def qwen() -> LoadedModel:
    return families.family("qwen3")


def assert_equal(model: LoadedModel, given: list[TokenizedPair], interventions: list[Intervention]) -> None:
    """Within 1e-4, and within a thousandth of what a pair's two programs differ by, which is a logit or more."""
    passes = passes_of(model, given)
    whole = whole_effects(passes, given)
    assert (whole >= 1).all(), "with so small an effect a patch that does nothing would pass"
    difference = (fast(model, passes, interventions) - slow(model, passes, interventions)).abs().amax(1)
    assert difference.max() < 1e-4
    assert (difference / whole[[intervention.base % len(given) for intervention in interventions]]).max() < 1e-3


def some(interventions: list[Intervention], n: int) -> list[Intervention]:
    return [interventions[i] for i in np.random.RandomState(0).permutation(len(interventions))[:n]]


def cells_of_many_sites(length: int) -> list[Intervention]:
    """Sets of positions and heads, windows of layers, components together; parts of a first and of the last layer."""
    last, site = length - 1, partial(Site, source=2)
    sites = [
        (site("residual_stream", 1, (2, 7, last)),),
        (site("residual_stream", 4, (2, last)),),
        tuple(site("residual_stream", layer, (6,)) for layer in range(5)),
        tuple(site("mlp", layer, (2, 6, 10)) for layer in range(1, 4)),
        (site("attention_heads", 1, (12, 13)),),
        (site("attention_heads", 0, (5,), (0,)), site("attention_heads", 0, (5, last), (1, 3))),
        tuple(site("attention_heads", layer, (6, last), (0, 2)) for layer in range(4)),
        (site("attention", 2, (last,)), site("mlp", 0, (2,)), site("residual_stream", 3, (9,))),
        (site("attention_heads", 1, (8,), (2,)), site("mlp", 1, (9,)), site("attention", 1, (3,))),
        (site("mlp", 1, (8,)), site("residual_stream", 2, (4, last))),
        (site("attention", 3, (last,)), site("mlp", 3, (last, 5)), site("residual_stream", 4, (7,))),
    ]
    return [Intervention(0, of_cell) for of_cell in sites]


def cells_with_cuts(length: int) -> list[Intervention]:
    """Some layers, some heads, queries far behind the first, keys in the clean prefix and in the cell's own tokens."""
    last = length - 1
    edges = tuple(product((last - 2, last - 1, last), (6, 7)))
    cuts = [
        tuple(Cut(layer, edges) for layer in range(4)),
        (Cut(2, tuple((last, key) for key in range(5, last))),),
        (Cut(1, ((6, 2), (10, 6), (last, 10))), Cut(3, ((last, last - 1), (last, 10)), (1, 2))),
        (Cut(0, ((8, 7), *((last, key) for key in range(9, last))), (0, 2)), Cut(0, ((last, last), (last, 6)), (3,))),
        (Cut(3, ((8, 2),)),),  # nobody reads that token any more
    ]
    return [Intervention(number % 2, of_cell) for number, of_cell in enumerate(cuts)]


# --- Fast equals slow ---


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_cell_of_every_family_equals_one_trace(random_model: LoadedModel, component: str) -> None:
    given = strongest(random_model, 2)
    length = len(given[0].original.token_ids)
    one, other = (grid(random_model, component, length, run, source) for run, source in ((0, 2), (1, 3)))
    assert_equal(random_model, given, one + some(other, 20))


def test_cells_of_many_sites_equal_one_trace(random_model: LoadedModel) -> None:
    given = strongest(random_model, 2)
    assert_equal(random_model, given, cells_of_many_sites(len(given[0].original.token_ids)))


def test_cut_edges_equal_one_trace(random_model: LoadedModel) -> None:
    given = strongest(random_model, 2)
    interventions = cells_with_cuts(len(given[0].original.token_ids))
    assert_equal(random_model, given, interventions)
    passes = passes_of(random_model, given)
    effects = (
        (
            fast(random_model, passes, interventions)
            - passes.logits[[intervention.base for intervention in interventions]]
        )
        .abs()
        .amax(1)
    )
    assert (effects[:4] > 0.01).all(), "where no edge is cut, the comparison proves nothing"
    assert effects[4] < 1e-4


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_the_bundled_model_equals_one_trace(component: str) -> None:
    model = models.load("tiny")
    given = reference.tokenized(model, reference.pairs(2))
    if component == KNOCKOUT:
        return assert_equal(model, given, cells_with_cuts(23))
    one, other = (grid(model, component, 23, run, source) for run, source in ((0, 2), (1, 3)))
    return assert_equal(model, given, some(one, 200) + some(other, 20))


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("name", ["qwen3", "gpt_neox", "opt", "tiny"])
def test_a_patch_before_the_first_difference_changes_nothing_at_all(name: str, component: str) -> None:
    """Checked the slow way, bit by bit: only therefore may such cells be left out."""
    model = models.load("tiny") if name == "tiny" else families.family(name)
    given = reference.tokenized(model, reference.pairs(1, seed=40))
    passes, first = passes_of(model, given), given[0].first_difference
    interventions = [
        intervention for intervention in grid(model, component, passes.length, 0, 1) if intervention.start < first
    ]
    assert first > 1
    assert interventions
    clean, _ = reference.run(model, passes.token_ids[0], component)
    assert (slow(model, passes, some(interventions, 60)) == clean).all()
    assert (fast(model, passes, interventions) - clean).abs().max() < 1e-5


@pytest.mark.parametrize("batch_tokens", [1, 50, 333, 10**6])
def test_results_do_not_depend_on_the_size_of_batches(qwen: LoadedModel, batch_tokens: int) -> None:
    given = strongest(qwen, 2)
    passes = passes_of(qwen, given)
    interventions = [*cells_of_many_sites(passes.length), *cells_with_cuts(passes.length)]
    for component in COMPONENTS:
        interventions += some(grid(qwen, component, passes.length, 1, 3), 40)
    expected = fast(qwen, passes, interventions)
    assert expected.isfinite().all(), "every cell comes back"
    assert (fast(qwen, passes, interventions, batch_tokens) - expected).abs().max() < 1e-4
    assert (fast(qwen, passes, interventions[::-1], batch_tokens).flip(0) - expected).abs().max() < 1e-4


def test_batches_hold_no_more_tokens_than_they_may(qwen: LoadedModel) -> None:
    passes = passes_of(qwen, strongest(qwen, 2))
    sizes: list[int] = []
    hook = qwen.hf.register_forward_pre_hook(lambda _, __, k: sizes.append(k["input_ids"].numel()), with_kwargs=True)
    try:
        fast(qwen, passes, grid(qwen, "residual_stream", passes.length, 0, 2), batch_tokens=200)
    finally:
        hook.remove()
    assert 100 < max(sizes) <= 200


def test_no_cells_are_no_work(qwen: LoadedModel) -> None:
    assert list(patched_logits(qwen, passes_of(qwen, strongest(qwen, 1)), [])) == []


# --- Memory ---


def real_allocation(tokens: int) -> None:
    torch.empty(2**60)


def numpys_allocation(tokens: int) -> None:
    np.empty(2**57)


def as_on_a_gpu(tokens: int) -> None:
    raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {tokens} MiB.")


@pytest.mark.parametrize("fail", [real_allocation, numpys_allocation, as_on_a_gpu])
@pytest.mark.parametrize("component", ["residual_stream", "attention_heads"])
def test_memory_that_runs_out_halves_the_batch(
    qwen: LoadedModel, component: str, fail: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of a forward pass, as it would: in the last layer, which the layers before have filled."""
    passes = passes_of(qwen, strongest(qwen, 2))
    interventions = grid(qwen, component, passes.length, 0, 2)
    expected, failures = fast(qwen, passes, interventions), []

    def attend(_: object, __: object, keywords: dict) -> None:
        tokens = keywords["hidden_states"].shape[:2].numel()
        if tokens > 100:
            failures.append(tokens)
            fail(tokens)

    hook = qwen.hf.model.layers[-1].self_attn.register_forward_pre_hook(attend, with_kwargs=True)
    try:
        with caplog.at_level(logging.WARNING):
            again = fast(qwen, passes, interventions, batch_tokens=1000)
    finally:
        hook.remove()
    assert failures
    assert "out of memory: going on with batches of" in caplog.text
    assert (again - expected).abs().max() < 1e-4


def test_memory_that_is_too_small_for_one_row_is_said(qwen: LoadedModel) -> None:
    passes = passes_of(qwen, strongest(qwen, 1))
    hook = qwen.hf.model.layers[-1].self_attn.register_forward_pre_hook(lambda *_: real_allocation(0))
    try:
        with pytest.raises(RuntimeError, match="memory"):
            fast(qwen, passes, grid(qwen, "mlp", passes.length, 0, 1))
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "said", ["shapes cannot be multiplied", "CUDA error: an illegal memory access was encountered"]
)
def test_other_errors_of_a_forward_pass_are_not_taken_for_memory(qwen: LoadedModel, said: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(said)

    passes, calls = passes_of(qwen, strongest(qwen, 1)), []
    counted = qwen.hf.register_forward_pre_hook(lambda *_: calls.append(1))
    hook = qwen.hf.model.layers[-1].self_attn.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match=said):
            fast(qwen, passes, grid(qwen, "mlp", passes.length, 0, 1))
    finally:
        hook.remove()
        counted.remove()
    assert len(calls) == 1


# --- Self-checks ---


def checks(model: LoadedModel, given: list[TokenizedPair], component: str) -> SelfChecks:
    rows = [(number, len(given) + number) for number in range(len(given))]
    passes = passes_of(model, given)
    return self_checks(model, passes, checks_of(model, passes, component, rows, [pair.differing for pair in given]))


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_every_family_passes_the_self_checks(random_model: LoadedModel, component: str) -> None:
    found = checks(random_model, strongest(random_model, 3), component)
    found.require()
    assert found.identity_max_abs <= 1e-4
    assert found.full_patch_max_abs <= 1e-4
    assert found.full_patch_without > 1


def without_patches(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Nothing is written in the cells of the checks: the run's own activations come back, the mask stays as it is."""
    run, overwrite = engine.patched_logits, writing.overwrite

    def own(model, passes, interventions, **rest):
        sites = [tuple(replace(site, source=each.base) for site in each.sites) for each in interventions]
        return run(model, passes, [Intervention(i.base, s) for i, s in zip(interventions, sites, strict=True)], **rest)

    if broken == "source":
        monkeypatch.setattr("debug.engine.self_checks.patched_logits", own)
    if broken == "value":
        monkeypatch.setattr(writing, "overwrite", lambda *_: None)
    if broken == "value above layer 0":
        monkeypatch.setattr(writing, "overwrite", lambda *given: overwrite(*given) if given[3] == 0 else None)
    if broken == "write":
        monkeypatch.setattr(HookPoint, "__setitem__", lambda *_: None)
    if broken == "mask":
        monkeypatch.setattr(writing, "without_edges", lambda model, packed, mask, *_: mask)


@pytest.mark.parametrize(
    ("component", "broken"),
    [
        *product(COMPONENTS, ["source", "value", "value above layer 0"]),
        *((name, "write") for name in COMPONENTS if name != "residual_stream"),  # which is written at the restart
        (KNOCKOUT, "mask"),
    ],
)
def test_every_family_fails_the_self_checks_without_the_patch(
    random_model: LoadedModel, component: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = strongest(random_model, 2)
    without_patches(monkeypatch, broken)
    found = checks(random_model, given, component)
    assert found.full_patch_max_abs > 0.1
    with pytest.raises(SelfCheckError, match="full patch is"):
        found.require()


@pytest.mark.parametrize("component", COMPONENTS)
def test_values_written_wrongly_fail_the_identity(
    qwen: LoadedModel, component: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the position after the one that is meant."""
    overwrite = writing.overwrite

    def shifted(model, passes, component, layer, value, hits):
        moved = [hit._replace(position=(hit.position + 1) % passes.length) for hit in hits]
        overwrite(model, passes, component, layer, value, moved)

    monkeypatch.setattr(writing, "overwrite", shifted)
    found = checks(qwen, strongest(qwen, 2), component)
    assert found.identity_max_abs > 0.1
    with pytest.raises(SelfCheckError, match="patching a run with its own activations changed a logit by"):
        found.require()


def test_two_runs_that_do_not_differ_prove_nothing(qwen: LoadedModel) -> None:
    given = strongest(qwen, 1)
    same = [replace(pair, counterfactual=pair.original) for pair in given]
    passes = passes_of(qwen, same)
    found = self_checks(qwen, passes, checks_of(qwen, passes, "mlp", [(0, 1)], [given[0].differing]))
    with pytest.raises(SelfCheckError, match="a patch that does nothing would pass"):
        found.require()


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_checks_hold_where_tokens_of_the_root_differ_around_one_that_does_not(
    qwen: LoadedModel, component: str
) -> None:
    """105 becomes 206: the 0 between is the same, and sees the 1 or the 2 before it."""
    pair = reference.make_pair("a = 105\nb = a\nc = 7\n#b: ", root_value=206)
    given = reference.tokenized(qwen, [pair])
    assert given[0].differing == (2, 4)
    checks(qwen, given, component).require()


def test_a_measurement_that_is_no_number_fails_the_checks() -> None:
    good = SelfChecks(1e-6, 1e-6, 5, 1e-4)
    good.require()
    for number in range(3):
        values = [0.0, 0.0, 5.0]
        values[number] = float("nan")
        identity, full, without = values
        wrong = SelfChecks(identity, full, without, 1e-4)
        for merged in (good | wrong, wrong | good):
            with pytest.raises(SelfCheckError):
                merged.require()


def test_merged_checks_are_the_worst() -> None:
    assert SelfChecks(1, 5, 9, 1e-4) | SelfChecks(2, 4, 8, 1e-4) == SelfChecks(2, 5, 9, 1e-4)


# --- Bad input ---


def test_a_query_left_without_keys_is_refused(qwen: LoadedModel) -> None:
    passes = passes_of(qwen, strongest(qwen, 1))
    cut = Cut(1, tuple((3, key) for key in range(4)), (2,))
    with pytest.raises(ValueError, match=r"edges of layer 1 leaves a query without any key: Cut\(layer=1"):
        fast(qwen, passes, [Intervention(0, (cut,))])


def test_two_sources_of_one_activation_are_refused() -> None:
    """Which of them it would get would be the order's affair."""
    one = Site("attention_heads", 1, (3, 4), source=1)
    with pytest.raises(ValueError, match=r"Site\(.*source=1\) and Site\(.*source=2\) write to the same activations"):
        Intervention(0, (one, Site("mlp", 1, (4,), source=2), Site("attention_heads", 1, (4,), (2,), source=2)))
    apart = Site("attention_heads", 1, (4,), (2,), source=2)
    Intervention(0, (replace(one, heads=(0, 1)), apart, replace(one, layer=2), replace(one, positions=(5,))))
    Intervention(0, (one, replace(apart, source=1)))


def test_logits_that_are_not_finite_are_refused(qwen: LoadedModel) -> None:
    passes = passes_of(qwen, strongest(qwen, 1))
    broken = {
        name: [torch.full_like(at[:1], torch.nan) for at in layers] for name, layers in passes.activations.items()
    }
    with pytest.raises(SelfCheckError, match=r"patched logits of model 'qwen3' \(float32\) at layer 2 are not finite"):
        fast(qwen, passes.with_sources(broken), [Intervention(0, (Site("mlp", 2, (3,), source=2),))])


# --- Gradients and the unembedding ---


def test_slopes_that_are_not_finite_are_refused() -> None:
    """They can be where logits are: a float16 backward overflows before its forward does."""
    model = families.family("llama")
    passes = passes_of(model, strongest(model, 1))
    hook = model.hf.lm_head.register_full_backward_hook(lambda _, slopes, __: (slopes[0] * torch.inf,))
    try:
        with pytest.raises(SelfCheckError, match=r"gradients of model 'llama' \(float32\) are not finite"):
            gradients(model, passes.token_ids[:1], torch.tensor([30]), "mlp")
    finally:
        hook.remove()


@pytest.fixture(scope="session")
def in_float64(random_model: LoadedModel) -> LoadedModel:
    """The same weights: the slow way's differences of small steps need digits (which norms in float32 take away)."""
    model = families.family(random_model.id)
    model.hf.double()
    if hasattr(model.config, "num_experts_per_tok"):  # torch's product of many experts at once has no float64
        model.hf.set_experts_implementation("eager")
    return model


@pytest.mark.parametrize("component", COMPONENTS)
def test_gradients_are_finite_differences(random_model: LoadedModel, in_float64: LoadedModel, component: str) -> None:
    """Along the counterfactual's difference, at some cells."""
    given = strongest(random_model, 2)
    # A ReLU has corners, and the choice of experts is discrete; norms in float32 allow no step as small as OPT's.
    passes, step = passes_of(random_model, given), {"opt": 1e-5, "mixtral": 4e-4}.get(random_model.id, 2e-3)
    answers = torch.tensor([pair.answer_tokens[0] for pair in given])
    slopes = gradients(random_model, passes.token_ids[:2], answers, component)
    assert len(slopes) == len(passes.activations[component])
    for row, first, last in ((row, given[row].first_difference, passes.length - 1) for row in (0, 1)):
        own, other = (reference.run(in_float64, passes.token_ids[r], component)[1] for r in (row, row + 2))
        estimated, measured = [], []
        for layer, position in [(0, first), (1, last), (2, last - 2), (3, last)]:
            stored = passes.activations[component][layer][:, position]
            estimated.append(((stored[row + 2] - stored[row]) * slopes[layer][row, position]).sum())
            site, logits = Site(component, layer, (position,), source=0), []
            for sign in (1, -1):
                moved = {component: [a + sign * step * (b - a) for a, b in zip(own, other, strict=True)]}
                logits.append(reference.patch(in_float64, passes.token_ids[row], [site], moved)[answers[row]])
            measured.append((logits[0] - logits[1]) / (2 * step))
        assert max(map(abs, measured)) > 0.1
        np.testing.assert_allclose(estimated, measured, rtol=0.01, atol=0.01)


def test_hidden_states_unembedded_are_the_final_norm_and_the_unembedding(random_model: LoadedModel) -> None:
    passes = passes_of(random_model, strongest(random_model, 1))
    parts = random_model.architecture
    norm, head = (random_model.hf.get_submodule(name) for name in (parts.final_norm, parts.unembedding))
    cap = getattr(random_model.config, "final_logit_softcapping", None)
    for hidden in (passes.activations["residual_stream"][layer][0] for layer in (0, 2, 4)):
        with torch.no_grad():
            expected = head(norm(hidden))
        expected = expected if cap is None else cap * (expected / cap).tanh()
        assert (unembedded(random_model, hidden) - expected).abs().max() < 1e-4
    top = passes.activations["residual_stream"][-1][:, -1]
    assert (unembedded(random_model, top) - passes.logits).abs().max() < 1e-4
