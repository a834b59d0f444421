"""Attention patterns of clean forward passes: kept with a run, read back with every number checked, drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from debug import models
from debug.causal_experiment_runner import CausalExperimentRunner
from debug.causal_map import AttentionPattern, CausalMapError
from debug.causal_visualization import attention_chart, attention_overview, attention_rows
from debug.errors import InputError
from debug.kinds import Argument
from debug.plan import Plan
from debug.tracking import LoggedRun, Store, TrackingError
from debug.tracking.export import export_run, import_run
from synthetic import make_map

PROGRAMS = [f"i = {root}\nx = i\nh = x\ny = 4\nw = x\n#h: " for root in (8, 3, 5)]
FILE = "attention/00000.safetensors"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> str:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    path.write_bytes(empty_database.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def run(uri: str) -> LoggedRun:
    plan = Plan(positions="targets", layers=[0, 3], save_attention=2)
    return CausalExperimentRunner(uri).run_plan("tiny", PROGRAMS, plan).logged()


@torch.no_grad()
def test_the_weights_make_each_heads_output_of_its_values(run: LoggedRun) -> None:
    """What the output projection reads is the values, weighted: heard by torch's hooks in the plain forward pass."""
    assert list(run.attention) == [0, 1], "of the first two pairs"
    model = models.load("tiny")
    pattern, causal_map = run.attention[1], run.maps[1]
    assert pattern.queries == sorted({p for at in causal_map.targets.values() for p in at})
    assert pattern.weights.shape == (model.n_layers, model.n_heads, len(pattern.queries), len(causal_map.tokens))
    heard: dict[str, list[Tensor]] = {"values": [], "read": []}
    handles = []
    for layer in model.hf.model.layers:
        values, output = layer.self_attn.v_proj, layer.self_attn.o_proj
        handles.append(values.register_forward_hook(lambda _, __, value: heard["values"].append(value[0])))
        handles.append(output.register_forward_pre_hook(lambda _, inputs: heard["read"].append(inputs[0][0])))
    model.hf(torch.tensor([model.tokenizer(PROGRAMS[1])["input_ids"]]))
    for handle in handles:
        handle.remove()
    for layer, (values, read) in enumerate(zip(heard["values"], heard["read"], strict=True)):
        width = read.shape[-1] // model.n_heads
        own = values.unflatten(-1, (-1, width))  # token, key-value head, width
        for head in range(model.n_heads):
            of_head = own[:, head // (model.n_heads // own.shape[1])].numpy()
            z = pattern.weights[layer, head].astype(np.float32) @ of_head
            expected = read[pattern.queries, head * width : (head + 1) * width].numpy()
            np.testing.assert_allclose(z, expected, atol=5e-3 * abs(of_head).max())


def test_it_is_kept_by_default_and_can_be_left_out(uri: str, run: LoggedRun) -> None:
    runner = CausalExperimentRunner(uri)
    settings = {"positions": "targets", "layers": [0]}
    by_default = runner.run_intervention_experiment("tiny", PROGRAMS[:1], **settings).logged()
    assert list(by_default.attention) == [0]
    without = runner.run_intervention_experiment("tiny", PROGRAMS[:1], save_attention=0, **settings).logged()
    assert FILE not in without.artifacts()
    assert len(without.attention) == 0
    assert (run.params["save_attention"], "save_attention" in without.params) == ("2", False)
    for wrong in (-1, "all", 1.5):
        with pytest.raises(InputError, match=r"save_attention is .* expected a number of pairs"):
            Plan(save_attention=wrong)  # type: ignore[arg-type]  (what is refused)


def test_it_is_exported_and_imported(run: LoggedRun, tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    [again] = store.load_run(import_run(export_run(run.parent, tmp_path / "out"), store)[0]).children
    np.testing.assert_array_equal(again.attention[1].weights, run.attention[1].weights)


def test_files_that_cannot_be_are_refused(run: LoggedRun) -> None:
    path = run.artifact(FILE)
    whole = load_file(path)
    weights = whole["0/weights"]
    wrong: list[tuple[dict[str, np.ndarray], str]] = [
        ({"0/weights": weights.astype(np.float32)}, "expected float16"),
        ({"0/weights": weights[0]}, f"{FILE}: pair 0"),
        ({"0/weights": weights[:, :, 1:]}, "queries, and .* are named"),
        ({"0/weights": weights + np.float16(1)}, "no shares from 0 to 1"),
        ({"0/weights": weights * np.float16(np.nan)}, "no shares from 0 to 1"),
        ({"0/queries": whole["0/queries"][::-1].copy()}, "expected ascending positions"),
        ({"0/queries": whole["0/queries"] + 1000}, "expected ascending positions"),
        ({"0/queries": whole["0/queries"].astype(np.float32)}, "expected ascending positions"),
        ({"0/queries": whole["0/queries"][None]}, f"{FILE}: pair 0"),
        ({"0/queries": np.array(3)}, f"{FILE}: pair 0"),
    ]
    for arrays, message in wrong:
        save_file(whole | arrays, path)
        fresh = LoggedRun(run.store, run._run, run.experiment)
        with pytest.raises(TrackingError, match=message):
            fresh.attention[0]
        assert fresh.attention[1].queries, "the other pair is read"
    save_file({"x/weights": weights, "-1/weights": weights, "7": weights}, path)
    assert len(LoggedRun(run.store, run._run, run.experiment).attention) == 0
    save_file(whole, path)


def made() -> AttentionPattern:
    weights = np.zeros((6, 4, 2, 23), np.float16)
    weights[..., 0] = 1
    weights[3, 1, 1, [0, 2, 10]] = 0.25, 0.625, 0.125
    return AttentionPattern([6, 22], weights)


def test_charts_have_every_token_and_every_head() -> None:
    causal_map = make_map()
    rows = attention_rows(causal_map, made(), "final")
    assert len(rows) == 6 * 4 * 23
    chart = attention_chart(causal_map, rows, "final", 3, 1).to_dict()
    [bars] = [data for data in chart["datasets"].values() if "attention" in data[0]]
    assert [bar["attention"] for bar in bars if bar["attention"]] == [0.25, 0.625, 0.125]
    assert [bar["token"] for bar in bars][:4] == ["i", "·=·", "8", "⏎"]
    assert "background" not in chart
    overview = attention_overview(causal_map, rows, "final", 2).to_dict()
    [cells] = overview["datasets"].values()
    assert {(cell["layer"], cell["head"]) for cell in cells if cell["attention"]} == {(3, 1)}
    assert len(cells) == 24
    assert overview["layer"][0]["encoding"]["color"]["scale"]["domain"] == [0, 0.625]
    with pytest.raises(InputError, match="the map has no target 'nowhere'; its targets: ref_depth_1_rhs"):
        attention_rows(causal_map, made(), "nowhere")
    with pytest.raises(CausalMapError, match=r"tokens at \[2\] was not kept"):
        attention_rows(causal_map, made(), "ref_depth_1_rhs")
    shorter: dict[str, Argument] = {"positions": [], "columns": [[6]] * 23, "targets": {"ref_depth_2_rhs": [6]}}
    shorter |= {"target_columns": {"ref_depth_2_rhs": 0}}
    with pytest.raises(InputError, match="the attention is to 23 tokens, and the map has 22"):
        attention_rows(replace(causal_map, tokens=causal_map.tokens[:-1], **shorter), made(), "ref_depth_2_rhs")
