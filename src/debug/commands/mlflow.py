"""Open MLflow's own UI on a store, and say at which address its runs are. Until Ctrl-C.

debug mlflow                                                         # the default store
debug mlflow --tracking-uri sqlite:///some/mlflow.db --port 5001
debug mlflow -- --host 0.0.0.0 --allowed-hosts my-host               # options of mlflow ui's own
"""

from __future__ import annotations

import argparse
import os
import sys

from debug import cli
from debug.commands import startup
from debug.errors import InputError

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


def parser() -> argparse.ArgumentParser:
    made = cli.store_parser(__doc__)
    made.add_argument("--port", type=int, default=5000, help="default: 5000")
    made.add_argument("own", nargs="*", metavar="-- OPTION", help="behind --: options of mlflow ui's own")
    return made


def main(options: argparse.Namespace) -> None:
    startup.prepare()
    from debug.tracking import Store

    store = Store(options.tracking_uri)
    newest = store.find_runs(role="study", limit=1)["run_id"].to_list()
    at = f"http://localhost:{options.port}"
    if store.uri.startswith("http"):
        raise InputError(f"the store is a server with a UI of its own: {store.link(newest[0]) if newest else store}")
    store.relocate()
    runs = store.link(newest[0], at) if newest else f"{at} (no runs yet: debug demo makes the first ones)"
    print(f"runs of {store}: {runs}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(options.port), *options.own]
    # The store in the environment: every user of a machine can read command lines.
    os.execve(sys.executable, command, os.environ | QUIET | {"MLFLOW_BACKEND_STORE_URI": store.uri})
