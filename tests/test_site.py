"""A store as a static site: what is written, what is refused, and what a reader sees of it in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import synthetic
from debug import training
from debug.causal_visualization.programs import program_graph
from debug.commands import site as command
from debug.errors import InputError
from debug.generators import make_variable_binding_program
from debug.kinds import Json
from debug.programs import Program
from debug.site import Limits, SiteError, measure_checkpoints, write_site, writing
from debug.site.blocks import Files, key, states
from debug.site.checkpoints import Checkpoints, Said
from debug.site.training import EXAMPLE
from debug.tracking import Store

NASTY = synthetic.NASTY.replace("\x00", "")  # which no database keeps
VIEWS = ["graph", "programs", "trajectory", "answers", "statistics", "comparison", "logits", "heads", "subspaces"]


def data(folder: Path, name: str) -> Json:
    """What a data file of a site hands over."""
    text = (folder / "data" / f"{name}.js").read_text("ascii")
    match = re.fullmatch(r"debugSite\.put\((\"[^\"]*\"),(\".*\")\);\n", text)
    assert match is not None
    assert json.loads(match[1]) == name
    return json.loads(json.loads(match[2]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    """Accuracy, maps over tokens and over heads, a knockout, an estimate, a failed study, a training run's checkpoints;
    texts in it try to be HTML."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copy(empty_database, folder / "mlflow.db")
    made = Store(f"sqlite:///{folder}/mlflow.db")
    tokens = [NASTY[:30], *synthetic.TOKENS[1:]]
    synthetic.log_accuracy(made, NASTY)
    synthetic.log_causal(made, [synthetic.make_map(pair, tokens) for pair in range(3)], model=NASTY[:100])
    synthetic.log_causal(made, [synthetic.make_map(pair, heads=2) for pair in range(3)])
    synthetic.log_causal(made, [synthetic.make_knockout(pair) for pair in range(4)])
    synthetic.log_causal(made, [synthetic.make_estimate()])
    with (
        pytest.raises(ZeroDivisionError),
        made.start("broken", NASTY[:80], kind="accuracy") as run,
        run.cell("cell", {"model": "tiny", "hops": 1, "seq_len": 5, "__proto__": NASTY[:90]}),
    ):
        raise ZeroDivisionError(NASTY)
    small = training.Settings(
        steps=6, naming_steps=3, tokens_per_step=256, n_layers=2, log_every=1, evaluate_every=3, save_every=6
    )
    with made.start("training", "tiny · training", kind="training") as run:
        for step, metrics in training.train(small, run.folder, training.first_pairs({(1, 5): 10, (2, 5): 10})):
            run.log_metrics(metrics, step)
    return made


@pytest.fixture(scope="module")
def site(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site of that store, without what checkpoints answer."""
    return write_site(store, tmp_path_factory.mktemp("site") / "out", title=NASTY, limits=Limits(5, 2)).parent


@pytest.fixture(scope="module")
def measured(store: Store, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after its checkpoints were asked and traced (``site`` is written before)."""
    return write_site(store, tmp_path_factory.mktemp("measured") / "out", limits=Limits(3, 1), measure=3).parent


def test_every_data_file_hands_over_json_in_which_nothing_ends_a_script(site: Path) -> None:
    files = list((site / "data").rglob("*.js"))
    assert len(files) > 20
    for file in files:
        assert "<" not in file.read_text("ascii")
        assert data(site, file.relative_to(site / "data").with_suffix("").as_posix())
    index = data(site, "index")
    assert index["title"] == NASTY[:200]
    assert len(index["studies"]["id"]) == 7
    assert len({len(column) for column in index["studies"].values()}) == 1


def test_a_study_has_its_numbers_and_each_cell_its_maps_pairs_and_samples(store: Store, site: Path) -> None:
    studies, problems = writing.read(store)
    assert problems == []
    [(study, cells)] = [(study, cells) for study, cells in studies if study.name == "tiny · accuracy"]
    page = data(site, f"runs/{study.run_id}")
    rows = next(block["table"] for block in page["blocks"] if "table" in block and "details" not in block)
    assert [row[rows["columns"].index("accuracy")] for row in rows["rows"]] == ["90.0% [80.0, 95.0] (n=60)"] * 3
    assert rows["links"] == [f"runs/{cell.run_id}" for cell in cells]
    assert any("chart" in block for block in page["blocks"])
    samples = data(site, f"bundles/samples/{cells[0].run_id}")
    assert len(samples) == 5  # as the limits say, of 60
    assert NASTY in [block.get("pre") for block in samples[0]["blocks"]]
    [traced, *_] = [cells for study, cells in studies if study.kind == "causal_tracing"][-1]
    chosen = [block["choose"] for block in data(site, f"runs/{traced.run_id}")["blocks"] if "choose" in block]
    assert [len(each["options"]) for each in chosen] == [2, 3]  # maps of two pairs; the programs of all three
    drawn = data(site, f"maps/{traced.run_id}/1")["blocks"][0]["chart"]
    assert len(max(drawn["datasets"].values(), key=len)) == 7 * 23  # layers x token positions


def test_a_state_table_is_what_the_lines_leave_behind() -> None:
    assert states("x = 2\nif x > 1:\n    x += 3\ny = [x]\n#x: ") == {
        "names": ["x", "y"],
        "rows": [
            [1, "x = 2", "2", ""],
            [2, "if x > 1:", "2", ""],
            [3, "    x += 3", "5", ""],
            [4, "y = [x]", "5", "[5]"],
        ],
    }
    assert states("Box 1 has the apple.") is None
    assert states("while True:\n    pass\nprint(1)") is None


@pytest.mark.parametrize("what", ["a file", "a folder of others", "a site with more in it", "a link", "a site"])
def test_what_is_not_ours_to_replace_is_refused(what: str, site: Path, tmp_path: Path, uri: str) -> None:
    out, says = tmp_path / "out", "is no site that debug site wrote"
    match what:
        case "a file":
            out.write_text("mine")
        case "a folder of others":
            (out / "index.html").mkdir(parents=True)
        case "a link":
            out.symlink_to(site)
        case _:
            shutil.copytree(site, out)
            says = "--force replaces it"
            if what == "a site with more in it":
                (out / ".git").mkdir()
                says = r"holds more than a site \(\.git\)"
    before = sorted(tmp_path.rglob("*"))
    for force in (False, *([True] if what != "a site" else [])):
        with pytest.raises(SiteError, match=says):
            write_site(Store(uri), out, force=force)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_site_is_replaced_only_when_the_new_one_is_whole(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, store = tmp_path / "sites" / "out", Store(uri)
    synthetic.log_accuracy(store)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "list_of_maps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_site(store, out)
    assert list(out.parent.iterdir()) == []
    write_site(store, out)
    synthetic.log_accuracy(store)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "list_of_maps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_site(store, out, force=True)
    assert len(data(out, "index")["studies"]["id"]) == 1
    write_site(store, out, force=True)
    assert len(data(out, "index")["studies"]["id"]) == 2
    assert list(out.parent.iterdir()) == [out]


def test_the_command_writes_and_says_what_to_open(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database, out = uri.removeprefix("sqlite:///"), tmp_path / "out"
    command.main(command.parser().parse_args([database, str(out), "--title", "Mine", "--samples", "3"]))
    assert capsys.readouterr().out == f"open {out / 'index.html'}\n"
    assert data(out, "index")["title"] == "Mine"
    with pytest.raises(InputError, match="--samples is -1"):
        command.main(command.parser().parse_args([uri, str(out), "--samples", "-1"]))
    with pytest.raises(SiteError, match="there is no store"):
        command.main(command.parser().parse_args([str(tmp_path / "none.db"), str(tmp_path / "other")]))
    assert not (tmp_path / "none.db").exists()
    assert not (tmp_path / "other").exists()


def test_a_view_that_lacks_data_names_the_command_that_makes_them(store: Store, site: Path, measured: Path) -> None:
    [run] = [run for run, _ in writing.read(store)[0] if run.kind == "training"]
    for view in VIEWS:
        before, after = (data(of, f"training/{run.run_id}/{view}")["blocks"] for of in (site, measured))
        assert [block["command"] for block in before if "missing" in block] == [
            "debug site STORE OUT --force --measure 50"
        ]
        assert [block for block in after if "missing" in block] == []
    empty = data(site, "training")["blocks"]
    assert [len(block["links"]) for block in empty if "links" in block] == [9]


def test_checkpoints_are_told_by_their_weights_and_measured_once(store: Store, measured: Path) -> None:
    studies, _ = writing.read(store)
    [run] = [run for run, _ in studies if run.kind == "training"]
    of = Checkpoints(run, [cell for _, cells in studies for cell in cells])
    assert list(of.folders) == [0, 6]
    assert {step: len(cells) for step, cells in of.made_with("accuracy").items()} == {0: 4, 6: 4}  # not those of others
    assert [len(found) for found in of.answers.values()] == [12, 12]
    measure_checkpoints(of, 3)
    assert len(writing.read(store)[0]) == len(studies)


def test_an_answer_is_one_of_five_kinds() -> None:
    program = "i = 8\ny = 4\nz = 2\nx = z\n#x: "

    def outcome(answer: str | None) -> str:
        return Said(program, answer, answer == "2", 2, 3, 4, "2").outcome

    assert [outcome(answer) for answer in ("2", "8", "4", "7", None)] == [
        "right",
        "wrong: number on line 1 or 2",
        "wrong: number on line 1 or 2",
        "wrong: not in the program",
        "no answer",
    ]
    assert Said("a = 1\nb = 2\nc = 3\n#a: ", "3", False, 1, 1, 3, "1").outcome == "wrong: other number of the program"


def test_a_runs_id_is_safe_in_a_file_name() -> None:
    assert key("0" * 32) == "0" * 32
    assert re.fullmatch("[0-9a-f]{32}", key("../../etc"))


@pytest.fixture
def page(browser) -> Iterator:
    """A page of a browser without a network; no error, dialog or request beyond the disk is let pass."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    opened, bad, asked = context.new_page(), [], []
    opened.on("pageerror", lambda error: bad.append(str(error)))
    opened.on("dialog", lambda dialog: (bad.append("a dialog"), dialog.dismiss()))
    opened.on("request", lambda request: asked.append(request.url))
    opened.asked = asked
    yield opened
    assert bad == []
    assert [url for url in asked if not url.startswith(("file://", "data:", "blob:"))] == []
    context.close()


def test_from_the_disk_a_reader_goes_from_the_list_to_a_map(page, site: Path) -> None:
    page.goto(f"file://{site}/index.html")
    page.wait_for_selector("tbody tr")
    assert page.locator("tbody tr").count() == 7
    assert page.locator("header").inner_text().startswith("<script>alert(1)</script> **bold**")
    names = {url.rpartition("/")[2] for url in page.asked if url.startswith("file")}
    assert names == {"index.html", "site.css", "site.js", "blocks.js", "program.js", "index.js"}  # no Vega, no run
    page.fill("input[type=search]", "alert(1) residual")
    assert page.locator("tbody tr").count() == 1
    assert "q=alert" in page.url
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the link of the one study that is left
    page.wait_for_selector("h2:text('Causal map')")
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.get_by_label("Pair, 2 of 3", exact=True).select_option(label="pair 1")
    page.wait_for_function("document.querySelectorAll('.chosen .chosen svg .mark-rect path').length > 150")
    assert "<script>" in page.locator(".chosen .chosen svg").first.text_content()
    page.go_back()
    page.wait_for_selector("input[type=search]")
    assert page.input_value("input[type=search]") == "alert(1) residual"


def test_the_nine_views_are_drawn_and_steps_can_be_chosen(page, store: Store, measured: Path) -> None:
    [run] = [run for run, _ in writing.read(store)[0] if run.kind == "training"]
    for view in VIEWS:
        page.goto(f"file://{measured}/index.html#/training/{run.run_id}/{view}")
        page.wait_for_selector("main svg.marks")
        assert page.locator("nav.views a[aria-current=page]").count() == 1
    page.goto(f"file://{measured}/index.html#/training/{run.run_id}/statistics")
    page.get_by_role("button", name="Previous").click()
    page.wait_for_selector("text=Accuracy")
    assert "statistics.a=0" in page.url
    page.goto(f"file://{measured}/index.html#/training/{run.run_id}/programs")
    page.locator("main svg").first.get_by_label("label: program 12: 4 hops").last.click()
    label = page.locator("select").evaluate("box => box.selectedOptions[0].text")
    assert label.startswith("program 12: 4 hops")
    page.wait_for_selector("table.states")


def test_the_graph_of_a_typed_program_is_the_one_that_python_draws(page, site: Path) -> None:
    page.goto(f"file://{site}/index.html")
    page.wait_for_selector("tbody tr")
    texts = [make_variable_binding_program(n, np.random.RandomState(n))[0] for n in (1, 3, 9, 17)]
    for text in (EXAMPLE, *texts, "a = 1\na = 2\nb = a\n#a: ", f"{'long' * 10} = -12\n#{'long' * 10}: "):
        drawn = page.evaluate(
            "async text => debugProgram.graph(await debugSite.load('graph'), debugProgram.parse(text))", text
        )
        expected = json.loads(json.dumps(program_graph(Program.parse(text)).to_dict()))
        assert [sorted(map(str, rows)) for rows in datasets(drawn)] == [
            sorted(map(str, rows)) for rows in datasets(expected)
        ]
        assert [without_data(layer) for layer in drawn["layer"]] == [without_data(layer) for layer in expected["layer"]]
        assert (drawn["width"], drawn["height"]) == (expected["width"], expected["height"])
    for wrong in ("a = b\n#a: ", "a = 1", "a + 1\n#a: ", "a = 01\n#a: ", "a = 1\n#b: "):
        assert page.evaluate(
            "text => { try { debugProgram.parse(text) } catch (error) { return error.message } }", wrong
        )


def datasets(spec: dict[str, Json]) -> list[list[Json]]:
    """The rows of the edges, and of the nodes."""
    return [[dict(sorted(row.items())) for row in spec["datasets"][spec["layer"][at]["data"]["name"]]] for at in (0, 1)]


def without_data(layer: dict[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in layer.items() if name != "data"}


def test_the_first_view_of_ten_thousand_studies_takes_less_than_two_seconds(page, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "out")
    index = data(site, "index")
    columns = {name: (column * 1500)[:10_000] for name, column in index["studies"].items()}
    Files(tmp_path / "out" / "data").put("index", index | {"studies": columns})
    page.goto(f"file://{tmp_path}/out/index.html")
    page.wait_for_selector("tbody tr")
    seconds = page.evaluate("performance.now() / 1000")
    assert page.locator("tbody tr").count() == 50
    assert "10,000 of 10,000 studies" in page.locator("p[role=status]").inner_text()
    assert seconds < 2
    page.get_by_role("button", name="Show more").click()
    assert page.locator("tbody tr").count() == 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_cuts_nothing_off_in_either_theme(browser, scheme: str, store: Store, measured: Path) -> None:
    context = browser.new_context(viewport={"width": 800, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    cells = [cells[0] for study, cells in writing.read(store)[0] if study.kind == "causal_tracing"]
    [run] = [run for run, _ in writing.read(store)[0] if run.kind == "training"]
    names = ["", "accuracy", "maps", "about", *(f"runs/{cell.run_id}" for cell in cells)]
    for name in (*names, f"training/{run.run_id}/comparison", f"training/{run.run_id}/trajectory"):
        page.goto(f"file://{measured}/index.html#/{name}")
        page.wait_for_selector("h1")
        if name.startswith(("runs", "accuracy")):
            page.wait_for_selector("svg.marks .role-axis-label text")
            ink = page.locator("svg.marks .role-axis-label text").first.evaluate("text => getComputedStyle(text).fill")
            assert ink == ("rgb(34, 34, 42)" if scheme == "light" else "rgb(232, 232, 238)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 800
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    context.close()


def test_a_page_that_is_not_there_says_so(page, site: Path) -> None:
    for address in ("runs/none", "../../etc/passwd", "bundles/samples/none/1"):
        page.goto(f"file://{site}/index.html#/{address}")
        page.wait_for_selector("h1:text('Not found')")
        page.evaluate("history.replaceState(null, '', location.pathname)")
