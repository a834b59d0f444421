"""The dashboard's pages, run without a browser, on stores that are made by hand."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import get_type_hints

import numpy as np
import polars as pl
import pytest
import streamlit as st
from streamlit import config
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from debug.causal_map import mean_over_pairs, save_tensors
from debug.causal_visualization import visible
from debug.commands import rerun
from debug.commands.worker import Worker
from debug.core import parse_last_integer
from debug.legacy import import_results
from debug.options import OneOf, given, named
from debug.plan import Plan
from debug.provenance import files_digest
from debug.statistics import paired_means, wilson
from debug.tracking import RunTable, Store
from present import present
from synthetic import NASTY, PROGRAM, TOKENS, log_accuracy, log_causal, make_estimate, make_map, with_likeliest
from test_legacy import SAMPLE, grid, written

# It reads the metadata of every installed package at each start of an app, most of a second.
manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)

APP = Path(__file__).parents[1] / "dashboard" / "app.py"
PAGES = ("home", "study", "runs", "compare", "causal_map", "samples", "tryit", "rerun", "training")


@pytest.fixture(scope="module")
def store_of_module(tmp_path_factory) -> Store:
    """A database takes seconds to make; tests log into one and look at their own runs."""
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def store(store_of_module, monkeypatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_of_module.uri)
    monkeypatch.setattr(Worker, "warm", lambda _: None)
    st.cache_resource.clear()
    return store_of_module


def opened(page: str = "runs", **query: str | list[str]) -> AppTest:
    """A page at a URL; whatever happens on it, no exception reaches the reader."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    if page != "home":
        app.switch_page(f"{page}.py")
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def url(app: AppTest, name: str) -> str | None:
    value = app.query_params.get(name)
    return (value[0] if isinstance(value, list) else value) if value else None


def sentences(app: AppTest) -> str:
    return "\n".join(element.value for element in [*app.error, *app.info, *app.warning])


def captions(app: AppTest) -> str:
    return "\n".join(element.value for element in app.caption)


def literal(app: AppTest) -> str:
    return "\n".join(code.value for code in app.code)


def charts(app: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in app.get("vega_lite_chart")]


def titles(app: AppTest) -> list[str]:
    return [chart["title"]["text"] for chart in charts(app) if "title" in chart]


# --- any page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if page != "tryit"])
def test_an_empty_store_is_a_sentence_and_nothing_is_created(page, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    app = opened(page)
    assert "no runs in this store" in sentences(app)
    assert str(tmp_path) in literal(app)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["this is no database", "SQLite format 3\0, and then nothing that is one"])
@pytest.mark.parametrize("page", ["runs", "causal_map"])
def test_a_store_that_cannot_be_opened_is_a_sentence(page, content, tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text(content)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert "store cannot be read" in sentences(opened(page))


def test_a_store_that_is_written_to_all_the_time_keeps_no_page_from_being_drawn(store, monkeypatch):
    log_accuracy(store)
    refresh = RunTable.refresh

    def changed(table: RunTable) -> bool:
        refresh(table)
        table.frame = table.frame.clone()
        return True

    monkeypatch.setattr(RunTable, "refresh", changed)
    assert len(opened().dataframe[0].value)


def test_the_command_line_chooses_the_store(store, tmp_path, monkeypatch):
    log_accuracy(store)
    monkeypatch.setattr("sys.argv", ["dashboard/app.py", "--tracking-uri", f"sqlite:///{tmp_path}/other.db"])
    assert "other.db" in literal(opened())


@pytest.mark.parametrize("run", ["0" * 32, "../../etc/passwd", "'; DROP TABLE runs", "**x**", " ", "<script>"])
@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("home", "tryit")])
def test_a_run_that_is_not_there_is_a_sentence(page, run, store):
    log_causal(store, [make_map()])
    app = opened(page, **{"training" if page == "training" else "run": run, "runs": [run], "with": run})
    if page in ("runs", "compare"):
        assert "not in this store" in sentences(app)
    elif page != "training":  # there is no training run at all
        assert "There is no such run in this store" in sentences(app)
    shown = [*app.markdown, *app.caption, *app.error, *app.info]
    assert not [element.value for element in shown if run.strip() and run in element.value]


def test_text_of_a_store_is_never_markdown(store):
    """Names, params, outputs and errors go where text is shown as it stands: tables, code blocks and charts."""
    with store.start(NASTY[:80], NASTY, kind="accuracy") as study, study.cell(NASTY, {"model": NASTY}) as cell:
        cell.log_metrics({"accuracy": 0.5})
        cell.append_jsonl("samples.jsonl", [])
    ids = [study.run_id, cell.run_id, *log_accuracy(store, NASTY, hops=[1])]
    for page, query in [
        ("runs", {"runs": ids}),
        ("compare", {"runs": ids}),
        ("samples", {"run": ids[-1], "sample": "0"}),
    ]:
        app = opened(page, **query)
        written_as_markdown = [*app.markdown, *app.caption, *app.title, *app.subheader, *app.error, *app.info]
        assert not [element.value for element in written_as_markdown if "bold" in element.value]
        labels = [widget.label for widget in [*app.selectbox, *app.multiselect, *app.button]]
        assert not [label for label in labels if "bold" in label]


def test_runs_of_somebody_elses_code_are_shown_as_far_as_they_go(store):
    client = store.client
    run = client.create_run(client.create_experiment("theirs"), run_name="a run of theirs")
    client.log_metric(run.info.run_id, "loss", float("nan"))
    client.log_param(run.info.run_id, "hops", "many")
    client.log_metric(run.info.run_id, "accuracy", 7.5)
    app = opened(runs=[run.info.run_id])
    assert "was not logged by this project" in sentences(app)
    for page in PAGES:
        opened(page, run=run.info.run_id, runs=[run.info.run_id])


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_studies_fold_their_cells(store):
    study, *cells = log_accuracy(store, hops=[1, 2, 4])
    folded = opened(text=study[:8], columns=["cells", "params.hops", "metrics.accuracy"])
    (table,) = folded.dataframe
    assert table.value["cells"].to_list() == [3]
    assert table.value["params.hops"].to_list() == ["1, 2, 4"]
    unfolded = opened(runs=[study])
    assert unfolded.dataframe[1].value["params.hops"].to_list() == ["1", "2", "4"]
    for table, columns in ((folded.dataframe[0], ("lowest", "highest")), (unfolded.dataframe[1], ["metrics.accuracy"])):
        for column in columns:  # a rate never without its interval and n
            assert set(table.value[column]) == {" 90.0% [80.0, 95.0] n=60"}
    assert url(unfolded, "runs") == study
    flat = opened(rows="cells", text=cells[0][:8])
    assert len(flat.dataframe[0].value) == 1


def test_filters_reach_cells_and_stay_in_the_url(store):
    study, *_ = log_accuracy(store, hops=[7])
    app = opened(hops="7")
    assert len(app.dataframe[0].value) == 1
    app.multiselect(key="hops").set_value([]).run()
    assert len(app.dataframe[0].value) > 1
    assert url(app, "hops") is None
    app.text_input(key="text").set_value(study).run()
    assert len(app.dataframe[0].value) == 1
    assert url(app, "text") == study


def test_the_url_holds_how_runs_are_sorted(store):
    for accuracy in (0.25, 0.5):
        with store.start("sorted", "sorted", kind="accuracy") as study, study.cell("a cell", {"model": "tiny"}) as cell:
            cell.log_metrics({"accuracy": accuracy})
    for rows in ("cells", "studies"):
        app = opened(rows=rows, sort="lowest accuracy")
        column = "metrics.accuracy" if rows == "cells" else "lowest"
        known = app.dataframe[0].value[column].dropna().to_list()
        assert known == sorted(known)
        assert known[0] < known[-1]
        app.selectbox(key="sort").select("highest accuracy").run()
        assert url(app, "sort") == "highest accuracy"
        known = app.dataframe[0].value["metrics.accuracy" if rows == "cells" else "highest"].dropna().to_list()
        assert known == sorted(known, reverse=True)
        assert not app.markdown  # what Streamlit prints of a module's own strings


@pytest.mark.parametrize("day", ["2001-01-01", "no day", "9999-99-99"])
def test_dates_filter_and_broken_ones_are_none(store, day):
    log_accuracy(store)
    shown = (
        len(opened(until=day).dataframe[0].value) if day == "2001-01-01" else len(opened(since=day).dataframe[0].value)
    )
    assert (shown == 0) == (day == "2001-01-01")


def test_failed_and_unfinished_runs_are_visible_as_such(store):
    with (
        pytest.raises(ValueError, match="bold"),
        store.start("causal", "fails", kind="causal_tracing") as study,
        study.cell("a cell", {"model": "tiny"}) as cell,
    ):
        raise ValueError(NASTY.replace("\x00", ""))
    app = opened(runs=[cell.run_id])
    assert "This run failed" in sentences(app)
    assert "<script>alert(1)</script> **bold** $x$" in literal(app)
    assert "failed" in app.dataframe[0].value["status"].to_list()
    with store.start("causal", "goes on", kind="causal_tracing") as study:
        assert "has not finished" in sentences(opened(runs=[study.run_id]))


def test_runs_link_to_the_mlflow_ui_where_it_is_known(store, monkeypatch):
    study, *_ = log_accuracy(store)
    assert not opened(runs=[study]).get("link_button")
    monkeypatch.setattr("sys.argv", ["app.py", "--mlflow-ui", "http://localhost:5000/"])
    (link,) = opened(runs=[study]).get("link_button")
    assert link.proto.url.startswith("http://localhost:5000/#/experiments/")
    assert link.proto.url.endswith(f"/runs/{study}")


# --- Compare ---------------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_hops_and_program_by_program(store):
    right, wrong = log_accuracy(store, hops=[1, 2]), log_accuracy(store, raw_output="3", hops=[1, 2])
    app = opened("compare", runs=[right[0], wrong[0]], first=right[1], second=wrong[1])
    assert len(charts(app)) == 3  # rates, models by hops, slopes
    assert "100.0% no CI (n=1), 1 : 0" in literal(app)  # sixty samples of one program are one program
    assert app.dataframe[0].value["program"].to_list() == [PROGRAM.replace("\n", " ⏎ ")]
    app.selectbox(key="by").select("seq_len").run()
    assert url(app, "by") == "seq_len"
    assert not app.exception


def test_without_a_choice_the_newest_study_is_compared(store):
    log_causal(store, [make_map()])
    study, *_ = log_accuracy(store)
    app = opened("compare")
    assert url(app, "runs") == study


def test_a_study_with_nothing_to_compare_is_passed_over(store):
    study, *_ = log_accuracy(store, hops=[1, 2])
    log_accuracy(store, hops=[1])
    assert url(opened("compare"), "runs") == study


def test_the_two_that_are_compared_at_first_were_asked_programs_of_the_same_shape(store):
    one, other = log_accuracy(store, hops=[1, 2]), log_accuracy(store, hops=[2, 3])
    app = opened("compare", runs=[one[0], other[0]])
    assert (url(app, "first"), url(app, "second")) == (other[1], one[2])  # both of two hops, the newest first


def test_series_are_named_by_what_tells_them_apart(store):
    """The experiment is named only where model, hops and length leave two points alike."""
    studies = []
    for experiment, model in (("first try", "one"), ("second try", "two"), ("third try", "two")):
        with store.start(experiment, experiment, kind="accuracy") as study:
            studies.append(study.run_id)
            for hops in (1, 2):
                with study.cell("a cell", {"model": model, "hops": hops, "seq_len": 5}) as cell:
                    cell.log_metrics({"accuracy": 0.5})

    def series(app: AppTest) -> tuple[list[str], list[str] | None]:
        lines = charts(app)[0]["layer"][0]["encoding"]
        return lines["color"]["scale"]["domain"], lines.get("strokeDash", {"scale": {"domain": None}})["scale"][
            "domain"
        ]

    assert series(opened("compare", runs=studies[:2])) == (["one", "two"], None)
    assert series(opened("compare", runs=studies)) == (["one", "two"], ["first try", "second try", "third try"])


def log_cells(store: Store, *cells: dict[str, object], kind: str = "accuracy", model: str = "tiny") -> str:
    """A study of cells that are params and, among them, an accuracy; 60 programs each."""
    with store.start("grid", f"{model} · grid", kind=kind) as study:
        for params in cells:
            rate = float(str(params["accuracy"]))
            known = {"model": model, "hops": 1, "seq_len": 5, "generator": "variable_binding"} | params
            with study.cell("a cell", {name: value for name, value in known.items() if name != "accuracy"}) as cell:
                cell.log_metrics({"accuracy": rate, "num_samples": 60})
    return study.run_id


def drawn_rows(app: AppTest, number: int) -> pl.DataFrame:
    return pl.read_ipc_stream(app.get("vega_lite_chart")[number].proto.datasets[0].data.data)


def test_models_are_compared_on_the_lengths_that_all_have(store):
    """10% on 17 lines and 90% on 5 are not 50% beside another model's 90% on 5."""
    one = log_cells(store, {"accuracy": 0.9}, {"accuracy": 0.1, "seq_len": 17}, model="one")
    two = log_cells(store, {"accuracy": 0.9}, model="two")
    app = opened("compare", runs=[one, two])
    rows = drawn_rows(app, 1).sort("model")
    assert rows.select("model", "value", "n").rows() == [("one", 0.9, 60), ("two", 0.9, 60)]
    assert "cells with hops and lines that not all models have: 1 (hops 1 · 17 lines)" in literal(app)


def test_no_mean_is_over_prompts_generators_or_kinds_of_run(store):
    asked = [
        {"accuracy": 0.9, "prompt_template": "MINIMAL"},
        {"accuracy": 0.1, "prompt_template": "MINIMAL", "generator": "range"},
        {"accuracy": 0.2, "prompt_template": "FEW"},
    ]
    one = log_cells(store, *asked, model="one")
    two = log_cells(store, {"accuracy": 0.8, "prompt_template": "MINIMAL"}, model="two")
    rows = drawn_rows(app := opened("compare", runs=[one, two]), 1).sort("model")
    assert rows.select("model", "value").rows() == [("one", 0.9), ("two", 0.8)]
    said = literal(app)
    assert "cells with settings that not all models have: 2" in said
    assert "range · prompt MINIMAL" in said
    assert "variable_binding · prompt FEW" in said
    alone = drawn_rows(opened("compare", runs=[one, log_cells(store, {"accuracy": 0.3}, model="one")]), 1)
    assert dict(alone.select("model", "value").iter_rows()) == {
        "one · variable_binding · prompt MINIMAL": 0.9,
        "one · range · prompt MINIMAL": 0.1,
        "one · variable_binding · prompt FEW": 0.2,
        "one · variable_binding · no prompt_template": 0.3,
    }
    other = log_cells(store, {"accuracy": 0.7, "prompt_template": "CHAT"}, model="three")
    assert "no cell in common" in sentences(opened("compare", runs=[one, other]))


def test_a_cell_that_was_run_again_is_not_averaged_with_itself(store):
    before = log_cells(store, {"accuracy": 0.1}, model="one")
    after = log_cells(store, {"accuracy": 0.9}, model="one")
    two = log_cells(store, {"accuracy": 0.5}, model="two")
    rows = drawn_rows(app := opened("compare", runs=[before, after, two]), 1).sort("model")
    assert rows.select("model", "value", "n").rows() == [("one", 0.9, 60), ("two", 0.5, 60)]
    assert "older runs of repeated cells: 1" in literal(app)


@pytest.mark.parametrize("lengths", [(5,), (5, 17)])
def test_two_runs_of_one_grid_are_replicates_with_a_mean(store, lengths):
    """Each was a series of its own, named by the beginning of its run id."""
    studies = [
        log_cells(
            store,
            *({"accuracy": rate, "hops": hops, "seq_len": lines} for hops in (1, 2, 3, 4) for lines in lengths),
        )
        for rate in (0.5, 0.7)
    ]
    app = opened("compare", runs=studies)
    chart = charts(app)[0]
    assert chart["layer"][1]["encoding"]["color"]["scale"]["domain"] == ["tiny"]
    assert "Runs of the same cells (up to 2) are drawn small" in captions(app)
    rows = drawn_rows(app, 0)
    means = rows.filter(~pl.col("replicate"))
    assert means["value"].to_list() == pytest.approx([0.6] * 4 * len(lengths))
    assert means["ci_low"].null_count() == len(means)
    assert means["n"].null_count() == len(means), "both asked the same 60 programs: they are no 120"
    assert set(means["runs"]) == {2}
    assert sorted(rows.filter("replicate")["value"]) == pytest.approx(
        [0.5] * 4 * len(lengths) + [0.7] * 4 * len(lengths)
    )
    assert ("strokeDash" in chart["layer"][0]["encoding"]) == (len(lengths) > 1)
    if len(lengths) > 1:
        assert chart["layer"][0]["encoding"]["strokeDash"]["scale"]["domain"] == ["5", "17"]
        assert "facet" in charts(opened("compare", runs=studies, each="seq_len"))[0]


def test_two_models_slopes_are_of_cells_asked_alike(store):
    one = log_cells(
        store, {"accuracy": 0.9, "prompt_template": "A"}, {"accuracy": 0.1, "prompt_template": "B"}, model="1"
    )
    two = log_cells(store, {"accuracy": 0.8, "prompt_template": "A"}, model="2")
    rows = drawn_rows(opened("compare", runs=[one, two]), 2).sort("run")
    assert rows.select("run", "cell", "value").rows() == [
        ("A: 2", "hops 1 · 5 lines", 0.8),
        ("B: 1", "hops 1 · 5 lines", 0.9),
    ]


def test_the_paired_test_is_of_the_measure_that_is_chosen(store):
    runs = [log_causal(store, [make_map(pair) for pair in range(n)]) for n in (6, 4)]
    query = {"runs": runs, "first": runs[0], "second": runs[1]}
    app = opened("compare", measure="patch_success_rate", **query)
    assert "McNemar" not in captions(app)
    assert "Patch success rate on the same pairs of programs" in captions(app)
    distinct = len({pair.counterfactual for pair in store.load_run(runs[1]).pairs})
    assert str(paired_means([0.0] * distinct, [0.0] * distinct, is_rate=True, bounds=(-1, 1))) in literal(app)


def test_a_causal_runs_accuracy_has_its_own_n(store):
    """Ten programs were asked, three of them patched: 4 of 10 right is not 4 of 3."""
    rate = wilson(4, 10)
    with store.start("causal", "own n", kind="causal_tracing") as study:
        ids = {}
        for name, known in (("now", {"accuracy_n": 10}), ("before", {})):
            with study.cell(name, {"model": name, "hops": 1, "seq_len": 5, "intervention_type": "mlp"}) as cell:
                peak = {"peak_patch_success_rate": 0.5}
                peak |= {"peak_patch_success_rate_n": 2} if known else {}
                cell.log_metrics(rate.metrics("accuracy") | {"pairs_used": 3, **known, **peak})
            ids[name] = cell.run_id
    table = opened(rows="cells", text=study.run_id[:8], runs=[ids["now"]]).dataframe
    shown = table[0].value.set_index("params.model")
    assert dict(shown["metrics.accuracy"]) == {"now": " 40.0% [16.8, 68.7] n=10", "before": " 40.0% [16.8, 68.7]"}
    assert dict(shown["metrics.peak_patch_success_rate"]) == {"now": " 50.0% n=2", "before": " 50.0%"}
    assert dict(zip(table[1].value["metric"], table[1].value["n"], strict=True))["accuracy"] == 10
    assert opened(text=study.run_id[:8]).dataframe[0].value["lowest"].to_list()[0].startswith(" 40.0% [16.8, 68.7]")
    rows = drawn_rows(opened("compare", runs=list(ids.values())), 1)
    assert dict(rows.select("model", "how_many").iter_rows()) == {"now": "n=10", "before": None}


def test_runs_without_a_rate_are_a_sentence(store):
    with store.start("accuracy", "empty", kind="accuracy") as study:
        pass
    assert "None of the selected runs has a metric" in sentences(opened("compare", runs=[study.run_id]))


# --- Causal map ------------------------------------------------------------------------------------------------------


def test_a_causal_run_shows_the_mean_over_its_pairs(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    app = opened("causal_map", run=run_id)
    assert titles(app) == ["residual_stream · mean over 3 pairs"] * 2
    assert (url(app, "pair"), url(app, "metric")) == ("mean", "normalized_logit_diff")


def test_a_cell_of_the_mean_opens_the_pairs_behind_it(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    app = opened("causal_map", run=run_id, target="ref_depth_2_rhs", layer="3", metric="success")
    (table,) = app.dataframe
    assert sorted(table.value["pair"].to_list()) == [0, 1, 2]
    assert table.value["success"].to_list() == [1.0] * 3
    assert "ref_depth_2_rhs at layer 3: success 100.0% [43.9, 100.0] (n=3)" in literal(app)


def test_a_cell_of_a_pair_opens_the_program_with_its_token_marked(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    app = opened("causal_map", run=run_id, pair="2", metric="logit_diff", layer="2", token="6")
    assert titles(app)[0].startswith("residual_stream · pair 2")
    (table,) = app.dataframe
    assert table.value["forward pass"].to_list() == ["clean", "counterfactual", "patched"]
    assert table.value["top token"].to_list() == ["8", "7", "7"]
    assert "i = 8\nx = ⟦i⟧\nh = x" in literal(app)
    assert f"{PROGRAM}8" in literal(app)
    app.selectbox(key="pair").select("1").run()
    assert (url(app, "pair"), url(app, "metric"), url(app, "layer")) == ("1", "logit_diff", "2")


def test_a_cell_has_the_likeliest_tokens_of_the_three_forward_passes(store):
    one = with_likeliest(make_map())
    one = dataclasses.replace(one, vocabulary=one.vocabulary | {17: NASTY})
    where: dict[str, str] = {"pair": "0", "metric": "success", "layer": "2"}
    app = opened("causal_map", run=log_causal(store, [one]), **where, token="6")
    _, table = app.dataframe
    assert table.value["clean"].to_list() == ["8", visible(NASTY), "·"]
    assert table.value["counterfactual"].to_list() == table.value["patched"].to_list() == [visible(NASTY), "8", "·"]
    for name in ("p clean", "p counterfactual", "p patched"):
        assert table.value[name].to_list() == pytest.approx([75, 12.5, 6.25], rel=1e-3)
    app = opened(
        "causal_map", run=log_causal(store, [with_likeliest(make_map(heads=4))]), **where, head="1", at="final"
    )
    assert len(app.dataframe[1].value.columns) == 6
    without = {"top_k": None, "top_k_logs": None, "top_k_columns": []}
    estimated = dataclasses.replace(one, method="attribution", top=np.full_like(one.top, -1), **without)
    app = opened("causal_map", run=log_causal(store, [estimated]), **where | {"metric": "logit_change"}, token="6")
    assert [*app.dataframe[1].value.columns] == ["clean", "p clean", "counterfactual", "p counterfactual"]


def test_a_pair_shows_where_its_heads_look_where_that_was_kept(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(2)])
    assert not [each for each in opened("causal_map", run=run_id, pair="0").toggle if each.key == "attention"]
    weights = np.zeros((6, 4, 4, 23), np.float16)
    weights[..., 0], weights[3, 1, 3, 2] = 0.25, 0.75

    def kept(weights: np.ndarray, last: int) -> None:
        folder = present(store.load_run(run_id)._root) / "attention"
        save_tensors(folder / "00000.safetensors", {"0/weights": weights, "0/queries": np.array([2, 6, 10, last])})
        st.cache_resource.clear()

    kept(weights, 22)
    app = opened("causal_map", run=run_id, pair="0", metric="success", attention="yes")
    assert titles(app)[1:] == [
        "attention from last token to 8 at 2",
        "attention of layer 3, head 1 · from last token (yellow) to all tokens · pair 0, clean forward pass",
    ]
    app.selectbox(key="attention_head").select("2").run()
    app.selectbox(key="attention_to").select("0").run()
    assert (url(app, "attention_layer"), url(app, "attention_head"), url(app, "attention_to")) == ("3", "2", "0")
    assert titles(app)[1] == "attention from last token to i at 0"
    app = opened("causal_map", run=run_id, pair="1", metric="success", attention="yes")
    assert "Attention was kept for the first pairs of this run: 0." in captions(app)
    kept(weights[..., 1:], 21)
    app = opened("causal_map", run=run_id, pair="0", metric="success", attention="yes")
    assert "is of another prompt" in captions(app)
    kept(weights * np.float16(9), 22)
    app = opened("causal_map", run=run_id, pair="0", metric="success", attention="yes")
    assert "attention/00000.safetensors: pair 0: the attention has values that are no shares" in literal(app)
    assert titles(app), "the map is there all the same"


def test_whole_answers_are_said_to_be_what_success_is_of(store):
    one = make_map()
    said = np.full_like(one.top, -1)
    said[2, 6] = 0
    logs = np.zeros((*one.top.shape, 2), np.float32)
    logs[2, 6] = -0.25, -3
    candidates = {"<b>7</b>": 17, "8": 18}
    whole = dataclasses.replace(
        one,
        **{"scored_by": "whole_answer", "said": said, "log_probabilities": logs},
        **{"candidates": candidates, "z_candidates": one.z_patched},
    )
    run_id = log_causal(store, [whole])
    app = opened("causal_map", run=run_id, pair="0", metric="success", layer="2", token="6")
    text = literal(app)
    assert "success: 1.000\n" in text
    assert "answer (whole_answer): <b>7</b>\nlog probability of <b>7</b>: -0.250\nlog probability of 8: -3.000" in text
    assert "the whole counterfactual answer is the most probable one" in captions(app)
    other = opened("causal_map", run=run_id, pair="0", metric="success", layer="3", token="6")
    assert "answer (whole_answer): none of the candidates" in literal(other)
    assert "top token is the counterfactual answer" in captions(opened("causal_map", run=log_causal(store, [one])))


@pytest.mark.parametrize(("layer", "token"), [("99", "6"), ("2", "99"), ("-1", "x"), ("<b>", "1e9"), ("2", "9" * 40)])
def test_a_place_that_is_not_on_the_map_is_no_place(store, layer, token):
    run_id = log_causal(store, [make_map()])
    app = opened("causal_map", run=run_id, pair="0", layer=layer, token=token)
    assert len(app.dataframe) == 0
    opened("causal_map", run=run_id, pair="mean", layer=layer, target=token)


def test_a_link_to_a_pair_that_is_not_there_says_so(store):
    app = opened("causal_map", run=log_causal(store, [make_map()]), pair="7", metric="<b>")
    assert {"7", "<b>"} <= {code.value for code in app.code}
    assert titles(app)[0].endswith("one pair")


def test_a_map_with_heads_is_shown_at_a_target(store):
    app = opened("causal_map", run=log_causal(store, [make_map(heads=4)]), pair="0", at="final", layer="4", head="1")
    assert [title.split(" · ")[:2] for title in titles(app)] == [["attention_heads", "last token"]]
    assert len(app.dataframe) == 1


def test_two_runs_stand_side_by_side_on_one_scale(store):
    one, other = (log_causal(store, [make_map(pair) for pair in range(n)]) for n in (3, 2))
    for pair in ("mean", "1"):
        (chart,) = charts(
            opened(
                "causal_map", run=one, pair=pair, metric="logit_diff" if pair == "1" else "success", **{"with": other}
            )
        )
        scales = [panel["layer"][0]["encoding"]["color"]["scale"]["domain"] for panel in chart["concat"]]
        assert scales[0] == scales[1]
        assert scales[2][0] == -scales[2][1]
        assert chart["concat"][2]["title"]["text"] == "A − B"
    many = log_causal(store, [make_map(pair) for pair in range(9)])
    shared = {pair.counterfactual for pair in store.load_run(other).pairs}
    unshared = next(n for n, pair in enumerate(store.load_run(many).pairs) if pair.counterfactual not in shared)
    app = opened("causal_map", run=many, pair=str(unshared), **{"with": other})
    assert "no map of this pair" in sentences(app)


def test_a_cell_of_two_runs_opens_what_is_behind_it_in_both(store):
    one, other = (log_causal(store, [make_map(pair) for pair in range(n)]) for n in (3, 2))
    place = {"with": other, "layer": "2", "metric": "success"}
    app = opened("causal_map", run=one, target="ref_depth_2_rhs", **place)
    assert [len(table.value) for table in app.dataframe] == [3, 2]
    (chart,) = charts(app)
    assert [panel["layer"][-1]["mark"]["stroke"] for panel in chart["concat"]] == ["#009e73"] * 3
    assert {param["name"] for param in chart["params"]} == {"cell"}
    app = opened("causal_map", run=one, pair="1", token="6", **place)
    passes = ["clean", "counterfactual", "patched"]
    assert [table.value["forward pass"].to_list() for table in app.dataframe] == [passes, passes]
    assert len(opened("causal_map", run=one, pair="1", token="999", **place).dataframe) == 0


def test_two_runs_have_the_same_layer_at_the_same_height(store):
    one, other = log_causal(store, [make_map()]), log_causal(store, [make_map(heads=4)])
    rows = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"] for panel in side_by_side(store, one, other)]
    assert rows == [[*range(6, -1, -1)]] * 2  # heads have no row of the final norm
    shallow = log_causal(store, [make_map(n_layers=4)])
    rows = [panel["layer"][0]["encoding"]["y"]["scale"]["domain"] for panel in side_by_side(store, one, shallow)]
    assert [max(each) for each in rows] == [6, 4]  # one number is a layer here, the final norm there


@pytest.mark.parametrize(
    ("of", "hops", "said"),
    [
        ({"n_layers": 4}, 3, "A and B have different numbers of layers (6 and 4)."),
        ({"heads": 4}, 3, "A and B have different components (residual_stream and attention_heads)."),
        ({}, 2, "A and B have different hops (3 and 2)."),
        ({"n_layers": 4, "heads": 4}, 2, "numbers of layers (6 and 4), different components"),
    ],
)
def test_maps_of_another_depth_component_or_hops_have_no_difference(store, of, hops, said):
    one, other = log_causal(store, [make_map()]), log_causal(store, [make_map(**of)], hops=hops)
    app = opened("causal_map", run=one, **{"with": other})
    assert len(charts(app)[0]["concat"]) == 2
    assert said in sentences(app)
    assert "A − B" not in captions(app)
    same = opened("causal_map", run=one, **{"with": log_causal(store, [make_map()])})
    assert len(charts(same)[0]["concat"]) == 3


def test_a_difference_that_says_nothing_is_refused_where_it_is_drawn():
    from debug.causal_visualization.side_by_side import side_by_side

    maps = [mean_over_pairs([make_map(n_layers=n)]) for n in (6, 4)]
    with pytest.raises(ValueError, match=r"different numbers of layers \(6 and 4\)"):
        side_by_side(maps[0], maps[1], "success", ("one", "other"))


def test_an_attribution_is_called_estimated_wherever_it_is_shown(store):
    run_id, exact = log_causal(store, [make_estimate(n) for n in range(3)]), log_causal(store, [make_map()])
    store.client.log_metric(run_id, "normalized_logit_diff", 0.5)
    app = opened("causal_map", run=run_id)
    assert titles(app) == ["residual_stream, estimated · mean over 3 pairs"] * 2
    assert set(app.selectbox(key="metric").options) == {"estimated normalized logit difference"}
    drawn = json.dumps(charts(app)[0])
    assert '"title": "estimated normalized logit difference"' in drawn
    assert '"normalized logit difference"' not in drawn
    assert all("estimated · " in label for label in app.selectbox(key="run").options if run_id[:8] in label)
    assert not any("estimated · " in label for label in app.selectbox(key="run").options if exact[:8] in label)
    pair = opened("causal_map", run=run_id, pair="0", layer="2", token="6")
    assert titles(pair)[0].startswith("residual_stream, estimated · pair 0")
    assert "estimated normalized logit difference: 0" in literal(pair)
    assert "estimated_normalized_logit_diff" in drawn_rows(pair, 0).columns
    beside = opened("causal_map", run=run_id, pair="0", **{"with": exact})
    named = [panel["title"]["text"] for panel in charts(beside)[0]["concat"]]
    assert (named[0].endswith(", estimated"), named[1].endswith(", estimated")) == (True, False)
    cells = opened(rows="cells", text=run_id[:8]).dataframe[0].value
    assert cells["params.intervention_type"].to_list() == ["residual_stream (estimated)"]
    app = opened("compare", runs=[run_id], measure="normalized_logit_diff")
    assert charts(app)[0]["layer"][-1]["encoding"]["y"]["title"] == "estimated normalized logit difference"


def side_by_side(store: Store, one: str, other: str) -> list[dict]:
    (chart,) = charts(opened("causal_map", run=one, **{"with": other}))
    return chart["concat"]


def test_a_map_of_many_cells_is_drawn_on_a_canvas_with_few_expressions(store):
    causal_map = make_map(n_layers=64, tokens=list("i = 8\n") * 34)
    app = opened("causal_map", run=log_causal(store, [causal_map]), pair="0", layer="2", token="6", metric="logit_diff")
    (chart,) = charts(app)
    assert chart["usermeta"]["embedOptions"]["renderer"] == "canvas"
    rect = chart["layer"][0]
    square = {"width": chart["width"]["step"], "height": chart["height"]["step"], "align": "left", "baseline": "top"}
    quick = {"type": "rect", "aria": False, "invalid": None, "tooltip": {"content": "data"}}
    assert rect["mark"] == quick | square
    assert set(rect["encoding"]) == {"x", "y", "color"}
    assert rect["transform"] == [{"flatten": ["layer", "logit difference", "top token"]}]
    by_token = json.loads(rect["data"]["values"])
    assert [row["position"] for row in by_token] == causal_map.positions
    assert all(row["layer"] == causal_map.layers for row in by_token)
    drawn = np.array([row["logit difference"] for row in by_token]).T
    assert drawn == pytest.approx(causal_map.grid("logit_diff"), abs=0.0005)


def test_another_square_chosen_is_other_data_of_the_same_chart(store):
    """A browser then moves the outline; of another chart it would draw all squares anew."""
    few, many = make_map(), make_map(n_layers=64, tokens=list("i = 8\n") * 34)
    for run in (log_causal(store, [few]), log_causal(store, [many])):
        places = ({}, {"layer": "2", "token": "6"}, {"layer": "3", "token": "6"})
        shown = [charts(opened("causal_map", run=run, pair="0", **place))[0] for place in places]
        for chart in shown:
            chart["layer"][-1]["data"].pop("name")  # a hash of the outlined square
        assert shown[0] == shown[1] == shown[2]


def test_an_imported_run_is_shown_with_its_own_metrics(store, tmp_path):
    folder = written(grid(), tmp_path / "e" / "20250101_120000" / "Qwen_Qwen3-4B")
    (imported,) = import_results(folder, store.uri)
    app = opened("causal_map", run=imported.run_ids[0], metric="success")
    assert titles(app)[0] == "residual_stream · one pair"
    app = opened("causal_map", run=imported.run_ids[0], pair="0", metric="legacy_normalized_logit_difference")
    assert charts(app)[0]["layer"][0]["encoding"]["color"]["title"] == "legacy normalized logit difference"
    assert "normalized logit difference" not in app.selectbox(key="metric").options
    flat = [{"layer_idx": 0, "token_pos": at, "success_rate": 1.0} for at in range(3)]
    (imported,) = import_results(written(flat, tmp_path / "flat", "patch_results.json"), store.uri)
    app = opened("causal_map", run=imported.run_ids[0], metric="legacy_success_rate")
    assert "were not recorded" in sentences(app)


def test_pages_of_an_imported_store_list_runs_that_have_what_they_show(uri, tmp_path, monkeypatch):
    """The newest imported cell is one of accuracy; the Causal map page opened on it, and said that there was no map."""
    store = Store(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (of_maps,) = import_results(written(grid(), tmp_path / "e" / "20250101_120000" / "m"), uri)
    rows = [SAMPLE]
    (of_samples,) = import_results(written(rows, tmp_path / "basic_20250527_140240", "results.json"), uri)
    assert of_samples.run_ids, of_samples
    assert url(opened("causal_map"), "run") == of_maps.run_ids[0]
    assert url(opened("samples"), "run") == of_samples.run_ids[0]
    assert store.load_run(of_samples.run_ids[0]).metrics["accuracy"] == 1


def test_a_map_whose_program_is_missing_is_shown_without_it(store):
    app = opened("causal_map", run=log_causal(store, [make_map(pair=5)]), pair="0")
    assert "not among the programs" in sentences(app)
    assert len(charts(app)) == 1


@pytest.mark.parametrize(
    ("page", "file", "content", "said"),
    [
        ("causal_map", "causal_maps/00000.safetensors", b"no such thing", "safetensors"),
        ("samples", "samples.jsonl", b'{"seed": 1}\n', "'seq_len' is missing"),
        ("samples", "samples.jsonl", b"\xff\xfe", "no JSON"),
        ("rerun", "programs.json", b"[]", "expected a JSON object"),
    ],
)
def test_a_broken_file_is_a_sentence(store, page, file, content, said):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    store.load_run(run_id).artifact(file).write_bytes(content)
    app = opened(page, run=run_id)
    assert "This part of the run cannot be read" in sentences(app)
    assert said in literal(app)
    for other in PAGES:
        opened(other, run=run_id, runs=[run_id])


def test_missing_files_are_sentences(store):
    run_id = log_causal(store, [make_map()])
    for name in ("causal_maps/00000.safetensors", "samples.jsonl", "programs.json"):
        store.load_run(run_id).artifact(name).unlink()
    assert "no causal maps" in sentences(opened("causal_map", run=run_id))
    assert "no samples" in sentences(opened("samples", run=run_id))
    assert "cannot be read" in sentences(opened("rerun", run=run_id))


def test_of_a_long_prompt_the_part_that_both_programs_share_is_left_out(store):
    solved = ["a", " = ", "1", "\n"] * 20
    whole = make_map(tokens=[*solved, *TOKENS])
    last = len(whole.tokens) - 1
    targets, columns = {"root": [82], "final": [last]}, {"root": 82, "final": last}
    whole = dataclasses.replace(whole, first_difference=82, targets=targets, target_columns=columns)
    run_id = log_causal(store, [whole])

    def drawn(app: AppTest) -> list[int]:
        return charts(app)[0]["layer"][0]["encoding"]["x"]["scale"]["domain"]

    app = opened("causal_map", run=run_id, pair="0")
    assert drawn(app) == list(range(80, 103))
    app.toggle(key="whole").set_value(True).run()
    assert drawn(app) == list(range(103))
    assert url(app, "whole") == "yes"
    assert drawn(opened("causal_map", run=run_id, pair="0", layer="2", token="5")) == list(range(103))
    app = opened("causal_map", run=run_id, pair="0", layer="2", token="82")
    assert literal(app).count("⟦8⟧") == 1  # the very token, not the one so far from the left


# --- Samples ---------------------------------------------------------------------------------------------------------


def log_answers(store: Store, answers: list[int | None]) -> str:
    """A run whose samples are all of the published program, answered like that."""
    with store.start("accuracy", "answers", kind="accuracy") as study:
        params = {"model": "tiny", "hops": 3, "seq_len": 5}
        with study.cell("answers", params) as cell:
            known = {
                "seq_len": 5,
                "hops": 3,
                "program": PROGRAM,
                "prompt": PROGRAM,
                "expected": 8,
                "chain": ["h", "x", "i"],
            }
            rows = [
                {"seed": n, **known, "raw_output": f"{a}", "parsed": a, "correct": a == 8, "error": None}
                for n, a in enumerate(answers)
            ]
            cell.append_jsonl("samples.jsonl", rows)
            cell.log_metrics({"accuracy": 0.5, "num_samples": len(rows)})
    return cell.run_id


def test_samples_are_filtered_by_outcome(store):
    run_id = log_answers(store, [8, 8, 4, 9, None])
    app = opened("samples", run=run_id)
    assert "5 of 5 samples: 2 correct, 2 wrong, 1 unparseable" in [caption.value for caption in app.caption]
    app.selectbox(key="outcome").select("unparsed").run()
    assert app.dataframe[0].value["sample"].to_list() == [4]
    assert url(app, "outcome") == "unparsed"
    assert opened("samples", run=run_id, answer="4").dataframe[0].value["sample"].to_list() == [2]


def test_wrong_answers_are_counted_and_explained(store):
    app = opened("samples", run=log_answers(store, [8, 4, 4, 9, None]))
    commonest, explained = (table.value for table in app.dataframe[1:])
    assert commonest.to_dict("list")["answer"] == ["4", "9"]
    rules = dict(zip(explained["rule"], explained["explains"], strict=True))
    assert rules == {
        "a number on line 1 or 2": 0,
        "the root of another chain": 2,
        "the root of the largest chain": 0,
        "not a number in the program": 1,
    }
    shares = [str(wilson(count, 3)) for count in (0, 2, 0, 1)]
    assert explained["share"].to_list() == shares
    assert commonest["share"].to_list() == [str(wilson(2, 3)), str(wilson(1, 3))]
    assert f"Accuracy of the listed samples: {wilson(1, 5)}" in captions(app)


def test_a_sample_shows_its_program_as_a_graph(store):
    app = opened("samples", run=log_answers(store, [8]), sample="0")
    (chart,) = charts(app)
    assert [layer["mark"]["type"] for layer in chart["layer"]] == ["rule", "point", "text"]
    assert PROGRAM in literal(app)


def test_what_was_read_as_the_answer_is_marked_in_the_output(store):
    texts = ["Step 1: **x** = 0.\n5 + 10 = 15, <b>so</b> Answer: 15. Question 2: Answer: 9", "none", "- 5"]
    params = {"model": "tiny", "hops": 1, "seq_len": 1, "answer_parser": "last_integer"}
    with store.start("accuracy", "marks", kind="accuracy") as study, study.cell("marks", params) as cell:
        known = {"seq_len": 1, "hops": 1, "program": PROGRAM, "prompt": PROGRAM, "expected": 15, "chain": None}
        rows = [
            {"seed": n, **known, "raw_output": text, "parsed": parse_last_integer(text), "correct": n == 0}
            for n, text in enumerate(texts)
        ]
        rows += [{**rows[0], "parsed": 9}]  # as other rules read it
        rows += [{**rows[2], "raw_output": "⟦3⟧\n- 5"}]  # marks of the model's own
        cell.append_jsonl("samples.jsonl", [row | {"error": None} for row in rows])
        cell.log_metrics({"accuracy": 0.5, "num_samples": len(rows)})
    shown = [literal(opened("samples", run=cell.run_id, sample=str(n))) for n in range(5)]
    assert "<b>so</b> Answer: ⟦15⟧. Question 2: Answer: 9" in shown[0]
    assert "⟦- 5⟧" in shown[2]
    assert "⟦" not in shown[1] + shown[3]
    assert "⟦3⟧\n- 5" in shown[4]


# --- Re-run ----------------------------------------------------------------------------------------------------------


def test_a_rerun_is_asked_as_on_a_command_line(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    app = opened("rerun", run=run_id, pair="1", component="mlp", positions="targets", layers="0-2, 5")
    assert f"debug rerun {run_id} '--tracking-uri={store.uri}'".replace("'", "") in literal(app).replace("'", "")
    assert "--intervention-type=mlp --positions=targets --layers 0 1 2 5 --pairs 1" in literal(app)
    for broken in ("a", "3-1", "-1", "1,,x", "0-99999"):
        assert "These settings are not valid" in sentences(opened("rerun", run=run_id, layers=broken))


@pytest.fixture
def on_this_machine(monkeypatch):
    """The dashboard listens on 127.0.0.1 alone, as its configuration has it, and is asked from there."""
    monkeypatch.setattr("streamlit.runtime.context.ContextProxy.ip_address", "127.0.0.1")
    config.set_option("server.address", "127.0.0.1")
    yield
    config.set_option("server.address", None)


@pytest.mark.parametrize(("page", "named"), [("rerun", "rerun"), ("tryit", "tryit"), ("runs", "edit")])
def test_what_readers_elsewhere_may_do_is_named(store, monkeypatch, page, named):
    """Here they are elsewhere: the server listens on every address."""
    run_id = log_causal(store, [make_map()])
    off = "Runs cannot be started from here" if page != "runs" else "cannot be changed from here"
    for words in ([], ["--allow", named], ["--allow", *({"rerun", "tryit", "edit"} - {named})]):
        monkeypatch.setattr("sys.argv", ["dashboard/app.py", *words])
        app = opened(page, run=run_id, runs=[run_id])
        assert (off in sentences(app) + captions(app)) == (named not in words), words


@pytest.mark.usefixtures("on_this_machine")
@pytest.mark.parametrize("answer", ["yes", "no"])
def test_every_option_of_a_plan_is_an_argument_of_the_rerun(store, monkeypatch, answer):
    """What is chosen under "More options" is what the script that is started reads from its arguments."""
    hints = get_type_hints(Plan, include_extras=True)
    words = {
        "targets": ("final ref_depth_2_rhs", ["final", "ref_depth_2_rhs"]),
        "prompt_template": ("Program: {code}", "Program: {code}"),
        "source_run": ("a run's name", "a run's name"),
        "layer_window": ("2", 2),
        "heads": ("0 3+5", [0, "3+5"]),
        "random_draws": ("7", 7),
        "save_attention": ("3", 3),
        "answer_lead": (" ", " "),
    }
    chosen = dict(words)
    for name in {each.name for each in dataclasses.fields(Plan)} - {"intervention_type", "positions", "layers", *words}:
        choices = named(hints[name], OneOf)
        chosen[name] = (choices[-1], choices[-1]) if choices else (answer, answer == "yes")

    run_id, expected = log_causal(store, [make_map()]), {name: value for name, (_, value) in chosen.items()}
    asked = {name: text for name, (text, _) in chosen.items()}
    of_knockout = {"intervention_type": "attention_knockout"}
    assert started_with(monkeypatch, run_id, asked | {"component": "attention_knockout"}) == expected | of_knockout
    for name in ("random_draws", "match_attention"):  # not shown where nothing is knocked out
        del expected[name]
    assert started_with(monkeypatch, run_id, asked) == expected
    assert started_with(monkeypatch, run_id, dict.fromkeys(chosen, "as logged") | dict.fromkeys(words, "")) == {}


def started_with(monkeypatch, run_id: str, query: dict[str, str]) -> dict[str, object]:
    """The changes to a plan that `debug rerun` reads from its arguments, where the page at this URL starts it."""
    started: Queue[list[str]] = Queue()

    def start(_: Worker, name: str, words: list[str], *__: object) -> SimpleNamespace:
        assert name == "rerun"
        started.put(words)
        return SimpleNamespace(exit_code=0, interrupt=lambda: None, kill=lambda: None)

    app = opened("rerun", run=run_id, **query)
    assert "cannot be started" not in sentences(app)
    with monkeypatch.context() as here:
        here.setattr(Worker, "start", start)
        next(button for button in app.button if button.label == "Run it").click().run()
        assert not app.exception
        return given(rerun.parser().parse_args(started.get(timeout=60)), Plan)


@pytest.mark.parametrize("name", ["prompt_template", "heads", "source_run", "targets"])
def test_no_text_becomes_another_option_of_the_rerun(store, name):
    app = opened("rerun", run=log_causal(store, [make_map()]), **{name: "-x --tracking-uri=elsewhere"})
    assert "expected no word that begins with -" in sentences(app) + literal(app)
    (button,) = [each for each in app.button if each.label == "Run it"]
    assert button.disabled


def test_a_dashboard_that_others_may_reach_starts_no_process(store, monkeypatch):
    """Here no address is set: it would listen on all. The click of a disabled button is not obeyed either."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *given, **_: started.append(given))
    app = opened("rerun", run=log_causal(store, [make_map()]))
    (button,) = [each for each in app.button if each.label == "Run it"]
    assert button.disabled
    assert "Runs cannot be started from here: the dashboard listens on every address" in sentences(app)
    button.proto.disabled = button.disabled = False  # as a browser that was tampered with
    button.click().run()
    assert not app.exception
    assert not started


# --- Training --------------------------------------------------------------------------------------------------------


def test_training_shows_accuracy_by_hops_over_steps_and_two_checkpoints(store):
    with store.start("training", "tiny · training", kind="training") as run:
        for step in (0, 100, 200):
            run.log_metrics({f"accuracy/lines_{n}_hops_{k}": step / 200 for n in (5, 17) for k in (1, 2)}, step)
        for step in ("step_000000", "step_000200"):
            (run.folder / "checkpoints" / step).mkdir(parents=True)
            (run.folder / "checkpoints" / step / "config.json").write_text("{}")
            (run.folder / "checkpoints" / step / "model.safetensors").write_text(step)
    app = opened("training", training=run.run_id)
    assert len(charts(app)) == 1
    assert "0 of 2 checkpoints have a causal run" in sentences(app)
    assert "did not log its number of programs" in captions(app)
    for model in ("step_000000", "step_000200"):
        log_causal(store, [make_map()], model)  # of another training's checkpoints
        log_causal(
            store, [make_map()], model, weights_digest=files_digest((run.folder / "checkpoints" / model).iterdir())
        )
    app = opened("training", training=run.run_id)
    named = [panel["title"]["text"] for panel in charts(app)[1]["concat"]][:2]
    assert named == ["A: step_000000 · 1 pair", "B: step_000200 · 1 pair"]
    assert "but other weights (2)." in captions(app)
    assert len(app.selectbox(key="first").options) == 2


def test_training_curves_have_the_intervals_that_were_logged(store):
    with store.start("training", "tiny · training", kind="training") as run:
        for step in (0, 100):
            rate = wilson(step // 2, 50)
            run.log_metrics(rate.metrics("accuracy/lines_5_hops_2") | {"num_samples/lines_5_hops_2": rate.n}, step)
    app = opened("training", training=run.run_id)
    assert "Each point: 50 programs. Bands: 95% CI (Wilson)." in captions(app)
    drawn = pl.read_ipc_stream(app.get("vega_lite_chart")[0].proto.datasets[0].data.data)
    expected = [wilson(0, 50), wilson(50, 50)]
    assert drawn.select("ci_low", "ci_high", "n").rows() == [(rate.low, rate.high, 50) for rate in expected]


def test_a_training_without_accuracies_is_a_sentence(store):
    with store.start("training", "early", kind="training") as run:
        pass
    assert "no accuracies by hops yet" in sentences(opened("training", training=run.run_id))


def test_tables_and_charts_can_be_downloaded(store):
    """What the buttons hand out; that they are there is a browser's test."""
    import sys

    sys.path.insert(0, str(APP.parent))
    try:
        import view

        from debug.causal_visualization.comparison import models_by
    finally:
        sys.path.remove(str(APP.parent))
    frame = pl.DataFrame({"model": ["a"], "hops": ["1"], "value": [0.5], "n": [3], "chain": [["x", "y"]]})
    assert view._flat(frame).write_csv() == "model,hops,value,n,chain\na,1,0.5,3,x y\n"
    assert view._parquet(frame).startswith(b"PAR1")
    chart = models_by("hops", frame, "accuracy")
    assert view._picture(chart, "png").startswith(b"\x89PNG")
    assert b"<svg" in view._picture(chart, "svg")


def test_many_series_are_told_apart_by_colour_and_shape():
    from debug.causal_visualization.comparison import rates

    def chart(n: int) -> dict:
        rows = [{"model": f"s{i}", "hops": "1", "seq_len": "5"} for i in range(n)]
        numbers = pl.DataFrame({"value": [0.5] * n, "ci_low": [0.4] * n, "ci_high": [0.6] * n, "n": [9] * n})
        return rates(pl.concat([pl.DataFrame(rows), numbers], how="horizontal"), "hops", "accuracy").to_dict()

    points = chart(56)["layer"][-1]["encoding"]
    looks = list(zip(*(points[name]["scale"]["range"] for name in ("color", "shape")), strict=True))
    assert len(set(looks)) == len(looks) == 56
    with pytest.raises(ValueError, match="57 values of model cannot be told apart"):
        chart(57)


@pytest.mark.parametrize("depth", [1, 16])
def test_a_program_as_a_graph_fits_beside_its_prompt(depth):
    from debug.causal_visualization.programs import program_graph
    from debug.programs import Program

    names = "abcdefghijklmnop"[:depth]
    lines = [f"{left} = {right}" for left, right in zip(names, f"7{names}", strict=False)]
    chart = program_graph(Program.parse("\n".join([*lines, f"#{names[-1]}: "]))).to_dict()
    assert len(chart["datasets"][chart["layer"][1]["data"]["name"]]) == depth
    assert 260 <= chart["width"] <= 500


def test_a_logit_lens_of_many_cells_is_drawn_with_few_expressions():
    from debug.causal_visualization import lens_heatmap

    causal_map = make_map(n_layers=64, tokens=list("i = 8\n") * 9)
    ranks = np.arange(causal_map.top.size * 2).reshape(*causal_map.top.shape, 2)
    causal_map = dataclasses.replace(causal_map, lens_ranks=ranks, lens_logits=ranks.astype(np.float32))
    rect = lens_heatmap(causal_map).to_dict()["layer"][0]
    assert rect["encoding"]["color"]["field"] == "rank (0: the top token)"
    assert rect["mark"]["tooltip"] == {"content": "data"}


def test_a_table_begins_anew_where_it_has_other_rows_chosen_than_the_url(monkeypatch):
    """A click on the table before it arrives when this one is drawn already, with nothing chosen."""
    monkeypatch.syspath_prepend(str(APP.parent))
    import view

    state: dict = {}
    monkeypatch.setattr(view.st, "session_state", state)
    first = view.table_key("runs", [])
    state[first] = {"selection": {"rows": []}}
    assert view.table_key("runs", []) == first
    second = view.table_key("runs", [0])
    assert second != first
    state[second] = {"selection": {"rows": [2, 0]}}
    assert view.table_key("runs", [0, 2]) == second
    assert view.table_key("others", [1]) != view.table_key("runs", [1])
