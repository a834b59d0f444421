"""A store looked after: runs without a process, files that are broken or missing, space, and what is erased."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from debug.commands import store as command
from debug.errors import InputError
from debug.tracking import Store, TrackingError, heartbeat, housekeeping
from synthetic import log_accuracy, log_causal, make_map

KILLED = """
import os, signal, sys
from debug.tracking import Store
with Store(sys.argv[1]).start("lost", "a study", kind="accuracy") as study:
    with study.cell("a cell", {"model": "tiny"}) as cell:
        cell.log_metrics({"accuracy": 0.5})
        cell.flush()
        print(study.run_id, cell.run_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def store(uri) -> Store:
    return Store(uri)


def ran(store: Store, *words: str) -> int:
    """The exit status of `debug store`."""
    options = command.parser().parse_args([*words, f"--tracking-uri={store.uri}"])
    try:
        command.main(options)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def wrong(store: Store) -> list[str]:
    return [problem.what for problem in housekeeping.problems(store) if problem is not None]


def test_runs_whose_process_was_killed_are_lost_and_marked(store, capsys):
    killed = subprocess.run([sys.executable, "-c", KILLED, store.uri], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    study, cell = killed.stdout.split()
    with store.start("alive", "another", kind="accuracy") as alive, alive.cell("its cell", {"model": "tiny"}):
        assert {run.run_id for run in housekeeping.lost(store)} == {study, cell}
        assert ran(store, "check") == 1
        said = capsys.readouterr().out
        assert f"lost: {study}" in said
        assert f"lost: {cell}" in said
        assert alive.run_id not in said
        with pytest.raises(InputError, match="Nothing was changed"):
            ran(store, "check", "--end-lost")
        assert store.load_run(study).status == "RUNNING"
        assert ran(store, "check", "--end-lost", "--yes") == 0
    for run_id in (study, cell):
        run = store.load_run(run_id)
        assert run.status == "KILLED"
        assert run.tags["debug.error"] == housekeeping.LOST
        heard = int(1000 * (heartbeat.heard(heartbeat.signs(run.tags)[0]) or 0))
        info = store.client.get_run(run_id).info
        assert info.end_time == max(heard, info.start_time), "when it was last heard of, not when somebody looked"
    assert store.load_run(cell).metrics["accuracy"] == 0.5
    assert ran(store, "check") == 0


def test_a_run_that_goes_on_is_not_ended(store):
    with store.start("alive", "a study", kind="accuracy") as study, study.cell("a cell", {}) as cell:
        for writer in (study, cell):
            run = store.load_run(writer.run_id)
            if run.role == "study":
                with pytest.raises(TrackingError, match="not lost any more"):
                    housekeeping.end(run)
    with pytest.raises(TrackingError, match="not lost any more"):
        housekeeping.end(store.load_run(study.run_id))


def test_whole_runs_have_no_problem(store):
    log_accuracy(store, hops=[1, 2])
    log_causal(store, [make_map(pair) for pair in range(3)])
    assert wrong(store) == []


def test_what_is_broken_or_missing_is_named_and_the_rest_is_read(store, capsys):
    _, cut, twice = log_accuracy(store, hops=[1, 2])
    file = store.load_run(cut).artifact("samples.jsonl")
    file.write_bytes(b"no JSON\n" + file.read_bytes())
    file = store.load_run(twice).artifact("samples.jsonl")
    file.write_bytes(file.read_bytes() * 2)
    torn = log_causal(store, [make_map(pair) for pair in range(3)])
    shard = store.load_run(torn).artifact("causal_maps/00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-10])
    assert ran(store, "check") == 1
    said = capsys.readouterr().out
    for run_id, what in ((cut, "line 1 is no JSON"), (twice, "more than once"), (torn, "no safetensors file")):
        assert any(f"broken: {run_id}" in line and what in line for line in said.splitlines()), said
    before = said.count("broken:")
    gone = log_causal(store, [make_map(pair) for pair in range(3)])
    store.load_run(gone).artifact("causal_maps/00000.safetensors").unlink()
    store.client.log_metric(gone, "pairs_used", 3)
    ran(store, "check")
    said = capsys.readouterr().out
    assert said.count("broken:") == before + 1
    assert "pairs_used is 3, and 0 pairs have a causal map" in said


def test_sizes_are_those_of_the_files(store, capsys):
    run = store.load_run(log_causal(store, [make_map(pair) for pair in range(3)]))
    files = {name: run.artifact(name).stat().st_size for name in run.artifacts()}
    assert dict(run.sizes()) == files
    found = {each.run_id: sizes for each, sizes in housekeeping.sizes(store)}
    assert found[run.run_id].total() == sum(files.values())
    assert ran(store, "du") == 0
    assert "in all; 0 B of 0 runs" in capsys.readouterr().out


def test_deleted_runs_and_superseded_cells_are_erased_after_a_yes(store, capsys):
    kept, deleted = (log_causal(store, [make_map()]) for _ in range(2))
    superseded = log_accuracy(store, hops=[1])[1]
    folder = store.load_run(deleted).artifact("programs.json").parent
    store.client.set_tag(superseded, "debug.superseded", "2026-01-01")
    store.client.delete_run(deleted)
    with pytest.raises(InputError, match="--yes"):
        ran(store, "gc")
    said = capsys.readouterr().out
    assert f"deleted: {deleted}" in said
    assert f"superseded: {superseded}" in said
    assert folder.exists()
    assert ran(store, "gc", "--yes") == 0
    assert not folder.exists()
    assert housekeeping.deleted(store) == []
    assert store.load_run(kept).pairs
    assert ran(store, "gc") == 0
    assert "nothing to erase" in capsys.readouterr().out


def test_a_server_erases_itself(store):
    served = Store("http://user:secret@127.0.0.1:1")
    with pytest.raises(TrackingError, match="is a server") as refused:
        housekeeping.erase(served, [])
    assert "secret" not in str(refused.value)


def test_there_is_nothing_to_look_after_in_a_store_that_is_not_there(tmp_path, capsys):
    assert ran(Store(f"sqlite:///{tmp_path}/none/mlflow.db"), "check") == 0
    assert "there is no store" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
