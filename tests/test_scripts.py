"""The scripts in runs/ as a person starts them: what they print, and how they end."""

import argparse
import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from debug import cli, tracking

ROOT = Path(__file__).parent.parent


def start(script, *arguments, uri, cwd=ROOT):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "runs" / script), *arguments],
        cwd=cwd,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script, *arguments, uri, cwd=ROOT):
    process = start(script, *arguments, uri=uri, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "runs").glob("*.py")))
def test_help_explains_with_examples(script, uri):
    code, out, _ = run(script, "--help", uri=uri)
    assert code == 0
    assert f"python runs/{script}" in out


def test_quickstart_says_what_it_found_and_where_to_look(uri, tmp_path):
    small = ("--num-seqs", "10", "--num-pairs", "5", "--hops", "1", "3")
    for _ in range(2):  # again adds runs and breaks nothing
        code, out, err = run("quickstart.py", *small, uri=uri, cwd=tmp_path)
        assert code == 0, err
    for expected in ("accuracy", "peak", "self-checks", "make dashboard", "make mlflow", uri):
        assert expected in out
    runs = tracking.find_runs(tracking_uri=uri)
    assert set(runs["status"]) == {"FINISHED"}
    assert sorted(runs.filter(role="study")["kind"]) == ["accuracy"] * 2 + ["causal_tracing"] * 2


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("causal_trace.py", ["--models", "./nowhere"], "looks like a folder, and there is none"),
        ("causal_trace.py", ["--seq-lens", "0"], "seq_len is 0"),
        ("causal_trace.py", ["--hops", "6"], "1 to 5 hops"),
        ("causal_trace.py", ["--prompt", "no place for it"], "{code}"),
        ("causal_trace.py", ["--generator", "nonsense"], "unknown generator"),
        ("accuracy.py", ["--models", "./nowhere"], "looks like a folder, and there is none"),
        ("accuracy.py", ["--seq-lens", "0"], "seq_len is 0"),
        ("accuracy.py", ["--hops", "6", "--seq-lens", "5"], "hops"),
        ("accuracy.py", ["--batch-size", "0"], "batch_size is 0"),
        ("accuracy.py", ["--prompt", "no place for it"], "{code}"),
        ("accuracy.py", ["--generator", "nonsense"], "unknown generator"),
        ("rerun.py", ["0123456789"], "no run '0123456789' in the store"),
        ("rerun.py", ["0123456789", "--set", "layers"], "expected FIELD=VALUE"),
        ("export_run.py", ["0123456789"], "no run '0123456789' in the store"),
        ("export_run.py", ["--import", "./nowhere"], "there is no export nowhere"),
        ("import_results.py", ["./nowhere"], "there is no file or folder 'nowhere'"),
        ("quickstart.py", ["--tracking-uri", "file:///tmp/mlruns"], "expected sqlite:///folder/mlflow.db"),
        ("quickstart.py", ["--tracking-uri", "http://127.0.0.1:9"], "start the server or correct the address"),
        ("quickstart.py", ["--tracking-uri", "sqlite:////proc/nowhere/mlflow.db"], "proc/nowhere"),
    ],
)
def test_bad_input_ends_with_one_clear_message(script, arguments, message, uri, monkeypatch, capsys):
    """In this process: starting Python and importing torch for each would take most of the suite's time."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "runs" / script), run_name="__main__")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert "RUNNING" not in tracking.find_runs(tracking_uri=uri)["status"].to_list()


def in_process(script, *arguments, monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "runs" / script), run_name="__main__")
    return capsys.readouterr().out


def test_a_run_is_repeated_exported_and_imported_from_the_command_line(uri, tmp_path, monkeypatch, capsys):
    def start(script, *arguments):
        return in_process(script, *arguments, "--tracking-uri", uri, monkeypatch=monkeypatch, capsys=capsys)

    start("causal_trace.py", "--num-seqs", "2")
    (run_id,) = tracking.find_runs(role="cell", tracking_uri=uri)["run_id"]
    said = start("rerun.py", run_id[:10])
    assert f"repeats {run_id}: identical" in said
    assert "#/experiments/1/runs?" in said
    assert "repeats" in start(
        "rerun.py", run_id, "--intervention-type", "mlp", "--layers", "0", "--positions", "final", "2"
    )
    newest = tracking.find_runs(role="cell", tracking_uri=uri, limit=1)
    assert newest.select("params.intervention_type", "params.positions", "params.layers").row(0) == (
        "mlp",
        "final,2",
        "0",
    )
    assert str(tmp_path / "run.zip") in start("export_run.py", run_id, "--to", str(tmp_path / "run.zip"))
    said = start("export_run.py", "--import", str(tmp_path / "run.zip"))
    assert "was made in" in said
    assert "#/experiments/" in said
    assert "was there already" in start("export_run.py", "--import", str(tmp_path / "run.zip"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_a_valid_store(number, uri, tmp_path):
    process = start("causal_trace.py", "--num-seqs", "100000", uri=uri)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.rglob("samples.jsonl")):
        time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert set(tracking.find_runs(tracking_uri=uri)["status"]) == {"KILLED"}


def _dropped():
    """An interrupt in a callback of a weak reference, which Python reports and goes on."""
    watched = type("Watched", (), {})()
    held = weakref.ref(watched, lambda _: signal.raise_signal(signal.SIGINT))
    del watched
    assert held() is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_library_drops_is_said_again(capsys):
    started = time.monotonic()

    def main(_):
        _dropped()
        time.sleep(60)

    with pytest.raises(SystemExit) as ended:
        cli.run(main, argparse.Namespace())
    assert ended.value.code == 130
    assert time.monotonic() - started < 10
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_interrupt_that_was_heard_is_not_said_again_while_the_run_is_kept(capsys):
    kept = []

    def main(_):
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            with contextlib.suppress(ValueError):
                time.sleep(0.5)
                raise ValueError
            try:
                int("none")
            except ValueError:
                time.sleep(0.5)
            kept.append("run")

    with pytest.raises(SystemExit) as ended:
        cli.run(main, argparse.Namespace())
    assert ended.value.code == 130
    assert kept == ["run"]
