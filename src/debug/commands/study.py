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
    going_on(made)
    return made


def going_on(made: argparse.ArgumentParser, when: str = "") -> None:
    """Options of what is done with a study of the same name that is in the store."""
    made.add_argument("--no-cache", action="store_true", help="free each model after its cells")
    made.add_argument("--fresh", action="store_true", help=f"{when}start anew where it was not finished")
    made.add_argument(
        "--mix", action="store_true", help=f"{when}go on though code, versions or weights are others than before"
    )
    made.add_argument("--take-over", action="store_true", help=f"{when}go on though another process seems to be at it")


def main(options: argparse.Namespace) -> None:
    from debug.core.study_file import read_study

    name, configs = read_study(options.study)
    carry_out(name, configs, options, resume=not options.fresh)


def carry_out(name: str, configs: Sequence[ExperimentConfig], options: argparse.Namespace, *, resume: bool) -> None:
    """Run experiments as one study, and say what was found and where to look."""
    if options.backend != "vllm":
        models = [model for config in configs for model in config.models]
        startup.prepare(models, served=options.backend == "openai")
    from debug import ExperimentRunner
    from debug.tracking import Store

    runner = ExperimentRunner(options.tracking_uri, options.batch_size, **cli.how(options))
    result = runner.run_study(
        name, configs, no_cache=options.no_cache, resume=resume, mix=options.mix, take_over=options.take_over
    )
    print(f"\n{result}")
    store = Store(result.tracking_uri)
    print(f"\nstudy run {result.run_id} in {store}\n{cli.where_to_look(store.link(result.run_id))}")
