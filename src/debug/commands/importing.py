"""Make runs of files: of a run that was exported, or of result folders of the older format.

debug import results/run.zip                                         # what debug export wrote, a zip or a folder
debug import ../results                                              # older: each file becomes a run of kind imported
debug import ../results/full_token_layer_patching_3_hop_seq_5 --tracking-uri sqlite:////tmp/s/mlflow.db

What is in the store already is left as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from debug import cli
from debug.errors import InputError
from debug.provenance import without_passwords


def parser() -> argparse.ArgumentParser:
    made = cli.store_parser(__doc__)
    made.add_argument(
        "source",
        type=Path,
        help="a folder or zip that debug export wrote, or a folder with intervention_results.json, patch_results.json "
        "or results.json below",
    )
    return made


def main(options: argparse.Namespace) -> None:
    from debug.tracking.export import RECORD

    if not options.source.exists():
        raise InputError(
            f"there is no file or folder {str(options.source)!r}; expected what debug export wrote, or a folder with "
            "results of the older format"
        )
    if options.source.is_file() or (options.source / RECORD).is_file():
        exported(options.source, options.tracking_uri)
    else:
        older(options.source, options.tracking_uri)


def exported(source: Path, tracking_uri: str | None) -> None:
    from debug.tracking import Store
    from debug.tracking.export import import_run

    store = Store(tracking_uri)
    run_id, known = import_run(source, store)
    print(f"run {run_id} {'was there already' if known else 'was made'} in {without_passwords(store.uri)}")
    print(cli.where_to_look(store.link(run_id)))


def older(folder: Path, tracking_uri: str | None) -> None:
    from debug.legacy import import_results
    from debug.tracking import Store

    results = import_results(folder, tracking_uri)
    for imported in results:
        print(imported)
    n_runs = sum(len(imported.run_ids) for imported in results)
    n_known = sum(imported.known for imported in results)
    n_problems = sum(len(imported.problems) for imported in results)
    print(f"{len(results)} files: {n_runs} runs imported, {n_known} files known already, {n_problems} problems")
    if made := [run_id for imported in results for run_id in imported.run_ids]:
        print(cli.where_to_look(Store(tracking_uri).link(made[-1])))
