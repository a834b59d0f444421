"""The dashboard: studies, accuracy runs, causal maps, samples, re-runs and training runs of one MLflow store.

    streamlit run dashboard/app.py
    streamlit run dashboard/app.py -- --tracking-uri sqlite:///some/mlflow.db --mlflow-ui http://localhost:5000

Lists the pages, one file each. Pages read through debug.tracking and draw through debug.causal_visualization.
"""

import streamlit as st
from view import begin, finish, links

st.set_page_config(page_title="debug", layout="wide")
st.html(
    """<style>
    [data-testid=stElementContainer]:has(.stVegaLiteChart) { overflow-x: auto; max-width: 100% }
    .stMainBlockContainer { padding: 4rem 2rem 3rem }
    h1 { font-size: 1.6rem !important; padding: 0 0 0.5rem !important }
    h3 { font-size: 1.2rem !important; padding: 0.5rem 0 0 !important }
    [data-testid=stText] { font-size: 0.8rem; opacity: 0.7; align-self: center }
    [data-testid=stCaptionContainer] { opacity: 1 } /* Streamlit makes captions too faint to read */
    [data-testid=stCaptionContainer] p { color: light-dark(#5c5c66, #b4b4bc) }
    #vg-tooltip-element { pointer-events: none } /* it lies over what may be clicked next */
    .role-title-subtitle text { fill: light-dark(#5c5c66, #b4b4bc) }
    .stVegaLiteChart text[fill='#9a7000'] { fill: light-dark(#8a6400, #f2c14e) } /* names of targets */
    </style>"""
)
PAGES = {
    "home": "Studies",
    "study": "Study",
    "runs": "Runs",
    "compare": "Compare",
    "causal_map": "Causal map",
    "samples": "Samples",
    "tryit": "Try it",
    "rerun": "Re-run",
    "training": "Training",
}
pages = [st.Page(f"{name}.py", title=title, default=name == "home") for name, title in PAGES.items()]
page = st.navigation(pages, position="hidden")
bar = st.empty()
begin(page.title)
links(bar, pages)
page.run()
links(bar, pages)  # again: the links now carry what was selected on the page
finish()
