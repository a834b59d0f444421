"""The dashboard's Studies, Study and Try it pages, and stepping through pairs, in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_dashboard_browser import command, expect, heatmap, window

from debug.tracking import Store
from synthetic import log_accuracy, log_causal, make_map


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


@pytest.fixture
def page(browser, address):
    with window(browser, address) as page:
        yield page


def test_the_first_page_tells_the_findings_and_opens_a_study(page):
    page.goto("/")
    expect(page.get_by_text("The value moves from hop 1 · value to hop 2 · value at layer 2")).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(2)
    page.get_by_test_id("stMain").get_by_role("link", name="Open").first.click()
    expect(page.get_by_role("heading", name="Question")).to_be_visible()
    expect(page.get_by_role("heading", name="Repeat it")).to_be_visible()
    expect(page.get_by_text("hop 2 · value").first).to_be_visible()


def test_a_study_is_saved_as_one_file_that_shows_the_same(page, store, cell, browser, tmp_path):
    page.goto(f"/study?run={store.load_run(cell).parent_run_id}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as HTML").click()
    file = tmp_path / "study.html"
    download.value.save_as(file)
    with window(browser, None) as reader:
        reader.goto(file.as_uri())
        expect(reader.get_by_text("The value moves from hop 1 · value to hop 2 · value at layer 2")).to_be_visible()
        expect(reader.get_by_role("img")).to_have_count(3)
        assert reader.evaluate("[...document.images].every(image => image.naturalWidth > 100)")


def test_arrow_keys_step_through_the_pairs(page, cell):
    page.goto(f"/causal_map?run={cell}&pair=0")
    expect(heatmap(page, "residual_stream · pair 0")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(heatmap(page, "residual_stream · pair 1")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(heatmap(page, "residual_stream · pair 0")).to_be_visible()
    page.wait_for_url("**pair=0**")


def test_a_click_brings_the_pairs_behind_a_mean_into_view(browser, address, cell):
    with window(browser, address, viewport={"width": 1280, "height": 700}) as page:
        page.goto(f"/causal_map?run={cell}&metric=success")
        expect(heatmap(page, "mean over 20 pairs")).to_be_visible()
        page.locator("path[aria-label*='target: ref_depth_2_rhs']").first.click()
        heading = page.get_by_role("heading", name="Pairs behind this mean")
        expect(heading).to_be_in_viewport()


def test_what_is_typed_is_patched_and_kept(page, store):
    page.goto("/tryit?layers=0-2")
    page.get_by_role("textbox", name="Program").fill("q = 5\nw = q\n#w: ")
    page.get_by_role("textbox", name="Program").press("Control+Enter")
    page.get_by_role("button", name="Run it").click()
    expect(page.get_by_role("heading", name="What the patches do")).to_be_visible()
    expect(page.get_by_text("original: q = 5 ⏎ w = q ⏎ #w: → 5")).to_be_visible()
    expect(heatmap(page, "residual_stream · pair 0")).to_be_visible()
    page.wait_for_url("**new=*")
    run = store.load_run(page.url.partition("new=")[2][:32])
    assert (run.status, run.experiment, run.params["layers"]) == ("FINISHED", "try it", "0,1,2")
    assert run.pairs[0].original.text == "q = 5\nw = q\n#w: "
