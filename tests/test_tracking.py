"""Runs in real stores: a SQLite file, an MLflow server over HTTP, a PostgreSQL database; MLflow is never imitated."""

# ruff: noqa: PT012 -- what must raise is a run, and a run is a block

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import requests
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from safetensors.numpy import save_file

from debug import provenance, tracking
from debug.causal_map import save_maps
from debug.kinds import Argument, Json
from debug.programs import Program, ProgramPair
from debug.tracking import (
    LoggedRun,
    RunTable,
    Store,
    TrackingError,
    artifacts,
    find_runs,
    heartbeat,
    load_run,
    store_uri,
)
from present import present
from servers import MlflowServer, Postgres, PostgresMissing, free_port
from synthetic import make_map

SAMPLE: dict[str, Json] = {
    "seed": 11,
    "seq_len": 2,
    "hops": 2,
    "program": "a = 3\nb = a\n#b: ",
    "prompt": "a = 3\nb = a\n#b: ",
    "expected": 3,
    "raw_output": " 3 · é\u2028",
    "parsed": 3,
    "correct": True,
    "chain": ["b", "a"],
    "error": None,
}
UNANSWERED = SAMPLE | {"seed": 12, "raw_output": "?", "parsed": None, "correct": False}
ORIGINAL = Program.parse("a = 3\nb = a\n#b: ")
PAIR = ProgramPair(ORIGINAL, ORIGINAL.with_root(7), seed=11)
ONCE = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- the stores ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(empty_database: Path, tmp_path: Path) -> Store:
    folder = tmp_path / "my store · 1"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="session")
def server(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A real MLflow server, started as a stranger would: its address, and its folder with mlflow.db and artifacts/."""
    started = MlflowServer(tmp_path_factory.mktemp("server"), empty_database)
    yield started.address, started.folder
    started.stop()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A real PostgreSQL server with an empty database."""
    pytest.importorskip("psycopg2", reason="psycopg2-binary, the driver of PostgreSQL, is not installed")
    try:
        started = Postgres("fsync=off")
    except PostgresMissing as missing:
        pytest.skip(str(missing))
    yield started.uri
    started.remove()


def test_a_process_is_known_by_its_sign_though_the_clock_is_set(monkeypatch):
    """psutil tells when a process was started by the time at which the machine was booted, which moves with the clock:
    runs were given up as taken over."""
    mine = heartbeat.sign()
    for seconds in (-3600, 1, 3600):
        with monkeypatch.context() as patched:
            patched.setattr("psutil.Process.create_time", lambda _, seconds=seconds: 1e9 + seconds)
            clock = time.time
            patched.setattr(time, "time", lambda clock=clock, seconds=seconds: clock() + seconds)
            assert heartbeat.is_mine(mine)
            assert heartbeat.alive(mine)


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(params=["sqlite", "server", "postgresql"])
def store(request: pytest.FixtureRequest, in_a_folder: Path) -> Store:
    """Each kind of store in turn."""
    fixture = request.getfixturevalue(request.param)
    if isinstance(fixture, tuple):
        fixture = fixture[0]
    return fixture if isinstance(fixture, Store) else Store(fixture)


# --- which store -----------------------------------------------------------------------------------------------------


def test_the_store_is_the_argument_then_the_variable_then_the_projects_own(in_a_folder, monkeypatch):
    assert store_uri() == f"sqlite:///{in_a_folder}/mlruns/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert store_uri() == "http://somewhere:5000"
    assert store_uri("postgresql://me@host/name") == "postgresql://me@host/name"


def test_a_new_store_outside_of_a_project_is_said_once(in_a_folder, caplog):
    for _ in range(2):
        assert Store().client is not None
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"a new store in this folder, {in_a_folder}/mlruns/mlflow.db" in said
    caplog.clear()
    assert Store(f"sqlite:///{in_a_folder}/other.db").client is not None
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_projects_mlruns_is_found_from_any_folder_below_its_pyproject(in_a_folder, monkeypatch):
    here = in_a_folder / "project" / "runs" / "deep"
    here.mkdir(parents=True)
    (in_a_folder / "project" / "pyproject.toml").write_text('[project]\nname = "debug-lm"\n')
    (in_a_folder / "project" / "runs" / "pyproject.toml").write_text('[project]\nname = "somebody-elses"\n')
    (here / "pyproject.toml").write_text("no toml [")
    monkeypatch.chdir(here)
    assert store_uri() == f"sqlite:///{in_a_folder}/project/mlruns/mlflow.db"


def test_a_relative_sqlite_path_stays_what_it_was_when_the_folder_changes(in_a_folder, monkeypatch):
    uri = store_uri("sqlite:///sub/x.db")
    monkeypatch.chdir("/")
    assert uri == f"sqlite:///{in_a_folder}/sub/x.db" == store_uri(uri)


NO_STORES = [
    "mlruns",
    "file:///tmp/mlruns",
    "ftp://host/x",
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite:///x.db?timeout=9",
]


@pytest.mark.parametrize("uri", NO_STORES)
def test_what_names_no_store_is_refused_with_what_was_expected(uri):
    with pytest.raises(TrackingError, match="expected") as raised:
        Store(uri)
    assert repr(uri) in str(raised.value)


def unusable(folder: Path) -> dict[str, str]:
    (folder / "text").write_text("this is no database at all")
    return {
        "no folder": f"sqlite:///{folder}/text/mlflow.db",
        "not writable": "sqlite:////proc/1/mlruns/mlflow.db",
        "no database": f"sqlite:///{folder}/text",
        "nobody answers": f"http://127.0.0.1:{free_port()}",
        "no PostgreSQL": f"postgresql+psycopg2://me:secret@127.0.0.1:{free_port()}/name",
        "no driver": "postgresql+nonsense://me:secret@127.0.0.1/name",
    }


@pytest.mark.parametrize(
    "case", ["no folder", "not writable", "no database", "nobody answers", "no PostgreSQL", "no driver"]
)
def test_a_store_that_cannot_be_used_says_so_at_once(case, tmp_path):
    uri = unusable(tmp_path)[case]
    started = time.monotonic()
    with (
        pytest.raises(TrackingError, match="cannot open the store") as raised,
        Store(uri).start("e", "r", kind="accuracy"),
    ):
        pass
    assert time.monotonic() - started < 5
    assert uri.replace("secret", "***") in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("case", ["no folder", "no database", "nobody answers"])
def test_reading_a_store_that_cannot_be_used_says_so_too(case, tmp_path):
    with pytest.raises(TrackingError, match="cannot open the store"):
        find_runs(tracking_uri=unusable(tmp_path)[case])


def test_a_store_that_is_not_there_reads_as_an_empty_one_and_reading_creates_nothing(in_a_folder):
    assert find_runs().is_empty()
    assert find_runs(kind="accuracy", hops=3, experiment="x").columns[:2] == ["run_id", "name"]
    with pytest.raises(TrackingError, match="there is no store"):
        load_run("0" * 32)
    assert not list(in_a_folder.iterdir())


def test_two_processes_may_create_one_store_at_the_same_time_and_say_only_where_it_is(in_a_folder):
    script = """
import sys
from debug.tracking import Store
assert "torch" not in sys.modules, "tracking imports torch"
with Store().start("e", "r", kind="accuracy") as run:
    run.log_params({"a": 1})
"""
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    [said] = "".join(process.communicate(timeout=120)[1] for process in processes).splitlines()
    assert said.startswith(f"runs go into a new store in this folder, {in_a_folder}")
    assert [process.returncode for process in processes] == [0, 0]
    assert find_runs()["status"].to_list() == ["FINISHED", "FINISHED"]
    assert {path.name for path in (in_a_folder / "mlruns").iterdir()} <= {"mlflow.db", "mlflow.db.lock", "artifacts"}


def test_a_creation_that_is_interrupted_leaves_no_half_made_store(in_a_folder, monkeypatch):
    def interrupted(uri: str, artifacts: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"SQLite format 3\0half")
        raise KeyboardInterrupt

    monkeypatch.setattr("debug.tracking.connection.SqlAlchemyStore", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Store().start("e", "r", kind="accuracy").__enter__()
    assert not [path for path in (in_a_folder / "mlruns").iterdir() if path.name != "mlflow.db.lock"]


# --- a run, written and read back ------------------------------------------------------------------------------------


def experiment_of(store: Store, request: pytest.FixtureRequest) -> str:
    return f"{request.node.name} 'quoted' {time.time_ns()}"


def test_a_run_comes_back_as_it_was_logged(store: Store, request):
    experiment = experiment_of(store, request)
    with store.start(experiment, "tiny · study", kind="causal_tracing", tags={"mine": "yes"}) as study:
        study.log_json("config.json", {"layers": [0, 1], "name": "é"})
        for hops in (2, 3):
            params = {
                "model": "tiny",
                "hops": hops,
                "seq_len": 17,
                "layers": [0, 1],
                "require_correct": True,
                "x": None,
            }
            with study.cell(f"tiny · {hops} hops", params) as cell:
                cell.log_metrics({"accuracy": float(np.float32(0.5)), "n": 3, "nothing": None})
                for layer in (2, 0, 1):
                    cell.log_metrics({"patch_success_rate_by_layer/query_var": layer / 4}, step=layer)
                cell.append_jsonl("samples.jsonl", [SAMPLE])
                cell.flush()
                cell.append_jsonl("samples.jsonl", iter([UNANSWERED]))
                cell.log_programs([PAIR])
                save_maps(cell.folder / "causal_maps" / "00000.safetensors", [make_map(0), make_map(1)])
                save_maps(cell.folder / "causal_maps" / "00001.safetensors", [make_map(2)])
                for shard in (0, 1):
                    (cell.folder / "activations").mkdir(exist_ok=True)
                    save_file(
                        {f"{shard}/resid": np.full((2, 3), shard, np.float16)},
                        cell.folder / f"activations/{shard}.safetensors",
                    )
                cell.log_json("summary.json", {"peak": None})
                cell.set_tags({"debug.rerun_of": "abc"})

    run = store.load_run(study.run_id)
    assert (run.name, run.experiment, run.kind, run.role) == ("tiny · study", experiment, "causal_tracing", "study")
    assert (run.status, run.parent_run_id) == ("FINISHED", None)
    assert run.duration is not None
    assert run.config == {"layers": [0, 1], "name": "é"}
    assert run.tags["mine"] == "yes"
    assert {"python", "torch", "transformers", "nnsight", "mlflow", "debug"} <= json.loads(
        run.tags["debug.versions"]
    ).keys()
    assert run.tags["debug.schema"] == "1"
    assert run.tags["debug.command"]

    assert [child.name for child in run.children] == ["tiny · 2 hops", "tiny · 3 hops"]
    child = run.children[1]
    assert (child.kind, child.role, child.experiment, child.parent_run_id) == (run.kind, "cell", experiment, run.run_id)
    assert child.params == {
        "model": "tiny", "hops": "3", "seq_len": "17", "layers": "[0, 1]", "require_correct": "true", "x": "null",
    }  # fmt: skip
    assert child.metrics == {"accuracy": 0.5, "n": 3, "patch_success_rate_by_layer/query_var": 0.5}
    assert child.curves("patch_success_rate_by_layer/").rows() == [
        ("patch_success_rate_by_layer/query_var", layer, layer / 4) for layer in range(3)
    ]
    assert child.samples.rows(named=True) == [SAMPLE, UNANSWERED]
    assert child.pairs == [PAIR]
    assert child.summary == {"peak": None}
    assert len(child.maps) == 3
    assert [one.pair for one in child.maps] == [0, 1, 2]
    np.testing.assert_array_equal(child.maps[-1].z_patched, make_map(2).z_patched)
    assert dict(child.activations).keys() == {"0/resid", "1/resid"}
    np.testing.assert_array_equal(child.activations["1/resid"], np.ones((2, 3), np.float16))
    assert child.artifacts() == [
        "activations/0.safetensors", "activations/1.safetensors",
        "causal_maps/00000.safetensors", "causal_maps/00001.safetensors",
        "programs.json", "samples.jsonl", "summary.json",
    ]  # fmt: skip

    found = store.find_runs(experiment=experiment, role="cell", hops=3, model="tiny", seq_len=17, kind="causal_tracing")
    assert found["run_id"].to_list() == [child.run_id]
    assert found.select("params.hops", "metrics.accuracy", "status", "parent_run_id").row(0) == (
        "3",
        0.5,
        "FINISHED",
        run.run_id,
    )
    assert store.find_runs(experiment=experiment)["role"].to_list() == ["cell", "cell", "study"]  # newest first
    assert store.find_runs(experiment=experiment, hops=4).is_empty()


def test_an_exception_leaves_failed_runs_with_their_artifacts_and_the_reason(store: Store, request):
    experiment = experiment_of(store, request)
    with (
        pytest.raises(ZeroDivisionError),
        store.start(experiment, "study", kind="accuracy") as study,
        study.cell("cell", {}) as cell,
    ):
        cell.append_jsonl("samples.jsonl", [SAMPLE])
        print(1 / 0)
    for run_id in (study.run_id, cell.run_id):
        run = store.load_run(run_id)
        assert run.status == "FAILED"
        assert run.tags["debug.error"] == "ZeroDivisionError: division by zero"
    assert store.load_run(cell.run_id).samples.height == 1


def test_control_c_leaves_killed_runs_with_their_artifacts(store: Store, request):
    experiment = experiment_of(store, request)
    with (
        pytest.raises(KeyboardInterrupt),
        store.start(experiment, "study", kind="accuracy") as study,
        study.cell("cell", {}) as cell,
    ):
        cell.append_jsonl("samples.jsonl", [SAMPLE])
        signal.raise_signal(signal.SIGINT)
    assert store.find_runs(experiment=experiment)["status"].to_list() == ["KILLED", "KILLED"]
    assert store.load_run(cell.run_id).samples.height == 1


@pytest.mark.parametrize("moment", ["create_run", "set_terminated"])
def test_control_c_while_a_run_is_created_or_ended_waits_for_it(sqlite: Store, moment, monkeypatch):
    call = getattr(sqlite.client, moment)

    def interrupted(*args: Argument, **kwargs: Argument) -> object:
        signal.raise_signal(signal.SIGINT)
        return call(*args, **kwargs)

    monkeypatch.setattr(sqlite.client, moment, interrupted)
    with pytest.raises(KeyboardInterrupt), sqlite.start("e", "r", kind="accuracy"):
        pass
    assert sqlite.find_runs()["status"].to_list() == ["KILLED"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_cell_that_is_added_later_says_what_made_it_and_not_what_made_the_study(sqlite: Store):
    with pytest.raises(KeyboardInterrupt), sqlite.start("e", "study", kind="accuracy", tags={"own": "kept"}) as study:
        raise KeyboardInterrupt
    others = {"debug.source_digest": "0" * 64, "debug.command": "other", "debug.git_commit": "1" * 40}
    sqlite.set_tags(study.run_id, others | {tracking.MIXED: "then", "debug.exported_from": "elsewhere"})
    with sqlite.join(study.run_id) as again, again.cell("later", {"model": "tiny"}) as cell:
        pass
    tags, made = sqlite.load_run(cell.run_id).tags, provenance.of_process()
    for name in others:
        assert tags.get(name) == made.get(name), name
    assert not {tracking.MIXED, "debug.exported_from", "debug.error"} & tags.keys()
    assert tags["own"] == "kept"
    assert "debug.error" not in sqlite.load_run(study.run_id).tags


def test_a_generator_that_is_abandoned_inside_a_run_does_not_leave_it_running(sqlite: Store):
    def work() -> Iterator[int]:
        with sqlite.start("e", "r", kind="accuracy"):
            yield 1

    next(work())
    assert sqlite.find_runs()["status"].to_list() == ["KILLED"]


def test_a_run_whose_upload_fails_is_failed_and_its_files_are_kept(server, monkeypatch):
    store = Store(server[0])

    def full(*_: object) -> None:
        raise OSError("disk full")

    with (
        pytest.raises(TrackingError, match=r"cannot upload a\.json .* disk full"),
        store.start("up", "r", kind="accuracy") as run,
    ):
        monkeypatch.setattr(store.client, "log_artifact", full)
        run.log_json("a.json", {})
    assert store.load_run(run.run_id).status == "FAILED"
    assert [path.name for path in run.folder.iterdir()] == ["a.json"]
    shutil.rmtree(run.folder)


def test_a_failed_upload_does_not_hide_the_error_that_ended_the_run(server, monkeypatch, caplog):
    store = Store(server[0])

    def full(*_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(ZeroDivisionError), store.start("up", "r", kind="accuracy") as run:
        monkeypatch.setattr(store.client, "log_artifact", full)
        run.log_json("a.json", {})
        print(1 / 0)
    assert store.load_run(run.run_id).tags["debug.error"].startswith("ZeroDivisionError")
    assert "disk full" in caplog.text
    shutil.rmtree(run.folder)


def test_a_run_that_cannot_keep_artifacts_fails_at_its_start(sqlite: Store):
    Path(sqlite.uri.removeprefix("sqlite:///")).with_name("artifacts").write_text("a file where a folder should be")
    with pytest.raises(TrackingError, match="cannot keep artifacts"), sqlite.start("e", "r", kind="accuracy"):
        pass
    assert sqlite.find_runs()["status"].to_list() == ["FAILED"]


def test_temporary_folders_are_gone_when_a_run_on_a_server_has_ended(server):
    with Store(server[0]).start("temporary", "r", kind="accuracy") as run:
        run.log_json("deep/er/a.json", [1])
    assert not run.folder.exists()
    logged = load_run(run.run_id, server[0])
    copy = logged.artifact("deep/er/a.json")
    assert json.loads(copy.read_text()) == [1]
    assert logged.artifact("deep/er/a.json") == copy
    del logged
    assert not copy.exists()


def test_artifacts_of_a_store_on_this_machine_are_written_and_read_in_place(sqlite: Store):
    with sqlite.start("e", "r", kind="accuracy") as run:
        run.log_json("config.json", {})
    assert run.folder.is_relative_to(Path(sqlite.uri.removeprefix("sqlite:///")).parent / "artifacts")
    assert sqlite.load_run(run.run_id).artifact("config.json") == run.folder / "config.json"


def test_the_mlflow_ui_on_a_sqlite_store_serves_the_artifacts_of_its_runs(server):
    address, folder = server
    with Store(f"sqlite:///{folder}/mlflow.db").start("seen", "r", kind="accuracy") as run:
        (run.folder / "picture.html").write_text("<b>map</b>")
    files = requests.get(f"{address}/ajax-api/2.0/mlflow/artifacts/list", {"run_id": run.run_id}, timeout=20).json()
    assert [file["path"] for file in files["files"]] == ["picture.html"]
    page = requests.get(f"{address}/get-artifact", {"run_id": run.run_id, "path": "picture.html"}, timeout=20)
    assert page.text == "<b>map</b>"


def test_a_deleted_experiment_is_not_written_into(sqlite: Store):
    with sqlite.start("e", "r", kind="accuracy"):
        pass
    sqlite.client.delete_experiment(present(sqlite.client.get_experiment_by_name("e")).experiment_id)
    assert sqlite.find_runs().is_empty()
    with pytest.raises(TrackingError, match="'e' was deleted"), sqlite.start("e", "r", kind="accuracy"):
        pass


# --- what may be logged ----------------------------------------------------------------------------------------------


def test_more_values_than_mlflow_takes_at_once_are_all_logged(sqlite: Store):
    params = {f"p{i}": "é" * 6000 for i in range(101)}
    metrics = {f"m{i}": float(i) for i in range(1001)}
    with sqlite.start("e", "r", kind="accuracy") as run:
        run.log_params(params)
        run.log_metrics(metrics)
        run.set_tags({f"t{i}": "x" for i in range(101)})
    logged = sqlite.load_run(run.run_id)
    assert logged.params == params
    assert logged.metrics == metrics
    assert logged.tags["t100"] == "x"


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan"), "0.5", True + 0j])
def test_a_metric_that_is_no_finite_number_is_refused_by_name(sqlite: Store, value):
    with pytest.raises(ValueError, match="metric 'accuracy'"), sqlite.start("e", "r", kind="accuracy") as run:
        run.log_metrics({"accuracy": value})


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (lambda run: run.log_params({"prompt": "x" * 6001}), r"param 'prompt' has 6001 .* config\.json"),
        (lambda run: run.log_params({"model": object()}), "param 'model'"),
        (lambda run: run.set_tags({"note": "x" * 8001}), "tag 'note'"),
        (lambda run: run.log_json("summary.json", {"rate": math.nan}), r"summary\.json"),
        (lambda run: run.append_jsonl("samples.jsonl", [{"a": {1}}]), r"samples\.jsonl"),
    ],
)
def test_values_that_would_be_lost_are_refused(sqlite: Store, log, message):
    with pytest.raises(ValueError, match=message), sqlite.start("e", "r", kind="accuracy") as run:
        log(run)
    assert not sqlite.load_run(run.run_id).artifacts()


def test_what_the_store_refuses_names_the_run(sqlite: Store):
    with pytest.raises(TrackingError, match="cannot log params of run"), sqlite.start("e", "r", kind="accuracy") as run:
        run.log_params({"model": "a"})
        run.log_params({"model": "b"})


def test_a_kind_outside_the_contract_is_refused(sqlite: Store):
    with pytest.raises(ValueError, match="expected one of accuracy, causal_tracing"):
        sqlite.start("e", "r", kind="acuracy")
    assert sqlite.find_runs().is_empty()


def test_passwords_of_the_command_line_are_not_logged(sqlite: Store, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["runs/accuracy.py", "--tracking-uri", "postgresql://me:secret@host/db"])
    with sqlite.start("e", "r", kind="accuracy") as run:
        pass
    assert sqlite.load_run(run.run_id).tags["debug.command"].endswith("postgresql://me:***@host/db")


# --- finding and loading ---------------------------------------------------------------------------------------------

NAMES = st.text(st.sampled_from("'\"`\\%_;()=-,. \n\tANDaé🐙#"), min_size=1, max_size=12).filter(
    lambda text: text.strip()
)


@pytest.fixture(scope="session")
def shared(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(empty_database, folder / "mlflow.db")
    return Store(f"sqlite:///{folder}/mlflow.db")


@ONCE
@given(NAMES, NAMES)
def test_a_model_of_any_name_is_found_and_no_other(shared: Store, model: str, other: str):
    assume(model != other)
    with shared.start("names", model, kind="accuracy") as run:
        run.log_params({"model": model})
    found = shared.find_runs(model=model)
    assert run.run_id in found["run_id"].to_list()
    assert set(found["params.model"]) == {model}
    others = shared.find_runs(model=other)
    assert run.run_id not in others["run_id"].to_list()


def test_all_pages_are_read_up_to_the_limit(sqlite: Store, monkeypatch):
    monkeypatch.setattr("debug.tracking.connection._PAGE", 2)
    with sqlite.start("e", "study", kind="accuracy") as study:
        for number in range(4):
            with study.cell(str(number), {}):
                pass
    assert sqlite.find_runs(limit=None)["name"].to_list() == ["3", "2", "1", "0", "study"]
    assert sqlite.find_runs(limit=3)["name"].to_list() == ["3", "2", "1"]
    assert sqlite.find_runs(limit=1)["name"].to_list() == ["3"]
    assert len(sqlite.load_run(study.run_id).children) == 4


def test_a_run_is_loaded_by_its_id_the_beginning_of_it_or_its_name(store: Store, request):
    name = f'it\'s "the" run · {experiment_of(store, request)}'
    with store.start("loading", name, kind="accuracy") as run:
        pass
    for key in (run.run_id, run.run_id[:12], name):
        assert store.load_run(key).run_id == run.run_id
    assert load_run(run.run_id, store.uri).name == name
    for key in ("f" * 32, "no such run", "", "'", "%"):
        with pytest.raises(TrackingError, match="no run"):
            store.load_run(key)


def test_an_ambiguous_name_lists_the_candidates(sqlite: Store):
    runs = []
    for _ in range(2):
        with sqlite.start("e", "twice", kind="accuracy") as run:
            runs.append(run.run_id)
    with pytest.raises(TrackingError, match="'twice' names 2 runs") as raised:
        sqlite.load_run("twice")
    assert all(run_id in str(raised.value) for run_id in runs)


def foreign(store: Store, tags: dict[str, str]) -> str:
    """A run that this project did not write."""
    return store.client.create_run("0", tags=tags, run_name="theirs").info.run_id


def test_a_run_of_a_newer_schema_is_refused_and_an_unreadable_one_too(sqlite: Store):
    with pytest.raises(TrackingError, match="written in schema 2"):
        sqlite.load_run(foreign(sqlite, {"debug.schema": "2"}))
    with pytest.raises(TrackingError, match=r"debug\.schema is 'new'"):
        sqlite.load_run(foreign(sqlite, {"debug.schema": "new"}))
    assert sqlite.find_runs().height == 2  # they are listed all the same


def test_somebody_elses_run_is_loaded_and_what_it_lacks_is_named(sqlite: Store):
    run = sqlite.load_run(foreign(sqlite, {}))
    assert (run.kind, run.role, run.status, run.duration) == (None, None, "RUNNING", None)
    assert run.artifacts() == []
    assert len(run.maps) == len(run.activations) == 0
    for read in (lambda: run.samples, lambda: run.pairs, lambda: run.summary):
        with pytest.raises(TrackingError, match=rf"run {run.run_id} .*: no such file"):
            read()


# --- artifacts that are not what they should be ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def logged(shared: Store) -> LoggedRun:
    """A run whose artifacts a test may overwrite."""
    with shared.start("broken", "r", kind="accuracy") as run:
        run.append_jsonl("samples.jsonl", [SAMPLE])
    return shared.load_run(run.run_id)


def again(run: LoggedRun, name: str, content: bytes) -> LoggedRun:
    """The run, freshly loaded, with another content of one artifact."""
    path = present(run._root) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return Store(run.store.uri).load_run(run.run_id)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"seed": "11"}, "field 'seed' is '11'; expected an integer"),
        ({"seed": True}, "field 'seed' is True; expected an integer"),
        ({"seed": 2**63}, "field 'seed'"),
        ({"seq_len": None}, "field 'seq_len' is None; expected an integer"),
        ({"program": 3}, "field 'program' is 3; expected a text"),
        ({"program": "\ud800"}, "field 'program'"),
        ({"expected": [3]}, "field 'expected'"),
        ({"correct": 1}, "field 'correct' is 1; expected true or false"),
        ({"chain": "ba"}, "field 'chain' is 'ba'; expected a list of texts"),
        ({"chain": [1]}, "field 'chain'"),
        ({"error": 1}, "field 'error'"),
        ({"counterfactual": 1}, "field 'counterfactual' is 1; expected a text"),
    ],
)
def test_a_wrong_field_of_a_sample_is_named_with_its_run_file_and_line(logged, change, problem):
    lines = "\n".join(json.dumps(record) for record in (SAMPLE, SAMPLE | change))
    with pytest.raises(TrackingError) as raised:
        _ = again(logged, "samples.jsonl", lines.encode()).samples
    assert f"run {logged.run_id} (r), samples.jsonl: line 2: {problem}" in str(raised.value)


@pytest.mark.parametrize("field", SAMPLE)
def test_every_field_of_a_sample_is_required(logged, field):
    record = {name: value for name, value in SAMPLE.items() if name != field}
    with pytest.raises(TrackingError, match=f"line 1: field '{field}' is missing"):
        _ = again(logged, "samples.jsonl", json.dumps(record).encode()).samples


def test_samples_of_pairs_keep_the_counterfactual_and_skipped_ones_may_be_empty(logged):
    pair = {"counterfactual": "a = 7\nb = a\n#b: ", "expected_counterfactual": 7}
    pair |= {"raw_output_counterfactual": "7", "correct_counterfactual": True}
    skipped = dict.fromkeys(SAMPLE | pair) | {"error": "no pair"}
    lines = "\n".join(json.dumps(record) for record in (SAMPLE | pair, skipped))
    assert again(logged, "samples.jsonl", lines.encode()).samples.rows(named=True) == [SAMPLE | pair, skipped]


@pytest.mark.parametrize(
    ("expected", "parsed", "dtype", "read"),
    [
        (3, 4, pl.Int64, (3, 4)),
        (True, False, pl.Boolean, (True, False)),
        ("x", None, pl.String, ("x", None)),
        (3, "x", pl.String, ("3", "x")),
    ],
)
def test_answers_are_numbers_or_booleans_where_all_are(logged, expected, parsed, dtype, read):
    record = json.dumps(SAMPLE | {"expected": expected, "parsed": parsed}).encode()
    samples = again(logged, "samples.jsonl", record).samples
    assert samples.select("expected", "parsed").row(0) == read
    assert samples.schema["expected"] == samples.schema["parsed"] == dtype


def test_a_line_that_a_running_run_is_writing_or_could_not_write_whole_is_left_out(sqlite: Store, caplog):
    with sqlite.start("e", "r", kind="accuracy") as run:
        run.append_jsonl("samples.jsonl", [SAMPLE])
        with (run.folder / "samples.jsonl").open("a") as file:
            file.write('{"seed": 12, "seq')
        assert sqlite.load_run(run.run_id).samples.height == 1
    assert sqlite.load_run(run.run_id).samples.height == 1
    assert "samples.jsonl: the last line was cut off: 17 bytes, after 1 whole samples, are not read" in caplog.text
    with (run.folder / "samples.jsonl").open("a") as file:
        file.write("\n")  # whole, and no JSON
    with pytest.raises(TrackingError, match=r"samples\.jsonl: line 2 is no JSON"):
        _ = sqlite.load_run(run.run_id).samples


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists)
BROKEN = [
    b"",
    b"[]",
    b"{",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b'{"a": NaN}',
    b'{"a": 1e999}'[:-1],
    b"[" * 100_000,
    b"9" * 5000,
]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize(
    ("name", "read"), [("summary.json", "summary"), ("config.json", "config"), ("programs.json", "pairs")]
)
def test_broken_json_is_an_error_that_names_run_and_file(logged, name, read, content):
    with pytest.raises(TrackingError, match=rf"run {logged.run_id} \(r\), {name}: "):
        getattr(again(logged, name, content), read)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"schema": 2, "pairs": []}, "field 'schema' is 2"),
        ({"pairs": []}, "field 'schema' is None"),
        ({"schema": 1, "pairs": {}}, "field 'pairs' is {}"),
        ({"schema": 1, "pairs": [PAIR.to_record(), 3]}, "pair 1 is 3"),
        ({"schema": 1, "pairs": [PAIR.to_record() | {"original": "a = "}]}, "pair 0: the last line is"),
        ({"schema": 1, "pairs": [PAIR.to_record() | {"hops": 9}]}, "pair 0: 'hops' is 9"),
    ],
)
def test_broken_programs_name_the_pair(logged, content, problem):
    with pytest.raises(TrackingError, match=r"programs\.json") as raised:
        _ = again(logged, "programs.json", json.dumps(content).encode()).pairs
    assert problem in str(raised.value)


@ONCE
@given(st.binary(max_size=200) | JSON.map(json.dumps).map(str.encode))
def test_no_content_of_samples_gives_anything_but_samples_or_a_tracking_error(logged, content):
    run = again(logged, "samples.jsonl", content)
    with suppress(TrackingError):
        assert run.samples.height == content.count(b"\n")


def test_one_shard_of_maps_is_in_memory_at_a_time(sqlite: Store, monkeypatch):
    with sqlite.start("e", "r", kind="causal_tracing") as run:
        for shard in range(3):
            save_maps(
                run.folder / f"causal_maps/{shard:05d}.safetensors", [make_map(2 * shard), make_map(2 * shard + 1)]
            )
    read = []
    monkeypatch.setattr(
        artifacts, "load_maps", lambda path, load=artifacts.load_maps: read.append(path.name) or load(path)
    )
    maps = sqlite.load_run(run.run_id).maps
    assert len(maps) == 6
    assert read == []
    assert [one.pair for one in maps[1:4]] == [1, 2, 3]
    assert read == ["00000.safetensors", "00001.safetensors"]
    assert [one.pair for one in maps] == list(range(6))
    assert read[2:] == ["00000.safetensors", "00001.safetensors", "00002.safetensors"]
    with pytest.raises(IndexError):
        maps[6]


def test_broken_safetensors_are_errors_that_name_run_and_file(sqlite: Store):
    with sqlite.start("e", "r", kind="causal_tracing") as run:
        save_maps(run.folder / "causal_maps/0.safetensors", [make_map()])
        (run.folder / "activations").mkdir()
        save_file({"a": np.zeros(3)}, run.folder / "activations/0.safetensors")
    whole = {
        name: (run.folder / name).read_bytes() for name in ("causal_maps/0.safetensors", "activations/0.safetensors")
    }
    for name, content in whole.items():
        for broken in (
            b"",
            content[:7],
            content[:-1],
            content[:40] + b"\xff" + content[41:],
            b"\xff" * 8 + content[8:],
        ):
            (run.folder / name).write_bytes(broken)
            with pytest.raises(TrackingError, match=rf"run {run.run_id} \(r\), {name}"):
                logged = sqlite.load_run(run.run_id)
                list(logged.maps if name.startswith("causal") else logged.activations.values())
        (run.folder / name).write_bytes(content)
    save_file({"0/z_clean": np.zeros(2, np.float32)}, run.folder / "causal_maps/0.safetensors")
    with pytest.raises(TrackingError, match=r"causal_maps/0\.safetensors: .*causal_maps"):
        _ = sqlite.load_run(run.run_id).maps[0]
    save_file({"a": np.zeros(3)}, run.folder / "activations/1.safetensors")
    with pytest.raises(TrackingError, match=r"'a' is in activations/0\.safetensors already"):
        len(sqlite.load_run(run.run_id).activations)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a/../../x", "..", "", "a\\..\\x", "x\0y", "deep/../../../x"]
)
def test_a_name_that_leads_out_of_the_run_is_refused(store: Store, name):
    with (
        pytest.raises(TrackingError, match="not the name of an artifact"),
        store.start("climbing", "r", kind="accuracy") as run,
    ):
        run.log_json(name, {})
    with pytest.raises(TrackingError, match="not the name of an artifact"):
        store.load_run(run.run_id).artifact(name)


@ONCE
@given(
    st.lists(st.sampled_from(["..", ".", "a", "", "~", "outside", "samples.jsonl", "\\", " "]), max_size=6).map(
        "/".join
    )
    | st.text(max_size=20)
)
def test_no_name_reaches_a_file_outside_the_run(logged, name):
    root = logged._root
    (root.parent / "outside").write_text("not yours")
    try:
        path = logged.artifact(name)
    except TrackingError:
        return
    assert path.resolve().is_relative_to(root)
    assert path.is_file()


def test_a_symbolic_link_out_of_the_run_is_not_followed(logged):
    link = logged._root / "link.json"
    if not link.is_symlink():
        link.symlink_to("/etc/passwd")
    with pytest.raises(TrackingError, match="not the name of an artifact"):
        logged.artifact("link.json")


# --- all runs at once ------------------------------------------------------------------------------------------------


def test_the_table_of_all_runs_says_what_find_runs_says(store):
    """On every kind of store; and of what comes later it reads that alone."""
    table = RunTable(store)
    with store.start("table", "a study", kind="accuracy") as study:
        with study.cell("ends", {"model": "tiny", "hops": 3, "seq_len": 5}) as cell:
            cell.log_metrics({"accuracy": 0.5, "accuracy_ci_low": 0.25, "num_samples": 8, "of no interest": 1})
        assert table.refresh()
        found = store.find_runs(limit=None)
        shared = [name for name in found.columns if name in table.frame.columns]
        assert {"params.hops", "metrics.accuracy", "parent_run_id", "start_time"} <= set(shared)
        assert_frame_equal(table.frame.select(shared), found.select(shared), check_row_order=False)
        mine = table.frame.filter(pl.col("experiment") == "table")
        assert mine.filter(run_id=study.run_id)["status"].item() == "RUNNING"
        with pytest.raises(ValueError, match="no"), study.cell("fails", {"model": "tiny"}):
            raise ValueError("no")
    assert table.refresh()
    now = table.frame.filter(pl.col("experiment") == "table")
    assert dict(now.select("name", "status").iter_rows()) == {
        "a study": "FINISHED",
        "ends": "FINISHED",
        "fails": "FAILED",
    }
    assert now.filter(name="fails")["error"].item() == "ValueError: no"
    assert not table.refresh()


def test_deleted_runs_leave_the_table_and_a_store_that_is_not_there_is_empty(sqlite, tmp_path):
    table = RunTable(sqlite)
    with sqlite.start("table", "a study", kind="accuracy") as study:
        pass
    assert table.refresh()
    assert study.run_id in table.frame["run_id"]
    sqlite.client.delete_run(study.run_id)
    assert table.refresh()
    assert study.run_id not in table.frame["run_id"]
    nothing = RunTable(Store(f"sqlite:///{tmp_path}/nothing.db"))
    assert not nothing.refresh()
    assert nothing.frame.is_empty()


def test_a_servers_table_has_runs_whose_clock_is_behind(server, monkeypatch):
    """By a day. One that goes on at a look is there at once; one that nobody saw go on, when all is read again."""
    store = Store(server[0])
    experiment = store.client.create_experiment("clocks")
    now = int(time.time() * 1000)
    store.client.create_run(experiment, start_time=now)
    table = RunTable(store)
    table.refresh()
    seen = store.client.create_run(experiment, start_time=now - 86_400_000).info.run_id
    table.refresh()
    assert table.frame.filter(run_id=seen)["status"].to_list() == ["RUNNING"]
    store.client.set_terminated(seen)
    quick = store.client.create_run(experiment, start_time=now - 86_400_000).info.run_id
    store.client.set_terminated(quick)
    table.refresh()
    assert table.frame.filter(run_id=seen)["status"].to_list() == ["FINISHED"]
    later = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: later)
    table.refresh()
    assert table.frame.filter(run_id=quick)["status"].to_list() == ["FINISHED"]


def test_a_servers_table_has_runs_beside_one_whose_clock_is_ahead(server):
    store = Store(server[0])
    experiment = store.client.create_experiment("ahead")
    now = int(time.time() * 1000)
    store.client.set_terminated(store.client.create_run(experiment, start_time=now + 86_400_000).info.run_id)
    table = RunTable(store)
    table.refresh()
    new = store.client.create_run(experiment).info.run_id
    store.client.set_terminated(new)
    table.refresh()
    assert new in table.frame["run_id"]


def test_a_dead_run_does_not_have_a_servers_runs_read_again(server, monkeypatch):
    """A process that was killed leaves its run RUNNING for good; the runs since then are not read at each look."""
    store = Store(server[0])
    experiment, before = store.client.create_experiment("dead"), int(time.time() * 1000) - 30 * 86_400_000
    dead = store.client.create_run(experiment, start_time=before).info.run_id
    for number in range(1, 31):
        run = store.client.create_run(experiment, start_time=before + number * 80_000_000)
        store.client.set_terminated(run.info.run_id)
    table = RunTable(store)
    table.refresh()
    assert len(table.frame) >= 31
    old = {run.info.run_id for run in store.search({experiment: "dead"}, {})} - {dead}
    read: list[str] = []
    row = RunTable._row
    monkeypatch.setattr(RunTable, "_row", staticmethod(lambda run, of: read.append(run.info.run_id) or row(run, of)))
    table.refresh()
    assert dead in read
    assert len(old & set(read)) <= 1  # the newest, from which on runs are asked for
    store.client.set_terminated(dead)
    table.refresh()
    assert table.frame.filter(run_id=dead)["status"].to_list() == ["FINISHED"]


def test_one_model_is_logged_for_its_weights_and_every_run_on_them_is_linked_to_it(uri: str) -> None:
    store, weights = Store(uri), [{"debug.weights_digest": digest} for digest in ("aa", "aa", "bb")]
    with store.start("models", "study", kind="accuracy") as study:
        for number, tags in enumerate([*weights, {}]):
            with study.cell(f"cell {number}", {"model": "a/b.c"}) as cell:
                cell.log_model("a/b.c", tags)
    experiment = store.client.get_experiment_by_name("models")
    assert experiment is not None
    models = store.client.search_logged_models([experiment.experiment_id])
    assert sorted((model.name, model.tags["debug.weights_digest"]) for model in models) == [
        ("a-b-c", "aa"),
        ("a-b-c", "bb"),
    ]
    cells = [store.client.get_run(run_id) for run_id in store.find_runs(role="cell")["run_id"]]
    inputs = {
        cell.info.run_name: [each.model_id for each in (cell.inputs and cell.inputs.model_inputs) or []]
        for cell in cells
    }
    assert inputs["cell 0"] == inputs["cell 1"] != inputs["cell 2"]
    assert inputs["cell 3"] == []


def test_a_study_carries_the_means_of_its_cells(uri: str) -> None:
    with Store(uri).start("means", "study", kind="accuracy") as study:
        study.log_means([{"accuracy": 0.5}, {"accuracy": 1.0, "other": 3.0}, {"accuracy": None}])
    assert load_run(study.run_id, uri).metrics == {"accuracy": 0.75}


def test_the_view_of_an_experiment_is_chosen_where_it_has_cells_and_small_enough_for_a_tag(uri: str) -> None:
    store = Store(uri)

    def tag() -> str:
        experiment = store.client.get_experiment_by_name("viewed")
        assert experiment is not None
        return experiment.tags["mlflow.sharedViewState.debug"]

    with store.start("viewed", "study", kind="accuracy") as study:
        assert "viewStateShareKey=debug" in store.link(study.run_id)
        assert json.loads(tag())["searchFilter"] == ""  # a training run has no cells
        with study.cell("cell", {"model": "tiny"}):
            pass
    assert len(tag()) <= 5000  # what MLflow keeps
    runs = store.client.search_runs([store.experiment_id("viewed")], json.loads(tag())["searchFilter"])
    assert [run.info.run_name for run in runs] == ["cell"]
    old = store.client.create_experiment("of MLflow alone")
    assert "viewStateShareKey" not in store.link(store.client.create_run(old).info.run_id)


@pytest.mark.parametrize("wanted", [None, "false"])
def test_a_study_that_lasts_says_how_busy_the_machine_is(uri, monkeypatch, wanted):
    monkeypatch.setattr("debug.tracking.heartbeat.EVERY", 0.2)
    if wanted is not None:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", wanted)
    store, until = Store(uri), time.monotonic() + 60
    with store.start("long", "long", kind="accuracy") as study:
        first = store.load_run(study.run_id).tags[heartbeat.own_tag()]
        while store.load_run(study.run_id).tags[heartbeat.own_tag()] == first and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)  # and the beat after it
    metrics = store.load_run(study.run_id).metrics
    assert ("system/cpu_utilization_percentage" in metrics) is (wanted is None)
    assert all(name.startswith("system/") for name in metrics)
