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
from dataclasses import dataclass, field
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).parents[1]


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
