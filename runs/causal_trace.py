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

from debug import cli
from debug.causal_experiment_runner.config import CausalConfig
from debug.options import add_flags, given
from debug.provenance import without_passwords


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add_flags(parser, CausalConfig, defaults={"models": ["tiny"]})
    parser.add_argument("--keep-wrong", dest="require_correct", action="store_false", help="as --no-require-correct")
    parser.set_defaults(require_correct=True)
    parser.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens of one forward pass (default: from the model's size)"
    )
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.causal_experiment_runner import CausalExperimentRunner

    config = CausalConfig(**given(options, CausalConfig))
    runner = CausalExperimentRunner(
        options.tracking_uri, dtype=options.dtype, device=options.device, batch_tokens=options.batch_tokens
    )
    result = runner.run(config)
    for cell in result.cells:
        print(f"\n{cell}")
    if config.shared:
        print(f"\n{config.shared}")
    store = without_passwords(result.tracking_uri)
    print(f"\nstudy run {result.run_id} in {store}; look: make dashboard, or make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
