"""Passwords of store URIs: printed, shown and logged nowhere, and on no command line that this project starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from debug import cli
from debug.errors import DebugError, InputError
from debug.provenance import of_process, without_passwords
from debug.tracking import Store, TrackingError
from debug.tracking.export import export_run
from synthetic import log_causal, make_map

ROOT = Path(__file__).parents[1]
SECRETS = [
    "postgresql://me:s3cret@host/name",
    "postgresql://me:s3cret@1@host/name",
    "postgresql://me:s3/cret@host/name",
    "postgresql+psycopg2://:s3cret@host/name",
    "http://me:s3cret@host:5000",
    "postgresql://host/name?user=me&password=s3cret",
    "postgresql://host/name?password=s3cret&sslmode=require",
    "postgresql://host/name?sslpassword=s3cret",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3Ds3cret",
    "http://host:5000/?access_token=s3cret",
]
PLAIN = [
    "sqlite:////home/a:b@c/mlflow.db",
    "postgresql://me@host:5432/name?sslmode=require",
    "http://localhost:5000/#/experiments/1",
    "a token=7 that is no part of a URI",
]


@pytest.mark.parametrize("uri", SECRETS)
def test_of_a_uri_with_a_password_all_but_it_is_shown(uri):
    for text in (uri, f"cannot open '{uri}': refused", f"--tracking-uri={uri} and {uri}"):
        shown = without_passwords(text)
        assert "cret" not in shown
        assert "***" in shown
        assert "host" in shown or "DRIVER" in shown
    assert without_passwords(without_passwords(uri)) == without_passwords(uri)


@pytest.mark.parametrize("text", PLAIN)
def test_of_a_text_without_a_password_nothing_is_hidden(text):
    assert without_passwords(text) == text


def test_the_logged_command_line_has_no_password(monkeypatch):
    monkeypatch.setattr("sys.argv", ["accuracy.py", "--tracking-uri", "postgresql://h/n?password=s3'cret&a=b"])
    assert "cret" not in of_process()["debug.command"]


def test_no_code_prints_a_store_uri_as_it_is():
    """In texts of scripts, pages and the package a URI stands behind without_passwords, whatever it is called there."""
    files = [*(ROOT / "runs").glob("*.py"), *(ROOT / "dashboard").glob("*.py"), *(ROOT / "src" / "debug").rglob("*.py")]
    assert len(files) > 30
    found = [
        f"{path.name}: {text}"
        for path in files
        for text in re.findall(r"\{[\w.]*(?:\.uri|tracking_uri)(?:![rs])?\}", path.read_text("utf-8"))
    ]
    assert not found


@pytest.mark.parametrize("error", [InputError, TrackingError, OSError, ValueError])
def test_a_script_that_fails_prints_no_password(error, capsys):
    def main(_):
        raise error("cannot reach http://me:s3cret@host:5000/?password=s3cret")

    with pytest.raises(SystemExit) as ended:
        cli.run(main, cli.argparse.Namespace())
    assert ended.value.code == (2 if issubclass(error, DebugError) else 1)
    said = capsys.readouterr().err
    assert "cret" not in said
    assert "http://me:***@host:5000/?password=***" in said or "http://me:***@host" in said


def test_an_export_has_no_password_of_a_command_line(uri, tmp_path):
    store = Store(uri)
    run_id = log_causal(store, [make_map()])
    store.set_tags(run_id, {"debug.command": "x --tracking-uri=postgresql://h/n?password=s3cret"})
    folder = export_run(store.load_run(run_id), tmp_path / "out")
    assert not [path for path in folder.rglob("*.json") if "s3cret" in path.read_text("utf-8")]


@pytest.mark.parametrize("page", ["runs", "compare", "causal_map", "samples", "rerun", "training"])
def test_no_page_shows_the_password_of_a_store_that_cannot_be_reached(page, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9/?password=s3cret")
    st.cache_resource.clear()
    app = AppTest.from_file(str(ROOT / "dashboard" / "app.py"), default_timeout=60)
    if page != "runs":
        app.switch_page(f"{page}.py")
    app.run()
    assert not app.exception
    assert "The tracking store cannot be read." in [error.value for error in app.error]
    shown = "\n".join(str(each.value) for each in [*app.code, *app.error, *app.markdown, *app.caption])
    assert "http://me:***@127.0.0.1:9" in shown
    assert "s3cret" not in shown


def test_links_to_the_mlflow_ui_have_no_password(uri, monkeypatch):
    run_id = log_causal(Store(uri), [make_map()])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("sys.argv", ["app.py", "--mlflow-ui", "http://me:s3cret@localhost:5000/ui/"])
    st.cache_resource.clear()
    app = AppTest.from_file(str(ROOT / "dashboard" / "app.py"), default_timeout=60)
    app.switch_page("runs.py")
    app.query_params["runs"] = run_id
    app.run()
    (link,) = app.get("link_button")
    assert link.proto.url.startswith("http://localhost:5000/ui/#/experiments/")


def test_a_rerun_is_told_its_store_by_the_environment(tmp_path, monkeypatch):
    """Everybody on a machine can read command lines."""
    monkeypatch.syspath_prepend(str(ROOT / "dashboard"))
    import jobs

    of = jobs.Jobs()
    of.start("rerun", "a" * 32, 1, ["a" * 32, "--pairs", "0"], "http://me:s3cret@127.0.0.1:9")
    job, until = of.last, time.monotonic() + 240
    assert job is not None
    while job.running and time.monotonic() < until:
        command = Path(f"/proc/{job.process.pid}/cmdline") if job.process else Path("/nowhere")
        with suppress(OSError):
            assert "s3cret" not in command.read_text()
        time.sleep(0.05)
    assert job.failed
    assert "cannot open the store http://me:***@127.0.0.1:9" in job.said()
    assert "s3cret" not in job.said()
    jobs.WORKER.close()


def test_a_scripts_error_of_a_server_that_is_not_there_has_no_password(tmp_path):
    command = [sys.executable, "runs/export_run.py", "0" * 32, "--tracking-uri", "http://me:s3cret@127.0.0.1:9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_PROXY": "*"})
    assert done.returncode == 2
    assert "http://me:***@127.0.0.1:9" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr
