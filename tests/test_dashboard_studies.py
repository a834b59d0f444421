"""The pages Studies, Study and Try it, and the order of pairs on the Causal map page."""

from __future__ import annotations

from pathlib import Path
from queue import Queue
from types import SimpleNamespace

import pytest

from debug.causal_map import mean_over_pairs
from debug.commands.trace import parser
from debug.commands.worker import Worker
from debug.tracking import Store
from synthetic import NASTY, log_accuracy, log_causal, make_map
from test_dashboard import APP, captions, charts, literal, on_this_machine, opened, sentences, titles, url  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def store(shared, monkeypatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    monkeypatch.setattr(Worker, "warm", lambda _: None)
    return shared


def prose(app) -> str:
    return "\n".join(element.proto.body for element in app.get("html"))


def test_studies_tell_their_findings_on_cards(store):
    log_accuracy(store, hops=[1, 2])
    log_causal(store, [make_map(pair) for pair in range(20)])
    app = opened("home")
    assert "The value moves from hop 1 · value to hop 2 · value at layer 2" in prose(app)
    assert "accuracy 90.0% [80.0, 95.0] (n=60) in each of 2 cells" in prose(app)
    assert len(charts(app)) == 2
    assert not opened("home").exception


def test_a_large_mean_is_not_taken_on_the_first_page(store, monkeypatch):
    run_id = log_causal(store, [make_map(pair) for pair in range(4)])
    store.client.log_metric(run_id, "peak_patch_success_rate", 0.5)
    store.client.log_metric(run_id, "peak_patch_success_rate_n", 2)
    monkeypatch.syspath_prepend(str(APP.parent))
    for most, said in ((4 * make_map().top.size, False), (4 * make_map().top.size - 1, True)):
        monkeypatch.setattr("store.MOST_AVERAGED", most)
        app = opened("home")
        assert ("4 pairs: the map is drawn when you open it." in captions(app)) is said
        assert ("peak patch success rate 50.0% no CI (n=2)" in prose(app)) is said


def test_what_failed_says_why_and_what_was_left_alone_stands_still(store):
    with pytest.raises(RuntimeError), store.start("accuracy", "it fails", kind="accuracy"):
        raise RuntimeError("the disk is **full**")
    client = store.client
    (experiment,) = [each for each in client.search_experiments() if each.name == "accuracy"]
    left = client.create_run(experiment.experiment_id, run_name="left alone")
    client.set_tag(left.info.run_id, "debug.kind", "accuracy")
    client.set_tag(left.info.run_id, "debug.role", "study")
    app = opened("home")
    assert "the disk is **full**" in literal(app)
    assert "ended without a word" in sentences(app)
    client.set_terminated(left.info.run_id, "KILLED")


def test_names_of_a_store_are_no_html_on_a_card(store):
    with store.start("accuracy", NASTY[:80], kind="accuracy"):
        pass
    assert "<script>alert" not in prose(opened("home"))
    assert "&lt;script&gt;alert" in prose(opened("home"))


def test_a_study_is_one_page_that_can_be_saved(store):
    cell = log_causal(store, [make_map(pair) for pair in range(6)])
    study = store.load_run(cell).parent_run_id
    app = opened("study", run=study)
    headings = [each.value for each in app.subheader]
    assert headings[:3] == ["Question", "Example", "Causal map"]
    assert headings[-2:] == ["Caveats", "Repeat it"]
    assert "the program as tokens" in titles(app)[0]
    assert len(charts(app)) == 3
    assert "Save as HTML" in [button.proto.label for button in app.get("download_button")]


def test_a_page_opens_on_no_failed_run(store):
    log_causal(store, [make_map(pair) for pair in range(3)])
    params = {"model": "tiny", "intervention_type": "residual_stream"}
    with (
        pytest.raises(RuntimeError),
        store.start("causal", "newest", kind="causal_tracing") as study,
        study.cell("newest", params) as cell,
    ):
        raise RuntimeError("no")
    assert url(opened("causal_map"), "run") != cell.run_id


def test_pairs_stand_in_the_order_of_how_little_a_patch_does(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(6)])
    run = store.load_run(run_id)
    app = opened("causal_map", run=run_id, pair="mean", order="worst first")
    order = [int(option) for option in next(box for box in app.selectbox if box.label == "Pair").options[1:]]
    peak = mean_over_pairs(run.maps).peak()
    assert peak is not None
    at = [one.values("normalized_logit_diff")[peak.layer, one.target_columns[peak.target]] for one in run.maps]
    assert order == sorted(range(6), key=at.__getitem__)
    assert order != list(range(6))
    after = next(button for button in app.button if button.key == "Next pair").click().run()
    assert url(after, "pair") == str(order[0])
    before = next(button for button in after.button if button.key == "Previous pair").click().run()
    assert url(before, "pair") == "mean"
    assert next(button for button in before.button if button.key == "Previous pair").disabled


@pytest.mark.usefixtures("on_this_machine")
@pytest.mark.parametrize(
    ("kind", "option", "said"),
    [("program", "program", "a = 4"), ("pair", "pairs", "expected_counterfactual")],
)
def test_what_is_tried_is_what_a_command_line_would_trace(store, monkeypatch, kind, option, said):
    started: Queue[list[str]] = Queue()

    def start(_: Worker, name: str, words: list[str], *__: object) -> SimpleNamespace:
        assert name == "trace"
        started.put(words)
        return SimpleNamespace(exit_code=0, interrupt=lambda: None, kill=lambda: None)

    monkeypatch.setattr(Worker, "start", start)
    app = opened("tryit", kind=kind, model="tiny", component="mlp", layers="0-1")
    next(button for button in app.button if button.label == "Run it").click().run()
    asked = parser().parse_args(started.get(timeout=60))
    assert (asked.models, asked.layers, asked.intervention_type) == (["tiny"], [0, 1], "mlp")
    assert said in Path(getattr(asked, option)).read_text()


@pytest.mark.parametrize(("query", "said"), [({"layers": "1-x"}, "expected numbers and ranges"), ({"model": ""}, "")])
def test_settings_that_are_none_are_sentences(store, query, said):
    app = opened("tryit", **query)
    assert said in literal(app) + captions(app) + sentences(app)


def test_a_difference_is_named_by_what_differs(store):
    one, other = (log_causal(store, [make_map(pair) for pair in range(3)], hops=hops) for hops in (3, 4))
    assert "A − B is the difference of: hops (3 − 4)." in prose(opened("causal_map", run=one, **{"with": other}))
    same = log_causal(store, [make_map(pair) for pair in range(3)])
    assert "A and B have the same settings." in prose(opened("causal_map", run=one, **{"with": same}))
