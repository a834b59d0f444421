"""The dashboard's Compare and Runs pages, run without a browser."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import date

import numpy as np
import polars as pl
import pytest
import streamlit as st
from streamlit import config

from debug.commands.worker import Worker
from debug.errors import InputError
from debug.statistics import paired_means
from debug.tracking import ARCHIVED, NOTE, RunTable, Store
from synthetic import NASTY, log_accuracy, log_causal, make_map
from test_dashboard import APP, captions, charts, drawn_rows, literal, log_cells, opened, sentences, url


@pytest.fixture(scope="module")
def store_of_module(tmp_path_factory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def store(store_of_module, monkeypatch) -> Iterator[Store]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_of_module.uri)
    monkeypatch.setattr(Worker, "warm", lambda _: None)
    st.cache_resource.clear()
    monkeypatch.setattr("streamlit.runtime.context.ContextProxy.ip_address", "127.0.0.1")
    config.set_option("server.address", "127.0.0.1")  # as the dashboard's configuration has it
    yield store_of_module
    config.set_option("server.address", None)


@pytest.fixture
def pages(monkeypatch) -> Iterator[None]:
    """The modules of the dashboard can be imported."""
    monkeypatch.syspath_prepend(str(APP.parent))
    yield
    for name in ("cells", "editing", "compare", "runs"):
        sys.modules.pop(name, None)


def texts(app) -> str:
    return "\n".join(element.value for element in app.text)


# --- Compare: which parameter goes where -----------------------------------------------------------------------------


def frame_of(*rows: dict[str, object]) -> pl.DataFrame:
    from cells import FACTORS

    made = [dict.fromkeys(FACTORS, "") | {"run_id": str(n), "value": 0.5, "n": 10} | row for n, row in enumerate(rows)]
    return pl.DataFrame(made)


def grid_of(**values: list[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = [{}]
    for name, each in values.items():
        rows = [row | {name: value} for row in rows for value in each]
    return rows


def test_the_parameter_that_varies_most_is_the_x_axis_and_the_model_is_the_colour(pages):
    from cells import Layout, layout

    models, hops, lines = ["a", "b"], ["1", "2", "3"], ["5", "17"]
    assert layout(frame_of(*grid_of(model=models, hops=hops, seq_len=lines)), {}) == Layout("hops", "model", "seq_len")
    lines = [str(n) for n in range(2, 10)]
    of = layout(frame_of(*grid_of(model=models, hops=hops, seq_len=lines, few_shot=["0", "4"])), {})
    assert of == Layout("seq_len", "model", "hops", "few_shot")
    assert layout(frame_of(*grid_of(model=models)), {}) == Layout("model", "model")
    many = [f"m{n}" for n in range(20)]  # more models than a chart's colours can tell apart
    assert layout(frame_of(*grid_of(model=many, hops=hops)), {}) == Layout("model", "hops")
    asked = layout(frame_of(*grid_of(model=models, hops=hops, seq_len=["5", "17"])), {"x": "seq_len", "dash": None})
    assert asked == Layout("seq_len", "model", None, "hops")


def test_a_parameter_that_another_one_tells_already_is_not_drawn(pages):
    from cells import Layout, layout, not_drawn

    rows = [row | {"experiment": f"of {row['model']}"} for row in grid_of(model=["a", "b"], hops=["1", "2"])]
    assert layout(frame_of(*rows), {}) == Layout("hops", "model")
    rows = [
        row | {"prompt_template": f"p{row['few_shot']}"} for row in grid_of(hops=["1", "2", "3"], few_shot=["0", "4"])
    ]
    of = layout(frame_of(*rows), {})
    assert of == Layout("hops", "model", "prompt_template")
    assert not_drawn(frame_of(*rows), of) == []


def test_what_one_place_would_mix_is_left_out_and_said(pages):
    from cells import Layout, not_drawn, one_value_each, that_fit

    rows = frame_of(*grid_of(hops=["1", "2"], few_shot=["0", "4"]), {"hops": "1", "few_shot": "4", "seed": "2"})
    of = Layout("hops", "model")
    assert not_drawn(rows, of) == ["few_shot"]
    kept, left_out = one_value_each(rows, ["few_shot"])
    assert kept["few_shot"].unique().to_list() == ["4"]
    assert left_out == ["few-shot other than 4: 0"]
    many = frame_of(*grid_of(hops=["1", "2"], model=[f"m{n}" for n in range(20)]), {"hops": "3", "model": "m19"})
    kept, left_out = that_fit(many, of)
    assert kept["model"].n_unique() == 16
    assert "m19" in set(kept["model"])
    assert left_out == ["4 of 20 values of model: m15, m16, m17, m18"]


def test_names_are_sorted_naturally(pages):
    from debug.causal_visualization.comparison import ordered

    assert ordered(pl.Series(["10", "2", "any", "1"])) == ["1", "2", "10", "any"]
    assert ordered(pl.Series(["Qwen3-14B", "Qwen3-1.7B", "Qwen3-0.6B"])) == ["Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-14B"]
    assert ordered(pl.Series(["9" * 400, "x", ""]))


def test_values_of_unequal_n_are_said_to_be_such(pages):
    from cells import sizes

    ns = {"Qwen3-8B": 4900, "Qwen3-14B": 1600, "Qwen3-4B": 4900}
    rows = [{"model": model, "n": n} for model, n in ns.items()]
    assert sizes(frame_of(*rows)) == "n differs between models: 1,600 for Qwen3-14B; 4,900 for Qwen3-4B, Qwen3-8B"
    assert sizes(frame_of({"n": 5}, {"n": 7})) == "n is from 5 to 7"
    assert sizes(frame_of({"n": 5}, {"n": 5}, {"n": None})) is None


def test_an_export_is_named_by_what_it_holds(pages):
    from cells import file_name

    rows = grid_of(model=["Qwen/Qwen3-8B"], hops=["1", "2", "3", "4"], seq_len=["5", "17"])
    name = file_name("rates", "accuracy", frame_of(*rows))
    assert name == f"rates_accuracy_Qwen-Qwen3-8B_hops-1-to-4_lines-5-17_{date.today()}"
    nasty = file_name("rates", "accuracy", frame_of({"model": f"../../{NASTY}"}))
    assert not set(nasty) & set("/<>: \n\x00*")


def test_imported_runs_of_two_experiments_are_never_averaged(store):
    """Zero-shot 10% and few-shot 90% were 50%: of imported runs only the experiment's name tells what was asked."""
    studies = []
    for name, rate in (("range_zero_shot", 0.1), ("range_few_shot", 0.9)):
        with store.start(name, name, kind="imported") as study:
            studies.append(study.run_id)
            for model in ("one", "two"):
                params = {"model": model, "hops": "any", "seq_len": 2, "generator": None, "prompt_template": None}
                with study.cell("cell", params) as cell:
                    cell.log_metrics({"accuracy": rate, "num_samples": 1600 if model == "two" else 4900})
    app = opened("compare", runs=studies)
    assert set(drawn_rows(app, 0)["value"]) == {0.1, 0.9}
    assert set(drawn_rows(app, 1)["value"]) == {0.1, 0.9}
    assert "n differs between models: 1,600 for two; 4,900 for one" in texts(app)


def test_many_series_are_drawn(pages):
    """212 series of three imported studies could not be shown, whatever was chosen."""
    from cells import layout, not_drawn, shown, that_fit

    from debug.causal_visualization.comparison import rates

    models, lines = [f"m{n}" for n in range(9)], [str(n) for n in range(2, 10)]
    frame = frame_of(*grid_of(model=models, seq_len=lines, generator=["zero", "few", "other"]))
    frame = frame.with_columns(ci_low=pl.lit(None, pl.Float64), ci_high=pl.lit(None, pl.Float64))
    of = layout(frame, {})
    assert (of.x, of.colour, of.dash, of.panel) == ("seq_len", "model", None, "generator")
    assert not_drawn(frame, of) == []
    assert that_fit(frame, of)[1] == []
    chart = rates(shown(frame), of.x, "accuracy", colour=of.colour, panel=of.panel, width=730).to_dict()
    assert chart["spec"]["layer"][0]["encoding"]["x"]["sort"] == lines
    assert chart["columns"] * (chart["spec"]["width"] + 45) <= 730
    points = chart["spec"]["layer"][2]["encoding"]
    assert len(set(zip(points["color"]["scale"]["range"], points["shape"]["scale"]["range"], strict=True))) == 9


def test_cells_are_filtered_and_the_url_holds_it(store):
    study = log_cells(store, *({"accuracy": 0.5, "hops": h, "seq_len": n} for h in (1, 2, 3) for n in (5, 17)))
    app = opened("compare", runs=[study], only_hops=["1", "2"], only_seq_len="17")
    assert len(drawn_rows(app, 0)) == 2
    assert url(app, "only_seq_len") == "17"
    app.multiselect(key="only_hops").set_value(["3"]).run()
    assert url(app, "only_hops") == "3"
    assert len(drawn_rows(app, 0)) == 1


def test_axes_are_in_the_url_and_a_broken_choice_is_none(store):
    study = log_cells(store, *({"accuracy": 0.5, "hops": h, "seq_len": n} for h in (1, 2, 3) for n in (5, 17)))
    app = opened("compare", runs=[study], by="seq_len", colour="hops")
    lines = charts(app)[0]["layer"][0]["encoding"]
    assert (lines["x"]["field"], lines["color"]["field"]) == ("seq_len", "hops")
    app.selectbox(key="each").select("hops").run()
    assert url(app, "each") == "hops"
    assert not app.exception
    broken = opened("compare", runs=[study], by="<b>", colour="no such", dash="1", each=["x", "y"], only_hops="99")
    assert charts(broken)[0]["layer"][0]["encoding"]["x"]["field"] == "hops"


def test_hops_and_lengths_are_in_order_in_the_table_of_models(store):
    cells = [{"accuracy": 0.5, "hops": 1, "seq_len": n} for n in (2, 5, 10)]
    app = opened("compare", runs=[log_cells(store, *cells, model="a-14B"), log_cells(store, *cells, model="a-1.5B")])
    assert "Models by lines, mean over hops" in [heading.value for heading in app.subheader]
    table = charts(app)[1]["layer"][0]["encoding"]
    assert table["x"]["sort"] == ["2", "5", "10"]
    assert drawn_rows(app, 1)["model"].unique(maintain_order=True).to_list() == ["a-1.5B", "a-14B"]


# --- Compare: paired tests -------------------------------------------------------------------------------------------


def test_the_interval_of_a_paired_difference_agrees_with_its_p():
    rng = np.random.default_rng(0)
    for number in range(30):
        n = int(rng.integers(2, 25))
        values = np.clip(rng.normal(0.15, 0.3, n), -1, 1)
        bounds = (-1.0, 1.0) if number % 2 else None
        found = paired_means(values, np.zeros(n), bounds=bounds)
        low, high = found.difference.low, found.difference.high
        assert low is not None
        assert high is not None
        assert (found.p_value < 0.05) == (low > 0 or high < 0)
    assert paired_means([0.5], [0.1]).p_value == 1
    assert paired_means([1, 2], [1, 2]).p_value == 1
    assert paired_means([1.0] * 8, [0.0] * 8).p_value == pytest.approx(2**-7)
    with pytest.raises(InputError, match="same units"):
        paired_means([1, 2], [1])


def test_a_paired_difference_is_found_where_there_is_one_and_not_elsewhere():
    rng = np.random.default_rng(1)
    draws = rng.normal(0, 1, (60, 12))
    rejected = [paired_means(values, np.zeros(12)).p_value < 0.05 for values in draws]
    assert np.mean(rejected) <= 0.12
    assert np.mean([paired_means(values + 1.5, np.zeros(12)).p_value < 0.05 for values in draws[:20]]) > 0.9


@pytest.mark.parametrize("measure", ["normalized_logit_diff", "peak_patch_success_rate"])
def test_every_measure_has_its_paired_test(store, measure):
    runs = [log_causal(store, [make_map(pair) for pair in range(n)]) for n in (8, 6)]
    for run_id in runs:
        store.client.log_metric(run_id, measure, 0.5)
    app = opened("compare", measure=measure, runs=runs, first=runs[0], second=runs[1])
    assert not app.error
    if measure == "peak_patch_success_rate":
        assert "exact McNemar" in captions(app)
        assert "0 : 0, p = 1" in literal(app)
    else:
        assert "sign-flip test" in captions(app)
        assert "p = 1" in literal(app)


def test_the_parts_of_a_ratio_add_up_to_the_overall_value(store, pages):
    from debug.causal_map import MeanOverPairs

    mean = MeanOverPairs()
    for pair in range(5):
        mean.add(make_map(pair))
    change, whole = np.array(list(mean.effects_of_each().values())).T
    overall = mean.result().overall["normalized_logit_diff"]
    assert overall is not None
    assert change.sum() / whole.sum() == pytest.approx(overall.estimate)


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_columns_are_chosen_in_the_url_whatever_the_store_knows(store):
    with store.start("columns", "columns", kind="accuracy") as study:
        for number, dtype in enumerate(("float32", "bfloat16")):
            params = {"model": "Qwen/Qwen3-0.6B", "hops": 1, "seq_len": 5, "dtype": dtype, "few_shot": 4}
            with study.cell("cell", params | {"num_seqs": 200, "prompt_template": "MINIMAL"}) as cell:
                cell.log_metrics({"accuracy": 0.5, "speed": 10.0 + number})
    columns = ["params.model", "params.prompt_template", "params.few_shot", "params.num_seqs", "params.dtype"]
    app = opened(rows="cells", text=study.run_id[:10], columns=[*columns, "metrics.speed"])
    table = app.dataframe[0].value
    assert list(table.columns) == [*columns, "metrics.speed"]
    assert set(table["params.model"]) == {"Qwen/Qwen3-0.6B"}
    assert sorted(table["metrics.speed"]) == [10, 11]
    of_studies = opened(text=study.run_id[:10], columns=["params.dtype", "metrics.speed", "no.such"]).dataframe[0].value
    assert of_studies.to_numpy().tolist() == [["bfloat16, float32", "10.0 – 11.0"]]  # a range, never a mean


def test_runs_are_grouped_by_a_param(store):
    for model, rate in (("small-2B", 0.2), ("small-2B", 0.4), ("large-10B", 0.9)):
        log_cells(store, {"accuracy": rate, "generator": "grouped"}, model=model)
    app = opened(rows="params.model", text="grouped", groups="small-2B")
    groups, cells = (table.value for table in app.dataframe[:2])
    assert groups["params.model"].to_list() == ["large-10B", "small-2B"]
    assert groups["cells"].to_list() == [1, 2]
    assert groups["lowest"].to_list()[1].startswith(" 20.0%")
    assert groups["highest"].to_list()[1].startswith(" 40.0%")
    assert set(cells["params.model"]) == {"small-2B"}
    assert url(app, "groups") == "small-2B"
    by_other = opened(rows="params.num_seqs", text="grouped")
    assert by_other.dataframe[0].value["params.num_seqs"].to_list() == ["(none)"]


def test_ids_are_found_by_their_beginning_alone(store):
    """Three hexadecimal digits stand somewhere in one of a hundred ids: a search for "14B" found other models."""
    study = log_cells(store, {"accuracy": 0.5}, model="small")
    for found, text in ((1, study[:12].upper()), (0, study[5:17])):
        shown = opened(rows="cells", text=text).dataframe
        assert sum(len(table.value) for table in shown) == found


def test_two_runs_are_compared_by_their_params(store):
    one = log_cells(store, {"accuracy": 0.5, "prompt_template": "A", "seed": 1})
    two = log_cells(store, {"accuracy": 0.5, "prompt_template": "B", "seed": 1})
    app = opened(runs=[one, two])
    table = next(t.value for t in app.dataframe if list(t.value.columns) == ["param", "A", "B"])
    assert {"prompt_template": ("A", "B")}.items() <= {p: (a, b) for p, a, b in table.to_numpy()}.items()
    assert "seed" not in set(table["param"])
    app = opened(runs=[one, two], equal="yes", a=two, b=one)
    table = next(t.value for t in app.dataframe if list(t.value.columns) == ["param", "A", "B"])
    assert ("prompt_template", "B", "A") in [tuple(row) for row in table.to_numpy()]
    assert "seed" in set(table["param"])


def test_an_imported_run_was_made_when_its_files_say(store):
    tags = {"debug.legacy_timestamp": "20250527_140240"}
    with store.start("older", "an imported study", kind="imported", tags=tags) as study, study.cell("c", {}) as cell:
        cell.log_metrics({"accuracy": 0.5})
    app = opened(text="older", columns=["made", "start_time"], runs=[study.run_id])
    made, logged = app.dataframe[0].value.iloc[0]
    assert f"{made:%Y-%m-%d %H:%M}" == "2025-05-27 14:02"
    assert logged.date() >= date(2026, 1, 1)
    assert "made 2025-05-27 14:02 (as its files state), imported" in texts(app)
    assert len(opened(text="older", until="2025-05-28").dataframe[0].value) == 1
    newest = opened(columns=["made"]).dataframe[0].value["made"].to_list()
    assert newest == sorted(newest, reverse=True)


def test_notes_and_tags_are_edited_and_the_change_is_undone(store):
    study = log_cells(store, {"accuracy": 0.5})
    app = opened(runs=[study])
    note, tags = app.text_area
    note.set_value(NASTY.replace("\x00", ""))
    tags.set_value('paper = figure 3\n\nodd = "two\\nlines"')
    next(button for button in app.button if button.label == "Save").click().run()
    assert not app.exception
    known = store.load_run(study).tags
    assert known[NOTE] == NASTY.replace("\x00", "")
    assert (known["paper"], known["odd"]) == ("figure 3", "two\nlines")
    assert "bold" not in "".join(element.value for element in [*app.markdown, *app.caption])
    again = opened(runs=[study], text="figure", columns=["tags", "note"])
    assert again.dataframe[0].value["tags"].to_list() == ["odd=two\nlines, paper=figure 3"]
    assert again.text_area[1].value == 'odd = "two\\nlines"\npaper = figure 3'
    again.text_area[1].set_value("paper = figure 4")
    next(button for button in again.button if button.label == "Save").click().run()
    assert "odd" not in store.load_run(study).tags
    next(button for button in again.button if button.label == "Undo").click().run()
    assert store.load_run(study).tags["odd"] == "two\nlines"
    assert store.load_run(study).tags["paper"] == "figure 3"


def test_a_line_that_is_no_tag_is_refused_with_the_reason(store, pages):
    from editing import as_lines, from_lines

    for line in ("no equals", "= value", "mlflow.user = me", "debug.kind = x", "a = 1\na = 2", 'a = "x'):
        with pytest.raises(InputError, match="line "):
            from_lines(line)
    nasty = {"a": NASTY, "b": '"quoted"', "c": " x ", "d": "", "e f": "1 = 2"}
    assert from_lines(as_lines(nasty)) == nasty
    study = log_cells(store, {"accuracy": 0.5})
    before = store.load_run(study).tags
    app = opened(runs=[study])
    app.text_area[1].set_value("no equals")
    next(button for button in app.button if button.label == "Save").click().run()
    assert "The tags were not saved" in sentences(app)
    assert "line 1 is 'no equals'" in literal(app)
    assert store.load_run(study).tags == before


def test_an_archived_run_is_left_out_of_lists_and_comes_back(store):
    study = log_cells(store, {"accuracy": 0.5, "generator": "archivable"})
    app = opened(text="archivable", runs=[study])
    next(button for button in app.button if button.label == "Yes, archive").click().run()
    assert ARCHIVED in store.load_run(study).tags
    assert store.client.get_run(study).info.lifecycle_stage == "active"  # nothing is deleted
    assert len(opened(text="archivable").dataframe[0].value) == 0
    assert len(opened(rows="cells", text="archivable").dataframe[0].value) == 0  # its cells with it
    assert len(opened(text="archivable", archived="yes").dataframe[0].value) == 1
    assert url(opened("compare"), "runs") != study
    assert charts(opened("compare", runs=[study]))  # a link to it still shows it
    next(button for button in app.button if button.label == "Undo").click().run()
    assert ARCHIVED not in store.load_run(study).tags
    assert len(opened(text="archivable").dataframe[0].value) == 1
    store.set_tags(study, {ARCHIVED: "now"})
    app = opened(text="archivable", archived="yes", runs=[study])
    next(button for button in app.button if button.label == "Bring back from the archive").click().run()
    assert len(opened(text="archivable").dataframe[0].value) == 1


def test_hidden_runs_are_in_the_url_alone(store):
    study = log_cells(store, {"accuracy": 0.5, "generator": "hideable"})
    before = store.load_run(study).tags
    app = opened(text="hideable", runs=[study])
    next(button for button in app.button if button.label == "Hide").click().run()
    assert url(app, "hide") == study
    assert url(app, "runs") is None
    assert len(app.dataframe[0].value) == 0
    assert "1 hidden" in texts(app)
    next(button for button in app.button if button.label == "Show hidden runs").click().run()
    assert len(app.dataframe[0].value) == 1
    assert store.load_run(study).tags == before


def test_nothing_is_edited_where_others_may_reach_the_dashboard(store):
    study = log_cells(store, {"accuracy": 0.5})
    config.set_option("server.address", "0.0.0.0")
    app = opened(runs=[study])
    assert "cannot be changed from here: the dashboard listens on 0.0.0.0" in captions(app)
    assert not app.text_area
    assert not [button for button in app.button if button.label in ("Save", "Yes, archive")]


def test_a_reset_forgets_every_choice(store):
    study, *_ = log_accuracy(store, hops=[1])
    app = opened(runs=[study], text="x", rows="cells", sort="name", columns=["name"], hops="1")
    next(button for button in app.button if button.label == "Reset").click().run()
    assert {name: url(app, name) for name in ("runs", "text", "columns", "hops")} == dict.fromkeys(
        ("runs", "text", "columns", "hops")
    )
    assert url(app, "rows") in (None, "studies")


# --- the table of all runs -------------------------------------------------------------------------------------------


def test_what_people_change_of_an_ended_run_is_seen(uri):
    store = Store(uri)
    study, cell = log_accuracy(store, hops=[1])
    table = RunTable(store)
    table.refresh()
    assert table.frame["archived"].null_count() == 2
    store.set_tags(study, {ARCHIVED: "today", NOTE: "long " * 200, "mine": "yes"})
    assert table.refresh()
    row = table.frame.row(by_predicate=pl.col("run_id") == study, named=True)
    assert (row["archived"], row["tags"], len(row["note"])) == ("today", "mine=yes", 300)
    of_cell = table.frame.row(by_predicate=pl.col("run_id") == cell, named=True)
    assert of_cell["archived"] == "today"
    store.delete_tags(study, [ARCHIVED, "mine"])
    assert table.refresh()
    assert table.frame["archived"].null_count() == 2
    assert table.frame["tags"].null_count() == 2


def test_any_param_and_metric_of_a_store_is_a_column(uri):
    store = Store(uri)
    assert RunTable(Store(f"{uri}-none")).names() == []
    with (
        store.start("columns", "columns", kind="accuracy") as study,
        study.cell("c", {"odd one": "x", "hops": 2}) as cell,
    ):
        cell.log_metrics({"accuracy": 0.5, "accuracy_ci_low": 0.4, "speed": 3.0})
        cell.log_metrics({"rate_by_layer/final": 0.5}, step=3)
    table = RunTable(store)
    table.refresh()
    assert {"params.odd one", "params.hops", "metrics.accuracy", "metrics.speed"} <= set(table.names())
    assert not [name for name in table.names() if "_ci_" in name or "_by_layer/" in name]
    assert table.column("params.odd one").rows() == [(cell.run_id, "x")]
    assert table.column("metrics.speed").rows() == [(cell.run_id, 3.0)]
    assert table.column("params.none of them").rows() == []
