"""The dashboard's pages, run without a browser, on stores that are made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from debug.legacy import import_results
from debug.tracking import Store
from synthetic import NASTY, PROGRAM, log_accuracy, log_causal, make_map
from test_legacy import grid, written

APP = Path(__file__).parents[1] / "dashboard" / "app.py"


@pytest.fixture(scope="module")
def store_of_module(tmp_path_factory) -> Store:
    """A database takes seconds to make; tests log into one and look at their own runs."""
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def store(store_of_module, monkeypatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_of_module.uri)
    st.cache_data.clear()  # the table of runs may be some seconds old
    return store_of_module


def opened(**query: str) -> AppTest:
    """The page at a URL; whatever happens on it, no exception reaches the reader."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def sentences(app: AppTest) -> str:
    return "\n".join(element.value for element in [*app.error, *app.info])


def literal(app: AppTest) -> str:
    return "\n".join(code.value for code in app.code)


def charts(app: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in app.get("vega_lite_chart")]


def title_of(chart: dict) -> str:
    return chart["title"]["text"]


def test_an_empty_store_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    app = opened()
    assert "no runs in this store" in sentences(app)
    assert str(tmp_path) in literal(app)
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_opened_says_so(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text("this is no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    app = opened()
    assert "store cannot be read" in sentences(app)
    assert "no SQLite database" in literal(app)


def test_the_command_line_chooses_the_store(store, tmp_path, monkeypatch):
    log_accuracy(store)
    monkeypatch.setattr("sys.argv", ["dashboard/app.py", "--tracking-uri", f"sqlite:///{tmp_path}/other.db"])
    assert "other.db" in literal(opened())


def test_the_newest_run_is_shown_first_and_the_url_names_it(store):
    log_accuracy(store)
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    app = opened()
    assert app.query_params["run"] == run_id
    assert run_id in literal(app)


def test_a_causal_run_shows_the_mean_over_its_pairs_and_its_samples(store):
    app = opened(run=log_causal(store, [make_map(pair) for pair in range(3)]))
    assert [title_of(chart) for chart in charts(app)] == ["residual_stream · mean over 3 pairs"] * 2
    runs, metrics, params, samples = (table.value for table in app.dataframe)
    assert runs["name"].to_list()[0] == "tiny · 3 hops · 5 lines · residual_stream"
    assert metrics["metric"].to_list() == ["pairs_used", "patch_success_rate"]
    assert metrics["from"].to_list()[1] == 0.28
    assert dict(zip(params["parameter"], params["value"], strict=True))["hops"] == "3"
    assert samples["program"].to_list()[0] == PROGRAM.replace("\n", " ⏎ ")


def test_a_link_holds_the_pair_and_the_metric(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    app = opened(run=run_id, pair="2", metric="logit_diff")
    (chart,) = charts(app)
    assert title_of(chart).startswith("residual_stream · pair 2")
    assert "logit_diff" in chart["layer"][0]["encoding"]["color"]["field"]
    assert any(code.value == f"{PROGRAM}8" for code in app.code)
    app.selectbox(key="pair").select("1").run()
    assert app.query_params["pair"] == "1"
    assert app.query_params["metric"] == "logit_diff"
    app.selectbox(key="pair").select("mean").run()
    assert not app.exception
    assert app.query_params["metric"] == "normalized_logit_diff"


def test_a_link_to_a_pair_that_is_not_there_says_so(store):
    app = opened(run=log_causal(store, [make_map()]), pair="7", metric="<b>")
    assert {"7", "<b>"} <= {code.value for code in app.code}
    assert title_of(charts(app)[0]).endswith("mean over 1 pair")


def test_a_map_with_heads_is_shown_at_a_target(store):
    app = opened(run=log_causal(store, [make_map(heads=4)]), pair="0", target="final")
    assert [title_of(chart).split(" · ")[:2] for chart in charts(app)] == [["attention_heads", "final"]]


def test_an_imported_run_is_shown_with_its_own_metrics(store, tmp_path):
    folder = written(grid(), tmp_path / "e" / "20250101_120000" / "Qwen_Qwen3-4B")
    (imported,) = import_results(folder, store.uri)
    app = opened(run=imported.run_ids[0])
    assert [title_of(chart) for chart in charts(app)] == ["residual_stream · mean over 1 pair"] * 2
    app = opened(run=imported.run_ids[0], pair="0", metric="legacy_normalized_logit_difference")
    (chart,) = charts(app)
    assert chart["layer"][0]["encoding"]["color"]["title"] == "legacy normalized logit difference"
    assert not [option for option in app.selectbox(key="metric").options if option == "normalized logit difference"]
    flat = [{"layer_idx": 0, "token_pos": at, "success_rate": 1.0} for at in range(3)]
    (imported,) = import_results(written(flat, tmp_path / "flat", "patch_results.json"), store.uri)
    assert "were not recorded" in sentences(opened(run=imported.run_ids[0], metric="legacy_success_rate"))


def test_a_study_shows_the_accuracy_of_its_cells(store):
    app = opened(run=log_accuracy(store)[0])
    (chart,) = charts(app)
    assert chart["layer"][0]["encoding"]["x"]["field"] == "hops"


@pytest.mark.parametrize("run", ["0" * 32, "../../etc/passwd", "'; DROP TABLE runs", "**x**", " "])
def test_a_run_that_is_not_there_is_a_sentence(store, run):
    log_accuracy(store)
    app = opened(run=run)
    assert "This run cannot be read" in sentences(app)
    assert len(app.dataframe) == 1


def test_a_failed_run_is_shown_as_one_with_its_error(store):
    with (
        pytest.raises(ValueError, match="bold"),
        store.start("causal", "fails", kind="causal_tracing") as study,
        study.cell("a cell", {"model": "tiny"}) as cell,
    ):
        raise ValueError(NASTY.replace("\x00", ""))
    app = opened(run=cell.run_id)
    assert "This run failed" in sentences(app)
    assert "no causal maps" in sentences(app)
    assert "<script>alert(1)</script> **bold** $x$" in literal(app)


def test_an_unfinished_run_is_shown_as_one(store):
    with store.start("causal", "goes on", kind="causal_tracing") as study:
        assert "has not finished" in sentences(opened(run=study.run_id))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("causal_maps/00000.safetensors", b"no such thing", "safetensors"),
        ("samples.jsonl", b'{"seed": 1}\n', "'seq_len' is missing"),
        ("samples.jsonl", b"\xff\xfe", "no JSON"),
    ],
)
def test_a_broken_file_is_a_sentence_and_the_rest_is_shown(store, file, content, said):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    store.load_run(run_id).artifact(file).write_bytes(content)
    app = opened(run=run_id)
    assert "This part of the run cannot be read" in sentences(app)
    assert said in literal(app)
    assert len(app.dataframe) + len(charts(app)) >= 4


def test_missing_files_are_sentences(store):
    run_id = log_causal(store, [make_map()])
    for name in ("causal_maps/00000.safetensors", "samples.jsonl"):
        store.load_run(run_id).artifact(name).unlink()
    said = sentences(opened(run=run_id))
    assert "no causal maps" in said
    assert "no samples" in said


def test_a_map_whose_program_is_missing_is_shown_without_it(store):
    run_id = log_causal(store, [make_map(pair=5)])
    app = opened(run=run_id, pair="0")
    assert "not among the programs" in sentences(app)
    assert len(charts(app)) == 1


def test_text_of_a_store_is_never_markdown(store):
    """Names, params, outputs and errors go where text is shown as it stands: tables, code blocks and charts."""
    with store.start(NASTY[:80], NASTY, kind="accuracy") as study, study.cell(NASTY, {"model": NASTY}) as cell:
        cell.log_metrics({"accuracy": 0.5})
        cell.append_jsonl("samples.jsonl", [])
    for run in [study.run_id, cell.run_id, *log_accuracy(store, NASTY, hops=[1])]:
        app = opened(run=run)
        written = [*app.markdown, *app.caption, *app.title, *app.subheader, *app.error, *app.info]
        assert not [element.value for element in written if "bold" in element.value]
