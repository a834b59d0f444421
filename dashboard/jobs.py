"""A re-run in a process of its own: started, followed, stopped from a page. One at a time: it takes all cores.

The process is runs/rerun.py, so that what a page starts is what a command line would. It ends with the server.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import streamlit as st

ROOT = Path(__file__).parents[1]


def why_off() -> str | None:
    """Why no process is started from this page: somebody on another machine may be looking at it; None where nobody
    can be. Asked for each reader, each time."""
    headers = st.context.headers
    forwarded = [name for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP") if name in headers]
    return not_local(st.get_option("server.address"), headers.get("Host"), st.context.ip_address, forwarded)


def not_local(address: str | None, host: str | None, remote: str | None, forwarded: Sequence[str] = ()) -> str | None:
    """What shows that a dashboard is not this machine's alone.

    Args:
        address: that the server listens on; None: all of the machine's.
        host: the Host header of a request; None: there was none.
        remote: where it came from; None: this machine.
        forwarded: its headers that a proxy writes.
    """
    if not is_loopback(address or ""):
        return f"the dashboard listens on {address or 'every address of this machine'}, not on 127.0.0.1 alone"
    if host is not None and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        return "the page was asked for by a name that is not this machine's own (localhost)"
    if remote is not None and not is_loopback(remote):
        return "the page was asked for from another machine"
    return f"the page was asked for through a proxy ({forwarded[0]})" if forwarded else None


def is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass
class Job:
    """What runs, or ran last: its process, and what it was asked."""

    of: str
    """The run that is repeated."""
    pairs: int
    command: list[str]
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.time)
    stopped: bool = False

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """As Ctrl-C: the run is marked KILLED and keeps what is done."""
        self.stopped = True
        if self.running:
            self.process.send_signal(signal.SIGINT)

    def said(self) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-4000:].decode("utf-8", "replace")


class Jobs:
    """The one job that a server runs at a time."""

    def __init__(self) -> None:
        self.last: Job | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="rerun-")
        atexit.register(self._end)

    def start(self, of: str, pairs: int, arguments: list[str], tracking_uri: str) -> None:
        """The store goes into the environment: everybody on a machine can read command lines.

        Raises RuntimeError while another one runs.
        """
        if self.last is not None and self.last.running:
            raise RuntimeError("another re-run is going on")
        command = [sys.executable, str(ROOT / "runs" / "rerun.py"), *arguments]
        log = Path(self._folder.name) / f"{time.time_ns()}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"MLFLOW_TRACKING_URI": tracking_uri},
            )
        self.last = Job(of, pairs, command, process, log)

    def _end(self) -> None:
        if self.last is not None and self.last.running:
            self.last.stop()
            try:
                self.last.process.wait(20)
            except subprocess.TimeoutExpired:
                self.last.process.kill()


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    return Jobs()
