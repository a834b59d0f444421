"""Show a store in the browser: runs compared, causal maps, samples, re-runs. Until Ctrl-C.

debug dashboard                                                      # the default store, http://localhost:8501
debug dashboard --tracking-uri sqlite:///some/mlflow.db --port 8502
debug dashboard --mlflow-ui http://localhost:5000                    # runs link to an MLflow UI on the same store
debug dashboard -- --server.address=0.0.0.0 --server.allowedHosts=my-host   # options of Streamlit's own
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from debug import cli
from debug.provenance import without_passwords


def parser() -> argparse.ArgumentParser:
    made = cli.store_parser(__doc__)
    made.add_argument("--port", type=int, default=8501, help="default: 8501")
    made.add_argument("--mlflow-ui", metavar="ADDRESS", help="an MLflow UI on the same store: runs link to it")
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
    command = [sys.executable, "-m", "streamlit", "run", str(app()), f"--server.port={options.port}"]
    # The store in the environment: every user of a machine can read command lines.
    os.execve(sys.executable, [*command, *options.streamlit, "--", *own], os.environ | {"MLFLOW_TRACKING_URI": uri})
