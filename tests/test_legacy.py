"""Result folders of the older format, made by the tests themselves; the real ones are read where they are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from debug.kinds import Json
from debug.legacy import Imported, LegacyError, import_results
from debug.tracking import LoggedRun, Store, load_programs

REAL = Path(__file__).parents[2] / "shared" / "legacy_results"
ORIGINAL, COUNTERFACTUAL = "a = 8\nb = a\n#b: ", "a = 6\nb = a\n#b: "
LABELS = ["a", "Ġ=", "Ġ", "8", "Ċ", "b", "Ġ=", "Ġa", "Ċ", "#", "b", ":", "Ġ"]
ROW: dict[str, Json] = {
    "intervention_type": "residual_stream",
    "layer_idx": 0,
    "head_idx": None,
    "target_token_pos": 0,
    "logit_difference": 0.0,
    "normalized_logit_difference": 0.0,
    "success_rate": 0.0,
    "original_top_token": 23,
    "intervened_top_token": 23,
    "program_id": 0,
    "original_program": ORIGINAL,
    "counterfactual_program": COUNTERFACTUAL,
    "token_labels": LABELS,
    "target_name": "pos_0",
}


def grid(layers: int = 3, positions: range | list[int] = range(13), **changes: Json) -> list[dict[str, Json]]:
    """Rows of a whole map: the value is at the root's token below layer 2, at the last token from there on."""
    rows = []
    for position in positions:
        for layer in range(layers):
            moved = position == (3 if layer < 2 else 12)
            effect = {"success_rate": 1.0, "intervened_top_token": 21, "logit_difference": 3.2} if moved else {}
            effect |= {"normalized_logit_difference": 0.084} if moved else {}
            where = {"layer_idx": layer, "target_token_pos": position, "target_name": f"pos_{position}"}
            rows.append(ROW | where | effect | changes)
    return rows


def written(rows: Json, folder: Path, name: str = "intervention_results.json", **beside: Json) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(rows))
    for stem, content in beside.items():
        (folder / f"{stem}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def store_of_module(tmp_path_factory, empty_database) -> Store:
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store(f"sqlite:///{folder}/mlflow.db")


def imported(store: Store, folder: Path) -> tuple[Imported, list[LoggedRun]]:
    (result,) = import_results(folder, store.uri)
    return result, [store.load_run(run_id) for run_id in result.run_ids]


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results"


def test_a_map_is_imported_with_what_was_recorded_and_nothing_else(store_of_module, results):
    folder = results / "full_token_layer_patching_2_hop_seq_2" / "20250626_160756" / "Qwen_Qwen3-4B"
    written(grid(), folder)
    result, (run,) = imported(store_of_module, results)
    assert result.problems == []
    assert (run.kind, run.role, run.experiment) == ("imported", "cell", "full_token_layer_patching_2_hop_seq_2")
    assert run.params["model"] == "Qwen/Qwen3-4B"
    assert (run.params["hops"], run.params["seq_len"], run.params["positions"]) == ("2", "2", "all")
    for name in ("seed", "generator", "prompt_template", "dtype", "device", "backend"):
        assert run.params[name] == "null"
    assert run.tags["debug.legacy_timestamp"] == "20250626_160756"
    assert "this project's l + 1" in run.params["layers_are"]
    (causal_map,) = run.maps
    assert causal_map.tokens == ["a", " =", " ", "8", "\n", "b", " =", " a", "\n", "#", "b", ":", " "]
    success = causal_map.grid("success")
    assert {(int(layer), int(at)) for layer, at in np.argwhere(success == 1)} == {(0, 3), (1, 3), (2, 12)}
    assert causal_map.targets["ref_depth_1_rhs"] == [3]
    assert causal_map.at_target("final").tolist() == [0, 0, 1]
    assert causal_map.grid("legacy_normalized_logit_difference")[0, 3] == pytest.approx(0.084)
    assert np.isnan(causal_map.z_patched).all()
    assert "normalized_logit_diff" not in causal_map.metrics
    assert [pair.original.text for pair in run.pairs] == [ORIGINAL]
    sample = run.samples.row(0, named=True)
    assert (sample["expected"], sample["raw_output"], sample["correct"], sample["prompt"]) == (8, None, None, None)
    assert run.metrics["legacy_success_rate"] == pytest.approx(3 / 39)
    assert run.metrics["peak_layer/final"] == 2
    left = [name for name in run.metrics if name.startswith("peak_") and "/" not in name]
    assert left == [], "elsewhere nothing succeeds: 0.0% beside a map at 100% would be read as the map's"
    assert "accuracy" not in run.metrics
    assert json.loads((run.artifact("legacy/intervention_results.json")).read_text())[0] == ROW


def test_importing_twice_adds_nothing_from_wherever_one_begins(store_of_module, results):
    folder = written(grid(4), results / "patching" / "20250101_000000" / "Qwen_Qwen3-8B")
    first, _ = imported(store_of_module, results)
    before = store_of_module.find_runs(limit=None).height
    for begin in (results, folder, folder.parent):
        again, runs = imported(store_of_module, begin)
        assert (again.known, runs, again.problems) == (True, [], [])
    assert len(first.run_ids) == 1
    assert store_of_module.find_runs(limit=None).height == before


def test_the_programs_of_an_imported_run_go_into_an_intervention(store_of_module, results):
    written(grid(5), results / "e" / "20250101_000001" / "m")
    _, (run,) = imported(store_of_module, results)
    (pair,) = load_programs(run.run_id, store_of_module.uri)
    assert (pair.original.text, pair.counterfactual.text) == (ORIGINAL, COUNTERFACTUAL)


def test_success_is_null_where_no_token_id_tells_the_answer(store_of_module, results):
    cases = {
        "the model answered something else": {"original_top_token": 99},
        "no byte-level vocabulary": {"token_labels": [" " if c == "Ġ" else c for c in LABELS[:1]] + ["x"] * 12},
        "an answer of two digits": {"original_program": ORIGINAL.replace("8", "12"), "original_top_token": 16},
        "the counterfactual is missing": {"counterfactual_program": None},
    }
    for number, (case, changes) in enumerate(cases.items()):
        folder = results / str(number)
        written(grid(**changes), folder / "e" / f"20250101_00010{number}" / "m")
        _, (run,) = imported(store_of_module, folder)
        (causal_map,) = run.maps
        assert np.isnan(causal_map.grid("success")).all(), case
        assert not causal_map.success.any()
        assert causal_map.grid("legacy_success_rate")[0, 3] == 1
        assert "patch_success_rate" not in run.metrics
        assert run.metrics["legacy_success_rate"] == pytest.approx(3 / 39)


def test_a_top_token_that_is_not_the_counterfactuals_answer_is_no_success(store_of_module, results):
    """In the older format any other top token counts."""
    rows = grid(intervened_top_token=16, success_rate=1.0)
    written(rows, results / "e" / "20250101_000200" / "m")
    _, (run,) = imported(store_of_module, results)
    assert (run.maps[0].grid("success") == 0).all()
    assert run.metrics["legacy_success_rate"] == 1


def test_flat_patch_results_are_imported(store_of_module, results):
    rows = [
        {
            "layer_idx": layer,
            "token_pos": at,
            "logit_difference": 0.5,
            "normalized_logit_difference": 0.1,
            "success_rate": 1.0,
        }
        for at in range(4)
        for layer in range(2)
    ]
    written(rows, results / "full_token_layer_patching", "patch_results.json")
    result, (run,) = imported(store_of_module, results)
    assert result.problems == []
    assert run.experiment == "full_token_layer_patching"
    assert (run.params["model"], run.params["intervention_type"], run.params["hops"]) == ("null", "null", "null")
    assert run.maps[0].grid("legacy_success_rate").tolist() == [[1.0] * 4] * 2
    assert run.maps[0].targets == {}
    assert run.pairs == []


def test_heads_and_mlps_at_named_targets_are_imported_with_their_metadata(store_of_module, results):
    targets = {"ref_depth_1_rhs": 3, "prediction_token_pos": 12, "final_space": 12}
    heads = [
        ROW
        | {"intervention_type": "attention_head", "layer_idx": layer, "head_idx": head, "target_token_pos": at}
        | {"target_name": f"{name}_layer_{layer}_head_{head}", "success_rate": float(head == 5), "token_labels": None}
        for name, at in targets.items()
        for layer in (0, 1)
        for head in (2, 5)
    ]
    mlps = [row | {"intervention_type": "mlp", "head_idx": None} for row in heads if row["head_idx"] == 2]
    metadata = {"model_id": "some_org/some_model", "rng_seed": 12, "timestamp": "20250728_105125"}
    folder = results / "attention_head_patching" / "20250728_105125" / "some_org_some_model"
    written([*heads, *mlps], folder, experiment_metadata=metadata)
    result, runs = imported(store_of_module, results)
    assert result.problems == []  # two names of one position are one cell
    assert [run.params["intervention_type"] for run in runs] == ["attention_head", "mlp"]
    assert {run.params["model"] for run in runs} == {"some_org/some_model"}
    assert {run.params["seed"] for run in runs} == {"12"}
    (causal_map,) = runs[0].maps
    assert causal_map.heads == [[2], [5]]
    assert causal_map.targets == targets | {"ref_depth_1_rhs": [3], "prediction_token_pos": [12], "final_space": [12]}
    assert causal_map.at_target("ref_depth_1_rhs", "legacy_success_rate").tolist() == [[0, 1], [0, 1]]
    assert runs[1].maps[0].heads == []


def test_a_model_folder_of_several_underscores_keeps_its_name(store_of_module, results):
    written(grid(6), results / "e" / "20250101_000300" / "my_org_my_model")
    _, (run,) = imported(store_of_module, results)
    assert run.params["model"] == "my_org_my_model"


def test_rows_that_make_no_sense_are_reported_and_the_rest_is_imported(store_of_module, results):
    bad = [
        3,
        ROW | {"layer_idx": -1},
        ROW | {"layer_idx": True},
        ROW | {"layer_idx": None},
        ROW | {"target_token_pos": 13},
        ROW | {"target_token_pos": None},
        ROW | {"success_rate": 2},
        ROW | {"success_rate": float("nan")},
        ROW | {"logit_difference": "much"},
        ROW | {"token_labels": [1]},
        ROW | {"original_top_token": 3, "layer_idx": 7},
        ROW | {"success_rate": 1.0},  # of a cell that another row is of
        {name: value for name, value in ROW.items() if name != "layer_idx"},
    ]
    folder = written([*grid(), *bad], results / "e" / "20250101_000400" / "m")
    result, (run,) = imported(store_of_module, results)
    assert [problem.index for problem in result.problems] == sorted({*range(39, 52)}, key=lambda i: i)
    assert {problem.file for problem in result.problems} == {"e/20250101_000400/m/intervention_results.json"}
    told = "\n".join(map(str, result.problems))
    for expected in (
        "row 39: is 3; expected a record",
        "row 40: field 'layer_idx' is -1; expected an index, 0 or more",
        "row 42: field 'layer_idx' is None",
        "row 43: field 'target_token_pos' is 13; expected one of 13 tokens",
        "row 45: field 'success_rate' is 2; expected a share between 0 and 1",
        "row 46: field 'success_rate' is nan; expected a share between 0 and 1",
        "row 49: field 'original_top_token' is 3; it was 23",
        "row 50: says something else of the cell that row 0 is of",
        "row 51: field 'layer_idx' is missing",
    ):
        assert expected in told
    assert run.maps[0].grid("legacy_success_rate").shape == (3, 13)
    assert run.summary["problems"] == [str(problem) for problem in result.problems]
    assert folder


def test_programs_that_are_no_pair_are_reported_and_their_map_is_kept(store_of_module, results):
    rows = [*grid(program_id=0), *grid(program_id=1, original_program="x = 0\nfor i in range(2):\n    x += 3")]
    written(rows, results / "e" / "20250101_000500" / "m")
    result, (run,) = imported(store_of_module, results)
    assert ["imported without its programs" in str(problem) for problem in result.problems] == [True]
    assert [one.pair for one in run.maps] == [0, -1]
    assert len(run.pairs) == 1


def test_rows_scattered_over_a_huge_grid_are_left_out_and_cost_no_memory(store_of_module, results):
    where = [{"layer_idx": 7 * n, "head_idx": n, "target_token_pos": n, "token_labels": None} for n in range(2000)]
    written([ROW | each for each in where] + grid(), results / "e" / "20250101_000600" / "m")
    result, _ = imported(store_of_module, results)
    assert "left out" in str(result) or "no map" in str(result)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "3", "[1, 2]", "[" * 100_000, "\\ud800", '["NaN"]'])
def test_a_file_that_is_none_of_the_format_is_one_problem(store_of_module, results, content):
    (results / "e" / "20250101_000700").mkdir(parents=True)
    (results / "e" / "20250101_000700" / "intervention_results.json").write_text(content)
    result, runs = imported(store_of_module, results)
    assert runs == []
    assert result.problems
    assert all(problem.file == "e/20250101_000700/intervention_results.json" for problem in result.problems)


def test_a_link_out_of_the_folder_is_not_read(store_of_module, results, tmp_path):
    secret = written(grid(), tmp_path / "secret") / "intervention_results.json"
    (results / "e").mkdir(parents=True)
    (results / "e" / "intervention_results.json").symlink_to(secret)
    result, runs = imported(store_of_module, results)
    assert runs == []
    assert "leads out of the folder" in str(result)


def test_a_folder_without_results_says_what_was_looked_for(tmp_path, store_of_module):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(LegacyError, match=r"older format|is called"):
            import_results(folder, store_of_module.uri)


SAMPLE: dict[str, Json] = {
    "experiment": "basic_range",
    "model_id": "Qwen/Qwen3-0.6B",
    "seq_len": 2,
    "seq_id": 0,
    "program": "x = 0\nfor i in range(2):\n    x += 3",
    "true_answer": 6,
    "predicted_answer": 6,
    "correct": True,
    "raw_output": "3 is: 6",
}


def test_accuracy_results_are_imported_by_model_hops_and_length(store_of_module, results):
    rows = [SAMPLE | {"seq_id": n, "correct": n % 2 == 0} for n in range(4)]
    rows += [
        SAMPLE | {"seq_len": 3, "query_hops": 2, "predicted_answer": None, "correct": False},
        SAMPLE | {"seq_len": "3"},
    ]
    summary = {"overall_accuracy": 0.4, "total_samples": 6}
    written(rows, results / "debug_experiments" / "basic_range_20250527_140240", "results.json", summary=summary)
    result, runs = imported(store_of_module, results)
    assert [(run.params["hops"], run.params["seq_len"]) for run in runs] == [("any", "2"), ("2", "3")]
    assert runs[0].experiment == "basic_range"
    assert (runs[0].metrics["accuracy"], runs[0].metrics["num_samples"]) == (0.5, 4)
    assert 0 < runs[0].metrics["accuracy_ci_low"] < 0.5
    assert runs[1].samples.row(0, named=True)["parsed"] is None
    assert [str(problem).partition(": ")[2] for problem in result.problems] == [
        "field 'seq_len' is '3'; expected an integer of at most 64 bits",
        "field 'total_samples' is 6; the rows that were imported give 5",
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(ROW)), JSON, max_size=3).map(lambda d: ROW | d) | JSON, max_size=4)
)
def test_whatever_rows_hold_is_imported_or_reported(store_of_module, tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("fuzz")
    written(rows, folder / "e" / "20250101_000800" / "m")
    result, runs = imported(store_of_module, folder)
    assert result.known or len(runs) > 0 or result.problems
    for run in runs:
        assert len(run.maps) > 0


def test_the_real_results_where_they_lie_beside_this_repository_say_what_their_files_say(uri):
    if not REAL.is_dir():
        return  # not committed; what the format is, the tests above say
    results = import_results(REAL, uri)
    assert [problem for result in results for problem in result.problems] == []
    store = Store(uri)
    cells = store.find_runs(kind="imported", role="cell")
    assert len(cells) >= 8
    (run_id,) = cells.filter(name="Qwen/Qwen3-4B · 3 hops · 5 lines · residual_stream · imported")["run_id"]
    (causal_map,) = store.load_run(run_id).maps
    success = causal_map.grid("success")
    assert np.flatnonzero(causal_map.at_target("ref_depth_1_rhs")).tolist() == list(range(26))
    assert np.flatnonzero(causal_map.at_target("final")).tolist() == list(range(29, 36))
    assert success.sum() == 26 + 7
    assert store.load_run(run_id).metrics["legacy_success_rate"] == pytest.approx(33 / 936)
    assert all(result.known for result in import_results(REAL, uri))
