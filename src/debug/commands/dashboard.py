"""Show a store in the browser: runs compared, causal maps, samples, re-runs. Until Ctrl-C.

debug dashboard                                                      # the default store, http://localhost:8501
debug dashboard --tracking-uri sqlite:///some/mlflow.db --port 8502
debug dashboard --mlflow-ui http://localhost:5000                    # runs link to an MLflow UI on the same store
debug dashboard --public tracking.example.org                        # for others, too, by this name
debug dashboard --public tracking.example.org --allow edit           # who may then edit notes and tags
debug dashboard -- --server.maxMessageSize=400                       # options of Streamlit's own
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from debug import cli
from debug.provenance import without_passwords

ALLOWED = ("rerun", "tryit", "edit")


def parser() -> argparse.ArgumentParser:
    made = cli.store_parser(__doc__)
    made.add_argument("--port", type=int, default=8501, help="default: 8501")
    made.add_argument("--mlflow-ui", metavar="ADDRESS", help="an MLflow UI on the same store: runs link to it")
    made.add_argument(
        "--public",
        nargs="+",
        metavar="NAME",
        help="listen on every address of this machine and answer to these names; without it, this machine alone",
    )
    made.add_argument(
        "--allow",
        nargs="+",
        choices=ALLOWED,
        default=[],
        help="what readers on other machines may do beyond reading: start re-runs or runs, edit notes and tags",
    )
    made.add_argument("streamlit", nargs="*", metavar="-- OPTION", help="behind --: options of Streamlit's own")
    return made


def app() -> Path:
    """The dashboard: in the installed package, or beside src/ in a checkout."""
    package = Path(__file__).parents[1]
    places = (package / "dashboard", package.parents[1] / "dashboard")
    return next(place / "serve.py" for place in places if (place / "serve.py").is_file())


def main(options: argparse.Namespace) -> None:
    from debug.tracking import store_uri

    uri = store_uri(options.tracking_uri)
    print(f"showing the store {without_passwords(uri)}", flush=True)
    own = ["--mlflow-ui", options.mlflow_ui] if options.mlflow_ui else []
    own += ["--allow", *options.allow] if options.allow else []
    command = [sys.executable, "-m", "streamlit", "run", str(app()), f"--server.port={options.port}"]
    if options.public:
        print(what_public_means(options.public, options.port, options.allow), flush=True)
        command += ["--server.address=0.0.0.0"]
        command += [f"--server.allowedHosts={name}" for name in (*options.public, "localhost", "127.0.0.1")]
    # The store in the environment: every user of a machine can read command lines.
    os.execve(sys.executable, [*command, *options.streamlit, "--", *own], os.environ | {"MLFLOW_TRACKING_URI": uri})


def what_public_means(names: Sequence[str], port: int, allowed: Sequence[str]) -> str:
    off = {"rerun": "re-runs", "tryit": "runs of Try it", "edit": "changes of notes, tags and the archive"}
    may = [off.pop(name) for name in allowed]
    return "\n".join(
        [
            f"public: everybody who reaches port {port} of this machine under {', '.join(names)} can read every run of",
            "the store, its programs and outputs. There is no password: put a proxy with one, and https, before it.",
            *([f"Whoever reads may start or make: {', '.join(may)}."] if may else []),
            *([f"Off (--allow turns them on): {', '.join(off.values())}."] if off else []),
        ]
    )
