"""Servers for a real browser to look at."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 120


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """A context that runs ``command(port)`` until the address answers at ``health``, and ends it afterwards."""

    @contextmanager
    def served(command: Callable[[int], list[str]], health: str) -> Iterator[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = tmp_path_factory.mktemp("server") / "log"
        with log.open("w") as file:
            server = subprocess.Popen(command(port), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
            try:
                for _ in range(SECONDS * 4):
                    assert server.poll() is None, log.read_text()
                    try:
                        urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=1)
                        break
                    except (urllib.error.URLError, TimeoutError, ConnectionError):
                        time.sleep(0.25)
                else:
                    pytest.fail(f"no answer from the server in {SECONDS} s; it says: {log.read_text()[-2000:]}")
                yield f"http://127.0.0.1:{port}"
            finally:
                server.terminate()
                server.wait(SECONDS)
        assert not errors_of(log.read_text())

    return served


def errors_of(log: str) -> list[str]:
    """Its tracebacks, without those that Streamlit logs where a reader leaves while it sends."""
    return [each for each in log.split("Traceback (most recent call last)")[1:] if "WebSocketDisconnect" not in each]
