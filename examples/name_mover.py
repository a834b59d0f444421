"""A task that is no program: whose name comes next? Maps, heads and cut edges of one file of pairs, on one model.

"When John and Mary went to the store, John gave a drink to": the model says Mary. Where does it know that John is the
one who gave, and which heads carry the other name to the end (Wang et al., arXiv 2211.00593)?

python examples/name_mover.py                                  # SmolLM2, 24 pairs: some minutes on two cores
python examples/name_mover.py --num-pairs 4 --models smollm2
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from debug import cli

if TYPE_CHECKING:
    from debug.causal_map import MeanCausalMap
    from debug.statistics import Interval

PAIRS = Path(__file__).with_name("name_mover.jsonl")
STEPS = {
    "residual_stream": {"positions": "targets"},
    "attention_heads": {"positions": ["final"]},
    "attention_knockout": {"positions": ["final->first_name", "final->second_name", "final->subject"]},
}
HEADS = 5


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["smollm2"], metavar="MODEL", help="default: smollm2")
    parser.add_argument(
        "--pairs", default=str(PAIRS), metavar="FILE", help="JSONL file of pairs (default: 24 of two names)"
    )
    parser.add_argument("--num-pairs", type=int, metavar="N", help="the first N (default: all)")
    return parser.parse_args()


def strongest(mean: MeanCausalMap) -> list[tuple[Interval, str, int]]:
    """(normalized logit difference over pairs, head, layer), the largest first."""
    found = [
        (share, curve.target, layer)
        for curve in mean.curves
        for layer, share in zip(mean.layers, curve["normalized_logit_diff"], strict=True)
        if share is not None
    ]
    return sorted(found, key=lambda each: -each[0].estimate)[:HEADS]


def main(options: argparse.Namespace) -> None:
    from debug import models
    from debug.causal_experiment_runner import CausalExperimentRunner
    from debug.counterfactual import read_pairs

    runner = CausalExperimentRunner(options.tracking_uri, dtype=options.dtype, device=options.device)
    pairs = read_pairs(options.pairs)[: options.num_pairs]
    for model_id in options.models:
        model = models.load(model_id, dtype=options.dtype, device=options.device)
        for component, plan in STEPS.items():
            result = runner.run_intervention_experiment(
                model, pairs, component, name="name_mover", prompt_template="{code}", **plan
            )
            [cell] = result.cells
            print(f"\n{cell}")
            if component == "attention_heads" and cell.mean is not None:
                print(f"  the {HEADS} heads that move the largest share of the logit difference:")
                for share, head, layer in strongest(cell.mean):
                    print(f"    layer {layer}, {head}: {share}")
    print(f"\nlook: make dashboard, or make mlflow; experiment name_mover in {runner.store}")


if __name__ == "__main__":
    cli.run(main, arguments())
