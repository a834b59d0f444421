"""The dashboard's server, asked by real requests: from this machine, by its own names, and by no other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 120
OWN = ("localhost", "127.0.0.1", "[::1]")
FOREIGN = ("rebound.example", "127.0.0.1.rebound.example", "localhost@rebound.example", "", "10.0.0.1")


@contextmanager
def started(cwd: Path, folder: Path, *options: str) -> Iterator[psutil.Process]:
    """As `make dashboard` starts it but for the port; its store and its log are in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "debug", "dashboard", f"--port={port}", *options, "--", "--server.headless=true"]
    log = folder / "log"
    with log.open("w") as file:
        env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + SECONDS
        while not listening(psutil.Process(process.pid)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.25)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.fixture(scope="module", params=["elsewhere", "here"])
def server(request, tmp_path_factory) -> Iterator[psutil.Process]:
    """From the project's folder, and from one that is none."""
    cwd = tmp_path_factory.mktemp("elsewhere") if request.param == "elsewhere" else ROOT
    with started(cwd, tmp_path_factory.mktemp("store")) as process:
        yield process


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    sockets = (each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN)
    return [(address.ip, address.port) for address in sockets if address]


def status(process: psutil.Process, path: str, host: str, **headers: str) -> int:
    """The status code of the answer to a request that names this host."""
    [(address, port)] = listening(process)
    address = "127.0.0.1" if address == "0.0.0.0" else address
    headers = {"Host": f"{host}:{port}" if host else "", "Connection": "close", **headers}
    lines = [f"GET {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    with socket.create_connection((address, port), SECONDS) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return int(connection.makefile("rb").readline().split()[1])


def stream(process: psutil.Process, host: str) -> int:
    """The same of the websocket, for a page that comes from that host too: 101 where it is opened."""
    [(_, port)] = listening(process)
    return status(
        process,
        "/_stcore/stream",
        host,
        Connection="Upgrade",
        Upgrade="websocket",
        Origin=f"http://{host}:{port}",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
    )


def test_it_listens_on_this_machine_alone(server):
    assert [address for address, _ in listening(server)] == ["127.0.0.1"]


@pytest.mark.parametrize("host", OWN)
def test_it_answers_to_its_own_names(server, host):
    assert [status(server, path, host) for path in ("/", "/rerun", "/_stcore/health")] == [200, 200, 200]
    assert stream(server, host) == 101


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_header_is_refused(server, host):
    """A page elsewhere may have a name of its own lead to this machine's address (DNS rebinding)."""
    paths = ("/", "/rerun", "/_stcore/health", "/_stcore/host-config", "/media/a.csv")
    assert {status(server, path, host) for path in paths} <= {400, 403}
    assert stream(server, host) in (400, 403)


def test_a_public_one_listens_on_every_address_and_says_what_that_means(tmp_path):
    with started(tmp_path, tmp_path, "--public", "lab.example", "--allow", "edit") as server:
        assert [address for address, _ in listening(server)] == ["0.0.0.0"]
        for host in ("lab.example", "localhost"):
            assert status(server, "/", host) == 200
            assert stream(server, host) == 101
        for host in FOREIGN:
            assert status(server, "/", host) in (400, 403)
            assert stream(server, host) in (400, 403)
    said = (tmp_path / "log").read_text()
    assert "can read every run of" in said
    assert "There is no password" in said
    assert "Whoever reads may start or make: changes of notes, tags and the archive." in said
    assert "Off (--allow turns them on): re-runs, runs of Try it." in said


def test_make_dashboard_starts_that_server(tmp_path):
    command = ["make", "--dry-run", "--old-file=.venv/installed", "-C", str(ROOT), "dashboard"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ".venv/bin/debug dashboard\n" in done.stdout


@pytest.mark.parametrize(
    ("address", "host", "remote", "forwarded", "said"),
    [
        ("127.0.0.1", "localhost:8501", None, [], None),
        ("::1", "[::1]:8501", "::1", [], None),
        ("localhost", "127.0.0.1", "127.0.0.1", [], None),
        (None, "localhost:8501", None, [], "every address of this machine"),
        ("0.0.0.0", "localhost:8501", None, [], "listens on 0.0.0.0"),
        ("127.0.0.1", "lab.example:8501", None, [], "a name other than localhost"),
        ("127.0.0.1", "localhost", "10.0.0.7", [], "from another machine"),
        ("127.0.0.1", "localhost", None, ["X-Forwarded-For"], "through a proxy (X-Forwarded-For)"),
    ],
)
def test_processes_are_started_for_readers_of_this_machine_alone(monkeypatch, address, host, remote, forwarded, said):
    monkeypatch.syspath_prepend(str(ROOT / "dashboard"))
    from jobs import not_local

    why = not_local(address, host, remote, forwarded)
    assert (why is None) if said is None else said in (why or "")
