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
from debug.prompts import PROMPTS


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.backend_options(parser)
    parser.add_argument(
        "--models", nargs="+", default=["tiny"], help="ids: tiny, smollm2, heuristic:..., folder, hub id"
    )
    parser.add_argument("--hops", nargs="+", type=cli.hops, default=[3], help="referential depths of the query, or any")
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[5], help="numbers of assignment lines")
    parser.add_argument("--num-seeds", type=int, default=5, help="seeds to find in each cell (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed to try")
    parser.add_argument("--max-tried", type=int, default=1000, help="programs to try in each cell (default 1000)")
    parser.add_argument("--prompt", default="VARIABLE_BINDING", help=f"{', '.join(PROMPTS)}, or a text with {{code}}")
    parser.add_argument("--few-shot", type=int, default=0, help="solved programs before each program (default 0)")
    parser.add_argument("--all-incorrect", action="store_true", help="seeds that every model answers wrong instead")
    parser.add_argument("--name", default="robust_seeds", help="MLflow experiment")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    from debug.robust_seeds import RobustSearch, find_robust_seeds
    from debug.runner import ExperimentRunner

    search = RobustSearch(
        models=options.models,
        hops=options.hops,
        seq_lens=options.seq_lens,
        count=options.num_seeds,
        seed=options.seed,
        max_tried=options.max_tried,
        prompt_template=options.prompt,
        few_shot=options.few_shot,
        all_incorrect=options.all_incorrect,
        name=options.name,
    )
    runner = ExperimentRunner(options.tracking_uri, options.batch_size, **cli.how(options))
    for found in find_robust_seeds(search, runner):
        print(found)


if __name__ == "__main__":
    cli.run(main, arguments())
