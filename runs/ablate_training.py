"""Does the auxiliary loss of the bundled model's training decide where the value goes? The ablation, logged as runs.

python runs/ablate_training.py                       # 18 trainings of 1,500 steps: three hours on one thread; resumable
python runs/ablate_training.py --seeds 0 --steps 900
python runs/ablate_training.py --only newline        # one naming site

Trains the model of ``train_bundled_model.py`` with the naming loss read at the right-hand side of each line, at its
newline, or not at all, from mimetic or ordinary initial weights, each with several seeds, and patches the residual
stream of each at every role. Each training is an MLflow run, and so is each causal run; the table is an artifact of the
last run. Start again with the same command after Ctrl-C: finished trainings are not repeated.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from debug import cli

if TYPE_CHECKING:
    from debug.causal_experiment_runner import CellResult
    from debug.programs import ProgramPair
    from debug.statistics import Interval
    from debug.tracking import Store
    from debug.training import Settings, Shape

EXPERIMENT = "training_ablation"
HOPS, LINES = 3, 5  # of the programs that are patched
PAIRS = 100
SOLVED = 0.8  # below this accuracy a map says nothing about where the answer comes from


def arguments() -> argparse.Namespace:
    parser = cli.store_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("training/ablation"), help="folder of the training runs")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of each (default 1500)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=["rhs", "newline", "none"], help="naming sites")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1: bit for bit the same again)")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    import torch

    from debug import training
    from debug.tracking import Store

    torch.set_num_threads(options.threads)
    store = Store(options.tracking_uri)
    held_out = training.first_pairs({(hops, lines): 200 for lines in (5, 17) for hops in range(1, 5)})
    rows = []
    for seed, site, initialization in product(options.seeds, options.only, training.INITIALIZATIONS):
        settings = training.Settings(seed=seed, steps=options.steps, naming_site=site, initialization=initialization)
        folder = options.out / f"{site}_{initialization}_seed_{seed}"
        rows.append(one(store, settings, folder, held_out))
        print("\n".join([HEADER, *rows]), flush=True)
    table = options.out / f"table_{options.steps}.md"
    table.write_text("\n".join([HEADER, *rows]) + "\n", "utf-8")
    print(f"\nin {table}")


HEADER = (
    "| naming loss at | initial weights | seed | programs answered, 3 hops | going into layer 2: on line 2's rhs | "
    "newline | strongest place between root and last token | hand-overs |\n" + "| --- " * 8 + "|"
)


def one(store: Store, settings: Settings, folder: Path, held_out: dict[Shape, list[ProgramPair]]) -> str:
    """Train, or read a finished training; patch; a row of the table."""
    from dataclasses import asdict

    from debug import training
    from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner

    name = f"tiny · {folder.name}"
    with store.start(EXPERIMENT, f"{name} · training", kind="training") as run:
        run.log_params({"model": folder.name, "generator": "variable_binding", **asdict(settings)})
        for step, metrics in training.train(settings, folder, held_out):
            run.log_metrics(metrics, step)
    last = training.checkpoint_folder(folder, settings.steps)
    accuracy = training.evaluate(training.load_weights(last), {(HOPS, LINES): held_out[HOPS, LINES]})[HOPS, LINES][0]
    (folder / "accuracy.json").write_text(json.dumps(accuracy.metrics("accuracy") | {"n": accuracy.n}))
    start = f"| {settings.naming_site} | {settings.initialization} | {settings.seed} | {accuracy} |"
    if accuracy.estimate < SOLVED:
        return f"{start} | | not asked: below {SOLVED:.0%} | |"
    result = CausalExperimentRunner(store.uri).run(
        CausalConfig(
            models=[str(last)], hops=[HOPS], seq_lens=[LINES], num_seqs=PAIRS, name=EXPERIMENT, positions="targets",
            targets="roles",
        )
    )  # fmt: skip
    return f"{start} {summary(result.cells[0])} |"


def summary(cell: CellResult) -> str:
    assert cell.mean is not None
    mean = cell.mean
    between = [
        (interval.estimate, curve.target, layer, interval)
        for curve in mean.curves
        if curve.target not in ("ref_depth_1_rhs", "final")
        for layer, interval in zip(mean.layers, curve.success, strict=True)
        if layer < mean.n_layers and interval is not None
    ]
    _, target, layer, best = max(between, key=lambda each: (each[0], -each[2]))

    def at(target: str) -> str:
        values: list[Interval] = mean[target].success
        return str(values[mean.layers.index(2)])

    hand_overs = ", ".join(f"{before} → {after} at {layer}" for before, after, layer in mean.hand_overs())
    return f"{at('ref_depth_2_rhs')} | {at('ref_depth_2_newline')} | {target} at layer {layer}: {best} | {hand_overs}"


if __name__ == "__main__":
    cli.run(main, arguments())
