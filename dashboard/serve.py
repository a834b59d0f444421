"""What `make dashboard` serves: dashboard/app.py, with libraries imported and the store read before the first request.

    streamlit run dashboard/serve.py -- --tracking-uri sqlite:///some/mlflow.db

MLflow, SciPy and Altair take seconds to import; started from app.py, the first page would wait for them. Settings are
read from dashboard/.streamlit/config.toml, whichever folder it is started from.
"""

from contextlib import suppress
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

import streamlit as st
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from store import table

from debug.tracking import TrackingError


class OwnNames:
    """Refuses all requests whose Host is not in server.allowedHosts; Streamlit itself refuses only websockets."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_own(HTTPConnection(scope).headers.get("host", "")):
            await self.app(scope, receive, send)
        else:
            refusal = PlainTextResponse("This name is not in server.allowedHosts of the dashboard.\n", 403)
            await refusal(scope, receive, send)


def is_own(host: str) -> bool:
    """Whether a Host header is one of server.allowedHosts, whatever its port; all are where that is empty."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    allowed = st.get_option("server.allowedHosts")
    return not allowed or any(fnmatchcase(name, pattern.strip().lower().rstrip(".")) for pattern in allowed)


with suppress(TrackingError):  # the pages show the error
    table().refresh()

app = st.App("app.py", middleware=[Middleware(OwnNames)])
