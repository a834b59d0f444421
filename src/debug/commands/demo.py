"""The main job on the bundled model: an accuracy run and a causal run, logged to MLflow, and where to look.

debug demo
debug demo --num-seqs 200 --seq-lens 5 17
debug demo --tracking-uri sqlite:////tmp/store/mlflow.db
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.commands import startup


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("--model", default="tiny")
    made.add_argument("--hops", nargs="+", type=cli.hops, default=[1, 2, 3, 4])
    made.add_argument("--seq-lens", nargs="+", type=int, default=[5])
    made.add_argument("--num-seqs", type=int, default=100, help="programs in each accuracy cell (default 100)")
    made.add_argument("--num-pairs", type=int, default=50, help="pairs of three-hop programs to patch (default 50)")
    made.add_argument("--seed", type=int, default=0)
    return made


def main(options: argparse.Namespace) -> None:
    startup.prepare([options.model])
    from debug import ExperimentRunner, generators, prompts, quick_experiment
    from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
    from debug.tracking import Store

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
    store = Store(causal.tracking_uri)
    print(f"in {store}\n\n{cli.where_to_look(store.link(causal.run_id))}")
