"""A server that is killed, for a while or for good, while runs go on: nothing is lost, nothing is told twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from debug import ExperimentRunner, tracking
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.commands import store as command
from debug.core import ExperimentConfig
from debug.tracking import StillRunning, Store, StoreAway, TrackingError, housekeeping
from debug.tracking.outbox import Outbox
from debug.tracking.places import spool
from servers import MlflowServer
from test_resuming import assert_alike


def asked(name: str) -> ExperimentConfig:
    """Each test has an experiment of its own."""
    what = (name, "VARIABLE_BINDING", "variable_binding", ["tiny"])
    return ExperimentConfig(*what, num_seqs=12, hops=[1, 2, 3], seq_lens=[5])


@pytest.fixture(scope="module")
def started(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"), empty_database)
    yield server
    server.stop()


@pytest.fixture
def server(started: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    monkeypatch.setenv("DEBUG_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setattr("debug.tracking.heart._AWAY", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # of processes that import this file
    yield started
    Outbox.waiting.clear()


def kept(server: MlflowServer) -> list[Path]:
    return sorted(spool(server.address).iterdir()) if spool(server.address).exists() else []


def test_a_study_goes_on_while_its_server_is_away_and_everything_arrives_once(server, uri, monkeypatch):
    """It is killed in the middle of the second cell, and comes back in the middle of the next."""
    undisturbed = ExperimentRunner(uri, batch_size=4).run_study("away", [asked("away")])
    append, written = tracking.RunWriter.append_jsonl, []

    def disturbed(self, name, records):
        append(self, name, records)
        written.append(name)
        if len(written) == 15:
            server.stop(signal.SIGKILL)
            threading.Timer(3, server.start).start()

    monkeypatch.setattr(tracking.RunWriter, "append_jsonl", disturbed)
    result = ExperimentRunner(server.address, batch_size=4).run_study("away", [asked("away")])
    assert len(written) == 36
    assert tracking.load_run(result.run_id, server.address).status == "FINISHED"
    for key, run_id in undisturbed.cell_run_ids.items():
        cell = tracking.load_run(result.cell_run_ids[key], server.address)
        assert_alike(tracking.load_run(run_id, uri), cell)
        histories = [cell.store.client.get_metric_history(cell.run_id, name) for name in cell.metrics]
        assert all(len(history) == 1 for history in histories), "each metric once"
    assert kept(server) == []


@pytest.mark.parametrize("message", ["Connection broken: IncompleteRead(0 bytes read, 9 more expected)", "no"])
def test_an_answer_that_breaks_off_is_a_store_that_is_away(uri, message):
    """MLflow wraps what requests raises, and not always as the error that it came from."""
    store = Store(uri)

    def ask() -> None:
        with store.reported("cannot ask"):
            raise MlflowException(f"API request to http://h/log-batch failed with exception ('{message}')")

    with pytest.raises(TrackingError) as raised:
        ask()
    assert isinstance(raised.value, StoreAway) == (message != "no")


def test_a_store_that_can_only_be_read_is_a_sentence(uri, monkeypatch):
    """benchmarks/faults.py has a file system that is mounted so; its causal study ended in a traceback."""

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) attempt to write a readonly database", 3)

    monkeypatch.setattr("mlflow.MlflowClient.create_experiment", refuse)
    with pytest.raises(
        TrackingError, match=r"cannot find or make experiment 'away' in the store .* a readonly database"
    ):
        ExperimentRunner(uri).run_study("away", [asked("away")])


def test_what_waits_for_another_store_keeps_no_study_from_ending(server, uri):
    away = Store(server.address)
    with away.start("waits", "study", kind="accuracy") as study:
        study.outbox.keep("tags", values={"a": "b"})
        with Store(uri).start("here", "study", kind="accuracy") as here:
            pass
        assert Store(uri).load_run(here.run_id).status == "FINISHED"
    assert away.load_run(study.run_id).tags["a"] == "b"


CAUSAL = CausalConfig(models=["tiny"], name="ends", num_seqs=6, positions="targets", save_activations="all")
ENDS = """
import os, signal, sys
from debug import tracking
from debug.causal_experiment_runner import CausalExperimentRunner
from test_store_away import CAUSAL
append, written = tracking.RunWriter.append_jsonl, []
def disturbed(self, name, records):
    append(self, name, records)
    written.append(name)
    if len(written) == 3:
        os.killpg(int(sys.argv[2]), signal.SIGKILL)
tracking.RunWriter.append_jsonl = disturbed
print(CausalExperimentRunner(sys.argv[1]).run(CAUSAL).cells[0].pairs_used)
"""


@pytest.mark.long
def test_a_causal_study_that_ends_while_its_server_is_away_is_delivered_later(server, capsys):
    given = [server.address, str(server.process.pid)]
    run = subprocess.run([sys.executable, "-c", ENDS, *given], capture_output=True, text=True, check=True)
    assert run.stdout.split()[-1] == "6", "all pairs were patched"
    assert "debug store sync delivers it" in run.stderr
    server.stop()
    assert kept(server)
    server.start()
    options = command.parser().parse_args(["sync", f"--tracking-uri={server.address}"])
    command.main(options)
    assert capsys.readouterr().out.count("delivered: ") == 2
    assert kept(server) == []
    store = Store(server.address)
    [cell], [study] = (store.find_runs(role=role, experiment="ends")["run_id"] for role in ("cell", "study"))
    logged = store.load_run(cell)
    assert store.load_run(study).status == logged.status == "FINISHED"
    assert logged.metrics["pairs_used"] == len(logged.maps) == logged.samples.height == 6
    assert [problem for problem in housekeeping.problems(store) if problem is not None] == []
    command.main(options)
    assert "nothing is kept" in capsys.readouterr().out


@pytest.mark.long
def test_the_same_command_again_delivers_a_study_and_does_not_carry_it_out_twice(server):
    given = [server.address, str(server.process.pid)]
    run = subprocess.run([sys.executable, "-c", ENDS, *given], capture_output=True, text=True, check=True)
    server.stop()
    server.start()
    again = CausalExperimentRunner(server.address).run(CAUSAL, resume=True)
    assert again.cells[0].pairs_used == int(run.stdout.split()[-1])
    store = Store(server.address)
    assert store.find_runs(role="study", experiment="ends")["run_id"].to_list().count(again.run_id) == 1
    assert store.load_run(again.run_id).status == "FINISHED"
    assert kept(server) == []


def test_what_another_process_has_taken_over_is_not_told(server):
    store = Store(server.address)
    cells: list[tracking.RunWriter] = []

    def work() -> None:
        with store.start("taken", "study", kind="accuracy") as study, study.cell("cell", {}) as cell:
            cells.append(cell)
            cell.outbox.keep("metrics", values=[["accuracy", 0.5, 1, 0]])
            store.client.set_tag(cell.run_id, "debug.heartbeat", '{"pid": 1, "at": 1}')
            with pytest.raises(tracking.TrackingError, match="another process has taken the run over"):
                cell.outbox.deliver()
            Outbox.waiting.clear()

    with pytest.raises(StillRunning):
        work()
    [cell] = cells
    assert "accuracy" not in store.load_run(cell.run_id).metrics


def test_a_study_that_was_killed_is_taken_up_from_the_spool(server):
    code = """
import os, signal, sys
from debug import ExperimentRunner, tracking
from test_store_away import asked
append, written = tracking.RunWriter.append_jsonl, []
def killed(self, name, records):
    append(self, name, records)
    written.append(name)
    if len(written) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
tracking.RunWriter.append_jsonl = killed
ExperimentRunner(sys.argv[1], batch_size=4).run_study("killed", [asked("killed")])
"""
    subprocess.run([sys.executable, "-c", code, server.address], check=False)
    assert kept(server), "samples of the cell that was not finished"
    result = ExperimentRunner(server.address, batch_size=4).run_study("killed", [asked("killed")])
    store = Store(server.address)
    assert len(store.find_runs(role="cell", experiment="killed")) == 3
    seeds = Counter(seed for cell in store.load_run(result.run_id).children for seed in cell.samples["seed"].to_list())
    assert sum(seeds.values()) == 36
    assert kept(server) == []
