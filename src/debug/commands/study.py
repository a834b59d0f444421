"""Carry out a file of experiments, or go on with it: the same command again.

debug study runs/studies/four_models.yaml
debug study runs/studies/four_models.yaml --fresh                   # anew, though it was not finished
debug study my_study.yaml --backend vllm --engine-args max_model_len=1024
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from debug import cli
from debug.commands import startup

if TYPE_CHECKING:
    from debug.core import ExperimentConfig


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    made.add_argument("study", metavar="FILE", help="a YAML or JSON file of experiments")
    cli.backend_options(made)
    made.add_argument("--no-cache", action="store_true", help="free each model after its cells")
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


def main(options: argparse.Namespace) -> None:
    from debug.core.study_file import read_study

    name, configs = read_study(options.study)
    carry_out(name, configs, options)


def carry_out(name: str, configs: Sequence[ExperimentConfig], options: argparse.Namespace) -> None:
    """Run experiments as one study, or go on with it, and say what was found and where to look."""
    if options.backend != "vllm":
        startup.prepare([model for config in configs for model in config.models])
    from debug import ExperimentRunner
    from debug.tracking import Store

    runner = ExperimentRunner(options.tracking_uri, options.batch_size, **cli.how(options))
    result = runner.run_study(
        name, configs, no_cache=options.no_cache, resume=not options.fresh, mix=options.mix, take_over=options.take_over
    )
    print(f"\n{result}")
    store = Store(result.tracking_uri)
    print(f"\nstudy run {result.run_id} in {store}\n{cli.where_to_look(store.link(result.run_id))}")
