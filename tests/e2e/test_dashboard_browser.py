"""The dashboard in a real browser: what a reader sees, clicks and shares."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.tracking import Store
from synthetic import NASTY, log_accuracy, log_causal, make_knockout, make_map, make_samples

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (dependency group dev)")
expect = playwright.expect

SECONDS = 120
PAGES = ("Studies", "Study", "Runs", "Compare", "Causal map", "Samples", "Try it", "Re-run", "Training")
expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture(scope="module")
def runs(store) -> dict[str, str]:
    """Name -> run id, the newest last."""
    nasty = ["<script>alert(1)</script>", "$x$", "8", "\n", '"', "🐙", "i", "\x00", "datum.x", " ", ": "]
    real = CausalExperimentRunner(store.uri).run_intervention_experiment(
        "tiny", ["i = 8\nx = i\nh = x\n#h: ", "a = 1\nb = a\nc = b\n#c: "], save_activations="none"
    )
    config = CausalConfig(
        models=["tiny"], num_seqs=20, hops=[3], seq_lens=[17], layers=[0], positions="targets", save_activations="none"
    )
    long = CausalExperimentRunner(store.uri).run(config)
    found = {
        "real": real.cells[0].run_id,
        "long": long.cells[0].run_id,
        "nasty names": log_nasty_names(store),
        "accuracy": log_accuracy(store, hops=[1, 2])[0],
        "nasty samples": log_accuracy(store, NASTY + "long " * 2000, hops=[1])[1],
        "nasty tokens": log_causal(store, [make_map(tokens=nasty)]),
        "heads": log_causal(store, [make_map(pair, heads=4) for pair in range(2)]),
        "knockout": log_causal(store, [make_knockout(pair) for pair in range(4)]),
        "as deep": log_causal(store, [make_map(pair) for pair in range(3)]),
        "other": log_causal(store, [make_map(pair, n_layers=4) for pair in range(4)]),
        "large": log_causal(store, [make_map(n_layers=64, tokens=list("i = 8\n") * 9)]),
        "broken": log_causal(store, [make_map()]),
        "causal": log_causal(store, [make_map(pair) for pair in range(4)]),
    }
    store.load_run(found["broken"]).artifact("causal_maps/00000.safetensors").write_bytes(b"no such thing")
    return found


def log_nasty_names(store: Store) -> str:
    with store.start(NASTY[:80], NASTY[:80], kind="accuracy") as study:
        for hops in (1, 2):
            with study.cell(NASTY[:80], {"model": NASTY[:80], "hops": hops, "seq_len": 5}) as cell:
                cell.log_metrics({"accuracy": 0.5, "num_samples": 2})
    return study.run_id


def command(store: Store, *settings: str) -> Callable[[int], list[str]]:
    """The dashboard on the store, as `make dashboard` serves it, with its settings but those given here."""

    def at(port: int) -> list[str]:
        own = ["--server.headless=true", "--server.fileWatcherType=none", *settings]
        start = [sys.executable, "-m", "debug", "dashboard", f"--port={port}"]
        return [*start, f"--tracking-uri={store.uri}", "--", *own]

    return at


@pytest.fixture(scope="module")
def address(store, runs, serve) -> Iterator[str]:
    with serve(command(store), "/_stcore/health") as address:
        yield address


@contextmanager
def window(browser, address, **settings):
    """A fresh browser window. No console error, no dialog and no request to another host is forgiven."""
    context = browser.new_context(base_url=address, **{"viewport": {"width": 1280, "height": 1600}, **settings})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if _is_problem(message) else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: problems.append(request.url) if _is_elsewhere(request.url) else None)
    yield page
    context.close()
    assert not problems


@pytest.fixture
def page(browser, address):
    with window(browser, address) as page:
        yield page


def _is_problem(message) -> bool:
    # Opened at /compare, Streamlit first asks whether its server lives at /compare/_stcore, is told 404, and goes on.
    looks_for_server = re.search(r"/\w+/_stcore/(health|host-config)$", message.location.get("url", ""))
    return message.type == "error" and not looks_for_server


def _is_elsewhere(url: str) -> bool:
    return not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:|file:", url)


def heatmap(page, title: str):
    """Once the page is drawn: Streamlit loses a click on a part of one that is not."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    return page.locator("[data-testid=stVegaLiteChart]").filter(has_text=title).first


def cell(chart, position: int, layer: int):
    return chart.locator(f"path[aria-label*='token position: {position}; layer: {layer};']").first


def outlines(chart):
    """The frame around the cell that is open."""
    return chart.locator("path[stroke='#009e73']")


def grid_row(page, row: int, table: int = 0) -> None:
    """A click on the box before a row of a table: its cells are drawn on a canvas."""
    page.get_by_test_id("stDataFrame").nth(table).click(position={"x": 20, "y": 36 + 35 * row + 17})


def test_a_chosen_run_goes_along_through_every_page(page, runs):
    page.goto("/runs")
    expect(page.get_by_text(re.compile(r"^\d+ rows$")).first).to_be_visible()
    grid_row(page, 0)
    expect(page.get_by_text("Cells of the selected studies")).to_be_visible()
    page.wait_for_url("**/runs?*runs=*")
    for name in PAGES[1:]:
        page.get_by_role("link", name=name, exact=True).first.click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.get_by_test_id("stException")).to_have_count(0)
        if name in ("Causal map", "Samples", "Re-run"):
            page.wait_for_url(f"**run={runs['causal']}*")
    page.wait_for_url("**/training?*runs=*")  # what goes along is written after the heading; then one may go back
    page.go_back()
    expect(page.get_by_role("heading", name="Re-run", exact=True)).to_be_visible()


def test_a_click_on_a_cell_of_the_mean_lists_its_pairs_and_opens_one(page, runs):
    page.goto(f"/causal_map?run={runs['causal']}&metric=success")
    chart = heatmap(page, "mean over 4 pairs")
    chart.locator("path[aria-label*='layer: 3;'][aria-label*='target: ref_depth_2_rhs']").first.click()
    expect(page.get_by_role("heading", name="Pairs behind this mean")).to_be_visible()
    page.wait_for_url("**target=ref_depth_2_rhs*")
    grid_row(page, 2)
    expect(heatmap(page, "residual_stream · pair 2")).to_be_visible()
    expect(page.get_by_role("heading", name="Selected intervention")).to_be_visible()
    page.wait_for_url("**token=6*")


def test_a_click_on_a_cell_opens_the_program_and_the_link_shows_the_same_elsewhere(page, browser, address, runs):
    page.goto(f"/causal_map?run={runs['causal']}&pair=2&metric=logit_diff")
    cell(heatmap(page, "residual_stream · pair 2"), 6, 2).click()
    expect(page.get_by_test_id("stCode").filter(has_text="x = ⟦i⟧")).to_be_visible()
    page.wait_for_url("**layer=2&token=6*")
    cell(heatmap(page, "residual_stream · pair 2"), 10, 3).click()
    expect(page.get_by_test_id("stCode").filter(has_text="h = ⟦x⟧")).to_be_visible()
    page.wait_for_url("**layer=3&token=10*")
    with window(browser, address) as other:
        other.goto(page.url)
        expect(other.get_by_test_id("stCode").filter(has_text="h = ⟦x⟧")).to_be_visible()
        chart = heatmap(other, "residual_stream · pair 2")
        for text in ("final norm", "·=·", "⏎", "hop 2 · value", "logit difference"):
            expect(chart).to_contain_text(text)


def test_a_choice_goes_into_the_url_and_the_back_button_takes_it_back(page, runs):
    page.goto(f"/causal_map?run={runs['causal']}&pair=1")
    expect(heatmap(page, "residual_stream · pair 1")).to_be_visible()
    page.get_by_role("combobox", name="Pair", exact=True).click()
    page.get_by_role("option", name="3", exact=True).click()
    expect(heatmap(page, "residual_stream · pair 3")).to_be_visible()
    page.wait_for_url("**pair=3*")
    page.go_back()
    expect(heatmap(page, "residual_stream · pair 1")).to_be_visible()


def test_a_click_on_a_cell_is_one_step_of_the_back_button(page, runs):
    page.goto(f"/causal_map?run={runs['causal']}&pair=0")
    chart = heatmap(page, "residual_stream · pair 0")
    page.wait_for_url("**metric=*")
    cell(chart, 6, 2).click()
    expect(page.get_by_role("heading", name="Selected intervention")).to_be_visible()
    page.wait_for_url("**token=6*")
    expect(outlines(chart)).to_have_count(1)
    # The chart stayed; of its legend, which Vega paints by the page's address, the colours have stayed, too.
    legend = chart.locator(".role-legend-gradient path[fill^='url(']").first
    fill = re.fullmatch(r"url\((#gradient_\d+)\)", legend.get_attribute("fill") or "")
    assert fill
    expect(chart.locator(fill[1])).to_be_attached()
    page.go_back()
    page.wait_for_url(lambda url: "layer=" not in url and "token=" not in url)
    expect(page.get_by_role("heading", name="Selected intervention")).to_have_count(0)
    expect(chart).to_be_visible()


def test_hovering_a_cell_tells_its_token_layer_and_values(page, runs):
    page.goto(f"/causal_map?run={runs['causal']}&pair=0")
    cell(heatmap(page, "residual_stream · pair 0"), 6, 2).hover()
    tooltip = page.locator("#vg-tooltip-element")
    for text in ("ref_depth_2_rhs", "normalized logit difference", "top token", "7"):
        expect(tooltip).to_contain_text(text)


def test_heads_of_a_target_and_a_click_on_one(page, runs):
    page.goto(f"/causal_map?run={runs['heads']}&pair=1&at=final")
    heatmap(page, "attention_heads · last token").locator("path[aria-label*='layer: 4;']").nth(2).click()
    expect(page.get_by_role("heading", name="Selected intervention")).to_be_visible()
    page.wait_for_url("**head=2*")
    expect(outlines(heatmap(page, "attention_heads · last token"))).to_have_count(1)
    heatmap(page, "attention_heads · last token").locator("path[aria-label*='layer: 1;']").nth(3).click()
    page.wait_for_url("**layer=1&head=3*")
    page.wait_for_function("""() => {  // the outline lies on the cell that was clicked, but for its own thickness
        const box = path => path?.getBoundingClientRect();
        const cells = document.querySelectorAll("path[aria-label*='layer: 1;']");
        const cell = box(cells[3]), outline = box(document.querySelector("path[stroke='#009e73']"));
        const apart = edge => Math.abs(cell[edge] - outline[edge]);
        return cell && outline && ["x", "y", "width", "height"].every(edge => apart(edge) < 5);
    }""")


def test_a_click_on_a_knockout_opens_its_pairs_and_one_of_them(page, runs):
    page.goto(f"/causal_map?run={runs['knockout']}&pair=mean")
    expect(heatmap(page, "mean over 4 pairs · layers 0–5")).to_contain_text("random edges, same number")
    heatmap(page, "chain_following_random (n=4)").locator("path[aria-label*='target: chain_following;']").first.click()
    expect(page.get_by_role("heading", name="Pairs behind this mean")).to_be_visible()
    page.wait_for_url("**target=chain_following*")
    grid_row(page, 1)
    expect(page.get_by_role("heading", name="Selected intervention")).to_be_visible()
    expect(page.get_by_text("ends of cut edges")).to_be_visible()
    expect(outlines(heatmap(page, "one pair"))).to_have_count(1)


def test_two_runs_side_by_side(page, runs):
    page.goto(f"/causal_map?run={runs['causal']}&with={runs['as deep']}&metric=success")
    chart = page.get_by_test_id("stVegaLiteChart")
    expect(chart).to_have_count(1)
    expect(chart).to_contain_text("A − B")
    expect(chart.get_by_text("final norm")).to_have_count(3)
    expect(page.get_by_text("A and B share one colour scale")).to_be_visible()
    page.goto(f"/causal_map?run={runs['causal']}&with={runs['other']}&metric=success")
    expect(page.get_by_text("A and B have different numbers of layers (6 and 4)")).to_be_visible()
    expect(chart.get_by_text("final norm")).to_have_count(2)
    expect(chart).not_to_contain_text("A − B")


def test_a_click_on_a_cell_of_two_runs_opens_it_in_both(page, runs):
    page.goto(f"/causal_map?run={runs['causal']}&with={runs['other']}&metric=success")
    page.get_by_test_id("stVegaLiteChart").locator(
        "path[aria-label*='ref_depth_2_rhs'][aria-label*='layer: 2;']"
    ).first.click()
    expect(page.get_by_role("heading", name="Pairs behind this mean")).to_have_count(2)
    page.wait_for_url("**target=ref_depth_2_rhs*")
    grid_row(page, 0, table=1)
    expect(page.get_by_role("heading", name="Selected intervention")).to_have_count(2)


def test_a_cell_of_a_map_on_a_canvas_tells_its_values_and_opens(page, runs):
    page.goto(f"/causal_map?run={runs['large']}&pair=0&metric=logit_diff")
    canvas = page.get_by_test_id("stVegaLiteChart").locator("canvas")
    box = canvas.bounding_box()
    middle = {"x": box["width"] / 2, "y": box["height"] / 2}
    canvas.hover(position=middle)
    tooltip = page.locator("#vg-tooltip-element")
    for text in ("token", "position", "layer", "logit difference", "top token"):
        expect(tooltip).to_contain_text(text)
    canvas.click(position=middle)
    expect(page.get_by_role("heading", name="Selected intervention")).to_be_visible()
    page.wait_for_url("**token=*")


def test_what_is_behind_a_chart_can_be_downloaded(page, runs):
    page.goto(f"/causal_map?run={runs['causal']}&pair=0")
    expect(heatmap(page, "residual_stream · pair 0")).to_be_visible()
    page.get_by_test_id("stPopover").first.click()
    starts = {"CSV": b"layer,position,token", "PARQUET": b"PAR1", "PNG": b"\x89PNG", "SVG": b"<svg"}
    for name, start in starts.items():
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        content = download.value.path().read_bytes()
        assert content.startswith(start)
        asked = r"map_tiny_hops-3_lines-5_normalized-logit-diff_pair-0_\d{4}-\d\d-\d\d_" + runs["causal"][:8]
        assert re.fullmatch(rf"{asked}\.{name.lower()}", download.value.suggested_filename)
        if name == "CSV":
            rows = list(csv.DictReader(content.decode().splitlines()))
            assert len(rows) == 7 * 23


def test_a_click_on_a_head_shows_what_it_looks_at(page, store, runs):
    run = store.load_run(runs["real"])
    kept, first = run.attention[0], run.maps[0].first_difference  # to its token, which the page shows first
    page.goto(f"/causal_map?run={runs['real']}&pair=0")
    page.get_by_text("Attention patterns of the clean forward pass").click()
    page.wait_for_url("**attention=yes**")  # the page is drawn
    overview = heatmap(page, "attention from last token to ")
    last = kept.weights.shape[-1] - 1
    square = overview.locator("path[aria-label*='layer: 2;'][aria-label*='head: 1;']").first
    assert f"attention: {kept.of([last])[2, 1, first]:.0%}" in (square.get_attribute("aria-label") or "")
    square.click()
    page.wait_for_url(re.compile(r".*attention_layer=2.*attention_head=1|.*attention_head=1.*attention_layer=2"))
    expect(heatmap(page, "attention of layer 2, head 1 · from last token (yellow) to all tokens")).to_be_visible()


def test_runs_are_compared(page, runs):
    page.goto(f"/compare?runs={runs['accuracy']}")
    expect(page.get_by_test_id("stVegaLiteChart").first).to_contain_text("accuracy")
    expect(page.get_by_role("heading", name="Models by hops")).to_be_visible()
    expect(page.get_by_text("A and B agree on all programs (1).")).to_be_visible()


def test_samples_are_filtered_and_one_is_opened(page, runs):
    page.goto(f"/samples?run={runs['accuracy']}&answer=8")  # a study: its first cell
    expect(page.get_by_text("60 of 60 samples: 60 correct")).to_be_visible()
    grid_row(page, 1)
    expect(page.get_by_role("heading", name="Sample 1")).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_contain_text("queried chain")
    page.wait_for_url("**sample=1*")


def test_nasty_tokens_and_outputs_are_shown_as_they_stand(page, runs):
    page.goto(f"/causal_map?run={runs['nasty tokens']}&pair=0")
    chart = heatmap(page, "residual_stream · pair 0")
    expect(chart).to_contain_text("<script>ale")
    expect(chart).to_contain_text("\\x00")
    cell(chart, 0, 2).hover()
    expect(page.locator("#vg-tooltip-element")).to_contain_text("<script>alert(1)</script>")
    page.goto(f"/samples?run={runs['nasty samples']}&sample=0")
    output = page.get_by_test_id("stCode").filter(has_text="<script>alert(1)</script> **bold** $x$ `code` :red[no]")
    expect(output.first).to_be_visible()


def test_nasty_names_are_shown_as_they_stand(page, runs):
    page.goto(f"/compare?runs={runs['nasty names']}")
    expect(page.get_by_text("<script>alert(1)</script> **bold** $x$").first).to_be_visible()
    expect(page.locator("strong").filter(has_text="bold").or_(page.locator(".katex"))).to_have_count(0)
    page.goto("/runs")
    page.get_by_role("button", name="Filters").click()
    page.get_by_role("combobox", name="Model").click()
    expect(page.get_by_role("option").filter(has_text="**bold** $x$ `code`")).to_be_visible()
    expect(page.locator("strong").filter(has_text="bold").or_(page.locator(".katex"))).to_have_count(0)


def test_a_link_to_a_run_that_is_not_there_is_a_sentence_and_the_page_stays_up(page, runs):
    page.goto("/causal_map?run=../../etc/passwd")
    expect(page.get_by_text("There is no such run in this store.")).to_be_visible()
    expect(heatmap(page, "mean over 4 pairs")).to_be_visible()


def test_a_broken_artifact_is_a_sentence(page, runs):
    page.goto(f"/causal_map?run={runs['broken']}")
    expect(page.get_by_text("This part of the run cannot be read.")).to_be_visible()
    expect(page.get_by_test_id("stException")).to_have_count(0)


def test_an_empty_store_is_a_sentence(browser, serve, tmp_path):
    store = Store(f"sqlite:///{tmp_path}/mlflow.db")
    with serve(command(store), "/_stcore/health") as address, window(browser, address) as page:
        page.goto("/runs")
        expect(page.get_by_text("There are no runs in this store yet")).to_be_visible()
        log_accuracy(store, hops=[1])
        expect(page.get_by_text("1 row", exact=True)).to_be_visible()  # a live store shows by itself


def test_a_run_that_appears_while_the_page_is_open_is_listed(page, store, runs):
    page.goto("/runs?text=appears-later")
    expect(page.get_by_text("0 rows")).to_be_visible()
    with store.start("appears-later", "appears-later", kind="accuracy") as study:
        expect(page.get_by_text("1 row", exact=True)).to_be_visible()
        page.goto(f"/runs?runs={study.run_id}")
        expect(page.get_by_text("This run has not finished.")).to_be_visible()
    expect(page.get_by_text("This run has not finished.")).to_have_count(0)


def test_a_choice_made_while_another_run_begins_is_not_lost(page, store, runs):
    page.goto("/runs?sort=oldest+first")
    expect(page.get_by_text(re.compile(r"^\d+ rows$")).first).to_be_visible()
    for row in range(2):
        with store.start("begins", "begins", kind="accuracy"):
            grid_row(page, row)  # on the table as it was before
            page.wait_for_function(f"() => new URL(location.href).searchParams.getAll('runs').length == {row + 1}")
    expect(page.get_by_text("Cells of the selected studies")).to_be_visible()


def test_a_sample_chosen_while_more_are_written_is_not_lost(page, store):
    shape = {"model": "tiny", "hops": 3, "seq_len": 5}
    with store.start("accuracy", "writes", kind="accuracy") as study, study.cell("a cell", shape) as cell:
        cell.append_jsonl("samples.jsonl", make_samples(3))
        page.goto(f"/samples?run={cell.run_id}")
        expect(page.get_by_text("3 of 3 samples: 3 correct")).to_be_visible()
        for row in range(3):
            cell.append_jsonl("samples.jsonl", make_samples(1))
            grid_row(page, row)  # on the table as it was before
            page.wait_for_url(f"**sample={row}*")
            expect(page.get_by_role("heading", name=f"Sample {row}")).to_be_visible()


def test_a_page_follows_a_store_behind_a_server(browser, serve, tmp_path, uri, monkeypatch):
    """A real MLflow server: what is new and what goes on are seen through it, too."""
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # half of its processes

    def server(port: int) -> list[str]:
        mlflow = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"]
        return [*mlflow, f"--backend-store-uri={uri}", f"--artifacts-destination={tmp_path}/artifacts"]

    with serve(server, "/health") as address:
        store = Store(address)
        with serve(command(store), "/_stcore/health") as dashboard, window(browser, dashboard) as page:
            page.goto("/runs")
            expect(page.get_by_text("There are no runs in this store yet")).to_be_visible()
            with store.start("accuracy", "goes on", kind="accuracy") as study:
                expect(page.get_by_text("1 row", exact=True)).to_be_visible()
                page.goto(f"/samples?run={study.run_id}")
                with study.cell("a cell", {"model": "tiny", "hops": 3, "seq_len": 5}) as cell:
                    expect(page.get_by_text("This run has not finished.")).to_be_visible()
                    cell.append_jsonl("samples.jsonl", make_samples(3))
                expect(page.get_by_text("3 of 3 samples: 3 correct")).to_be_visible()
            expect(page.get_by_text("This run has not finished.")).to_have_count(0)


def test_a_dashboard_on_all_addresses_starts_no_process(browser, store, runs, serve):
    with (
        serve(command(store, "--server.address=0.0.0.0"), "/_stcore/health") as address,
        window(browser, address) as page,
    ):
        page.goto(f"/rerun?run={runs['real']}&pair=1")
        expect(page.get_by_text("Runs cannot be started from here: the dashboard listens on 0.0.0.0")).to_be_visible()
        expect(page.get_by_role("button", name="Run it")).to_be_disabled()


def test_a_pair_is_asked_again_here(page, store, runs):
    page.goto(f"/rerun?run={runs['real']}&pair=1&component=mlp&layers=0-2")
    page.get_by_role("button", name="Run it").click()
    expect(page.get_by_role("button", name="Stop the run")).to_be_enabled()
    expect(page.get_by_role("heading", name="New map and logged map")).to_be_visible(timeout=120_000)
    expect(page.get_by_test_id("stVegaLiteChart")).to_contain_text("logged")
    expect(page.get_by_text("A and B have different components (mlp and residual_stream)")).to_be_visible()
    page.wait_for_url("**new=*")
    again = store.load_run(page.url.rpartition("new=")[2][:32])
    assert (again.tags["debug.rerun_of"], again.status) == (runs["real"], "FINISHED")
    assert again.pairs == store.load_run(runs["real"]).pairs[1:]


def test_a_rerun_can_be_stopped(page, runs):
    """The button stays where it is while all around it comes and goes: once it moved and the click missed it."""
    page.goto(f"/rerun?run={runs['long']}&many=20&component=attention_heads&positions=all&layers=0-5")
    button = page.get_by_role("button", name="Stop the run")
    expect(button).to_be_disabled()
    before = button.bounding_box()
    page.get_by_role("button", name="Run it").click()
    expect(button).to_be_enabled()
    assert button.bounding_box() == before
    button.click()
    expect(page.get_by_text("Stopped. The finished pairs are in the store")).to_be_visible()
    expect(page.get_by_role("button", name="Run it")).to_be_enabled()
    assert button.bounding_box() == before


def test_the_dark_theme_follows_the_reader(browser, address, runs):
    with window(browser, address, color_scheme="dark") as page:
        page.goto(f"/causal_map?run={runs['causal']}&pair=0")
        expect(heatmap(page, "residual_stream · pair 0")).to_be_visible()
        background = page.locator(".stApp").evaluate("element => getComputedStyle(element).backgroundColor")
        assert max(map(int, re.findall(r"\d+", background)[:3])) < 60
        title = heatmap(page, "residual_stream · pair 0").locator(".role-title-text text").first
        colour = title.evaluate("element => getComputedStyle(element).fill")
        assert min(map(int, re.findall(r"\d+", colour)[:3])) > 180


@pytest.mark.parametrize("width", [1280, 800])
def test_nothing_is_wider_than_the_page(page, runs, width):
    page.set_viewport_size({"width": width, "height": 1200})
    for path in (
        f"/?runs={runs['causal']}",
        f"/compare?runs={runs['accuracy']}",
        f"/causal_map?run={runs['causal']}&pair=0",
    ):
        page.goto(path)
        expect(page.get_by_test_id("stDataFrame").or_(page.get_by_test_id("stVegaLiteChart")).first).to_be_visible()
        main = page.get_by_test_id("stMain")
        assert main.evaluate("element => element.scrollWidth <= element.clientWidth")
