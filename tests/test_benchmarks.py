"""Benchmarks run and say what they promise; how fast anything is, is not tested here: other work shares the machine."""

import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from torch.utils.flop_counter import FlopCounterMode

from debug import models
from debug.tracking import RunTable, Store
from matrix_products import linear_layers, matrix_products, unavoidable_flop

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "patching.py"


def test_the_quick_run_prints_every_ratio(tmp_path):
    table = tmp_path / "table.json"
    command = [sys.executable, BENCHMARK, "--quick", "--no-transformer-lens", "--json", table]
    run = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert run.returncode == 0, run.stderr
    content = json.loads(table.read_text())
    units = Counter((row["section"], row["workload"], row["unit"]) for row in content["rows"])
    for workload in ("F", "P"):
        assert units["original", workload, "x"] == 1
        assert units["limit", workload, "x"] == 1
        assert units["components", workload, "x"] == units["components", workload, "/s"] == 3
        shares = [r["value"] for r in content["rows"] if (r["section"], r["workload"]) == ("breakdown", workload)]
        assert sum(shares[:-1]) == pytest.approx(100)
    assert units["growth", "", ""] == 4
    assert units["memory", "", "GiB"] == 1
    assert {"processor", "torch threads", "versions", "load average at start"} == content["machine"].keys()
    for row in content["rows"]:
        assert np.isfinite(row["value"])
        assert row["what"] in run.stdout
        assert row["how"].split()[0] in run.stdout


def test_the_limit_is_the_arithmetic_of_a_forward_pass_less_what_the_last_layer_need_not_do():
    model, tokens = models.load("tiny"), 20
    limit = unavoidable_flop(model, "residual_stream", Counter({(0, tokens): 1}))
    with FlopCounterMode(display=False) as counter:
        model.hf(model.tokenizer("1" * tokens, return_tensors="pt")["input_ids"], logits_to_keep=1)
    products = sum(count for operator, count in counter.get_flop_counts()["Global"].items() if "mm" in str(operator))
    sizes = {name: weight.numel() for name, weight in linear_layers(model)[-1].items()}
    needed_by_all = sizes["self_attn.k_proj"] + sizes["self_attn.v_proj"]
    spared = 2 * (tokens - 1) * (sum(sizes.values()) - needed_by_all)
    assert limit == pytest.approx(products - spared, rel=1e-3)  # the rest: positions' angles


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_timed_in_the_model_s_own_dtype(dtype):
    assert all(speed > 0 for speed in matrix_products(models.load("tiny", dtype=dtype), 20, 3))


def test_accuracy_prints_the_limit_and_how_many_texts_are_the_same():
    options = ["--model", "tiny", "--seq-len", "5", "--few-shot", "0", "3", "--num-seqs", "8", "--rounds", "1"]
    command = [sys.executable, BENCHMARK.with_name("accuracy.py"), *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("same text: 8 of 8") == 4  # the pipeline and the backend, twice
    limits = re.findall(r"limit +([\d.]+) samples/s +([\d.]+) times pipeline; ([\d.]+) GFLOP", run.stdout)
    assert len(limits) == 2
    assert all(float(number) > 0 for limit in limits for number in limit)


def test_the_dashboard_s_large_store_has_runs_of_real_shapes(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    main = runpy.run_path(str(BENCHMARK.with_name("dashboard_store.py")))["main"]
    monkeypatch.setitem(main.__globals__, "LARGE", {"64 x 200": (1, 64, 200), "1,000 pairs": (3, 6, 23)})
    monkeypatch.setitem(main.__globals__, "SAMPLES", 20)
    monkeypatch.setattr("sys.argv", ["dashboard_store.py", uri, "--runs", "20"])
    main()
    runs = RunTable(Store(uri))
    runs.refresh()
    copies = runs.frame.filter(pl.col("experiment").str.starts_with("experiment "))
    assert len(copies) >= 20
    assert {"params.intervention_type", "metrics.accuracy", "metrics.peak_patch_success_rate"} <= set(copies.columns)
    (large,) = runs.frame.filter(pl.col("name") == "64 x 200", pl.col("role") == "cell")["run_id"]
    assert Store(uri).load_run(large).maps[0].top.shape == (65, 200)
