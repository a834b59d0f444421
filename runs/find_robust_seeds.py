"""Find the first seeds whose program and counterfactual every model answers correctly, and log every seed tried.

python runs/find_robust_seeds.py                                               # bundled model, 3 hops, 5 lines, 5 seeds
python runs/find_robust_seeds.py --hops 1 2 3 --seq-lens 5 17 --num-seeds 10
python runs/find_robust_seeds.py --models tiny smollm2 --few-shot 3 --hops 2 --seq-lens 3 --max-tried 200
python runs/find_robust_seeds.py --models heuristic:any-number heuristic:first-two-lines --all-incorrect
python runs/find_robust_seeds.py --models smollm2 --few-shot 3 --backend vllm --engine-args max_model_len=1024
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.core import ExperimentConfig
from debug.options import add_flags, given
from debug.robust_seeds import RobustSearch


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.backend_options(parser)
    add_flags(parser, RobustSearch, defaults={"models": ["tiny"], "count": 5}, like=ExperimentConfig)
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.robust_seeds import find_robust_seeds
    from debug.runner import ExperimentRunner

    search = RobustSearch(**given(options, RobustSearch))
    runner = ExperimentRunner(options.tracking_uri, options.batch_size, **cli.how(options))
    for found in find_robust_seeds(search, runner):
        print(found)


if __name__ == "__main__":
    cli.run(main, arguments())
