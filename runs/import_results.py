"""Import result folders of the older format: each file becomes a run of kind imported, shown like any other.

python runs/import_results.py ../results
python runs/import_results.py ../results/full_token_layer_patching_3_hop_seq_5 --tracking-uri sqlite:////tmp/s/mlflow.db
"""

from __future__ import annotations

import argparse

from debug import cli


def arguments() -> argparse.Namespace:
    parser = cli.store_parser(__doc__)
    parser.add_argument(
        "folder", help="a folder with intervention_results.json, patch_results.json or results.json below"
    )
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.legacy import import_results

    results = import_results(options.folder, options.tracking_uri)
    for imported in results:
        print(imported)
    n_runs = sum(len(imported.run_ids) for imported in results)
    n_known = sum(imported.known for imported in results)
    n_problems = sum(len(imported.problems) for imported in results)
    print(f"{len(results)} files: {n_runs} runs imported, {n_known} files known already, {n_problems} problems")


if __name__ == "__main__":
    cli.run(main, arguments())
