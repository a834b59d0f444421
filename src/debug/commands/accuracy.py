"""Generate programs with known answers, ask models, score the answers, and log the accuracy of each cell to MLflow.

debug accuracy                                                  # bundled model, 5 lines, the published draw
debug accuracy --hops 1 2 3 4 --seq-lens 5 17 --num-seqs 200
debug accuracy --models tiny heuristic:any-number heuristic:largest-chain --hops 1 2 3 4 --num-seqs 200
debug accuracy --models smollm2 --few-shot 3 --hops 3 --seq-lens 3 5 --num-seqs 50
debug accuracy --models smollm2 --task boolean --scoring logits --seq-lens 2 3 4 --num-seqs 20
debug accuracy --models smollm2 --task range --prompt CHAIN_OF_THOUGHT --chat --num-seqs 10
debug accuracy --models smollm2 --prompt 'Python program: {code}' --name wording --batch-size 8
debug accuracy --models smollm2 --few-shot 3 --backend vllm --engine-args max_model_len=1024
debug accuracy --models smollm2 --few-shot 3 --backend openai --base-url http://localhost:8000/v1
debug accuracy --study runs/studies/four_models.yaml            # go on with it: the same command again
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.commands import study
from debug.core import TASKS, ExperimentConfig
from debug.options import add_flags, given

OWN = {
    "name": "accuracy",
    "program_generator": "variable_binding",
    "models": ["tiny"],
    "num_seqs": 100,
    "seq_lens": [5],
}


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    cli.backend_options(made)
    add_flags(made, ExperimentConfig, defaults=OWN)
    made.add_argument("--study", help="a YAML or JSON file of experiments; the options of one are then not read")
    made.add_argument("--no-cache", action="store_true", help="free each model after its cells")
    study.going_on(made)
    return made


def main(options: argparse.Namespace) -> None:
    if options.study:
        study.main(options)
        return
    chosen = given(options, ExperimentConfig)
    chosen.setdefault("prompt_template", TASKS.get(chosen["program_generator"], ("MINIMAL",))[0])
    study.carry_out(chosen["name"], [ExperimentConfig(**chosen)], options, "accuracy")
