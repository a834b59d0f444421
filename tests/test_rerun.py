"""Logged runs repeated: from a moved store, in another precision, with another question; and what the verdict says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from debug import ExperimentRunner, models, prompts, quick_experiment, tracking
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_map import CausalMap, load_maps, save_maps
from debug.causal_tracing import run_causal_tracing_experiment
from debug.programs import ProgramPair
from debug.rerun import Rerun, RerunError, compare_maps, rerun
from debug.statistics import wilson
from debug.tracking import LoggedRun, Store, TrackingError, load_run
from synthetic import make_map


@pytest.fixture(scope="module")
def moved(tmp_path_factory, empty_database) -> tuple[Store, dict[str, str]]:
    """A causal run with skipped pairs and an accuracy run; their store copied elsewhere, the original deleted."""
    folder = tmp_path_factory.mktemp("stores")
    (folder / "cluster").mkdir()
    shutil.copy(empty_database, folder / "cluster" / "mlflow.db")
    uri = f"sqlite:///{folder}/cluster/mlflow.db"
    config = CausalConfig(models=["tiny"], num_seqs=4, hops=(3,), exclude_shallow=True, seq_lens=(6,))
    causal = CausalExperimentRunner(uri).run(config)
    assert causal.cells[0].skipped
    accuracy = ExperimentRunner(uri).run(
        quick_experiment("acc", prompts.VARIABLE_BINDING, "variable_binding", ["tiny"], num_seqs=12, seq_lens=[4, 5])
    )
    shutil.copytree(folder / "cluster", folder / "laptop")
    shutil.rmtree(folder / "cluster")
    ids = {"causal": causal.cells[0].run_id, "study": causal.run_id, "accuracy": accuracy.run_id}
    return Store(f"sqlite:///{folder}/laptop/mlflow.db"), ids


def repeated(moved, which: str = "causal", **changes) -> tuple[Rerun, LoggedRun]:
    store, ids = moved
    (result,) = rerun(ids[which], tracking_uri=store.uri, **changes)
    return result, store.load_run(result.run_id)


def test_a_run_of_a_moved_store_is_repeated_bit_for_bit_and_the_verdict_says_so(moved):
    result, new = repeated(moved)
    assert result.verdict is not None
    assert result.verdict.outcome == "identical"
    assert result.verdict.environment == {}
    assert "nothing differs" in str(result)
    assert new.tags["debug.rerun_of"] == result.of
    assert new.tags["debug.rerun_verdict"].startswith("identical")
    old = moved[0].load_run(result.of)
    for one, other in zip(old.maps, new.maps, strict=True):
        np.testing.assert_array_equal(one.z_patched, other.z_patched)
    same = {"accuracy", "patch_success_rate", "patch_success_rate_ci_low", "pairs_used", "pairs_skipped"}
    assert {name: old.metrics[name] for name in same} == {name: new.metrics[name] for name in same}
    assert old.params == new.params
    assert old.summary["seeds_passed_over"] == new.summary["seeds_passed_over"]


def test_a_study_is_repeated_cell_by_cell_and_so_are_accuracy_runs(moved):
    store, ids = moved
    assert [each.of for each in rerun(ids["study"], tracking_uri=store.uri)] == [ids["causal"]]
    results = rerun(ids["accuracy"], tracking_uri=store.uri)
    assert [each.verdict and each.verdict.outcome for each in results] == ["identical", "identical"]
    old, new = (store.load_run(run_id) for run_id in (results[0].of, results[0].run_id))
    assert list(old.sample_records()) == list(new.sample_records())
    assert old.params == new.params


def test_another_precision_is_no_change_of_the_question_and_the_verdict_names_the_cell(moved):
    result, new = repeated(moved, dtype="bfloat16")
    assert result.verdict is not None
    assert result.verdict.outcome in ("within tolerance", "different")
    assert "pair " in result.verdict.findings[0]
    assert "layer " in result.verdict.findings[0]
    assert result.verdict.environment == {"dtype": ("float32", "bfloat16")}
    assert new.params["dtype"] == "bfloat16"


def test_another_component_on_logged_programs_is_what_the_engine_gives_for_them(moved):
    result, new = repeated(moved, intervention_type="mlp", layers=[0, 2], positions="targets")
    assert result.verdict is None
    pairs = tracking.load_programs(result.of, moved[0].uri)
    again = run_causal_tracing_experiment("tiny", pairs, "mlp", [0, 2], "targets")
    for one, other in zip(new.maps, again.maps, strict=True):
        np.testing.assert_array_equal(one.z_patched, other.z_patched)
    assert json.loads(new.tags["debug.rerun_changes"])["layers"] == [0, 2]


def test_a_repetition_may_be_limited_to_some_pairs(moved):
    result, new = repeated(moved, pairs=[2, 0])
    old = moved[0].load_run(result.of)
    assert new.pairs == [old.pairs[2], old.pairs[0]]
    with pytest.raises(RerunError, match=r"pairs \[9\] are out of range"):
        repeated(moved, pairs=[9])


def test_what_cannot_be_changed_or_repeated_is_a_sentence(moved):
    store, _ = moved
    with pytest.raises(RerunError, match=r"colour cannot be changed; .* has: intervention_type, layers"):
        repeated(moved, colour="red")
    with store.start("e", "other", kind="training") as run:
        pass
    with pytest.raises(RerunError, match="kind 'training'"):
        rerun(run.run_id, tracking_uri=store.uri)
    with store.start("e", "empty", kind="causal_tracing") as study, study.cell("c", {"model": "tiny"}) as cell:
        pass
    with pytest.raises(TrackingError, match=r"config\.json"):
        rerun(cell.run_id, tracking_uri=store.uri)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"plan": 3}, "field 'plan' is 3"),
        ({"plan": {}, "wanted": True}, "field 'wanted' is True"),
        ({"plan": {}, "wanted": 1, "batch_tokens": 0}, "field 'batch_tokens' is 0"),
        ({"plan": {"layers": 7}, "wanted": 1}, "layers is 7; expected layer numbers, or None for all"),
        ({"plan": {"from_the_future": 7}, "wanted": 1}, "made with from_the_future, which this version"),
    ],
)
def test_a_broken_configuration_is_named(moved, config, said):
    store, _ = moved
    with store.start("e", "r", kind="causal_tracing") as study, study.cell("c", {"model": "tiny"}) as cell:
        cell.log_json("config.json", config)
        cell.append_jsonl("samples.jsonl", [])
    with pytest.raises((TrackingError, RerunError), match=said):
        rerun(cell.run_id, tracking_uri=store.uri)


def copied(moved, which: str, tmp_path: Path) -> tuple[Store, LoggedRun]:
    shutil.copytree(Path(moved[0].uri.removeprefix("sqlite:///")).parent, tmp_path / "copy")
    store = Store(f"sqlite:///{tmp_path}/copy/mlflow.db")
    return store, store.load_run(moved[1][which])


def test_a_log_that_says_something_else_is_different_with_the_cell(moved, tmp_path):
    store, run = copied(moved, "causal", tmp_path)
    path = run.artifact("causal_maps/00000.safetensors")
    maps = load_maps(path)
    maps[1].z_patched[2, 5, 0] += 1
    maps[1].top[3, 4] = maps[1].answer_tokens[0]
    save_maps(path, maps)
    (result,) = rerun(run.run_id, tracking_uri=store.uri)
    assert result.verdict is not None
    assert result.verdict.outcome == "different"
    token = maps[1].tokens[5]
    assert f"1 (pair 1, layer 2, token 5 {token!r}); tolerance 0.0001" in result.verdict.findings[0]
    assert "success differs in 1 of" in result.verdict.findings[1]
    assert "layer 3, token 4" in result.verdict.findings[1]


def test_an_outcome_that_flips_is_different_however_little_the_logits_moved():
    """Of a cell, of the same-answer control, and of the runs that nothing was patched in."""
    one = replace(make_map(), control_top=np.full((7, 4), 18))

    def compared(other: CausalMap) -> tuple[str, list[str]]:
        runs = [SimpleNamespace(pairs=[], maps=[each], params={"dtype": "float32"}) for each in (one, other)]
        return compare_maps(*cast(Any, runs))  # in the place of logged runs

    assert compared(one)[0] == "identical"
    moved = one.z_patched + np.float32(2e-5)
    assert compared(replace(one, z_patched=moved))[0] == "within tolerance"
    top, control = one.top.copy(), np.full((7, 4), 18)
    top[3, 4], control[2, 1] = 17, 17
    for change, said in [
        ({"top": top}, "success differs in 1 of 161 squares"),
        ({"control_top": control}, "success of the same-answer control differs in 1 squares"),
        ({"top_tokens": (17, 17)}, "1 answers of clean or counterfactual forward passes"),
    ]:
        outcome, findings = compared(replace(one, z_patched=moved, **change))
        assert outcome == "different"
        assert findings[1].startswith(said)


def test_a_completion_that_says_something_else_is_different(moved, tmp_path):
    store, study = copied(moved, "accuracy", tmp_path)
    run = study.children[0]
    path = run.artifact("samples.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[3]["raw_output"] += "?"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (result,) = rerun(run.run_id, tracking_uri=store.uri)
    assert result.verdict is not None
    assert result.verdict.outcome == "different"
    assert "1 of 12 completions differ, 0 of them in the parsed answer; the first is of sample 3" in str(result.verdict)


def test_other_weights_under_the_name_are_in_the_verdict(moved, tmp_path):
    store, run = copied(moved, "causal", tmp_path)
    store.set_tags(run.run_id, {"debug.weights_digest": "0" * 64, "debug.threads": "77"})
    (result,) = rerun(run.run_id, tracking_uri=store.uri)
    assert result.verdict is not None
    assert result.verdict.environment.keys() == {"weights_digest", "threads"}
    assert "weights_digest: was 000000" in str(result)


def test_a_run_of_a_model_in_a_folder_is_repeated_from_there_and_from_elsewhere(uri, tmp_path):
    folder = tmp_path / "my model"
    shutil.copytree(models.CHECKPOINTS / "tiny", folder)
    pair = "i = 8\nx = i\n#x: "
    logged = CausalExperimentRunner(uri).run_intervention_experiment(str(folder), [pair], layers=[1]).logged()
    (result,) = rerun(logged)
    assert result.verdict is not None
    assert result.verdict.outcome == "identical"
    folder.rename(tmp_path / "elsewhere")
    (result,) = rerun(logged, model=str(tmp_path / "elsewhere"))  # the same weights: no change
    assert result.verdict is not None
    assert result.verdict.outcome == "identical"


def test_pairs_of_a_run_before_cells_had_their_own_configuration_are_repeated_too(moved, tmp_path):
    store, run = copied(moved, "causal", tmp_path)
    run.artifact("config.json").unlink()
    (result,) = rerun(run.run_id, tracking_uri=store.uri)
    assert result.verdict is not None
    assert result.verdict.outcome == "identical"


def test_programs_of_any_run_go_straight_into_an_intervention(moved):
    store, ids = moved
    causal, accuracy = (tracking.load_programs(ids[which], store.uri) for which in ("study", "accuracy"))
    assert len(causal) == 4
    assert len(accuracy) == 24
    assert {type(pair) for pair in [*causal, *accuracy]} == {ProgramPair}
    maps = run_causal_tracing_experiment("tiny", [accuracy[0]], positions=["final"], intervention_layers=[6]).maps
    assert len(maps) == 1


def test_a_run_says_which_files_code_and_machine_made_it(moved):
    store, ids = moved
    run = load_run(ids["causal"][:10], store.uri)
    known = {name for name, value in run.environment.items() if value is not None}
    assert {"dtype", "device", "weights_digest", "tokenizer_digest", "threads", "version of torch"} <= known
    assert run.config["plan"]["exclude_shallow"] is True
    (dataset,) = run.datasets
    assert dataset["name"] == "variable_binding pairs"
    assert json.loads(dataset["source"]) == {
        "generator": "variable_binding", "seed": 0, "hops": 3, "seq_len": 6, "artifact": "programs.json",
    }  # fmt: skip
    accuracy = store.load_run(ids["accuracy"]).children[0]
    assert accuracy.tags["debug.weights_digest"] == run.tags["debug.weights_digest"]
    assert accuracy.datasets[0]["digest"] != dataset["digest"]


@pytest.fixture
def asked_by_logits(uri) -> LoggedRun:
    """An accuracy run with everything that its configuration and its runner may say, one cell."""
    config = quick_experiment(
        *("logits", prompts.MINIMAL, "variable_binding", ["tiny"], 9, [3]),
        hops=[2],
        few_shot=2,
        scoring="logits",
        seed=5,
    )
    result = ExperimentRunner(uri, batch_size=4, backend="transformers").run(config)
    return Store(uri).load_run(result.summary["cells"][0]["run_id"])


def test_an_accuracy_run_is_repeated_with_its_examples_its_scoring_and_its_batches(asked_by_logits):
    old = asked_by_logits
    (result,) = rerun(old)
    assert result.verdict is not None
    assert (result.verdict.outcome, result.verdict.environment) == ("identical", {})
    new = old.store.load_run(result.run_id)
    assert old.params == new.params
    assert old.params["few_shot"] == "2"
    assert list(old.sample_records()) == list(new.sample_records())  # answer_probability and answer_rank too
    here = {"dtype": "float32", "device": old.params["device"]}  # named now, this machine's default then
    assert old.config | here == new.config
    assert (new.config["scoring"], new.config["batch_size"], new.config["quantization"]) == ("logits", 4, None)


def test_probabilities_are_compared_where_there_is_nothing_else(asked_by_logits):
    old = asked_by_logits
    path = old.artifact("samples.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for factor, outcome in ((1 - 1e-6, "within tolerance"), (0.5, "different")):
        changed = [record | {"answer_probability": record["answer_probability"] * factor} for record in records]
        path.write_text("".join(f"{json.dumps(record)}\n" for record in changed))
        (result,) = rerun(old)
        assert result.verdict is not None
        assert result.verdict.outcome == outcome
        assert "largest difference of a right answer's log probability" in result.verdict.findings[1]
    path.write_text("".join(f"{json.dumps(record | {'answer_rank': 7})}\n" for record in records))
    (result,) = rerun(old)
    assert result.verdict is not None
    assert result.verdict.outcome == "different"
    assert "read otherwise, first of sample 0" in str(result)


def test_how_a_run_was_computed_may_be_changed_and_the_verdict_stays(asked_by_logits):
    (result,) = rerun(asked_by_logits, batch_size=2, backend="transformers")
    assert result.verdict is not None
    assert result.verdict.outcome in ("identical", "within tolerance")


@pytest.mark.parametrize(
    ("logged", "error", "said"),
    [
        ({"batch_size": 0}, TrackingError, "field 'batch_size' is 0"),
        ({"backend": "magic"}, TrackingError, "field 'backend' is 'magic'"),
        ({"quantization": "2bit"}, TrackingError, "field 'quantization' is '2bit'"),
        ({"engine_args": []}, TrackingError, "field 'engine_args' is"),
        (
            {"backend": "vllm", "engine_args": {"trust_remote_code": True, "seed": 1}},
            RerunError,
            "made with trust_remote_code among engine_args, which is not taken from a log",
        ),
    ],
)
def test_a_log_does_not_choose_what_runs_a_model_freely(asked_by_logits, logged, error, said):
    old = asked_by_logits
    path = old.artifact("config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | logged))
    with pytest.raises(error, match=said):
        rerun(old)


def test_samples_whose_generator_failed_are_no_programs(uri):
    def make_sometimes(seq_len, rng):
        if rng.randint(2):
            raise RuntimeError("no idea")
        return "a = 1\n#a: ", 1

    config = quick_experiment("some", "{code}", make_sometimes, ["tiny"], num_seqs=8, seq_lens=[1])
    result = ExperimentRunner(uri).run(config)
    [cell] = result.summary["cells"]
    assert 0 < cell["errors"] < 8
    assert len(tracking.load_programs(result.run_id, uri)) == 8 - cell["errors"]
    [repeated] = rerun(result.run_id, tracking_uri=uri)
    assert repeated.verdict is not None
    assert repeated.verdict.outcome == "identical"


def test_functions_that_are_not_this_projects_are_given_again(uri):
    def make_mine(seq_len, rng):
        return f"a = {rng.randint(10)}\n#a: ", 1

    def parse_mine(completion):
        return 1

    config = quick_experiment("own", "{code}", make_mine, ["tiny"], 4, [1], answer_parser=parse_mine, few_shot=2)
    run_id = ExperimentRunner(uri).run(config).run_id
    with pytest.raises(RerunError, match="cannot be repeated so: unknown answer parser 'parse_mine'"):
        rerun(run_id, tracking_uri=uri, program_generator=make_mine)
    with pytest.raises(RerunError, match="its solved examples need that function again; give it as program_generator"):
        rerun(run_id, tracking_uri=uri, answer_parser=parse_mine)
    [repeated] = rerun(run_id, tracking_uri=uri, program_generator=make_mine, answer_parser=parse_mine)
    assert repeated.verdict is not None
    assert repeated.verdict.outcome == "identical"


def test_a_rate_before_and_after_has_its_own_n():
    from debug.rerun import _shown

    known = wilson(4, 10).metrics("accuracy") | {"accuracy_n": 10, "pairs_used": 3}
    assert _shown({name: value for name, value in known.items() if value is not None}, "accuracy") == (
        "0.4 [0.168, 0.687] (n=10)"
    )


def test_a_rule_in_the_place_of_a_model_is_repeated(uri):
    """It has no folder: an empty path is not the working directory."""
    config = quick_experiment(
        "rule", prompts.VARIABLE_BINDING, "variable_binding", ["heuristic:any-number"], num_seqs=3
    )
    made = ExperimentRunner(uri).run(config)
    (result,) = rerun(made.summary["cells"][0]["run_id"], tracking_uri=uri)
    assert result.verdict is not None
    assert result.verdict.outcome == "identical"
