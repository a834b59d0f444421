"""Show the paper's findings on a model: accuracy, patching, heads, knockouts, trajectory -> runs and a report page.

debug paper                                          # bundled model; about ten minutes on two cores
debug paper --num-seqs 50 --num-pairs 20             # a first look
debug paper --training-run RUN_ID                    # whose checkpoints are asked (default: newest)
debug paper --model smollm2 --prompt FEW_SHOT_BINDING --seq-len 5 --hops 1 2 --lengths 2 3 5

All runs go into the experiment reproduce_paper; report.md is an artifact of the run "<model> · report".
"""

from __future__ import annotations

import argparse

from debug import cli
from debug.commands import startup
from debug.options import add_flags, given
from debug.paper import Reproduction
from debug.provenance import without_passwords


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    add_flags(made, Reproduction)
    return made


def main(options: argparse.Namespace) -> None:
    what = Reproduction(**given(options, Reproduction))
    startup.prepare([what.model])
    from debug.paper import reproduce

    run = reproduce(what, options.tracking_uri, dtype=options.dtype, device=options.device)
    for claim in run.summary["claims"]:
        print(f"{claim['verdict']:14}  {claim['text']}  ({claim['number']})")
    store = without_passwords(run.store.uri)
    print(
        f"\nreport: {run.artifact('report.md')}\nsummary run {run.run_id} in {store}\n"
        + cli.where_to_look(run.store.link(run.run_id))
    )
