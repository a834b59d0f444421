"""The likeliest tokens of every forward pass behind a map, with their probabilities."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from debug import models
from debug.causal_experiment_runner import CausalExperimentRunner
from debug.causal_map import CausalMap, CausalMapError, load_maps, save_maps
from debug.causal_tracing import run_causal_tracing_experiment
from debug.causal_tracing.group import Group
from debug.causal_tracing.likeliest import RANKS
from debug.causal_tracing.pairs import PairReader, as_written
from debug.counterfactual import as_pair
from debug.engine.plain_hooks import plain_logits
from debug.kinds import Argument
from debug.models import LoadedModel
from debug.plan import Plan
from present import present

PROGRAM = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "
FIELDS = ("top_k", "top_k_logs", "top_k_unpatched", "top_k_unpatched_logs")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return models.load("tiny")


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return f"sqlite:///{tmp_path}/mlflow.db"


def traced(model: LoadedModel, kind: str, programs: Sequence[str] = (PROGRAM,), **plan: Argument) -> CausalMap:
    return run_causal_tracing_experiment(model, programs, kind, **plan).maps[-1]


def plainly(model: LoadedModel, kind: str, **options: Argument) -> dict[tuple[int, ...], torch.Tensor]:
    """Square of the grid -> log probabilities of the whole vocabulary, of torch hooks on the plain model."""
    plan, pairs = as_written(model, Plan(kind, **options), [as_pair(PROGRAM)])
    reader = PairReader(model, plan)
    [one] = reader.where_written([reader.prepared(0, as_pair(given)) for given in pairs])
    group = Group(reader, [one], None, 1000)  # type: ignore[list-item]  (it is not skipped)
    every = dict(group.interventions(0))
    logits, _ = plain_logits(model, group.passes, [*every.values()])
    return dict(zip(every, logits.log_softmax(-1), strict=True))


@torch.no_grad()
def unpatched(model: LoadedModel, text: str) -> torch.Tensor:
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    return present(model.hf(input_ids=ids).logits)[0, -1].log_softmax(-1)


@pytest.mark.parametrize("kind", ["residual_stream", "attention_heads", "mlp", "attention_knockout"])
def test_every_square_has_the_likeliest_tokens_that_plain_hooks_find(model: LoadedModel, kind: str) -> None:
    options: dict[str, Argument] = {"random_draws": 1} if kind == "attention_knockout" else {}
    found, expected = traced(model, kind, **options), plainly(model, kind, **options)
    targets = sorted({*found.target_columns.values()})
    assert found.top_k_columns == (targets if kind == "attention_heads" else [*range(len(found.columns))])
    top_k, logs = present(found.top_k), present(found.top_k_logs)
    clean = unpatched(model, PROGRAM)
    moved = 0
    for at in np.ndindex(top_k.shape[:-1]):
        square = (*at[:-1], found.top_k_columns[at[-1]])
        plain = expected.get(square, clean)
        assert top_k[at][0] == found.top[square]
        assert len({*top_k[at].tolist()}) == RANKS
        of_kept, highest = plain[top_k[at].tolist()], plain.topk(RANKS).values
        assert of_kept.min() > highest[-1] - 1e-4, "none that is left out is likelier"
        np.testing.assert_allclose(logs[at], of_kept, rtol=1e-3, atol=1e-5)
        assert (np.diff(logs[at]) <= 0).all()
        moved += square in expected and abs(plain - clean).max() > 0.01
    assert moved > 1, "patches that do something"
    assert {*top_k.ravel().tolist()} <= found.vocabulary.keys()


def test_the_two_unpatched_programs_have_theirs(model: LoadedModel) -> None:
    for kind, plan in (
        ("residual_stream", {}),
        ("residual_stream", {"direction": "into_counterfactual"}),
        ("residual_stream", {"method": "attribution"}),
        ("attention_knockout", {}),
    ):
        found, pair = traced(model, kind, **plan), as_pair(PROGRAM)
        if plan.get("direction"):
            pair = pair.reversed
        for row, program in enumerate(pair.programs):
            plain = unpatched(model, program.text)
            tokens, logs = present(found.top_k_unpatched)[row], present(found.top_k_unpatched_logs)[row]
            assert tokens.tolist() == plain.topk(RANKS).indices.tolist()
            np.testing.assert_allclose(logs, plain.topk(RANKS).values, rtol=1e-3, atol=1e-6)
            assert tokens[0] == found.top_tokens[row]
        assert (found.top_k is None) == (plan.get("method") == "attribution")


def test_a_stored_counterfactual_has_those_of_its_own_run(store: str) -> None:
    runner = CausalExperimentRunner(store)
    stored = runner.run_plan("tiny", [PROGRAM], Plan(save_activations="all")).logged()
    again = runner.run_plan("tiny", [PROGRAM], Plan(source="stored", source_run=stored.run_id)).logged()
    for name in FIELDS:
        one, other = (present(getattr(run.maps[0], name)) for run in (stored, again))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    path = stored.artifact("causal_maps/00000.safetensors")
    save_maps(path, [replace(stored.maps[0], top_k_columns=[], **dict.fromkeys(FIELDS))])  # as an older version
    again = runner.run_plan("tiny", [PROGRAM], Plan(source="stored", source_run=stored.run_id)).logged()
    unpatched, logs = present(again.maps[0].top_k_unpatched), present(again.maps[0].top_k_unpatched_logs)
    assert (unpatched[0] >= 0).all()
    assert (unpatched[1] == -1).all()
    assert np.isnan(logs[1]).all()


@pytest.mark.parametrize("kind", ["residual_stream", "attention_heads"])
def test_files_keep_them_and_refuse_what_cannot_be(model: LoadedModel, tmp_path: Path, kind: str) -> None:
    found, path = traced(model, kind), tmp_path / "maps.safetensors"
    save_maps(path, [found])
    [again] = load_maps(path)
    assert again.top_k_columns == found.top_k_columns
    for name in FIELDS:
        one, other = present(getattr(found, name)), present(getattr(again, name))
        assert one.dtype == other.dtype == (np.float16 if name.endswith("logs") else np.int32)
        np.testing.assert_array_equal(one, other)
    cut = found.beginning_at(found.first_difference)
    for column in set(found.top_k_columns) if kind == "attention_heads" else {len(found.positions) - 1}:
        there = cut.columns.index(found.columns[column])
        of_cut = present(cut.top_k)[..., cut.top_k_columns.index(there), :]
        np.testing.assert_array_equal(of_cut, present(found.top_k)[..., found.top_k_columns.index(column), :])
    top_k, logs = present(found.top_k), present(found.top_k_logs)
    wrong: list[tuple[dict[str, Argument], str]] = [
        ({"top_k": top_k[:-1]}, "'top_k' .* do not fit"),
        ({"top_k": top_k[..., 0]}, "'top_k' .* do not fit"),
        ({"top_k_logs": logs[..., :2]}, "'top_k_logs' .* do not fit"),
        ({"top_k_logs": None}, "'top_k' and 'top_k_logs' must both be there"),
        ({"top_k_logs": -logs}, "'top_k_logs' has logarithms of probabilities above 1"),
        ({"top_k_unpatched": present(found.top_k_unpatched)[:1]}, "'top_k_unpatched' .* do not fit"),
        ({"top_k": top_k[..., :2], "top_k_logs": logs[..., :2]}, "'top_k' has 2 ranks, 'top_k_unpatched' another"),
        ({"top_k_columns": found.top_k_columns[1:]}, "do not fit"),
        ({"top_k_columns": [*found.top_k_columns[1:], 10_000]}, "'top_k_columns' .* must be columns"),
    ]
    for fields, message in wrong:
        changed = copy.copy(found)
        for name, value in fields.items():
            object.__setattr__(changed, name, value)
        with pytest.raises(CausalMapError, match=message):
            changed.__post_init__()  # not made anew: while the tests run, that checks shapes itself
    save_maps(path, [replace(found, top_k_logs=logs.astype(np.float32))])
    with pytest.raises(CausalMapError, match="'top_k_logs' is float32, expected float16"):
        load_maps(path)
