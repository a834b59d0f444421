"""The engine against the slow, obvious way, on every family; its self-checks; the maps of the bundled model."""

from itertools import islice, product

import numpy as np
import pytest
import torch

import families
import reference
from debug import causal_tracing, models
from debug.causal_tracing import (
    COMPONENTS,
    Cell,
    Cut,
    Plan,
    SelfCheckError,
    Site,
    patched_logits,
    record,
    run_causal_tracing_experiment,
    self_checks,
    trace_pairs,
)
from debug.counterfactual import make_pair
from debug.generators import make_variable_binding_program, search
from debug.token_analyzer import analyze_pair


def pairs(n, seq_len=5, hops=3, seed=0):
    made = search(make_variable_binding_program, seq_len, seed, hops)
    return [make_pair(program.program, program.seed) for program in islice(made, n)]


def runs(model, chosen):
    tokenized = [analyze_pair(model.tokenizer, pair) for pair in chosen]
    clean = record(model, torch.tensor([t.original.token_ids for t in tokenized]), COMPONENTS)
    source = record(model, torch.tensor([t.counterfactual.token_ids for t in tokenized]), COMPONENTS)
    return clean, source


def runs_with_an_effect(model, n):
    """Of some pairs, those whose two programs differ most to this model."""
    clean, source = runs(model, pairs(16))
    strongest = (source.logits - clean.logits).abs().amax(1).topk(n).indices.tolist()
    return clean[strongest], source[strongest]


def fast(model, clean, source, cells):
    logits = torch.empty(len(cells), clean.logits.shape[1])
    for indices, batch in patched_logits(model, clean, source, cells):
        logits[indices] = batch
    return logits


def slow(model, clean, source, cells):
    kept = {
        (pair, name): reference.run(model, source.token_ids[pair], name)[1]
        for pair, name in {(cell.pair, site.component) for cell in cells for site in cell.sites}
    }
    return torch.stack(
        [
            reference.patch(
                model,
                clean.token_ids[cell.pair],
                list(cell.sites),
                {site.component: kept[cell.pair, site.component] for site in cell.sites},
            )
            for cell in cells
        ]
    )


def grid(model, component, n_pairs, length):
    layers = model.n_layers + (component == "residual_stream")
    heads = range(model.n_heads) if COMPONENTS[component].per_head else [None]
    return [
        Cell(pair, (Site(component, layer, (position,), head),))
        for pair, layer, position, head in product(range(n_pairs), range(layers), range(length), heads)
    ]


@pytest.fixture(scope="session", params=families.CONFIGS)
def random_model(request):
    return families.family(request.param)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_family_fast_equals_one_trace_per_cell(random_model, component):
    clean, source = runs_with_an_effect(random_model, 2)
    whole = (source.logits - clean.logits).abs().amax(1)
    assert (whole > 1).all(), "with so small an effect a patch that does nothing would pass"
    cells = grid(random_model, component, 2, clean.length)
    picked = [cells[i] for i in np.random.RandomState(0).permutation(len(cells))[:60]]
    difference = (fast(random_model, clean, source, picked) - slow(random_model, clean, source, picked)).abs().amax(1)
    assert difference.max() < 1e-4
    assert (difference / whole[[cell.pair for cell in picked]]).max() < 1e-3


def test_every_family_passes_the_self_checks_and_fails_them_without_the_patch(random_model, monkeypatch):
    clean, source = runs_with_an_effect(random_model, 2)
    for component in COMPONENTS:
        checks = self_checks(random_model, clean, source, component)
        checks.require()
        assert checks.identity_max_abs <= 1e-4
        assert checks.full_patch_max_abs <= 1e-4
        assert checks.full_patch_without > 1
    run_batch = causal_tracing._run_batch

    def patched_in_layer_0_only(model, clean, source, cells, layer, rows):
        return run_batch(model, clean, source if layer == 0 else clean, cells, layer, rows)

    with monkeypatch.context() as broken:
        broken.setattr(causal_tracing, "_run_batch", patched_in_layer_0_only)
        with pytest.raises(SelfCheckError, match="full"):
            self_checks(random_model, clean, source, "residual_stream").require()
    for name, component in COMPONENTS.items():
        monkeypatch.setitem(COMPONENTS, name, component._replace(write=lambda *_: None))
    for component in set(COMPONENTS) - {
        "residual_stream"
    }:  # the residual stream's first layer is written at the restart
        with pytest.raises(SelfCheckError, match="full"):
            self_checks(random_model, clean, source, component).require()


def test_cells_of_many_sites_equal_one_trace(random_model):
    """Windows of layers, sets of positions and of heads, and components together, are patched as one."""
    clean, source = runs(random_model, pairs(1))
    cells = [
        Cell(0, (Site("residual_stream", 1, (2, 7, 22)),)),
        Cell(0, tuple(Site("mlp", layer, (2, 6, 10)) for layer in range(1, 4))),
        Cell(0, (Site("attention_heads", 0, (5,), 0), Site("attention_heads", 0, (5, 22), 3))),
        Cell(0, (Site("attention", 2, (22,)), Site("mlp", 0, (2,)), Site("residual_stream", 3, (9,)))),
        Cell(0, (Site("attention_heads", 1, (12, 13)),)),
    ]
    assert (fast(random_model, clean, source, cells) - slow(random_model, clean, source, cells)).abs().max() < 1e-4


def test_cut_edges_equal_one_trace(random_model):
    """Some layers, some heads, queries far behind the first, keys in the clean prefix and in the cell's own tokens."""
    clean, source = runs_with_an_effect(random_model, 1)
    cells = [
        Cell(0, tuple(Cut(layer, (20, 21, 22), (2, 3)) for layer in range(4))),
        Cell(0, (Cut(2, (22,), tuple(range(15, 22))),)),
        Cell(0, (Cut(1, (6, 10, 22), (2, 5)), Cut(3, (22,), (10,), head=1))),
        Cell(0, (Cut(0, (12,), (12, 11), head=0), Cut(0, (12,), (3,), head=3))),
    ]
    fast_ones = fast(random_model, clean, source, cells)
    slow_ones = torch.stack([reference.knock_out(random_model, clean.token_ids[0], list(cell.sites)) for cell in cells])
    assert (fast_ones - slow_ones).abs().max() < 1e-4
    assert (slow_ones[1] - clean.logits[0]).abs().max() > 0.1


def test_a_query_left_without_keys_is_refused():
    model = families.family("qwen3")
    clean, source = runs(model, pairs(1))
    with pytest.raises(ValueError, match="leaves a query without any key"):
        fast(model, clean, source, [Cell(0, (Cut(1, (3,), (0, 1, 2, 3)),))])


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize(
    "load", [lambda: families.family("qwen3"), lambda: models.load("tiny")], ids=["random", "tiny"]
)
def test_cells_that_are_not_run_have_no_effect(component, load):
    """Before the first difference, and above the last attention off the last token, the effect is exactly zero."""
    model = load()
    clean, source = runs(model, pairs(1, seed=40))
    first = analyze_pair(model.tokenizer, pairs(1, seed=40)[0]).first_difference
    skipped = [
        cell
        for cell in grid(model, component, 1, clean.length)
        if not causal_tracing._can_matter(
            component, cell.layer, cell.sites[0].positions, first, clean.length, model.n_layers
        )
    ]
    assert skipped
    assert (fast(model, clean, source, skipped) - clean.logits[0]).abs().max() < 1e-5
    assert (slow(model, clean, source, skipped) - slow(model, clean, clean, skipped)).abs().max() == 0


def test_bundled_model_fast_equals_slow_on_every_cell_of_three_pairs():
    model = models.load("tiny")
    clean, source = runs(model, pairs(3))
    cells = grid(model, "residual_stream", 3, clean.length)
    assert (fast(model, clean, source, cells) - slow(model, clean, source, cells)).abs().max() < 1e-4


@pytest.fixture(scope="module")
def fifty_pairs():
    return run_causal_tracing_experiment("tiny", pairs(60), require_correct=True)


def test_corners_of_the_map_hold_by_construction(fifty_pairs):
    assert len(fifty_pairs.maps) >= 50
    for causal_map in fifty_pairs.maps:
        assert causal_map.at_target("ref_depth_1_rhs")[0] == 1, "the root at layer 0 is the counterfactual's input"
        assert causal_map.at_target("final")[-1] == 1, "final at the top row is the counterfactual's output"
        np.testing.assert_allclose(
            causal_map.normalized_logit_diff[0, causal_map.targets["ref_depth_1_rhs"]], 1, atol=1e-4
        )
        np.testing.assert_allclose(causal_map.normalized_logit_diff[-1, -1], 1, atol=1e-4)
        before = causal_map.logit_diff[:, : causal_map.targets["ref_depth_1_rhs"][0]]
        assert (before == 0).all(), "nothing differs before the root"
    assert fifty_pairs.checks.identity_max_abs <= 1e-4
    assert fifty_pairs.checks.full_patch_max_abs <= 1e-4
    assert fifty_pairs.checks.full_patch_without > 1


def test_the_value_leaves_the_root_and_arrives_at_the_last_token(fifty_pairs):
    """Between the corners is the finding; that the value travels at all holds for any model that solves the task."""
    mean = fifty_pairs.mean
    root, final = mean["ref_depth_1_rhs"].success, mean["final"].success
    assert root[-1].estimate == 0 == final[0].estimate
    _, target, layer = mean.hand_overs()[-1]
    assert (target, layer < mean.n_layers) == ("final", True), "the top row alone would be so by construction"
    assert all(rate.n == len(fifty_pairs.maps) and rate.low is not None for rate in root)


def test_pairs_of_different_lengths_come_back_in_order():
    model = models.load("tiny")
    chosen = [*pairs(3, 5), *pairs(3, 9), "no program", *pairs(3, 5, seed=300)]
    results = list(trace_pairs(model, chosen, Plan(positions="targets")))
    assert [result.index for result in results] == list(range(10))
    assert [result.pair for result in results if result.pair] == [pair for pair in chosen if pair != "no program"]
    assert [len(r.causal_map.tokens) for r in results if r.causal_map] == [23] * 3 + [39] * 3 + [23] * 3
    alone = run_causal_tracing_experiment(model, chosen[4:5], positions="targets").maps[0]
    np.testing.assert_allclose(results[4].causal_map.z_patched, alone.z_patched, atol=1e-4)


def test_small_batches_give_the_same_map():
    one, other = (run_causal_tracing_experiment("tiny", pairs(2), batch_tokens=n).maps[1] for n in (None, 50))
    np.testing.assert_allclose(one.z_patched, other.z_patched, atol=1e-4)


def test_memory_that_runs_out_halves_the_batch(monkeypatch):
    expected = run_causal_tracing_experiment("tiny", pairs(4)).maps
    run_batch, failures = causal_tracing._run_batch, []

    def short_of_memory(model, clean, source, cells, layer, rows):
        if len(rows) > 1:
            failures.append(len(rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_batch(model, clean, source, cells, layer, rows)

    monkeypatch.setattr(causal_tracing, "_run_batch", short_of_memory)
    maps = run_causal_tracing_experiment("tiny", pairs(4)).maps
    assert failures
    for one, other in zip(maps, expected, strict=True):
        np.testing.assert_allclose(one.z_patched, other.z_patched, atol=1e-4)


def test_bfloat16_runs_within_its_own_tolerance():
    result = run_causal_tracing_experiment("tiny", pairs(3), dtype="bfloat16")
    assert result.checks.tolerance == models.SELF_CHECK_TOLERANCE["bfloat16"]
    assert result.mean.normalized_logit_diff.n == 3
    models.unload("tiny")


def test_an_effect_too_small_to_divide_by_is_null():
    result = run_causal_tracing_experiment(families.family("gpt2"), pairs(1))
    causal_map = result.maps[0]
    object.__setattr__(causal_map, "min_effect", 1e9)
    assert np.isnan(causal_map.normalized_logit_diff).all()
    assert result.mean.normalized_logit_diff is None


def test_positions_by_number_are_known_by_their_role():
    positions = [2, 22, "final", "ref_depth_1_rhs", 5]
    result = run_causal_tracing_experiment("tiny", pairs(2), positions=positions)
    assert result.maps[0].targets == {"ref_depth_1_rhs": [2], "final": [22], "ref_depth_2_equals": [5]}
    assert result.mean.peak()[0] == "ref_depth_2_equals"


def test_the_top_row_alone_has_a_mean():
    mean = run_causal_tracing_experiment("tiny", pairs(2), intervention_layers=[6]).mean
    assert mean.patch_success_rate is None
    assert mean["final"].success[0].estimate == 1


def test_a_program_outside_the_vocabulary_is_skipped_and_the_rest_go_on():
    result = run_causal_tracing_experiment("tiny", ["A = 1\nb = A\n#b: ", *pairs(1)])
    assert "no token" in result.skipped[0].skipped
    assert len(result.maps) == 1


def test_a_measurement_that_is_no_number_fails_the_checks():
    good = causal_tracing.SelfChecks(1e-6, 1e-6, 5, 1e-4)
    with pytest.raises(SelfCheckError):
        (good | causal_tracing.SelfChecks(float("nan"), 0, 5, 1e-4)).require()


def test_rates_are_successes_over_interventions_where_pairs_have_different_targets():
    maps = run_causal_tracing_experiment("tiny", [*pairs(3, hops=1), *pairs(3, hops=4, seq_len=9)]).maps
    mean = causal_tracing.mean_over_pairs(maps)
    each = np.concatenate([m.at_target(target)[:-1] for m in maps for target in m.targets])
    assert mean.patch_success_rate.estimate == pytest.approx(each.mean())
    assert [c.target for c in mean.curves] == [f"ref_depth_{k}_rhs" for k in (1, 2, 3, 4)] + ["query_var", "final"]


def test_every_head_has_a_curve_of_its_own():
    result = run_causal_tracing_experiment("tiny", pairs(3), "attention_heads", positions=["final"])
    assert [curve.target for curve in result.mean.curves] == [f"final/head_{head}" for head in range(4)]
    by_hand = np.mean([m.at_target("final") for m in result.maps], axis=0)
    assert [rate.estimate for rate in result.mean["final/head_2"].success] == by_hand[:, 2].tolist()


def test_failed_self_checks_end_an_experiment_in_memory_too(monkeypatch):
    monkeypatch.setitem(models.SELF_CHECK_TOLERANCE, "float32", 1e-12)
    with pytest.raises(SelfCheckError):
        run_causal_tracing_experiment("tiny", pairs(1))


def test_broken_weights_are_refused():
    model = families.family("qwen2")
    with torch.no_grad():
        next(model.hf.parameters()).fill_(float("nan"))
    with pytest.raises(SelfCheckError, match="not finite"):
        run_causal_tracing_experiment(model, pairs(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"intervention_type": "nonsense"}, "expected one of residual_stream"),
        ({"intervention_layers": [7]}, "out of range"),
        ({"intervention_layers": [-1]}, "out of range"),
        ({"intervention_layers": [6], "intervention_type": "mlp"}, "0 to 5"),
        ({"positions": "nonsense"}, "no target"),
        ({"positions": []}, "empty"),
        ({"positions": ["final"], "targets": ["final"]}, "names the targets already"),
        ({"prompt_template": "Hello! {code}"}, "has no token for part of this prompt"),
        ({"positions": [99]}, "tokens 0 to 22"),
        ({"positions": ["ref_depth_4_rhs"]}, "no target 'ref_depth_4_rhs' in this program; it has: ref_depth_1_lhs"),
        ({"programs": []}, "empty"),
        ({"programs": ["a = 1\n"]}, "query line"),
        ({"programs": ["a = 1\n#b: "]}, "asks for 'b'"),
        ({"programs": [{"counterfactual": "a = 1\n#a: "}]}, "'original'"),
        ({"prompt_template": "no code"}, "{code}"),
    ],
)
def test_bad_input_is_refused_with_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        run_causal_tracing_experiment("tiny", **({"programs": pairs(1)} | arguments))
