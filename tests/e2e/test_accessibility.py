"""Axe on every page of the dashboard, light and dark: no finding that it calls serious."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_dashboard_browser import command, expect, window

from debug.tracking import Store
from synthetic import log_accuracy, log_causal, make_map

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="dependency group dev is not installed")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture(scope="module")
def cell(store) -> str:
    log_accuracy(store, hops=[1, 2])
    return log_causal(store, [make_map(pair) for pair in range(20)])


@pytest.fixture(scope="module")
def address(store, cell, serve) -> Iterator[str]:
    with serve(command(store), "/_stcore/health") as address:
        yield address


PAGES = {
    "": "Newest findings",
    "study": "Repeat it",
    "runs": "Select runs in the table",
    "compare": "Metric",
    "causal_map?pair=mean": "Click the heatmap",
    "causal_map?pair=0&layer=2&token=6": "Selected intervention",
    "samples": "samples:",
    "tryit": "Run it",
    "rerun": "Run it",
    "training": "Training",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_serious_finding(browser, address, cell, scheme):
    found = {}
    with window(browser, address, color_scheme=scheme) as page:
        for path, shown in PAGES.items():
            page.goto(f"/{path}{'&' if '?' in path else '?'}run={cell}" if path.startswith("causal") else f"/{path}")
            expect(page.get_by_text(shown).first).to_be_visible()
            expect(page.locator("[data-stale=true]")).to_have_count(0)
            violations = axe.Axe().run(page).response["violations"]
            found[path] = [
                (each["id"], [node["html"] for node in each["nodes"][:3]])
                for each in violations
                if each["impact"] in ("serious", "critical")
            ]
    assert not {path: each for path, each in found.items() if each}
