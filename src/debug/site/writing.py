"""The site as a folder: written beside its place, moved there when it is whole."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import polars as pl

from debug.causal_visualization.comparison import MOST_COLOURS, models_by, rates
from debug.causal_visualization.programs import program_graph
from debug.errors import DebugError
from debug.kinds import Json
from debug.programs import Program
from debug.progress import Progress
from debug.site import blocks
from debug.site.blocks import Block, Files
from debug.site.checkpoints import Checkpoints
from debug.site.measuring import measure_checkpoints
from debug.site.runs import Limits, in_order, index_row, write_study
from debug.site.training import EXAMPLE, write_training
from debug.tracking import LoggedRun, Store

MARKER = "debug-site.json"
"""A file by which a folder is known to be a site of ours."""
OWN = {MARKER, "index.html", "assets", "data"}
_STATIC = Path(__file__).parent / "static"
_MOST_CELLS = 400  # that the chart of rates can draw, as on the dashboard's Compare page
_SETTING = ("generator", "prompt_template", "few_shot", "seq_len")


class SiteError(DebugError):
    """A place where no site can be written: says what is there."""


def write_site(
    store: Store,
    out: Path,
    *,
    title: str | None = None,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    force: bool = False,
    measure: int = 0,
) -> Path:
    """Write a store as a static site into the folder ``out``; returns its ``index.html``.

    It is written into a folder beside ``out``, and takes its place when it is whole: what ends the writing (an error,
    Ctrl-C) leaves what was there.

    Args:
        title: of the site (default: "Runs").
        force: replace a site of ours that is there.
        measure: programs of each number of hops that every checkpoint of a training run is asked first, where the store
            lacks what the views of training show; 0 asks nothing, and runs no model. See :func:`measure_checkpoints`.

    Raises:
        SiteError: ``out`` is there and is no site of ours, or is one and ``force`` is not given.
        TrackingError: the store cannot be read, or is not there.
    """
    refuse_others(out, force)
    if not store.exists():
        raise SiteError(f"there is no store {store}; name one, such as sqlite:///mlruns/mlflow.db")
    if measure:
        studies, _ = read(store)
        cells = [cell for _, found in studies for cell in found]
        for run in (run for run, _ in studies if run.kind == "training"):
            measure_checkpoints(Checkpoints(run, in_order(cells)), measure)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-", suffix=".partial") as made:
        new = Path(made) / "site"
        write_files(store, new, title or "Runs", limits)
        old = Path(made) / "old"
        if out.exists():
            refuse_others(out, force)
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
    return out / "index.html"


def refuse_others(out: Path, force: bool) -> None:
    """Raises SiteError where a folder is not for us to replace."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()):
        return
    if out.is_symlink() or not (out / MARKER).is_file():
        raise SiteError(f"{out} is there and is no site that debug site wrote; name another folder")
    if others := sorted(path.name for path in out.iterdir() if path.name not in OWN):
        raise SiteError(f"{out} holds more than a site ({', '.join(others[:5])}), which would be lost; move that first")
    if not force:
        raise SiteError(f"{out} holds a site already; --force replaces it")


def read(store: Store) -> tuple[list[tuple[LoggedRun, list[LoggedRun]]], list[str]]:
    """All studies, newest first, with their cells; and what the runs say that cannot be read."""
    experiments, studies, problems = store.experiments(), [], []
    cells: dict[str, list[LoggedRun]] = {}
    for found in store.search(experiments, {}, "attributes.start_time DESC"):
        try:
            run = LoggedRun(store, found, experiments[found.info.experiment_id])
        except DebugError as error:
            problems.append(str(error))
            continue
        if run.parent_run_id is not None:
            cells.setdefault(run.parent_run_id, []).append(run)
        else:
            studies.append(run)
    return [(run, in_order(cells.get(run.run_id, []))) for run in studies], problems


def write_files(store: Store, folder: Path, title: str, limits: Limits) -> None:
    """Write a whole site into a new folder."""
    shutil.copytree(_STATIC, folder / "assets")
    (folder / "assets" / "index.html").rename(folder / "index.html")
    (folder / "assets" / "vega.js").write_text(vega(), "utf-8")
    files = Files(folder / "data")
    studies, problems = read(store)
    rows, with_maps = [], []
    n_runs = sum(1 + len(cells) for _, cells in studies)
    with Progress(n_runs, "site", "run") as bar:
        for run, cells in studies:
            rows.append(index_row(run, cells))
            with_maps += write_study(files, run, cells, limits)
            bar.update(1 + len(cells))
        bar.set_description("site: training")
        cells = in_order(cell for _, found in studies for cell in found)
        trainings = [run for run, _ in studies if run.kind == "training"]
        views = {run.run_id: write_training(files, Checkpoints(run, cells)) for run in trainings}
    files.put("graph", program_graph(Program.parse(EXAMPLE)).to_dict())
    files.page("maps", "Causal maps", list_of_maps(with_maps))
    files.page("accuracy", "Accuracy", accuracy(files, cells))
    files.page("training", "Training", list_of_trainings(trainings, views))
    files.page("about", "About this site", about(studies, problems, limits))
    made = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    files.put("index", {"title": blocks.short(title)[:200], "made": made, "runs": n_runs, "studies": columns})
    (folder / MARKER).write_text(json.dumps({"made_by": "debug site", "schema": 1, "made": made}) + "\n", "utf-8")


def vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script, of the version that the charts are written for; no network."""
    import vl_convert  # takes a second to make the script

    return vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  (its types lack the default)


def list_of_maps(rows: Sequence[dict[str, Json]]) -> list[Block]:
    if not rows:
        return [blocks.missing("This store has no causal maps yet; this makes some:", "debug trace")]
    names = ("name", "model", "hops", "lines", "component", "maps", "finding", "study")
    cells = [[row[name] for name in names] for row in rows]
    links = [f"runs/{row['id']}" for row in rows]
    return [
        blocks.table(["cell", *names[1:]], cells, f"{len(rows)} cells with causal maps, newest study first.", links)
    ]


def accuracy(files: Files, cells: Sequence[LoggedRun]) -> list[Block]:
    """Models by hops, for each setting (program family, prompt, few-shot, length) that cells of accuracy runs have."""
    groups: dict[str, list[dict[str, Json]]] = {}
    for cell in cells:
        if cell.kind != "accuracy" or "accuracy" not in cell.metrics or cell.status != "FINISHED":
            continue
        shown = [cell.params.get(name, "") for name in _SETTING]
        setting = f"{shown[0]}, prompt {shown[1]}, {shown[3]} lines" + (
            f", {shown[2]}-shot" if shown[2] not in ("", "0") else ""
        )
        groups.setdefault(setting, []).append(
            {
                "model": cell.params.get("model", "?"),
                "hops": cell.params.get("hops", "any"),
                "seq_len": shown[3],
                "value": cell.metrics["accuracy"],
                "ci_low": cell.metrics.get("accuracy_ci_low"),
                "ci_high": cell.metrics.get("accuracy_ci_high"),
                "n": cell.metrics.get("num_samples"),
            }
        )
    if not groups:
        return [blocks.missing("This store has no accuracy runs yet; this makes one:", "debug accuracy")]
    options = []
    for number, (setting, rows) in enumerate(sorted(groups.items(), key=lambda item: -len(item[1]))[:60]):
        frame = pl.DataFrame(rows, schema_overrides=dict.fromkeys(("value", "ci_low", "ci_high", "n"), pl.Float64))
        frame = frame.sort("model")
        found = [
            blocks.chart(
                models_by("hops", frame, "accuracy"), "Mean over runs of the same cell; n is the number of samples."
            )
        ]
        if len(rows) <= _MOST_CELLS and frame["model"].n_unique() <= MOST_COLOURS and frame["hops"].n_unique() > 1:
            found.append(
                blocks.chart(rates(frame, "hops", "accuracy"), "Each run with its 95% CI; lines go through means.")
            )
        files.page(f"accuracy/{number}", setting, found)
        options.append((str(number), f"{setting} ({len(rows)} cells)"))
    return [blocks.choose("Programs and prompt", options, "accuracy")]


def list_of_trainings(runs: Sequence[LoggedRun], views: Mapping[str, Sequence[tuple[str, str]]]) -> list[Block]:
    if not runs:
        return [blocks.missing("This store has no training run yet; this trains the bundled model:", "debug train")]
    found: list[Block] = [blocks.text("A training run's checkpoints: what each answers, and what moves inside of it.")]
    for run in runs:
        started = f"{run.start_time:%Y-%m-%d}" if run.start_time else "no date"
        links = [list(view) for view in views[run.run_id]]
        found += [blocks.heading(f"{run.name} · {started} · {run.status.lower()}"), {"links": links}]
    return found


def about(
    studies: Sequence[tuple[LoggedRun, Sequence[LoggedRun]]], problems: Sequence[str], limits: Limits
) -> list[Block]:
    n_cells = sum(len(cells) for _, cells in studies)
    found = [
        blocks.text(
            f"{len(studies):,} studies with {n_cells:,} cells of a tracking store, as debug {version('debug-lm')} "
            "found them. The site needs no server: every page is a file of this folder, read when it is shown."
        ),
        blocks.text(
            f"Of each run it has all params and main numbers, the first {limits.samples} samples and pairs, and "
            f"maps of the first {limits.maps} pairs; means are over all pairs. The store itself has everything."
        ),
    ]
    if problems:
        found.append(blocks.pre("\n".join(problems[:20]), f"{len(problems)} runs could not be read:"))
    return found
