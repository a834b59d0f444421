"""Where things are: the store's URI, the folder of its artifacts, the file of an artifact."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from debug import provenance
from debug.provenance import without_passwords
from debug.tracking.contract import ARTIFACTS, TrackingError


def store_uri(tracking_uri: str | None = None) -> str:
    """The URI of the store: the argument, else MLFLOW_TRACKING_URI, else mlflow.db in this project's ``mlruns/``.

    ``mlruns/`` is the one in the nearest parent folder that holds this project's pyproject, else in the working
    directory. Paths of SQLite stores come out absolute. A percent escape in one (``a%20b``) is what it is in any URI (a
    space), unless what is there has the percent sign in its name.

    Raises:
        TrackingError: the scheme is none that MLflow can open.
    """
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(mlruns() / "mlflow.db")
    scheme = given.split("://", 1)[0].split("+", 1)[0] if "://" in given else ""
    if scheme not in ("sqlite", "postgresql", "mysql", "mssql", "http", "https"):
        raise TrackingError(
            f"the tracking URI is {without_passwords(given)!r}; expected sqlite:///folder/mlflow.db, the address of an "
            "MLflow server (http://host:5000), or a database (postgresql://user@host/name). MLflow opens no bare "
            "folders"
        )
    if scheme != "sqlite":
        return given
    database = sqlite_path(given)
    if database is None or "?" in str(database):  # what follows a question mark would not be part of the path
        raise TrackingError(
            f"the tracking URI is {without_passwords(given)!r}; expected a file whose path has no question mark: sqlite:///folder/mlflow.db"
        )
    return sqlite_uri(database)


def mlruns() -> Path:
    return (project() or Path.cwd()) / "mlruns"


def spool(uri: str) -> Path:
    """The folder in which runs of a store that keeps its artifacts elsewhere are written until it has them: that of
    ``DEBUG_SPOOL``, else ``mlruns/spool``."""
    folder = os.environ.get("DEBUG_SPOOL") or mlruns() / "spool"
    return Path(folder) / provenance.text_digest([without_passwords(uri)])[:12]


def project() -> Path | None:
    """The nearest folder at or above the working directory that holds this project's pyproject; None outside of it."""
    working = Path.cwd()
    for folder in (working, *working.parents):
        pyproject = folder / "pyproject.toml"
        if pyproject.is_file():
            try:
                project = tomllib.loads(pyproject.read_text("utf-8")).get("project", {})
            except (OSError, ValueError):
                continue  # somebody else's, and broken
            if project.get("name") == provenance.DISTRIBUTION:
                return folder
    return None


def sqlite_path(uri: str) -> Path | None:
    if not uri.startswith("sqlite"):
        return None
    database = uri.partition(":///")[2]
    if database in ("", ":memory:"):
        return None
    literal, decoded = Path(database).absolute(), Path(unquote(database)).absolute()
    there = literal.exists() or (literal.parent.exists() and not decoded.parent.exists())
    return literal if there and "?" not in database else decoded


def sqlite_uri(database: Path) -> str:
    """SQLAlchemy and MLflow decode percent escapes: what looks like one and is none is escaped itself."""
    return f"sqlite:///{str(database).replace('%', '%25')}"


def location_of(folder: Path) -> str:
    """An artifact location as MLflow records and reads it: a path, or a URI where it would decode the path."""
    return folder.as_uri() if "%" in str(folder) else str(folder)


def local_path(uri: str | None) -> Path | None:
    """The folder that an artifact location names where it is one of this machine's, else None."""
    parts = urlsplit(uri or "")
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if uri and not parts.scheme else None


def place_in_store(recorded: Path, experiment_id: str, run_id: str | None) -> tuple[str, ...] | None:
    """The end of a recorded artifact location that is its place inside a store's folder: an experiment's, or a run's.

    None where it is none that this project or MLflow's own default gives.
    """
    end = (run_id, ARTIFACTS) if run_id else ()
    tails = [(ARTIFACTS, *end), (ARTIFACTS, experiment_id, *end)]
    return next((tail for tail in tails if recorded.parts[-len(tail) :] == tail), None)


def inside(root: Path, name: str, what: str) -> Path:
    """The path of an artifact; names that lead out of the folder, through a symbolic link too, are refused."""
    path = PurePosixPath(name)
    inside = name and "\\" not in name and "\0" not in name and not path.is_absolute() and ".." not in path.parts
    if not inside or not (root / path).resolve().is_relative_to(root.resolve()):
        raise TrackingError(f"{what}: {name!r} is not the name of an artifact; expected a path inside the run's folder")
    return root / path
