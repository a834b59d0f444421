"""How large the reader's window is, so that tables fit; and what keeps legends painted when a click changes the URL."""

from __future__ import annotations

import re

import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

USUAL = 1200, 900
ROOM = {800: 730, 1200: 1130, 1750: 1680}
"""Width of a window -> pixels of a chart in it."""
# Sizes in steps, so that a window that is being resized redraws the page a few times at most.
_JS = """export default function({data, setStateValue}) {
  let known = data
  const tell = () => {
    const width = [1750, 1200].find(least => innerWidth >= least) ?? 800
    const now = width + "x" + Math.floor(innerHeight / 100) * 100
    document.cookie = "window=" + now + ";path=/;SameSite=Strict"
    if (now != known) setStateValue("size", known = now)
  }
  // Vega paints legends by gradients that it names by the page's whole address, which a click changes.
  const relative = () => document.querySelectorAll('svg [fill^="url(http"]').forEach(
    each => each.setAttribute("fill", each.getAttribute("fill").replace(/url\\(.*#/, "url(#")))
  const seen = new MutationObserver(relative)
  seen.observe(document.body, {subtree: true, childList: true, attributes: true, attributeFilter: ["fill"]})
  relative()
  const late = setTimeout(tell, data ? 1000 : 0)  // not while the page is drawn
  addEventListener("resize", tell)
  return () => { clearTimeout(late); seen.disconnect(); removeEventListener("resize", tell) }
}"""

_STYLE = """<style>
.st-key-window { position: absolute; visibility: hidden }
</style>"""


@st.cache_resource(show_spinner=False)
def _component() -> ComponentRenderer:
    return component("window", js=_JS)


def window() -> tuple[int, int]:
    """Width (800: narrow, 1200 or 1750) and height of the window in pixels, rounded down.

    To be called before a page's first widget: a browser's first page stops here, and is drawn when it has told; a
    cookie keeps it. (It must not be drawn while that is awaited: Streamlit loses the values of the widgets of a run
    that another one overtakes.)
    """
    in_browser = "Host" in st.context.headers  # and no test
    kept = st.context.cookies.get("window") if in_browser else None
    known: str | None = st.session_state.get("window") or kept
    st.html(_STYLE)
    with st.container(key="window"):
        told = _component()(data=known, key="asked for its size", on_size_change=lambda: None)
    known = st.session_state["window"] = told.get("size") or known
    if known is None and in_browser:
        st.stop()
    size = re.fullmatch(r"(800|1200|1750)x([0-9]{1,4})", known or "")
    return (int(size[1]), int(size[2])) if size else USUAL
