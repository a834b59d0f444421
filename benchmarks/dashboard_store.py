"""A store as a year of work leaves it, for benchmarks/dashboard.py: 10,000 runs of real shapes, and four large ones.

python benchmarks/dashboard_store.py sqlite:////tmp/large/mlflow.db
python benchmarks/dashboard_store.py sqlite:////tmp/small/mlflow.db --runs 500

First the demo runs on the bundled model, small. Its runs are then written again and again into MLflow's own tables (its
client takes an hour for them), with other models, seeds and times, and numbers moved a little; their artifacts are not
copied. The four:
a map of 64 layers x 200 tokens, one of 1,000 pairs, one of 1,000 pairs of 64 layers with 40 tokens, 100,000 samples.
"""

from __future__ import annotations

import argparse
import random
import time
import uuid
from collections import defaultdict
from functools import cache
from itertools import count

import numpy as np
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
from mlflow.tracking import MlflowClient
from sqlalchemy import Engine, create_engine, insert
from tqdm import tqdm

from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_map import CausalMap, save_maps
from debug.core import ExperimentConfig
from debug.counterfactual import make_pair
from debug.generators import make_variable_binding_program
from debug.runner import ExperimentRunner
from debug.tracking import LoggedRun, Store

MODELS = ["tiny", "smollm2", "Qwen3-0.6B", "Qwen3-4B", "Qwen3-14B", "Llama-3.1-8B", "gemma-2-2b", "pythia-1.4b"]
YEAR = 365 * 24 * 3600 * 1000  # milliseconds
LARGE = {"64 x 200": (1, 64, 200), "1,000 pairs": (1000, 6, 23), "1,000 pairs of 64 layers": (1000, 64, 40)}
SAMPLES = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracking_uri")
    parser.add_argument("--runs", type=int, default=10_000)
    options = parser.parse_args()
    store = Store(options.tracking_uri)
    accuracy = ExperimentConfig(
        "demo", "VARIABLE_BINDING", "variable_binding", ["tiny"], 4, seq_lens=[5, 17], hops=[1, 2, 3, 4]
    )
    causal = CausalConfig(models=["tiny"], hops=(2, 3), num_seqs=4, name="demo")
    studies = [
        ExperimentRunner(store.uri).run(accuracy).run_id,
        CausalExperimentRunner(store.uri).run(causal).run_id,
    ]
    large_runs(store)
    runs = [(study, *study.children) for study in map(store.load_run, studies)]
    logged = [[(run, list(run.curves().iter_rows(named=True))) for run in study] for study in runs]
    with tqdm(total=options.runs, unit="run") as bar:
        for number in count():
            rows = Rows()
            for study in logged:
                again(store.client, study, number, number % 37 == 36, rows)
                if bar.n + len(rows[SqlRun]) >= options.runs:
                    break
            rows.insert(store.uri)
            bar.update(len(rows[SqlRun]))
            if bar.n >= options.runs:
                return


Row = dict[str, object]


class Rows(defaultdict[type, list[Row]]):
    """Rows of MLflow's tables."""

    def __init__(self) -> None:
        super().__init__(list)

    def insert(self, uri: str) -> None:
        with engine(uri).begin() as connection:
            for table, rows in self.items():
                connection.execute(insert(table), rows)


@cache
def engine(uri: str) -> Engine:
    return create_engine(uri)


def again(
    client: MlflowClient, study: list[tuple[LoggedRun, list[dict]]], number: int, fails: bool, rows: Rows
) -> None:
    """A study and its cells as if they had been run another time."""
    rng = random.Random(number)
    place, folder = experiment_of(client, f"experiment {number % 20}")
    start = int(time.time() * 1000) - YEAR + number * 3_000_000
    model, seed = MODELS[number % len(MODELS)], str(number)
    parent = None
    for index, (run, curves) in enumerate(study):
        at, run_id = start + index * 60_000, uuid.uuid4().hex
        name = run.name.replace("tiny", model)
        tags = {name: value for name, value in run.tags.items() if not name.startswith("mlflow.")}
        tags |= {"benchmark": "copy", "mlflow.runName": name} | ({"mlflow.parentRunId": parent} if parent else {})
        parent = parent or run_id
        params = run.params | ({"model": model, "seed": seed} if "model" in run.params else {})
        of: Row = {"run_uuid": run_id}
        rows[SqlRun].append(
            of
            | {
                "name": name,
                "source_type": "LOCAL",
                "user_id": "benchmark",
                "status": "FAILED" if fails else "FINISHED",
                "start_time": at,
                "end_time": at + 50_000,
                "lifecycle_stage": "active",
                "artifact_uri": f"{folder}/{run_id}/artifacts",
                "experiment_id": place,
            }
        )
        rows[SqlParam] += [of | {"key": key, "value": value} for key, value in params.items()]
        rows[SqlTag] += [of | {"key": key, "value": value} for key, value in tags.items()]
        metrics: list[Row] = [
            of
            | {"key": row["metric"], "value": min(1.0, row["value"] * rng.uniform(0.7, 1)), "step": row["step"]}
            | {"timestamp": at, "is_nan": False}
            for row in curves
        ]
        rows[SqlMetric] += metrics
        rows[SqlLatestMetric] += {row["key"]: row for row in metrics}.values()  # the curves are sorted by step


@cache
def experiment_of(client: MlflowClient, name: str) -> tuple[int, str]:
    """Its number and the folder of its artifacts."""
    found, demo = client.get_experiment_by_name(name), client.get_experiment_by_name("demo")
    assert demo is not None
    number = found.experiment_id if found else client.create_experiment(name, demo.artifact_location)
    return int(number), demo.artifact_location


def large_runs(store: Store) -> None:
    for name, (n_pairs, n_layers, n_tokens) in LARGE.items():
        with store.start("large", name, kind="causal_tracing") as study:
            params = {"model": name, "hops": 3, "seq_len": 5, "intervention_type": "residual_stream"}
            with study.cell(name, params) as cell:
                for first in range(0, n_pairs, 64):
                    maps = [make_map(pair, n_layers, n_tokens) for pair in range(first, min(first + 64, n_pairs))]
                    save_maps(cell.folder / "causal_maps" / f"{first // 64:05d}.safetensors", maps)
                cell.log_programs(make_pair(PROGRAM, seed) for seed in range(n_pairs))
                cell.log_metrics({"patch_success_rate": 0.3, "pairs_used": n_pairs})
    with store.start("large", f"{SAMPLES:,} samples", kind="accuracy") as study:
        params = {"model": "samples", "hops": "any", "seq_len": 5}
        with study.cell(f"{SAMPLES:,} samples", params) as cell:
            cell.append_jsonl("samples.jsonl", (sample(seed) for seed in range(SAMPLES)))
            cell.log_metrics({"accuracy": 0.7, "num_samples": SAMPLES})


PROGRAM = "i = 8\nx = i\nh = x\ny = 4\nw = x\n#h: "


def sample(seed: int) -> dict:
    program, answer, metadata = make_variable_binding_program(5, np.random.RandomState(seed))
    said = answer if seed % 10 < 7 else None if seed % 10 == 7 else int(program.split("\n")[0][-1] in "0123456789")
    return {
        "seed": seed,
        "seq_len": 5,
        "hops": metadata["hops"],
        "program": program,
        "prompt": program,
        "expected": answer,
        "raw_output": "no idea" if said is None else f"{said}\n",
        "parsed": said,
        "correct": said == answer,
        "chain": metadata["chain"],
        "error": None,
    }


def make_map(pair: int, n_layers: int, n_tokens: int) -> CausalMap:
    """A map in which the value moves from the root to the last token."""
    rng = np.random.default_rng(pair)
    rows, places = n_layers + 1, np.linspace(2, n_tokens - 1, 6).astype(int).tolist()
    share = rng.normal(0, 0.05, (rows, n_tokens))
    share[:, :2] = 0
    for row in range(rows):
        share[row, places[min(5, row * 6 // rows)]] = rng.uniform(0.4, 1)
    z_clean, z_cf = np.array([2, 9], np.float32), np.array([9, 2], np.float32)
    z = (z_clean + share[..., None] * (z_cf - z_clean)).astype(np.float32)
    names = ["ref_depth_1_rhs", "ref_depth_2_rhs", "ref_depth_3_rhs", "query_var", "query_colon", "final"]
    return CausalMap(
        intervention_type="residual_stream",
        pair=pair,
        tokens=(list("i = 8\n") * n_tokens)[:n_tokens],
        layers=list(range(rows)),
        positions=list(range(n_tokens)),
        columns=[[position] for position in range(n_tokens)],
        targets={name: [place] for name, place in zip(names, places, strict=True)},
        target_columns=dict(zip(names, places, strict=True)),
        n_layers=n_layers,
        first_difference=2,
        answer_tokens=(17, 18),
        top_tokens=(18, 17),
        min_effect=1e-3,
        vocabulary={17: "7", 18: "8"},
        z_clean=z_clean,
        z_counterfactual=z_cf,
        z_patched=z,
        top=np.where(z[..., 0] > z[..., 1], 17, 18).astype(np.int64),
    )


if __name__ == "__main__":
    main()
