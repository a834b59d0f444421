"""A run exported, read without MLflow, and made again elsewhere; and exports that are not what they say."""

from __future__ import annotations

import io
import json
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from debug.kinds import Json
from debug.statistics import wilson
from debug.tracking import LoggedRun, Store, TrackingError
from debug.tracking.export import export_run, import_run
from debug.tracking.export_records import ExportError
from synthetic import NASTY, log_accuracy, log_causal, make_map

LATER = {"debug.export_digest", "debug.exported_from"}


@pytest.fixture
def store(uri) -> Store:
    return Store(uri)


@pytest.fixture
def elsewhere(tmp_path, empty_database) -> Store:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(empty_database, tmp_path / "elsewhere" / "mlflow.db")
    return Store(f"sqlite:///{tmp_path}/elsewhere/mlflow.db")


def said(run: LoggedRun) -> dict[str, Json]:
    """The whole run but for its ids."""

    def without_ids(record: dict[str, Json]) -> dict[str, Json]:
        tags = {name: value for name, value in record["tags"].items() if name not in LATER}
        children = sorted((without_ids(child) for child in record["children"]), key=lambda child: child["name"])
        return {**record, "run_id": "", "tags": tags, "children": children}

    return without_ids(run.record())


def test_an_exports_readme_gives_each_rate_its_own_interval_and_n(store, tmp_path):
    with store.start("causal", "own n", kind="causal_tracing") as study:
        study.log_metrics(wilson(4, 10).metrics("accuracy") | {"accuracy_n": 10, "pairs_used": 3})
    export_run(store.load_run(study.run_id), tmp_path / "out")
    assert f"| accuracy {wilson(4, 10)} |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["export", "export.zip"])
@pytest.mark.parametrize("which", ["study", "cell"])
def test_an_exported_run_is_made_again_equal(store, elsewhere, tmp_path, name, which):
    cell = store.load_run(log_causal(store, [make_map(pair) for pair in range(3)]))
    run = cell if which == "cell" else store.load_run(cell.parent_run_id or "")
    store.set_tags(cell.run_id, {"mine": NASTY})
    run = store.load_run(run.run_id)
    exported = export_run(run, tmp_path / name)
    run_id, known = import_run(exported, elsewhere)
    assert not known
    again = elsewhere.load_run(run_id)
    assert said(again) == said(run)
    assert again.tags["debug.exported_from"] == run.run_id
    twin = again if which == "cell" else again.children[0]
    original = cell if which == "cell" else run.children[0]
    assert twin.pairs == original.pairs
    assert twin.samples.equals(original.samples)
    np.testing.assert_array_equal(twin.maps[2].z_patched, original.maps[2].z_patched)
    assert twin.curves().equals(original.curves())
    assert import_run(exported, elsewhere) == (run_id, True)
    assert elsewhere.find_runs(limit=None).height == (1 if which == "cell" else 2)


def test_an_imported_export_exports_again(store, elsewhere, tmp_path):
    study = store.load_run(log_accuracy(store)[0])
    run_id, _ = import_run(export_run(study, tmp_path / "one.zip"), elsewhere)
    back, known = import_run(export_run(elsewhere.load_run(run_id), tmp_path / "two.zip"), store)
    assert not known
    assert said(store.load_run(back)) == said(study)


def test_an_export_is_read_without_mlflow(store, tmp_path):
    run = store.load_run(log_causal(store, [make_map(pair) for pair in range(2)]))
    folder = export_run(run, tmp_path / "export")
    artifacts = folder / "runs" / run.run_id / "artifacts"
    assert len(json.loads((artifacts / "programs.json").read_text())["pairs"]) == 2
    assert "1/z_patched" in load_file(artifacts / "causal_maps" / "00000.safetensors")
    assert pl.read_parquet(folder / "runs" / run.run_id / "samples.parquet").equals(run.samples)
    maps = pl.read_parquet(folder / "runs" / run.run_id / "maps.parquet")
    root = maps.filter(pair=1, target="ref_depth_1_rhs").sort("layer")
    assert root["success"].to_list() == run.maps[1].at_target("ref_depth_1_rhs").tolist()
    assert root["tokens"].unique().to_list() == ["8"]
    assert run.run_id in (folder / "README.md").read_text()
    metrics = json.loads((folder / "run.json").read_text())["run"]["metrics"]
    assert {name for name, *_ in metrics} == run.metrics.keys()


def test_texts_of_a_store_are_no_markup_in_the_readme(store, tmp_path):
    run_id = log_accuracy(store)[0]
    with store.start("e", NASTY, kind="accuracy") as run:
        pass
    readme = (export_run(store.load_run(run.run_id), tmp_path / "export") / "README.md").read_text()
    assert "<script>" not in readme.replace("\\<script\\>", "")
    assert "](http" not in readme
    assert run_id


def test_maps_with_heads_have_their_heads_in_the_table(store, tmp_path):
    run = store.load_run(log_causal(store, [make_map(heads=4)]))
    folder = export_run(run, tmp_path / "export")
    maps = pl.read_parquet(folder / "runs" / run.run_id / "maps.parquet")
    assert maps["heads"].to_list()[:24:23] == [[0], [1]]
    assert maps.height == run.maps[0].top.size


def test_nothing_is_overwritten_and_a_run_that_goes_on_is_not_exported(store, tmp_path):
    run = store.load_run(log_accuracy(store)[0])
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match="is there already"):
        export_run(run, tmp_path / "there")
    with store.start("e", "goes on", kind="accuracy") as going, pytest.raises(ExportError, match="has not finished"):
        export_run(store.load_run(going.run_id), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- exports that are not what they say -------------------------------------------------------------------------------


@pytest.fixture
def exported(store, tmp_path) -> Path:
    return export_run(store.load_run(log_causal(store, [make_map()])), tmp_path / "export")


def rewritten(folder: Path, change) -> None:
    content = json.loads((folder / "run.json").read_text())
    change(content)
    (folder / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c: c.update(format="x"), "field 'format'"),
        (lambda c: c.update(schema=2), "field 'schema' is 2; this version of the project reads up to 1"),
        (lambda c: c.update(schema="1"), "field 'schema' is '1'"),
        (lambda c: c.update(run=[]), "field 'run' is"),
        (lambda c: c["run"].pop("params"), "field 'run.params' is missing"),
        (lambda c: c["run"].update(run_id="../x"), "field 'run.run_id' is '../x'; expected the id of a run"),
        (lambda c: c["run"].update(name=""), "field 'run.name'"),
        (lambda c: c["run"].update(status="RUNNING"), "field 'run.status'"),
        (lambda c: c["run"].update(start_time="now"), "field 'run.start_time'"),
        (lambda c: c["run"].update(params={"a": 1}), "field 'run.params'"),
        (lambda c: c["run"].update(tags={"a": "x" * 8001}), "field 'run.tags'"),
        (lambda c: c["run"].update(metrics=[["a", "1", 0, 0]]), "field 'run.metrics'"),
        (lambda c: c["run"].update(datasets=[{"name": "x"}]), "field 'run.datasets'"),
        (lambda c: c["run"]["files"].update(x={"size": 1}), "field 'run.files'"),
        (lambda c: c["run"]["children"].append(3), r"field 'run.children\[0\]' is 3"),
        (lambda c: c["run"]["children"].append(c["run"] | {"children": []}), "is there twice"),
        (lambda c: c["run"]["files"].update({"../../../run.json": c["run"]["files"]["programs.json"]}), "not the name"),
        (lambda c: c["run"]["files"].update({"/etc/passwd": c["run"]["files"]["programs.json"]}), "not the name"),
        (
            lambda c: c["run"]["files"].update({"absent": c["run"]["files"]["programs.json"]}),
            "'absent' .* is not the file",
        ),
        (lambda c: c["run"]["files"]["programs.json"].update(size=3), "'programs.json' .* is not the file"),
    ],
)
def test_a_broken_record_is_named_by_field_and_nothing_is_made(exported, elsewhere, change, problem):
    rewritten(exported, change)
    with pytest.raises(ExportError, match=problem):
        import_run(exported, elsewhere)
    assert elsewhere.find_runs(limit=None).is_empty()


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"format": NaN}', b"\xff", b"9" * 5000])
def test_a_broken_run_json_is_an_error(exported, elsewhere, content):
    (exported / "run.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"run\.json"):
        import_run(exported, elsewhere)


def test_a_file_that_was_changed_or_leads_out_is_refused(exported, elsewhere):
    (path,) = exported.rglob("programs.json")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"8", b"9", 1))
    with pytest.raises(ExportError, match=r"'programs\.json' of run .* is not the file that run\.json speaks of"):
        import_run(exported, elsewhere)
    outside = exported.parent / "outside.json"
    outside.write_bytes(content)
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(ExportError, match="leads out of the export"):
        import_run(exported, elsewhere)


def zipped(entries: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "a\\..\\evil", "x" * 2000])
def test_a_zip_whose_names_lead_out_is_refused(tmp_path, elsewhere, name):
    with pytest.raises(ExportError, match="not the name of a file inside an export"):
        import_run(zipped({name: b"evil"}, tmp_path / "evil.zip"), elsewhere)
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil").exists()


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path, elsewhere):
    bomb = zipped({"run.json": bytes(2**28)}, tmp_path / "bomb.zip")
    assert bomb.stat().st_size < 2**20
    with pytest.raises(ExportError, match="would unpack to more than"):
        import_run(bomb, elsewhere)


def test_a_link_in_a_zip_is_a_file_and_broken_zips_are_errors(tmp_path, elsewhere):
    link = zipfile.ZipInfo("run.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(ExportError, match=r"run\.json: is no JSON"):
        import_run(tmp_path / "link.zip", elsewhere)
    for content in (b"", b"PK\x03\x04", io.BytesIO(b"x" * 100).read()):
        (tmp_path / "broken.zip").write_bytes(content)
        with pytest.raises(ExportError, match="cannot be unpacked"):
            import_run(tmp_path / "broken.zip", elsewhere)
    with pytest.raises(ExportError, match="there is no export"):
        import_run(tmp_path / "nowhere", elsewhere)
    with pytest.raises(ExportError, match=r"has no run\.json"):
        import_run(tmp_path, elsewhere)


def test_a_restoration_that_breaks_off_is_failed_and_done_again_later(exported, elsewhere, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(TrackingError, match="disk full"):
            import_run(exported, elsewhere)
    assert elsewhere.find_runs()["status"].to_list() == ["FAILED"]
    run_id, known = import_run(exported, elsewhere)
    assert not known
    assert elsewhere.load_run(run_id).status == "FINISHED"
