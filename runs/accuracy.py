"""Generate programs with known answers, ask models, score the answers, and log the accuracy of each cell to MLflow.

python runs/accuracy.py                                                  # bundled model, 5 lines, the published draw
python runs/accuracy.py --hops 1 2 3 4 --seq-lens 5 17 --num-seqs 200
python runs/accuracy.py --models tiny heuristic:any-number heuristic:largest-chain --hops 1 2 3 4 --num-seqs 200
python runs/accuracy.py --models smollm2 --few-shot 3 --hops 3 --seq-lens 3 5 --num-seqs 50
python runs/accuracy.py --models smollm2 --task boolean --scoring logits --seq-lens 2 3 4 --num-seqs 20
python runs/accuracy.py --models smollm2 --task range --prompt CHAIN_OF_THOUGHT --chat --num-seqs 10
python runs/accuracy.py --models smollm2 --prompt 'Python program: {code}' --name wording --batch-size 8
python runs/accuracy.py --models smollm2 --few-shot 3 --backend vllm --engine-args max_model_len=1024
python runs/accuracy.py --study runs/studies/four_models.yaml            # go on with it: the same command again
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.core import TASKS, ExperimentConfig
from debug.options import add_flags, given
from debug.provenance import without_passwords

OWN = {
    "name": "accuracy",
    "program_generator": "variable_binding",
    "models": ["tiny"],
    "num_seqs": 100,
    "seq_lens": [5],
}


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.backend_options(parser)
    add_flags(parser, ExperimentConfig, defaults=OWN)
    parser.add_argument("--no-cache", action="store_true", help="free each model after its cells")
    parser.add_argument("--study", help="a YAML or JSON file of experiments; the options of one are then not read")
    parser.add_argument("--fresh", action="store_true", help="with --study: start anew where it was not finished")
    parser.add_argument(
        "--mix", action="store_true", help="with --study: go on though code, versions or weights are others than before"
    )
    parser.add_argument(
        "--take-over", action="store_true", help="with --study: go on though another process seems to be at it"
    )
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    if options.study:
        from debug.core.study_file import read_study

        name, configs = read_study(options.study)
    else:
        chosen = given(options, ExperimentConfig)
        chosen.setdefault("prompt_template", TASKS.get(chosen["program_generator"], ("MINIMAL",))[0])
        name, configs = chosen["name"], [ExperimentConfig(**chosen)]
    from debug import ExperimentRunner

    runner = ExperimentRunner(options.tracking_uri, options.batch_size, **cli.how(options))
    resume = bool(options.study) and not options.fresh
    result = runner.run_study(
        name, configs, no_cache=options.no_cache, resume=resume, mix=options.mix, take_over=options.take_over
    )
    print(f"\n{result}")
    store = without_passwords(result.tracking_uri)
    print(f"\nstudy run {result.run_id} in {store}; look: make dashboard, or make mlflow")


if __name__ == "__main__":
    cli.run(main, arguments())
