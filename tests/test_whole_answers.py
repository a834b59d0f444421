"""Answers of several tokens: scored as a whole, or by what the patched model writes; beside plain hooks."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import families
from debug import models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner, dry_run
from debug.causal_map import CausalMap, CausalMapError
from debug.causal_tracing import CausalTracingResult, run_causal_tracing_experiment
from debug.counterfactual import as_pair
from debug.engine import Site
from debug.errors import InputError
from debug.hypotheses import scores_of
from debug.kinds import Argument, Json
from debug.models import LoadedModel
from debug.plan import Plan
from debug.prompts.answers import written_answer
from debug.rerun import rerun
from debug.token_analyzer import analyze_pair
from debug.tracking import load_run
from debug.tracking.export import cells
from test_dry_run import counted
from test_plain_hooks import untouched
from test_several_sources import patched
from test_text_pairs import file_of


def pair(original: str, counterfactual: str, expected: Json, other: Json, **fields: Json) -> dict[str, Json]:
    texts = {"original": original, "counterfactual": counterfactual}
    return texts | {"expected_original": expected, "expected_counterfactual": other} | fields


PAIRS = {
    "begin alike": pair("a = 12\nb = 45\nc = a\n#c: ", "a = 17\nb = 45\nc = a\n#c: ", 12, 17),
    "differ at once": pair("a = 21\nb = a\n#b: ", "a = 37\nb = a\n#b: ", 21, 37, predictions={"first digit": 31}),
    "unlike lengths": pair("a = 7\nb = 13\nc = a\n#c: ", "a = 7\nb = 13\nc = b\n#c: ", 7, 13),
}


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return families.family(request.param)


def traced(model: LoadedModel, name: str, component: str, scored_by: str, **plan: Argument) -> CausalTracingResult:
    plan = {"require_correct": False} | plan
    return run_causal_tracing_experiment(model, [PAIRS[name]], component, scored_by=scored_by, **plan)


def tokens_of(model: LoadedModel, answer: str) -> list[int]:
    return model.tokenizer(answer, add_special_tokens=False).input_ids


class Plain:
    """A pair's squares with hooks on the plain model."""

    def __init__(self, model: LoadedModel, causal_map: CausalMap, name: str) -> None:
        self.hf, self.map = untouched(model), causal_map
        both = analyze_pair(model.tokenizer, as_pair(PAIRS[name]), begin_alike=True).programs
        self.prompts = torch.tensor([program.token_ids for program in both])

    def logits(self, at: tuple[int, ...], written: Sequence[int]) -> Float[Tensor, "vocabulary"]:
        row, *head, column = at
        heads = tuple(self.map.heads[head[0]]) if head else None
        where = self.map.layers[row], tuple(self.map.columns[column])
        return patched(self.hf, self.prompts, 0, [Site(self.map.intervention_type, *where, heads, source=1)], written)

    def squares(self) -> list[tuple[int, ...]]:
        return [*product(*map(range, self.map.top.shape))]


@pytest.mark.parametrize("component", ["residual_stream", "attention_heads", "mlp"])
@pytest.mark.parametrize("name", PAIRS)
def test_every_candidate_of_every_square_has_the_probability_that_hooks_give(
    model: LoadedModel, name: str, component: str
) -> None:
    [found] = traced(model, name, component, "whole_answer", positions="targets", intervention_layers=[0, 2]).maps
    plain, tokens = Plain(model, found, name), {answer: tokens_of(model, answer) for answer in found.candidates}
    c, o = (str(PAIRS[name][f"expected_{which}"]) for which in ("counterfactual", "original"))
    assert [*found.candidates][:2] == [c, o]
    parts = next(n for n, (a, b) in enumerate(zip(tokens[c], tokens[o], strict=False)) if a != b)
    assert parts == (name == "begin alike")
    assert found.answer_tokens == (tokens[c][parts], tokens[o][parts])
    assert found.log_probabilities is not None
    assert found.said is not None
    for at in plain.squares():
        sums = []
        for ids in tokens.values():
            each = [plain.logits(at, ids[:n]).log_softmax(-1)[token] for n, token in enumerate(ids)]
            sums.append(float(torch.stack(each).sum()))
        assert np.abs(found.log_probabilities[at] - sums).max() < 1e-4
        assert found.said[at] == int(np.argmax(sums))
        assert found.values("success")[at] == (np.argmax(sums) == 0)
        z = plain.logits(at, tokens[c][:parts])[list(found.answer_tokens)]
        assert np.abs(found.z_patched[at] - z.numpy()).max() < 1e-4
    assert np.ptp(found.log_probabilities.reshape(-1, len(tokens)), axis=0).min() > 0.1, "patches do something"


@pytest.mark.parametrize("name", PAIRS)
def test_greedy_is_what_the_hooked_model_writes(model: LoadedModel, name: str) -> None:
    result = traced(model, name, "residual_stream", "greedy", intervention_layers=[0, 3, 4])
    [found], [one] = result.maps, result.results
    plain, longest = Plain(model, found, name), max(len(tokens_of(model, answer)) for answer in found.candidates)
    texts = []
    for at in plain.squares():
        written: list[int] = []
        for _ in range(longest + 1):
            written.append(int(plain.logits(at, written).argmax()))
        texts.append(model.tokenizer.decode(written))
        assert found.said is not None
        assert found.said[at] == written_answer(texts[-1], [*found.candidates])
    assert one.answers is not None
    assert one.answers[0] in texts  # a square that does nothing
    assert len({*texts}) > 1 or name == "begin alike"  # whose programs differ least
    assert found.log_probabilities is None


def test_what_is_written_is_an_answer_only_where_it_ends() -> None:
    assert written_answer(" 12\n", ["1", "12"]) == 1
    assert written_answer("12", ["1"]) == -1
    assert [written_answer(text, ["1", "2"]) for text in ("1.5 x", "1,000", "1. So", "2, then")] == [-1, -1, 0, 1]
    assert written_answer("1", ["12", "1"]) == 1
    assert written_answer("red.", ["redder", "red"]) == 1
    assert written_answer("(a", ["("]) == -1
    assert written_answer("", ["1"]) == -1


@pytest.mark.parametrize("name", ["differ at once"])
def test_first_tokens_are_as_ever_beside_whole_answers(model: LoadedModel, name: str) -> None:
    [first], [whole] = (
        traced(model, name, "residual_stream", scored_by).maps for scored_by in ("first_token", "whole_answer")
    )
    for field in ("z_clean", "z_counterfactual", "z_patched", "top", "lens_logits", "lens_ranks"):
        assert np.array_equal(getattr(first, field), getattr(whole, field)), field
    assert first.answer_tokens == whole.answer_tokens
    assert first.said is None


def test_answers_of_one_token_are_alike_however_they_are_scored(uri: str) -> None:
    """Where the top token is a candidate; the control, too."""
    maps = {}
    for scored_by in ("first_token", "whole_answer", "greedy"):
        config = CausalConfig(
            models=["tiny"], num_seqs=2, hops=[2], seq_lens=[5], layers=[0, 2, 4], scored_by=scored_by
        )
        [cell] = CausalExperimentRunner(uri).run(config).cells
        run = load_run(cell.run_id, uri)
        assert run.params["scored_by"] == scored_by
        maps[scored_by] = list(run.maps)
        assert cell.accuracy is not None
        assert cell.accuracy.estimate == 1
    for first, *others in zip(*maps.values(), strict=True):
        tokens = [*first.candidates.values()]
        for other in others:
            known = np.isin(first.top, tokens)
            assert known.mean() > 0.9
            assert np.array_equal(first.values("success")[known], other.values("success")[known])
            assert first.control_top is not None
            assert other.control_said is not None
            of_control = np.isin(first.control_top, tokens)
            expected = np.array([tokens.index(token) if token in tokens else -1 for token in first.control_top.ravel()])
            assert np.array_equal(expected[of_control.ravel()], other.control_said.ravel()[of_control.ravel()])
            assert (first.control_top == first.answer_tokens[1]).mean() > 0.5


@pytest.mark.parametrize("scored_by", ["whole_answer", "greedy"])
def test_a_run_is_logged_exported_and_repeated_to_the_last_bit(uri: str, tmp_path: Path, scored_by: str) -> None:
    path = file_of(tmp_path, [*PAIRS.values()])
    config = CausalConfig(
        models=["tiny"], pairs=path, scored_by=scored_by, require_correct=False, positions="targets", layers=[0, 3]
    )
    [cell] = CausalExperimentRunner(uri).run(config).cells
    run = load_run(cell.run_id, uri)
    assert [one.scored_by for one in run.maps] == [scored_by] * 3
    assert {"answer", "top_token"} <= {*cells(run.maps[0]).columns}
    assert run.samples["raw_output"][0] is not None
    [again] = rerun(run)
    assert again.verdict is not None
    assert again.verdict.outcome == "identical"
    assert load_run(again.run_id, uri).params["scored_by"] == scored_by


def test_hypotheses_are_told_apart_by_whole_answers(model: LoadedModel) -> None:
    """12 and 17 begin alike: no first token could."""
    result = traced(model, "begin alike", "residual_stream", "whole_answer", positions="targets")
    scores = scores_of(result.maps, [as_pair(PAIRS["begin alike"])])
    assert scores is not None
    [found] = result.maps
    for place in scores.places:
        of_column = found.answered[:, found.target_columns[place.place.target]]
        assert [rate.estimate for rate in place.agreement["value"]] == [float(said == 0) for said in of_column]
        assert [rate.estimate for rate in place.agreement["no_effect"]] == [float(said == 1) for said in of_column]


def test_a_knockout_and_an_ablation_keep_whole_answers(model: LoadedModel) -> None:
    edges = {"positions": ["final->ref_depth_1_rhs"]}
    for kind, plan in (("attention_knockout", edges), ("mlp", {"source": "zero"})):
        [found] = traced(model, "begin alike", kind, "whole_answer", **plan).maps
        assert [*found.candidates] == ["17", "12"]
        assert found.log_probabilities is not None
        kept = found.log_probabilities.argmax(-1) == 1
        assert np.array_equal(found.values("answer_kept"), kept)
        assert scores_of([found], [as_pair(PAIRS["begin alike"])]) is None


def test_what_cannot_be_scored_is_a_sentence(model: LoadedModel) -> None:
    begins = pair("a = 1\nb = 12\nc = a\n#c: ", "a = 1\nb = 12\nc = b\n#c: ", 1, 12)
    for scored_by in ("whole_answer", "greedy"):  # as if both answers were one, it would be an ablation's map
        with pytest.raises(InputError, match=r"of the answers '12' and '1' one begins the other: no token differs"):
            run_causal_tracing_experiment(model, [begins], scored_by=scored_by, require_correct=False)
    third = pair("a = 1\nb = 2\nc = 12\nd = a\n#d: ", "a = 1\nb = 2\nc = 12\nd = b\n#d: ", 1, 2)
    with pytest.raises(InputError, match=r"'1' begins '12', too: no probability tells them apart; 'greedy' does"):
        run_causal_tracing_experiment(model, [third], scored_by="whole_answer", require_correct=False)
    [found] = run_causal_tracing_experiment(model, [third], scored_by="greedy", require_correct=False).maps
    assert found.metrics[0] == "success"
    assert found.answer_tokens[0] != found.answer_tokens[1]
    with pytest.raises(InputError, match=r"begin with the same token; .* with scored_by 'whole_answer', or 'greedy'"):
        traced(model, "begin alike", "mlp", "first_token")
    with pytest.raises(InputError, match="know first tokens alone"):
        Plan(scored_by="greedy", method="attribution")
    with pytest.raises(InputError, match="know first tokens alone"):
        Plan(scored_by="greedy", source="stored", source_run="0" * 32)
    with pytest.raises(InputError, match="expected one of first_token, whole_answer, greedy"):
        Plan(scored_by="letters")


def test_a_candidate_that_begins_another_is_no_candidate(model: LoadedModel) -> None:
    text = "a = 4\nb = 45\nc = 21\n#c: "
    one = pair(text, text.replace("21", "37"), 21, 37)
    [found] = run_causal_tracing_experiment(model, [one], scored_by="whole_answer", require_correct=False).maps
    assert [*found.candidates] == ["37", "21", "45"]


def test_only_pairs_that_the_model_answers_as_scored_are_used() -> None:
    model = models.load("tiny")
    result = traced(model, "unlike lengths", "mlp", "greedy")
    [asked] = result.results
    assert asked.correct is not None
    if all(asked.correct):
        pytest.fail("the bundled model knows no two-digit numbers")
    with pytest.raises(InputError, match="does not answer the"):
        traced(model, "unlike lengths", "mlp", "greedy", require_correct=True)


def test_a_map_with_one_half_of_it_is_none(model: LoadedModel) -> None:
    [found] = traced(model, "begin alike", "mlp", "whole_answer", intervention_layers=[0]).maps
    for broken in ({"said": None}, {"scored_by": "first_token"}):
        with pytest.raises(CausalMapError, match="'said'"):
            replace(found, **broken)
    assert found.beginning_at(4).log_probabilities is not None


@pytest.mark.parametrize("scored_by", ["whole_answer", "greedy"])
def test_a_dry_run_counts_them(scored_by: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_of(tmp_path, [*PAIRS.values()])
    config = CausalConfig(
        models=["tiny"], pairs=path, scored_by=scored_by, require_correct=False, positions="targets", logit_lens=False
    )
    [plan] = dry_run(config, timed=False)
    with counted(models.load("tiny"), monkeypatch) as found:
        CausalExperimentRunner(uri).run(config)
    if scored_by == "whole_answer":
        assert plan.work.token_layers == found.all - found.decided
    else:
        assert plan.work.token_layers < found.all <= plan.work.token_layers + plan.depends.token_layers
