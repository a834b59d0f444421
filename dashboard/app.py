"""The dashboard: what runs measured, and where inside the model it happens.

    streamlit run dashboard/app.py
    streamlit run dashboard/app.py -- --tracking-uri sqlite:///some/mlflow.db

Lists the pages, one file each. Pages read through debug.tracking and draw through debug.causal_visualization.
"""

import streamlit as st

st.set_page_config(page_title="debug", layout="wide")
st.navigation([st.Page("runs.py", title="Runs", default=True)]).run()
