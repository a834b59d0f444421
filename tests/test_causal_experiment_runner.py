"""Causal runs in a real store: what the tracking contract promises is there, and nothing is left half done."""

import math
from itertools import islice
from unittest import mock

import numpy as np
import pytest

from debug import causal_experiment_runner, causal_tracing, models, tracking
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_experiment_runner.writer import CellWriter
from debug.causal_tracing import REFERENCE, PairResult, run_causal_tracing_experiment
from debug.counterfactual import make_pair
from debug.engine import COMPONENTS, SelfCheckError, plain_hooks, self_checks
from debug.errors import InputError
from debug.generators import make_variable_binding_program, search
from debug.prompts import few_shot
from debug.rerun import rerun
from present import present


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    config = CausalConfig(models=["tiny"], hops=[2, 3], seq_lens=[5], num_seqs=12, name="causal", targets="roles")
    return CausalExperimentRunner(uri).run(config), uri


def test_a_study_has_a_cell_for_each_hops_and_length(study):
    result, uri = study
    parent = tracking.load_run(result.run_id, uri)
    assert (parent.status, parent.kind, parent.role) == ("FINISHED", "causal_tracing", "study")
    assert sorted(child.params["hops"] for child in parent.children) == ["2", "3"]
    for child in parent.children:
        assert (child.status, child.role) == ("FINISHED", "cell")
        assert child.name == f"tiny · {child.params['hops']} hops · 5 lines · residual_stream"
        assert {"model", "hops", "seq_len", "seed", "num_seqs", "generator", "prompt_template", "backend", "dtype"} | {
            "device",
            "intervention_type",
            "positions",
            "layers",
            "require_correct",
            "exclude_shallow",
        } <= child.params.keys()


def test_metrics_are_those_of_the_maps(study):
    result, _ = study
    run = result.logged(1)
    n = len(run.maps)
    assert run.metrics["pairs_used"] == n == len(run.pairs) == 12
    accuracy = result.cells[1].accuracy
    assert accuracy is not None
    assert (run.metrics["accuracy_n"], run.metrics["patch_success_rate_n"]) == (accuracy.n, n)
    rates = [np.mean([m.at_target(t)[:-1] for t in m.targets]) for m in run.maps]
    assert run.metrics["patch_success_rate"] == pytest.approx(np.mean(rates))
    moved = [np.sum([m.at_target(t, "logit_change")[:-1] for t in m.targets]) for m in run.maps]
    whole = [(m.z_counterfactual[0] - m.z_clean[0]) * len(m.targets) * m.n_layers for m in run.maps]
    assert run.metrics["normalized_logit_diff"] == pytest.approx(np.sum(moved) / np.sum(whole))
    assert run.metrics["normalized_logit_diff_too_small"] == run.metrics["counterfactual_effect_negative"] == 0
    by_layer = run.curves("patch_success_rate_by_layer/final")
    assert set(by_layer["metric"]) == {"patch_success_rate_by_layer/final"}, "no charts of its intervals"
    assert not [name for name in run.metrics if name.startswith("agreement_by_layer")], "success says all of it"
    assert len(run.metrics) < 120
    name = "patch_success_rate_by_layer/final"
    ends = run.summary["by_layer"]["4"]
    assert ends[f"{name}_ci_low"] <= ends[name] <= ends[f"{name}_ci_high"]
    assert by_layer["step"].to_list() == list(range(models.load("tiny").n_layers + 1))
    assert by_layer["value"].to_list() == pytest.approx(
        np.mean([m.at_target("final") for m in run.maps], axis=0).tolist()
    )
    for name in ("accuracy", "accuracy_counterfactual", "patch_success_rate", "peak_patch_success_rate"):
        assert run.metrics[f"{name}_ci_low"] <= run.metrics[name] <= run.metrics[f"{name}_ci_high"]
    assert run.metrics["check_identity_max_abs"] <= 1e-4
    assert run.metrics["check_full_patch_max_abs"] <= 1e-4
    assert run.metrics["check_full_patch_without"] > 1e-4
    assert all(math.isfinite(value) for value in run.metrics.values())


def test_pairs_and_maps_that_are_read_back_are_those_that_ran(study):
    result, _ = study
    run = result.logged(1)
    again = run_causal_tracing_experiment("tiny", run.pairs, targets="roles")
    for logged, fresh in zip(run.maps, again.maps, strict=True):
        assert (logged.tokens, logged.targets, logged.pair) == (fresh.tokens, fresh.targets, fresh.pair)
        np.testing.assert_allclose(logged.z_patched, fresh.z_patched, atol=1e-4)
        np.testing.assert_array_equal(logged.success, fresh.success)
    for pair in run.pairs:
        assert make_pair(make_variable_binding_program(5, np.random.RandomState(pair.seed))[0], pair.seed) == pair


def test_activations_are_those_of_the_model(study):
    result, _ = study
    run = result.logged(1)
    positions = run.activations["0/positions"]
    recorded = run.activations["0/clean/residual_stream"]
    assert recorded.shape == (7, len(positions), models.load("tiny").config.hidden_size)
    root = list(positions).index(run.maps[0].targets["ref_depth_1_rhs"][0])
    assert np.abs(recorded[0, root] - run.activations["0/counterfactual/residual_stream"][0, root]).max() > 0


def test_pictures_and_summary_are_artifacts(study):
    result, _ = study
    artifacts = result.logged(0).artifacts()
    for stem in ("causal_map_first_pair", "causal_map_mean", "curves_by_layer"):
        assert {f"{stem}.html", f"{stem}.png"} <= set(artifacts)
    assert {"summary.json", "programs.json", "samples.jsonl", "causal_maps/00000.safetensors"} <= set(artifacts)
    run = result.logged(0)
    assert run.samples.height == run.metrics["pairs_used"] + run.metrics["pairs_skipped"]


@pytest.mark.parametrize("component", sorted(set(COMPONENTS) - {"residual_stream"}))
def test_every_component_is_logged(uri, component):
    pairs = [make_pair(p.program, p.seed) for p in islice(search(make_variable_binding_program, 5, 0, 3), 4)]
    result = CausalExperimentRunner(uri).run_intervention_experiment("tiny", pairs, intervention_type=component)
    run = result.logged()
    assert run.params["intervention_type"] == component
    assert run.metrics["check_full_patch_without"] > 1 > 1e-4 >= run.metrics["check_full_patch_max_abs"]
    assert len(run.maps) == 4


KINDS = {
    "attention_knockout": ({"intervention_type": "attention_knockout"}, "answer_kept_rate/chain_following_random"),
    "attribution": ({"method": "attribution"}, "rank_agreement"),
    "causal_tracing, zero": ({"source": "zero", "intervention_type": "mlp"}, "answer_logit_drop"),
    "causal_tracing, resample": ({"source": "resample"}, "answer_kept_rate"),
    "causal_tracing, reverse": ({"direction": "into_counterfactual"}, "control_success_rate"),
    "causal_tracing, window": ({"layer_window": 2, "intervention_type": "attention"}, "control_success_rate"),
}


@pytest.mark.parametrize("case", KINDS)
def test_every_kind_logs_its_own_metrics_and_params(uri, case):
    plan, metric = KINDS[case]
    config = CausalConfig(**plan, models=["tiny"], num_seqs=4, seq_lens=[8])
    run = CausalExperimentRunner(uri).run(config).logged()
    assert run.kind == case.partition(",")[0]
    assert run.params.items() >= {name: str(value) for name, value in plan.items()}.items()
    assert metric in run.metrics
    assert f"{metric}_ci_low" in run.metrics
    moved = plan.get("source") is None and case not in ("attention_knockout", "attribution")
    assert ("patch_success_rate" in run.metrics) == moved
    assert "normalized_logit_diff" in run.metrics or not moved
    assert run.metrics["check_identity_max_abs"] <= 1e-4 < run.metrics["check_full_patch_without"]
    if case == "attention_knockout":
        kept = [one.at_target("chain_following", "answer_kept").mean() for one in run.maps]
        assert run.metrics["answer_kept_rate/chain_following"] == pytest.approx(np.mean(kept))
    if case == "attribution":
        assert run.metrics["rank_agreement"] > 0.3
        assert run.metrics["rank_agreement_where_it_matters"] < 1
        assert 0 < run.metrics["attribution_slope"] < 1.5
        assert 0 <= run.metrics["attribution_missed_ci_low"] <= run.metrics["attribution_missed"] < 1
        assert all(np.isnan(one.grid("logit_change")).sum() == 0 for one in run.maps)


def test_joint_targets_and_own_hypotheses_are_logged_by_names_that_mlflow_has(uri):
    programs, runner = ["a = 1\nb = a\nc = b\n#c: ", "z = 4\ny = z\nx = y\n#x: "], CausalExperimentRunner(uri)
    joint = runner.run_intervention_experiment(
        "tiny", programs, positions=["ref_depth_1_rhs+final", "ref_depth_2_line"]
    )
    assert joint.logged().metrics["peak_patch_success_rate/ref_depth_1_rhs_and_final"] == 1
    assert (
        "peak_patch_success_rate" not in joint.logged().metrics
        or present(present(joint.cells[0].mean).peak())[0] == "ref_depth_2_line"
    )
    spare = "i = 8\nh = 3\nx = i\nw = x\n#w: "  # the others are all chain: no edge is left to cut at random
    cut = runner.run_intervention_experiment(
        "tiny", [*programs, spare], "attention_knockout", positions=["final->ref_depth_1_rhs"]
    )
    assert "answer_kept_rate/final_to_ref_depth_1_rhs_random" in cut.logged().metrics
    n = {curve.target: curve.n for curve in present(cut.cells[0].mean).curves}
    assert n == {"final->ref_depth_1_rhs": 3, "final->ref_depth_1_rhs_random": 1}
    assert present(cut.cells[0].mean).against_random["final->ref_depth_1_rhs"][0].difference.n == 1


def test_skipped_pairs_are_recorded_with_their_reason(uri):
    shallow, deep = "b = 2\na = 1\nc = b\n#c: ", "z = 1\nx = z\ns = 0\na = 4\nd = 5\n#a: "
    runner = CausalExperimentRunner(uri)
    result = runner.run_intervention_experiment("tiny", [shallow, "no program", deep], exclude_shallow=True)
    run = result.logged()
    assert (run.metrics["pairs_used"], run.metrics["pairs_skipped"]) == (1, 2)
    assert [pair.original.text for pair in run.pairs] == [deep]
    first, second, third = run.samples["error"].to_list()
    assert "shallow: the root value is assigned on line 1" in first
    assert "expected a query line" in second
    assert third is None


def test_accuracies_are_those_of_the_pairs_asked_for_original_and_counterfactual():
    """Pairs that replace skipped ones are drawn until enough are used, and would bias the rate."""
    cell = causal_experiment_runner.CellResult("tiny", "cell")
    writer = CellWriter(mock.Mock(), cell, {"num_seqs": 4, "generator": "given"})
    for correct in [(True, False), (True, False), (True, True), (False, False), (False, True), (False, True)]:
        writer.add(PairResult(0, None, "shallow", correct))
    writer.close(finished=True)
    assert cell.accuracy is not None
    assert cell.accuracy_counterfactual is not None
    assert (cell.accuracy.estimate, cell.accuracy.n) == (3 / 4, 4)
    assert (cell.accuracy_counterfactual.estimate, cell.accuracy_counterfactual.n) == (1 / 4, 4)


def test_a_filter_that_leaves_nothing_fails_loudly(uri):
    runner = CausalExperimentRunner(uri)
    with pytest.raises(ValueError, match=r"no pair .* was left to patch: .* shallow"):
        runner.run_intervention_experiment("tiny", ["a = 1\n#a: ", "b = 2\n#b: "], exclude_shallow=True)
    assert_nothing_runs(uri, "FAILED")


@pytest.mark.parametrize("source", ["mean", "resample"])
def test_all_pairs_asked_for_find_partners_in_one_logged_set(uri, source):
    """Also those that replace filtered ones; and a repetition draws on the same set, bit for bit."""
    config = CausalConfig(
        models=["tiny"],
        hops=[1],
        seq_lens=[6],
        num_seqs=12,
        source=source,
        positions="targets",
        exclude_shallow=True,
    )
    cell = CausalExperimentRunner(uri).run(config).cells[0]
    assert (cell.pairs_used, cell.skipped.total() > 0) == (12, True)
    logged = tracking.load_run(cell.run_id, uri)
    assert 12 <= len(logged.reference) == logged.metrics["reference_size"] <= REFERENCE
    assert not any(reason.startswith("source") for reason in cell.skipped)
    verdict = rerun(logged)[0].verdict
    assert present(verdict).outcome == "identical", present(verdict).findings


def test_a_failed_self_check_fails_the_run_and_keeps_what_it_measured(uri, monkeypatch):
    rounding = self_checks.rounding
    monkeypatch.setattr(plain_hooks, "rounding", lambda *given: (1e-12, rounding(*given)[1]))
    with pytest.raises(SelfCheckError):
        CausalExperimentRunner(uri).run_intervention_experiment("tiny", ["a = 1\nb = a\n#b: "])
    assert_nothing_runs(uri, "FAILED")
    runs = tracking.find_runs(role="cell", tracking_uri=uri)
    assert runs["metrics.check_identity_max_abs"][0] > 1e-12 == runs["metrics.check_tolerance"][0]
    assert runs["metrics.check_localized_max_abs"][0] > 1e-12
    assert 0 <= runs["metrics.check_read_back_max_rel"][0] < 3e-5


def test_ctrl_c_keeps_what_is_done(uri, monkeypatch):
    trace_pairs = causal_tracing.trace_pairs

    def interrupted(*arguments):
        for number, result in enumerate(trace_pairs(*arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr("debug.causal_experiment_runner.runner.trace_pairs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        CausalExperimentRunner(uri).run(CausalConfig(models=["tiny"], num_seqs=10))
    assert_nothing_runs(uri, "KILLED")
    cell = tracking.load_run(tracking.find_runs(role="cell", tracking_uri=uri)["run_id"][0], uri)
    assert cell.metrics["pairs_used"] == len(cell.maps) == len(cell.pairs) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["./nowhere"]}, "there is none at"),
        ({"models": []}, r"models is \[\]"),
        ({"models": "tiny"}, "models is 'tiny'; expected a list"),
        ({"hops": []}, r"hops is \[\]"),
        ({"generator": "range", "hops": [2]}, "takes no num_hops"),
        ({"seq_lens": [0]}, "seq_len is 0"),
        ({"hops": [6], "seq_lens": [5]}, "1 to 5 hops"),
        ({"num_seqs": 0}, "num_seqs is 0"),
        ({"positions": ["nonsense", "final"]}, "'nonsense' is no target; expected 'all', 'targets', 'roles' "),
        ({"generator": "boxes", "hops": [2]}, "generator 'boxes' takes no num_hops"),
        ({"pairs": "a.jsonl", "program": "a.py"}, "pairs and program are given"),
        ({"pairs": "none.jsonl"}, "none.jsonl cannot be read: No such file"),
        ({"pairs": "none.jsonl", "hops": [2]}, r"hops is \[2\], but pairs are given"),
        ({"program": "none.py"}, "none.py cannot be read: No such file"),
        ({"generator": "nonsense"}, "unknown generator 'nonsense'; there are: variable_binding"),
        ({"prompt_template": "no place"}, "{code}"),
        ({"intervention_type": "nonsense"}, "expected one of"),
        ({"layers": [99]}, "out of range"),
        ({"positions": ["somewhere"]}, "no target"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing_running(uri, change, message):
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        CausalExperimentRunner(uri).run(CausalConfig(**({"models": ["tiny"], "num_seqs": 2} | change)))
    assert_nothing_runs(uri, None)


def assert_nothing_runs(uri, status):
    runs = tracking.find_runs(tracking_uri=uri)
    assert "RUNNING" not in runs["status"].to_list()
    if status is not None:
        assert set(runs["status"]) == {status}


def test_few_shot_examples_stand_above_every_program(uri):
    """The same for original and counterfactual, and for a repetition; a file of pairs has none."""
    config = CausalConfig(
        models=["tiny"], few_shot=2, seq_lens=[3], hops=[2], num_seqs=2, positions="targets", require_correct=False
    )
    [cell] = CausalExperimentRunner(uri).run(config).cells
    run = tracking.load_run(cell.run_id, uri)
    assert (run.params["few_shot"], run.params["prompt_template"]) == ("2", "VARIABLE_BINDING")
    assert "2-shot" in run.name
    template = few_shot("variable_binding", 3, 2)
    for prompt, pair in zip(run.samples["prompt"], run.pairs, strict=True):
        assert prompt == template.replace("{code}", pair.original.text)
    [again] = rerun(run)
    assert again.verdict is not None
    assert again.verdict.outcome == "identical"
    other = tracking.load_run(again.run_id, uri)
    assert (other.params["few_shot"], other.params["prompt_template"]) == ("2", "VARIABLE_BINDING")
    [without] = rerun(run, prompt_template="VARIABLE_BINDING")
    assert "few_shot" not in tracking.load_run(without.run_id, uri).params
    with pytest.raises(InputError, match="few_shot is 2, but pairs are given"):
        CausalConfig(models=["tiny"], pairs="pairs.jsonl", few_shot=2)
