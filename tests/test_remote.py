"""Models that are elsewhere: nnsight's simulation of NDIF, and a server in a process of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

import families
from debug import ExperimentRunner, models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner, dry_run
from debug.causal_tracing import CausalTracingResult
from debug.causal_tracing import run_causal_tracing_experiment as trace
from debug.commands import rerun as rerun_command
from debug.commands import trace as trace_command
from debug.core import ExperimentConfig
from debug.engine import ForwardPasses, Intervention, SelfCheckError, remote
from debug.errors import InputError
from debug.kinds import Argument
from debug.models import remote_model
from debug.models.backends import LOCAL
from debug.models.errors import ModelNotFound, RemoteFailed
from debug.models.remote_model import RemoteModel
from debug.rerun import RerunError, rerun
from debug.tracking import Store
from servers import free_port, wait_for

PROGRAMS = ["i = 8\nx = i\nh = x\n#h: ", "a = 1\nb = a\nc = b\n#c: ", "a = 1\nb = 5\nc = a\n#c: "]
PLANS: dict[str, dict[str, Argument]] = {
    "residual stream": {},
    "residual stream, a window": {"layer_window": 2},
    "heads": {"intervention_type": "attention_heads"},
    "heads, in sets": {"intervention_type": "attention_heads", "heads": ["0+2", 1], "positions": "targets"},
    "attention": {"intervention_type": "attention", "direction": "into_counterfactual"},
    "mlp, from a partner": {"intervention_type": "mlp", "source": "resample"},
    "knockout": {"intervention_type": "attention_knockout"},
    "knockout of heads": {"intervention_type": "attention_knockout", "heads": [0, 3], "layer_window": 1},
}


def alike(one: CausalTracingResult, other: CausalTracingResult) -> None:
    assert len(one.maps) == len(other.maps) > 0
    for a, b in zip(one.maps, other.maps, strict=True):
        np.testing.assert_allclose(a.z_patched, b.z_patched, atol=2e-5)
        np.testing.assert_array_equal(a.top, b.top)
        assert (a.control_top is None) == (b.control_top is None)
        if a.control_top is not None:
            np.testing.assert_array_equal(a.control_top, b.control_top)
        assert a.top_k_logs is not None
        assert b.top_k_logs is not None
        np.testing.assert_allclose(a.top_k_logs[..., 0], b.top_k_logs[..., 0], atol=2e-3)  # kept in half precision


@pytest.mark.parametrize("name", PLANS)
def test_a_simulated_server_gives_the_engines_numbers(name):
    here = trace("tiny", PROGRAMS, dtype="float32", require_correct=False, **PLANS[name])
    there = trace("tiny", PROGRAMS, device=LOCAL, require_correct=False, **PLANS[name])
    alike(here, there)
    [checks, *_] = [result.checks for result in there.results if result.checks]
    assert checks.localized_max_abs is not None
    assert checks.full_patch_without > 1
    assert there.maps[0].lens_logits is None


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3_moe", "opt"])
@pytest.mark.parametrize("what", ["residual_stream", "attention_heads", "attention_knockout"])
def test_so_it_does_in_other_families(name, what):
    """Sliding windows, soft caps, biases, modules that see all rows' tokens behind one another."""
    here = families.family(name)
    there = remote_model.load_remote(name, name, LOCAL, None, False, here)
    plan = {"intervention_type": what, "positions": "targets", "require_correct": False}
    alike(*(trace(model, PROGRAMS, **plan) for model in (here, there)))


def moved(batch: remote._Batch, axis: int, by: int, most: int = 10_000) -> remote._Batch:
    """All writes beside their places: 0 is the row; of a patch 2 is the position and 3 the head."""

    def beside(write: remote._Write) -> remote._Write:
        last = write.parts - 1 if most == HEADS else most
        at = [(of + by).clamp(0, last) if number == axis else of for number, of in enumerate(write.at)]
        return write._replace(at=at)

    return batch._replace(writes=[beside(write) for write in batch.writes])


HEADS = -1
"""As ``most`` of :func:`moved`: as many as there are where it is written."""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda batch: batch._replace(writes=[]), "full patch is"),  # patches that do nothing
        (lambda batch: moved(batch, 0, -1), "differ by|changed a logit|away from"),
        (lambda batch: batch._replace(token_ids=batch.token_ids.flip(1)), "does not run the same model"),
    ],
)
def test_a_server_that_gives_other_numbers_fails_loudly(monkeypatch, fault, said):
    run = remote._run
    monkeypatch.setattr(remote, "_run", lambda model, batch, *asked: run(model, fault(batch), *asked))
    with pytest.raises(SelfCheckError, match=said):
        trace("tiny", PROGRAMS, device=LOCAL)


@pytest.mark.parametrize("what", ["residual_stream", "attention_heads", "mlp", "attention_knockout"])
@pytest.mark.parametrize("where", ["layer", "position", "head"])
def test_a_patch_beside_its_place_fails_loudly(monkeypatch, what, where):
    if where == "head" and what in ("residual_stream", "mlp"):
        return  # they have none
    of, rows = remote._Batch.of, models.load("tiny").n_layers + (what == "residual_stream")

    def beside(model: RemoteModel, passes: ForwardPasses, interventions: Sequence[Intervention]) -> remote._Batch:
        if where == "layer":
            interventions = [
                replace(one, sites=tuple(replace(site, layer=min(site.layer + 1, rows - 1)) for site in one.sites))
                for one in interventions
            ]
        batch, knockout = of(model, passes, interventions), what == "attention_knockout"
        if where == "position":
            return moved(batch, 3 if knockout else 2, -1, passes.length - 1)
        return moved(batch, 1 if knockout else 3, 1, HEADS) if where == "head" else batch

    monkeypatch.setattr(remote._Batch, "of", beside)
    # One head, one layer: of all that are cut, those cut beside their places are all but one cut where they are, too.
    plan = {"heads": [0], "layer_window": 1} if what == "attention_knockout" else {}
    with pytest.raises(SelfCheckError):
        trace("tiny", PROGRAMS, what, device=LOCAL, **plan)


def test_only_the_squares_alone_tell_a_row_from_its_neighbour(monkeypatch):
    """A server that mixes up the rows of large batches, and none of small ones."""
    run = remote._run

    def mixed(model: RemoteModel, batch: remote._Batch, *asked: Argument) -> remote.Read:
        read, first = run(model, batch, *asked), len(batch.programs)
        if len(batch.bases) < 40:
            return read
        order = [*range(first), *reversed(range(first, len(read.tops)))]
        return remote.Read(*(of[order] for of in read))

    monkeypatch.setattr(remote, "_run", mixed)
    with pytest.raises(SelfCheckError, match="cells of the map are up to"):
        trace("tiny", PROGRAMS, device=LOCAL)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"source": "mean"}, "source is 'mean'; on NDIF models it can be 'counterfactual' or 'resample'"),
        ({"method": "attribution"}, "method is 'attribution'"),
        ({"scored_by": "greedy"}, "scored_by is 'greedy'"),
        ({"source": "zero"}, "source is 'zero'"),
    ],
)
def test_what_cannot_be_done_there_is_said_before_anything_runs(plan, message):
    with pytest.raises(InputError, match=message):
        trace("tiny", PROGRAMS, device=LOCAL, **plan)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "ndif:nowhere"}, InputError, "must start with http"),
        ({"device": "ndif:https://me:secret@ndif.example.org"}, InputError, r"me:\*\*\*@ndif.*NDIF_API_KEY"),
        ({"device": LOCAL, "quantization": "4bit"}, InputError, "whose server decides"),
        ({"device": "ndif:http://127.0.0.1:9"}, RemoteFailed, "http://127.0.0.1:9 did not run a trace"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(monkeypatch, options, error, message):
    monkeypatch.setattr(remote_model, "PATIENCE", 0.1)
    with pytest.raises(error, match=message):
        models.load("tiny", **options)


def test_a_dry_run_says_that_it_knows_nothing_of_a_server():
    with pytest.raises(InputError, match="what that takes nobody here knows"):
        dry_run(CausalConfig(models=["tiny"], num_seqs=1), device="ndif")


def test_a_model_without_files_is_not_found_there_either(tmp_path):
    with pytest.raises(ModelNotFound, match="no configuration or tokenizer"):
        models.load(str(tmp_path), device="ndif:http://127.0.0.1:9")


def test_prompts_that_are_done_change_nothing_of_the_others():
    """A batch is run as a whole, or not at all."""
    prompts = [(index, [1] * (4 + index % 2)) for index in range(6)]
    found = [[*indices] for indices, _ in remote_model._batches(prompts, 2, {0, 2, 1})]
    assert found == [[4], [1, 3], [5]]


def test_it_answers_prompts_as_here(uri):
    for scoring in ("generate", "logits"):
        what = ("a", "VARIABLE_BINDING", "variable_binding", ["tiny"])
        config = ExperimentConfig(*what, num_seqs=8, seq_lens=[5], hops=[1, 2], scoring=scoring)
        one, other = (ExperimentRunner(uri, device=device).run(config).samples for device in ("cpu", LOCAL))
        columns = ["seed", "prompt", "raw_output", "parsed", "correct", "error"]
        assert one.select(columns).equals(other.select(columns))


# --- a server --------------------------------------------------------------------------------------------------------


def served(log: Path, *options: str) -> Iterator[str]:
    port, script = free_port(), Path(__file__).with_name("ndif_server.py")
    command = [sys.executable, str(script), str(models.CHECKPOINTS / "tiny"), str(port), *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=log.parent)
    address = f"http://127.0.0.1:{port}"
    wait_for(lambda: requests.get(f"{address}/health", timeout=5).ok, process, log)
    yield address
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    yield from served(tmp_path_factory.mktemp("ndif") / "log")


@pytest.fixture(scope="module")
def other_each_time(tmp_path_factory) -> Iterator[str]:
    yield from served(tmp_path_factory.mktemp("ndif") / "log", "--wrong")


def test_a_study_on_a_server_is_the_study_here(uri, server):
    """Here are no weights, there is nothing of this project; every seventh answer is that the server is busy."""
    config = CausalConfig(models=["tiny"], num_seqs=3, hops=[2], intervention_type="attention_heads", control=True)
    logged = []
    for device in ("cpu", f"ndif:{server}"):
        found = CausalExperimentRunner(uri, device=device).run(config)
        logged.append(Store(uri).load_run(found.cells[0].run_id))
    here, there = logged
    assert [run.params["device"] for run in logged] == ["cpu", f"ndif:{server}"]
    assert there.params["backend"] == "ndif"
    assert there.tags["debug.device_name"] == server
    assert there.tags["debug.weights_digest"] != here.tags["debug.weights_digest"]  # they were never seen
    for name, value in here.metrics.items():
        if name.startswith(("peak", "patch_success", "accuracy", "pairs", "normalized")):
            assert there.metrics[name] == pytest.approx(value, abs=1e-5), name
    assert here.pairs == there.pairs
    for a, b in zip(here.maps, there.maps, strict=True):
        np.testing.assert_allclose(a.z_patched, b.z_patched, atol=2e-5)
    model = models.load("tiny", device=f"ndif:{server}")
    assert all(parameter.device.type == "meta" for parameter in model.hf.parameters())
    with pytest.raises(RerunError, match="a log does not choose where programs and a key are sent"):
        rerun(there.run_id, tracking_uri=uri)
    [again] = rerun(there.run_id, tracking_uri=uri, device=f"ndif:{server}")
    assert again.verdict is not None
    assert again.verdict.outcome in ("identical", "within tolerance")


def test_a_server_whose_model_changes_fails_loudly(other_each_time):
    with pytest.raises(SelfCheckError, match="does not run the same model each time"):
        trace("tiny", PROGRAMS, device=f"ndif:{other_each_time}", batch_tokens=400)


def test_a_dtype_that_the_server_has_not_is_refused(server):
    with pytest.raises(InputError, match="dtype is 'bfloat16', and the server has model 'tiny' in float32"):
        models.load("tiny", device=f"ndif:{server}", dtype="bfloat16")


def test_what_fails_there_is_told_here(server):
    model = models.load("tiny", device=f"ndif:{server}")
    assert isinstance(model, RemoteModel)
    with pytest.raises(RemoteFailed, match=r"out of range|index"):
        remote.forward_passes(model, torch.full((1, 4), 10_000))


def test_nothing_that_comes_back_is_unpickled():
    backend, content = remote_model.Ndif("key", "http://127.0.0.1:9"), io.BytesIO()
    backend.compress = False
    torch.save({"logits": Path("x")}, content)
    with pytest.raises(remote_model.RemoteError, match="more than tensors and numbers"):
        backend.finalize(content.getvalue())


@pytest.mark.parametrize("command", [trace_command, rerun_command])
def test_the_command_line_names_a_server(command):
    run = ["some run"] if command is rerun_command else []
    for words, device in (
        (["--remote"], "ndif"),
        (["--ndif-host", "https://ndif.example.org"], "ndif:https://ndif.example.org"),
        (["--ndif-host", "local"], LOCAL),
    ):
        assert command.parser().parse_args([*run, *words]).device == device
