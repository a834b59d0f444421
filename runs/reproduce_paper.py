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
from debug.provenance import without_passwords


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--model", default="tiny", help="id: tiny, smollm2, a folder, a hub id")
    parser.add_argument("--prompt", default="VARIABLE_BINDING", help="name of a template, or a text with {code}")
    parser.add_argument("--hops", nargs="+", type=int, default=[1, 2, 3, 4], help="referential depths of the query")
    parser.add_argument("--seq-len", type=int, default=17, help="lines of the programs that are patched (default 17)")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[2, 5, 8, 11, 14, 17], help="of the accuracy by length"
    )
    parser.add_argument("--num-seqs", type=int, default=500, help="programs in each accuracy cell (default 500)")
    parser.add_argument("--num-pairs", type=int, default=200, help="pairs in each causal cell (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first program of each cell")
    parser.add_argument("--training-run", help="id of the training run whose checkpoints are asked")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.paper import Reproduction, reproduce

    what = Reproduction(
        options.model,
        options.prompt,
        tuple(options.hops),
        options.seq_len,
        tuple(options.lengths),
        options.num_seqs,
        options.num_pairs,
        options.seed,
        options.training_run,
    )
    run = reproduce(what, options.tracking_uri, dtype=options.dtype, device=options.device)
    for claim in run.summary["claims"]:
        print(f"{claim['verdict']:14}  {claim['text']}  ({claim['number']})")
    store = without_passwords(run.store.uri)
    print(f"\nreport: {run.artifact('report.md')}\nsummary run {run.run_id} in {store}; look: make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
