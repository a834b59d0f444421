"""Patch activations of counterfactual programs into the originals, layer by token, and log the causal maps to MLflow.

python runs/causal_trace.py                                             # bundled model, 3 hops, 5 lines
python runs/causal_trace.py --hops 1 2 3 4 --seq-lens 5 17 --num-seqs 100
python runs/causal_trace.py --intervention-type attention_heads --positions targets
python runs/causal_trace.py --models smollm2 --prompt FEW_SHOT_BINDING --hops 2 --seq-lens 3 --num-seqs 10
python runs/causal_trace.py --positions ref_depth_2_newline ref_depth_3_equals final --layers 0 1 2 3
"""

from __future__ import annotations

import argparse

from debug import cli, generators
from debug.prompts import PROMPTS


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny"], help="ids: tiny, smollm2, a folder, a hub id")
    parser.add_argument(
        "--intervention-type", default="residual_stream", help="residual_stream, attention_heads, mlp, ..."
    )
    parser.add_argument("--hops", nargs="+", type=cli.hops, default=[3], help="referential depths of the query, or any")
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[5], help="numbers of assignment lines")
    parser.add_argument("--num-seqs", type=int, default=50, help="pairs to use in each cell (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first program; pair i has seed + i or later")
    parser.add_argument("--layers", nargs="+", type=int, help="rows of the map (default: all)")
    parser.add_argument(
        "--positions", nargs="+", default=["all"], help="all, targets, or names of targets and token positions"
    )
    parser.add_argument(
        "--targets", nargs="+", help="what means are taken at: roles (all of them), or names of targets"
    )
    parser.add_argument("--generator", default="variable_binding", help=f"one of: {', '.join(generators.GENERATORS)}")
    parser.add_argument("--prompt", default="VARIABLE_BINDING", help=f"{', '.join(PROMPTS)}, or a text with {{code}}")
    parser.add_argument("--keep-wrong", action="store_true", help="use pairs that the model does not answer, too")
    parser.add_argument("--exclude-shallow", action="store_true", help="skip pairs with the root on line 1 or 2")
    parser.add_argument("--save-activations", choices=["none", "targets", "all"], default="targets")
    parser.add_argument("--batch-tokens", type=int, help="tokens of one forward pass (default: from the model's size)")
    parser.add_argument("--name", default="causal_tracing", help="MLflow experiment")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner

    positions: list[str | int] = [int(p) if p.lstrip("-").isdigit() else p for p in options.positions]
    config = CausalConfig(
        models=options.models,
        intervention_type=options.intervention_type,
        hops=options.hops,
        seq_lens=options.seq_lens,
        num_seqs=options.num_seqs,
        seed=options.seed,
        name=options.name,
        generator=options.generator,
        prompt_template=options.prompt,
        layers=options.layers,
        positions=options.positions[0] if positions in (["all"], ["targets"]) else positions,
        targets="roles" if options.targets == ["roles"] else options.targets,
        require_correct=not options.keep_wrong,
        exclude_shallow=options.exclude_shallow,
        save_activations=options.save_activations,
    )
    runner = CausalExperimentRunner(
        options.tracking_uri, dtype=options.dtype, device=options.device, batch_tokens=options.batch_tokens
    )
    result = runner.run(config)
    for cell in result.cells:
        print(f"\n{cell}")
    print(f"\nstudy run {result.run_id} in {result.tracking_uri}; look: make dashboard, or make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
