"""A model whose layers accelerate lays over several places: here memory and disk, since there is one device.

Every module then runs within accelerate's hooks, its weights brought to where it computes and taken away again, as on
several GPUs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from debug import ExperimentRunner, models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.core import ExperimentConfig
from debug.kinds import Argument
from debug.models import LoadedModel
from debug.models.blueprint import blueprint
from debug.tracking import Store

ROOM = (models.CHECKPOINTS / "tiny" / "model.safetensors").stat().st_size // 2  # bytes


@pytest.fixture(scope="module")
def laid_out() -> Iterator[LoadedModel]:
    with pytest.MonkeyPatch.context() as patched:
        for name in ("get_max_memory", "get_balanced_memory"):
            patched.setattr(f"transformers.integrations.accelerate.{name}", lambda *_, **__: {"cpu": ROOM})
        yield models.load("tiny", device="auto")
    models.unload_all()


def test_its_layers_are_in_memory_and_on_disk(laid_out):
    assert laid_out.device == "cpu"
    assert laid_out.devices == ["cpu", "disk"]
    on_disk = [n for n in range(laid_out.n_layers) if laid_out.hf.hf_device_map[f"model.layers.{n}"] == "disk"]
    assert on_disk
    assert len(on_disk) < laid_out.n_layers
    assert laid_out.provenance()["debug.devices"] == "cpu, disk"
    assert laid_out.weights_digest == models.load("tiny").weights_digest


PLANS: dict[str, dict[str, Argument]] = {
    "residual stream": {},
    "heads": {"intervention_type": "attention_heads", "positions": "targets"},
    "attention": {"intervention_type": "attention", "positions": "targets"},
    "mlp, a window": {"intervention_type": "mlp", "layer_window": 2},
    "knockout": {"intervention_type": "attention_knockout"},
    "attribution": {"method": "attribution", "intervention_type": "mlp"},
}


@pytest.mark.parametrize("name", PLANS)
def test_causal_runs_are_those_of_one_device(laid_out, uri, name, monkeypatch):
    """Self-checks too: plain hooks, a full patch, what was written read back."""
    monkeypatch.setattr("debug.causal_visualization.draw", lambda *_: list)  # pictures take longer than the rest
    shared = {"num_seqs": 2, "save_attention": 1, **PLANS[name]}
    one, other = (
        CausalExperimentRunner(uri, device=device).run(CausalConfig(models=["tiny"], **shared)).cells[0]
        for device in ("cpu", "auto")
    )
    logged = [Store(uri).load_run(cell.run_id) for cell in (one, other)]
    for a, b in zip(*(run.maps for run in logged), strict=True):
        np.testing.assert_allclose(a.z_patched, b.z_patched, atol=1e-5)
    assert [run.tags.get("debug.devices") for run in logged] == [None, "cpu, disk"]
    assert one.findings()[:3] == other.findings()[:3]


@pytest.mark.parametrize("scoring", ["generate", "logits"])
def test_accuracy_runs_are_those_of_one_device(laid_out, uri, scoring):
    what = ("a", "VARIABLE_BINDING", "variable_binding", ["tiny"])
    config = ExperimentConfig(*what, num_seqs=20, seq_lens=[5], hops=[1, 2], scoring=scoring)
    one, other = (ExperimentRunner(uri, device=device).run(config).samples for device in ("cpu", "auto"))
    columns = ["seed", "prompt", "raw_output", "parsed", "correct", "error"]
    assert one.select(columns).equals(other.select(columns))


def test_two_models_that_are_partly_on_disk_are_two(laid_out, tmp_path, monkeypatch):
    """Weights on the disk are named by their places in a model alone."""
    changed = models.load("tiny", device="cpu").hf
    weight = changed.model.layers[-1].mlp.down_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
        changed.save_pretrained(tmp_path / "other")
        weight.copy_(before)
    for file in (models.CHECKPOINTS / "tiny").glob("token*"):
        shutil.copy(file, tmp_path / "other")
    for name in ("get_max_memory", "get_balanced_memory"):
        monkeypatch.setattr(f"transformers.integrations.accelerate.{name}", lambda *_, **__: {"cpu": ROOM})
    other = models.load(str(tmp_path / "other"), device="auto")
    assert "disk" in other.devices
    ids = torch.tensor([laid_out.encode("a = 1\nb = a\n#b: ")])
    with torch.no_grad():
        one, two = (each.hf(input_ids=ids).logits for each in (laid_out, other))
        alone = models.load("tiny", device="cpu").hf(input_ids=ids).logits
        whole = models.load(str(tmp_path / "other"), device="cpu").hf(input_ids=ids).logits
    torch.testing.assert_close(one, alone)
    torch.testing.assert_close(two, whole)
    assert (one - two).abs().max() > 0.01


def test_what_it_would_cost_is_told_without_laying_it_out():
    assert blueprint("tiny", device="auto").device == "cpu"
