"""A process that has imported what takes seconds, and carries out commands in forks of itself: they begin at once.

``python -m debug.commands.worker`` reads a job a line (JSON) and answers with the id of its process; it ends with the
one that writes to it. (Not multiprocessing's forkserver: it runs the main module anew, which in Streamlit is the app.)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from debug.commands import run

PRELOADED = (
    *("debug.rerun.causal", "debug.rerun.accuracy", "debug.models.loading", "debug.causal_visualization.logged"),
    *("nnsight", "altair", "vl_convert"),
)


@dataclass
class Running:
    """A command that was begun."""

    pid: int
    log: Path

    @property
    def exit_code(self) -> int | None:
        """None while it goes on; 1 too where it was killed."""
        try:
            return int(_exit_file(self.log).read_text() or "1")
        except FileNotFoundError:
            return None if _is_alive(self.pid) else 1

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)


class Worker:
    """The process that others are forked from; it begins to import when it is first asked to. Thread-safe.

    Where the code on disk is not what it has imported, another one takes its place: what a run records of its code is
    read when it begins.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._code: object = None
        self._lock, self._asking = threading.Lock(), threading.Lock()

    def warm(self) -> None:
        """Begin to import; returns at once, also while :meth:`start` waits."""
        code = _code_on_disk()
        with self._lock:
            if self._process is not None and code != self._code:
                self._process.terminate()
                self._process.wait(20)
            if self._process is None or self._process.poll() is not None:
                self._code = code
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "debug.commands.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # Ctrl-C in the terminal of the server is the server's
                )

    def start(self, name: str, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
        """Carry out a command as if it had been typed; what it prints goes into a file. Waits until all is imported.

        Raises OSError where the process that it would be forked from has died.
        """
        job = {"name": name, "words": list(words), "log": str(log), "environment": dict(environment)}
        with self._asking:
            self.warm()
            process = self._process
            assert process is not None
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer.strip().isdecimal():
            raise OSError("the process that re-runs are forked from has ended; the log of the server says why")
        return Running(int(answer), log)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None


WORKER = Worker()
"""One a server is enough: it holds some 700 MB."""


def _code_on_disk() -> object:
    """When each file of the package was last written."""
    package = Path(__file__).parents[1]
    return sorted((str(file), file.stat().st_mtime_ns) for file in package.rglob("*.py"))


def _exit_file(log: Path) -> Path:
    return log.with_suffix(".exit")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is forked
    for name in PRELOADED:
        import_module(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until cli.run in the fork can hear it
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _carry_out(job["name"], job["words"], Path(job["log"]), job["environment"])
        print(pid, flush=True)


def _carry_out(name: str, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> NoReturn:
    code: object = 0
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        out, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), os.open(os.devnull, os.O_RDONLY)
        for stream, number in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(stream, number)
        os.environ.update(environment)
        sys.argv = ["debug", name, *words]
        run(name, words)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        number = code if isinstance(code, int) else 0 if code is None else 1
        _exit_file(log).with_suffix(".tmp").write_text(str(number))
        os.replace(_exit_file(log).with_suffix(".tmp"), _exit_file(log))
        os._exit(number)


if __name__ == "__main__":
    main()
