"""Write a run into a folder or a zip that is read without MLflow; or, with --import, make its run again.

debug export RUN_ID                                  # into ./RUN_ID/, with its cells where it is a study
debug export RUN_ID --to results/run.zip
debug export --import results/run.zip --tracking-uri sqlite:////tmp/elsewhere/mlflow.db
"""

from __future__ import annotations

import argparse
from pathlib import Path

from debug import cli
from debug.commands import importing, startup


def parser() -> argparse.ArgumentParser:
    made = cli.store_parser(__doc__)
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("run_id", nargs="?", help="a run's id, the beginning of it, or its name")
    what.add_argument("--import", dest="source", type=Path, help="a folder or zip that debug export wrote")
    made.add_argument("--to", type=Path, help="the folder, or .zip, to write (default: a folder named by the run's id)")
    return made


def main(options: argparse.Namespace) -> None:
    if options.source is not None:
        importing.exported(options.source, options.tracking_uri)
        return
    startup.prepare()
    from debug.tracking import Store
    from debug.tracking.export import export_run

    run = Store(options.tracking_uri).load_run(options.run_id)
    written = export_run(run, options.to or Path(run.run_id))
    print(written if written.is_absolute() else f"./{written}")
