"""What `make dashboard` serves: dashboard/app.py, with its libraries imported and the store read before a reader comes.

    streamlit run dashboard/serve.py -- --tracking-uri sqlite:///some/mlflow.db

MLflow, SciPy and Altair take seconds to import; started from app.py, the first page would wait for them.
"""

from contextlib import suppress

import streamlit as st
from store import table

from debug import causal_visualization, dashboard_charts  # noqa: F401
from debug.tracking import TrackingError

with suppress(TrackingError):  # the pages will say it
    table().refresh()

app = st.App("app.py")
