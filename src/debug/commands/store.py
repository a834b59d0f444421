"""Look after a store: what was left without a process, what is broken or missing, what takes up the space.

debug store check                                    # reads every sample and map; changes nothing
debug store check --end-lost                         # marks runs whose process is gone KILLED, after asking
debug store du                                       # bytes by experiment and kind of file
debug store gc                                       # erases deleted runs and superseded cells, after asking
debug store sync                                     # delivers what was kept while the store's server was away
debug store gc --yes --tracking-uri sqlite:////tmp/elsewhere/mlflow.db
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import TYPE_CHECKING

from debug import cli
from debug.commands import startup
from debug.errors import InputError

if TYPE_CHECKING:
    from debug.tracking import Store


def parser() -> argparse.ArgumentParser:
    made = cli.store_parser(__doc__)
    made.add_argument("what", choices=list(ACTIONS), help="see the examples above")
    made.add_argument("--end-lost", action="store_true", help="check: mark runs whose process is gone as KILLED")
    made.add_argument("--yes", action="store_true", help="do not ask before anything is marked or erased")
    return made


def main(options: argparse.Namespace) -> None:
    startup.prepare()
    from debug.tracking import Store

    store = Store(options.tracking_uri)
    if not store.exists():
        print(f"there is no store {store} yet")
        return
    ACTIONS[options.what](store, options)


def check(store: Store, options: argparse.Namespace) -> None:
    """What is wrong, run by run; exit status 1 where anything is."""
    from debug.progress import Progress
    from debug.tracking import housekeeping

    lost = housekeeping.lost(store)
    for run in lost:
        print(f"lost: {run.run_id} ({run.experiment}, {run.name}): it says that it is running, and {housekeeping.LOST}")
    found = runs = 0
    with Progress(housekeeping.count(store), "checked", "run") as bar:
        for problem in housekeeping.problems(store):
            if problem is None:
                runs += 1
                bar.update(1)
            else:
                found += 1
                print(f"broken: {problem.run.run_id} ({problem.run.experiment}, {problem.run.name}): {problem.what}")
    print(f"{_many(runs, 'run')} read: {len(lost)} lost, {found or 'nothing'} broken or missing")
    if lost and options.end_lost and _agreed(f"Mark {_many(len(lost), 'run')} KILLED?", options):
        for run in lost:
            housekeeping.end(run)
        print(f"{_many(len(lost), 'run')} marked KILLED; what they had logged is there")
        lost = []
    elif lost and not options.end_lost:
        print("mark those that are lost as KILLED: debug store check --end-lost")
    if lost or found:
        sys.exit(1)


def du(store: Store, options: argparse.Namespace) -> None:
    """Bytes of the runs' files, by experiment and kind."""
    from debug.tracking import housekeeping

    total: Counter[str] = Counter()
    experiments: dict[str, Counter[str]] = {}
    for run, sizes in housekeeping.sizes(store):
        experiments.setdefault(run.experiment, Counter()).update(sizes)
        total += sizes
    for name, sizes in sorted(experiments.items(), key=lambda each: -each[1].total()):
        print(f"{_size(sizes.total()):>10}  {name}")
        for kind, size in sizes.most_common(6):
            print(f"{_size(size):>22}  {kind}")
    gone = housekeeping.deleted(store)
    left = sum(housekeeping.size_of(store, run) for run in gone)
    print(f"{_size(total.total()):>10}  in all; {_size(left)} of {_many(len(gone), 'run')} that debug store gc erases")


def gc(store: Store, options: argparse.Namespace) -> None:
    """Erase deleted runs and superseded cells."""
    from debug.tracking import housekeeping

    runs = housekeeping.deleted(store)
    if not runs:
        print("nothing to erase: no run was deleted, no cell is superseded")
        return
    for run in runs[:20]:
        how = "deleted" if run.info.lifecycle_stage == "deleted" else "superseded"
        print(f"{how}: {run.info.run_id} ({run.info.run_name}), {_size(housekeeping.size_of(store, run))}")
    if len(runs) > 20:
        print(f"and {len(runs) - 20} more")
    if _agreed(f"Erase {_many(len(runs), 'run')} with their files, for good?", options):
        housekeeping.erase(store, runs)
        print(f"{_many(len(runs), 'run')} erased")


def sync(store: Store, options: argparse.Namespace) -> None:
    """Deliver what was kept while the store was away; exit status 1 where something could not be."""
    from debug.tracking import housekeeping

    delivered = failed = 0
    for run_id, problem in housekeeping.sync(store):
        failed += problem is not None
        delivered += problem is None
        print(f"delivered: {run_id}" if problem is None else f"kept: {run_id}: {problem}")
    print(f"{_many(delivered, 'run')} delivered, {failed or 'none'} kept" if delivered or failed else "nothing is kept")
    if failed:
        sys.exit(1)


ACTIONS = {"check": check, "du": du, "gc": gc, "sync": sync}


def _agreed(question: str, options: argparse.Namespace) -> bool:
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise InputError(f"{question} There is nobody to ask here: --yes says so beforehand. Nothing was changed")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _size(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
