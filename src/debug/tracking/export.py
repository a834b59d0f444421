"""A run as a folder or a zip that is read without MLflow, and from which the run can be made again elsewhere.

    EXPORT/
      README.md                what this run is, and what lies where
      run.json                 the run and its cells: params, metrics with their history, tags, SHA-256 of every file
      runs/RUN_ID/artifacts/   the run's files as they were logged: JSON, safetensors, pictures
      runs/RUN_ID/*.parquet    samples, metrics and the cells of all causal maps, as tables

Tables and README are for readers; the run is made again from run.json and artifacts/, each file of which is checked.
An export is untrusted: names that lead out of it, files that are not what run.json says and zip bombs are refused.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl

from debug import checks
from debug.causal_map import CausalMap, column_of
from debug.kinds import Json
from debug.provenance import file_digest, text_digest
from debug.records import validated
from debug.statistics import Interval
from debug.tracking import SCHEMA, LoggedRun, Store, own_n
from debug.tracking.export_records import STATUSES, ExportError, RunRecord

FORMAT = "debug-run"
RECORD = "run.json"
RATES = ("accuracy", "patch_success_rate", "answer_kept_rate")
"""What an export's README says of a run."""
_MOST_RUNS = 100_000
_UNPACKED = 200  # times the size of a zip that its content may have; JSON is packed to a fiftieth


def export_run(run: LoggedRun, to: Path) -> Path:
    """Write a run, with its cells where it is a study, into a new folder, or a zip where the name ends in ``.zip``.

    Raises:
        ExportError: the run goes on, or there is something of that name already.
        debug.tracking.TrackingError: its artifacts cannot be read.
    """
    if to.exists():
        raise ExportError(f"{to} is there already; name something new")
    runs = [run, *run.children]
    if going := [each.run_id for each in runs if each.status not in STATUSES]:
        raise ExportError(f"run {going[0]} has not finished; an export would be half of it")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".exporting-") as temporary:
        folder = Path(temporary) / "export"
        for each in runs:
            _write_run(each, folder / "runs" / each.run_id)
        record = {"format": FORMAT, "schema": SCHEMA, "run": run.record()}
        (folder / RECORD).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", "utf-8")
        (folder / "README.md").write_text(_readme(run, runs), "utf-8")
        if to.suffix == ".zip":
            packed = Path(temporary) / "export.zip"
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
                for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                    file.write(path, path.relative_to(folder).as_posix())
            packed.replace(to)
        else:
            folder.replace(to)
    return to


def _write_run(run: LoggedRun, folder: Path) -> None:
    folder.mkdir(parents=True)
    names = run.artifacts()
    for name in names:
        path = folder / "artifacts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.artifact(name), path)
    run.curves().write_parquet(folder / "metrics.parquet")
    if "samples.jsonl" in names:
        run.samples.write_parquet(folder / "samples.parquet")
    if len(run.maps):
        pl.concat(map(cells, run.maps), how="diagonal_relaxed").write_parquet(folder / "maps.parquet")


def cells(causal_map: CausalMap) -> pl.DataFrame:
    """Every cell of a map as a row: pair, layer, (heads,) positions, their tokens, target, each metric, top token."""
    shape = causal_map.top.shape
    index = [axis.ravel() for axis in np.indices(shape)]
    columns = index[-1].tolist()
    names: dict[int, str] = {}
    for target, column in causal_map.target_columns.items():
        names.setdefault(column, target)
    tokens = ["".join(causal_map.tokens[p] for p in column) for column in causal_map.columns]
    texts = dict(enumerate(causal_map.candidates))
    values = {column_of(metric, causal_map): causal_map.values(metric).ravel() for metric in causal_map.metrics}
    frame = pl.DataFrame(
        {
            "pair": np.full(causal_map.top.size, causal_map.pair),
            "layer": np.array(causal_map.layers)[index[0]],
            **({"heads": [causal_map.heads[head] for head in index[1]]} if len(shape) == 3 else {}),
            "positions": [causal_map.columns[column] for column in columns],
            "tokens": [tokens[column] for column in columns],
            "target": [names.get(column) for column in columns],
            **values,
            "top_token": causal_map.top.ravel(),
            **({} if causal_map.said is None else {"answer": [texts.get(said) for said in causal_map.said.ravel()]}),
        },
        schema_overrides={"target": pl.String},
    )
    return frame.fill_nan(None)


def _readme(run: LoggedRun, runs: list[LoggedRun]) -> str:
    lines = [
        f"# {_plain(run.name)}",
        "",
        f"A run of kind `{_plain(run.kind or '?')}`, exported from an MLflow store.",
        "",
    ]
    lines += ["| run | id | status | main numbers |", "| --- | --- | --- | --- |"]
    for each in runs:
        numbers = ", ".join(f"{name} {_rate(each, name)}" for name in RATES if name in each.metrics)
        lines.append(f"| {_plain(each.name)} | `{each.run_id}` | {each.status} | {numbers} |")
    lines += [
        "",
        "- `run.json`: params, metrics with their history, tags (versions, commit, command line, digests of weights",
        "  and tokenizer), and the SHA-256 of every artifact.",
        "- `runs/ID/artifacts/`: the files as they were logged. `programs.json` has the programs, `samples.jsonl` what",
        "  the model said, `causal_maps/`, `activations/` and `attention/` are safetensors, `.html` and `.png`",
        "  are pictures.",
        "- `runs/ID/*.parquet`: samples, metrics and the cells of all causal maps as tables.",
        "",
        "To have it in a store again: `debug import FOLDER_OR_ZIP`.",
    ]
    return "\n".join(lines) + "\n"


def _rate(run: LoggedRun, name: str) -> str:
    """A rate with its own interval and n, as far as they were logged."""
    value, n = run.metrics[name], own_n(name, run.metrics)
    low, high = (run.metrics.get(f"{name}_{end}") for end in ("ci_low", "ci_high"))
    return f"{100 * value:.1f}%" if n is None else str(Interval(value, low, high, n, is_rate=True))


def _plain(text: str) -> str:
    """A text of a store in Markdown, where it must not be more than a text."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~$&])", r"\\\1", " ".join(text.split()))


# --- and back ---------------------------------------------------------------------------------------------------------


def import_run(source: Path, store: Store) -> tuple[str, bool]:
    """Make the run of an export again: its id in this store, and whether it was there already.

    Raises:
        ExportError: this is no export, or one that is broken or of a newer schema.
        debug.tracking.TrackingError: the store cannot be opened or written.
    """
    with _opened(source) as folder:
        record = _checked_record(source, folder)
        digest = text_digest([json.dumps(record, sort_keys=True)])
        found = store.find_runs(tags={"debug.export_digest": digest})
        if not found.is_empty():
            return found["run_id"][0], True
        folders = {each["run_id"]: folder / "runs" / each["run_id"] / "artifacts" for each in _records(record)}
        run_id = store.restore(record, folders)
        store.set_tags(run_id, {"debug.export_digest": digest})  # last: a restoration that broke off is not known
        return run_id, False


@contextmanager
def _opened(source: Path) -> Iterator[Path]:
    """The folder of an export; a zip is unpacked into a temporary one."""
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise ExportError(f"there is no export {source}; expected a folder or a zip that export_run wrote")
    with tempfile.TemporaryDirectory(prefix="import-") as temporary:
        try:
            with zipfile.ZipFile(source) as file:
                members = [member for member in file.infolist() if not member.is_dir()]
                allowed = 2**26 + _UNPACKED * source.stat().st_size
                if sum(member.file_size for member in members) > allowed:
                    raise ExportError(
                        f"{source}: would unpack to more than {allowed:,} bytes; it is no export of a run"
                    )
                for member in members:
                    path = Path(temporary) / _relative(source, member.filename)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with file.open(member) as packed, path.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)  # never more than the size that was summed up
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            if isinstance(error, ExportError):
                raise
            raise ExportError(f"{source}: cannot be unpacked: {error}") from error
        yield Path(temporary)


def _relative(source: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or len(name) > 1000:
        raise ExportError(f"{source}: {name!r:.200} is not the name of a file inside an export")
    return path


def _checked_record(source: Path, folder: Path) -> dict[str, Json]:
    where = f"{source}, run.json"
    try:
        content = checks.read_json(folder / RECORD)
    except FileNotFoundError as error:
        raise ExportError(f"{source}: has no run.json; expected a folder or a zip that export_run wrote") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{where}: is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ExportError(f"{where}: field 'format' is not {FORMAT!r}; it is no export of a run")
    schema = content.get("schema")
    if type(schema) is not int or schema > SCHEMA:
        raise ExportError(
            f"{where}: field 'schema' is {schema!r:.80}; this version of the project reads up to {SCHEMA}"
        )
    _check_run(where, "run", content.get("run"), depth=0)
    record: dict[str, Json] = content["run"]
    seen: set[str] = set()
    for each in _records(record):
        if each["run_id"] in seen or len(seen) == _MOST_RUNS:
            raise ExportError(f"{where}: run {each['run_id']} is there twice")
        seen.add(each["run_id"])
        root = (folder / "runs" / each["run_id"] / "artifacts").resolve()
        if not root.is_relative_to(folder.resolve()):
            raise ExportError(f"{where}: the artifacts of run {each['run_id']} lead out of the export")
        for name, entry in each["files"].items():
            path = root / _relative(source, name)
            if not path.resolve().is_relative_to(root):
                raise ExportError(f"{where}: {name!r} of run {each['run_id']} leads out of the export")
            if not path.is_file() or path.stat().st_size != entry["size"] or file_digest(path) != entry["sha256"]:
                raise ExportError(f"{source}: {name!r} of run {each['run_id']} is not the file that run.json speaks of")
    return record


def _records(record: Mapping[str, Json]) -> Iterator[Mapping[str, Json]]:
    yield record
    for child in record["children"]:
        yield from _records(child)


def _check_run(where: str, field: str, record: Json, depth: int) -> None:
    if not isinstance(record, dict) or depth > 4:
        raise ExportError(f"{where}: field {field!r} is {record!r:.80}; expected the record of a run")
    validated(RunRecord, record, lambda told: ExportError(f"{where}: {told}"), within=f"{field}.")
    for number, child in enumerate(record["children"]):
        _check_run(where, f"{field}.children[{number}]", child, depth + 1)
