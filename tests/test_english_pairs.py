"""Causal runs on English families: texts are read again, and every kind of counterfactual is what it says it is.

What a text's answer is, and where it comes from, is found here by a few lines of their own.
"""

import json
import re
from copy import deepcopy
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import families
import vocabularies
from debug import models
from debug.causal_experiment_runner import CausalConfig, CausalExperimentRunner
from debug.counterfactual import KINDS
from debug.errors import InputError
from debug.generators import FAMILIES, GENERATORS, make_beliefs_program, make_boxes_program, search
from debug.generators.beliefs import KINDS as BELIEF_KINDS
from debug.generators.beliefs import read_beliefs
from debug.generators.boxes import KINDS as BOX_KINDS
from debug.generators.boxes import read_boxes
from debug.models import LoadedModel
from debug.programs import KEEPS_ANSWER, LONGEST_TEXT, ProgramError, TextPair, pair_from_record
from debug.token_analyzer import PairError, analyze_pair
from debug.tracking import load_run

ENGLISH = {"boxes": read_boxes, "beliefs": read_beliefs}
SEEDS = st.integers(0, 2**32 - 1)
Named = tuple[tuple[str, ...], str]  # what has a value, and the value


def origins(text: str) -> tuple[list[Named], int]:
    """Where a text gives things their places, or containers their drinks; and which of these the answer comes from."""
    *told, query = text.split(". ")
    named: list[Named] = []
    held: dict[tuple[str, ...], int] = {}
    for sentence in told:
        if found := re.fullmatch(r"The (\w+) is in box (\w)", sentence):
            held[(found[2],)] = len(named)
            named.append(((found[2],), found[1]))
        elif found := re.fullmatch(r"The (\w+) is moved from box (\w) to box (\w)", sentence):
            moved = held.pop((found[2],))
            assert named[moved][1] == found[1]
            assert (found[3],) not in held
            held[(found[3],)] = moved
        elif found := re.fullmatch(r"(\w+) fills the (\w+) with (\w+)", sentence):
            held[found[1], found[2]] = len(named)
            named.append(((found[1], found[2]), found[3]))
        elif found := re.fullmatch(r"(\w+) sees it", sentence):
            held[found[1], named[-1][0][1]] = len(named) - 1
        else:
            assert sentence.endswith(" does not see it")
    asked = re.findall(r"^Box (\w) contains the$|^(\w+) believes that the (\w+) contains$", query)[0]
    return named, held[tuple(filter(None, asked))]


def made(family: str, kind: str, n: int = 50) -> list[TextPair]:
    """The first pairs of a kind; programs that have none are passed over, at most ten times as many."""
    found: list[TextPair] = []
    for program in islice(search(GENERATORS[family], 5, 0), 10 * n):
        try:
            pair = FAMILIES[family].pair(kind, program.program, program.seed)
        except ProgramError:
            continue
        assert isinstance(pair, TextPair)
        found.append(pair)
        if len(found) == n:
            break
    return found


@given(SEEDS, st.integers(1, 20), st.integers(2, 26), st.data())
def test_boxes_are_read_as_they_were_made(seed: int, seq_len: int, boxes: int, data) -> None:
    knobs = {"boxes": boxes, "things": data.draw(st.integers(1, min(boxes - 1, 25)))}
    text, answer, about = make_boxes_program(seq_len, np.random.RandomState(seed), **knobs)
    story = read_boxes(text)
    assert (story.text, story.answer, story.metadata) == (text, answer, about)


@given(SEEDS, st.integers(1, 20), st.integers(1, 8), st.integers(1, 6), st.sampled_from([0, 0.3, 1]))
def test_beliefs_are_read_as_they_were_made(seed: int, seq_len: int, people: int, containers: int, seen: float) -> None:
    knobs = {"people": people, "containers": containers, "seen": seen}
    text, answer, about = make_beliefs_program(seq_len, np.random.RandomState(seed), **knobs)
    story = read_beliefs(text)
    assert (story.text, story.answer, story.metadata) == (text, answer, about)


BOX, CUP = "The apple is in box A.", "Anna fills the cup with tea."


@pytest.mark.parametrize(
    ("family", "text", "message"),
    [
        ("boxes", "", "sentence 1 is ''; expected 'Box {box} contains the'"),
        ("boxes", BOX, r"sentence 1 is 'The apple is in box A\.'; expected 'Box"),
        ("boxes", f"{BOX} Box A contains the ", "sentence 2 is 'Box A contains the '"),
        ("boxes", f"{BOX}  Box A contains the", "sentence 2 is ' Box"),
        ("boxes", f"{BOX}\nBox A contains the", "sentence 1 is"),
        ("boxes", "The zebra is in box A. Box A contains the", "sentence 1 is 'The zebra"),
        ("boxes", "The apple is in box AA. Box A contains the", "sentence 1 is"),
        ("boxes", f"{BOX} Box B contains the", "box B is asked for, and is empty"),
        ("boxes", f"{BOX} {BOX} Box A contains the", "sentence 2 cannot be: the apple is in another box"),
        ("boxes", f"{BOX} The ball is in box A. Box A contains the", "sentence 2 cannot be: box A has the apple in it"),
        ("boxes", f"{BOX} The ball is moved from box A to box B. Box B contains the", "the ball is not in box A"),
        (
            "boxes",
            f"{BOX} The apple is moved from box A to box B. The ball is in box C. Box B contains the",
            "sentence 3 cannot be: the ball is put into a box behind a move",
        ),
        ("boxes", "The {thing} is in box {to}. Box A contains the", "sentence 1 is 'The {thing}"),
        ("boxes", f"{BOX} " * 10_000 + "Box A contains the", f"expected at most {LONGEST_TEXT:,}"),
        ("beliefs", f"{CUP} Anna believes that the cup contains tea", "sentence 2 is"),
        ("beliefs", f"{CUP} Zoe sees it. Anna believes that the cup contains", "sentence 2 is 'Zoe sees it"),
        ("beliefs", f"Ben sees it. {CUP} Ben believes that the cup contains", "nothing was done that Ben could see"),
        ("beliefs", f"{CUP} Anna sees it. Anna believes that the cup contains", "sentence 2 cannot be: Anna did it"),
        (
            "beliefs",
            f"{CUP} Ben sees it. Ben does not see it. Anna believes that the cup contains",
            "sentence 3 cannot be: Ben did it, or it is said before whether Ben saw it",
        ),
        (
            "beliefs",
            f"{CUP} Ben does not see it. Ben believes that the cup contains",
            "Ben has not seen the cup filled",
        ),
        ("beliefs", f"{CUP} Emma believes that the cup contains", "Emma has not seen the cup filled"),
        ("beliefs", f"{CUP} Anna believes that the jar contains", "Anna has not seen the jar filled"),
    ],
)
def test_a_text_that_cannot_be_is_refused_in_one_sentence(family: str, text: str, message: str) -> None:
    with pytest.raises(ProgramError, match=message.replace("{", r"\{")) as refused:
        ENGLISH[family](text)
    assert len(str(refused.value)) < 300
    with pytest.raises(ProgramError):
        FAMILIES[family].pair("root_value", text, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ENGLISH)
def test_every_kind_changes_what_it_says_and_predicts_where_pointers_point(family: str, kind: str) -> None:
    pairs = made(family, kind)
    assert len(pairs) == 50
    for pair in pairs:
        one, other = pair.original, pair.counterfactual
        (named, root), (named_source, root_source) = origins(one.text), origins(other.text)
        assert (named[root][1], named_source[root_source][1]) == (one.answer, other.answer)
        assert (one.answer == other.answer) == KEEPS_ANSWER[kind] == pair.keeps_answer
        assert pair.kind == kind
        key = named_source[root_source][0]
        time = [name for name, _ in named_source[:root_source]].count(key)
        by_name = [value for name, value in named if name == key][time : time + 1]
        assert pair.predictions.get("pointer_by_name") == (by_name[0] if by_name else None)
        assert pair.predictions.get("pointer_by_order") == named[root_source][1]
        before, after = one.text.split(), other.text.split()
        assert len(before) == len(after)
        assert pair_from_record(json.loads(json.dumps(pair.to_record()))) == pair
        changed = {(a.rstrip("."), b.rstrip(".")) for a, b in zip(before, after, strict=True) if a != b}
        moved = {name for name, answer in pair.predictions.items() if answer != one.answer}
        if kind == "root_value":
            assert (changed, moved) == ({(one.answer, other.answer)}, set())
        if kind == "swap_values":
            assert changed == {(one.answer, other.answer), (other.answer, one.answer)}
            assert not moved
        if kind == "rename":
            assert len(changed) == 2
            assert changed == {(b, a) for a, b in changed}
            assert moved == {"pointer_by_name"}
        if kind == "reorder":
            assert sorted(one.text.split(". ")) == sorted(other.text.split(". "))
            assert moved == {"pointer_by_order"}
            about, about_source = (ENGLISH[family](text).metadata["states"][-1] for text in (one.text, other.text))
            assert about == about_source, "what is told is the same in the end"
        if kind == "distractor":
            assert len(changed) == 1
            assert one.answer not in {word for both in changed for word in both}
            assert not moved
        if kind == "same_answer":
            assert not {name for name, _ in named} & {name for name, _ in named_source}
        if kind == "pointer":
            assert "pointer_by_name" in moved
            assert len({one.answer, other.answer, *pair.predictions.values()}) >= 3
    if kind == "pointer":
        apart = [len({p.expected_original, p.expected_counterfactual, *p.predictions.values()}) == 4 for p in pairs]
        assert sum(apart) >= (50 if family == "boxes" else 30), "on most, all four hypotheses differ"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ENGLISH)
def test_roles_stay_at_their_words(family: str, kind: str) -> None:
    for pair in made(family, kind, 20):
        places = [
            {name: program.text[:start].count(" ") for name, (start, _) in program.spans.items()}
            for program in pair.programs
        ]
        assert places[0] == places[1]


def test_the_families_have_all_kinds_and_a_seed_has_one_pair() -> None:
    assert list(BOX_KINDS) == list(BELIEF_KINDS) == list(KINDS)
    for family, kind in (("boxes", "pointer"), ("beliefs", "swap_values")):
        assert [pair.to_record() for pair in made(family, kind, 5)] == [p.to_record() for p in made(family, kind, 5)]
    with pytest.raises(ProgramError, match="kind is 'pointr'; expected one of root_value, pointer"):
        FAMILIES["boxes"].pair("pointr", f"{BOX} Box A contains the", 0)


def test_a_kind_that_no_program_has_is_refused_before_weights_load(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", None)
    config = CausalConfig(models=["tiny"], generator="beliefs", counterfactual="swap_values", seq_lens=[1], num_seqs=1)
    with pytest.raises(
        InputError, match=r"221 programs in a row have no counterfactual; .* of kind swap_values: two fi"
    ):
        CausalExperimentRunner(uri).run(config)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    """A random model to which every character is a token."""
    config, tokenizer = deepcopy(families.CONFIGS["llama"]), vocabularies.tokenizer("printable")
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 1024
    return families.of(config, "llama", tokenizer)


def test_words_that_are_not_as_many_tokens_are_no_pair_though_the_prompts_are(model: LoadedModel) -> None:
    text = "The cup is in box A. The apple is in box B. Box A contains the"
    pair = FAMILIES["boxes"].pair("swap_values", text, 0)
    assert len(pair.original.text) == len(pair.counterfactual.text)
    with pytest.raises(
        PairError, match=r"sentence_1_thing is at tokens \[4, 5, 6\] of the original, at \[4, 5, 6, 7, 8\]"
    ):
        analyze_pair(model.tokenizer, pair, "{code} ")


@pytest.mark.parametrize(
    ("family", "kind"),
    [("boxes", "root_value"), ("boxes", "rename"), ("beliefs", "pointer"), ("beliefs", "distractor")],
)
def test_a_causal_study_runs_from_end_to_end(
    family: str, kind: str, model: LoadedModel, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: model)
    monkeypatch.setattr(models, "locate", lambda *_: None)
    config = CausalConfig(
        models=["random"],
        generator=family,
        counterfactual=kind,
        seq_lens=[2],
        num_seqs=2,
        prompt_template="{code} ",
        positions="targets",
        require_correct=False,
        control=False,
    )
    study = CausalExperimentRunner(uri).run(config)
    run = load_run(study.cells[0].run_id, uri)
    assert len(run.maps) == 2, run.samples["error"].to_list()
    assert run.params["counterfactual"] == kind
    causal_map = run.maps[0]
    last = "query_box" if family == "boxes" else "query_container"
    assert {"sentence_1_end", last, "final"} <= causal_map.targets.keys()
    metric = "answer_kept" if KEEPS_ANSWER[kind] else "success"
    assert causal_map.at_target("final", metric).shape == (len(causal_map.layers),)
