"""Pairs of any texts: no grammar, several places that differ, named spans; everything that a causal run has."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import families
import reference
import vocabularies
from debug import models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.causal_map.grid import held_by_construction
from debug.causal_tracing import run_causal_tracing_experiment
from debug.counterfactual import as_pair, make_pair, read_pairs
from debug.errors import InputError
from debug.generators import get_generator, search
from debug.kinds import Argument, Json
from debug.models.hook_points import COMPONENTS
from debug.programs import Program, ProgramError, ProgramPair, TextPair, pair_from_record
from debug.rerun import rerun
from debug.token_analyzer import PairError, analyze_pair
from debug.tracking import Store, load_run
from debug.tracking.export import export_run, import_run
from present import present
from test_causal_tracing import assert_map_is

POINTER: dict[str, Json] = {
    "original": "a = 1\nb = 2\nc = a\nd = c\n#d: ",
    "counterfactual": "b = 3\na = 4\nc = a\nd = c\n#d: ",
    "expected_original": 1,
    "expected_counterfactual": 4,
    "spans": {"first_line": [0, 5], "reference": [16, 17]},
}
"""Two lines differ, in four places."""


def changed(**fields: Json) -> dict[str, Json]:
    return POINTER | fields


def binding_pairs(n: int) -> list[ProgramPair]:
    made = islice(search(get_generator("variable_binding")[1], 5, 0, 3), n)
    return [make_pair(each.program, each.seed) for each in made]


def as_text(pair: ProgramPair) -> dict[str, Json]:
    """The pair as texts of which nothing is known but a span."""
    record = {name: value for name, value in pair.to_record().items() if name.startswith(("orig", "count", "exp"))}
    return record | {"spans": {"root": list(pair.variable_chain.root.rhs_span)}}


def file_of(folder: Path, records: list[dict[str, Json]]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(path)


def test_a_record_with_spans_is_a_pair_of_texts_and_reads_back_the_same() -> None:
    pair = pair_from_record(POINTER)
    assert isinstance(pair, TextPair)
    assert (pair.expected_original, pair.expected_counterfactual) == (1, 4)
    again = pair_from_record(json.loads(json.dumps(pair.to_record())))
    assert again == pair
    assert again.to_record() == pair.to_record()
    assert (pair.original.seq_len, pair.original.hops, pair.variable_chain) == (5, None, None)


def test_texts_without_spans_are_texts_where_they_are_no_variable_binding() -> None:
    record = {"original": "The cat sat on the", "counterfactual": "The dog sat on the"}
    with pytest.raises(ProgramError, match="query line"):
        pair_from_record(record)
    answers = {"expected_original": " mat ", "expected_counterfactual": "rug"}
    assert as_pair(record | answers).expected_original == "mat"
    assert isinstance(pair_from_record(binding_pairs(1)[0].to_record()), ProgramPair)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed(expected_original=None), "needs the answers"),
        (changed(expected_original=4), "the same answer, 4"),
        (changed(expected_original="4"), "the same answer, '4'"),
        (changed(expected_original=""), "one line that is not empty"),
        (changed(expected_original="a\nb"), "one line that is not empty"),
        (changed(expected_original=2**63), "at most 64 bits"),
        (changed(expected_original=1.5), "expected an integer"),
        (changed(original=" "), "a text has 1 characters"),
        (changed(original="x" * 100_001), "100,001 characters; expected 1 to 100,000"),
        (changed(original="\ud800"), "lone surrogate"),
        (changed(spans={"a": [0, 1000]}), r"span 'a' is \[0, 1000\], outside the text, which has 28 characters"),
        (changed(spans={"a": [-1, 3]}), "outside the text"),
        (changed(spans={"a": [3, 3]}), "outside the text"),
        (changed(spans={"a": [0, True]}), r"expected \[start, end\]"),
        (changed(spans={"a": "0-3"}), r"expected \[start, end\]"),
        (changed(spans={"final": [0, 1]}), "cannot name a span"),
        (changed(spans={"a+b": [0, 1]}), "cannot name a span"),
        (changed(spans={"1": [0, 1]}), "cannot name a span"),
        (changed(spans=[["a", 0, 1]]), "expected names"),
        (changed(counterfactual=None), "needs the texts"),
        (changed(seed="1"), "'seed' is '1'"),
    ],
)
def test_what_is_no_pair_is_a_sentence(record: dict[str, Json], message: str) -> None:
    with pytest.raises(ProgramError, match=message) as caught:
        pair_from_record(record)
    assert len(str(caught.value)) < 400


def test_targets_are_what_differs_what_has_a_name_and_ends_of_lines() -> None:
    tokenizer = vocabularies.tokenizer("tiny")
    found = analyze_pair(tokenizer, pair_from_record(POINTER))
    targets = found.original.targets()
    texts = {name: "".join(found.original.tokens[p] for p in at) for name, at in targets.items()}
    assert texts == {
        "difference_1": "a",
        "difference_2": "1",
        "difference_3": "b",
        "difference_4": "2",
        "first_line": "a = 1",
        "reference": "a",
        "line_4_end": "c",
        "final": ": ",
    }
    assert [found.original.tokens[p] for p in found.differing] == ["a", "1", "b", "2"]
    assert found.counterfactual.roles == found.original.roles
    both = analyze_pair(tokenizer, present_reversed(POINTER))
    assert both.original.roles["reference"] == found.original.roles["reference"]


def present_reversed(record: dict[str, Json]) -> TextPair:
    pair = pair_from_record(record)
    assert isinstance(pair, TextPair)
    return pair.reversed


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("tiny", changed(counterfactual="b = 3\na = 4\n#a: "), "tokens, counterfactual"),
        ("tiny", changed(counterfactual=POINTER["original"]), "the prompts are the same tokens"),
        ("merged", changed(spans={"query": [25, 26]}), "span 'query', 'd', begins or ends inside a token"),
    ],
)
def test_what_cannot_be_aligned_says_so_with_the_tokens(name: str, record: dict[str, Json], message: str) -> None:
    with pytest.raises(PairError, match=message) as caught:
        analyze_pair(vocabularies.tokenizer(name), pair_from_record(record))
    assert "['" in str(caught.value)


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_every_square_is_what_a_patch_by_hand_gives(name: str, component: str) -> None:
    model = families.family(name)
    pair = pair_from_record(POINTER)
    (causal_map,) = run_causal_tracing_experiment(model, [pair], component, require_correct=False).maps
    tokenized = analyze_pair(model.tokenizer, pair)
    token_ids = torch.tensor(tokenized.original.token_ids)
    source = {component: reference.run(model, torch.tensor(tokenized.counterfactual.token_ids), component)[1]}
    assert_map_is(causal_map, 20, lambda sites: reference.patch(model, token_ids, sites, source))
    assert (causal_map.logit_change[..., : causal_map.first_difference] == 0).all()


@pytest.mark.parametrize(
    "plan",
    [
        {"intervention_type": "residual_stream"},
        {"intervention_type": "attention_heads", "positions": ["final"]},
        {"intervention_type": "mlp", "method": "attribution"},
        {"intervention_type": "residual_stream", "direction": "into_counterfactual"},
        {"intervention_type": "residual_stream", "source": "mean"},
        {"intervention_type": "residual_stream", "source": "resample"},
        {"intervention_type": "residual_stream", "source": "zero"},
    ],
)
def test_texts_that_are_variable_binding_give_its_numbers(plan: dict[str, Argument]) -> None:
    """To the last bit: the same tokens are run, in the same batches."""
    model, given = models.load("tiny"), binding_pairs(4)
    of_programs, of_texts = (
        run_causal_tracing_experiment(model, pairs, control=False, **plan).maps
        for pairs in (given, [as_text(pair) for pair in given])
    )
    assert len(of_programs) == len(of_texts) == 4
    for one, other in zip(of_programs, of_texts, strict=True):
        assert one.answer_tokens == other.answer_tokens
        n = len(one.positions)
        assert one.positions == other.positions[:n]
        np.testing.assert_array_equal(one.z_patched[..., :n, :], other.z_patched[..., :n, :])
        np.testing.assert_array_equal(one.top[..., :n], other.top[..., :n])


def test_a_study_of_a_file_is_logged_read_back_and_repeated_to_the_last_bit(uri: str, tmp_path: Path) -> None:
    records = [as_text(pair) for pair in binding_pairs(4)] + [changed(), changed(counterfactual="a = 1\n#a: ")]
    path = file_of(tmp_path, records)
    config = CausalConfig(models=["tiny"], pairs=path, positions="targets", targets=["root", "final"], source="mean")
    study = CausalExperimentRunner(uri).run(config)
    run = load_run(study.cells[0].run_id, uri)
    assert [isinstance(pair, TextPair) for pair in run.pairs] == [True] * 4
    assert [pair.original.text for pair in run.pairs] == [record["original"] for record in records[:4]]
    assert run.pairs[0].to_record()["spans"] == records[0]["spans"]
    assert set(run.maps[0].targets) == {"root", "final"}
    samples = run.samples
    assert samples["error"].is_null().to_list() == [True] * 4 + [False] * 2
    assert samples["expected"].to_list() == [record["expected_original"] for record in records]
    assert (run.params["generator"], run.params["hops"], run.params["num_seqs"]) == ("given", "any", "6")
    (repeated,) = rerun(run.run_id, tracking_uri=uri)
    assert present(repeated.verdict).outcome == "identical", repeated


def test_a_span_may_be_called_as_lines_of_a_chain_are() -> None:
    """It was taken for the line whose left side has the other name."""
    record = {"original": "a = 1\n#a: ", "counterfactual": "a = 2\n#a: ", "expected_original": "1"}
    given = record | {"expected_counterfactual": "2", "spans": {"a_lhs": [0, 1], "a_line": [0, 5]}}
    pair = analyze_pair(models.load("tiny").tokenizer, TextPair.from_record(given), "{code}")
    assert pair.original.positions("a_line") == [0, 1, 2]


def test_edges_between_named_spans_are_cut(uri: str) -> None:
    given = [as_text(pair) for pair in binding_pairs(3)]
    result = run_causal_tracing_experiment("tiny", given, "attention_knockout", positions=["final->root"])
    edges = result.maps[0].targets["final->root"]
    root = analyze_pair(models.load("tiny").tokenizer, present(result.results[0].pair)).original.roles["root"]
    assert set(edges) == {*root, len(result.maps[0].tokens) - 1}
    with pytest.raises(InputError, match="no target 'query_hash'"):
        run_causal_tracing_experiment("tiny", given, "attention_knockout", positions=["direct_pointer"])
    with pytest.raises(InputError, match="no root value"):
        run_causal_tracing_experiment("tiny", given, exclude_shallow=True)


def test_no_place_that_differs_is_a_peak() -> None:
    """Each is the counterfactual's input, not only the first of them."""
    (causal_map,) = run_causal_tracing_experiment("tiny", [POINTER], positions="targets", require_correct=False).maps
    held = {name for name in causal_map.targets if held_by_construction(causal_map, name)}
    assert held == {"difference_1", "difference_2", "difference_3", "difference_4", "first_line", "final"}
    assert {*causal_map.targets} - held == {"reference", "line_4_end"}


def test_an_exported_run_of_texts_is_imported_with_its_pairs(uri: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, [as_text(pair) for pair in binding_pairs(2)])
    study = CausalExperimentRunner(uri).run(CausalConfig(models=["tiny"], pairs=path, positions="targets"))
    run = load_run(study.cells[0].run_id, uri)
    assert {"hops", "seq_lens", "num_seqs", "seed"} & load_run(study.run_id, uri).config.keys() == set()
    export_run(run, tmp_path / "out")
    other_uri = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    run_id, _ = import_run(tmp_path / "out", Store(other_uri))
    again = load_run(run_id, other_uri)
    assert again.pairs == run.pairs
    assert again.pairs[0].to_record() == run.pairs[0].to_record()
    for one, other in zip(run.maps, again.maps, strict=True):
        np.testing.assert_array_equal(one.z_patched, other.z_patched)
        assert one.differing == other.differing != []


def test_one_program_of_ones_own_is_as_many_pairs_as_are_asked_for(uri: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text("a = 1\nb = a\n#b: ")
    config = CausalConfig(models=["tiny"], program=str(path), num_seqs=3, require_correct=False, positions="targets")
    run = load_run(CausalExperimentRunner(uri).run(config).cells[0].run_id, uri)
    assert [pair.expected_original for pair in run.pairs] == [1, 1, 1]
    assert len({pair.expected_counterfactual for pair in run.pairs}) == 3
    assert "line_1_rhs" in run.maps[0].targets


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no pair"),
        ('{"original": 1}\n', "line 1: a pair needs the texts"),
        (f"{json.dumps(POINTER)}\n{{\n", "line 2: "),
        (f"{json.dumps(POINTER)}\n[]\n", "line 2: this is no JSON object with original"),
        ("[" * 100_000, r"line 1: this is no JSON object .*nested too deep"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line_before_weights_load(
    uri: str, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        CausalExperimentRunner(uri).run(CausalConfig(models=["tiny"], pairs=str(path)))
    assert Store(uri).find_runs().is_empty()


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_pairs(tmp_path / "none.jsonl")


def test_the_example_pairs_are_whole() -> None:
    pairs = read_pairs(Path(__file__).parents[1] / "examples" / "name_mover.jsonl")
    assert len(pairs) == 24
    for pair in pairs:
        assert isinstance(pair, TextPair)
        spans = {name: pair.original.text[slice(*at)] for name, at in pair.original.spans.items()}
        assert spans["verb"] == "gave"
        assert {spans["first_name"], spans["second_name"]} == {pair.expected_original, pair.expected_counterfactual}
        assert spans["subject"] == pair.expected_counterfactual


def test_a_program_of_variable_binding_keeps_its_roles() -> None:
    roles = Program.parse("a = 1\nb = a\n#b: ").roles
    assert list(roles)[:4] == ["ref_depth_1_lhs", "ref_depth_1_equals", "ref_depth_1_rhs", "ref_depth_1_newline"]


def test_a_frame_is_a_pair_a_row_and_its_nulls_are_no_fields() -> None:
    records = [POINTER, changed(spans={"reference": [16, 17]}), *(pair.to_record() for pair in binding_pairs(2))]
    pairs = read_pairs(pl.DataFrame(records, infer_schema_length=None, strict=False))
    expected = [pair_from_record(record) for record in records]
    assert pairs == expected
    assert [pair.to_record() for pair in pairs] == [pair.to_record() for pair in expected]
    [text] = read_pairs(pl.DataFrame([changed(expected_original="one", expected_counterfactual="four")]))
    assert text.expected_original == "one"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame([POINTER, changed(spans={"late": [0, 99]})]), r"row 1 of the frame: span 'late' is \[0, 99\]"),
        (pl.DataFrame({"original": [None]}), "row 0 of the frame: a pair needs the texts"),
        (pl.DataFrame([changed(expected_original=1.5)]), "row 0 of the frame: .* expected an integer"),
        (pl.DataFrame({"original": []}), "the frame has no row"),
    ],
)
def test_a_frame_with_a_row_that_is_no_pair_is_refused(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(frame)
