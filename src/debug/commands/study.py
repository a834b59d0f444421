"""Carry out a file of experiments, or go on with it: the same command again.

debug study runs/studies/four_models.yaml
debug study my_study.yaml --dry-run                                 # its cells, and how much that would be
debug study my_study.yaml --fresh                                   # anew, though it was not finished
debug study my_study.yaml --workers 2                               # two processes; more may join: the same command
debug study my_study.yaml --backend vllm --engine-args max_model_len=1024
debug study my_study.yaml --executor submitit --workers 8 --executor-args gpus_per_node=1 timeout_min=600
debug study my_study.yaml --executor ray --workers 8 --executor-args address=auto num_gpus=1
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from debug import cli
from debug.commands import startup
from debug.executors import EXECUTORS
from debug.kinds import Argument

if TYPE_CHECKING:
    from debug.causal_experiment_runner.config import CausalConfig
    from debug.core import ExperimentConfig


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("study", metavar="FILE", help="a YAML or JSON file of experiments")
    cli.backend_options(made)
    made.add_argument("--no-cache", action="store_true", help="free each model after its cells")
    made.add_argument("--batch-tokens", type=int, metavar="N", help="of causal experiments: tokens of one forward pass")
    made.add_argument(
        "--dry-run", action="store_true", help="load no weights, log nothing: list the cells, with estimates"
    )
    going_on(made)
    return made


def going_on(made: argparse.ArgumentParser) -> None:
    """Options of what is done with a study that asks the same, is in the store, and was not finished."""
    made.add_argument(
        "--fresh",
        action="store_true",
        help="start anew; without it the same command goes on with what was not finished, beside others that are at it",
    )
    made.add_argument(
        "--mix", action="store_true", help="go on though code, versions or weights are others than before"
    )
    made.add_argument(
        "--take-over", action="store_true", help="go on, and stop others that are at it at their next cell"
    )
    made.add_argument("--executor", choices=EXECUTORS, default="local", help="what runs the workers (default: local)")
    made.add_argument("--workers", type=int, default=1, metavar="N", help="processes that share the cells (default 1)")
    made.add_argument(
        "--executor-args",
        nargs="+",
        type=cli.setting,
        default=[],
        help="submitit's or Ray's own: gpus_per_node=1 mem_gb=40 slurm_partition=gpu; address=auto num_gpus=1",
    )
    made.set_defaults(is_worker=False)


def how_gone_on(command: str, options: argparse.Namespace) -> dict[str, Argument]:
    """What the options of :func:`going_on` say, as arguments of both runners."""
    from debug.executors import chosen

    named = {name: getattr(options, name) for name in ("mix", "take_over", "is_worker")}
    return named | {"resume": not options.fresh, "workers": chosen(command, options)}


def main(options: argparse.Namespace) -> None:
    from debug.study_file import read_study

    name, accuracy, causal = read_study(options.study)
    if options.dry_run:
        _say_what_it_would_do(name, accuracy, causal, options)
        return
    if accuracy:
        carry_out(name, accuracy, options, "study")
    for config in causal:
        patch(config, options, "study")


def carry_out(name: str, configs: Sequence[ExperimentConfig], options: argparse.Namespace, command: str) -> None:
    """Run experiments as one study, or go on with it, and say what was found and where to look."""
    if options.backend != "vllm":
        models = [model for config in configs for model in config.models]
        startup.prepare(models, served=options.backend == "openai")
    from debug import ExperimentRunner
    from debug.tracking import LeftToOthers, Store

    runner = ExperimentRunner(options.tracking_uri, options.batch_size, **cli.how(options))
    how = how_gone_on(command, options)
    try:
        result = runner.run_study(name, configs, no_cache=options.no_cache, **how)
    except LeftToOthers:
        return
    print(f"\n{result}")
    store = Store(result.tracking_uri)
    print(f"\nstudy run {result.run_id} in {store}\n{cli.where_to_look(store.link(result.run_id))}")


def patch(config: CausalConfig, options: argparse.Namespace, command: str) -> None:
    """The same of a causal experiment."""
    startup.prepare(config.models)
    from debug.causal_experiment_runner import CausalExperimentRunner
    from debug.tracking import LeftToOthers, Store

    runner = CausalExperimentRunner(
        options.tracking_uri, dtype=options.dtype, device=options.device, batch_tokens=options.batch_tokens
    )
    try:
        result = runner.run(config, **how_gone_on(command, options))
    except LeftToOthers:
        return
    for cell in result.cells:
        print(f"\n{cell}")
    if config.shared:
        print(f"\n{config.shared}")
    store = Store(result.tracking_uri)
    print(f"\nstudy run {result.run_id} in {store}\n{cli.where_to_look(store.link(result.run_id))}")


def _say_what_it_would_do(
    name: str, accuracy: Sequence[ExperimentConfig], causal: Sequence[CausalConfig], options: argparse.Namespace
) -> None:
    if accuracy:
        from debug.runner import ExperimentRunner
        from debug.runner.cost import dry_run as asked

        for cell in asked(name, accuracy, ExperimentRunner(None, options.batch_size, **cli.how(options))):
            print(f"\n{cell}")
    if causal:
        from debug.causal_experiment_runner import dry_run

        how = {name: getattr(options, name) for name in ("dtype", "device", "batch_tokens")}
        for config in causal:
            for cell in dry_run(config, options.tracking_uri, **how):
                print(f"\n{cell}")
