"""Repeat a logged run, exactly or with what is named changed, and say whether the same came out.

debug rerun RUN_ID                                      # its programs, its model, its question: a verdict
debug rerun RUN_ID --dtype bfloat16                     # the same in another precision: a verdict
debug rerun RUN_ID --intervention-type mlp --layers 0 1 # its programs, another question
debug rerun RUN_ID --model smollm2 --pairs 0 1 2        # another model on three of its pairs
debug rerun RUN_ID --set save_activations=all           # any other field of the run's plan
"""

from __future__ import annotations

import argparse
import json

from debug import cli
from debug.commands import startup
from debug.errors import InputError
from debug.kinds import Argument, Json
from debug.options import add_flags, given
from debug.plan import Plan


def parser() -> argparse.ArgumentParser:
    made = cli.parser(__doc__)
    cli.remote_options(made)
    made.add_argument("run_id", help="a run's id, the beginning of it, or its name; a study is repeated cell by cell")
    made.add_argument("--model", help="other weights, or the same in another place")
    made.add_argument("--pairs", nargs="+", type=int, help="numbers of pairs (of samples, in an accuracy run)")
    made.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of other runs; values are JSON or text"
    )
    add_flags(made.add_argument_group("what is changed (without: as logged)"), Plan, as_logged=True)
    return made


def main(options: argparse.Namespace) -> None:
    changes: dict[str, Argument] = {}
    for assignment in options.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment!r}; expected FIELD=VALUE")
        changes[name] = _value(value)
    changes |= given(options, Plan)
    startup.prepare([options.model or "the logged run's"])
    from debug.rerun import rerun
    from debug.tracking import Store

    for repeated in rerun(
        options.run_id,
        tracking_uri=options.tracking_uri,
        model=options.model,
        dtype=options.dtype,
        device=options.device,
        pairs=options.pairs,
        **changes,
    ):
        print(f"\n{repeated}")
    print(cli.where_to_look(Store(options.tracking_uri).link(repeated.run_id)))


def _value(text: str) -> Json:
    try:
        return json.loads(text)
    except ValueError:
        return text
