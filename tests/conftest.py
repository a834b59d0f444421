"""Rules for the whole suite."""

import os

# Few cores and several processes: threads that wait for one another cost more than they bring. Before torch's import.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import atexit
import gc
import shutil
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from array_types import ArrayTypes

sys.meta_path.insert(0, ArrayTypes("debug"))  # before any import of it

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored

# How long an example takes says more about what else the machine is doing than about the code.
settings.register_profile("debug", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("debug")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("DEBUG_NO_SKIPS") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: DEBUG_NO_SKIPS=1 allows no skip, but this one says: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With DEBUG_NO_SKIPS=1, as CI sets it, a skipped test is a failed one."""
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that skips itself while it is imported."""
    report = yield
    _refuse_skip(report)
    return report


atexit.register(gc.unfreeze)


@pytest.fixture(scope="module", autouse=True)
def _nothing_to_look_through() -> None:
    """What libraries and the files before this one keep for good is not looked through for garbage any more: that takes
    seconds, and whatever frees a model does it."""
    if (models := sys.modules.get("debug.models.loading")) is not None:
        models.unload_all()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _handlers() -> Generator[None, None, None]:
    """A script sets signal handlers for a process of its own; some tests run it in theirs."""
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


LONG = (
    *("e2e", "vllm", "dashboard", "smollm2", "faults", "program_families", "plain_hooks", "served_model", "resuming"),
    *("training", "paper", "public_calls", "docs", "benchmarks", "scripts"),
)
"""Files of a minute or more: they begin first, so that no process waits for the other one's at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        words = item.path.parent.name, item.path.stem.removeprefix("test_")
        return next((n for n, word in enumerate(LONG) if word in words), len(LONG))

    items.sort(key=place)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: building one runs all its migrations, which takes seconds."""
    from debug.tracking import Store

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    assert Store(f"sqlite:///{path}").client
    return path


@pytest.fixture
def uri(tmp_path: Path, empty_database: Path) -> str:
    """A store of the test's own."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


CHROMIUM = shutil.which("chromium")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"


@pytest.fixture(scope="session")
def browser():
    """A real browser, one a process: two of playwright's cannot run in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dependency group dev)")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()
