"""The dashboard's Runs and Compare pages in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from test_dashboard_browser import command, expect, grid_row, window

from debug.statistics import wilson
from debug.tracking import NOTE, Store
from synthetic import NASTY

MODELS = ("HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen3-14B")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture(scope="module")
def studies(store) -> list[str]:
    """Two runs of one grid, and one that failed."""
    found = []
    for seed in range(2):
        with store.start("grid", f"{MODELS[1]} and another · grid", kind="accuracy") as study:
            found.append(study.run_id)
            for model in MODELS:
                for hops in (1, 2, 10):
                    params = {"model": model, "hops": hops, "seq_len": 5, "prompt_template": "VARIABLE_BINDING"}
                    params |= {"seed": seed, "num_seqs": 200, "generator": "variable_binding"}
                    params |= {"intervention_type": "residual_stream"}
                    with study.cell(f"{model} · {hops} hops · 5 lines", params) as cell:
                        rate = wilson(150 + 5 * seed, 200)
                        peak = rate.metrics("peak_patch_success_rate") | {"peak_patch_success_rate_n": 100}
                        cell.log_metrics({**rate.metrics("accuracy"), "accuracy_n": 200, **peak, "peak_layer": 12})
    with pytest.raises(ValueError, match="no"), store.start("grid", "fails", kind="accuracy"):
        raise ValueError("no")
    return found


@pytest.fixture(scope="module")
def address(store, studies, serve) -> Iterator[str]:
    with serve(command(store), "/_stcore/health") as address:
        yield address


@pytest.fixture
def page(browser, address):
    with window(browser, address) as page:
        yield page


def drawn(page) -> None:
    expect(page.get_by_text(re.compile(r"^\d+ rows?$")).first).to_be_visible()
    expect(page.get_by_test_id("stDataFrame").first.locator("canvas").first).to_be_visible()


@pytest.mark.parametrize("width", [800, 1280, 1920])
def test_no_column_is_cut_off_in_any_window(browser, address, width):
    with window(browser, address, viewport={"width": width, "height": 900}) as page:
        for query in ("", "?rows=cells"):
            page.goto(f"/runs{query}")
            drawn(page)
            names = page.get_by_test_id("stDataFrame").first.locator(
                "[role=columnheader]"
            )  # in the canvas, for readers
            expect(names.filter(has_text="model" if query else "status")).to_have_count(1)
            page.wait_for_function("""() => {
                const table = document.querySelector('[data-testid=stDataFrame] .dvn-scroller')
                return table && table.clientWidth > 500 && table.scrollWidth <= table.clientWidth
            }""")
            main = page.get_by_test_id("stMain")
            assert main.evaluate("element => element.scrollWidth <= element.clientWidth")


def test_a_link_is_the_whole_view_also_of_widgets(browser, address):
    """The first page of a session is drawn once: one that was overtaken lost what its widgets show."""
    with window(browser, address, viewport={"width": 1000, "height": 700}) as page:
        page.goto("/runs?rows=cells&sort=name&text=14B&columns=params.model&columns=params.seed&hops=10")
        drawn(page)
        expect(page.get_by_text("2 rows", exact=True)).to_be_visible()
        expect(page.get_by_role("combobox", name="Rows")).to_have_value("cells")
        expect(page.get_by_role("textbox", name="Text")).to_have_value("14B")
        expect(page.get_by_text("Filters: hops 10")).to_be_visible()
        headers = page.get_by_test_id("stDataFrame").first.locator("[role=columnheader]")
        expect(headers).to_have_text(["model", "seed"])
        page.get_by_role("button", name="Reset").click()
        expect(page.get_by_text("3 rows", exact=True)).to_be_visible()
        expect(page.get_by_role("combobox", name="Rows")).to_have_value("studies")


def test_a_note_is_written_by_keyboard_and_shown_as_it_stands(page, store, studies):
    nasty = NASTY.replace("\x00", "").strip()
    page.goto(f"/runs?runs={studies[0]}&columns=name&columns=note")
    page.get_by_text("Note and tags").click()
    box = page.get_by_role("textbox", name="Note (shown in MLflow as the description)")
    box.focus()
    page.keyboard.insert_text(nasty)
    page.keyboard.press("Tab")
    expect(page.get_by_role("textbox", name="Tags, one a line: name = value")).to_be_focused()
    page.keyboard.insert_text("paper = figure 3")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved.")).to_be_visible()
    assert store.load_run(studies[0]).tags[NOTE] == nasty
    assert store.load_run(studies[0]).tags["paper"] == "figure 3"
    expect(page.locator("strong").filter(has_text="bold").or_(page.locator(".katex"))).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Undone.")).to_be_visible()
    assert not {NOTE, "paper"} & store.load_run(studies[0]).tags.keys()


def test_a_study_is_archived_after_a_question_and_brought_back(page, store, studies):
    page.goto("/runs?text=grid")
    expect(page.get_by_text("3 rows", exact=True)).to_be_visible()
    grid_row(page, 1)
    expect(page.get_by_text("Cells of the selected studies")).to_be_visible()
    page.get_by_role("button", name="Archive").click()
    page.get_by_role("button", name="Yes, archive").click()
    expect(page.get_by_text("2 rows", exact=True)).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("3 rows", exact=True)).to_be_visible()


def test_two_runs_of_one_grid_are_one_series_of_each_model(page, studies):
    page.goto(f"/compare?runs={studies[0]}&runs={studies[1]}")
    chart = page.get_by_test_id("stVegaLiteChart").first
    expect(chart).to_contain_text(MODELS[0])
    expect(chart.locator(".role-legend-label")).to_have_count(2)
    expect(page.get_by_text("Runs of the same cells (up to 2) are drawn small")).to_be_visible()
    page.get_by_test_id("stPopover").filter(has_text="Download").first.click()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV", exact=True).click()
    models = "HuggingFaceTB-SmolLM2-135M-Qwen-Qwen3-14B"
    assert re.fullmatch(
        rf"rates_accuracy_{models}_hops-1-2-10_lines-5_\d{{4}}-\d\d-\d\d\.csv", download.value.suggested_filename
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_runs_and_compare_have_no_serious_fault_of_accessibility(browser, address, studies, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with window(browser, address, color_scheme=scheme) as page:
        for path in (f"/runs?runs={studies[0]}&runs={studies[1]}", f"/compare?runs={studies[0]}"):
            page.goto(path)
            shown = page.get_by_test_id("stDataFrame").or_(page.get_by_test_id("stVegaLiteChart").locator("svg"))
            expect(shown.first).to_be_visible()
            expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
            found = axe.Axe().run(page).response["violations"]
            serious = [(each["id"], each["nodes"]) for each in found if each["impact"] in ("serious", "critical")]
            assert not serious
