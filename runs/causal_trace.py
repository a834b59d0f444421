"""Patch activations of counterfactual programs into the originals, layer by token, and log the causal maps to MLflow.

python runs/causal_trace.py                                             # bundled model, 3 hops, 5 lines
python runs/causal_trace.py --hops 1 2 3 4 --seq-lens 5 17 --num-seqs 100
python runs/causal_trace.py --intervention-type attention_heads --positions targets
python runs/causal_trace.py --models smollm2 --prompt FEW_SHOT_BINDING --hops 2 --seq-lens 3 --num-seqs 10
python runs/causal_trace.py --positions ref_depth_2_newline ref_depth_3_equals final --layers 0 1 2 3
python runs/causal_trace.py --intervention-type attention_knockout --seq-lens 17 --num-seqs 200
python runs/causal_trace.py --intervention-type mlp --source mean --positions ref_depth_1_line ref_depth_2_line final
python runs/causal_trace.py --intervention-type attention_heads --heads 0+1 2 --positions final --layer-window 2
python runs/causal_trace.py --method attribution                        # an estimate, with its agreement
"""

from __future__ import annotations

import argparse

from debug import cli, generators
from debug.causal_map import DIRECTIONS, SOURCES
from debug.core import shared_programs
from debug.prompts import PROMPTS
from debug.provenance import without_passwords


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny"], help="ids: tiny, smollm2, a folder, a hub id")
    parser.add_argument(
        "--intervention-type",
        default="residual_stream",
        help="residual_stream, attention_heads, attention, mlp, attention_knockout (default residual_stream)",
    )
    parser.add_argument("--hops", nargs="+", type=cli.hops, default=[3], help="referential depths of the query, or any")
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[5], help="numbers of assignment lines")
    parser.add_argument("--num-seqs", type=int, default=50, help="pairs to use in each cell (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first program; pair i has seed + i or later")
    parser.add_argument(
        "--independent-cells", action="store_true", help="draw each cell's programs from seeds that no other cell has"
    )
    parser.add_argument("--layers", nargs="+", type=int, help="rows of the map (default: all)")
    parser.add_argument(
        "--positions",
        nargs="+",
        default=["all"],
        help="all, targets, or names of targets and token positions; a+b patches both, ref_depth_2_line a line. "
        "Of attention_knockout: direct_pointer, chain_following, or targets as queries->keys",
    )
    parser.add_argument(
        "--targets", nargs="+", help="what means are taken at: roles (all of them), or names of targets"
    )
    parser.add_argument("--source", choices=SOURCES, default="counterfactual", help="of the patched activations")
    parser.add_argument("--source-run", help="the logged run whose activations are patched, with --source stored")
    parser.add_argument("--direction", choices=DIRECTIONS, default="into_original", help="which program is patched")
    parser.add_argument(
        "--heads",
        nargs="+",
        help="of attention_heads: together, or heads and sets of them (0 2 3+5; default each alone); of "
        "attention_knockout: those whose edges are cut",
    )
    parser.add_argument("--layer-window", type=int, help="layers that a row changes at once (default 1; knockout: all)")
    parser.add_argument("--method", choices=["patching", "attribution"], default="patching", help="exact, or estimated")
    parser.add_argument("--no-control", dest="control", action="store_false", help="leave out the control")
    parser.add_argument("--random-draws", type=int, default=5, help="of random edges, for each knockout (default 5)")
    parser.add_argument(
        "--match-attention", action="store_true", help="random edges are matched by what they are attended to, too"
    )
    parser.add_argument("--no-logit-lens", dest="logit_lens", action="store_false", help="leave out the logit lens")
    parser.add_argument("--generator", default="variable_binding", help=f"one of: {', '.join(generators.GENERATORS)}")
    parser.add_argument("--prompt", default="VARIABLE_BINDING", help=f"{', '.join(PROMPTS)}, or a text with {{code}}")
    parser.add_argument("--keep-wrong", action="store_true", help="use pairs that the model does not answer, too")
    parser.add_argument("--exclude-shallow", action="store_true", help="skip pairs with the root on line 1 or 2")
    parser.add_argument("--save-activations", choices=["none", "targets", "all"], default="targets")
    parser.add_argument("--batch-tokens", type=int, help="tokens of one forward pass (default: from the model's size)")
    parser.add_argument("--name", help="MLflow experiment (default: the kind of run)")
    return parser.parse_args()


_AS_THEY_ARE = (
    *("source", "source_run", "direction", "layer_window", "method"),
    *("control", "logit_lens", "random_draws", "match_attention"),
)


def main(options: argparse.Namespace) -> None:
    from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner

    positions: list[str | int] = [int(p) if p.lstrip("-").isdigit() else p for p in options.positions]
    heads = options.heads and [
        [int(head) for head in given.split("+")] for given in options.heads if given != "together"
    ]
    config = CausalConfig(
        models=options.models,
        intervention_type=options.intervention_type,
        hops=options.hops,
        seq_lens=options.seq_lens,
        num_seqs=options.num_seqs,
        seed=options.seed,
        independent_cells=options.independent_cells,
        name=options.name,
        generator=options.generator,
        prompt_template=options.prompt,
        layers=options.layers,
        positions=options.positions[0] if positions in (["all"], ["targets"]) else positions,
        targets="roles" if options.targets == ["roles"] else options.targets,
        require_correct=not options.keep_wrong,
        exclude_shallow=options.exclude_shallow,
        save_activations=options.save_activations,
        heads="together" if options.heads == ["together"] else heads,
        **{name: getattr(options, name) for name in _AS_THEY_ARE},
    )
    runner = CausalExperimentRunner(
        options.tracking_uri, dtype=options.dtype, device=options.device, batch_tokens=options.batch_tokens
    )
    result = runner.run(config)
    for cell in result.cells:
        print(f"\n{cell}")
    programs = config.programs()
    if note := shared_programs((programs.generator[0], *c, programs.first_seed(*c)) for c in programs.cells):
        print(f"\n{note}")
    store = without_passwords(result.tracking_uri)
    print(f"\nstudy run {result.run_id} in {store}; look: make dashboard, or make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
