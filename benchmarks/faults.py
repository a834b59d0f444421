"""Kill, starve and cut off runs at random moments, by the hundred; then look for what was lost, doubled or changed.

.venv/bin/python benchmarks/faults.py                                    # every fault; most of an hour on two cores
.venv/bin/python benchmarks/faults.py --only "kill -9" --subjects seeds --times 2

A trial begins a study, strikes, begins it again, strikes again, and lets it end. What is then in the store is read
without this project's code (SQL, files) and held against a study that nothing disturbed: every sample and pair, every
metric, every map and every activation, bit for bit. Faults that need root (a small file system, network namespaces), a
PostgreSQL or an MLflow server are left out, with a word, where these are not to be had.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import sqlalchemy

from servers import MlflowServer, Postgres, Wire

SUBJECTS = {
    "accuracy": "accuracy --models tiny --hops 1 2 3 --num-seqs 60 --batch-size 8",
    "causal": "trace --positions targets --hops 1 2 3 --num-seqs 12 --save-activations targets",
    "seeds": "seeds --hops 1 2 3 --seq-lens 9 --num-seeds 40 --batch-size 8",
    "training": "train --resume --out training --steps 200",
}
"""Command lines; each gets a name of its own, but for training, which has its folder."""
PRELOADED = ("debug.commands.startup", "debug.runner", "debug.causal_experiment_runner", "debug.robust_seeds")
PRELOADED += ("debug.training", "debug.models.loading", "debug.tracking.store", "nnsight", "altair", "vl_convert")
FORKS = multiprocessing.get_context("forkserver")
TIMED = {"interventions_per_second", "samples_per_second"}
ROUNDS = 4  # strikes in a trial, at most, of faults that end a process
CUT = 60.0  # seconds


# --- processes -------------------------------------------------------------------------------------------------------


def carry_out(words: list[str], folder: Path, log: Path, back_after: float, host: str | None) -> None:
    """In a fork that has imported everything: a command as if it had been typed in this folder, on this host."""
    from debug import commands, training

    os.setsid()
    if host is not None:
        go_to(host)
    os.chdir(folder)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["DEBUG_SPOOL"] = str(folder.parent / "spool")
    clock, begun = time.time, time.time()
    if back_after < math.inf:
        time.time = lambda: clock() - 3600 * (clock() > begun + back_after)
    if words[0] == "train":
        short = {
            "naming_steps": 20,
            "tokens_per_step": 256,
            "n_layers": 2,
            "save_every": 7,
            "warmup_steps": 20,
            "log_every": 5,
        }
        settings = training.Settings
        training.HELD_OUT = {(None, 5): 20, (2, 5): 20}
        training.Settings = lambda **given: settings(**{**short, "evaluate_every": 100, **given})
    sys.argv = ["debug", *words]
    commands.run(words[0], words[1:])


@dataclass
class Ground:
    """Where a trial takes place: a folder to work in, a store, and where SQL and files of that are."""

    folder: Path
    uri: str
    database: str
    artifacts: Path
    server: MlflowServer | Postgres | Wire | None = None
    fill: Path | None = None
    """A small file system of its own."""
    hosts: tuple[str, ...] = ()

    def begin(self, subject: str, name: str, *more: str, back_after: float = math.inf, host: int = 0) -> BaseProcess:
        words = [*SUBJECTS[subject].split(), "--tracking-uri", self.uri, *more]
        words += [] if subject == "training" else ["--name", name]
        at = self.hosts[host] if self.hosts else None
        process = FORKS.Process(target=carry_out, args=(words, self.folder, self.log, back_after, at))
        process.start()
        return process

    def sync(self) -> BaseProcess:
        """What is to be done where a command has ended while the store was away."""
        words = ["store", "sync", "--tracking-uri", self.uri]
        process = FORKS.Process(target=carry_out, args=(words, self.folder, self.log, math.inf, None))
        process.start()
        return process

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    @cached_property
    def log(self) -> Path:
        """Of its processes; on no small file system."""
        return Path(tempfile.mkdtemp(prefix="faults-")) / "log"


_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NAMES, _NETWORK = 0x04000000, 0x40000000  # CLONE_NEWUTS, CLONE_NEWNET of sched.h


def go_to(host: str) -> None:
    """Into a network of one's own, under a name of one's own; this process is one of another machine from now on."""
    with Path(f"/run/netns/{host}").open() as namespace:
        failed = _LIBC.setns(namespace.fileno(), _NETWORK) or _LIBC.unshare(_NEW_NAMES)
    if failed or _LIBC.sethostname(host.encode(), len(host)):
        raise OSError(ctypes.get_errno(), f"cannot become host {host}")


# --- what is in a store, read without this project -------------------------------------------------------------------


def is_finished(ground: Ground, name: str) -> bool:
    """Whether a study (or a training run) of this experiment ended well."""
    engine = sqlalchemy.create_engine(ground.database, poolclass=sqlalchemy.NullPool)
    query = """select count(*) from runs r join experiments e on e.experiment_id = r.experiment_id
        where e.name = :name and r.status = 'FINISHED' and r.run_uuid not in
        (select run_uuid from tags where key = 'debug.cell')"""
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text(query), {"name": name}).scalar()
    engine.dispose()
    return bool(found)


class Cell(NamedTuple):
    """What a study has of one place. Samples as they stand in the file."""

    runs: int
    status: str
    samples: Counter[str]
    files: dict[str, str]
    metrics: dict[str, float]
    """By name and step, the latest: what a run that was stopped said of its few samples it corrects in the end."""


def found_in(ground: Ground, subject: str, name: str) -> dict[str, Cell]:
    """By place. Of training there is one: the history in its folder and the metrics of the run that was finished."""
    engine = sqlalchemy.create_engine(ground.database, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:

        def rows(query: str) -> list[tuple]:
            return [tuple(row) for row in connection.execute(sqlalchemy.text(query), {"name": name})]

        of_name = "from runs r join experiments e on e.experiment_id = r.experiment_id"
        where = "where e.name = :name and r.lifecycle_stage = 'active'"
        status = {
            run: (state, uri) for run, state, uri in rows(f"select run_uuid, status, artifact_uri {of_name} {where}")
        }
        tags: dict[str, dict[str, str]] = {run: {} for run in status}
        for run, key, value in rows(
            f"select t.run_uuid, t.key, t.value {of_name} join tags t on t.run_uuid = r.run_uuid {where}"
        ):
            tags[run][key] = value
        metrics: dict[str, dict[str, float]] = {run: {} for run in status}
        of_metrics = f"{of_name} join metrics m on m.run_uuid = r.run_uuid {where} order by m.timestamp"
        for run, key, step, value in rows(f"select m.run_uuid, m.key, m.step, m.value {of_metrics}"):
            if key in TIMED or key.startswith("system/"):
                continue
            if metrics[run].get(at := f"{key} at {step}") == value:
                metrics[run][f"{at}, said again"] = value
            metrics[run][at] = value
    engine.dispose()
    if subject == "training":
        history = Counter((ground.folder / "training" / "metrics.jsonl").read_text().splitlines())
        weights = {"state": digest(ground.folder / "training" / "state.safetensors")}
        ended = [run for run, (state, _) in status.items() if state == "FINISHED"]
        return {"training": Cell(len(ended), "FINISHED", history, weights, metrics[ended[0]])} if ended else {}
    cells: dict[str, Cell] = {}
    for run, (state, uri) in status.items():
        place = tags[run].get("debug.cell")
        if place is None or "debug.superseded" in tags[run]:
            continue
        folder = files_of(ground, uri)
        samples = Counter((folder / "samples.jsonl").read_text().splitlines() if folder.exists() else [])
        kept = {
            str(path.relative_to(folder)): digest(path)
            for path in folder.rglob("*")
            if path.suffix == ".safetensors" or path.name in ("programs.json", "reference.json")
        }
        runs = cells[place].runs + 1 if place in cells else 1
        cells[place] = Cell(runs, state, samples, kept, metrics[run])
    return cells


def files_of(ground: Ground, uri: str) -> Path:
    """Of a run, by the artifact location that the database has; relative ones are the server's."""
    if uri.startswith("mlflow-artifacts:"):
        return ground.artifacts / uri.removeprefix("mlflow-artifacts:").lstrip("/")
    return Path(uri.removeprefix("file://"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Outcome(NamedTuple):
    """Of trials: faults, samples (or pairs, or logged steps) lost and doubled, cells that differ otherwise."""

    faults: int = 0
    starts: int = 0
    lost: int = 0
    twice: int = 0
    different: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()

    def plus(self, other: Outcome) -> Outcome:
        return Outcome(
            self.faults + other.faults,
            self.starts + other.starts,
            self.lost + other.lost,
            self.twice + other.twice,
            self.different + other.different,
            self.seconds + other.seconds,
            self.problems + other.problems,
        )


def compared(expected: Mapping[str, Cell], found: Mapping[str, Cell]) -> Outcome:
    lost = twice = different = 0
    problems = []
    for place, right in expected.items():
        cell = found.get(place, Cell(0, "not there", Counter(), {}, {}))
        lost += (right.samples - cell.samples).total()
        twice += (cell.samples - right.samples).total() + max(0, cell.runs - 1)
        wrong = [name for name in ("status", "files", "metrics") if getattr(cell, name) != getattr(right, name)]
        if wrong or cell.runs != 1:
            different += 1
            problems.append(f"{place}: {cell.runs} runs, {', '.join(wrong)}: {told(cell, right)}")
    for place in found.keys() - expected.keys():
        different += 1
        problems.append(f"{place}: of no cell that there should be")
    return Outcome(lost=lost, twice=twice, different=different, problems=tuple(problems))


def told(cell: Cell, right: Cell) -> str:
    names = [name for name in right.metrics | cell.metrics if right.metrics.get(name) != cell.metrics.get(name)]
    files = [name for name in right.files | cell.files if right.files.get(name) != cell.files.get(name)]
    return f"{cell.status}; metrics {names[:5]}; files {files[:5]}"


# --- faults ----------------------------------------------------------------------------------------------------------

Strike = Callable[[Ground, BaseProcess, float, random.Random], int]
"""Disturbs a process that was just begun, and takes so many seconds undisturbed; returns how often. It need not end."""


def of_signals(*signals: signal.Signals) -> Strike:
    def strike(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
        process.join(rng.uniform(0, lasts))
        struck = False
        for each in signals:
            if process.is_alive():
                os.kill(process.pid or 0, each)
                struck = True
                process.join(rng.uniform(0, 0.5))
        return int(struck)

    return strike


def children_of(process: BaseProcess) -> list[int]:
    with suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def kill_worker(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
    process.join(8 + rng.uniform(0, lasts))
    workers = children_of(process)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    return len(workers)


def kill_launcher(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
    """Its workers go on without it."""
    process.join(8 + rng.uniform(0, lasts))
    alive = process.is_alive()
    if alive:
        os.kill(process.pid or 0, signal.SIGKILL)
    return int(alive)


def kill_server(how: signal.Signals) -> Strike:
    """Again and again while the process lasts; it is away for up to three seconds, and for as long as it starts."""

    def strike(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
        assert isinstance(ground.server, MlflowServer | Postgres)
        struck = 0
        process.join(rng.uniform(0, lasts / 2))
        while process.is_alive() and struck < 5:
            ground.server.stop(how)
            struck += 1
            process.join(rng.uniform(0, 3))
            ground.server.start()
            process.join(rng.uniform(0, lasts / 3))
        return struck

    return strike


def cut(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
    assert isinstance(ground.server, Wire)
    process.join(rng.uniform(0, lasts))
    if not process.is_alive():
        return 0
    ground.server.cut()
    time.sleep(CUT)
    ground.server.mend()
    return 1


def join_from_elsewhere(killed: bool) -> Strike:
    """The same command on a second host; then, perhaps, the first is killed."""

    def strike(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
        other, struck = ground.begin(*ground_of[ground.uri], host=1), not killed
        if killed:
            process.join(rng.uniform(lasts / 4, lasts))
            struck = process.is_alive()
            process.kill()
        other.join()
        assert other.exitcode == 0, ground.said()
        return int(struck)

    return strike


def fill_disk(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
    """To the last byte, for some seconds or until the process has ended."""
    assert ground.fill is not None
    process.join(rng.uniform(0, lasts))
    if not process.is_alive():
        return 0
    filler = ground.fill / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    process.join(rng.uniform(1, 4))
    filler.unlink()
    return 1


def read_only(ground: Ground, process: BaseProcess, lasts: float, rng: random.Random) -> int:
    """It is killed; the file system then can be read only when the command is given again."""
    assert ground.fill is not None
    process.join(rng.uniform(0, lasts))
    process.kill()
    process.join()
    subprocess.run(["mount", "-o", "remount,ro", ground.fill], check=True)
    try:
        again = ground.begin(*ground_of[ground.uri])
        again.join()
        assert again.exitcode == 2, f"a read-only store: exit status {again.exitcode}"
    finally:
        subprocess.run(["mount", "-o", "remount,rw", ground.fill], check=True)
    return 1


ground_of: dict[str, tuple[str, str]] = {}
"""By store, subject and name of the trial at hand."""


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        yield Path(made)


@contextmanager
def on_sqlite() -> Iterator[Ground]:
    with folder() as at:
        (at / "work").mkdir()
        shutil.copy(empty_database(), at / "mlflow.db")
        yield Ground(at / "work", f"sqlite:///{at}/mlflow.db", f"sqlite:///{at}/mlflow.db", at / "artifacts")


@contextmanager
def on_small_disk() -> Iterator[Ground]:
    with folder() as at:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", at], check=True, capture_output=True)
        try:
            (at / "work").mkdir()
            shutil.copy(empty_database(), at / "mlflow.db")
            uri = f"sqlite:///{at}/mlflow.db"
            yield Ground(at / "work", uri, uri, at / "artifacts", fill=at)
        finally:
            subprocess.run(["umount", "-l", at], check=True)


@contextmanager
def on_server(postgres: bool = False, wire: bool = False) -> Iterator[Ground]:
    """Which of the two servers is struck: PostgreSQL, where there is one."""
    with ExitStack() as stack:
        at = stack.enter_context(folder())
        (at / "work").mkdir()
        database = Postgres() if postgres else None
        if database:
            stack.callback(database.remove)
        server = MlflowServer(at, database.uri if database else empty_database())
        stack.callback(server.stop)
        struck: MlflowServer | Postgres | Wire = database or server
        address = server.address
        if wire:
            struck = Wire(server.port)
            stack.callback(struck.close)
            address = struck.address
        yield Ground(at / "work", address, database.uri if database else server.backend, at / "artifacts", struck)


@contextmanager
def on_two_hosts() -> Iterator[Ground]:
    """Two networks, each with a wire to this machine, where a server is."""
    n = next(_NETWORKS)
    hosts, net = (f"faults-{n}-a", f"faults-{n}-b"), f"10.{100 + n}"

    def ip(words: str) -> None:
        subprocess.run(["ip", *words.split()], check=True, capture_output=True)

    with ExitStack() as stack:
        at = stack.enter_context(folder())
        (at / "work").mkdir()
        address = f"{net}.0.1"
        ip(f"address add {address}/32 dev lo")
        stack.callback(ip, f"address delete {address}/32 dev lo")
        for number, host in enumerate(hosts, 1):
            ip(f"netns add {host}")
            stack.callback(ip, f"netns delete {host}")
            ip(f"link add {host}-0 type veth peer name eth0 netns {host}")
            ip(f"address add {net}.{number}.1/24 dev {host}-0")
            ip(f"link set {host}-0 up")
            for words in (f"address add {net}.{number}.2/24 dev eth0", "link set eth0 up", "link set lo up"):
                ip(f"-n {host} {words}")
            ip(f"-n {host} route add default via {net}.{number}.1")
        server = MlflowServer(at, empty_database(), address)
        stack.callback(server.stop)
        yield Ground(at / "work", server.address, server.backend, at / "artifacts", server, hosts=hosts)


@contextmanager
def on_postgres() -> Iterator[Ground]:
    """The database itself as a store; artifacts in the folder that a process works in."""
    with folder() as at:
        (at / "work").mkdir()
        database = Postgres()
        try:
            yield Ground(at / "work", database.uri, database.uri, at / "work" / "mlruns" / "artifacts", database)
        finally:
            database.remove()


_EMPTY: list[Path] = []
_NETWORKS = itertools.count()


def empty_database() -> Path:
    """Building one runs all of its migrations, which takes seconds."""
    from debug.tracking import Store

    if not _EMPTY:
        path = Path(tempfile.mkdtemp(prefix="faults-")) / "mlflow.db"
        assert Store(f"sqlite:///{path}").client
        _EMPTY.append(path)
    return _EMPTY[0]


@dataclass(frozen=True)
class Fault:
    """What happens, to whom, on which ground, and in how many trials by default."""

    strike: Strike
    subjects: tuple[str, ...] = ("accuracy", "causal")
    ground: Callable[[], object] = on_sqlite
    times: int = 2
    rounds: int = ROUNDS
    more: tuple[str, ...] = ()
    lacks: Callable[[], str | None] = lambda: None
    """What it needs and this machine has not, in words."""
    back: bool = False


def root() -> str | None:
    return None if os.getuid() == 0 else "needs root"


FAULTS = {
    "kill -9": Fault(of_signals(signal.SIGKILL), tuple(SUBJECTS), times=8),
    "SIGTERM": Fault(of_signals(signal.SIGTERM), tuple(SUBJECTS), times=6),
    "SIGINT twice": Fault(of_signals(signal.SIGINT, signal.SIGINT), tuple(SUBJECTS), times=6),
    "worker killed": Fault(kill_worker, times=3, rounds=2, more=("--workers", "2")),
    "launcher killed": Fault(kill_launcher, times=3, rounds=2, more=("--workers", "2")),
    "MLflow server killed": Fault(kill_server(signal.SIGKILL), ground=on_server, rounds=1, times=3),
    "PostgreSQL killed": Fault(kill_server(signal.SIGQUIT), ground=on_postgres, rounds=1, times=3),
    "PostgreSQL behind a server killed": Fault(
        kill_server(signal.SIGQUIT), ground=partial(on_server, postgres=True), rounds=1, times=3
    ),
    "connection cut for 60 s": Fault(cut, ground=partial(on_server, wire=True), rounds=1, times=1),
    "disk full": Fault(fill_disk, tuple(SUBJECTS), on_small_disk, times=3, lacks=root),
    "store read-only": Fault(read_only, tuple(SUBJECTS), on_small_disk, rounds=1, times=2, lacks=root),
    "two hosts at once": Fault(join_from_elsewhere(killed=False), ground=on_two_hosts, rounds=1, times=2, lacks=root),
    "two hosts, one killed": Fault(
        join_from_elsewhere(killed=True), ground=on_two_hosts, rounds=1, times=1, lacks=root
    ),
    "clock set back an hour, then kill -9": Fault(of_signals(signal.SIGKILL), times=2, rounds=2, back=True),
}


def trial(fault: Fault, ground: Ground, subject: str, expected: Expected, seed: int) -> Outcome:
    """Begin, strike, and so on; then let it end. Whatever is wrong afterwards is told with the seed."""
    rng, name, begun = random.Random(seed), f"{subject}-{seed}", time.perf_counter()
    of = "training" if subject == "training" else name
    faults = starts = 0
    ground_of[ground.uri] = (subject, name)
    for _ in range(fault.rounds):
        back_after = rng.uniform(0, expected.seconds / 2) if fault.back else math.inf
        process = ground.begin(subject, name, *fault.more, back_after=back_after)
        starts += 1
        faults += fault.strike(ground, process, expected.seconds, rng)
        process.join()
        if is_finished(ground, of):
            break
    for _ in range(3):
        if is_finished(ground, of):
            break
        again = ground.sync if process.exitcode == 0 and rng.random() < 0.5 else partial(ground.begin, subject, name)
        process = again()
        process.join()
        starts += 1
    found = compared(expected.cells, found_in(ground, subject, of))
    problems = tuple(f"{subject}, seed {seed}: {problem}" for problem in found.problems)
    if problems:
        problems += (f"{subject}, seed {seed}: exit status {process.exitcode}: {ground.said()}",)
    seconds = time.perf_counter() - begun
    return found._replace(faults=faults, starts=starts, seconds=seconds, problems=problems)


class Expected(NamedTuple):
    """Of a subject that nothing disturbs."""

    cells: dict[str, Cell]
    seconds: float


def undisturbed(subject: str) -> Expected:
    with on_sqlite() as ground:
        begun = time.perf_counter()
        process = ground.begin(subject, "undisturbed")
        process.join()
        seconds = time.perf_counter() - begun
        assert process.exitcode == 0, ground.said()
        found = found_in(ground, subject, "training" if subject == "training" else "undisturbed")
    assert found, subject
    assert all(cell.status == "FINISHED" and cell.samples for cell in found.values()), found
    return Expected(found, seconds)


def trials(fault: Fault, subject: str, expected: Expected, times: int, first: int) -> Outcome:
    """On one ground, but for a new one each where that is a folder."""
    total = Outcome()
    if fault.ground in (on_sqlite, on_small_disk):
        for number in range(times):
            with fault.ground() as ground:  # type: ignore[attr-defined]  (a context manager)
                total = total.plus(trial(fault, ground, subject, expected, first + number))
        return total
    with fault.ground() as ground:  # type: ignore[attr-defined]  (as above)
        for number in range(times):
            total = total.plus(trial(fault, ground, subject, expected, first + number))
    return total


def main(words: list[str] | None = None) -> dict[tuple[str, str], Outcome]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--times", type=int, help="trials of each (default: as many as make three hundred faults)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table there, too")
    parser.add_argument("--at-once", type=int, default=2, help="trials at once (default 2)")
    options = parser.parse_args(words)
    os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    FORKS.set_forkserver_preload([*PRELOADED, __name__ if __name__ != "__main__" else "servers"])
    first = FORKS.Process(target=int)  # which waits for imports
    first.start()
    first.join()
    with ThreadPoolExecutor(options.at_once) as pool:
        expected = dict(zip(options.subjects, pool.map(undisturbed, options.subjects), strict=True))
    for subject, each in expected.items():
        samples = sum(cell.samples.total() for cell in each.cells.values())
        print(f"{subject}: {len(each.cells)} cells, {samples} samples, undisturbed {each.seconds:.1f} s", flush=True)
    print("\n| fault | study | trials | faults | starts | lost | twice | different cells | seconds |", flush=True)
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    found: dict[tuple[str, str], Outcome] = {}
    with ThreadPoolExecutor(options.at_once) as pool:
        waiting = {}
        for name in options.only:
            if (why := FAULTS[name].lacks()) is not None:
                print(f"left out: {name}: {why}", file=sys.stderr)
                continue
            for subject in FAULTS[name].subjects:
                if subject in expected:
                    first = 1000 * (options.seed + len(waiting))
                    asked = (FAULTS[name], subject, expected[subject], options.times or FAULTS[name].times, first)
                    waiting[name, subject] = pool.submit(trials, *asked)
        for (name, subject), each in waiting.items():
            outcome = found[name, subject] = each.result()
            row = (options.times or FAULTS[name].times, *outcome[:5], f"{outcome.seconds:.0f}")
            print(f"| {name} | {subject} | {' | '.join(map(str, row))} |", flush=True)
            for problem in outcome.problems:
                print(problem, file=sys.stderr, flush=True)
    total = Outcome()
    for outcome in found.values():
        total = total.plus(outcome)
    print(f"| all | | | {' | '.join(map(str, total[:5]))} | |", flush=True)
    if options.json:
        rows = [{"fault": name, "study": subject} | each._asdict() for (name, subject), each in found.items()]
        options.json.write_text(json.dumps(rows, indent=1))
    return found


if __name__ == "__main__":
    sys.exit(any(outcome.lost or outcome.twice or outcome.different for outcome in main().values()))
