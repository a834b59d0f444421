"""Train the bundled model on a CPU, log the trajectory to MLflow, measure it on held-out programs, release it.

debug train                                       # into training/tiny; Ctrl-C saves and stops
debug train --resume                              # go on after Ctrl-C or a kill
debug train --resume --steps 6000                 # other than first planned
debug train --seed 1 --out training/seed_1
debug train --evaluate src/debug/checkpoints/tiny # the model card's table
debug train --release training/tiny/checkpoints/step_003600

Every start is an MLflow run of its own that holds the whole trajectory from step 0. On one thread (the default) a run
that is resumed reaches the same weights, bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from debug import cli
from debug.errors import InputError

if TYPE_CHECKING:
    from debug.training import Settings

CARD_BEGIN, CARD_END = "<!-- accuracy: written by --release -->", "<!-- end of accuracy -->"


def parser() -> argparse.ArgumentParser:
    made = cli.store_parser(__doc__)
    made.add_argument("--out", type=Path, default=Path("training/tiny"), help="folder of the training run")
    made.add_argument("--steps", type=int, help="optimizer steps in all (default 3600)")
    made.add_argument("--seed", type=int, help="seed of initial weights and training programs (default 0)")
    made.add_argument("--resume", action="store_true", help="go on with the run in --out")
    made.add_argument("--threads", type=int, default=1, help="torch threads (default 1: bit for bit the same again)")
    other = made.add_mutually_exclusive_group()
    other.add_argument("--evaluate", type=Path, metavar="FOLDER", help="only print the accuracies of these weights")
    other.add_argument("--release", type=Path, metavar="FOLDER", help="bundle these weights and write their model card")
    return made


def main(options: argparse.Namespace) -> None:
    if options.evaluate:
        print(measured(options.evaluate, options.threads))
    elif options.release:
        release(options.release, options.threads)
    else:
        train(options)


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of the run in --out, where it is to go on, else new ones."""
    given = {name: value for name in ("steps", "seed") if (value := getattr(options, name)) is not None}
    path = options.out / "settings.json"
    if path.exists() and not options.resume:
        raise InputError(
            f"{options.out} holds a training run; add --resume to go on, or name another folder with --out"
        )
    from debug.training import Settings

    if not path.exists():
        return Settings(**given)
    settings = Settings(**json.loads(path.read_text("utf-8")))
    if given.get("seed", settings.seed) != settings.seed:
        raise InputError(f"the run in {options.out} has seed {settings.seed}, not {options.seed}; leave --seed out")
    return replace(settings, **given)


def train(options: argparse.Namespace) -> None:
    settings, folder = settings_of(options), options.out
    import torch  # seconds, like the next two: after the arguments are known to be good

    from debug import training
    from debug.tracking import Store

    torch.set_num_threads(options.threads)
    store = Store(options.tracking_uri)
    with store.start("training", f"tiny · training · {folder.name}", kind="training") as run:
        run.log_params(
            {"model": "tiny", "generator": "variable_binding", "threads": options.threads, **asdict(settings)}
        )
        held_out = training.first_pairs(training.HELD_OUT)
        try:
            for step, metrics in training.train(settings, folder, held_out):
                run.log_metrics(metrics, step)
        finally:
            shutil.copytree(
                folder, run.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("state.*", "lock", "*.partial")
            )
        last = training.checkpoint_folder(folder, settings.steps)
        accuracies = training.evaluate(training.load_weights(last), held_out)
        for cell, (program, pair) in accuracies.items():
            name = f"held_out_accuracy/{training.cell_name(cell)}"
            run.log_metrics({name: program.estimate, f"{name}_ci_low": program.low, f"{name}_ci_high": program.high})
            run.log_metrics({f"held_out_pairs/{training.cell_name(cell)}": pair.estimate})
        table = training.markdown_table(accuracies)
        (run.folder / "accuracy.md").write_text(table + "\n", "utf-8")
    print(f"{table}\n\nrun {run.run_id}; to bundle these weights: debug train --release {last}")
    print(cli.where_to_look(store.link(run.run_id)))


def measured(folder: Path, threads: int) -> str:
    """The model card's tables for the weights in a folder."""
    import torch

    from debug import training

    torch.set_num_threads(threads)
    model = training.load_weights(folder)
    within = training.evaluate(model, training.first_pairs(training.HELD_OUT))
    beyond = training.evaluate(model, training.first_pairs(training.BEYOND))
    published = training.evaluate(model, training.published_pairs()).values()
    programs, pairs = (sum(rate.estimate == 1 for rate in rates) for rates in zip(*published, strict=True))
    return "\n".join(
        [
            "Held-out programs (95% Wilson intervals):\n",
            training.markdown_table(within),
            "\nBeyond training (longer programs, deeper queries):\n",
            training.markdown_table(beyond),
            f"\nOf the six programs published with the paper {programs} answered; with its counterfactual, {pairs}.",
        ]
    )


def release(folder: Path, threads: int) -> None:
    from debug.models import CHECKPOINTS

    tables = measured(folder, threads)
    bundled = CHECKPOINTS / "tiny"
    card = (bundled / "README.md").read_text("utf-8")
    before, rest = card.split(CARD_BEGIN)
    after = rest.split(CARD_END)[1]
    for path in folder.iterdir():
        shutil.copyfile(path, bundled / path.name)
    (bundled / "README.md").write_text(f"{before}{CARD_BEGIN}\n\n{tables}\n\n{CARD_END}{after}", "utf-8")
    print(f"{tables}\n\n{folder} is now the bundled model in {bundled}")
