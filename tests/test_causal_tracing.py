"""Plans and what becomes of pairs: maps against the slow way by hand, sources, controls, lens, attribution, streams."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, product

import numpy as np
import pytest
import torch
from scipy import stats

import families
import reference
from debug import causal_tracing, models
from debug import plan as plans
from debug.attention_knockout import edges_of, random_control
from debug.causal_map import CausalMap, mean_over_pairs, random_of
from debug.causal_tracing import Reference, agreement, agreement_metrics, trace_pairs
from debug.causal_tracing.pairs import PairReader
from debug.counterfactual import make_pair, same_answer_program
from debug.engine import Cut, SelfCheckError, Site, plain_hooks, self_checks
from debug.errors import InputError
from debug.kinds import Argument
from debug.models import LoadedModel
from debug.models.hook_points import COMPONENTS
from debug.plan import KNOCKOUT
from debug.programs import Program, ProgramPair
from debug.token_analyzer import analyze, analyze_pair
from present import present
from reference import pairs

# Models with random weights answer nothing: their pairs are used all the same, unless a test says otherwise.
run_causal_tracing_experiment = partial(causal_tracing.run_causal_tracing_experiment, require_correct=False)
Plan = partial(plans.Plan, require_correct=False)


EXACT = 1e-4


@pytest.fixture(scope="module")
def qwen() -> LoadedModel:
    """A random model of four layers, four heads on two keys and values."""
    return families.family("qwen3")


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    return models.load("tiny")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return np.asarray(stats.spearmanr(a, b))[0]  # the statistic, then p


def ids(model: LoadedModel, program: Program) -> torch.Tensor:
    return torch.tensor(analyze(model.tokenizer, program).token_ids)


def by_hand(
    model: LoadedModel, program: Program, sites: list[Site], source: dict[str, list[torch.Tensor]]
) -> torch.Tensor:
    return reference.patch(model, ids(model, program), sites, source)


def activations(model: LoadedModel, program: Program, component: str) -> dict[str, list[torch.Tensor]]:
    return {component: reference.run(model, ids(model, program), component)[1]}


def sample(causal_map: CausalMap, n: int) -> list[tuple[int, ...]]:
    """Some cells of a map, as indices into it."""
    cells = list(np.ndindex(causal_map.top.shape))
    return [cells[i] for i in np.random.RandomState(0).permutation(len(cells))[:n]]


def sites_of(causal_map: CausalMap, at: tuple[int, ...]) -> list[Site]:
    """What a cell of a map says that it patches."""
    heads = tuple(causal_map.heads[at[1]]) if causal_map.heads else None
    layers = range(causal_map.layers[at[0]], causal_map.layers[at[0]] + causal_map.layer_window)
    column = tuple(causal_map.columns[at[-1]])
    return [Site(causal_map.intervention_type, layer, column, heads, source=0) for layer in layers]


def assert_map_is(causal_map: CausalMap, n: int, logits_of: Callable[[list[Site]], torch.Tensor]) -> None:
    """Cells of a map are what the slow way says: the answers' logits, and the top token."""
    answers = list(causal_map.answer_tokens)
    for at in sample(causal_map, n):
        logits = logits_of(sites_of(causal_map, at))
        np.testing.assert_allclose(causal_map.z_patched[at], logits[answers], atol=EXACT)
        two = logits.topk(2).values
        assert causal_map.top[at] == logits.argmax() or two[0] - two[1] < EXACT


# --- Maps ---


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"intervention_type": "mlp", "layer_window": 2},
        {"intervention_type": "residual_stream", "layer_window": 3, "intervention_layers": [0, 2]},
        {"intervention_type": "attention", "positions": ["ref_depth_1_line", "ref_depth_1_rhs+query_var", 5, "final"]},
        {"intervention_type": "attention_heads"},
        {"intervention_type": "attention_heads", "heads": "together"},
        {"intervention_type": "attention_heads", "heads": [3, [0, 2], [1]], "layer_window": 2, "positions": "targets"},
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "tiny"])
def test_cells_are_data(name: str, plan: dict[str, Argument]) -> None:
    """Sets of positions, windows of layers, sets of heads: each cell of the map is one trace with all of it patched."""
    model = models.load("tiny") if name == "tiny" else families.family(name)
    (pair,) = pairs(1)
    (causal_map,) = run_causal_tracing_experiment(model, [pair], **plan).maps
    component = causal_map.intervention_type
    source = activations(model, pair.counterfactual, component)
    assert_map_is(causal_map, 25, lambda sites: by_hand(model, pair.original, sites, source))
    c, _ = causal_map.answer_tokens
    clean, _ = reference.run(model, ids(model, pair.original), "mlp")
    assert causal_map.z_clean[0] == pytest.approx(clean[c].item(), abs=EXACT)
    whole = causal_map.z_counterfactual[0] - causal_map.z_clean[0]
    assert abs(whole) > 1
    normalized = (causal_map.z_patched[..., 0] - causal_map.z_clean[0]) / whole
    np.testing.assert_allclose(causal_map.values("normalized_logit_diff"), normalized, atol=1e-5)
    np.testing.assert_array_equal(causal_map.values("success"), causal_map.top == c)


def test_each_pair_is_patched_from_its_own_counterfactual(qwen: LoadedModel) -> None:
    given = pairs(3)
    found = run_causal_tracing_experiment(qwen, given, positions="targets").maps
    for pair, causal_map in zip(given, found, strict=True):
        source = activations(qwen, pair.counterfactual, "residual_stream")
        assert_map_is(causal_map, 8, lambda sites, p=pair.original, s=source: by_hand(qwen, p, sites, s))


def test_the_axes_of_a_map_are_those_of_its_plan(qwen: LoadedModel) -> None:
    def of(**plan: Argument) -> CausalMap:
        return run_causal_tracing_experiment(qwen, pairs(1), **plan).maps[0]

    assert of().layers == [0, 1, 2, 3, 4]
    assert of(intervention_type="mlp").layers == [0, 1, 2, 3]
    assert of(layer_window=2).layers == [0, 1, 2, 3]
    assert of(intervention_type="mlp", layer_window=4).layers == [0]
    assert of(intervention_layers=[3, 1, 3]).layers == [1, 3]
    heads = of(intervention_type="attention_heads", heads=[3, [0, 2]], positions=["final"])
    assert (heads.heads, heads.top.shape) == ([[3], [0, 2]], (4, 2, 1))
    assert of(intervention_type="attention_heads").heads == [[0], [1], [2], [3]]
    assert of(intervention_type="attention_heads", heads="together").heads == [[0, 1, 2, 3]]
    line = of(positions=["ref_depth_1_line", "final"])
    assert line.positions == [0, 1, 2, 3, 22]
    assert line.columns == [[0], [1], [2], [3], [22], [0, 1, 2, 3]]
    assert (line.targets, line.target_columns) == (
        {"ref_depth_1_line": [0, 1, 2, 3], "final": [22]},
        {"ref_depth_1_line": 5, "final": 4},
    )


@pytest.mark.parametrize("component", COMPONENTS)
def test_cells_that_are_not_run_have_no_effect(qwen: LoadedModel, component: str) -> None:
    """Those before the first difference, and above the last attention off the last token; checked the slow way."""
    (pair,) = pairs(1, seed=40)
    result = run_causal_tracing_experiment(qwen, [pair], component, control=False)
    (causal_map,) = result.maps
    first, last = causal_map.first_difference, len(causal_map.tokens) - 1
    assert first > 1
    top = qwen.n_layers if component == "residual_stream" else qwen.n_layers - 1
    cells = [*np.ndindex(causal_map.top.shape)]
    skipped = [at for at in cells if at[-1] < first or (at[0] == top and at[-1] != last)]
    assert result.results[0].interventions == len(cells) - len(skipped)
    source = activations(qwen, pair.counterfactual, component)
    clean, _ = reference.run(qwen, ids(qwen, pair.original), component)
    for at in skipped:
        assert causal_map.logit_change[at] == 0
        assert causal_map.top[at] == clean.argmax()
    for i in np.random.RandomState(1).permutation(len(skipped))[:40]:
        assert (by_hand(qwen, pair.original, sites_of(causal_map, skipped[i]), source) == clean).all()


@pytest.mark.parametrize("plan", [{}, {"intervention_type": "attention_heads"}, {"intervention_type": KNOCKOUT}])
def test_the_reverse_direction_is_the_pair_swapped_by_hand(qwen: LoadedModel, plan: dict[str, Argument]) -> None:
    given = pairs(3)
    forth = run_causal_tracing_experiment(qwen, given, **plan)
    back = run_causal_tracing_experiment(qwen, given, direction="into_counterfactual", **plan)
    swapped = run_causal_tracing_experiment(qwen, [pair.reversed for pair in given], **plan)
    for one, other, original in zip(back.maps, swapped.maps, forth.maps, strict=True):
        for name in ("z_patched", "z_clean", "z_counterfactual", "top", "control_top", "lens_logits", "lens_ranks"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert (one.tokens, one.answer_tokens, one.top_tokens) == (other.tokens, other.answer_tokens, other.top_tokens)
        assert one.answer_tokens == original.answer_tokens[::-1]
        assert (one.direction, original.direction) == ("into_counterfactual", "into_original")
        assert np.abs(one.z_patched - original.z_patched[..., ::-1]).max() > 0.1
    for one, original in zip(back.results, forth.results, strict=True):
        assert (one.pair, one.correct, one.answers, one.prompt) == (
            *(original.pair, original.correct, original.answers, original.prompt),
        )


# --- Sources ---


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("source", ["zero", "mean", "resample"])
def test_other_sources_are_what_they_say(qwen: LoadedModel, source: str, component: str) -> None:
    """Zeros, the mean over the other programs of that length, one of these of another answer; each computed here."""
    given = [*pairs(3), *pairs(2, 9)]
    result = run_causal_tracing_experiment(qwen, given, component, positions="targets", source=source)
    assert {m.pair for m in result.maps} >= ({0, 1, 2} if source == "resample" else {0, 1, 2, 3, 4})
    kept = [activations(qwen, pair.original, component)[component] for pair in given[:3]]
    for number in (0, 2):
        others = [kept[other] for other in range(3) if other != number]
        partners = [kept[other] for other in range(3) if given[other].original.text == partner_of(qwen, given, number)]
        of_source = {
            "zero": [torch.zeros_like(at) for at in kept[0]],
            "mean": [torch.stack(at).mean(0) for at in zip(*others, strict=True)],
            "resample": partners[0],
        }[source]
        causal_map = result.maps[number]
        program, patched_from = given[number].original, {component: of_source}
        assert_map_is(causal_map, 12, lambda sites, p=program, s=patched_from: by_hand(qwen, p, sites, s))
        assert causal_map.metrics == ("answer_kept", "answer_logit_drop")
        assert (causal_map.source, causal_map.first_difference, causal_map.control_top) == (source, 0, None)
        drop = causal_map.z_clean[1] - causal_map.z_patched[..., 1]
        np.testing.assert_array_equal(causal_map.values("answer_logit_drop"), drop)
        np.testing.assert_array_equal(causal_map.values("answer_kept"), causal_map.top == causal_map.answer_tokens[1])


def partner_of(model: LoadedModel, given: list[ProgramPair], number: int) -> str:
    """The text of the program that a pair is resampled from: never its own, never one of its answers."""
    plan = Plan(source="resample")
    reference = Reference.found(model, given, plan, 4096)
    one = PairReader(model, plan).prepared(number, given[number])
    token_ids = present(reference.partner(one)).token_ids
    (partner,) = [program for program, tokenized in reference.programs if tokenized.token_ids == token_ids]
    assert partner.text != given[number].original.text
    assert partner.answer not in (given[number].expected_original, given[number].expected_counterfactual)
    return partner.text


def test_no_partner_has_an_answer_of_the_pair(qwen: LoadedModel) -> None:
    given, plan = pairs(40), Plan(source="resample")
    reference = Reference.found(qwen, given, plan, 4096)
    answer_of = {tuple(tokenized.token_ids): program.answer for program, tokenized in reference.programs}
    for number, pair in enumerate(given):
        partner = reference.partner(PairReader(qwen, plan).prepared(number, pair))
        assert partner is not None
        assert answer_of[tuple(partner.token_ids)] not in (pair.expected_original, pair.expected_counterfactual)


@pytest.mark.parametrize("source", ["mean", "resample"])
def test_a_pair_alone_has_no_other_to_patch_from(qwen: LoadedModel, source: str) -> None:
    result = run_causal_tracing_experiment(qwen, [*pairs(2), *pairs(1, 9)], positions="targets", source=source)
    assert [r.index for r in result.skipped] == [2]
    assert present(result.skipped[0].skipped).startswith(f"source {source!r} needs another program of 39 tokens")
    assert present(result.skipped[0].skipped).endswith("the reference set of 3 has none")


@pytest.mark.parametrize("direction", ["into_original", "into_counterfactual"])
def test_a_pairs_own_program_is_not_in_its_mean(qwen: LoadedModel, direction: str) -> None:
    """Nor is it where its counterfactual is patched, where it stands twice in the set, or where it is not in it."""
    given = pairs(6)
    plan = Plan("mlp", source="mean", direction=direction)
    runs = {pair.original.text: activations(qwen, pair.original, "mlp")["mlp"] for pair in given}
    runs[given[0].counterfactual.text] = activations(qwen, given[0].counterfactual, "mlp")["mlp"]
    for chosen in (given, [*given, given[0]], given[1:], [*given, given[0].reversed]):
        reference = Reference.found(qwen, chosen, plan, 4096)
        one = PairReader(qwen, plan).prepared(0, given[0])
        own, patched = (
            {"mlp": [at.view(-1, at.shape[-1]) for at in runs[text]]}
            for text in (given[0].original.text, one.tokenized.original.prompt)
        )
        for each in (own, patched):
            each |= {"attention": each["mlp"], "residual_stream": [*each["mlp"], each["mlp"][0]]}
        reference._sums = {}
        sums = reference.mean_without(one, own, patched)
        others = [pair.original.text for pair in given[1:]]
        if direction == "into_original" and len(chosen) > 6 and chosen[-1] != given[0]:
            others.append(given[0].counterfactual.text)
        for layer, at in enumerate(sums["mlp"]):
            expected = torch.stack([runs[text][layer].view(at.shape) for text in others]).double().mean(0)
            torch.testing.assert_close(at, expected, atol=1e-5, rtol=1e-5)


def test_all_windows_of_pairs_draw_on_one_set_that_filters_let_through(tiny: LoadedModel, monkeypatch) -> None:
    monkeypatch.setattr("debug.causal_tracing.experiment.WINDOW", 3)
    monkeypatch.setattr("debug.causal_tracing.reference.REFERENCE", 4)
    given = pairs(9, 17, None)
    plan = Plan(positions="targets", source="mean", exclude_shallow=True, require_correct=True)
    reference = Reference.found(tiny, given, plan, 4096)
    deep = [pair.original.text for pair in given if pair.variable_chain.root.line >= 2]
    assert reference.texts == deep[:4]
    found = list(trace_pairs(tiny, given, plan))
    again = list(trace_pairs(tiny, given[4:], plan, None, None, Reference.of_texts(tiny, deep[:4], plan, 4096)))
    for one, other in zip(found[4:], again, strict=True):
        assert one.skipped == other.skipped
        if one.causal_map is not None:
            np.testing.assert_allclose(one.causal_map.z_patched, present(other.causal_map).z_patched, atol=1e-4)


# --- The same-answer control ---


@pytest.mark.parametrize("plan", [{}, {"intervention_type": "attention_heads", "heads": [1, [0, 3]]}])
def test_the_control_is_the_same_patch_from_a_program_of_the_same_answer(
    tiny: LoadedModel, plan: dict[str, Argument]
) -> None:
    given = pairs(2)
    result = run_causal_tracing_experiment(tiny, given, positions="targets", **plan)
    for pair, causal_map in zip(given, result.maps, strict=True):
        control = present(same_answer_program(pair.original))
        assert control.answer == pair.original.answer
        assert control.text != pair.original.text
        source = activations(tiny, control, causal_map.intervention_type)
        kept, rows = [], np.random.RandomState(0).permutation(len(causal_map.layers))[:4]
        axes = [*product(rows, range(len(causal_map.heads)))] if causal_map.heads else [(row,) for row in rows]
        for at, (target, column) in product(axes, causal_map.target_columns.items()):
            top = by_hand(tiny, pair.original, sites_of(causal_map, (*at, column)), source).argmax()
            c, o = causal_map.answer_tokens
            assert causal_map.at_target(target, "control_success")[at] == (top == c)
            assert causal_map.at_target(target, "control_answer_kept")[at] == (top == o)
            kept.append(top == o)
        assert any(kept)
    below_top = [row for row, layer in enumerate(result.maps[0].layers) if layer < 6]
    for name in ("control_success", "control_answer_kept"):
        cells = np.concatenate([m.at_target(t, name)[below_top].ravel() for m in result.maps for t in m.targets])
        assert present(result.mean.overall[name]).estimate == pytest.approx(cells.mean())


def test_control_success_stands_beside_success(tiny: LoadedModel) -> None:
    """Moving the value from a program with the same answer moves nothing but the answer itself."""
    mean = run_causal_tracing_experiment(tiny, pairs(20), positions="targets", require_correct=True).mean
    assert present(mean.overall["control_success"]).n == present(mean.overall["success"]).n
    assert present(mean["ref_depth_1_rhs"]["control_success"][0]).estimate == 0
    assert present(mean["ref_depth_1_rhs"]["control_answer_kept"][0]).estimate == 1, (
        "at layer 0 the two roots are one token"
    )
    assert present(mean["final"]["control_answer_kept"][-1]).estimate > 0.9, (
        "the control's own answer is the original's"
    )


def test_without_the_control_nothing_is_said_of_it(qwen: LoadedModel) -> None:
    result = run_causal_tracing_experiment(qwen, pairs(2), positions="targets", control=False)
    assert "control_success" not in result.mean.metrics
    assert [m.control_top for m in result.maps] == [None, None]


def test_the_control_runs_where_its_own_program_differs_first(tiny: LoadedModel) -> None:
    """Its names differ before the counterfactual's root does: kept is what the patched runs kept, not 100%."""
    given = pairs(20)
    found = run_causal_tracing_experiment(tiny, given, positions=["ref_depth_1_lhs"])
    kept = found.mean["ref_depth_1_lhs"]["control_answer_kept"][0]
    by_hand = []
    for pair, causal_map in zip(given, found.maps, strict=True):
        tokenized = analyze_pair(tiny.tokenizer, pair)
        both = (pair.original, same_answer_program(pair.original))
        own, other = (torch.tensor(analyze(tiny.tokenizer, present(program)).token_ids) for program in both)
        _, source = reference.run(tiny, other, "residual_stream")
        site = Site("residual_stream", 0, tuple(causal_map.targets["ref_depth_1_lhs"]), source=0)
        logits = reference.patch(tiny, own, [site], {"residual_stream": source})
        by_hand.append(logits.argmax().item() == tokenized.answer_tokens[1])
    assert (present(kept).estimate, present(kept).n) == (np.mean(by_hand), 20)
    assert 0.5 < present(kept).estimate < 0.9
    text = "foo = 1\n#foo: "  # no other name of three letters
    assert run_causal_tracing_experiment(families.family("gpt2"), [text]).maps[0].control_top is None


# --- Logit lens ---


@pytest.mark.parametrize("name", ["gemma2", "gpt2", "tiny"])
def test_lens_rows_are_the_hidden_states_read_by_the_final_norm_and_the_unembedding(name: str) -> None:
    model = models.load("tiny") if name == "tiny" else families.family(name)
    (pair,) = pairs(1)
    (causal_map,) = run_causal_tracing_experiment(model, [pair], "mlp", positions="targets").maps
    hidden = activations(model, pair.original, "residual_stream")["residual_stream"]
    norm, head = (model.hf.get_submodule(n) for n in (model.architecture.final_norm, model.architecture.unembedding))
    cap = getattr(model.config, "final_logit_softcapping", None)
    shape = (model.n_layers + 1, len(causal_map.positions), 2)
    lens_logits, lens_ranks = present(causal_map.lens_logits), present(causal_map.lens_ranks)
    assert lens_logits.shape == lens_ranks.shape == shape
    for layer, (column, position) in product(range(model.n_layers + 1), enumerate(causal_map.positions)):
        with torch.no_grad():
            logits = head(norm(hidden[layer][0, position]))
        logits = logits if cap is None else cap * (logits / cap).tanh()
        for number, answer in enumerate(causal_map.answer_tokens):
            assert present(causal_map.lens_logits)[layer, column, number] == pytest.approx(
                logits[answer].item(), abs=EXACT
            )
            higher = ((logits - logits[answer] > EXACT).sum(), (logits - logits[answer] > -EXACT).sum() - 1)
            assert higher[0] <= lens_ranks[layer, column, number] <= higher[1], "as many tokens rank higher"
    np.testing.assert_allclose(lens_logits[-1, -1], causal_map.z_clean, atol=EXACT)
    assert lens_ranks[-1, -1].min() == 0 or name != "tiny", "it answers"


def test_the_lens_can_be_left_out_and_a_knockout_has_none(qwen: LoadedModel) -> None:
    without_lens: list[dict[str, Argument]] = [{"logit_lens": False}, {"intervention_type": KNOCKOUT}]
    for plan in without_lens:
        (causal_map,) = run_causal_tracing_experiment(qwen, pairs(1), **plan).maps
        assert (causal_map.lens_logits, causal_map.lens_ranks) == (None, None)


# --- Attribution ---


@pytest.mark.parametrize("component", COMPONENTS)
def test_an_attribution_is_the_slope_times_the_difference(qwen: LoadedModel, component: str) -> None:
    """The largest of them, against finite differences of exact patches, of which 1/500 is taken."""
    (pair,) = pairs(1)
    result = run_causal_tracing_experiment(qwen, [pair], component, method="attribution")
    (causal_map,) = result.maps
    own, other = (activations(qwen, p, component)[component] for p in (pair.original, pair.counterfactual))
    estimated, measured, step, c = [], [], 2e-3, causal_map.answer_tokens[0]
    largest = np.argsort(-np.abs(causal_map.logit_change), axis=None)[:16:2]
    for at in zip(*np.unravel_index(largest, causal_map.top.shape), strict=True):
        sites, both = sites_of(causal_map, at), []
        for sign in (1, -1):
            moved = [a + sign * step * (b - a) for a, b in zip(own, other, strict=True)]
            both.append(by_hand(qwen, pair.original, sites, {component: moved})[c])
        estimated.append(causal_map.logit_change[at])
        measured.append((both[0] - both[1]) / (2 * step))
    assert max(map(abs, measured)) > 0.1
    np.testing.assert_allclose(estimated, measured, rtol=0.02, atol=0.01)
    assert causal_map.method == "attribution"
    assert causal_map.metrics == ("normalized_logit_diff", "logit_change")
    assert (causal_map.top == -1).all(), "whose top token it would be is not estimated"
    assert (causal_map.logit_change[..., : causal_map.first_difference] == 0).all()


@pytest.mark.parametrize("component", COMPONENTS)
def test_its_rank_agreement_is_scipys_with_the_exact_map(qwen: LoadedModel, component: str) -> None:
    given = pairs(2)
    targets = ["ref_depth_1_rhs", "ref_depth_3_lhs", "query_var", "final"]
    where = {"positions": targets, "intervention_layers": [0, 1, 2]}
    exact = run_causal_tracing_experiment(qwen, given, component, **where)
    estimated = run_causal_tracing_experiment(qwen, given, component, method="attribution", **where)
    by_pair = [
        spearman(a.z_patched[..., 0].ravel(), b.z_patched[..., 0].ravel())
        for a, b in zip(exact.maps, estimated.maps, strict=True)
    ]
    assert exact.maps[0].top.size <= causal_tracing.AGREEMENT_CELLS, "all cells are in the sample"
    assert [r.interventions for r in estimated.results] == [exact.maps[0].top.size] * 2
    assert estimated.rank_agreement == pytest.approx(by_pair, abs=0.005)  # rounding may exchange neighbours
    assert exact.rank_agreement == []


def test_agreement_where_it_matters_is_that_of_the_exact_map(tiny: LoadedModel) -> None:
    """All cells of these pairs are patched exactly: nothing is left to the sample."""
    where: dict[str, Argument] = {"positions": ["ref_depth_1_rhs", "ref_depth_2_rhs", "ref_depth_3_rhs", "final"]}
    exact = run_causal_tracing_experiment(tiny, pairs(3), **where)
    estimated = run_causal_tracing_experiment(tiny, pairs(3), method="attribution", **where)
    for one, other, found in zip(exact.maps, estimated.maps, estimated.agreement, strict=True):
        assert (found.weights == 1).all()
        ran = slice(None), [*range(4)]
        share, guess = one.normalized_logit_diff[ran].ravel(), other.normalized_logit_diff[ran].ravel()
        matters = np.abs(share) >= 0.1
        assert 3 <= matters.sum() < matters.size / 2
        assert found.matters.sum() == matters.sum()
        assert found.rank == pytest.approx(spearman(share[matters], guess[matters]), abs=0.02)
        product, square = found.slope
        assert product / square == pytest.approx((share * guess)[matters].sum() / (share**2)[matters].sum(), abs=1e-3)
        assert found.missed == ((guess * np.sign(share) < 0.1)[matters].sum(), matters.sum())
    metrics = agreement_metrics(estimated.agreement)
    missed, all_that_matter = np.sum([pair.missed for pair in estimated.agreement], axis=0)
    assert metrics["attribution_missed"].estimate == pytest.approx(missed / all_that_matter)
    assert metrics["attribution_missed"].n == 3


def test_the_sample_holds_the_largest_estimates_and_stands_for_all_cells(tiny: LoadedModel) -> None:
    """64 cells drawn from 644 would hold some six that matter."""
    [estimated] = run_causal_tracing_experiment(tiny, pairs(1, 17), method="attribution").results
    found, causal_map = estimated.agreement, estimated.causal_map
    shares = np.sort(np.abs(present(causal_map).normalized_logit_diff).ravel())
    in_sample = np.sort(np.abs(present(found).estimated))
    assert estimated.interventions == len(present(found).exact) > causal_tracing.AGREEMENT_CELLS
    np.testing.assert_allclose(in_sample[-32:], shares[-32:], atol=1e-5)
    assert sorted({*present(found).weights.tolist()})[0] == 1
    assert (present(found).weights > 1).sum() >= causal_tracing.AGREEMENT_CELLS - causal_tracing.LARGEST_CELLS
    tokens = len(present(causal_map).tokens) - present(causal_map).first_difference
    at_most = tokens * present(causal_map).n_layers + 1  # of the top row, the last token alone
    assert present(found).weights.sum() == pytest.approx(at_most)


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_agreement_counts_a_cell_as_often_as_its_weight_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    exact, estimated = rng.normal(size=20).round(1), rng.normal(size=20).round(1)  # some are equal
    weights = rng.integers(1, 5, 20)
    repeated = spearman(np.repeat(exact, weights), np.repeat(estimated, weights))
    assert agreement._spearman(exact, estimated, weights) == pytest.approx(repeated)
    plain = agreement._spearman(exact, estimated, np.ones(20))
    assert plain == pytest.approx(spearman(exact, estimated))
    assert agreement._spearman(exact, np.ones(20), weights) is None


def test_an_attribution_of_all_heads_together_is_the_sum_over_them(qwen: LoadedModel) -> None:
    def of(heads: Argument) -> np.ndarray:
        plan = {"method": "attribution", "heads": heads}
        return run_causal_tracing_experiment(qwen, pairs(1), "attention_heads", **plan).maps[0].logit_change

    np.testing.assert_allclose(of(None).sum(1), of("together")[:, 0], atol=EXACT)
    np.testing.assert_allclose(of(None)[:, [0, 3]].sum(1), of([[0, 3]])[:, 0], atol=EXACT)


# --- Knockout ---


@pytest.mark.parametrize(
    "plan", [{}, {"layer_window": 2}, {"heads": [1, 3]}, {"positions": ["final->ref_depth_1_rhs+ref_depth_2_line"]}]
)
@pytest.mark.parametrize("name", ["qwen3", "gpt_neox", "tiny"])
def test_a_knockout_is_one_trace_with_the_edges_cut(name: str, plan: dict[str, Argument]) -> None:
    model = models.load("tiny") if name == "tiny" else families.family(name)
    (pair,) = pairs(1)
    (causal_map,) = run_causal_tracing_experiment(model, [pair], KNOCKOUT, **plan).maps
    tokenized = analyze(model.tokenizer, pair.original)
    window, heads = plan.get("layer_window", model.n_layers), tuple(plan["heads"]) if "heads" in plan else None
    assert causal_map.layers == list(range(model.n_layers - window + 1))
    answers, hypotheses = list(causal_map.answer_tokens), [t for t in causal_map.targets if random_of(t) is None]
    assert hypotheses == plan.get("positions", ["direct_pointer", "chain_following"])
    for (row, layer), hypothesis in product(enumerate(causal_map.layers), hypotheses):
        edges = edges_of(tokenized, hypothesis)
        controls = {
            f"{hypothesis}_random{suffix}": random_control(tokenized, edges, draw)
            for draw, suffix in ((0, ""), (4, "_5"))
        }
        for column, cut in ({hypothesis: edges} | controls).items():
            cuts = [Cut(at, tuple(cut), heads) for at in range(layer, layer + window)]
            logits = reference.knock_out(model, ids(model, pair.original), cuts)
            at = row, causal_map.target_columns[column]
            np.testing.assert_allclose(causal_map.z_patched[at], logits[answers], atol=EXACT)
            assert causal_map.at_target(column, "answer_kept")[row] == (logits.argmax() == answers[1])
            drop = causal_map.z_clean[1] - logits[answers[1]].item()
            assert causal_map.at_target(column, "answer_logit_drop")[row] == pytest.approx(drop, abs=2 * EXACT)
    assert causal_map.source == "knockout"
    assert np.abs(causal_map.values("answer_logit_drop")).max() > 0.1


def test_a_knockout_logs_no_success(tiny: LoadedModel) -> None:
    mean = run_causal_tracing_experiment(tiny, pairs(3), KNOCKOUT).mean
    assert mean.metrics == ("answer_kept", "answer_logit_drop")
    assert {curve.target for curve in mean.curves} == {
        *("direct_pointer", "direct_pointer_random", "chain_following", "chain_following_random")
    }


def test_a_knockout_without_control_cuts_no_random_edges(qwen: LoadedModel) -> None:
    assert list(run_causal_tracing_experiment(qwen, pairs(1), KNOCKOUT, control=False).maps[0].targets) == [
        *("direct_pointer", "chain_following")
    ]


# --- What a trained model does ---


@pytest.fixture(scope="module")
def fifty_pairs() -> causal_tracing.CausalTracingResult:
    return run_causal_tracing_experiment("tiny", pairs(60), require_correct=True)


def test_corners_of_the_map_hold_by_construction(fifty_pairs: causal_tracing.CausalTracingResult) -> None:
    assert len(fifty_pairs.maps) >= 50
    for causal_map in fifty_pairs.maps:
        assert causal_map.at_target("ref_depth_1_rhs")[0] == 1, "the root at layer 0 is the counterfactual's input"
        assert causal_map.at_target("final")[-1] == 1, "final at the top row is the counterfactual's output"
        np.testing.assert_allclose(
            causal_map.normalized_logit_diff[0, causal_map.targets["ref_depth_1_rhs"]], 1, atol=1e-4
        )
        np.testing.assert_allclose(causal_map.normalized_logit_diff[-1, -1], 1, atol=1e-4)
        before = causal_map.logit_change[:, : causal_map.targets["ref_depth_1_rhs"][0]]
        assert (before == 0).all(), "nothing differs before the root"
    assert fifty_pairs.checks.identity_max_abs <= 1e-4
    assert fifty_pairs.checks.full_patch_max_abs <= 1e-4
    assert fifty_pairs.checks.full_patch_without > 1


def test_the_value_leaves_the_root_and_arrives_at_the_last_token(
    fifty_pairs: causal_tracing.CausalTracingResult,
) -> None:
    """Between the corners is the finding; that the value travels at all holds for any model that solves the task."""
    mean = fifty_pairs.mean
    root, final = mean["ref_depth_1_rhs"].success, mean["final"].success
    assert root[-1].estimate == 0 == final[0].estimate
    _, target, layer = mean.hand_overs()[-1]
    assert (target, layer < mean.n_layers) == ("final", True), "the top row alone would be so by construction"
    assert all(rate.n == len(fifty_pairs.maps) and rate.low is not None for rate in root)


# --- Many pairs ---

QUICK: dict[str, Argument] = {
    "positions": ["final"],
    "layers": [1],
    "control": False,
    "logit_lens": False,
}


def endless(consumed: list[int], seq_len: int = 2) -> Iterator[ProgramPair]:
    """Pairs without an end, that say how many were taken."""
    some = pairs(40, seq_len, None)
    for number in count():
        consumed.append(number)
        yield some[number % 40]


def test_pairs_of_different_lengths_come_back_in_order(tiny: LoadedModel) -> None:
    chosen = [*pairs(3, 5), *pairs(3, 9), "no program", *pairs(3, 5, seed=300)]
    results = list(trace_pairs(tiny, chosen, Plan(positions="targets")))
    assert [result.index for result in results] == list(range(10))
    assert [result.pair for result in results if result.pair] == [pair for pair in chosen if pair != "no program"]
    assert [len(r.causal_map.tokens) for r in results if r.causal_map] == [23] * 3 + [39] * 3 + [23] * 3
    assert [r.causal_map.pair for r in results if r.causal_map] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    alone = run_causal_tracing_experiment(tiny, chosen[4:5], positions="targets").maps[0]
    np.testing.assert_allclose(present(results[4].causal_map).z_patched, alone.z_patched, atol=EXACT)


def test_results_stream_while_pairs_are_still_to_come(qwen: LoadedModel) -> None:
    consumed: list[int] = []
    stream = trace_pairs(qwen, endless(consumed), Plan(**QUICK))
    for number in range(150):
        result = next(stream)
        assert result.index == number
        assert result.causal_map is not None
        assert len(consumed) <= number + 1 + causal_tracing.WINDOW


def tensors_alive() -> int:
    gc.collect()
    return sum(t.numel() for t in gc.get_objects() if type(t) is torch.Tensor)


def test_memory_does_not_grow_with_the_number_of_pairs(qwen: LoadedModel) -> None:
    """Of results that the caller lets go."""
    alive = []
    for result in trace_pairs(qwen, endless([]), Plan(**dict(QUICK, save_activations="all"))):
        if result.index % 64 == 10:
            alive.append(tensors_alive())
        if result.index == 300:
            break
    assert len(alive) == 5
    assert max(alive[1:]) <= 1.05 * alive[0]


def test_what_is_done_is_kept_when_interrupted(qwen: LoadedModel) -> None:
    """In the middle of a forward pass: what was yielded before it is whole."""
    passes: list[int] = []

    def interrupt(*_: object) -> None:
        passes.append(1)
        if len(passes) > 60:  # those of the plain model come among them
            raise KeyboardInterrupt

    hook, done = qwen.hf.register_forward_pre_hook(interrupt), []
    try:
        with pytest.raises(KeyboardInterrupt):
            done.extend(trace_pairs(qwen, endless([], 5), Plan(), batch_tokens=400))
    finally:
        hook.remove()
    assert 0 < len(done) < 64
    whole = run_causal_tracing_experiment(qwen, pairs(40, 5, None)[: len(done)])
    for one, other in zip(done, whole.maps, strict=True):
        np.testing.assert_allclose(one.causal_map.z_patched, other.z_patched, atol=EXACT)


BAD = [
    ("a = b\n#a: ", "'b' is not assigned above it"),
    ({"counterfactual": "a = 1\n#a: "}, "expected a pair, a program's text or a dict with 'original'"),
    (
        {"original": "a = 1\n#a: ", "counterfactual": "b = 2\n#b: ", "kind": "root_value"},
        "must differ in the root value and in nothing else",
    ),
    ({"original": "a = 1\n#a: ", "counterfactual": "a = 1\n#a: "}, "same answer, 1"),
    ({"original": "a = 1\n#a: ", "expected_original": 2}, "'expected_original' is 2, but the programs say 1"),
    (make_pair("a = 1\n#a: ", root_value=10), "the root value must tokenize to the same number of tokens"),
    ("A = 1\nb = A\n#b: ", "has no token for part of this prompt"),
    ("a = 1\n#a: ", "no target 'ref_depth_2_rhs' in this program; it has: ref_depth_1_lhs"),
    (42, "given 42"),
    (None, "given None"),
]


def test_bad_pairs_among_many_are_recorded_and_skipped_and_the_rest_go_on(qwen: LoadedModel) -> None:
    good = pairs(len(BAD) + 1, hops=2)
    mixed = [x for both in zip(good, [bad for bad, _ in BAD], strict=False) for x in both] + [good[-1]]
    result = run_causal_tracing_experiment(qwen, mixed, positions=["ref_depth_2_rhs", "final"])
    assert [r.index for r in result.skipped] == list(range(1, len(mixed), 2))
    for skipped, (_, reason) in zip(result.skipped, BAD, strict=True):
        assert reason in skipped.skipped
        assert skipped.causal_map is None
    clean = run_causal_tracing_experiment(qwen, good, positions=["ref_depth_2_rhs", "final"])
    for one, other in zip(result.maps, clean.maps, strict=True):
        np.testing.assert_allclose(one.z_patched, other.z_patched, atol=EXACT)


def test_filters_say_why_a_pair_is_skipped(tiny: LoadedModel) -> None:
    given = pairs(30, 5, None)
    result = run_causal_tracing_experiment(
        tiny, given, positions=["final"], intervention_layers=[1], require_correct=True, exclude_shallow=True
    )
    for one, pair in zip(result.results, given, strict=True):
        line = pair.original.chain.root.line
        assert (one.skipped is not None) == (line < 2 or not all(present(one.correct)))
        if line < 2:
            assert one.skipped == f"shallow: the root value is assigned on line {line + 1}"
    wrong = run_causal_tracing_experiment(families.family("gpt2"), given, positions=["final"], intervention_layers=[1])
    assert not all(all(present(r.correct)) for r in wrong.results), "and yet none is skipped unless it is asked for"
    assert not wrong.skipped
    with pytest.raises(ValueError, match="the model does not answer the original"):
        run_causal_tracing_experiment(
            families.family("gpt2"),
            [present(r.pair) for r in wrong.results if r.correct == (False, False)],
            require_correct=True,
        )


# --- Batches, precision, broken models ---


def test_small_batches_give_the_same_map() -> None:
    one, other = (run_causal_tracing_experiment("tiny", pairs(2), batch_tokens=n).maps[1] for n in (None, 50))
    np.testing.assert_allclose(one.z_patched, other.z_patched, atol=EXACT)


def test_memory_that_runs_out_changes_no_map(qwen: LoadedModel) -> None:
    expected, failures = run_causal_tracing_experiment(qwen, pairs(3)).maps, []

    def attend(_: object, __: object, keywords: dict) -> None:
        if keywords["hidden_states"].shape[:2].numel() > 300:  # the programs' own runs take less
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = qwen.hf.model.layers[-1].self_attn.register_forward_pre_hook(attend, with_kwargs=True)
    try:
        maps = run_causal_tracing_experiment(qwen, pairs(3), batch_tokens=4000).maps
    finally:
        hook.remove()
    assert failures
    for one, other in zip(maps, expected, strict=True):
        np.testing.assert_allclose(one.z_patched, other.z_patched, atol=EXACT)


def test_other_errors_of_the_programs_own_runs_are_not_taken_for_memory(qwen: LoadedModel) -> None:
    calls: list[int] = []

    def attend(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    hook = qwen.hf.model.layers[-1].self_attn.register_forward_pre_hook(attend)
    try:
        with pytest.raises(RuntimeError, match="an illegal memory access"):
            run_causal_tracing_experiment(qwen, pairs(3), positions="targets", batch_tokens=10**5)
    finally:
        hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("plan", [{}, {"method": "attribution"}, {"source": "mean"}])
def test_memory_that_runs_out_in_the_programs_own_runs_halves_the_pairs(
    qwen: LoadedModel, plan: dict[str, Argument]
) -> None:
    given = [*pairs(7), *pairs(2, 9)]
    expected, failures = run_causal_tracing_experiment(qwen, given, positions="targets", **plan).maps, []

    def attend(_: object, __: object, keywords: dict) -> None:
        rows, tokens = keywords["hidden_states"].shape[:2]
        if rows > 6 and tokens in (23, 39):
            failures.append(rows)
            torch.empty(2**60)

    hook = qwen.hf.model.layers[-1].self_attn.register_forward_pre_hook(attend, with_kwargs=True)
    try:
        maps = run_causal_tracing_experiment(qwen, given, positions="targets", batch_tokens=10**5, **plan).maps
    finally:
        hook.remove()
    assert failures
    assert [m.pair for m in maps] == list(range(9))
    for one, other in zip(maps, expected, strict=True):
        np.testing.assert_allclose(one.z_patched, other.z_patched, atol=EXACT)


def test_numbers_may_be_numpys(qwen: LoadedModel) -> None:
    def of(as_given: Callable[[list[int]], Argument]) -> CausalMap:
        plan = {"intervention_layers": as_given([1, 2]), "positions": as_given([2, 22]), "heads": as_given([0, 3])}
        return run_causal_tracing_experiment(qwen, pairs(1), "attention_heads", **plan).maps[0]

    one, other = of(np.array), of(list)
    np.testing.assert_array_equal(one.z_patched, other.z_patched)
    assert one.to_tensors()[1] == other.to_tensors()[1]


@pytest.mark.parametrize("intervention_type", [*COMPONENTS, KNOCKOUT])
def test_bfloat16_runs_within_its_own_tolerance(intervention_type: str) -> None:
    result = run_causal_tracing_experiment("tiny", pairs(3), intervention_type, dtype="bfloat16")
    models.unload("tiny")
    assert 0.01 < result.checks.tolerance < 1
    assert result.checks.full_patch_without > 10 * result.checks.tolerance
    assert result.maps[0].min_effect == models.SMALLEST_EFFECT["bfloat16"]
    assert all(np.isfinite(m.z_patched).all() for m in result.maps)
    assert result.mean.n_pairs == 3


def test_failed_self_checks_end_an_experiment_in_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rounding = self_checks.rounding
    monkeypatch.setattr(plain_hooks, "rounding", lambda *given: (1e-12, rounding(*given)[1]))
    with pytest.raises(SelfCheckError):
        run_causal_tracing_experiment("tiny", pairs(1))


@pytest.mark.parametrize("intervention_type", [*COMPONENTS, KNOCKOUT])
def test_broken_weights_are_refused(intervention_type: str) -> None:
    model = families.family("qwen2")
    with torch.no_grad():
        next(model.hf.parameters()).fill_(float("nan"))
    with pytest.raises(SelfCheckError, match=r"logits of model 'qwen2' \(float32\) are not finite; its weights may be"):
        run_causal_tracing_experiment(model, pairs(1), intervention_type)


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"control": False},
        {"direction": "into_counterfactual"},
        {"source": "zero"},
        {"method": "attribution"},
        {"intervention_type": KNOCKOUT, "positions": "all"},
    ],
)
def test_only_pairs_whose_logits_are_not_finite_are_skipped(plan: dict[str, Argument]) -> None:
    """One letter of the alphabet overflows: programs that have it are no measurements, and say nothing of the others,
    which share their batches."""
    model, given = families.family("qwen2"), pairs(12, 3, 2)
    letter = given[0].original.assignments[-1].lhs
    plan = {"positions": "targets"} | plan
    expected = run_causal_tracing_experiment(model, given, **plan)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[model.tokenizer.convert_tokens_to_ids(letter)] = torch.inf
    result = run_causal_tracing_experiment(model, given, **plan)
    for pair, one, other in zip(given, result.results, expected.results, strict=True):
        if letter in pair.original.text:
            assert one.skipped == "logits of model 'qwen2' (float32) are not finite; its weights may be broken"
            assert (one.correct, one.answers, one.causal_map) == (None, None, None)
            assert one.prompt == other.prompt
        elif one.skipped is None:  # a program of the same answer, which is the control, may have the letter
            assert one.correct == other.correct
            np.testing.assert_allclose(
                present(one.causal_map).z_patched, present(other.causal_map).z_patched, atol=EXACT
            )
    assert 0 < len(result.maps) < 12


# --- Means, and small things ---


def test_an_effect_too_small_to_divide_by_is_null() -> None:
    result = run_causal_tracing_experiment(families.family("gpt2"), pairs(1))
    causal_map = result.maps[0]
    object.__setattr__(causal_map, "min_effect", 1e9)
    assert np.isnan(causal_map.normalized_logit_diff).all()
    assert result.mean.overall["normalized_logit_diff"] is None


def test_positions_by_number_are_known_by_their_role() -> None:
    positions = [2, 22, "final", "ref_depth_1_rhs", 5]
    result = run_causal_tracing_experiment("tiny", pairs(2), positions=positions)
    assert result.maps[0].targets == {"ref_depth_1_rhs": [2], "final": [22], "ref_depth_2_equals": [5]}
    assert present(result.mean.peak())[0] == "ref_depth_2_equals"


def test_the_top_row_alone_has_a_mean() -> None:
    mean = run_causal_tracing_experiment("tiny", pairs(2), intervention_layers=[6]).mean
    assert mean.overall["success"] is None
    assert mean["final"].success[0].estimate == 1


def test_rates_are_successes_over_interventions_where_pairs_have_different_targets() -> None:
    maps = run_causal_tracing_experiment("tiny", [*pairs(3, hops=1), *pairs(3, hops=4, seq_len=9)]).maps
    mean = mean_over_pairs(maps)
    each = np.concatenate([m.at_target(target)[:-1] for m in maps for target in m.targets])
    assert present(mean.overall["success"]).estimate == pytest.approx(each.mean())
    assert [c.target for c in mean.curves] == [f"ref_depth_{k}_rhs" for k in (1, 2, 3, 4)] + ["query_var", "final"]


@pytest.mark.parametrize(
    ("heads", "names"),
    [
        (None, [f"head_{head}" for head in range(4)]),
        ([2, [0, 1]], ["head_2", "heads_0_1"]),
        ("together", ["heads_0_1_2_3"]),
    ],
)
def test_every_set_of_heads_has_a_curve_of_its_own(heads: Argument, names: list[str]) -> None:
    result = run_causal_tracing_experiment("tiny", pairs(3), "attention_heads", positions=["final"], heads=heads)
    assert {curve.target for curve in result.mean.curves} == {f"final/{name}" for name in names}
    by_hand = np.mean([m.at_target("final") for m in result.maps], axis=0)
    for number, name in enumerate(names):
        assert [rate.estimate for rate in result.mean[f"final/{name}"].success] == by_hand[:, number].tolist()


# --- A caller's own metric ---


def margin(causal_map: CausalMap) -> np.ndarray:
    return causal_map.z_patched[..., 0] - 2 * causal_map.z_patched[..., 1]


@pytest.mark.parametrize("plan", [{}, {"intervention_type": "attention_heads", "positions": "targets"}])
def test_a_metric_may_be_the_callers_own_function(plan: dict[str, Argument]) -> None:
    result = run_causal_tracing_experiment("tiny", pairs(3), metric=margin, **plan)
    plain = run_causal_tracing_experiment("tiny", pairs(3), **plan)
    z = [m.z_patched.astype(float) for m in result.maps]
    by_hand = [each[..., 0] - 2 * each[..., 1] for each in z]
    for m, values, expected in zip(result.maps, result.values, by_hand, strict=True):
        np.testing.assert_allclose(values, expected[..., : len(m.positions)], rtol=1e-5)
    assert result.mean.metrics == (*plain.mean.metrics[:3], "margin", *plain.mean.metrics[3:])
    assert result.mean.overall.items() > plain.mean.overall.items()
    final = np.mean(
        [each[..., m.target_columns["final"]] for m, each in zip(result.maps, by_hand, strict=True)], axis=0
    )
    curves = [result.mean[f"final/head_{head}"] for head in range(4)] if plan else [result.mean["final"]]
    found = np.array([[present(value).estimate for value in curve["margin"]] for curve in curves])
    np.testing.assert_allclose(found.T.reshape(final.shape), final, rtol=1e-5)


def test_a_square_without_a_value_is_left_out_of_the_mean() -> None:
    def first_pair(causal_map: CausalMap) -> np.ndarray:
        return np.full(causal_map.top.shape, 3.0 if causal_map.pair == 0 else np.nan)

    mean = run_causal_tracing_experiment("tiny", pairs(3), positions="targets", metric=first_pair).mean
    value = present(mean.overall["first_pair"])
    assert (value.estimate, value.n) == (3, 1)


def test_a_metric_by_name_is_in_the_mean_once() -> None:
    result = run_causal_tracing_experiment("tiny", pairs(1), metric="logit_diff")
    assert result.mean.metrics == run_causal_tracing_experiment("tiny", pairs(1)).mean.metrics
    np.testing.assert_array_equal(result.values[0], result.maps[0].logit_diff)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda m: m.z_patched, r"'lambda' gives values of shape \(7, 23, 2\); the map has \(7, 23\) squares"),
        (lambda m: m.z_clean[0], r"'lambda' gives values of shape \(\); the map has \(7, 23\) squares"),
        (lambda m: "large", r"'lambda' gives 'large'; expected an array of numbers"),
        (lambda m: [[1.0], [1.0, 2.0]], r"'lambda' gives \[\[1.0\], \[1.0, 2.0\]\]; expected an array of numbers"),
        (
            lambda m: np.where(m.top == m.top[0, 0], np.inf, 0),
            r"'lambda' gives infinite values; expected numbers, or NaN",
        ),
    ],
)
def test_what_a_metric_must_not_return_is_named(returned: Callable[[CausalMap], Argument], message: str) -> None:
    result = run_causal_tracing_experiment("tiny", pairs(1), metric=returned)
    for read in ("values", "mean"):
        with pytest.raises(InputError, match=message):
            getattr(result, read)


def test_an_error_in_a_metric_is_the_callers_to_see() -> None:
    def broken(causal_map: CausalMap) -> np.ndarray:
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine$"):
        _ = run_causal_tracing_experiment("tiny", pairs(1), metric=broken).values


def test_a_metric_that_cannot_be_is_refused_before_any_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def success(causal_map: CausalMap) -> np.ndarray:
        return causal_map.z_patched[..., 0]

    monkeypatch.setattr(models, "load", None)
    with pytest.raises(InputError, match=r"metric is 'nonsense'; expected one of success"):
        run_causal_tracing_experiment("tiny", pairs(1), metric="nonsense")
    with pytest.raises(InputError, match=r"metric 'success' is one of METRICS already; give the function another name"):
        run_causal_tracing_experiment("tiny", pairs(1), metric=success)


def test_a_program_in_a_longer_prompt_is_patched_at_its_own_tokens() -> None:
    """Solved examples before it: positions count the whole prompt, and what comes before the root is not run."""
    template = "a = 1\nb = a\n#b: 1\n\n{code}"
    (pair,) = pairs(1)
    (causal_map,) = run_causal_tracing_experiment("tiny", [pair], prompt_template=template).maps
    tokenized = analyze_pair(models.load("tiny").tokenizer, pair, template)
    assert causal_map.tokens == tokenized.original.tokens
    assert causal_map.targets["ref_depth_1_rhs"] == tokenized.original.roles["ref_depth_1_rhs"]
    assert causal_map.first_difference == tokenized.first_difference > 14
    assert causal_map.at_target("final", "normalized_logit_diff")[-1] == pytest.approx(1, abs=EXACT)


# --- Bad input ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"intervention_type": "nonsense"}, "intervention_type is 'nonsense'; expected one of residual_stream"),
        ({"intervention_layers": [7]}, r"layers \[7\] are out of range; residual_stream of 'tiny' has 0 to 6"),
        ({"intervention_layers": [2, -1]}, r"layers \[-1\] are out of range"),
        ({"intervention_layers": [6], "intervention_type": "mlp"}, "mlp of 'tiny' has 0 to 5"),
        ({"intervention_layers": [4], "layer_window": 4}, "has 0 to 3, 4 together"),
        ({"intervention_layers": []}, "layers is an empty list"),
        ({"intervention_layers": ["x"]}, r"layers is \['x'\]; expected layer numbers, or None for all"),
        ({"intervention_layers": [1.5]}, r"layers is \[1.5\]; expected layer numbers"),
        ({"intervention_layers": 3}, "layers is 3; expected layer numbers"),
        ({"layer_window": "x"}, "layer_window is 'x'; expected 1 layer or more"),
        ({"random_draws": 1.5}, "random_draws is 1.5; expected 1 or more"),
        ({"layer_window": 0}, "layer_window is 0; expected 1 layer or more"),
        ({"layer_window": 8}, "layer_window is 8; residual_stream of 'tiny' has 7 layers"),
        ({"heads": [0]}, "heads is given, but residual_stream has none; attention_heads has"),
        (
            {"heads": [1, 4], "intervention_type": "attention_heads"},
            r"heads \[4\] are out of range; 'tiny' has heads 0 to 3",
        ),
        ({"heads": [[0, -1]], "intervention_type": "attention_heads"}, r"heads \[-1\] are out of range"),
        ({"heads": [4], "intervention_type": KNOCKOUT}, r"heads \[4\] are out of range"),
        ({"heads": [], "intervention_type": "attention_heads"}, "heads is an empty list"),
        ({"heads": [[]], "intervention_type": "attention_heads"}, "heads is an empty list"),
        ({"heads": "all", "intervention_type": "attention_heads"}, "heads is 'all'; expected None, 'together'"),
        ({"positions": "nonsense"}, "skipped because: no target 'nonsense' in this program; it has: ref_depth_1_lhs"),
        ({"positions": ["final+root"]}, "skipped because: no target 'root' in this program"),
        ({"positions": "no target"}, r"'no target' is no target .*; expected 'all', 'targets', 'roles' "),
        ({"positions": ["ref_depth_1"]}, "'ref_depth_1' is no target"),
        ({"positions": []}, "positions is an empty list"),
        ({"positions": ["final"], "targets": ["final"]}, "names the targets already"),
        ({"positions": [99]}, "position 99 is out of range; the prompt has tokens 0 to 22"),
        ({"positions": [-1]}, "position -1 is out of range"),
        ({"positions": ["ref_depth_4_rhs"]}, "no target 'ref_depth_4_rhs' in this program; it has: ref_depth_1_lhs"),
        ({"targets": ["ref_depth_4_rhs"]}, "no target 'ref_depth_4_rhs' in this program; it has: ref_depth_1_lhs"),
        ({"positions": ["pointer"], "intervention_type": KNOCKOUT}, "'pointer' is no hypothesis; expected direct_"),
        ({"positions": ["final->root"], "intervention_type": KNOCKOUT}, "no target 'root' in this program"),
        ({"positions": ["final->query_"], "intervention_type": KNOCKOUT}, "'final->query_' is no target"),
        ({"positions": ["ref_depth_1_rhs->final"], "intervention_type": KNOCKOUT}, "has no edge: every key comes"),
        ({"source": "nothing"}, "source is 'nothing'; expected one of counterfactual"),
        ({"source": "stored", "source_run": "x"}, "CausalExperimentRunner patches from activations of logged runs"),
        ({"source": "mean"}, "needs another program of 23 tokens"),
        ({"direction": "back"}, "direction is 'back'; expected one of into_original, into_counterfactual"),
        ({"method": "guess"}, "method is 'guess'; expected one of patching, attribution"),
        ({"method": "attribution", "source": "zero"}, "'attribution' estimates patches of one layer from the counterf"),
        ({"method": "attribution", "layer_window": 2}, "'attribution' estimates patches of one layer"),
        ({"method": "attribution", "intervention_type": KNOCKOUT}, "'attribution' estimates patches of one layer"),
        ({"save_activations": "some"}, "save_activations is 'some'; expected one of none, targets, all"),
        ({"prompt_template": "Hello! {code}"}, "has no token for part of this prompt"),
        ({"prompt_template": "no code"}, r"\{code\}"),
        ({"programs": []}, "programs is empty; expected at least one pair"),
        ({"programs": ["a = 1\n"]}, "query line"),
        ({"programs": ["a = 1\n#b: "]}, "asks for 'b'"),
        ({"programs": [{"counterfactual": "a = 1\n#a: "}]}, "'original'"),
    ],
)
def test_bad_input_is_refused_with_what_was_given_and_what_was_expected(
    arguments: dict[str, Argument], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_causal_tracing_experiment("tiny", **dict[str, Argument](programs=pairs(1)) | arguments)


def test_a_bad_plan_is_refused_before_any_program_is_looked_at(qwen: LoadedModel) -> None:
    consumed: list[int] = []
    for plan in (Plan(layers=[9]), Plan("attention_heads", heads=[9]), Plan(source="stored", source_run="x")):
        with pytest.raises(ValueError, match=r"out of range|stored"):
            next(trace_pairs(qwen, endless(consumed), plan))
    assert consumed == []
