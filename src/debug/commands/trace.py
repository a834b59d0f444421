"""Patch activations of counterfactual programs into the originals, layer by token, and log the causal maps to MLflow.

debug trace                                             # bundled model, 3 hops, 5 lines
debug trace --hops 1 2 3 4 --seq-lens 5 17 --num-seqs 100
debug trace --intervention-type attention_heads --positions targets
debug trace --models smollm2 --prompt FEW_SHOT_BINDING --hops 2 --seq-lens 3 --num-seqs 10
debug trace --positions ref_depth_2_newline ref_depth_3_equals final --layers 0 1 2 3
debug trace --intervention-type attention_knockout --seq-lens 17 --num-seqs 200
debug trace --intervention-type mlp --source mean --positions ref_depth_1_line ref_depth_2_line final
debug trace --intervention-type attention_heads --heads 0+1 2 --positions final --layer-window 2
debug trace --method attribution                        # an estimate, with its agreement
debug trace --models meta-llama/Llama-3.1-70B --remote  # on NDIF
debug trace --models smollm2 --dry-run                  # how much that would be, without weights
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.causal_experiment_runner.config import CausalConfig
from debug.commands import startup, study
from debug.options import add_flags, given


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    cli.remote_options(made)
    add_flags(made, CausalConfig, defaults={"models": ["tiny"]})
    made.add_argument("--keep-wrong", dest="require_correct", action="store_false", help="as --no-require-correct")
    made.set_defaults(require_correct=True)
    made.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens of one forward pass (default: from the model's size)"
    )
    study.going_on(made)
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="load no weights, log nothing; count pairs, interventions, forward passes, tokens x layers, candidates "
        "and what is skipped and why, as the run would; time and memory are rough estimates (the engine runs on random "
        "weights for some seconds). Assumed: the model answers every pair",
    )
    return made


def main(options: argparse.Namespace) -> None:
    config = CausalConfig(**given(options, CausalConfig))
    if not options.dry_run:
        study.patch(config, options, "trace")
        return
    startup.prepare(config.models, draws=False)
    from debug.causal_experiment_runner import dry_run

    how = {name: getattr(options, name) for name in ("dtype", "device", "batch_tokens")}
    for cell in dry_run(config, options.tracking_uri, **how):
        print(f"\n{cell}")
