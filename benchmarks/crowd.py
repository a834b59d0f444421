"""Many processes on one store at once, and what a run costs where there are many runs already.

.venv/bin/python benchmarks/crowd.py          # some ten minutes on two cores

Each of eight processes logs fifty runs (a study and a cell, with params, metrics, tags and artifacts) to one SQLite
file, then to one MLflow server with PostgreSQL; 64 processes begin at once on a store that is not there. What is in the
stores is read without this project's code: SQL and files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import sqlalchemy

from faults import FORKS, Ground, files_of, folder, on_server
from servers import PostgresMissing

PRELOADED = ["__main__", "debug.tracking.store", "mlflow.store.tracking.sqlalchemy_store", "alembic"]
METRICS = {"accuracy": 0.5, "accuracy_ci_low": 0.25, "accuracy_ci_high": 0.75, "num_samples": 20.0}


def write(uri: str, work: Path, number: int, runs: int) -> None:
    """In a process of its own: so many studies of one cell; what is said goes into a file."""
    with (work / f"log-{number}").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["DEBUG_SPOOL"] = str(work / "spool")
    from debug.tracking import Store

    store = Store(uri)
    for run in range(runs):
        write_one(store, f"{number}-{run}")


def write_one(store, name: str) -> None:
    with (
        store.start("crowd", name, kind="accuracy") as study,
        study.cell(f"{name} cell", {"model": "m", "hops": 1}) as cell,
    ):
        cell.log_metrics(METRICS)
        cell.append_jsonl("samples.jsonl", [{"seed": seed, "of": name} for seed in range(20)])
        cell.log_json("summary.json", {"of": name})


def crowd(name: str, ground: Ground, processes: int, runs: int) -> bool:
    """All at once; whether everything of all is there afterwards, and nobody complained."""
    begun = time.perf_counter()
    at_once = [FORKS.Process(target=write, args=(ground.uri, ground.folder, n, runs)) for n in range(processes)]
    for process in at_once:
        process.start()
    for process in at_once:
        process.join()
    seconds = time.perf_counter() - begun
    failed = sum(process.exitcode != 0 for process in at_once)
    said = [
        text
        for path in ground.folder.glob("log-*")
        if any(word in (text := path.read_text()) for word in ("rror", "WARNING"))
    ]
    whole, metrics = complete(ground, {f"{n}-{run}" for n in range(processes) for run in range(runs)})
    wanted = 2 * processes * runs
    rate = wanted / seconds
    there = f"{whole} of {wanted} | {metrics} of {wanted // 2 * len(METRICS)}"
    print(
        f"| {name} | {processes} x {runs} | {there} | {failed} | {len(said)} | {seconds:.0f} | {rate:.1f} |", flush=True
    )
    for text in said[:3]:
        print(text[-1500:], file=sys.stderr)
    return whole == wanted and metrics == wanted // 2 * len(METRICS) and not failed and not said


def complete(ground: Ground, names: set[str]) -> tuple[int, int]:
    """How many finished runs there are, studies and cells with all of their files, and how many metrics."""
    engine = sqlalchemy.create_engine(ground.database, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        rows = connection.execute(
            sqlalchemy.text("select name, artifact_uri from runs where status = 'FINISHED'")
        ).all()
        keys = ", ".join(f"'{name}'" for name in METRICS)
        of_metrics = f"select count(*) from metrics where key in ({keys})"
        metrics = connection.execute(sqlalchemy.text(of_metrics)).scalar() or 0
    engine.dispose()
    whole = sum(name in names for name, _ in rows)
    for name, uri in rows:
        if name.endswith(" cell"):
            of = name.removesuffix(" cell")
            records = [json.loads(line) for line in (files_of(ground, uri) / "samples.jsonl").read_text().splitlines()]
            whole += of in names and records == [{"seed": seed, "of": of} for seed in range(20)]
    return whole, metrics


def cost_of_a_run(ground: Ground) -> tuple[list[float], list[float]]:
    """Median milliseconds of a run, a study and its cell, where the store has ten, a hundred and so on; and seconds of
    the dashboard's first page there."""
    import dashboard_store
    from debug.tracking import Store

    costs, opened = [], []
    for size in (10, 100, 1000, 10_000):
        uri = f"sqlite:///{ground.folder}/{size}/mlflow.db"
        (ground.folder / str(size)).mkdir()
        sys.argv = ["dashboard_store.py", uri, "--runs", str(size)]
        dashboard_store.large_runs = lambda store: None
        dashboard_store.main()
        store = Store(uri)
        times = []
        for number in range(30):
            begun = time.perf_counter()
            write_one(store, f"cost {number}")
            times.append(time.perf_counter() - begun)
        costs.append(1000 * statistics.median(times[5:]))
        spread = 1000 * statistics.stdev(times[5:])
        first, again = first_page(uri)
        opened.append(again)
        told = f"{costs[-1]:.0f} | {spread:.0f} | {costs[-1] / costs[0]:.2f} | {first:.2f}"
        print(f"| {size:,} | {told} | {again:.2f} | {again / opened[0]:.2f} |", flush=True)
    return costs, opened


def first_page(uri: str) -> tuple[float, float]:
    """Seconds from the dashboard's address to its first page, drawn: on a new server, and the median of five more."""
    import dashboard

    drawn = "[data-testid=stApp][data-test-script-state=notRunning]:has(h1)"
    with dashboard.on_dashboard(uri) as (page, _):
        times = [dashboard.timed(lambda: (page.goto("/"), page.locator(drawn).wait_for())) for _ in range(6)]
    return times[0], statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["crowd", "cost"])
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false"}
    FORKS.set_forkserver_preload(PRELOADED)
    right = True
    if options.only != "cost":
        print("| store | processes x runs | runs there, whole | metrics | failed | complained | s | runs/s |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for name, processes, runs in (("one SQLite file", 8, 50), ("64 first starts on no store", 64, 1)):
            with folder() as at:
                (at / "work").mkdir()
                uri = f"sqlite:///{at}/mlflow.db"
                right &= crowd(name, Ground(at / "work", uri, uri, at / "artifacts"), processes, runs)
        try:
            with on_server(postgres=True) as ground:
                right &= crowd("MLflow server, PostgreSQL", ground, 8, 50)
        except PostgresMissing as missing:
            print(missing, file=sys.stderr)
    if options.only != "crowd":
        columns = "runs in the store", "a study and its cell: ms", "standard deviation", "to the first"
        print(f"\n| {' | '.join(columns)} | dashboard opened: s, on a new server | from then on | to the first |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        with folder() as at:
            costs, opened = cost_of_a_run(Ground(at, "", "", at))
        right &= max(costs) <= 1.2 * min(costs) and max(opened) <= 1.2 * min(opened)
    sys.exit(not right)


if __name__ == "__main__":
    main()
