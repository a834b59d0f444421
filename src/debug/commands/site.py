"""Write a store as a static site: studies, accuracy, maps, pairs, training. Needs no server, opens from a disk too.

debug site mlruns/mlflow.db out/site                    # then open out/site/index.html
debug site sqlite:///some/mlflow.db out/site --title 'Variable binding' --samples 20
debug site http://localhost:5000 out/site --force       # again, into the same folder
debug site mlruns/mlflow.db out/site --measure 50       # first ask and trace the checkpoints of training runs

Nothing is changed in the store but by --measure, which logs runs. A folder that is no site of ours is never replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from debug import cli


def parser() -> argparse.ArgumentParser:
    made = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    made.add_argument("store", help="MLflow store: its URI, or the file of its database")
    made.add_argument("out", type=Path, help="the folder to write")
    made.add_argument("--title", help="heading of the site (default: Runs)")
    made.add_argument("--samples", type=int, default=50, help="samples and pairs of each run that it has (default 50)")
    made.add_argument("--maps", type=int, default=10, help="maps of single pairs of each run (default 10)")
    made.add_argument("--force", action="store_true", help="replace the site that is in the folder")
    made.add_argument(
        "--measure",
        type=int,
        default=0,
        metavar="N",
        help="first ask every checkpoint of each training run N programs of each number of hops, and trace pairs, "
        "where the store lacks them",
    )
    return made


def main(options: argparse.Namespace) -> None:
    from debug.errors import InputError
    from debug.site import Limits, write_site
    from debug.tracking import Store

    for name, least in (("samples", 0), ("maps", 0), ("measure", 0)):
        if (given := getattr(options, name)) < least:
            raise InputError(f"--{name} is {given}; expected {least} or more")
    given = options.store
    store = Store(given if "://" in given else f"sqlite:///{Path(given).absolute()}")
    limits = Limits(options.samples, options.maps)
    page = write_site(
        store, options.out, title=options.title, limits=limits, force=options.force, measure=options.measure
    )
    print(f"open {page}")
