"""Generate programs with known answers, ask models, score the answers, and log the accuracy of each cell to MLflow.

python runs/accuracy.py                                                  # bundled model, 5 lines, the published draw
python runs/accuracy.py --hops 1 2 3 4 --seq-lens 5 17 --num-seqs 200
python runs/accuracy.py --models smollm2 --prompt FEW_SHOT_BINDING --hops 3 --seq-lens 3 5 --num-seqs 50
python runs/accuracy.py --models smollm2 --generator range --prompt RANGE_TRACKING --seq-lens 2 3 4 --num-seqs 20
python runs/accuracy.py --models smollm2 --prompt 'Python program: {code}' --name wording --batch-size 8
"""

from __future__ import annotations

import argparse

from debug import cli, generators, quick_experiment
from debug.core import PARSERS
from debug.prompts import PROMPTS


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny"], help="ids: tiny, smollm2, a folder, a hub id")
    parser.add_argument("--generator", default="variable_binding", help=f"one of: {', '.join(generators.GENERATORS)}")
    parser.add_argument("--prompt", default="VARIABLE_BINDING", help=f"{', '.join(PROMPTS)}, or a text with {{code}}")
    parser.add_argument(
        "--hops", nargs="+", type=cli.hops, default=[None], help="referential depths of the query, or any (default)"
    )
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[5], help="numbers of assignment lines")
    parser.add_argument("--num-seqs", type=int, default=100, help="programs in each cell (default 100)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first program; program i has seed + i or later"
    )
    parser.add_argument("--answer-parser", help=f"{', '.join(PARSERS)} (default: the generator's own, else integer)")
    parser.add_argument("--max-new-tokens", type=int, default=8, help="tokens of a completion (default 8)")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts completed at once (default 32)")
    parser.add_argument("--no-cache", action="store_true", help="free each model after its cells")
    parser.add_argument("--name", default="accuracy", help="MLflow experiment")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    config = quick_experiment(
        name=options.name,
        prompt_template=options.prompt,
        program_generator=options.generator,
        models=options.models,
        num_seqs=options.num_seqs,
        seq_lens=options.seq_lens,
        hops=options.hops,
        seed=options.seed,
        answer_parser=options.answer_parser,
        max_new_tokens=options.max_new_tokens,
    )
    from debug import ExperimentRunner  # torch and mlflow, seconds: after the arguments are known to be good

    runner = ExperimentRunner(options.tracking_uri, options.batch_size, options.dtype, options.device)
    result = runner.run(config, no_cache=options.no_cache)
    print(f"\n{result}")
    print(f"\nstudy run {result.run_id} in {result.tracking_uri}; look: make dashboard, or make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
