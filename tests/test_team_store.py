"""The page on team stores, followed word by word: from an empty machine to a server that holds two people's runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from debug.provenance import without_passwords
from debug.tracking import Store, housekeeping
from servers import free_port
from test_docs import ROOT, snippets

PAGE = ROOT / "docs" / "how-to" / "team-store.md"
EVERYBODY_ELSE = "export MLFLOW_TRACKING_URI="


def shell(script: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    words = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def passwords(team: Path, process: subprocess.Popen[str]) -> dict[str, str]:
    """As they are handed out."""
    while not (team / "passwords").exists() or len((team / "passwords").read_text().splitlines()) < 2:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.5)
    return dict(line.split() for line in (team / "passwords").read_text().splitlines())


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("apt-get"), reason="needs root on Debian or Ubuntu")
def test_the_page_from_an_empty_machine_to_two_peoples_runs(tmp_path, monkeypatch):
    team, port = tmp_path / "team", free_port()
    steps = snippets(PAGE, "bash", all_of_them=True)
    [number] = [n for n, step in enumerate(steps) if step.startswith(EVERYBODY_ELSE)]
    of_server, of_others = steps[:number], steps[number]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    environment |= {"TEAM": str(team), "NAME": "localhost", "PORT": str(port), "DEBUG_SPOOL": str(tmp_path / "spool")}
    seen: set[str] = set()
    watching = threading.Event()

    def watch() -> None:
        """What every user of the machine can see: command lines."""
        while not watching.wait(0.2):
            for process in psutil.process_iter(["cmdline"]):
                seen.update(process.info["cmdline"] or [])

    threading.Thread(target=watch, daemon=True).start()
    try:
        ada = shell("\n".join([*of_server, of_others]), environment)
        known = passwords(team, ada)
        said_to_ada, _ = ada.communicate(f"{known['ada']}\n", timeout=500)
        assert ada.returncode == 0, said_to_ada
        grace = shell(of_others, environment | {"MLFLOW_TRACKING_USERNAME": "grace"})
        said_to_grace, _ = grace.communicate(f"{known['grace']}\n", timeout=300)
        assert grace.returncode == 0, said_to_grace
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(team / "server.crt"))
        store = Store(f"https://ada:{known['ada']}@localhost:{port}")
        users = [store.load_run(run_id).tags["mlflow.user"] for run_id in store.find_runs(role="study")["run_id"]]
        assert len(users) == 4, "an accuracy and a causal run of each"
        assert [problem for problem in housekeeping.problems(store) if problem is not None] == []
        watching.set()
        secrets = [
            *known.values(),
            *(line.partition("=")[2] for line in (team / "server.env").read_text().splitlines()),
        ]
        secrets = [secret for secret in secrets if "/" not in secret]
        tags = [value for run in store.find_runs()["run_id"] for value in store.load_run(run).tags.values()]
        for text in (
            said_to_ada,
            said_to_grace,
            str(store),
            "\n".join(tags),
            (team / "log").read_text(),
            "\n".join(seen),
        ):
            assert not [secret for secret in secrets if secret in text]
        assert "***" in without_passwords(store.uri)
        with pytest.raises(Exception, match=r"401|[Uu]nauthorized|not authenticated"):
            Store(f"https://ada:wrong@localhost:{port}").find_runs()
    finally:
        watching.set()
        for process in psutil.process_iter(["cmdline"]):
            if str(port) in (process.info["cmdline"] or []):
                process.send_signal(signal.SIGTERM)
        end = "psql -c 'DROP DATABASE IF EXISTS mlflow WITH (FORCE)' -c 'DROP ROLE IF EXISTS mlflow'"
        subprocess.run(["su", "postgres", "-c", end], check=False, capture_output=True)


def test_the_containers_are_told_what_the_page_tells_a_machine():
    content = yaml.safe_load((PAGE.parent / "team" / "compose.yaml").read_text("utf-8"))
    page = "\n".join(snippets(PAGE, "bash", all_of_them=True))
    told = content["services"]["mlflow"]["environment"].keys() - {"NAME"}
    assert told == set(re.findall(r"^(MLFLOW_\w+)=\S*(?:\(secret\))?$", page, re.MULTILINE))
    [_, _, script] = content["services"]["mlflow"]["command"]
    for line in (
        "default_permission = EDIT",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
    ):
        assert line in script
        assert line in page
