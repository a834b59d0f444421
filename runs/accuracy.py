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

from debug import cli, generators, quick_experiment
from debug.core import PARSERS, TASKS
from debug.prompts import PROMPTS
from debug.provenance import without_passwords


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    cli.backend_options(parser)
    parser.add_argument(
        "--models", nargs="+", default=["tiny"], help="ids: tiny, smollm2, heuristic:..., folder, hub id"
    )
    parser.add_argument(
        *("--task", "--generator"), default="variable_binding", help=f"generator: {', '.join(generators.GENERATORS)}"
    )
    parser.add_argument("--prompt", help=f"{', '.join(PROMPTS)}, or a text with {{code}} (default: the task's own)")
    parser.add_argument("--few-shot", type=int, default=0, help="solved programs before each program (default 0)")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--scoring", default="generate", help="generate (default), or logits: rank possible answers")
    parser.add_argument(
        "--hops", nargs="+", type=cli.hops, default=[None], help="referential depths of the query, or any (default)"
    )
    parser.add_argument("--seq-lens", nargs="+", type=int, default=[5], help="numbers of assignment lines")
    parser.add_argument("--num-seqs", type=int, default=100, help="programs in each cell (default 100)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first program; program i has seed + i or later"
    )
    parser.add_argument(
        "--independent-cells", action="store_true", help="draw each cell's programs from seeds that no other cell has"
    )
    parser.add_argument("--answer-parser", help=f"{', '.join(PARSERS)} (default: that of the task and the prompt)")
    parser.add_argument("--max-new-tokens", type=int, help="tokens of a completion (default 8; 512 for reasoning)")
    parser.add_argument("--no-cache", action="store_true", help="free each model after its cells")
    parser.add_argument("--name", default="accuracy", help="MLflow experiment")
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
        config = quick_experiment(
            name=options.name,
            prompt_template=options.prompt or TASKS.get(options.task, ("MINIMAL",))[0],
            program_generator=options.task,
            models=options.models,
            num_seqs=options.num_seqs,
            seq_lens=options.seq_lens,
            hops=options.hops,
            seed=options.seed,
            answer_parser=options.answer_parser,
            max_new_tokens=options.max_new_tokens,
            few_shot=options.few_shot,
            chat=options.chat,
            scoring=options.scoring,
            independent_cells=options.independent_cells,
        )
        name, configs = options.name, [config]
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
