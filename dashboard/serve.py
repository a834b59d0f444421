"""What `make dashboard` serves: dashboard/app.py, with its libraries imported before the first reader comes.

    streamlit run dashboard/serve.py -- --tracking-uri sqlite:///some/mlflow.db

MLflow, SciPy and Altair take seconds to import; started from app.py, the first page would wait for them.
"""

import streamlit as st

from debug import causal_visualization, dashboard_charts, tracking  # noqa: F401

app = st.App("app.py")
