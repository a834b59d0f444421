"""Repeat a logged run, exactly or with what is named changed, and say whether the same came out.

python runs/rerun.py RUN_ID                                      # its programs, its model, its question: a verdict
python runs/rerun.py RUN_ID --dtype bfloat16                     # the same in another precision: a verdict
python runs/rerun.py RUN_ID --intervention-type mlp --layers 0 1 # its programs, another question
python runs/rerun.py RUN_ID --model smollm2 --pairs 0 1 2        # another model on three of its pairs
python runs/rerun.py RUN_ID --set save_activations=all           # any other field of the run's plan
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from debug import cli
from debug.errors import InputError


def arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("run_id", help="a run's id, the beginning of it, or its name; a study is repeated cell by cell")
    parser.add_argument("--model", help="other weights, or the same in another place")
    parser.add_argument("--intervention-type", help="residual_stream, attention_heads, mlp, ...")
    parser.add_argument("--layers", nargs="+", type=int)
    parser.add_argument("--positions", nargs="+", help="all, targets, or names of targets and token positions")
    parser.add_argument("--pairs", nargs="+", type=int, help="numbers of pairs (of samples, in an accuracy run)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE", help="other fields; values are JSON or text"
    )
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    changes: dict[str, Any] = {}
    for assignment in options.set:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment!r}; expected FIELD=VALUE")
        changes[name] = _value(value)
    if options.positions is not None:
        positions = [_value(position) for position in options.positions]
        changes["positions"] = positions[0] if positions in (["all"], ["targets"]) else positions
    changes |= {
        name: value for name in ("intervention_type", "layers") if (value := getattr(options, name)) is not None
    }
    from debug.rerun import rerun

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


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    cli.run(main, arguments())
