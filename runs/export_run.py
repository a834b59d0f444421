"""Write a run into a folder or a zip that is read without MLflow; or make the run of such an export again.

python runs/export_run.py RUN_ID                                  # into ./RUN_ID/, with its cells where it is a study
python runs/export_run.py RUN_ID --to results/run.zip
python runs/export_run.py --import results/run.zip --tracking-uri sqlite:////tmp/elsewhere/mlflow.db
"""

from __future__ import annotations

import argparse
from pathlib import Path

from debug import cli
from debug.provenance import without_passwords


def arguments() -> argparse.Namespace:
    parser = cli.store_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run_id", nargs="?", help="a run's id, the beginning of it, or its name")
    what.add_argument("--import", dest="source", type=Path, help="a folder or zip that this script wrote")
    parser.add_argument(
        "--to", type=Path, help="the folder, or .zip, to write (default: a folder named by the run's id)"
    )
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.tracking import Store
    from debug.tracking.export import export_run, import_run

    store = Store(options.tracking_uri)
    if options.source is not None:
        run_id, known = import_run(options.source, store)
        print(f"run {run_id} {'was there already' if known else 'was made'} in {without_passwords(store.uri)}")
        return
    run = store.load_run(options.run_id)
    print(export_run(run, options.to or Path(run.run_id)))


if __name__ == "__main__":
    cli.run(main, arguments())
