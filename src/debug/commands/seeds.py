"""Find the first seeds whose program and counterfactual every model answers correctly, and log every seed tried.

A search that was not finished goes on where it stood when the same command is given again.

debug seeds                                               # bundled model, 3 hops, 5 lines, 5 seeds
debug seeds --hops 1 2 3 --seq-lens 5 17 --num-seeds 10
debug seeds --models tiny smollm2 --few-shot 3 --hops 2 --seq-lens 3 --max-tried 200
debug seeds --models heuristic:any-number heuristic:first-two-lines --all-incorrect
debug seeds --models smollm2 --few-shot 3 --backend vllm --engine-args max_model_len=1024
debug seeds --models smollm2 --few-shot 3 --backend openai --base-url http://localhost:8000/v1
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.commands import startup
from debug.commands.study import going_on, how_gone_on
from debug.core import ExperimentConfig
from debug.options import add_flags, given
from debug.robust_seeds import RobustSearch


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    cli.backend_options(made)
    add_flags(made, RobustSearch, defaults={"models": ["tiny"], "count": 5}, like=ExperimentConfig)
    going_on(made)
    return made


def main(options: argparse.Namespace) -> None:
    search = RobustSearch(**given(options, RobustSearch))
    if options.backend != "vllm":
        startup.prepare(search.models, draws=False, served=options.backend == "openai")
    from debug.robust_seeds import find_robust_seeds
    from debug.runner import ExperimentRunner
    from debug.studies import Resuming
    from debug.tracking import LeftToOthers, Store

    runner = ExperimentRunner(options.tracking_uri, options.batch_size, **cli.how(options))
    try:
        cells = find_robust_seeds(search, runner, Resuming(**how_gone_on("seeds", options)))
    except LeftToOthers:
        return
    for found in cells:
        print(found)
    print(cli.where_to_look(Store(options.tracking_uri).link(found.run_id)))
