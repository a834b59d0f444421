"""Real servers on this machine, for tests and for benchmarks, that can be killed and started again where they stood."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import requests


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(ready: Callable[[], object], process: subprocess.Popen, log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()
        try:
            if ready():
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready after two minutes: {log.read_text()}")


class MlflowServer:
    """An MLflow server, started as a stranger would.

    Args:
        folder: its database, unless another is named, its artifacts and its log.
        empty_database: what is copied to be its database; or the URI of one.
        host: what it listens on.
    """

    def __init__(self, folder: Path, empty_database: Path | str, host: str = "127.0.0.1") -> None:
        self.folder, self.port, self.host = folder, free_port(), host
        self.backend = empty_database if isinstance(empty_database, str) else f"sqlite:///{folder}/mlflow.db"
        if isinstance(empty_database, Path):
            shutil.copy(empty_database, folder / "mlflow.db")
        self.address = f"http://{host}:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.backend, "--serve-artifacts"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # half of its processes
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True
            )
        wait_for(lambda: requests.get(f"{self.address}/health", timeout=5).ok, self.process, self.folder / "log")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        self.process.wait(20)


class PostgresMissing(Exception):
    """PostgreSQL is not installed."""


class Postgres:
    """A PostgreSQL server with an empty database, as a user who is not root.

    Raises:
        PostgresMissing: says how to install it.
    """

    def __init__(self, *settings: str) -> None:
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")) or [shutil.which("initdb") or ""]
        if not found[-1]:
            raise PostgresMissing("PostgreSQL's initdb is not installed (Debian: apt-get install postgresql)")
        self.binaries, self.settings = Path(found[-1]).parent, settings
        # it refuses to run as root, and may not enter pytest's own folders as somebody else
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="postgresql-")), free_port()
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        self._run("initdb", "-D", "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync", check=True)
        self.uri = f"postgresql+psycopg2://tester:secret@127.0.0.1:{self.port}/postgres"
        self.start()

    def _run(self, program: str, *words: str, check: bool) -> int:
        command = [self.binaries / program, *words]
        done = subprocess.run(command, check=check, capture_output=True, cwd=self.folder, **self.user)  # type: ignore[call-overload]  (of dicts pyright knows no keywords)
        return done.returncode

    def start(self) -> None:
        command = [self.binaries / "postgres", "-D", "data", "-p", str(self.port), "-k", self.folder]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *(word for each in self.settings for word in ("-c", each))],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self.user,  # type: ignore[call-overload]  (as above)
            )
        ready = ["-q", "-h", "127.0.0.1", "-p", str(self.port)]
        wait_for(lambda: self._run("pg_isready", *ready, check=False) == 0, self.process, self.folder / "log")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is its fast shutdown, SIGQUIT the one from which it has to recover."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(20)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


class Wire:
    """A port of this machine that leads to another one, until it is cut: connections hang, new ones are refused."""

    def __init__(self, port: int) -> None:
        self._to, self._whole, self._ends = port, threading.Event(), list[socket.socket]()
        self._whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        for end in [self._listener, *self._ends]:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if not self._whole.is_set():
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while content := one.recv(2**16):
                self._whole.wait()
                other.sendall(content)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class SlurmMissing(Exception):
    """Slurm is not installed, or this is not root."""


SLURM = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MinJobAge=600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A Slurm of one node, this machine. Its commands find it by SLURM_CONF, which is set while it runs."""

    def __init__(self) -> None:
        """Raises SlurmMissing."""
        if os.getuid() != 0 or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
            raise SlurmMissing("no Slurm: apt-get install slurm-wlm munge, as root")
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        host = socket.gethostname()
        config = self.folder / "slurm.conf"
        ports = [free_port(), free_port()]
        config.write_text(SLURM.format(folder=self.folder, host=host, ports=ports, cpus=os.cpu_count()))
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir()
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        subprocess.run(["chown", "-R", "munge:munge", munge], check=True)
        named = {name: munge / name for name in ("key-file", "socket", "pid-file", "log-file", "seed-file")}
        named["key-file"], named["socket"] = munge / "key", munge / "socket"
        self._run("runuser", "-u", "munge", "--", "munged", "--force", *(f"--{n}={at}" for n, at in named.items()))
        self.before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(config)
        self._run("slurmctld")
        self._run("slurmd")
        for _ in range(300):
            if "idle" in self.said("sinfo", "--noheader"):
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "slurmctld.log").read_text())

    def _run(self, *words: str | Path) -> None:
        subprocess.run(words, check=True, capture_output=True)

    def said(self, *words: str) -> str:
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout

    def remove(self) -> None:
        self.said("scancel", "--full", "--user=root")
        self.said("scontrol", "shutdown")
        time.sleep(1)
        with suppress(OSError, ValueError):
            os.kill(int((self.folder / "munge" / "pid-file").read_text()), signal.SIGTERM)
        if self.before is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = self.before
        shutil.rmtree(self.folder, ignore_errors=True)
