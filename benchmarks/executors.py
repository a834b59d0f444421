"""One study of 24 cells by every executor: time, and whether all cells hold the same numbers as one process's.

OMP_NUM_THREADS=1 .venv/bin/python benchmarks/executors.py                  # some minutes on two cores
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/executors.py --num-seqs 2000  # compute-bound: for the scaling

Of submitit one job is killed midway, of Ray one of its two nodes (both on this machine).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from debug.tracking import PLACE, Store

STUDY = """
name: executors
defaults: {{hops: [1, 2, 3, 4], seq_lens: [5, 6, 7, 8, 9, 10], models: [tiny], num_seqs: {num_seqs}}}
experiments:
  - {{}}
"""

Fault = Callable[[subprocess.Popen[str], Store], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seqs", type=int, default=100, help="samples of each cell (default 100)")
    parser.add_argument("--only", nargs="+", help="these rows, and that of one process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(STUDY.format(num_seqs=options.num_seqs), "utf-8")
        submitit = ["--executor", "submitit", "--executor-args", "cluster=local", "timeout_min=60"]
        ray = ["--executor", "ray", "--executor-args"]
        alone = measured(file, "alone", [])
        print("| executor | seconds | against one process | of the cells alone | cells with its numbers |")
        print("| --- | --- | --- | --- | --- |")
        row("one process", alone, alone)
        for name, words, fault in (
            ("local, 2 workers", ["--workers", "2"], None),
            ("submitit, 1 job", [*submitit, "--workers", "1"], None),
            ("submitit, 2 jobs", [*submitit, "--workers", "2"], None),
            ("submitit, 2 jobs, one killed", [*submitit, "--workers", "2"], kill_job),
        ):
            if name in (options.only or [name]):
                row(name, measured(file, name, words, fault), alone)
        if (name := "Ray, 1 task") in (options.only or [name]):
            row(name, measured(file, name, [*ray, "num_cpus=1", "--workers", "1"]), alone)
        if (name := "Ray, 2 nodes, one lost") in (options.only or [name]):
            with cluster() as (address, lose_node):
                words = [*ray, f"address={address}", "num_cpus=1", "--workers", "2"]
                row(name, measured(file, "ray", words, lose_node), alone)


class Measured(NamedTuple):
    seconds: float
    """Of the command, given again where it failed."""
    cells: float
    """From the beginning of the first cell to the end of the last."""
    digests: dict[str, str]
    """Of each cell's samples, by place."""


def row(name: str, found: Measured, alone: Measured) -> None:
    same = sum(found.digests.get(place) == digest for place, digest in alone.digests.items())
    ratios = f"{alone.seconds / found.seconds:.2f} | {alone.cells / found.cells:.2f}"
    print(f"| {name} | {found.seconds:.0f} | {ratios} | {same} of {len(alone.digests)} |", flush=True)


def measured(file: Path, name: str, words: list[str], fault: Fault | None = None) -> Measured:
    folder = file.parent / name.replace(" ", "_").replace(",", "")
    folder.mkdir()
    uri = f"sqlite:///{folder}/mlflow.db"
    command = [sys.executable, "-m", "debug", "study", str(file), "--tracking-uri", uri, *words]
    started = time.perf_counter()
    for _ in range(3):
        process = subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if fault is not None:
            threading.Thread(target=fault, args=(process, Store(uri)), daemon=True).start()
            fault = None
        if process.wait() == 0:
            break
    seconds, store = time.perf_counter() - started, Store(uri)
    [study] = store.find_runs(role="study")["run_id"]
    cells = store.load_run(study).children
    assert len(cells) == len({cell.tags[PLACE] for cell in cells}), "each cell once"
    begun = [cell.start_time.timestamp() for cell in cells if cell.start_time]
    span = max(at + (cell.duration or 0) for at, cell in zip(begun, cells, strict=True)) - min(begun)
    return Measured(seconds, span, {cell.tags[PLACE]: digest(cell.artifact("samples.jsonl")) for cell in cells})


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def at_work(process: subprocess.Popen[str], store: Store) -> int:
    """The process of a cell, once the first five are begun."""
    while True:
        running = store.find_runs(role="cell") if store.exists() else None
        if running is not None and len(running) >= 5:
            owners = [owner for run_id in running["run_id"] if (owner := store.load_run(run_id).owner)]
            if owners:
                return int(owners[0].split()[1])
        time.sleep(0.2)


def kill_job(process: subprocess.Popen[str], store: Store) -> None:
    os.kill(at_work(process, store), signal.SIGKILL)


@contextmanager
def cluster() -> Iterator[tuple[str, Fault]]:
    """A Ray cluster of two nodes on this machine: its address, and what takes down the node that is at work."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = made.add_node(num_cpus=1)

    def lose_node(process: subprocess.Popen[str], store: Store) -> None:
        at_work(process, store)
        made.remove_node(other, allow_graceful=False)

    try:
        yield str(made.address), lose_node
    finally:
        made.shutdown()


if __name__ == "__main__":
    main()
