"""Studies that are stopped at any moment, or that several processes carry out: everything once, the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from debug import ExperimentRunner, models, tracking
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.core import ExperimentConfig
from debug.kinds import Argument
from debug.robust_seeds import RobustSearch, find_robust_seeds
from debug.studies import Resuming, StudyDiffers, StudyIncomplete
from debug.tracking import LoggedRun, Store, housekeeping

KINDS: dict[str, dict[str, Argument]] = {
    "patching": {"num_seqs": 20, "positions": "targets", "hops": [2], "seq_lens": [4]},
    "replaced pairs": {"num_seqs": 8, "positions": "targets", "exclude_shallow": True},
    "attribution": {"num_seqs": 7, "method": "attribution"},
    "resampled": {"num_seqs": 7, "positions": "targets", "source": "resample"},
    "all activations": {"num_seqs": 9, "positions": "targets", "save_activations": "all"},
}


def causal(**options: Argument) -> CausalConfig:
    return CausalConfig(**({"models": ["tiny"], "name": "causal"} | options))


@pytest.mark.parametrize(
    ("kind", "stopped"),
    [(kind, "between pairs") for kind in KINDS] + [("all activations", "while a pair is written")],
)
def test_a_causal_study_goes_on_within_its_cell_with_the_same_numbers(uri, monkeypatch, kind, stopped):
    config = causal(**KINDS[kind])
    for module in ("runner", "writer"):
        monkeypatch.setattr(f"debug.causal_experiment_runner.{module}.SHARD", 8)
    monkeypatch.setattr("debug.causal_visualization.draw", lambda *_: list)  # pictures take longer than the rest
    whole = CausalExperimentRunner(uri).run(config)
    append, written = tracking.RunWriter.append_jsonl, []

    def stopping(self, name, records):
        written.append(name)
        if stopped == "between pairs":
            append(self, name, records)
        if len(written) in (1, 6, 18):
            raise KeyboardInterrupt
        if stopped != "between pairs":
            append(self, name, records)

    monkeypatch.setattr(tracking.RunWriter, "append_jsonl", stopping)
    again = None
    for _ in range(6):
        try:
            again = CausalExperimentRunner(uri).run(config, resume=True)
            break
        except KeyboardInterrupt:
            continue
    assert again is not None
    assert len(written) == sum(cell.pairs_used + cell.skipped.total() for cell in whole.cells) + (
        stopped != "between pairs"
    ) * sum(n <= len(written) for n in (1, 6, 18)), "no pair is written twice"
    assert tracking.load_run(again.run_id, uri).status == "FINISHED"
    for one, other in zip(whole.cells, again.cells, strict=True):
        assert_alike(tracking.load_run(one.run_id, uri), tracking.load_run(other.run_id, uri))
        assert (
            str(one).replace(one.run_id, "").partition(" interventions in")[0]
            == (str(other).replace(other.run_id, "").partition(" interventions in")[0])
        )
    assert [problem for problem in housekeeping.problems(Store(uri)) if problem is not None] == []


def asked(models_: list[str], **options: Argument) -> ExperimentConfig:
    return ExperimentConfig("a", "VARIABLE_BINDING", "variable_binding", models_, hops=[1, 2], seq_lens=[5], **options)


def assert_alike(one: LoggedRun, other: LoggedRun) -> None:
    """Two cells with the same results, bit for bit; seconds and places in the store are each one's own."""
    assert one.status == other.status == "FINISHED"
    assert one.params == other.params
    timed = {"interventions_per_second", "samples_per_second"}
    of_process = {name for run in (one, other) for name in run.metrics if name.startswith("system/")}
    assert {n: v for n, v in one.metrics.items() if n not in timed | of_process} == {
        n: v for n, v in other.metrics.items() if n not in timed | of_process
    }
    assert list(one.sample_records()) == list(other.sample_records())
    assert one.artifacts() == other.artifacts()
    for name in one.artifacts():
        if name.endswith((".safetensors", "programs.json", "reference.json")):
            assert one.artifact(name).read_bytes() == other.artifact(name).read_bytes(), name
    if one.kind != "accuracy":
        for a, b in zip(one.maps, other.maps, strict=True):
            np.testing.assert_array_equal(a.z_patched, b.z_patched)


def test_finished_cells_are_read_back_as_they_were(uri, monkeypatch):
    config = causal(num_seqs=3, hops=[1, 2, 3], positions="targets", layers=[0, 3])
    whole = CausalExperimentRunner(uri).run(config)
    cell, cells = CausalExperimentRunner._cell, []

    def stopping(self, *given, **options):
        cells.append(given)
        if len(cells) == 3:
            raise KeyboardInterrupt
        return cell(self, *given, **options)

    monkeypatch.setattr(CausalExperimentRunner, "_cell", stopping)
    with pytest.raises(KeyboardInterrupt):
        CausalExperimentRunner(uri).run(config, resume=True)
    again = CausalExperimentRunner(uri).run(config, resume=True)
    assert len(cells) == 4
    for one, other in zip(whole.cells, again.cells, strict=True):
        assert one.findings() == other.findings()
        assert (one.pairs_used, one.seeds_passed_over, one.skipped) == (
            other.pairs_used,
            other.seeds_passed_over,
            other.skipped,
        )
        assert one.checks == other.checks
    summaries = [json.loads(json.dumps(tracking.load_run(r.run_id, uri).summary)) for r in (whole, again)]
    for each in summaries:
        for row in each["cells"]:
            for name in ("run_id", "seconds"):
                row.pop(name)
            row["metrics"].pop("interventions_per_second")
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("scoring", ["generate", "logits"])
def test_an_accuracy_study_goes_on_within_its_cell(uri, monkeypatch, scoring):
    config = asked(["tiny"], num_seqs=40, scoring=scoring)
    whole = ExperimentRunner(uri, batch_size=8).run_study("accuracy", [config])
    append, written = tracking.RunWriter.append_jsonl, []

    def stopping(self, name, records):
        append(self, name, records)
        written.append(name)
        if len(written) in (3, 21, 45):
            raise KeyboardInterrupt

    monkeypatch.setattr(tracking.RunWriter, "append_jsonl", stopping)
    runner = ExperimentRunner(uri, batch_size=8)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            runner.run_study("accuracy", [config])
    again = runner.run_study("accuracy", [config])
    assert again.run_id != whole.run_id
    assert len(written) == 80, "no sample is asked twice"
    for key, run_id in whole.cell_run_ids.items():
        assert_alike(tracking.load_run(run_id, uri), tracking.load_run(again.cell_run_ids[key], uri))


def test_a_search_for_seeds_goes_on_within_its_cell(uri, monkeypatch):
    """Batches that were written as a whole are not asked again, one that was cut off is asked as it was."""
    search = RobustSearch(models=["tiny", "heuristic:any-number"], hops=[1, 2], seq_lens=[5], count=12)
    whole = find_robust_seeds(search, ExperimentRunner(uri, batch_size=16))
    append, written = tracking.RunWriter.append_jsonl, []

    def stopping(self, name, records):
        written.append(len(records))
        cut = len(written) in (1, 4, 7)
        append(self, name, records[:5] if cut else records)
        if cut:
            raise KeyboardInterrupt

    monkeypatch.setattr(tracking.RunWriter, "append_jsonl", stopping)
    runner, again = ExperimentRunner(uri, batch_size=16), None
    for _ in range(4):
        with suppress(KeyboardInterrupt):
            again = find_robust_seeds(search, runner, Resuming())
            break
    assert again is not None
    assert set(written) == {16, 11}, "what was kept of a batch is not written again"
    store = Store(uri)
    assert len(store.find_runs(role="study")) == 2
    for one, other in zip(whole, again, strict=True):
        assert replace(one, run_id="") == replace(other, run_id="")
        assert_alike(store.load_run(one.run_id), store.load_run(other.run_id))
        assert store.load_run(one.run_id).tags["debug.weights_digest"]
    assert find_robust_seeds(search, runner, Resuming())[0].run_id != again[0].run_id, (
        "a finished one is not gone on with"
    )


def test_metrics_that_were_logged_when_a_process_was_killed_are_not_logged_twice(uri, monkeypatch):
    """Between the metrics of a cell, or of its study, and the end of that run."""
    for name, killed in (("accuracy", "log_means"), ("accuracy", "describe"), ("causal", "log_means")):
        with monkeypatch.context() as patched:
            patched.setattr(tracking.RunWriter, killed, interrupted := Interrupted(getattr(tracking.RunWriter, killed)))
            for _ in range(3):
                with suppress(KeyboardInterrupt):
                    if name == "accuracy":
                        ExperimentRunner(uri).run_study(killed, [asked(["tiny"], num_seqs=3)])
                    else:
                        CausalExperimentRunner(uri).run(causal(num_seqs=2, positions="targets"), resume=True)
        assert interrupted.times == 2
    store = Store(uri)
    for run_id in store.find_runs(limit=None)["run_id"]:
        run = store.load_run(run_id)
        histories = {name: store.client.get_metric_history(run_id, name) for name in run.metrics}
        twice = {
            name: [(each.step, each.value) for each in history]
            for name, history in histories.items()
            if len({each.step for each in history}) < len(history) and not name.endswith("_per_second")
        }
        assert twice == {}


class Interrupted:
    """In the place of a method: what it does, and then Ctrl-C; twice."""

    def __init__(self, method) -> None:
        self.method, self.times = method, 0

    def __get__(self, owner, _):
        return lambda *given: self(owner, *given)

    def __call__(self, *given) -> None:
        self.method(*given)
        if self.times < 2:
            self.times += 1
            raise KeyboardInterrupt


def test_a_cell_that_other_code_began_is_refused_or_says_so(uri, monkeypatch):
    config, append, written = asked(["tiny"], num_seqs=8), tracking.RunWriter.append_jsonl, []

    def stopping(self, name, records):
        append(self, name, records)
        written.append(name)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(tracking.RunWriter, "append_jsonl", stopping)
    with pytest.raises(KeyboardInterrupt):
        ExperimentRunner(uri).run_study("a", [config])
    store = Store(uri)
    [cell] = store.find_runs(role="cell")["run_id"]
    store.set_tags(cell, {"debug.source_digest": "0" * 64})
    with pytest.raises(StudyDiffers):
        ExperimentRunner(uri).run_study("a", [config])
    assert len(written) == 3
    ExperimentRunner(uri).run_study("a", [config], mix=True)
    assert "was 000000000000" in store.load_run(cell).tags[tracking.MIXED]


def test_one_models_failure_ends_its_cells_and_not_the_study(uri, monkeypatch):
    config = asked(["tiny", "heuristic:any-number"], num_seqs=4)
    loaded = models.load

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(models, "load", broken)
    with pytest.raises(StudyIncomplete, match="tiny: RuntimeError: out of memory"):
        ExperimentRunner(uri).run_study("a", [config])
    [study] = tracking.find_runs(tracking_uri=uri, role="study")["run_id"]
    cells = tracking.load_run(study, uri).children
    assert Counter((cell.params["model"], cell.status) for cell in cells) == {
        ("tiny", "FAILED"): 1,
        ("heuristic:any-number", "FINISHED"): 2,
    }
    monkeypatch.setattr(models, "load", loaded)
    again = ExperimentRunner(uri).run_study("a", [config])
    assert again.run_id == study
    assert [cell.status for cell in tracking.load_run(study, uri).children] == ["FINISHED"] * 4
    assert len(again.summary["cells"]) == 4


AT_ONCE = """
import sys
from debug import ExperimentRunner
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.core import ExperimentConfig
uri, kind = sys.argv[1:]
if kind == "accuracy":
    what = ("a", "VARIABLE_BINDING", "variable_binding", ["tiny"])
    config = ExperimentConfig(*what, num_seqs=30, hops=[1, 2, 3], seq_lens=[5, 6])
    print(ExperimentRunner(uri).run_study("accuracy", [config]).run_id)
else:
    what = {"name": "causal", "models": ["tiny"], "positions": "targets"}
    config = CausalConfig(**what, num_seqs=3, hops=[1, 2, 3, 4], layers=[0, 2, 4])
    print(CausalExperimentRunner(uri).run(config, resume=True).run_id)
"""


def at_once(uri: str, kind: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", AT_ONCE, uri, kind], stdout=subprocess.PIPE, text=True)


def everything_once(store: Store, study: str, cells: int, samples: int) -> None:
    run = store.load_run(study)
    assert run.status == "FINISHED"
    places = Counter(each.data.tags[tracking.PLACE] for each in run.all_children())
    assert len(places) == cells
    assert set(places.values()) == {1}, "each cell once"
    for cell in run.children:
        assert cell.status == "FINISHED"
        seeds = [record["seed"] for record in cell.sample_records()]
        assert len(seeds) == len(set(seeds)) >= samples


@pytest.mark.parametrize("kind", ["causal"])
def test_the_same_study_started_twice_at_once_has_each_cell_once(uri, kind):
    processes = [at_once(uri, kind) for _ in range(2)]
    found = {process.communicate(timeout=300)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    [study] = found
    store = Store(uri)
    assert store.find_runs(role="study")["run_id"].to_list() == [study]
    everything_once(store, study, *((6, 30) if kind == "accuracy" else (4, 3)))
    owners = {cell.tags["debug.heartbeat"].split('"pid": ')[1].split(",")[0] for cell in store.load_run(study).children}
    assert len(owners) > 1, "they share the work"
