"""Counterfactuals by name, what the hypotheses predict of them, and how patched runs are scored by these."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import reference
from debug import models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_map import CausalMap, load_maps, mean_over_pairs, save_maps
from debug.causal_tracing import CausalTracingResult, run_causal_tracing_experiment
from debug.counterfactual import KINDS, as_pair, counterfactual
from debug.engine import Site
from debug.errors import InputError
from debug.generators import FAMILIES, GENERATORS, search
from debug.hypotheses import HYPOTHESES, candidates, prediction, scores_of
from debug.interpreter import Code
from debug.programs import KEEPS_ANSWER, AnyPair, ProgramError, ProgramPair, TextPair, pair_from_record
from debug.rerun import rerun
from present import present
from synthetic import make_map

SKETCH = "a = 1\nb = 2\nc = a\n#c: ", "b = 3\na = 4\nc = a\n#c: "
"""The published example: is the value moved (4), the name (1), or the place (2)?"""
TOLD = "k = 1\nm = 2\nn = 5\nc = k\nd = c\n#d: ", "k = 7\nn = 8\nm = 9\nc = n\nd = c\n#d: "


def made(family: str, kind: str, n: int, lines: int = 8, hops: int | None = None) -> list[AnyPair]:
    """The first pairs of a kind; programs that have none are passed over, at most ten times as many."""
    found: list[AnyPair] = []
    pair = FAMILIES[family].pair
    for program in islice(search(GENERATORS[family], lines, 0, hops), 10 * n):
        try:
            found.append(pair(kind, program.program, program.seed))
        except ProgramError:
            continue
        if len(found) == n:
            break
    return found


def said(pair: AnyPair, target: str = "final") -> dict[str, object]:
    return {name: prediction(name, pair, target) for name in HYPOTHESES}


def given(texts: tuple[str, str]) -> ProgramPair:
    pair = pair_from_record(dict(zip(("original", "counterfactual"), texts, strict=True)))
    assert isinstance(pair, ProgramPair)
    return pair


def test_the_published_example_is_a_pair_on_which_value_name_and_place_differ() -> None:
    pair = given(SKETCH)
    assert pair.kind == "given"
    assert said(pair) == {"value": 4, "pointer_by_name": 1, "pointer_by_order": 2, "no_effect": 1}
    assert set(candidates(pair, ["final"])) == {"1", "2", "3", "4"}
    assert candidates(pair, ["final"])[:2] == ["4", "1"]
    assert pair_from_record(json.loads(json.dumps(pair.to_record()))) == pair


def test_a_target_of_a_chain_line_holds_what_that_line_of_the_source_assigns() -> None:
    pair = given(TOLD)
    assert said(pair) == {"value": 8, "pointer_by_name": 5, "pointer_by_order": 2, "no_effect": 1}
    assert said(pair, "ref_depth_3_rhs") == said(pair, "ref_depth_2_line") == said(pair, "query_var") == said(pair)
    assert said(pair, "ref_depth_1_rhs") == {"value": 7, "pointer_by_name": 1, "pointer_by_order": 1, "no_effect": 1}
    assert said(pair, "ref_depth_1_rhs+ref_depth_3_rhs") == said(pair)  # of several lines: what the query asks for
    assert said(pair.reversed)["value"] == 1
    later = given(("a = 1\nb = a\nc = 2\n#b: ", "c = 3\nb = c\na = 4\n#b: "))
    assert said(later, "ref_depth_2_rhs")["pointer_by_name"] is None, "the name is assigned below that line"
    assert said(later)["pointer_by_name"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_what_it_says_and_keeps_the_answer_or_not(kind: str) -> None:
    for pair in made("variable_binding", kind, 40):
        assert isinstance(pair, ProgramPair)
        one, other = pair.original, pair.counterfactual
        assert (one.answer == other.answer) == KEEPS_ANSWER[kind] == pair.keeps_answer
        assert pair.kind == kind
        assert len(one.text) == len(other.text)
        names, values = ({a.lhs: a.rhs for a in program.assignments} for program in pair.programs)
        if kind == "reorder":
            assert sorted(one.text.splitlines()) == sorted(other.text.splitlines())
        if kind in ("root_value", "swap_values", "distractor"):
            assert list(names) == list(values)
            assert sum(names[name] != values[name] for name in names) == (2 if kind == "swap_values" else 1)
        if kind == "rename":
            assert [a.rhs for a in one.assignments if a.source is None] == [
                a.rhs for a in other.assignments if a.source is None
            ]
            assert sorted(names) == sorted(values)
        if kind == "pointer":
            assert one.chain.root.lhs != other.chain.root.lhs
            assert other.answer not in {int(a.rhs) for a in one.assignments if a.source is None}
        expected = {
            "root_value": {"value": other.answer},
            "swap_values": {"value": other.answer},
            "rename": {"pointer_by_name"},
            "reorder": {"pointer_by_order"},
        }
        if kind in expected:
            moved = {name for name, answer in said(pair).items() if answer not in (one.answer, None)}
            assert moved == set(expected[kind])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_of_every_family_a_kind_is_read_by_its_own_language_or_refused(family: str, kind: str) -> None:
    pairs = made(family, kind, 3)
    if not pairs:
        pair = FAMILIES[family].pair
        with pytest.raises(ProgramError, match=f"no counterfactual of kind {kind}|no other"):
            pair(kind, next(search(GENERATORS[family], 8, 0)).program, 0)
    for pair in pairs:
        assert pair.kind == kind
        assert (pair.expected_original == pair.expected_counterfactual) == KEEPS_ANSWER[kind]
        assert pair_from_record(json.loads(json.dumps(pair.to_record()))) == pair
        if isinstance(pair, TextPair) and kind not in ("distractor", "same_answer"):
            assert len(set(said(pair).values()) - {None}) >= 2


def test_in_python_the_pointers_are_the_sources_references_with_the_originals_literals() -> None:
    text = "a = 1\nb = 2\nd = 5\nc = a + 1\n#c: "
    pair = counterfactual("pointer", text, 3, Code.parse)
    own = {a: int(v) for a, v in (line.split(" = ") for line in text.splitlines()[:3])}
    *bound, last, _ = pair.counterfactual.text.splitlines()
    name = last.split()[2]
    place = [line.split()[0] for line in bound].index(name)
    assert prediction("pointer_by_name", pair, "final") == own[name] + 1
    assert prediction("pointer_by_order", pair, "final") == list(own.values())[place] + 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "pointr"}, "kind is 'pointr'"),
        ({"kind": ["pointer"]}, "kind is"),
        ({"kind": "reorder"}, "keeps the answer"),
        ({"kind": "root_value"}, "differ in the root value and in nothing else"),
        ({"predictions": [1]}, "predictions is"),
        ({"predictions": {"mine": 1.5}}, "predictions of 'mine'"),
        ({"counterfactual": "b = 3\na = 1\nc = a\n#c: "}, "same answer, 1"),
    ],
)
def test_a_record_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        pair_from_record(dict(zip(("original", "counterfactual"), SKETCH, strict=True)) | fields)


def test_an_unknown_kind_or_hypothesis_is_refused_with_those_there_are() -> None:
    with pytest.raises(ProgramError, match="kind is 'pointr'; expected one of root_value, pointer"):
        counterfactual("pointr", SKETCH[0])
    with pytest.raises(InputError, match="hypothesis is 'mine'; expected one of value"):
        prediction("mine", given(SKETCH), "final")
    with pytest.raises(InputError, match="counterfactual is 'pointer', but pairs are given"):
        CausalConfig(models=["tiny"], pairs="pairs.jsonl", counterfactual="pointer")
    with pytest.raises(InputError, match="counterfactual"):
        CausalConfig(models=["tiny"], counterfactual="pointr")


@pytest.fixture(scope="module")
def told() -> CausalTracingResult:
    """Pairs on which all hypotheses differ, on the bundled model, which moves values."""
    pairs = [pair for pair in made("variable_binding", "pointer", 40, 17, 3) if len({*said(pair).values()}) == 4]
    return run_causal_tracing_experiment("tiny", pairs[:8], positions="targets")


def test_logits_of_all_candidates_are_those_of_the_patched_run(told: CausalTracingResult) -> None:
    model = models.load("tiny")
    result = told.results[0]
    causal_map, pair = told.maps[0], result.pair
    assert isinstance(pair, ProgramPair)
    assert causal_map.z_candidates is not None
    numbers = {str(a.rhs) for program in pair.programs for a in program.assignments if a.source is None}
    assert {*causal_map.candidates} == numbers
    assert list(causal_map.candidates)[:2] == [str(pair.expected_counterfactual), str(pair.expected_original)]
    np.testing.assert_array_equal(causal_map.z_candidates[..., :2], causal_map.z_patched)
    [tokenized] = reference.tokenized(model, [pair])
    own, source = (torch.tensor(program.token_ids) for program in tokenized.programs)
    _, activations = reference.run(model, source, "residual_stream")
    for layer, target in ((0, "ref_depth_2_rhs"), (2, "final"), (5, "final")):
        at = causal_map.targets[target]
        site = Site("residual_stream", layer, tuple(at), source=0)
        logits = reference.patch(model, own, [site], {"residual_stream": activations})
        expected = logits[list(causal_map.candidates.values())]
        found = causal_map.z_candidates[causal_map.layers.index(layer), causal_map.target_columns[target]]
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_at_layer_0_a_patch_is_the_prompt_with_the_sources_token(told: CausalTracingResult) -> None:
    model = models.load("tiny")
    for result in told.results:
        assert isinstance(result.pair, ProgramPair)
        assert result.causal_map is not None
        [tokenized] = reference.tokenized(model, [result.pair])
        ids = list(tokenized.original.token_ids)
        at = result.causal_map.targets["ref_depth_2_rhs"][0]
        ids[at] = tokenized.counterfactual.token_ids[at]
        logits, _ = reference.run(model, torch.tensor(ids), "residual_stream")
        row = result.causal_map.layers.index(0)
        assert result.causal_map.at_target("ref_depth_2_rhs", "success")[row] in (0, 1)
        assert result.causal_map.top[row, result.causal_map.target_columns["ref_depth_2_rhs"]] == logits.argmax()


def test_the_bundled_model_moves_the_value_not_a_pointer(told: CausalTracingResult) -> None:
    scores = scores_of(told.maps, [result.pair for result in told.results])  # type: ignore[misc]  (none was skipped)
    assert scores is not None
    final = scores["final"]
    assert final.n == len(told.maps)
    top = scores.layers.index(max(scores.layers))
    assert [final.agreement[name][top].estimate for name in HYPOTHESES] == [1, 0, 0, 0]
    assert final.best[top].winner == "value"
    assert final.best[0].winner == "no_effect"


def test_of_a_run_into_the_counterfactual_hypotheses_are_asked_the_other_way_round() -> None:
    pair = given(TOLD)
    result = run_causal_tracing_experiment("tiny", [pair], positions="targets", direction="into_counterfactual")
    assert list(result.maps[0].candidates)[:2] == ["1", "8"]
    scores = scores_of(result.maps, [pair])
    assert scores is not None
    top = scores.layers.index(max(scores.layers))
    assert scores["final"].agreement["value"][top].estimate == 1
    assert scores["final"].agreement["no_effect"][0].estimate == 1


def drawn(n: int, value: int, none: int) -> tuple[list[CausalMap], list[AnyPair]]:
    """Maps of one layer and target: top tokens that value predicts, then those of no effect, then neither."""
    maps, pairs = [], []
    for number in range(n):
        pair = given(SKETCH)
        tokens = {"4": 40, "1": 10, "2": 20, "3": 30}
        top = 40 if number < value else 10 if number < value + none else 30
        one = make_map()
        shape = (*one.top.shape, len(tokens))
        maps.append(
            replace(
                one,
                pair=number,
                top=np.full_like(one.top, top),
                answer_tokens=(40, 10),
                candidates=tokens,
                z_candidates=np.zeros(shape, np.float32),
                vocabulary={**one.vocabulary, 40: "4", 10: "1", 30: "3"},
            )
        )
        pairs.append(pair)
    return maps, pairs


@pytest.mark.parametrize(
    ("value", "none", "winner"),
    [(20, 0, "value"), (14, 6, "tie"), (18, 2, "value"), (2, 18, "tie"), (9, 9, "none"), (0, 0, "none")],
)
def test_the_winner_is_told_apart_by_mcnemars_test_or_it_is_a_tie(value: int, none: int, winner: str) -> None:
    scores = scores_of(*drawn(20, value, none))
    assert scores is not None
    final = scores["final"]
    assert final.n == 20
    assert final.agreement["value"][0].estimate == value / 20
    assert final.agreement["no_effect"][0].estimate == none / 20
    low, high = stats.binomtest(value, 20).proportion_ci(method="wilson")
    found = final.agreement["value"][0]
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    best = final.best[0]
    assert best.winner == winner
    if value + none:
        assert best.compared is not None
        assert best.compared.p_value == pytest.approx(stats.binomtest(max(value, none), value + none).pvalue, abs=1e-6)
    if (value, none) == (2, 18):  # the published example cannot tell the name from no effect: they predict the same
        assert {*best.names} == {"pointer_by_name", "no_effect"}


def test_pairs_on_which_all_predict_the_same_are_no_evidence() -> None:
    maps, pairs = drawn(10, 10, 0)
    control = as_pair({"original": "a = 1\nb = 2\n#a: ", "counterfactual": "c = 1\nb = 2\n#c: ", "kind": "same_answer"})
    scores = scores_of(maps, [*pairs[:4], *[control] * 6])
    assert scores is not None
    assert (scores.n_pairs, scores["final"].n) == (10, 4)
    assert scores_of(maps[:2], [control, control]) is None
    assert scores_of([replace(m, candidates={}, z_candidates=None) for m in maps], pairs) is None, "older maps"


def test_a_hypothesis_of_ones_own_is_one_function_and_its_answers_logits_are_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(HYPOTHESES, "nine", lambda original, source, target: 9 if target == "final" else None)
    pair = given(SKETCH)
    result = run_causal_tracing_experiment("tiny", [pair], positions="targets", require_correct=False)
    assert "9" in result.maps[0].candidates
    scores = scores_of(result.maps, [pair])
    assert scores is not None
    assert "nine" in scores["final"].agreement
    assert all("nine" not in each.agreement for each in scores.places if each.place.target != "final")


def test_texts_have_predictions_as_data() -> None:
    record = {
        **dict(zip(("original", "counterfactual"), SKETCH, strict=True)),
        **{"expected_original": 1, "expected_counterfactual": 4, "spans": {"reference": [16, 17]}},
        "predictions": {"the second": 2},
    }
    pair = pair_from_record(record)
    assert isinstance(pair, TextPair)
    assert set(candidates(pair, ["final"])) == {"1", "2", "3", "4"}
    result = run_causal_tracing_experiment("tiny", [pair], positions="targets", require_correct=False)
    scores = scores_of(result.maps, [pair])
    assert scores is not None
    assert scores["final"].agreement.keys() == {"value", "no_effect", "the second"}


def test_a_map_with_candidates_is_written_and_read(tmp_path: Path, told: CausalTracingResult) -> None:
    save_maps(tmp_path / "maps.safetensors", told.maps)
    read = load_maps(tmp_path / "maps.safetensors")
    for one, other in zip(told.maps, read, strict=True):
        assert one.candidates == other.candidates
        np.testing.assert_array_equal(one.z_candidates, other.z_candidates)
    with pytest.raises(InputError, match=r"'z_candidates' .* does not fit the 1 candidates"):
        replace(read[0], candidates={"1": 1})


@pytest.mark.parametrize("kind", ["pointer", "reorder"])
def test_a_study_of_a_kind_is_logged_scored_and_repeated_to_the_last_bit(kind: str, uri: str) -> None:
    config = CausalConfig(
        models=["tiny"], counterfactual=kind, seq_lens=[8], num_seqs=3, positions="targets", layers=[0, 4]
    )
    result = CausalExperimentRunner(uri).run(config)
    run = result.logged()
    assert run.params["counterfactual"] == kind
    assert {pair.kind for pair in run.pairs} == {kind}
    first = run.maps[0]
    assert first.metrics[0] == ("answer_kept" if kind == "reorder" else "success")
    scores = result.cells[0].scores
    assert scores is not None
    record = json.loads((run.artifact("hypotheses.json")).read_text())
    assert record == json.loads(json.dumps(scores.to_record()))
    assert run.metrics["distinguishing_pairs/final"] == scores["final"].n
    assert "hypothesis value alone predicts best" in str(result.cells[0])
    (repeated,) = rerun(run.run_id, tracking_uri=uri)
    assert present(repeated.verdict).outcome == "identical", repeated
    assert mean_over_pairs(run.maps).curves
