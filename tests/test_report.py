"""One study on one page: what it says, and that nothing of a store gets out of its text."""

from __future__ import annotations

import re

import pytest

from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_map import findings, in_words, mean_over_pairs, route, save_maps
from debug.report import chapters, rate_in_words, rates_in_words, report
from debug.tracking import Store
from present import present
from synthetic import NASTY, log_accuracy, log_causal, make_estimate, make_knockout, make_map


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    config = CausalConfig(models=["tiny"], hops=[3], seq_lens=[5], num_seqs=6, positions="targets")
    return Store(uri).load_run(CausalExperimentRunner(uri).run(config).run_id)


@pytest.mark.parametrize(
    ("target", "words"),
    {
        "ref_depth_2_rhs": "hop 2 · value",
        "ref_depth_12_lhs": "hop 12 · variable",
        "ref_depth_1_newline": "hop 1 · line end",
        "query_var": "query · variable",
        "line_2_rhs": "line 2 · value",
        "line_2_end": "line_2_end",
        "final": "last token",
        "final/head_3": "last token · head 3",
        "ref_depth_2_line->ref_depth_1_line": "hop 2 · line → hop 1 · line",
        "ref_depth_1_line+final": "hop 1 · line + last token",
        "difference_1": "difference_1",
        "ref_depth_2_other": "ref_depth_2_other",
        "position_7": "position_7",
    }.items(),
)
def test_targets_have_names_for_people(target, words):
    assert in_words(target) == words


def test_a_route_is_one_sentence():
    mean = mean_over_pairs([make_map(pair) for pair in range(20)])
    assert [(move.before, move.after, move.layer) for move in mean.moves] == [
        ("ref_depth_1_rhs", "ref_depth_2_rhs", 2),
        ("ref_depth_2_rhs", "ref_depth_3_rhs", 4),
        ("ref_depth_3_rhs", "final", 5),
    ]
    assert route(mean) == (
        "The value moves from hop 1 · value to hop 2 · value at layer 2, to hop 3 · value at layer 4, "
        "to the last token at layer 5"
    )
    assert route(mean_over_pairs([make_map()])) is None  # of one pair there is no route to report
    assert findings(mean, in_words)[0].startswith("peak: patched at hop ")


def test_a_study_says_what_it_found_how_far_to_trust_it_and_how_to_repeat_it(study):
    made = {name: chapter for name, make in chapters(study).items() if (chapter := make())}
    said = {name: "\n".join(chapter.text) for name, chapter in made.items()}
    assert list(made)[:3] == ["Question", "Example", "Accuracy"]
    assert "model: tiny · hops: 3 · lines: 5" in said["Question"]
    assert "peak: patched at hop 2 · value, layer 2" in said["Question"]
    assert "The first of 6 pairs" in said["Example"]
    assert "accuracy on the originals 100.0% [61.0, 100] (n=6)".replace("100]", "100.0]") in said["Accuracy"]
    assert len(made["Causal map"].charts) == 2
    assert said["Self-checks"].startswith("4 of 4 checks")
    assert "only 6 pairs" in said["Caveats"]
    assert present(made["Repeat it"].table)["value"][0] == study.run_id
    names = {row["role"] for row in made["Example"].charts[0].to_dict()["datasets"].popitem()[1]}
    assert {"hop 1 · value", "hop 2 · value", "last token"} <= names


def test_a_check_that_failed_is_said(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(4)])
    store.client.log_metric(run_id, "check_tolerance", 1e-5)
    store.client.log_metric(run_id, "check_identity_max_abs", 1e-6)
    store.client.log_metric(run_id, "check_full_patch_without", 1.5e-5)
    store.client.log_metric(run_id, "check_localized_max_abs", float("nan"))
    chapter = present(chapters(store.load_run(run_id))["Self-checks"]())
    assert chapter.text[0].startswith("1 of 3 checks")
    assert present(chapter.table)["passed"].to_list() == ["yes", "NO", "NO"], "a patch that does nothing would pass"


@pytest.mark.parametrize("make", [make_map, make_estimate, make_knockout, lambda pair: make_map(pair, heads=4)])
def test_every_kind_of_study_has_a_page(store, make):
    cell = log_causal(store, [make(pair) for pair in range(4)])
    study = store.load_run(store.load_run(cell).parent_run_id)
    page = report(study)
    assert page.count("<h2>") == 5
    assert "cannot be read" not in page
    assert ("not patched" in page) == (make is make_estimate)


def test_a_page_of_nasty_text_has_no_html_of_the_store(store):
    with store.start("accuracy", NASTY[:60], kind="accuracy") as run:
        run.set_tags({"debug.command": NASTY[:80]})
        with run.cell(NASTY[:60], {"model": NASTY[:60], "hops": 1, "seq_len": 5}) as cell:
            cell.log_metrics({"accuracy": 0.5, "num_samples": 4})
    page = report(store.load_run(run.run_id))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    ours = "html|head|meta|title|style|body|h1|h2|p|pre|img|table|thead|tbody|tr|th|td"
    assert not re.search(rf"<(?!/?({ours})\b)[a-z]", page)


def test_a_part_that_cannot_be_read_costs_only_itself(store):
    run_id = log_causal(store, [make_map(pair) for pair in range(3)])
    store.load_run(run_id).artifact("programs.json").write_bytes(b"no such thing")
    page = report(store.load_run(run_id))
    assert "cannot be read" in page
    assert "Causal map" in page


def test_accuracy_is_said_with_its_ends(store):
    study, *_ = log_accuracy(store, hops=[1, 2])
    (line,) = [line for line in present(chapters(store.load_run(study))["Question"]()).text if line.startswith("tiny:")]
    assert line == "tiny: accuracy 90.0% [80.0, 95.0] (n=60) in each of 2 cells"


def test_the_highest_and_lowest_accuracy_have_their_own_n():
    import polars as pl

    frame = pl.DataFrame(
        {
            "model": ["m"] * 2,
            "hops": ["1", "3"],
            "seq_len": [5, 5],
            "accuracy": [0.9, 0.1],
            "ci_low": [0.8, None],
            "ci_high": [0.95, None],
            "n": [60, 7],
        }
    )
    assert rates_in_words(frame) == [
        "m: accuracy 90.0% [80.0, 95.0] (n=60) at 1 hop, 5 lines, down to 10.0% no CI (n=7) at 3 hops, 5 lines"
    ]


def test_two_cells_of_one_name_each_have_their_map_and_a_password_is_not_shown(store):
    with store.start("causal", "twice", kind="causal_tracing") as study:
        study.set_tags({"debug.command": "debug trace --tracking-uri http://me:s3cret@host/"})
        for _ in range(2):
            with study.cell("the same", {"model": "tiny", "intervention_type": "residual_stream"}) as cell:
                save_maps(cell.folder / "causal_maps" / "00000.safetensors", [make_map(pair) for pair in range(3)])
    run = store.load_run(study.run_id)
    assert sum(name.startswith("Causal map") for name in chapters(run)) == 2
    assert "s3cret" not in report(run)


def test_an_n_that_was_not_recorded_is_not_0():
    assert rate_in_words(0.5, None, None, None) == "50.0% no CI (n not recorded)"
    assert rate_in_words(1.0, 0.44, 1.0, 3) == "100.0% [44.0, 100.0] (n=3)"
