"""The main job on the bundled model: an accuracy run and a causal run, logged to MLflow, and where to look.

python runs/quickstart.py
python runs/quickstart.py --num-seqs 200 --seq-lens 5 17
python runs/quickstart.py --tracking-uri sqlite:////tmp/store/mlflow.db
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.provenance import without_passwords


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--hops", nargs="+", type=cli.hops, default=[1, 2, 3, 4])
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[5])
    parser.add_argument("--num-seqs", type=int, default=100, help="programs in each accuracy cell (default 100)")
    parser.add_argument("--num-pairs", type=int, default=50, help="pairs of three-hop programs to patch (default 50)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug import ExperimentRunner, generators, prompts, quick_experiment
    from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner

    config = quick_experiment(
        name="quickstart",
        prompt_template=prompts.VARIABLE_BINDING,
        program_generator=generators.make_variable_binding_program,
        models=[options.model],
        num_seqs=options.num_seqs,
        seq_lens=options.seq_lens,
        hops=options.hops,
        seed=options.seed,
    )
    accuracy = ExperimentRunner(options.tracking_uri, dtype=options.dtype, device=options.device).run(config)
    print(f"\n{accuracy}")
    causal = CausalExperimentRunner(options.tracking_uri, dtype=options.dtype, device=options.device).run(
        CausalConfig(
            models=[options.model],
            num_seqs=options.num_pairs,
            seed=options.seed,
            name="quickstart",
            targets="roles",
        )
    )
    for cell in causal.cells:
        print(f"\n{cell}")
    print(f"\naccuracy run {accuracy.run_id}\ncausal run   {causal.run_id} (map: {causal.cells[0].run_id})")
    print(f"in {without_passwords(causal.tracking_uri)}")
    print("\nbrowse the heatmaps:   make dashboard\ncompare the runs:      make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
