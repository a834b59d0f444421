"""A store that was copied or moved opens where it is now: for this project, for MLflow's client, for its UI."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow.tracking import MlflowClient

from debug.causal_map import save_maps
from debug.tracking import Store, TrackingError
from servers import free_port, wait_for
from synthetic import log_causal, make_map

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster(tmp_path, empty_database) -> tuple[Path, str]:
    """A store's folder, and a run of it."""
    folder = tmp_path / "cluster" / "mlruns"
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder, log_causal(store_in(folder), [make_map(pair) for pair in range(2)])


def store_in(folder: Path) -> Store:
    return Store(f"sqlite:///{folder}/mlflow.db")


def test_a_study_begins_without_a_look_at_the_runs_that_lie_where_they_should(cluster, monkeypatch):
    """It took a study in a store of 10,000 runs 0.8 s."""
    store = store_in(cluster[0])
    monkeypatch.setattr("debug.tracking.moving.local_path", lambda _: pytest.fail("a run was looked at"))
    link = cluster[0].with_name("link")
    link.symlink_to(cluster[0])
    for each in (store, store_in(link)):
        with each.start("more", "more", kind="accuracy"):
            pass


def recorded(folder: Path) -> list[str]:
    """Every artifact location that the database names."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute("SELECT artifact_location FROM experiments UNION SELECT artifact_uri FROM runs")
        return [location for (location,) in rows]


def test_a_moved_store_is_read_as_it_is_and_reading_changes_nothing(cluster, tmp_path):
    folder, run_id = cluster
    before = recorded(folder)
    laptop = tmp_path / "laptop"
    folder.rename(laptop)
    run = store_in(laptop).load_run(run_id)
    assert [one.pair for one in run.maps] == [0, 1]
    assert run.samples.height == len(run.pairs) == 2
    assert run.artifact("samples.jsonl").is_relative_to(laptop)
    assert recorded(laptop) == before


def test_a_copy_reads_its_own_files_while_the_original_is_there(cluster, tmp_path):
    folder, run_id = cluster
    shutil.copytree(folder, tmp_path / "laptop")
    original = store_in(folder).load_run(run_id).artifact("causal_maps/00000.safetensors")
    save_maps(original, [make_map(7)])
    assert [one.pair for one in store_in(tmp_path / "laptop").load_run(run_id).maps] == [0, 1]
    assert [one.pair for one in store_in(folder).load_run(run_id).maps] == [7]


def test_a_new_run_in_a_moved_store_is_kept_there_and_the_old_place_stays_gone(cluster, tmp_path, caplog):
    folder, run_id = cluster
    laptop = tmp_path / "laptop"
    folder.rename(laptop)
    store = store_in(laptop)
    new = log_causal(store, [make_map(5)])  # in the experiment that the first one made
    assert not folder.exists()
    assert f"was moved or copied from {folder}" in caplog.text
    assert store.relocate() == 0
    assert all(Path(location).is_relative_to(laptop) for location in recorded(laptop))
    assert store.load_run(new).artifact("programs.json").is_relative_to(laptop)
    client = MlflowClient(store.uri)  # as anybody's own code would read it
    for each in (run_id, new):
        assert "programs.json" in {file.path for file in client.list_artifacts(each)}


def test_moving_back_and_forth_and_reaching_it_through_a_link_work(cluster, tmp_path):
    folder, run_id = cluster
    store_in(folder).relocate()  # a database copied from elsewhere is what the fixture begins with
    (tmp_path / "link").symlink_to(folder)
    assert store_in(tmp_path / "link").relocate() == 0
    assert len(store_in(tmp_path / "link").load_run(run_id).maps) == 2
    for name in ("a", "b"):
        folder = folder.rename(tmp_path / name)
        assert store_in(folder).relocate() > 0
        assert len(store_in(folder).load_run(run_id).maps) == 2


def test_make_mlflow_serves_the_artifacts_of_a_moved_store(cluster, tmp_path):
    folder, run_id = cluster
    laptop = tmp_path / "laptop"
    folder.rename(laptop)
    assert "$(BIN)/debug mlflow\n" in (ROOT / "Makefile").read_text()
    port = free_port()
    command = [sys.executable, "-m", "debug", "mlflow", f"--port={port}", "--", "--workers", "1"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": store_in(laptop).uri}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment)
    try:
        wait_for(lambda: requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok, process, tmp_path / "log")
        asked_for = {"run_id": run_id, "path": "programs.json"}
        page = requests.get(f"http://127.0.0.1:{port}/get-artifact", asked_for, timeout=20)
        assert len(json.loads(page.text)["pairs"]) == 2
        said = (tmp_path / "log").read_text()
        assert f"moved or copied from {folder}" in said
        assert re.search(rf"http://localhost:{port}/#/experiments/\d+/runs", said), "where the runs are"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("place", ["/etc", "/tmp/elsewhere/artifacts", "{store}/../outside", "file:///etc"])
def test_artifacts_recorded_outside_of_the_store_are_not_read(cluster, place):
    folder, run_id = cluster
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text('{"secret": 1}')
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("UPDATE runs SET artifact_uri = ?", (place.format(store=folder),))
    run = store_in(folder).load_run(run_id)
    for read in (lambda: run.config, lambda: run.artifact("config.json"), lambda: run.artifacts(), lambda: run.maps[0]):
        with pytest.raises(TrackingError, match=f"run {run_id}: its artifacts are recorded in .* not read"):
            read()
    store_in(folder).relocate()  # what is elsewhere stays recorded so
    assert place.format(store=folder) in recorded(folder)


def test_a_run_folder_that_is_a_link_out_of_the_store_is_not_read(cluster):
    folder, run_id = cluster
    run_folder = folder / "artifacts" / run_id / "artifacts"
    shutil.rmtree(run_folder)
    run_folder.symlink_to("/etc")
    with pytest.raises(TrackingError, match="outside of the store's folder"):
        store_in(folder).load_run(run_id).artifact("passwd")


def test_a_store_whose_artifacts_did_not_come_along_says_where_they_were(cluster, tmp_path):
    folder, run_id = cluster
    (tmp_path / "laptop").mkdir()
    shutil.copy(folder / "mlflow.db", tmp_path / "laptop")
    with pytest.raises(TrackingError, match=f"no such file in {tmp_path}/laptop/artifacts"):
        store_in(tmp_path / "laptop").load_run(run_id).artifact("programs.json")
