"""The command ``debug``: what it lists, completes and refuses; the scripts of runs/ are it, by older names."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from debug.commands import COMMANDS
from debug.commands.worker import Running, Worker
from debug.tracking import find_runs, load_run

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "scipy", "mlflow", "pydantic", "nnsight", "transformers", "streamlit"}


def debug(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "debug", *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)


def test_it_lists_its_commands_with_what_they_do() -> None:
    assert debug("help", "trace").stdout == debug("trace", "--help").stdout
    for words in ((), ("--help",)):
        done = debug(*words)
        assert done.returncode == 0
        listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
        assert listed == list(COMMANDS)
        assert all(len(line.split()) > 5 for line in done.stdout.splitlines() if line.startswith("  "))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_and_imports_nothing_that_takes_seconds(name: str) -> None:
    code = f"import sys; sys.argv[1:] = [{name!r}, '--help']\nfrom debug.commands import main\n"
    code += "try:\n    main()\nfinally:\n    print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.count(f"debug {name}") >= 3, done.stderr
    assert HEAVY & set(done.stdout.splitlines()[-1].split()) == set()


def test_an_unknown_command_is_refused_with_the_one_that_was_meant() -> None:
    for words in (["tarce"], ["help", "tarce"]):
        done = debug(*words)
        assert done.returncode == 2
        assert "there is no command 'tarce'" in done.stderr
        assert "did you mean 'trace'?" in done.stderr


def completed(line: str, tmp_path: Path) -> set[str]:
    """What a shell is told where the tab key is pressed behind this line."""
    answer = tmp_path / "answer"
    debug(
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="\n",
        _ARGCOMPLETE_STDOUT_FILENAME=str(answer),
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    return {word.strip() for word in answer.read_text().splitlines()}


def test_the_tab_key_completes_commands_options_and_their_values(tmp_path: Path) -> None:
    assert completed("debug re", tmp_path) == {"rerun"}
    assert {"--layers", "--layer-window"} <= completed("debug trace --lay", tmp_path)
    assert completed("debug trace --intervention-type att", tmp_path) == {
        *("attention", "attention_heads", "attention_knockout"),
    }


def test_the_version_is_the_package_s() -> None:
    assert debug("--version").stdout == "debug-lm 0.1.0\n"


def ended(running: Running) -> int | None:
    until = time.monotonic() + 240
    while running.exit_code is None and time.monotonic() < until:
        time.sleep(0.05)
    return running.exit_code


class Mute:
    stdin, stdout = io.StringIO(), io.StringIO()
    poll = staticmethod(lambda: None)


def test_a_process_that_is_forked_begins_at_once_and_can_be_stopped(uri: str, tmp_path: Path) -> None:
    """As re-runs of the dashboard do; what is imported before it is forked, it does not import again."""
    worker = Worker()
    unknown = worker.start("rerun", ["0123456789"], tmp_path / "log", {"MLFLOW_TRACKING_URI": uri})
    assert ended(unknown) == 2
    assert "no run '0123456789' in the store" in (tmp_path / "log").read_text()
    words = ["--num-seqs", "100000", "--no-control", "--name", "stopped"]
    long = worker.start("trace", words, tmp_path / "second", {"MLFLOW_TRACKING_URI": uri})
    deadline = time.monotonic() + 120
    while find_runs(experiment="stopped", role="cell", tracking_uri=uri).is_empty() and time.monotonic() < deadline:
        time.sleep(0.1)
    long.interrupt()
    assert ended(long) == 130, (tmp_path / "second").read_text()
    runs = find_runs(experiment="stopped", tracking_uri=uri)
    assert set(runs["status"]) == {"KILLED"}
    command = load_run(runs["run_id"][0], uri).tags["debug.command"]
    assert "debug trace --num-seqs 100000" in command
    before = worker._process
    worker._code = "of before"
    worker.warm()
    assert worker._process is not before, "another one imports the code that is there now"
    at_once = worker.start("trace", words, tmp_path / "early", {"MLFLOW_TRACKING_URI": uri})
    at_once.interrupt()
    assert ended(at_once) == 130, "also before the command can hear it"
    killed = worker.start("trace", words, tmp_path / "third", {"MLFLOW_TRACKING_URI": uri})
    killed.kill()
    assert ended(killed) == 1
    worker.close()
    worker._process = Mute()  # type: ignore[assignment]  (one that has just died)
    with pytest.raises(OSError, match="has ended"):
        worker.start("trace", words, tmp_path / "fourth", {})
