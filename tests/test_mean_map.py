"""What a mean over pairs claims: peaks, hand-overs and shares that are there in other pairs too. No model runs."""

from dataclasses import replace

import numpy as np
import pytest

from debug.causal_map import (
    CausalMap,
    MeanOverPairs,
    hand_overs,
    held_by_construction,
    mean_over_pairs,
    peaks,
    ratio_of_means,
)
from debug.kinds import Argument
from present import present
from synthetic import make_map

TARGETS = ("ref_depth_1_rhs", "ref_depth_2_rhs", "ref_depth_3_rhs", "query_var", "final")
ROOT, SECOND, THIRD, QUERY, FINAL = range(5)
SIZES = (20, 50, 200)
Success = dict[str, np.ndarray]  # target -> [pair, layer]


def rates(noise: float = 0.0, n_layers: int = 7, /, **at: list[float]) -> np.ndarray:
    """[layer, target]: the noise, but for the targets given by name of role."""
    found = np.full((n_layers, len(TARGETS)), noise)
    for target, by_layer in at.items():
        found[: len(by_layer), TARGETS.index(target)] = by_layer
    return found


def drawn(rng: np.random.Generator, of: np.ndarray, n: int) -> Success:
    return {target: (rng.random((n, len(of))) < of[:, k]).astype(float) for k, target in enumerate(TARGETS)}


def moves(success: Success) -> list[tuple[str, str, int]]:
    n_layers = len(success["final"][0])
    found = hand_overs(success, range(n_layers), lambda one, other: False)
    return [(move.before, move.after, move.layer) for move in found]


def maps_of(success: Success, **changes: Argument) -> list[CausalMap]:
    """Maps of six layers and the row above with these successes, each target on a token of its own."""
    one, n_layers = make_map(), len(success["final"][0]) - 1
    tokens = ["t"] * (len(success) + 2)
    places = {target: k + 2 for k, target in enumerate(success)}
    made = []
    for rows in zip(*success.values(), strict=True):
        there = np.stack(rows, axis=1) == 1
        z = np.where(there[..., None], one.z_counterfactual, one.z_clean).astype(np.float32)
        columns: dict[str, Argument] = {
            "tokens": tokens,
            "layers": list(range(n_layers + 1)),
            "positions": [*places.values()],
            "columns": [[place] for place in places.values()],
            "targets": {target: [place] for target, place in places.items()},
            "target_columns": {target: k for k, target in enumerate(places)},
        }
        made.append(replace(one, **columns, n_layers=n_layers, z_patched=z, top=np.where(there, 17, 18), **changes))
    return made


# --- hand-overs ---

GAP = {"ref_depth_1_rhs": [1.0, 1, 1, 0.01], "final": [0.01] * 4 + [1.0] * 3}  # at layer 3 noise alone is left
STAIRS = {
    "ref_depth_1_rhs": [1.0, 1.0],
    "ref_depth_2_rhs": [0.02, 0.02, 0.9],
    "ref_depth_3_rhs": [0.02, 0.02, 0.02, 0.9],
    "final": [0.02] * 4 + [1.0] * 3,
}


@pytest.mark.parametrize("n", SIZES)
def test_a_direct_jump_with_noise_has_no_hand_over_between(n: int) -> None:
    """The highest rate of all would report one in half of the experiments."""
    rng = np.random.default_rng(n)
    found = [moves(drawn(rng, rates(0.01, **GAP), n)) for _ in range(100)]
    assert np.mean([of != [("ref_depth_1_rhs", "final", 4)] for of in found]) <= 0.05


@pytest.mark.parametrize("n", SIZES)
def test_a_staircase_is_found(n: int) -> None:
    rng = np.random.default_rng(n)
    steps = [("ref_depth_1_rhs", "ref_depth_2_rhs", 2), ("ref_depth_2_rhs", "ref_depth_3_rhs", 3)]
    found = [moves(drawn(rng, rates(0.02, **STAIRS), n)) for _ in range(60)]
    assert np.mean([of == [*steps, ("ref_depth_3_rhs", "final", 4)] for of in found]) >= 0.95


@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_where_all_targets_succeed_alike_nothing_is_handed_over(rate: float) -> None:
    rng = np.random.default_rng(0)
    found = [moves(drawn(rng, rates(rate, 13), 20)) for _ in range(60)]
    assert np.mean([bool(of) for of in found]) <= 0.05


def test_one_success_in_200_pairs_is_no_step_of_the_chain() -> None:
    success = drawn(np.random.default_rng(0), rates(0.0, ref_depth_1_rhs=[1.0] * 3, final=[0.0] * 4 + [1.0] * 3), 200)
    success["ref_depth_2_rhs"][0, 3] = 1
    assert moves(success) == [("ref_depth_1_rhs", "final", 4)]
    [move] = mean_over_pairs(maps_of(success)).moves
    assert (move.low, move.high, move.support, move.n) == (4, 4, 1.0, 100)


def test_a_hand_over_has_the_interval_of_its_layer() -> None:
    """Half of the pairs pass at layer 2, half at layer 3."""
    success = {target: np.zeros((80, 7)) for target in TARGETS}
    for pair in range(80):
        at = 2 + pair // 2 % 2
        success["ref_depth_1_rhs"][pair, :at] = success["final"][pair, at:] = 1
    [move] = mean_over_pairs(maps_of(success)).moves
    assert (move.before, move.after, move.low, move.high, move.n) == ("ref_depth_1_rhs", "final", 2, 3, 40)
    metrics, _ = mean_over_pairs(maps_of(success)).to_metrics()
    assert metrics["hand_over_layer/ref_depth_1_rhs_to_final_ci_high"] == 3
    assert present(metrics["hand_over_support/ref_depth_1_rhs_to_final"]) >= 0.95


def test_two_pairs_tell_no_hand_over_and_three_only_all_together() -> None:
    assert [len(mean_over_pairs([make_map(pair) for pair in range(n)]).moves) for n in (1, 2, 3)] == [0, 0, 3]
    success = drawn(np.random.default_rng(0), rates(0.0, ref_depth_1_rhs=[1.0] * 3, final=[0.0] * 3 + [1.0] * 4), 5)
    assert len(moves(success)) == 1
    success["final"][:3] = 0
    assert moves(success) == []


def test_at_the_top_row_the_last_token_is_handed_nothing() -> None:
    """What it holds there is the counterfactual's output in any model."""
    only_top = drawn(np.random.default_rng(0), rates(0.0, ref_depth_1_rhs=[1.0] * 6, final=[0.0] * 6 + [1.0]), 50)
    assert mean_over_pairs(maps_of(only_top)).hand_overs() == []
    window = [replace(one, layers=one.layers[:-1], layer_window=2, z_patched=one.z_patched[:-1], top=one.top[:-1])
              for one in maps_of({t: np.roll(rows, -1, axis=1) for t, rows in only_top.items()})]  # fmt: skip
    assert window[0].at_target("final")[-1] == 1
    assert mean_over_pairs(window).hand_overs() == []


def test_targets_that_share_a_token_hand_nothing_to_each_other() -> None:
    success = drawn(np.random.default_rng(0), rates(0.0, ref_depth_1_rhs=[1.0] * 2, final=[0.0] * 4 + [1.0] * 3), 50)
    success["ref_depth_2_rhs"][:, 1:4] = 1
    assert ("ref_depth_1_rhs", "ref_depth_2_rhs", 2) in mean_over_pairs(maps_of(success)).hand_overs()
    joint = [
        replace(
            one,
            columns=[*one.columns, [2, 3]],
            targets=one.targets | {"ref_depth_2_rhs": [2, 3]},
            target_columns=one.target_columns | {"ref_depth_2_rhs": 5},
            z_patched=np.concatenate([one.z_patched, one.z_patched[:, 1:2]], axis=1),
            top=np.concatenate([one.top, one.top[:, 1:2]], axis=1),
        )
        for one in maps_of(success)
    ]
    assert mean_over_pairs(joint).hand_overs() == [("ref_depth_1_rhs", "final", 4)]


# --- peaks ---


@pytest.mark.parametrize("n", [20, 50, 200])
@pytest.mark.parametrize("single", [False, True], ids=["flat", "one peak"])
def test_the_interval_of_a_peak_covers_its_truth(n: int, single: bool) -> None:
    """A flat truth of 0.30 over 30 layers and three targets, and one cell of 0.8 among 0.1. The maximum over all, on
    the pairs that chose it, covers the former in less than 5% of experiments."""
    rng, below_top, covered, naive = np.random.default_rng(n), np.ones(30, bool), [], []
    for _ in range(300):
        truth = np.full((3, 30), 0.1 if single else 0.3)
        truth[1, 9] = 0.8 if single else 0.3
        success = {t: (rng.random((n, 30)) < truth[k]).astype(float) for k, t in enumerate(TARGETS[1:4])}
        best = max(peaks(success, range(30), below_top).values(), key=lambda peak: present(peak.chosen.low))
        rate = present(best.rate)
        assert rate.n == n // 2
        covered.append(present(rate.low) <= truth[TARGETS.index(best.target) - 1, best.layer] <= present(rate.high))
        highest = max(rows.mean(axis=0).max() for rows in success.values())
        naive.append(highest - 1.96 * np.sqrt(highest * (1 - highest) / n) <= 0.3)
    assert np.mean(covered) >= 0.93 - 2 * np.sqrt(0.05 * 0.95 / 300)
    assert single or np.mean(naive) < 0.5


def test_the_peak_is_chosen_on_pairs_of_even_number_and_measured_on_the_others() -> None:
    success = {target: np.zeros((10, 7)) for target in TARGETS}
    success["ref_depth_2_rhs"][::2, 2] = 1  # these choose
    success["query_var"][1::2, 4] = 1
    mean = mean_over_pairs(maps_of(success))
    best = mean.peak()
    assert best is not None
    assert best[:2] == ("ref_depth_2_rhs", 2)
    assert (present(best.rate).estimate, present(best.rate).n, best.chosen.estimate) == (0, 5, 1)
    metrics, _ = mean.to_metrics()
    assert metrics["peak_patch_success_rate"] == 0
    assert (metrics["peak_patch_success_rate_n"], metrics["peak_layer"]) == (5, 2)


def test_of_equal_layers_the_first_is_the_peak() -> None:
    success = {target: np.zeros((10, 7)) for target in TARGETS}
    success["ref_depth_2_rhs"][:, 2:5] = 1
    metrics, _ = mean_over_pairs(maps_of(success)).to_metrics()
    assert metrics["peak_layer/ref_depth_2_rhs"] == metrics["peak_layer"] == 2


def test_one_pair_alone_has_a_layer_and_no_rate() -> None:
    metrics, _ = mean_over_pairs([make_map()]).to_metrics()
    assert metrics["peak_layer/ref_depth_2_rhs"] == 2
    assert "peak_patch_success_rate/ref_depth_2_rhs" not in metrics
    assert "peak_patch_success_rate" not in metrics


def test_where_only_what_holds_by_construction_succeeds_there_is_no_peak() -> None:
    """0.0% beside a map at 100% would be read as the map's."""
    success = drawn(np.random.default_rng(0), rates(0.0, ref_depth_1_rhs=[1.0] * 4, final=[0.0] * 4 + [1.0] * 3), 20)
    for left in (TARGETS, ("ref_depth_1_rhs", "final")):
        metrics, curves = mean_over_pairs(maps_of({target: success[target] for target in left})).to_metrics()
        assert not [name for name in metrics if name.startswith("peak_") and name.endswith("rate")]
        assert "peak_layer" not in metrics
        assert metrics["peak_patch_success_rate/final"] == 1
        assert curves[0]["patch_success_rate_by_layer/ref_depth_1_rhs"] == 1


def with_target(name: str, at: list[int], **changes: Argument) -> CausalMap:
    one = make_map(heads=changes.pop("n_heads", None))
    changes.setdefault("targets", {name: at})
    return replace(one, target_columns=dict.fromkeys(changes["targets"], 0), **changes)


@pytest.mark.parametrize(
    ("name", "at", "changes", "held"),
    [
        ("ref_depth_1_rhs", [2], {}, True),
        ("final", [22], {}, True),
        ("ref_depth_2_rhs", [6], {}, False),
        ("ref_depth_1_line", [0, 1, 2, 3], {}, True),
        ("ref_depth_2_line", [4, 5, 6, 7], {}, False),
        ("ref_depth_1_rhs+ref_depth_2_rhs", [2, 6], {}, True),
        ("ref_depth_2_rhs+final", [6, 22], {}, True),
        ("query_colon", [22], {}, True),  # where it is one token with the space behind it
        ("ref_depth_1_newline", [2], {}, True),  # where a tokenizer merges it with the number
        ("ref_depth_1_newline", [3], {}, False),
        ("position_2", [2], {}, True),
        ("ref_depth_1_rhs", [2], {"direction": "into_counterfactual"}, True),
        ("ref_depth_1_rhs", [2], {"source": "stored"}, True),
        ("ref_depth_1_line", [0, 1, 2, 3], {"method": "imported", "first_difference": 0}, True),
        ("ref_depth_2_rhs", [0], {"method": "imported", "first_difference": 0}, False),
        ("final", [22], {"intervention_type": "attention"}, False),
        ("final", [22], {"intervention_type": "attention", "layer_window": 6}, True),
        ("ref_depth_2_rhs", [6], {"intervention_type": "attention", "layer_window": 6}, False),
        ("final", [22], {"intervention_type": "mlp", "layer_window": 6}, False),
        ("ref_depth_1_rhs", [2], {"intervention_type": "mlp"}, False),
    ],
)
def test_what_holds_by_construction(name: str, at: list[int], changes: dict[str, Argument], held: bool) -> None:
    assert held_by_construction(with_target(name, at, **changes), name) == held


def test_all_heads_of_all_layers_at_the_last_token_hold_by_construction() -> None:
    one = with_target("final", [22], n_heads=4, layer_window=6)
    assert held_by_construction(one, "final", [0, 1, 2, 3])
    assert not held_by_construction(one, "final", [3])
    assert not held_by_construction(replace(one, layer_window=5), "final", [0, 1, 2, 3])


def test_windows_that_reach_the_top_count_in_no_mean() -> None:
    """Of `final` they succeed, of all else fail, in any model: as the top row does."""
    one = make_map()
    rows = {"layers": list(range(6)), "layer_window": 2, "z_patched": one.z_patched[:-1], "top": one.top[:-1]}
    mean = mean_over_pairs([replace(one, **rows)] * 2)
    by_hand = np.mean([[rate.estimate for rate in curve.success[:5]] for curve in mean.curves])
    assert present(mean.overall["success"]).estimate == pytest.approx(by_hand)


# --- shares of the whole effect ---


def cells_of(effects: np.ndarray, wholes: np.ndarray) -> list[CausalMap]:
    """A map a pair: the effect, in logits, at every cell of the second target, and the counterfactual's own."""
    made = []
    for effect, whole in zip(effects, wholes, strict=True):
        [one] = maps_of({target: np.zeros((1, 7)) for target in TARGETS})
        z = one.z_patched.copy()
        z[:, 1, 0] += effect
        counterfactual = one.z_clean + np.array([whole, 0], np.float32)
        made.append(replace(one, z_patched=z, z_counterfactual=counterfactual, min_effect=0.01))
    return made


def test_the_share_is_the_ratio_of_the_sums() -> None:
    rng = np.random.default_rng(0)
    wholes = rng.uniform(2, 12, 30)
    effects = wholes * rng.uniform(0, 1, 30)
    mean = mean_over_pairs(cells_of(effects, wholes))
    share = mean["ref_depth_2_rhs"]["normalized_logit_diff"][3]
    assert present(share).estimate == pytest.approx(effects.sum() / wholes.sum(), abs=1e-6)
    assert present(share).n == 30
    assert present(mean.overall["normalized_logit_diff"]).estimate == pytest.approx(
        effects.sum() / wholes.sum() / 5, abs=1e-6
    )


def test_a_pair_without_a_target_counts_in_no_share() -> None:
    alone, effect = make_map(0), np.array([30, 2], np.float32)
    bare = replace(make_map(1), targets={}, target_columns={}, z_counterfactual=effect)
    both = mean_over_pairs([alone, bare, alone]).overall["normalized_logit_diff"]
    assert present(both).estimate == present(mean_over_pairs([alone, alone]).overall["normalized_logit_diff"]).estimate


def test_one_pair_without_an_effect_of_its_own_does_not_rule_the_mean() -> None:
    """The mean of ratios: 22 and more, for 1.1 logits over 0.05."""
    wholes, effects = np.array([10.0] * 19 + [0.05]), np.array([5.0] * 19 + [21.0])
    adding = MeanOverPairs()
    for one in cells_of(effects, wholes):
        adding.add(one)
    numbers, behind = adding.behind("ref_depth_2_rhs", 3)
    assert behind["normalized_logit_diff"].mean() > 20
    share = present(adding.result()["ref_depth_2_rhs"]["normalized_logit_diff"][3])
    assert share.estimate == pytest.approx(behind["logit_change"].sum() / behind["whole_effect"].sum(), abs=1e-6)
    assert share.estimate < 0.7
    assert numbers == list(range(20))


def test_pairs_whose_effect_is_too_small_or_negative_are_counted() -> None:
    wholes = np.array([10.0] * 17 + [0.001, -0.002, -4.0])
    mean = mean_over_pairs(cells_of(wholes / 2, wholes))
    assert present(mean["ref_depth_2_rhs"]["normalized_logit_diff"][3]).estimate == pytest.approx(0.5, abs=1e-4)
    metrics, _ = mean.to_metrics()
    assert metrics["normalized_logit_diff_too_small"] == pytest.approx(0.1)
    assert metrics["counterfactual_effect_negative"] == pytest.approx(0.05)


def test_a_share_of_what_may_be_nothing_is_null() -> None:
    """A weak model's counterfactuals move their answers up as often as down."""
    rng = np.random.default_rng(0)
    for wholes in (rng.normal(0, 3, 50), np.full(50, 0.001)):
        mean = mean_over_pairs(cells_of(rng.normal(0, 3, 50), wholes))
        assert mean["ref_depth_2_rhs"]["normalized_logit_diff"] == [None] * 7
        assert mean.overall["normalized_logit_diff"] is None
        assert "normalized_logit_diff" not in mean.to_metrics()[0]


def whole_effects(rng: np.random.Generator, kind: str, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Effects, whole effects, and the true share."""
    if kind == "weak":
        whole = rng.normal(2, 2, n)  # of both signs
        return 0.5 * whole + rng.normal(0, 0.5, n), whole, 0.5
    whole = rng.gamma(4 if kind != "skewed" else 1, 2.5, n)
    if kind == "spread":
        return whole * rng.normal(0.5, 0.2, n), whole, 0.5
    return whole * (rng.random(n) < 0.3), whole, 0.3  # all or nothing


@pytest.mark.parametrize("kind", ["spread", "all or nothing", "skewed", "weak"])
@pytest.mark.parametrize("n", [10, 20, 50, 200])
def test_the_interval_of_a_share_covers_the_truth(n: int, kind: str) -> None:
    """A percentile bootstrap of the ratio covers 0.86 to 0.93 at n = 10."""
    rng, covered = np.random.default_rng(n), []
    for _ in range(1000):
        effects, wholes, truth = whole_effects(rng, kind, n)
        [share] = ratio_of_means(effects[:, None], wholes[:, None], 1e-3)
        if share is not None and share.low is not None and share.high is not None:
            covered.append(share.low <= truth <= share.high)
    assert len(covered) > 750
    assert 0.92 <= np.mean(covered) <= 0.985


def test_a_smaller_sample_of_one_pair_or_of_equal_shares_has_no_ends() -> None:
    one = np.array([[2.0, 4.0]])
    assert [
        (present(s).estimate, present(s).low, present(s).n) for s in ratio_of_means(one, np.array([[8.0]]), 0.01)
    ] == [
        (0.25, None, 1),
        (0.5, None, 1),
    ]
    wholes = np.array([[4.0], [8.0], [16.0]])
    [zero, whole] = map(present, ratio_of_means(wholes * [0, 1], wholes, 0.01))
    assert (zero.estimate, zero.low, whole.estimate, whole.low) == (
        0,
        None,
        1,
        None,
    )
