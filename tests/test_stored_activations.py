"""Patches whose source is what a logged run stored, instead of the counterfactual's run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from debug import models
from debug.causal_experiment_runner import CausalExperimentResult, CausalExperimentRunner
from debug.causal_experiment_runner.stored_activations import StoredActivations, StoredActivationsError
from debug.causal_tracing import group
from debug.kinds import Argument
from debug.plan import Plan
from debug.programs import ProgramPair
from debug.rerun import rerun
from debug.tracking import LoggedRun, Store

PROGRAMS = ["i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: ", "a = 3\nb = a\nc = b\nd = c\ne = 7\n#c: ", "z = 1\nx = z\n#x: "]
AGREE = 1e-6


def traced(uri: str, programs: Sequence[str | ProgramPair] = PROGRAMS, **plan: Argument) -> CausalExperimentResult:
    plan = {"intervention_type": "residual_stream", "save_activations": "none"} | plan
    return CausalExperimentRunner(uri).run_plan("tiny", programs, Plan(**plan))


@pytest.fixture(scope="module")
def uri(tmp_path_factory, empty_database) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    path.write_bytes(empty_database.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def stored(uri) -> LoggedRun:
    """Everything of every pair, of the residual stream, attention and MLP."""
    return traced(uri, intervention_type="mlp", save_activations="all").logged()


def same(one: LoggedRun, other: LoggedRun) -> None:
    assert len(one.maps) == len(other.maps) > 0
    for a, b in zip(one.maps, other.maps, strict=True):
        # Logits of 10 and more are told apart by float32 in steps of 1e-6: they agree relative to their size.
        np.testing.assert_allclose(a.z_patched, b.z_patched, atol=AGREE, rtol=AGREE)
        np.testing.assert_allclose(a.z_counterfactual, b.z_counterfactual, atol=AGREE, rtol=AGREE)
        np.testing.assert_allclose(a.normalized_logit_diff, b.normalized_logit_diff, atol=AGREE, rtol=0)
        np.testing.assert_array_equal(a.top, b.top)
        assert (a.top_tokens, a.targets) == (b.top_tokens, b.targets)


@pytest.mark.parametrize("kind", ["residual_stream", "mlp", "attention"])
def test_patching_from_stored_activations_is_patching_from_the_counterfactual(uri, stored, kind):
    fresh = traced(uri, intervention_type=kind).logged()
    again = traced(uri, intervention_type=kind, source="stored", source_run=stored.run_id)
    same(fresh, again.logged())
    assert again.cells[0].checks is not None
    assert again.logged().maps[0].source == "stored"
    assert again.logged().metrics["patch_success_rate"] == fresh.metrics["patch_success_rate"]
    assert again.logged().artifacts().count("activations/00000.safetensors") == 0


def test_counterfactuals_whose_runs_are_stored_are_not_run_again(uri, stored, monkeypatch):
    ran = []
    record = group.forward_passes
    monkeypatch.setattr(
        group,
        "forward_passes",
        lambda model, token_ids, c: ran.extend(token_ids.tolist()) or record(model, token_ids, c),
    )
    programs = ["i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: ", "j = 8\nx = j\nh = x\ny = 4\nw = x\n#h: "] * 2
    with_all = traced(uri, programs, intervention_type="mlp", save_activations="all", control=False)
    assert len(ran) == 8
    ran.clear()
    traced(uri, programs, source="stored", source_run=with_all.cells[0].run_id, control=False)
    assert len(ran) == 5  # one is, for the self-checks


def test_the_other_direction_and_a_repetition_find_their_sources_too(uri, stored):
    reverse = {"direction": "into_counterfactual", "intervention_type": "mlp"}
    same(traced(uri, **reverse).logged(), traced(uri, **reverse, source="stored", source_run=stored.run_id).logged())
    (result,) = rerun(stored, source="stored", source_run=stored.run_id, intervention_type="residual_stream")
    same(traced(uri).logged(), stored.store.load_run(result.run_id))
    (again,) = rerun(result.run_id, tracking_uri=uri)
    assert again.verdict is not None
    assert again.verdict.outcome == "identical"


def test_targets_are_enough_where_only_targets_are_patched(uri):
    pair = PROGRAMS[:1]
    targets = traced(uri, pair, save_activations="targets").logged()
    source = {"source": "stored", "source_run": targets.run_id}
    same(traced(uri, pair, positions="targets").logged(), traced(uri, pair, positions="targets", **source).logged())
    with pytest.raises(ValueError, match=r"positions \[3, 4, .*, 20\] of this pair are not stored in run"):
        traced(uri, pair, **source)
    with pytest.raises(ValueError, match=r"no mlp of this pair is stored in run"):
        traced(uri, pair, intervention_type="mlp", positions="targets", **source)
    with pytest.raises(ValueError, match="not among the activations of run"):
        traced(uri, PROGRAMS[1:], **source)


def test_activations_of_other_weights_another_tokenizer_or_precision_are_refused(uri, stored):
    model = models.load("tiny")
    store = Store(uri)
    for name in ("weights_digest", "tokenizer_digest"):
        before = stored.tags[f"debug.{name}"]
        store.set_tags(stored.run_id, {f"debug.{name}": "0" * 64})
        with pytest.raises(StoredActivationsError, match=f"their {name} is 000"):
            traced(uri, source="stored", source_run=stored.run_id)
        store.set_tags(stored.run_id, {f"debug.{name}": before})
    with pytest.raises(StoredActivationsError, match="their dtype is float32, the model's bfloat16"):
        StoredActivations(stored, models.load("tiny", dtype="bfloat16"))
    assert StoredActivations(stored, model)


def test_activations_that_are_not_what_they_should_be_are_refused(uri):
    model = models.load("tiny")
    run = traced(uri, PROGRAMS[:1], save_activations="all").logged()
    path = run.artifact("activations/00000.safetensors")
    whole = load_file(path)
    ids = whole["0/token_ids"].tolist()

    def broken(**changes) -> StoredActivations:
        arrays = {name: array for name, array in (whole | changes).items() if array is not None}
        save_file(arrays, path)
        return StoredActivations(Store(uri).load_run(run.run_id), model)

    for positions in (np.array([-1]), np.array([1, 1]), np.array([10**6]), np.array([0.5]), np.array([[1]])):
        with pytest.raises(StoredActivationsError, match="'0/positions' is"):
            broken(**{"0/positions": positions})(ids[1])
    with pytest.raises(StoredActivationsError, match="no activations with the token ids"):
        broken(**{"0/token_ids": None})(ids[1])
    broken(**{"0/counterfactual/residual_stream": np.zeros((2, 3, 4), np.float32)})
    with pytest.raises(ValueError, match=r"stored residual_stream of run \w+ is \(2, 3, 4\); 'tiny' has 7 layers"):
        traced(uri, PROGRAMS[:1], source="stored", source_run=run.run_id)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"source": "stored"}, "'stored' goes with a run's id"),
        ({"source_run": "x"}, "'stored' goes with a run's id"),
        ({"source": "stored", "source_run": "x", "intervention_type": "attention_knockout"}, "patches nothing"),
        ({"source": "stored", "source_run": "x", "method": "attribution"}, "attribution"),
    ],
)
def test_plans_that_cannot_be_are_refused(plan, said):
    with pytest.raises(ValueError, match=said):
        Plan(**plan)


def test_a_study_of_one_cell_stands_for_its_cell_and_one_of_several_does_not(uri, stored):
    store, model = Store(uri), models.load("tiny")
    assert stored.parent_run_id is not None
    assert StoredActivations(store.load_run(stored.parent_run_id), model).run.run_id == stored.run_id
    with store.start("e", "several", kind="causal_tracing") as study:
        for name in ("one", "two"):
            with study.cell(name, {}) as cell:
                pass
    with pytest.raises(StoredActivationsError, match=rf"is a study of 2 cells; name the cell .* {cell.run_id}"):
        StoredActivations(store.load_run(study.run_id), model)
