"""Show the paper's findings on a model: accuracy, patching, heads, knockouts, trajectory -> runs and a report page.

python runs/reproduce_paper.py                                          # bundled model; about ten minutes on two cores
python runs/reproduce_paper.py --num-seqs 50 --num-pairs 20             # a first look
python runs/reproduce_paper.py --training-run RUN_ID                    # whose checkpoints are asked (default: newest)
python runs/reproduce_paper.py --model smollm2 --prompt FEW_SHOT_BINDING --seq-len 5 --hops 1 2 --lengths 2 3 5

All runs go into the experiment reproduce_paper; report.md is an artifact of the run "<model> · report".
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.options import add_flags, given
from debug.paper import Reproduction
from debug.provenance import without_passwords


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add_flags(parser, Reproduction)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.paper import reproduce

    what = Reproduction(**given(options, Reproduction))
    run = reproduce(what, options.tracking_uri, dtype=options.dtype, device=options.device)
    for claim in run.summary["claims"]:
        print(f"{claim['verdict']:14}  {claim['text']}  ({claim['number']})")
    store = without_passwords(run.store.uri)
    print(f"\nreport: {run.artifact('report.md')}\nsummary run {run.run_id} in {store}; look: make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
