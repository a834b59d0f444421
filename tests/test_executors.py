"""The same study by each executor: every cell once, the same numbers. (Ray is tried by benchmarks/executors.py.)"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from debug import tracking
from debug.commands import study as command
from debug.errors import InputError
from debug.executors import Workers
from debug.tracking import Store
from servers import Slurm, SlurmMissing
from test_resuming import assert_alike, everything_once

STUDY = """
name: executed
defaults: {hops: [1, 2], models: [tiny]}
experiments:
  - {num_seqs: 40}
"""
CAUSAL = "  - {kind: causal, num_seqs: 4, positions: targets}\n"
HOW = {
    "local": ["--workers", "2"],
    "submitit": ["--executor", "submitit", "--workers", "2", "--executor-args", "cluster=local", "timeout_min=5"],
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    """The study by one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    run(folder, f"sqlite:///{folder}/mlflow.db", [], STUDY + CAUSAL)
    return Store(f"sqlite:///{folder}/mlflow.db")


def run(folder: Path, uri: str, options: list[str], study: str = STUDY) -> None:
    (folder / "study.yaml").write_text(study, "utf-8")
    words = ["study", str(folder / "study.yaml"), "--tracking-uri", uri, *options]
    done = subprocess.run(
        [sys.executable, "-m", "debug", *words], cwd=folder, text=True, capture_output=True, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]


def studies(store: Store) -> dict[str, str]:
    return dict(store.find_runs(role="study").select("kind", "run_id").iter_rows())


def the_same(store: Store, alone: Store) -> None:
    for kind, run_id in studies(store).items():
        everything_once(store, run_id, 2, 40 if kind == "accuracy" else 4)
        one, other = (
            {c.tags[tracking.PLACE]: c for c in s.load_run(studies(s)[kind]).children} for s in (alone, store)
        )
        assert one.keys() == other.keys()
        for place, cell in one.items():
            assert_alike(cell, other[place])


@pytest.mark.long
@pytest.mark.parametrize("executor", HOW)
def test_a_study_is_the_same_by_every_executor(executor, tmp_path, uri, alone):
    run(tmp_path, uri, HOW[executor], STUDY + (CAUSAL if executor == "local" else ""))
    assert len(studies(Store(uri))) == (2 if executor == "local" else 1)
    the_same(Store(uri), alone)


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    try:
        made = Slurm()
    except SlurmMissing as missing:
        pytest.skip(str(missing))
    yield made
    made.remove()


@pytest.mark.long
def test_a_study_is_the_same_on_slurm_where_a_job_is_preempted(slurm, tmp_path, uri, alone):
    """A real Slurm of one node; the job that is at work is taken from it and queued again."""
    store, struck = Store(uri), threading.Event()

    def preempt() -> None:
        while not struck.is_set():
            at_work = [line.split()[0] for line in slurm.said("squeue", "--noheader", "--states=R").splitlines()]
            cells = store.find_runs(role="cell") if store.exists() else ()
            if at_work and len(cells):
                slurm.said("scontrol", "requeue", at_work[0])
                struck.set()
            time.sleep(0.2)

    thread = threading.Thread(target=preempt)
    thread.start()
    try:
        run(tmp_path, uri, ["--executor", "submitit", "--workers", "2", "--executor-args", "cluster=slurm"])
    finally:
        was_struck = struck.is_set()
        struck.set()
        thread.join()
    assert was_struck
    the_same(store, alone)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="expected one of local, submitit, ray"):
        Workers(executor="slurm")
    with pytest.raises(InputError, match="workers is 0"):
        Workers(number=0)
    with pytest.raises(InputError, match="those are of submitit or ray"):
        Workers(settings={"num_gpus": 1})


def test_a_dry_run_lists_the_cells_of_both_kinds(tmp_path, uri, capsys):
    (tmp_path / "study.yaml").write_text(STUDY + CAUSAL, "utf-8")
    words = [str(tmp_path / "study.yaml"), "--dry-run", "--tracking-uri", uri]
    command.main(command.parser().parse_args(words))
    said = capsys.readouterr().out
    assert said.count("40 programs, prompts of 23 tokens, up to 8 new tokens each") == 2
    assert said.count("at most about") == 2
    assert said.count("4 pairs, ") == 2
    assert Store(uri).find_runs().is_empty()
