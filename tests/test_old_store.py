"""A store that was written before the packages were made reads as it did: every run, sample, program and map."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from debug.causal_map import mean_over_pairs
from debug.kinds import Json
from debug.tracking import Store

DATA = Path(__file__).parent / "data"


def digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:16]


def reading(uri: str) -> dict[str, Json]:
    """Of every run what it holds: records, samples and programs as digests, maps by metric, their mean to 6 digits."""
    store, found = Store(uri), {}
    for run_id in sorted(store.find_runs(limit=None)["run_id"]):
        run = store.load_run(run_id)
        record = {name: value for name, value in run.record().items() if name != "children"}
        own: dict[str, Json] = {"name": run.name, "record": digest(json.dumps(record, sort_keys=True).encode())}
        if "samples.jsonl" in run.artifacts():
            own["samples"] = digest(run.samples.write_json().encode())
        if "programs.json" in run.artifacts():
            pairs = [pair.to_record() for pair in run.programs]
            own["programs"] = digest(json.dumps(pairs, sort_keys=True).encode())
            own["maps"] = [
                {metric: digest(np.ascontiguousarray(each.values(metric)).tobytes()) for metric in each.metrics}
                for each in run.maps
            ]
            scalars, _ = mean_over_pairs(run.maps).to_metrics()
            own["mean"] = {name: None if value is None else round(value, 6) for name, value in scalars.items()}
        found[run_id] = own
    return found


def test_it_reads_as_it_did(tmp_path: Path) -> None:
    with tarfile.open(DATA / "store_before_packages.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((DATA / "store_before_packages.json").read_text("utf-8"))
    found = reading(f"sqlite:///{tmp_path}/old/mlflow.db")
    assert found.keys() == expected.keys()
    for run_id, own in expected.items():
        for of_map, known in zip(found[run_id].get("maps", ()), own.get("maps", ()), strict=True):
            of_map.pop("logit_diff", None)  # the usual difference, which maps did not say then: their own is now called
            if "logit_diff" in known:
                known["logit_change"] = known.pop("logit_diff")
        mean, now = own.pop("mean", {}), found[run_id].pop("mean", {})
        assert found[run_id] == own
        now = {name: value for name, value in now.items() if not name.startswith("logit_diff")}
        assert now == pytest.approx(mean, abs=2e-6)
