"""What a person who starts here is told: by a word that is misspelt, a model that does not fit, a log file."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from pathlib import Path

import pytest

from debug import cli, progress
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.counterfactual import read_pairs
from debug.errors import InputError, did_you_mean
from debug.models import load, locate
from debug.models.heuristics import find
from debug.plan import Plan
from debug.runner import ExperimentRunner
from debug.tracking import Store, TrackingError
from debug.tracking.writing import NOTE, Heart

ROOT = Path(__file__).parents[1]


def test_a_near_word_is_offered_and_no_far_one() -> None:
    assert did_you_mean("tinny", ["tiny", "smollm2"]) == " (did you mean 'tiny'?)"
    assert did_you_mean("SmolLM2", ["tiny", "smollm2"]) == " (did you mean 'smollm2'?)"
    assert did_you_mean("llama", ["tiny", "smollm2"]) == did_you_mean("tiny", ["tiny"]) == ""


def test_a_misspelt_model_is_told_before_a_hub_is_asked_or_a_study_begun(uri: str) -> None:
    config = CausalConfig(models=["tinny"], num_seqs=1)
    with pytest.raises(InputError, match=r"^there is no model 'tinny' \(did you mean 'tiny'\?\)$"):
        CausalExperimentRunner(uri).run(config)
    assert Store(uri).find_runs().is_empty()
    assert locate("gpt2") == ("gpt2", {})  # a hub's id that is near to none
    assert locate("someone/tinny") == ("someone/tinny", {})
    with pytest.raises(InputError, match="did you mean 'heuristic:any-number'"):
        find("heuristic:any-numbr")


def test_valid_words_have_roles_among_them_and_a_near_word_is_offered() -> None:
    with pytest.raises(
        InputError, match=r"no target \(did you mean 'ref_depth_1_rhs'\?\); .*'roles' \(of targets alone"
    ):
        CausalConfig(models=["tiny"], positions=["ref_dpth_1_rhs"]).check_targets_of_binding()
    with pytest.raises(InputError, match=r"^'roles' is no target; "):
        CausalConfig(models=["tiny"], positions=["roles"])
    with pytest.raises(InputError, match="did you mean 'direct_pointer'"):
        Plan("attention_knockout", positions=["direct_pointr"])


@pytest.mark.parametrize("name", ["ref_depth_4_rhs", "final+ref_depth_4_line"])
def test_a_depth_above_the_hops_is_refused_before_weights_load(name: str) -> None:
    with pytest.raises(InputError, match="is on line 4 of a chain, and chains of 2 or 3 hops are asked for"):
        CausalConfig(models=["tiny"], positions=[name], hops=[2, 3])
    for hops in ([2, 4], [None]):  # of other programs it is there
        CausalConfig(models=["tiny"], positions=[name], hops=hops)


def test_reasons_to_skip_are_grouped_and_the_first_is_said_whole(uri: str) -> None:
    config = CausalConfig(models=["tiny"], positions=["ref_depth_9_rhs"], hops=[None], num_seqs=1)
    with pytest.raises(InputError) as caught:
        CausalExperimentRunner(uri).run(config)
    said = str(caught.value)
    assert "220 x no target 'ref_depth_9_rhs' in this program; it has: ref_depth_1_lhs" in said
    assert said.count("no target") == 1
    assert "…" not in said


def test_the_missing_words_are_named() -> None:
    model = load("tiny")
    with pytest.raises(InputError) as caught:
        model.check_vocabulary("When John = 7\n#a: ")
    assert str(caught.value) == (
        "model 'tiny' has no token for part of this prompt: 'When' 'John' ' '; the bundled model knows variable "
        "binding only, lines such as 'a = 7' and 'b = a'"
    )


def test_a_file_that_holds_no_pairs_says_what_a_pair_is() -> None:
    with pytest.raises(
        InputError, match=r"line 1: this is no JSON object with original, counterfactual, expected_orig"
    ):
        read_pairs(ROOT / "README.md")


def test_an_unknown_run_is_answered_with_the_newest_three(uri: str) -> None:
    store = Store(uri)
    for name in ("one", "two", "three", "four"):
        with store.start("experiment", name, kind="accuracy"):
            pass
    with pytest.raises(TrackingError) as caught:
        store.load_run("nosuchrun")
    assert [name in str(caught.value) for name in ("(four)", "(three)", "(two)", "(one)")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modles", "tiny"], "unrecognized arguments: --modles tiny (did you mean '--models'?)"),
        (["--num-seq", "3"], "unrecognized arguments: --num-seq 3 (did you mean '--num-seqs'?)"),  # no abbreviation
        (["--num-seqs", "x"], "argument --num-seqs: invalid int value: 'x'"),
    ],
)
def test_a_misspelt_option_is_one_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["causal_trace.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "runs" / "causal_trace.py"), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {said}; --help lists the options\n"


@pytest.mark.parametrize(("begun", "said"), [(False, "No run had begun."), (True, "marked KILLED.")])
def test_stopped_speaks_of_runs_only_where_one_was_begun(
    begun: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: argparse.Namespace) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Heart, "begun", begun)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        cli.run(main, argparse.Namespace())
    assert said in capsys.readouterr().err


def test_a_log_file_gets_a_plain_line_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO), progress.Progress(40, "tiny mlp", "pair") as bar:
        for _ in range(40):
            now += 4
            bar.update()
    assert caplog.messages[0] == "tiny mlp: 8 of 40 pairs in 32 s, about 2 min left"
    assert len(caplog.messages) == 5
    assert capsys.readouterr().err == ""


def test_the_backend_is_said_once_and_where_it_was_named(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ExperimentRunner(uri)
        assert caplog.messages == []
        ExperimentRunner(uri, backend="transformers")
    assert caplog.messages == ["backend transformers: asked for"]


def test_a_runs_page_in_mlflow_says_what_was_found(uri: str) -> None:
    result = CausalExperimentRunner(uri).run(CausalConfig(models=["tiny"], num_seqs=4, targets="roles"))
    printed = str(result.cells[0]).splitlines()
    assert printed[1].startswith("  peak: patched at ref_depth_2_rhs, layer 2, the answer becomes the counterfactual's")
    assert printed[2].startswith("  hand-over ref_depth_1_rhs -> ref_depth_2_rhs")
    store = Store(uri)
    note = store.client.get_run(result.cells[0].run_id).data.tags[NOTE]
    for part in (
        r"peak: patched at ref\_depth\_2\_rhs",
        "accuracy 100.0%",
        "(n=4)",
        "0 skipped",
        "curves\\_by\\_layer.png",
    ):
        assert part in note
    assert store.client.get_run(result.run_id).data.tags[NOTE]
    experiment = store.client.get_run(result.run_id).info.experiment_id
    assert store.link(result.run_id) == (
        f"http://localhost:5000/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey=debug"
    )
