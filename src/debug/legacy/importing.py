"""Result folders of the older format, into a store."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from debug.errors import DebugError
from debug.legacy.interventions import read_maps
from debug.legacy.samples import read_samples
from debug.legacy.source import ACCURACY_FILE, CAUSAL_FILES, LegacyError, Problem, Source
from debug.tracking import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """What became of one file: its runs (none where they were in the store already), and what was left out."""

    file: str
    run_ids: list[str]
    problems: list[Problem]
    known: bool = False
    """Whether this file was imported before."""

    def __str__(self) -> str:
        what = "was imported before" if self.known else f"{len(self.run_ids)} runs"
        lines = [f"{self.file}: {what}", *(f"  {problem}" for problem in self.problems[:10])]
        return "\n".join(lines + ([f"  and {len(self.problems) - 10} more"] if len(self.problems) > 10 else []))


def import_results(folder: str | Path, tracking_uri: str | None = None) -> list[Imported]:
    """Import every result file below a folder; what the store has already is left as it is.

    Raises:
        LegacyError: there is no such folder, or no file of the format in it.
        debug.tracking.TrackingError: the store cannot be opened or written.
    """
    root = Path(folder)
    if not root.is_dir():
        raise LegacyError(f"there is no folder {str(folder)!r}; expected one with result files of the older format")
    files = sorted(path for path in root.rglob("*.json") if path.name in (*CAUSAL_FILES, ACCURACY_FILE))
    if not files:
        raise LegacyError(f"no file in {str(folder)!r} is called {', '.join(CAUSAL_FILES)} or {ACCURACY_FILE}")
    store = Store(tracking_uri)
    return [_import_file(store, root, path) for path in files]


def _import_file(store: Store, root: Path, path: Path) -> Imported:
    name = path.relative_to(root).as_posix()
    source = Source(root, path, name)
    try:
        digest = source.digest()
        found = store.find_runs(kind="imported", tags={"debug.import_digest": digest}, role="study", limit=None)
        if "FINISHED" in found["status"].to_list():
            return Imported(name, [], [], known=True)
        read = read_samples if path.name == ACCURACY_FILE else read_maps
        cells = read(source)
    except (DebugError, OSError) as error:
        return Imported(name, [], [*source.problems, Problem(name, None, str(error))])
    title = " · ".join(["imported", source.experiment, *([source.timestamp] if source.timestamp else [])])
    tags = {
        "debug.import_digest": digest,
        "debug.imported_from": name,
        "debug.legacy_timestamp": source.timestamp or "",
    }
    run_ids = []
    try:
        with store.start(source.experiment, title, kind="imported", tags=tags) as study:
            study.log_json("config.json", {"file": name, "sha256": source.sha256(), "timestamp": source.timestamp})
            for cell in cells:
                with study.cell(cell.name, cell.params) as run:
                    cell.write(run)
                    (run.folder / "legacy").mkdir(exist_ok=True)
                    shutil.copyfile(path, run.folder / "legacy" / path.name)
                    run_ids.append(run.run_id)
            study.log_json("summary.json", {"problems": [str(problem) for problem in source.problems[:1000]]})
    except DebugError as error:  # something that a store cannot hold; the run is FAILED and says so, too
        source.problems.append(Problem(name, None, str(error)))
    return Imported(name, run_ids, source.problems)
