"""The dashboard in a real browser: what a reader sees, clicks and shares."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from debug.tracking import Store
from synthetic import NASTY, log_accuracy, log_causal, make_map

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dependency group dev)")
expect = playwright.expect

SECONDS = 60
expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture(scope="module")
def runs(store) -> dict[str, str]:
    """Name -> run id, the newest last."""
    nasty = ["<script>alert(1)</script>", "$x$", "8", "\n", '"', "🐙", "i", "\x00", "datum.x", " ", ": "]
    return {
        "accuracy": log_accuracy(store, hops=[1, 2])[0],
        "nasty samples": log_accuracy(store, NASTY, hops=[1])[1],
        "nasty tokens": log_causal(store, [make_map(tokens=nasty)]),
        "causal": log_causal(store, [make_map(pair) for pair in range(4)]),
    }


@pytest.fixture(scope="module")
def address(store, runs, serve) -> Iterator[str]:
    """The dashboard on the store, as `streamlit run` serves it."""

    def command(port: int) -> list[str]:
        options = [f"--server.port={port}", "--server.address=127.0.0.1", "--server.fileWatcherType=none"]
        streamlit = [sys.executable, "-m", "streamlit", "run", "dashboard/app.py", "--server.headless=true"]
        return [*streamlit, *options, "--", "--tracking-uri", store.uri]

    with serve(command, "/_stcore/health") as address:
        yield address


@pytest.fixture
def page(browser, address):
    """A fresh browser window. No console error, no dialog and no request to another host is forgiven."""
    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 1600})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: problems.append(request.url) if _is_elsewhere(request.url) else None)
    yield page
    context.close()
    assert not problems


def _is_elsewhere(url: str) -> bool:
    return not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:", url)


def heatmap(page, title: str):
    return page.locator("[data-testid=stVegaLiteChart]").filter(has_text=title)


def test_the_newest_run_shows_its_maps_and_its_samples(page, runs):
    page.goto("/")
    expect(heatmap(page, "mean over 4 pairs").first).to_be_visible()
    expect(page.get_by_role("heading", name="Samples")).to_be_visible()
    expect(page.get_by_test_id("stDataFrame")).to_have_count(4)
    page.wait_for_url(f"**/?run={runs['causal']}*")


def test_a_shared_link_opens_the_same_view(page, runs):
    page.goto(f"/?run={runs['causal']}&pair=2&metric=logit_diff")
    chart = heatmap(page, "residual_stream · pair 2")
    expect(chart).to_be_visible()
    expect(chart).to_contain_text("final norm")
    expect(chart).to_contain_text("·=·")
    expect(chart).to_contain_text("ref_depth_2_rhs")
    expect(page.get_by_test_id("stCode").filter(has_text="#h: 8")).to_be_visible()


def test_a_choice_goes_into_the_url(page, runs):
    page.goto(f"/?run={runs['causal']}")
    expect(heatmap(page, "mean over 4 pairs").first).to_be_visible()
    page.get_by_role("combobox", name="Pair").click()
    page.get_by_role("option", name="3", exact=True).click()
    expect(heatmap(page, "residual_stream · pair 3")).to_be_visible()
    page.wait_for_url("**pair=3*")


def test_a_click_on_a_row_opens_that_run(page, runs):
    page.goto("/")
    expect(heatmap(page, "mean over 4 pairs").first).to_be_visible()
    page.get_by_test_id("stDataFrame").first.click(position={"x": 20, "y": 36 + 35 * 3 + 17})  # header, then rows
    page.wait_for_url(lambda url: runs["causal"] not in url)
    expect(page.get_by_text(runs["causal"])).to_have_count(0)


def test_hovering_a_cell_tells_its_token_layer_and_values(page, runs):
    page.goto(f"/?run={runs['causal']}&pair=0")
    chart = heatmap(page, "residual_stream · pair 0")
    chart.locator("path[aria-label*='token position: 6; layer: 2;']").first.hover()
    tooltip = page.locator("#vg-tooltip-element")
    for text in ("ref_depth_2_rhs", "normalized logit difference", "top token", "7"):
        expect(tooltip).to_contain_text(text)


def test_nasty_tokens_and_outputs_are_shown_as_they_stand(page, runs):
    page.goto(f"/?run={runs['nasty tokens']}&pair=0")
    chart = heatmap(page, "residual_stream · pair 0")
    expect(chart).to_contain_text("<script>ale")
    expect(chart).to_contain_text("\\x00")
    chart.locator("path[aria-label*='token position: 0; layer: 2;']").first.hover()
    expect(page.locator("#vg-tooltip-element")).to_contain_text("<script>alert(1)</script>")
    page.goto(f"/?run={runs['nasty samples']}")
    samples = page.get_by_test_id("stDataFrame").nth(3)
    samples.click(position={"x": 20, "y": 36 + 17})
    output = page.get_by_test_id("stCode").filter(has_text="<script>alert(1)</script> **bold** $x$ `code` :red[no]")
    expect(output).to_be_visible()


def test_a_link_to_a_run_that_is_not_there_is_a_sentence(page):
    page.goto("/?run=ffffffffffffffffffffffffffffffff")
    expect(page.get_by_text("This run cannot be read. Choose one in the table.")).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_page(page, runs, width):
    page.set_viewport_size({"width": width, "height": 1200})
    page.goto(f"/?run={runs['causal']}&pair=0")
    expect(heatmap(page, "pair 0")).to_be_visible()
    main = page.get_by_test_id("stMain")
    assert main.evaluate("element => element.scrollWidth <= element.clientWidth")
