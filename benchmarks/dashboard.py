"""How long a reader waits for the dashboard on a large store, side by side with MLflow's own UI and client on it.

python benchmarks/dashboard_store.py sqlite:////tmp/large/mlflow.db    # once: 10,000 runs, some minutes
python benchmarks/dashboard.py sqlite:////tmp/large/mlflow.db

A real server (as `make dashboard` starts it) and a real browser (Debian's chromium). A time runs from the click, or the
address, to what it asked for being on screen; the median of several where something can be repeated. One new run is
logged to the store. Memory is that of the server's process at the end, with everything above in its caches.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import polars as pl
from playwright.sync_api import Locator, Page, sync_playwright

from debug.causal_map import MeanOverPairs
from debug.tracking import RunTable, Store
from servers import free_port

ROOT = Path(__file__).parents[1]
WIDTH = 54  # of the table's first column


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tracking_uri")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    store = Store(options.tracking_uri)
    table = RunTable(store)
    seconds = timed(table.refresh)
    print(f"{len(table.frame):,} runs\n")
    without_browser(store, table, seconds)
    in_browser(store, table, options.times)
    in_mlflow(store, table, options.times)


def row(what: str, seconds: float, limit: str = "") -> None:
    print(f"{what.ljust(WIDTH)} {seconds:8.3f} s   {limit}", flush=True)


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def without_browser(store: Store, table: RunTable, first: float) -> None:
    """What the dashboard does for a page, beside MLflow's own way to the same."""
    mlflow.set_tracking_uri(store.uri)
    row("all runs read: this project's table", first)
    row(
        "all runs read: mlflow.search_runs",
        timed(lambda: mlflow.search_runs(search_all_experiments=True, max_results=50_000)),
    )
    with store.start("benchmark", "a new run", kind="accuracy"):
        pass
    row("one new run read: this project's table", timed(table.refresh))
    newest = "attributes.start_time > 0"
    row(
        "one new run read: mlflow.search_runs, newest first",
        timed(
            lambda: mlflow.search_runs(
                search_all_experiments=True,
                filter_string=newest,
                max_results=1,
                order_by=["attributes.start_time DESC"],
            )
        ),
    )
    for name in ("1,000 pairs", "1,000 pairs of 64 layers"):
        run = store.load_run(run_named(table, name))

        def average(run=run) -> None:
            mean = MeanOverPairs()
            for causal_map in run.maps:
                mean.add(causal_map)
            mean.result()

        row(f"mean of {name}, no browser", timed(average))
    run = store.load_run(run_named(table, "100,000 samples"))
    row("100,000 samples read, no browser", timed(lambda: run.samples))
    wanted = pl.col("correct").eq(False) & pl.col("program").str.contains("a = 1", literal=True)
    row(
        "100,000 samples filtered, no browser",
        timed(lambda: run.samples.lazy().filter(wanted).collect()),
        "limit 0.5 s",
    )


def run_named(table: RunTable, name: str) -> str:
    return table.frame.filter(pl.col("name") == name, pl.col("role") == "cell")["run_id"][0]


@contextmanager
def on_dashboard(uri: str) -> Iterator[tuple[Page, int]]:
    """A page of a browser that has started, on a server of the dashboard that nobody has asked for a page yet; and the
    server's pid."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "dashboard/serve.py", "--server.headless=true"]
    command += [f"--server.port={port}", "--server.address=127.0.0.1", "--server.fileWatcherType=none"]
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while not answers(f"{address}/_stcore/health"):
            time.sleep(0.1)
        with sync_playwright() as driver:
            flags = ["--headless", "--no-sandbox", "--disable-gpu"]
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            page = browser.new_page(base_url=address, viewport={"width": 1280, "height": 1400})
            page.set_default_timeout(120_000)
            page.goto(f"{address}/_stcore/health")
            yield page, server.pid
            browser.close()
    finally:
        server.terminate()
        server.wait()


def in_browser(store: Store, table: RunTable, times: int) -> None:
    with on_dashboard(store.uri) as (page, pid):
        pages(page, store, table, times)
        print(f"{'memory of the server'.ljust(WIDTH)} {resident(pid):8,.0f} MiB limit 1,024 MiB")


def in_mlflow(store: Store, table: RunTable, times: int) -> None:
    """MLflow's own pages on the same store, until they show what they are opened for."""
    port = free_port()
    ui = [str(Path(sys.executable).with_name("mlflow")), "ui", "--backend-store-uri", store.uri]
    server = subprocess.Popen([*ui, f"--port={port}", "--workers=1"], stdout=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    cell = table.frame.row(by_predicate=(pl.col("name") == "64 x 200") & (pl.col("role") == "cell"), named=True)
    large = store.client.get_experiment_by_name("experiment 0")
    assert large is not None
    try:
        while not answers(f"{address}/health"):
            time.sleep(0.1)
        with sync_playwright() as driver:
            flags = ["--headless", "--no-sandbox", "--disable-gpu"]
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            for name, path, there in (
                ("all experiments", "#/experiments", "text=experiment 0"),
                ("500 runs of an experiment", f"#/experiments/{large.experiment_id}/runs", "text=/matching run/"),
                ("one run", f"#/experiments/{cell['experiment_id']}/runs/{cell['run_id']}", "text=pairs_used"),
            ):
                took = []
                for _ in range(1 + times):  # a new window each: its address differs behind the # alone
                    page = browser.new_page(viewport={"width": 1280, "height": 1400})
                    page.set_default_timeout(120_000)
                    started = time.perf_counter()
                    page.goto(f"{address}/{path}")
                    page.wait_for_selector(there)
                    took.append(time.perf_counter() - started)
                    page.close()
                row(f"MLflow UI, {name}: opened", statistics.median(took[1:]), f"the first {took[0]:.3f} s")
            browser.close()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


def resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def changed(page: Page, pattern: str, text: Locator, act: Callable[[], object]) -> Callable[[], None]:
    """Does something, and waits until the text of this pattern is another one."""
    other = "([pattern, before]) => [...document.querySelectorAll('p')].map(p => p.innerText)"
    other += ".some(text => text.match(pattern) && text != before)"

    def wait() -> None:
        before = text.inner_text()
        act()
        page.wait_for_function(other, arg=[pattern, before], polling="raf")

    return wait


def pages(page: Page, store: Store, table: RunTable, times: int) -> None:
    rows = page.get_by_text(re.compile(r"^[\d,]+ rows?$")).first

    def until_rows_change(act: Callable[[], object]) -> Callable[[], None]:
        return changed(page, "^[0-9,]+ rows?$", rows, act)

    def opened(path: str, there: str, again: int = times) -> list[float]:
        """Seconds until a page shows what it is opened for: the first time, and from then on."""
        return [timed(lambda: (page.goto(path), page.locator(there).first.wait_for())) for _ in range(1 + again)]

    study = table.frame.filter(pl.col("name") == "1,000 pairs", pl.col("role") == "study")["run_id"][0]
    chart = "[data-testid=stVegaLiteChart] svg, [data-testid=stVegaLiteChart] canvas"
    for name, path, there, limit in (
        ("Studies", "/", "[data-testid=stImage], [data-testid=stVegaLiteChart]", "limit 1.5 s"),
        ("Runs", "/runs", "canvas", "limit 1.5 s"),
        ("Study", f"/study?run={study}", chart, ""),
        ("Compare", "/compare", chart, ""),
        ("Causal map", f"/causal_map?run={run_named(table, '1,000 pairs')}&pair=0", chart, ""),
        ("Samples", f"/samples?run={run_named(table, '100,000 samples')}", "canvas", ""),
    ):
        first, *later = opened(path, there)
        row(f"{name}: opened", statistics.median(later), f"{limit}; the first {first:.3f} s".removeprefix("; "))
    page.goto("/runs")
    page.locator("canvas").first.wait_for()
    box = page.get_by_role("textbox", name="Text")
    took = []
    for number in range(times):
        word = "" if number % 2 else "Qwen3-4B"
        took.append(timed(until_rows_change(lambda word=word: (box.fill(word), box.press("Enter")))))
    row("Runs: filtered by a word", statistics.median(took), "limit 0.5 s")
    took = []
    for number in range(times):
        other = "studies" if number % 2 else "cells"
        page.get_by_role("combobox", name="Rows").click()
        option = page.get_by_role("option", name=other, exact=True)
        took.append(timed(until_rows_change(lambda option=option: option.click())))
    row("Runs: all cells listed, and folded again", statistics.median(took), "limit 0.3 s")
    page.goto("/runs")
    page.locator("canvas").first.wait_for()
    with store.start("benchmark", "another new run", kind="accuracy"):
        row("Runs: a new run appears (looked for every 3 s)", timed(until_rows_change(lambda: None)))

    page.goto(f"/causal_map?run={run_named(table, '1,000 pairs')}&pair=0")
    page.get_by_test_id("stVegaLiteChart").first.wait_for()
    link = f"/causal_map?run={run_named(table, '64 x 200')}&pair=mean"
    took = []
    for _ in range(times):
        page.goto(link)
        page.get_by_test_id("stVegaLiteChart").locator("path").first.wait_for(state="attached")
        page.get_by_role("combobox", name="Pair", exact=True).click()
        option = page.get_by_role("option", name="0", exact=True)
        canvas = page.get_by_test_id("stVegaLiteChart").locator("canvas")
        took.append(timed(lambda option=option, canvas=canvas: (option.click(), canvas.wait_for())))
    row(
        "Causal map of 64 x 200: from click to pixels",
        statistics.median(took),
        f"limit 0.7 s; the first {took[0]:.3f} s",
    )
    for name in ("1,000 pairs", "1,000 pairs of 64 layers"):
        page.goto(f"/causal_map?run={run_named(table, name)}&pair=0")
        page.get_by_test_id("stVegaLiteChart").first.wait_for()
        page.get_by_role("combobox", name="Pair", exact=True).click()
        option = page.get_by_role("option", name="mean over", exact=False).first
        page.keyboard.press("Home")
        picture = page.get_by_test_id("stVegaLiteChart").filter(has_text="mean over 1000 pairs").first
        row(
            f"Causal map: mean of {name}",
            timed(lambda option=option, picture=picture: (option.click(), picture.wait_for())),
            "limit 2 s",
        )
    page.goto(f"/samples?run={run_named(table, '100,000 samples')}")
    page.get_by_text("100,000 of 100,000 samples").wait_for()
    took = []
    box = page.get_by_role("textbox", name="Text in program or output")
    for word in ("a = 1", "b = a", "q = 3", "z = 9", "x = y"):
        count = page.get_by_text(re.compile(r"of 100,000 samples"))
        filtered = changed(page, "of 100,000 samples", count, lambda word=word: (box.fill(word), box.press("Enter")))
        took.append(timed(filtered))
    row("Samples: 100,000 filtered by a word", statistics.median(took), "limit 0.5 s")


if __name__ == "__main__":
    main()
