"""A run in its own process, started, followed and stopped from a page. One at a time: it uses all CPU cores.

The process is `debug rerun` or `debug trace`: a page starts what the command line would. It is forked from one that
has imported what takes seconds, and ends with the server.
"""

from __future__ import annotations

import atexit
import hashlib
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import streamlit as st
from store import options

from debug.commands.worker import WORKER, Running


def why_off(what: str) -> str | None:
    """Why this page may not do something that changes the store or starts a process (a reader may be on another
    machine); None where it may, or where it is among the words of ``debug dashboard --allow``. Evaluated for each
    request."""
    if what in options().allow:
        return None
    headers = st.context.headers
    forwarded = [name for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP") if name in headers]
    return not_local(st.get_option("server.address"), headers.get("Host"), st.context.ip_address, forwarded)


def not_local(address: str | None, host: str | None, remote: str | None, forwarded: Sequence[str] = ()) -> str | None:
    """Why a request may come from another machine; None where it cannot.

    Args:
        address: the one that the server listens on; None: all addresses of the machine.
        host: the Host header of a request; None: there was none.
        remote: the address that the request came from; None: this machine.
        forwarded: those of its headers that a proxy adds.
    """
    if not is_loopback(address or ""):
        return f"the dashboard listens on {address or 'every address of this machine'}, not on 127.0.0.1 alone"
    if host is not None and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        return "the page was requested under a name other than localhost"
    if remote is not None and not is_loopback(remote):
        return "the page was requested from another machine"
    return f"the page was requested through a proxy ({forwarded[0]})" if forwarded else None


def is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass
class Job:
    """The run that is going on, or was the last: its process and its settings."""

    command: str
    """The subcommand of `debug`."""
    of: str
    """The run that is repeated; empty where something new is tried."""
    pairs: int
    log: Path
    started: float = field(default_factory=time.time)
    stopped: bool = False
    process: Running | None = None
    """None while it begins: the first one has to wait for imports."""
    broken: bool = False

    def begin(self, arguments: list[str], tracking_uri: str) -> None:
        try:
            self.process = WORKER.start(self.command, arguments, self.log, {"MLFLOW_TRACKING_URI": tracking_uri})
        except OSError as error:
            self.log.write_text(f"no process could be started: {error}")
            self.broken = True
        if self.stopped:
            time.sleep(1)  # until it hears
            self.stop()

    @property
    def running(self) -> bool:
        return not self.broken and (self.process is None or self.process.exit_code is None)

    @property
    def failed(self) -> bool:
        return self.broken or (self.process is not None and self.process.exit_code not in (None, 0))

    def stop(self) -> None:
        """Like Ctrl-C: the run is marked KILLED and keeps the finished pairs."""
        self.stopped = True
        if self.process is not None:
            self.process.interrupt()

    def said(self) -> str:
        """The end of its output."""
        return self.log.read_bytes()[-4000:].decode("utf-8", "replace")


class Jobs:
    """The one job that a server runs at a time."""

    def __init__(self) -> None:
        self.last: Job | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="rerun-")
        atexit.register(self._end)

    def start(self, command: str, of: str, pairs: int, arguments: list[str], tracking_uri: str) -> None:
        """The store is passed in the environment: every user of a machine can read command lines.

        Raises RuntimeError while another one is running.
        """
        if self.last is not None and self.last.running:
            raise RuntimeError("another run is running")
        log = Path(self._folder.name) / f"{time.time_ns()}.log"
        log.touch()
        self.last = Job(command, of, pairs, log)
        threading.Thread(target=self.last.begin, args=(arguments, tracking_uri), daemon=True).start()

    def file_of(self, text: str, name: str) -> Path:
        """A file with this text, for a job to read."""
        folder = Path(self._folder.name) / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
        return folder / name

    def _end(self) -> None:
        if self.last is not None and self.last.process is not None:
            self.last.stop()
            until = time.monotonic() + 20
            while self.last.running and time.monotonic() < until:
                time.sleep(0.1)
            self.last.process.kill()
        WORKER.close()


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    return Jobs()
