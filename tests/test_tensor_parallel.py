"""A model whose weights are split over two processes of torchrun: the numbers are those of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

import families
from debug import cli, models
from debug.commands import trace as trace_command
from debug.errors import InputError
from debug.models.blueprint import blueprint
from debug.tracking import Store
from servers import free_port

SIDE = Path(__file__).with_name("tensor_parallel_side.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model whose sizes two divides, which the bundled one's vocabulary is not."""
    made = tmp_path_factory.mktemp("split") / "model"
    torch.manual_seed(0)
    sizes: families.Settings = families._GATED | {"vocab_size": 42}
    families.of(LlamaConfig(**sizes), "split").hf.save_pretrained(made)
    for file in (models.CHECKPOINTS / "tiny").glob("token*"):
        shutil.copy(file, made)
    return made


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, *map(str, words)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_patches_of_a_split_model_are_those_of_the_whole_one(folder):
    """Every component, sets of heads, cut edges, means, attention patterns, answers; with all self-checks."""
    found = json.loads(torchrun(SIDE, folder).stdout)
    own, all_of_them = found.pop("weights here")
    assert own == all_of_them // 2
    assert found.pop("answers") == [True]
    assert "gives no gradients" in found.pop("attribution")
    assert len(found) == 8
    for name, (maps, distance, effect) in found.items():
        assert maps == 3, name
        assert distance < 1e-4, name
        assert effect > 1, name


@pytest.mark.long
def test_the_command_logs_one_study(folder, uri):
    words = ["trace", "--models", folder, "--device", "tp", "--tracking-uri", uri, "--num-seqs", "2", "--hops", "2"]
    torchrun("-m", "debug", *words, "--keep-wrong", "--positions", "targets")
    store = Store(uri)
    [cell] = store.find_runs(role="cell")["run_id"]
    assert store.load_run(cell).tags["debug.tensor_parallel"] == "2"
    assert store.load_run(cell).status == "FINISHED"
    assert len(store.find_runs(role="study")) == 1


def test_a_process_that_torchrun_did_not_start_is_told_so(folder, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="was not started by torchrun"):
        models.load(str(folder), device="tp")


@pytest.mark.parametrize("words", [["--workers", "2"], ["--source", "stored", "--source-run", "x"]])
def test_the_first_process_is_asked_for_nothing_that_the_others_do_not_know(words, capsys, monkeypatch):
    arguments = trace_command.parser().parse_args(["--device", "tp", *words])
    with pytest.raises(SystemExit):
        cli.run(trace_command.main, arguments)
    assert "carry out new studies, by themselves" in capsys.readouterr().err


def test_a_dry_run_of_a_split_model_is_that_of_the_whole_one(folder):
    assert blueprint(str(folder), device="tp").device == "cpu"
